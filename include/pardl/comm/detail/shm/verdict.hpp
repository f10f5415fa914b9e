// SPDX-License-Identifier: MIT
/// \file   That a group has failed: why, said once for all ranks, and the sentence that each operation ends with.
/// \layer  comm, private.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "pardl/comm/detail/post_mortem.hpp"
#include "pardl/comm/detail/shm/board.hpp"
#include "pardl/comm/detail/shm/call.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

class Verdict {
 public:
  Verdict(Ground const& ground, int rank, int size) : ground_(ground), rank_(rank), size_(size) {}

  [[nodiscard]] bool given() const noexcept { return ground_.board().failure.load(std::memory_order_acquire) == 2; }

  /// The first failure of the group is everybody's; later ones are its consequences. Afterwards it can be read.
  /// \param phrase  what happened to `origin`: "timed out after 3 s", "failed: rank 1 has died"
  /// \param origin  the operation of this rank that it came to light in; null: none
  void give(std::string const& phrase, bool late, Stamp const* origin) {
    auto& board = ground_.board();
    std::uint32_t none = 0;
    if (board.failure.compare_exchange_strong(none, 1, std::memory_order_seq_cst)) {
      std::string const text = (origin ? origin->text() + " " : "") + phrase;
      {
        std::lock_guard const lock(mutex_);
        if (origin) origin_ = {origin->collective, origin->number};
        ending_ = {.phrase = phrase, .late = late};
      }
      board.failed_rank = rank_;
      board.late = late ? 1 : 0;
      auto const size = std::min(text.size(), sizeof board.phrase - 1);
      std::copy_n(text.data(), size, board.phrase);
      board.phrase[size] = 0;
      board.failure.store(2, std::memory_order_seq_cst);
    } else {  // another rank says why, perhaps at this moment
      auto const until = std::chrono::steady_clock::now() + patience;
      while (!given() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
      if (!given()) take_half();
    }
    board.bell.ring();
  }

  /// Whether a rank is writing why. It may die over that: after a second what it has written must do.
  bool half_given() {
    auto& board = ground_.board();
    if (board.failure.load(std::memory_order_acquire) != 1) return false;
    auto const now = std::chrono::steady_clock::now();
    if (!half_since_) half_since_ = now;
    if (now - *half_since_ >= patience) take_half();
    return true;
  }

  /// The sentence for one of this rank's operations; null: for none of them.
  std::exception_ptr error_of(Stamp const* stamp) {
    auto const findings = look(collectives);
    auto const& board = ground_.board();
    Ending ending{.phrase = "was given up: the group was shut down", .late = false};
    if (findings.note) {
      std::lock_guard const lock(mutex_);
      if (stamp == nullptr)
        ending = {.phrase = findings.note->phrase, .late = findings.note->late};
      else if (origin_ == std::pair{stamp->collective, stamp->number})
        ending = ending_;
      else
        ending.phrase = board.failed_rank == rank_ ? "was given up: " + findings.note->phrase : "";
    }
    return told(post_mortem(stamp, ending, rank_, size_, findings), findings);
  }

  /// The sentence for an operation made of messages. \param cause  how one of them ended
  std::exception_ptr error_of_composed(Stamp const& stamp, std::string const& cause) const {
    auto const findings = look(compositions);
    bool const others = findings.note && findings.note->rank != rank_;
    return told(
        post_mortem(&stamp, {.phrase = others ? "" : "failed: " + cause, .late = false}, rank_, size_, findings),
        findings);
  }

  /// For an operation that was asked for too late.
  [[noreturn]] void refuse(Stamp const& stamp) const {
    if (!given()) throw CommError(sentence("comm", rank_, size_, "the group has been shut down", "make a new one"));
    auto const& board = ground_.board();
    std::string const text = sentence("comm", rank_, size_,
                                      std::string(stamp.name) + " was refused, since the group has failed: rank " +
                                          std::to_string(board.failed_rank) + " says " + board.phrase,
                                      "mend that rank, then start all anew");
    if (board.late != 0) throw CommTimeout(text);
    throw CommError(text);
  }

 private:
  static constexpr std::chrono::seconds patience{1};  ///< with a rank that is writing

  void take_half() {
    auto& board = ground_.board();
    board.phrase[sizeof board.phrase - 1] = 0;
    board.failure.store(2, std::memory_order_seq_cst);
    board.bell.ring();
  }

  /// What of a seat counts operations of one kind.
  struct Book {
    std::atomic<std::uint64_t> Seat::*begun;
    std::atomic<std::uint64_t> Seat::*finished;
    Call (Seat::*calls)[Seat::remembered];
  };
  static constexpr Book collectives{&Seat::announced, &Seat::finished, &Seat::calls};
  static constexpr Book compositions{&Seat::composed, &Seat::composed_finished, &Seat::compositions};

  [[nodiscard]] Findings look(Book const& book) const {
    Findings findings{.answered = true, .store = "", .note = std::nullopt, .ranks = {}};
    auto const& board = ground_.board();
    if (given()) findings.note = Note{board.failed_rank, board.late != 0, board.phrase};
    for (int r = 0; r < size_; ++r)
      if (auto status = status_of(static_cast<std::size_t>(r), book)) findings.ranks.emplace(r, std::move(*status));
    return findings;
  }
  static std::exception_ptr told(std::string const& text, Findings const& findings) {
    return findings.note && findings.note->late ? std::make_exception_ptr(CommTimeout(text))
                                                : std::make_exception_ptr(CommError(text));
  }
  /// Where a rank stands; nothing of one that has died.
  [[nodiscard]] std::optional<Status> status_of(std::size_t rank, Book const& book) const {
    auto const& its = ground_.seat(rank);
    auto const state = its.state.load(std::memory_order_acquire);
    if (state == dead) return std::nullopt;
    Status status;
    status.issued = (its.*book.begun).load(std::memory_order_acquire);
    status.left = state == left;
    status.busy = (its.*book.finished).load(std::memory_order_relaxed) < status.issued;
    auto const first = status.issued - std::min<std::uint64_t>(status.issued, Seat::remembered - 1) + 1;
    auto const call = [&](std::uint64_t number) { return stamp_of((its.*book.calls)[number % Seat::remembered]); };
    for (auto n = first; n <= status.issued; ++n) status.recent.emplace_back(n, call(n).agreement());
    if (status.issued > 0) status.last = call(status.issued).text();
    return status;
  }

  Ground const& ground_;
  int rank_, size_;
  std::mutex mutex_;
  std::optional<std::pair<bool, std::uint64_t>>
      origin_;  ///< the failed operation: whether a collective, and its number
  Ending ending_;
  std::optional<std::chrono::steady_clock::time_point> half_since_;
};

}  // namespace pardl::inline PARDL_ABI::detail::shm
