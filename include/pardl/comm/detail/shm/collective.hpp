// SPDX-License-Identifier: MIT
/// \file   One collective as a machine that moves on as far as it can without waiting: put down, combine, pick up.
/// \layer  comm, private.
///
/// In each tick a rank may put down a slot full of its bytes for all to read. What the slot holds makes three ways:
/// - whole: one piece for everybody (broadcast, gathers, and reductions of few bytes, which every rank does for
/// itself);
/// - dealt: a part for each rank (scatter, reduce_scatter, all_to_all);
/// - sliced: the rank's share of each slice. Each rank combines one slice, puts the result where its own share would
///   have been, and all pick up the slices (all_reduce, reduce): a rank reads its tensor from memory once and writes it
///   once, while slots stay in cache.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "pardl/comm/detail/shm/board.hpp"
#include "pardl/comm/detail/shm/call.hpp"
#include "pardl/comm/detail/shm/reduce.hpp"
#include "pardl/comm/detail/shm/row.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

enum class Way : std::uint8_t { whole, dealt, sliced };

/// What a rank brings to a collective, and takes from it.
struct Collective {
  Call call{};
  Way way = Way::whole;
  Combine combine = nullptr;  ///< null: nothing is combined
  std::size_t element = 1;    ///< bytes of a number
  std::vector<Row> give;      ///< whole: one row, or none; dealt: one for each rank; sliced: the tensor
  std::vector<Row> take;     ///< whole, dealt: from each rank, or one where it is combined; sliced: the tensor, or none
  bool first_sizes = false;  ///< all_to_all: the first tick tells how much goes from whom to whom
  std::size_t ticks = 1;     ///< at least 1, so that every collective is a meeting of slots
  std::size_t chunk = 0;     ///< bytes of a row, or of a part, in a tick

  // How far it has come.
  std::uint64_t first_tick = 0;
  std::size_t deposited = 0, combined = 0, collected = 0;
};

/// Moves collectives on. One to a rank; not for several threads at a time.
class Mover {
 public:
  Mover(Ground const& ground, std::size_t rank)
      : ground_(ground), me_(rank), ranks_(ground.sizes().ranks), seen_(ranks_), rows_(ranks_) {}

  /// Makes it the present one. Its call can be read by the others from now on.
  void begin(Collective& c) {
    auto& seat = ground_.seat(me_);
    c.first_tick = tick_;
    c.call.number = ++number_;
    seat.calls[c.call.number % Seat::remembered] = c.call;
    seat.announced.store(c.call.number, std::memory_order_release);
  }

  /// Whether anything was done. When over(), the next one may begin.
  bool advance(Collective& c) {
    bool moved = false;
    for (bool more = true; more; moved |= more) {
      more = false;
      if (may_collect(c)) collect(c), more = true;
      if (may_combine(c)) combine(c), more = true;
      if (may_deposit(c)) deposit(c), more = true;
      if (over(c)) {
        tick_ = c.first_tick + c.ticks;
        return true;
      }
      if (!odd_.empty()) return true;
    }
    return moved;
  }
  [[nodiscard]] bool over(Collective const& c) const { return c.collected == c.ticks; }

  /// Whether all that have come to this collective mean the same by it, those too that this one takes nothing from.
  [[nodiscard]] bool all_mean(Collective const& c) {
    for (std::size_t r = 0; r < ranks_ && odd_.empty(); ++r)
      if (r != me_) (void)has_come(r, c);
    return odd_.empty();
  }

  /// What a rank means otherwise than this one, once that is found; empty: nothing.
  [[nodiscard]] std::string const& odd() const noexcept { return odd_; }
  [[nodiscard]] std::uint64_t number() const noexcept { return number_; }

