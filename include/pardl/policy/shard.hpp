// SPDX-License-Identifier: MIT
/// \file   How the samples of one epoch are dealt out to the ranks: pure arithmetic, no permutation, no tensor.
/// \layer  policy (std only).
///
/// The epoch has an order (a permutation, or 0, 1, 2, …) of `samples` positions. Position p goes to rank p mod ranks,
/// so the ranks' shares interleave, as in PyTorch's DistributedSampler. Where the ranks do not divide the samples,
/// Remainder says what happens to the last, incomplete round.
#pragma once

#include <cstdint>
#include <string>

#include "pardl/policy/error.hpp"
#include "pardl/policy/ranked.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// What becomes of the last round of positions when it has fewer samples than there are ranks.
enum class Remainder {
  repeat,  ///< fill it up from the head of the order, again and again if need be: equal shares, some samples twice
  drop,    ///< leave it out: equal shares, some samples never
  keep,    ///< deal it to the first ranks: every sample exactly once, shares differ by at most one
};

/// One rank's share of an epoch: a list of positions in the epoch's order. `shard[i]` lies in [0, samples).
/// \cost no memory, constant time.  \source PyTorch, torch.utils.data.DistributedSampler (repeat, drop).
class Shard {
 public:
  /// \throws ConfigError for a negative number of samples.
  constexpr Shard(std::int64_t samples, Ranks group, Remainder remainder = Remainder::repeat)
      : samples_(samples), group_(group), remainder_(remainder) {
    if (samples < 0)
      throw ConfigError(sentence("shard", group.rank(), group.size(), std::to_string(samples) + " samples to share",
                                 "a data set has 0 samples or more"));
  }

  /// How many samples this rank takes.
  [[nodiscard]] constexpr std::int64_t size() const noexcept {
    std::int64_t const ranks = group_.size();
    std::int64_t const rounds = left() / ranks;
    std::int64_t const rest = left() % ranks;
    if (rest == 0 || remainder_ == Remainder::drop) return rounds;
    if (remainder_ == Remainder::repeat) return rounds + 1;
    return rounds + (group_.rank() < rest ? 1 : 0);
  }

  /// How many samples all ranks take together; the same number on every rank.
  [[nodiscard]] constexpr std::int64_t total() const noexcept {
    return remainder_ == Remainder::keep ? left() : size() * group_.size();
  }

  /// The position, in the epoch's order, of this rank's i-th sample, 0 <= i < size().
  [[nodiscard]] constexpr std::int64_t operator[](std::int64_t i) const noexcept {
    std::int64_t const position = begin_ + group_.rank() + i * group_.size();
    return position < samples_ ? position : position % samples_;
  }

  /// The share that is left once all ranks together have taken `n` samples of this epoch: positions n, n+1, … are dealt
  /// out from rank 0 on. While the number of ranks stays, n is a multiple of it and each rank simply goes on where it
  /// was. After a restart on another number of ranks nothing is lost and nothing but the fill-up is repeated, whatever
  /// n is. A position at or behind the last sample leaves nothing.
  /// \throws ConfigError if n is negative or more than an epoch has (that is a count over several epochs).
  [[nodiscard]] constexpr Shard skip(std::int64_t n) const {
    std::int64_t const most = total() > left() ? total() : left();
    if (n < 0 || n > most)
      throw ConfigError(
          sentence("shard", group_.rank(), group_.size(),
                   "cannot skip " + std::to_string(n) + " of the " + std::to_string(most) +
                       " samples that are left in this epoch",
                   "skip() takes the number of samples that all ranks together have taken in this epoch"));
    Shard rest = *this;
    rest.begin_ = begin_ + (n < left() ? n : left());
    return rest;
  }

  [[nodiscard]] constexpr std::int64_t samples() const noexcept { return samples_; }
  [[nodiscard]] constexpr Ranks group() const noexcept { return group_; }

 private:
  [[nodiscard]] constexpr std::int64_t left() const noexcept { return samples_ - begin_; }

  std::int64_t samples_;
  std::int64_t begin_ = 0;  // positions before it were taken before a restart
  Ranks group_;
  Remainder remainder_;
};

static_assert(Shard(10, {1, 4}).size() == 3 && Shard(10, {3, 4})[2] == 1, "position 11 wraps to the order's second");

}  // namespace pardl::inline PARDL_ABI
