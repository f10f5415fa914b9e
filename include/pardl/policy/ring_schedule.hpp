// SPDX-License-Identifier: MIT
/// \file   The ring all-reduce as a table: who sends which elements to whom, move by move. No tensor, no transport.
/// \layer  policy (std only).
///
/// n ranks stand in a ring and each sends to the next one only. The tensor, a flat list of elements, is cut into n
/// chunks. In the reduce-scatter (share-reduce) of n-1 steps, each rank adds what it receives to its own chunk, and
/// sends that sum in the next step: afterwards rank r has chunk r+1 complete. In the all-gather (share-only) of n-1
/// steps the complete chunks go round unchanged. In step g = 0 … 2n-3 of both together, rank r sends chunk r-g and
/// receives chunk r-g-1 (mod n).
///
/// So chunk c is summed in the order of the ring, x[c], x[c+1], …, x[c+n-1] (mod n), from the left, on one rank after
/// the other, and every rank ends with a copy of the same sum.
///
/// Pipelined, every chunk is cut into k segments that travel one after the other, so that a rank receives a segment
/// while it adds the one before. That changes neither the order of the sum nor the bytes.
#pragma once

#include <cstdint>
#include <string>

#include "pardl/policy/error.hpp"
#include "pardl/policy/ranked.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Elements begin, begin + 1, …, end() - 1 of a flat tensor.
struct ElementRange {
  std::int64_t begin = 0;
  std::int64_t size = 0;

  [[nodiscard]] constexpr std::int64_t end() const noexcept { return begin + size; }
  /// The index-th of `parts` pieces, in order: sizes differ by at most one, the larger ones first. Pieces may be empty.
  [[nodiscard]] constexpr ElementRange part(std::int64_t index, std::int64_t parts) const noexcept {
    std::int64_t const least = size / parts, larger = size % parts;
    return {.begin = begin + index * least + (index < larger ? index : larger),
            .size = least + (index < larger ? 1 : 0)};
  }
  friend constexpr bool operator==(ElementRange const&, ElementRange const&) = default;
};

enum class RingPhase {
  reduce_scatter,  ///< what is received is added to the rank's own
  all_gather,      ///< what is received replaces the rank's own
};

/// What one rank does at once: it sends one segment to the next rank and receives one from the previous.
struct RingMove {
  RingPhase phase = RingPhase::reduce_scatter;
  int step = 0;              ///< within its phase, 0 … n-2
  std::int64_t segment = 0;  ///< of the chunk
  int send_chunk = 0;
  int receive_chunk = 0;
  ElementRange send;     ///< may be empty, and is then on the receiver, too
  ElementRange receive;  ///< likewise
};

/// One rank's moves, in order: `schedule[0]` … `schedule[size() - 1]`. The other ranks' i-th moves fit: what the
/// previous rank sends in move i is what this one receives in it.
///
/// Move i sends what needs(i) has received. Its receive may land in place only after the send of overwrites(i) has
/// gone. \cost no memory, constant time. The moves themselves: 2(n-1) k messages a rank, at most 2(n-1) ceil(length/n)
/// elements; no all-reduce can do with fewer than 2(n-1)/n of the tensor.
/// \source Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 69(2),
/// 2009; Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 19(1),
/// 2005, for the two phases and their cost beside other algorithms.
class RingSchedule {
 public:
  /// \param length    elements of the tensor; fewer than ranks leave chunks empty.
  /// \param segments  pieces of each chunk, 1: not pipelined.
  /// \throws ConfigError for a negative length or less than one segment.
  constexpr RingSchedule(std::int64_t length, Ranks group, std::int64_t segments = 1)
      : length_(length), group_(group), segments_(segments) {
    if (length < 0 || segments < 1)
      throw ConfigError(sentence("ring", group.rank(), group.size(),
                                 std::to_string(length) + " elements in " + std::to_string(segments) + " segments",
                                 "a tensor has 0 elements or more, a chunk 1 segment or more"));
  }

