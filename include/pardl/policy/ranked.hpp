// SPDX-License-Identifier: MIT
/// \file   Who am I, and how many are we: all that samplers, shards and metrics ask of a group.
/// \layer  policy (std only).
#pragma once

#include <concepts>
#include <string>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// A member of a group: `rank()` of `size()`. Models: ProcessGroup, Ranks.
template <class G>
concept ranked = requires(G const& group) {
  { group.rank() } -> std::convertible_to<int>;
  { group.size() } -> std::convertible_to<int>;
};

/// The plain value `{rank, size}`. Anything ranked converts to it, so a block that asks for Ranks takes a
/// ProcessGroup, a `{2, 8}` in a test, or a type of the user's.
class Ranks {
 public:
  /// \throws ConfigError unless 0 <= rank < size.
  constexpr Ranks(int rank, int size) : rank_(rank), size_(size) {
    if (size < 1 || rank < 0 || rank >= size)
      throw ConfigError(sentence("policy", "rank " + std::to_string(rank) + " of " + std::to_string(size) + " ranks",
                                 "a rank lies between 0 and the number of ranks minus one"));
  }
  template <ranked G>
    requires(!std::same_as<G, Ranks>)
  constexpr Ranks(G const& group)
      : Ranks(static_cast<int>(group.rank()), static_cast<int>(group.size())) {
  }  // NOLINT(google-explicit-constructor): the point of the type

  [[nodiscard]] constexpr int rank() const noexcept { return rank_; }
  [[nodiscard]] constexpr int size() const noexcept { return size_; }

 private:
  int rank_;
  int size_;
};

static_assert(ranked<Ranks>);
static_assert(!ranked<int>);

}  // namespace pardl::inline PARDL_ABI
