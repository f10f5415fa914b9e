// SPDX-License-Identifier: MIT
/// \file   What lies where in the shared memory of a group: the board all read, a seat and an outbox a rank, channels.
/// \layer  comm, private.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "pardl/comm/detail/shm/bell.hpp"
#include "pardl/comm/detail/shm/segment.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

inline constexpr std::size_t line = 64;  ///< bytes that processors hand each other at a time

[[nodiscard]] constexpr std::size_t rounded_up(std::size_t bytes, std::size_t to = line) {
  return (bytes + to - 1) / to * to;
}

/// A collective as its rank has called it: enough to see whether all ranks mean the same, and to say what they meant.
struct Call {
  std::uint64_t number;  ///< 1, 2, …
  /// Of what must be equally large on all ranks; 0 where nothing must. With the highest bit: a digest of the sizes that
  /// each rank has, which all must know alike.
  std::uint64_t bytes;
  std::uint32_t tensors;
  std::int32_t root;  ///< -1: none
  std::uint8_t name;  ///< place in `names`
  std::uint8_t operation;
  std::uint8_t dtype;
  std::uint8_t dimensions;   ///< of the first tensor; 255: more than there is room for
  std::uint8_t same_shapes;  ///< whether the first tensor has one shape on all ranks
  std::uint8_t way;          ///< how its bytes travel, which follows from the sizes and the group's options
  std::int64_t shape[6];

  static constexpr std::uint64_t digest = std::uint64_t{1} << 63;
  [[nodiscard]] static constexpr std::uint64_t mixed(std::uint64_t so_far, std::uint64_t size) noexcept {
    return ((so_far ^ size) * 0x9e37'79b9'7f4a'7c15 + (so_far >> 32)) | digest;
  }

  /// All but the shape, which may differ where the bytes are the same.
  [[nodiscard]] bool agrees(Call const& other) const noexcept {
    return number == other.number && bytes == other.bytes && root == other.root && name == other.name &&
           operation == other.operation && dtype == other.dtype && way == other.way;
  }
};

/// How far a rank has come. A tick is one turn of the group's slots: every collective takes the same ticks on all
/// ranks, so ticks are numbered alike everywhere. Each counter has one writer and never falls.
struct Seat {
  alignas(line) std::atomic<std::uint64_t> announced;  ///< collectives begun; their calls can be read
  std::atomic<std::uint64_t> published;                ///< ticks whose slot this rank has filled
  alignas(line) std::atomic<std::uint64_t> combined;   ///< ticks whose part this rank has reduced
  alignas(line) std::atomic<std::uint64_t> collected;  ///< ticks that this rank will not read again
  std::atomic<std::uint64_t> finished;                 ///< collectives over
  alignas(line) std::atomic<std::uint32_t> state;      ///< of Presence
  std::int32_t pid;
  std::uint64_t pid_space;  ///< in which the pid counts
  static constexpr std::size_t remembered = 32;
  alignas(line) Call calls[remembered];  ///< by number; read for half of these, and a rank is a few slots ahead at most
  /// Operations made of messages, a ring for one: nobody waits for them here, so they are counted by themselves.
  alignas(line) std::atomic<std::uint64_t> composed;
  std::atomic<std::uint64_t> composed_finished;
  alignas(line) Call compositions[remembered];
};
enum Presence : std::uint32_t { absent, present, left, dead };

/// Bytes from one rank to another, a ring of them behind two counters.
struct Channel {
  alignas(line) std::atomic<std::uint64_t> written;
  alignas(line) std::atomic<std::uint64_t> read;
};

struct Board {
  std::uint64_t magic;
  std::uint32_t size;
  alignas(line) Bell bell;
  alignas(line) std::atomic<std::uint32_t> failure;  ///< 0: none, 1: being written, 2: to be read
  std::int32_t failed_rank;
  std::uint32_t late;
  char phrase[960];

  static constexpr std::uint64_t made_by_us = 0x7061'7264'6c73'686d;
};

/// Sizes, the same on all ranks.
struct Sizes {
  static_assert(Seat::remembered >= 16, "calls must outlive the slots of their operations twice");
  std::size_t ranks = 1;
  std::size_t slot = 128 << 10;     ///< bytes that a rank puts down in a tick
  std::size_t slots = 4;            ///< ticks that a rank may be ahead of the slowest
  std::size_t channel = 256 << 10;  ///< bytes between two ranks

  /// \param slot  asked for; grows until each rank's part of it is worth a line or more.
  static Sizes of(std::size_t ranks, std::size_t slot) {
    return {.ranks = ranks,
            .slot = rounded_up(std::max(slot, ranks * 16 * line), ranks * line),
            .channel = ranks <= 8 ? std::size_t{256} << 10 : std::size_t{64} << 10};
  }
  /// Of a slot, for one rank.
  [[nodiscard]] std::size_t part() const noexcept { return slot / ranks / line * line; }

  [[nodiscard]] std::size_t seats_at() const { return rounded_up(sizeof(Board), 4096); }
  [[nodiscard]] std::size_t channels_at() const { return rounded_up(seats_at() + ranks * sizeof(Seat), 4096); }
  [[nodiscard]] std::size_t outboxes_at() const {
    return rounded_up(channels_at() + ranks * ranks * sizeof(Channel), 4096);
  }
  [[nodiscard]] std::size_t outbox() const { return rounded_up(slot * slots, 4096); }
  [[nodiscard]] std::size_t mail_at() const { return outboxes_at() + ranks * outbox(); }
  [[nodiscard]] std::size_t all() const { return mail_at() + ranks * ranks * channel; }
};

/// Views into the segment.
class Ground {
 public:
  Ground(std::shared_ptr<Segment> segment, Sizes sizes) : segment_(std::move(segment)), sizes_(sizes) {}

  [[nodiscard]] Sizes const& sizes() const noexcept { return sizes_; }
  [[nodiscard]] Segment const& segment() const noexcept { return *segment_; }
  [[nodiscard]] Board& board() const noexcept { return *at<Board>(0); }
  [[nodiscard]] Seat& seat(std::size_t rank) const noexcept { return at<Seat>(sizes_.seats_at())[rank]; }
  [[nodiscard]] Channel& channel(std::size_t from, std::size_t to) const noexcept {
    return at<Channel>(sizes_.channels_at())[from * sizes_.ranks + to];
  }
  [[nodiscard]] std::byte* mail(std::size_t from, std::size_t to) const noexcept {
    return segment_->data() + sizes_.mail_at() + (from * sizes_.ranks + to) * sizes_.channel;
  }
  /// Where a rank puts down what it brings at a tick.
  [[nodiscard]] std::byte* slot(std::size_t rank, std::uint64_t tick) const noexcept {
    return outbox(rank) + tick % sizes_.slots * sizes_.slot;
  }
  [[nodiscard]] std::byte* outbox(std::size_t rank) const noexcept {
    return segment_->data() + sizes_.outboxes_at() + rank * sizes_.outbox();
  }

 private:
  template <class T>
  [[nodiscard]] T* at(std::size_t offset) const noexcept {
    return reinterpret_cast<T*>(segment_->data() + offset);
  }

  std::shared_ptr<Segment> segment_;
  Sizes sizes_;
};

}  // namespace pardl::inline PARDL_ABI::detail::shm