  /// How many moves a rank makes; the same on every rank, 0 in a world of one.
  [[nodiscard]] constexpr std::int64_t size() const noexcept { return 2 * phase_size(); }
  /// Moves of one phase.
  [[nodiscard]] constexpr std::int64_t phase_size() const noexcept { return (group_.size() - 1) * segments_; }

  /// The i-th move, 0 <= i < size().
  [[nodiscard]] constexpr RingMove operator[](std::int64_t i) const noexcept {
    auto const step = static_cast<int>(i / segments_), steps = group_.size() - 1;
    RingMove move;
    move.phase = step < steps ? RingPhase::reduce_scatter : RingPhase::all_gather;
    move.step = step % steps;
    move.segment = i % segments_;
    move.send_chunk = around(group_.rank() - step);
    move.receive_chunk = around(group_.rank() - step - 1);
    move.send = segment(move.send_chunk, move.segment);
    move.receive = segment(move.receive_chunk, move.segment);
    return move;
  }

  /// The move whose receive (and sum) makes what move i sends; negative: nothing, it is the rank's own.
  [[nodiscard]] constexpr std::int64_t needs(std::int64_t i) const noexcept {
    return i < segments_ ? -1 : i - segments_;
  }
  /// The last move before i that sends from the memory in which move i's receive ends up; negative: none does.
  [[nodiscard]] constexpr std::int64_t overwrites(std::int64_t i) const noexcept {
    return i < phase_size() ? -1 : i - phase_size();
  }
  /// How many moves may be begun before the one under way has been received: their sends do not need it.
  [[nodiscard]] constexpr std::int64_t lookahead() const noexcept { return segments_ > 1 ? 1 : 0; }
  /// Whether move i makes a segment complete: no rank adds to it any more.
  [[nodiscard]] constexpr bool completes(std::int64_t i) const noexcept {
    return i >= phase_size() - segments_ && i < phase_size();
  }

  /// Whom this rank sends to.
  [[nodiscard]] constexpr int next() const noexcept { return around(group_.rank() + 1); }
  /// Whom it receives from.
  [[nodiscard]] constexpr int previous() const noexcept { return around(group_.rank() - 1); }

  /// The elements of a chunk, 0 <= c < n: all chunks together are the tensor, in order, and differ by at most one.
  [[nodiscard]] constexpr ElementRange chunk(int c) const noexcept {
    return ElementRange{.begin = 0, .size = length_}.part(c, group_.size());
  }
  [[nodiscard]] constexpr ElementRange segment(int c, std::int64_t s) const noexcept {
    return chunk(c).part(s, segments_);
  }
  /// Elements of the largest segment: what a receive buffer must hold.
  [[nodiscard]] constexpr std::int64_t widest() const noexcept { return segment(0, 0).size; }

  [[nodiscard]] constexpr std::int64_t length() const noexcept { return length_; }
  [[nodiscard]] constexpr std::int64_t segments() const noexcept { return segments_; }
  [[nodiscard]] constexpr Ranks group() const noexcept { return group_; }

 private:
  /// Chunks and ranks count mod n; step n-1 of 2n-3 and beyond has gone round once.
  [[nodiscard]] constexpr int around(int i) const noexcept {
    int const n = group_.size();
    return (i % n + n) % n;
  }

  std::int64_t length_;
  Ranks group_;
  std::int64_t segments_;
};

/// How many segments a chunk needs so that none has more than `most` elements; 1 where most is 0 or less.
[[nodiscard]] constexpr std::int64_t ring_segments(std::int64_t length, int ranks, std::int64_t most) noexcept {
  std::int64_t const chunk = ElementRange{.begin = 0, .size = length}.part(0, ranks).size;
  return most < 1 || chunk <= most ? 1 : (chunk + most - 1) / most;
}

static_assert(RingSchedule(10, {1, 4}).chunk(0) == ElementRange{0, 3} &&
              RingSchedule(10, {1, 4}).chunk(3) == ElementRange{8, 2});
static_assert(RingSchedule(10, {1, 4})[0].send_chunk == 1 && RingSchedule(10, {1, 4})[0].receive_chunk == 0);
static_assert(RingSchedule(10, {0, 1}).size() == 0, "one rank has the sum already");

}  // namespace pardl::inline PARDL_ABI