 private:
  /// Whether a rank has come to this collective. It looks at what that rank called up to here.
  bool has_come(std::size_t rank, Collective const& c) {
    auto const announced = ground_.seat(rank).announced.load(std::memory_order_acquire);
    // Whoever takes from a rank looks at it, and who only gives looks at all, so no two ranks are further apart than
    // there are slots, and whatever differed longer ago has been found; but a rank that is not looked at for long, as
    // receivers of one root do not look at each other, has written over its calls by then.
    auto& seen = seen_[rank];
    seen = std::max(seen, c.call.number - std::min<std::uint64_t>(c.call.number, Seat::remembered / 2));
    for (auto const until = std::min(announced, c.call.number); seen < until; ++seen) {
      auto const at = (seen + 1) % Seat::remembered;
      auto const &theirs = ground_.seat(rank).calls[at], &ours = ground_.seat(me_).calls[at];
      if (!theirs.agrees(ours)) {
        odd_ = "rank " + std::to_string(rank) + " has called " + stamp_of(theirs).text();
        if (theirs.operation != ours.operation)
          odd_ += std::string(" by ") + operation_name(theirs) + ", this rank by " + operation_name(ours);
        else if (theirs.bytes != ours.bytes && ((theirs.bytes | ours.bytes) & Call::digest) != 0)
          odd_ += " with other sizes in its list";
        else if (theirs.way != ours.way)
          odd_ += " with another ShmOptions::read_all";
        return false;
      }
    }
    return seen == c.call.number;
  }
  bool all_have(std::atomic<std::uint64_t> Seat::*counter, std::uint64_t ticks, Collective const& c, bool check) {
    for (std::size_t r = 0; r < ranks_; ++r) {
      if (r == me_) continue;
      if ((ground_.seat(r).*counter).load(std::memory_order_acquire) < ticks) return false;
      if (check && !has_come(r, c)) return false;
    }
    return true;
  }
  void set(std::atomic<std::uint64_t> Seat::*counter, std::uint64_t value) {
    (ground_.seat(me_).*counter).store(value, std::memory_order_seq_cst);
    ground_.board().bell.ring();
  }

  // ---- put down ----

  [[nodiscard]] bool gives(Collective const& c) const { return !c.give.empty(); }

  bool may_deposit(Collective const& c) {
    if (c.deposited == c.ticks) return false;
    if (!gives(c)) return true;
    if (c.first_sizes && c.deposited > 0 && c.collected == 0) return false;  // the sizes say how it goes on
    auto const tick = c.first_tick + c.deposited;
    auto const slots = ground_.sizes().slots;
    // The slot is free when all have read what was in it, this rank too, which may look at the others a moment before
    // they have all come and gone; all have, then, come to what was before.
    if (tick >= c.first_tick + c.collected + slots) return false;
    if (tick >= free_until_ + slots) {
      std::uint64_t least = ~std::uint64_t{0};
      for (std::size_t r = 0; r < ranks_; ++r)
        if (r != me_) least = std::min(least, ground_.seat(r).collected.load(std::memory_order_acquire));
      free_until_ = std::min(least, tick);
    }
    return tick < free_until_ + slots;
  }

  void deposit(Collective& c) {
    if (!gives(c)) {
      c.deposited = c.ticks;
      if (c.way != Way::sliced) c.combined = c.ticks;
      return;
    }
    auto const k = c.deposited++;
    std::byte* const slot = ground_.slot(me_, c.first_tick + k);
    auto const part = ground_.sizes().part();
    switch (c.way) {
      case Way::whole:
        c.give[0].read(k * c.chunk, c.chunk, slot);
        break;
      case Way::dealt:
        if (c.first_sizes && k == 0) {
          auto* const sizes = reinterpret_cast<std::uint64_t*>(slot);
          for (std::size_t r = 0; r < ranks_; ++r) sizes[r] = c.give[r].size();
        } else {
          auto const begin = (k - (c.first_sizes ? 1 : 0)) * c.chunk;
          for (std::size_t r = 0; r < ranks_; ++r)
            if (r != me_) c.give[r].read(begin, c.chunk, slot + r * part);
        }
        break;
      case Way::sliced:
        for (std::size_t r = 0; r < ranks_; ++r)
          if (r != me_) c.give[0].read((k * ranks_ + r) * c.chunk, c.chunk, slot + r * part);
        break;
    }
    if (c.way != Way::sliced) c.combined = c.deposited;
    set(&Seat::published, c.first_tick + c.deposited);
  }

  // ---- combine the own slice ----

  bool may_combine(Collective const& c) {
    return c.combined < c.deposited && all_have(&Seat::published, c.first_tick + c.combined + 1, c, true);
  }
  void combine(Collective& c) {
    auto const k = c.combined++;
    auto const part = ground_.sizes().part();
    std::byte* const result = ground_.slot(me_, c.first_tick + k) + me_ * part;
    for (std::size_t r = 0; r < ranks_; ++r) rows_[r] = ground_.slot(r, c.first_tick + k) + me_ * part;
    bool const keeps = !c.take.empty();  // who takes nothing leaves its tensor as it is
    bool const tells = keeps && readers(c);
    constexpr std::size_t piece = 4096;  // a copy of what is still in the nearest cache
    c.give[0].each((k * ranks_ + me_) * c.chunk, c.chunk, [&](std::byte* own, std::size_t offset, std::size_t bytes) {
      for (std::size_t at = 0; at < bytes; at += piece) {
        for (std::size_t r = 0; r < ranks_; ++r) pointers_[r] = (r == me_ ? own : rows_[r] + offset) + at;
        std::byte* const out = (keeps ? own : result + offset) + at;
        auto const now = std::min(piece, bytes - at);
        c.combine(out, pointers_.data(), ranks_, now / c.element);
        if (tells) std::memcpy(result + offset + at, own + at, now);
      }
    });
    set(&Seat::combined, c.first_tick + c.combined);
  }

