// SPDX-License-Identifier: MIT
/// \file   What becomes of the others when a rank fails: the launcher's choice, and that of a strategy.
/// \layer  comm (std only).
#pragma once

#include <cstdint>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// What the launcher, or a strategy that can do without a rank, does when one fails.
enum class OnRankFailure : std::uint8_t {
  stop_all,    ///< ends the others, and names the first failure
  keep_going,  ///< for a program that tolerates loss: says so and goes on, unless it was the rank it cannot do without
};
using enum OnRankFailure;

}  // namespace pardl::inline PARDL_ABI