  // ---- pick up ----

  /// Whether anybody else reads this rank's result.
  [[nodiscard]] bool readers(Collective const& c) const {
    return c.call.root < 0 || static_cast<std::size_t>(c.call.root) != me_;
  }
  /// The only rank that this one reads from, or -1: from all.
  [[nodiscard]] std::int32_t source(Collective const& c) const {
    bool const one = c.take.size() == 1 && c.combine == nullptr && c.call.root != static_cast<std::int32_t>(me_);
    return one ? c.call.root : -1;
  }

  bool may_collect(Collective& c) {
    if (c.collected == c.combined || c.collected == c.ticks) return false;
    auto const tick = c.first_tick + c.collected + 1;
    if (c.take.empty() && !c.first_sizes) {
      return all_mean(c);  // nothing to read; but calls are looked at before they can be overwritten
    }
    if (auto const from = source(c); from >= 0) {
      auto const& seat = ground_.seat(static_cast<std::size_t>(from));
      return seat.published.load(std::memory_order_acquire) >= tick && has_come(static_cast<std::size_t>(from), c);
    }
    return all_have(c.way == Way::sliced ? &Seat::combined : &Seat::published, tick, c, true);
  }

  void collect(Collective& c) {
    if (c.take.empty() && !c.first_sizes) {
      c.collected = c.combined;
    } else {
      auto const k = c.collected++;
      if (c.first_sizes && k == 0)
        learn_sizes(c);
      else
        pick_up(c, k);
    }
    set(&Seat::collected, c.first_tick + c.collected);
  }

  void pick_up(Collective const& c, std::size_t k) {
    auto const part = ground_.sizes().part();
    auto const tick = c.first_tick + k;
    std::size_t const dealt = c.way == Way::whole ? 0 : me_ * part;
    auto const begin = (k - (c.first_sizes ? 1 : 0)) * c.chunk;
    if (c.way == Way::sliced) {
      for (std::size_t r = 0; r < ranks_; ++r)
        if (r != me_) c.take[0].write((k * ranks_ + r) * c.chunk, c.chunk, ground_.slot(r, tick) + r * part);
    } else if (c.combine != nullptr) {
      for (std::size_t r = 0; r < ranks_; ++r) rows_[r] = ground_.slot(r, tick) + dealt;
      auto const& mine = c.way == Way::whole ? c.give[0] : c.give[me_];
      if (c.way == Way::dealt) mine.read(begin, c.chunk, ground_.slot(me_, tick) + dealt);  // nobody else's place
      c.take[0].each(begin, c.chunk, [&](std::byte* out, std::size_t offset, std::size_t bytes) {
        for (std::size_t r = 0; r < ranks_; ++r) pointers_[r] = rows_[r] + offset;
        c.combine(out, pointers_.data(), ranks_, bytes / c.element);
      });
    } else if (auto const from = source(c); from >= 0) {
      c.take[0].write(begin, c.chunk, ground_.slot(static_cast<std::size_t>(from), tick) + dealt);
    } else {
      for (std::size_t r = 0; r < ranks_ && r < c.take.size(); ++r)
        if (r != me_) c.take[r].write(begin, c.chunk, ground_.slot(r, tick) + dealt);
    }
  }

  /// After the first tick of all_to_all: how many it will be, the same on all ranks.
  void learn_sizes(Collective& c) {
    std::uint64_t most = 0;
    for (std::size_t from = 0; from < ranks_; ++from) {
      auto const* const sizes = reinterpret_cast<std::uint64_t const*>(ground_.slot(from, c.first_tick));
      for (std::size_t to = 0; to < ranks_; ++to) {
        if (from != to) most = std::max(most, sizes[to]);
        if (to == me_ && sizes[to] != c.take[from].size())
          odd_ = "rank " + std::to_string(from) + " sends " + std::to_string(sizes[to]) +
                 " bytes where this rank takes " + std::to_string(c.take[from].size());
      }
    }
    c.ticks = 1 + (most + c.chunk - 1) / c.chunk;
  }

  Ground const& ground_;
  std::size_t me_, ranks_;
  std::vector<std::uint64_t> seen_;  ///< collectives of each rank that were compared with ours
  std::vector<std::byte const*> rows_;
  std::vector<std::byte const*> pointers_ = std::vector<std::byte const*>(ranks_);
  std::uint64_t tick_ = 0, number_ = 0, free_until_ = 0;
  std::string odd_;
};

}  // namespace pardl::inline PARDL_ABI::detail::shm
