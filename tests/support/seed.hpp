// SPDX-License-Identifier: MIT
// A test's random numbers: others in every run, and the same again where PARDL_TEST_SEED says from which seed.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <random>

namespace pardl::testing {

/// Printed, so that a failure can be run again.
inline unsigned draw_seed() {
  char const* const given = std::getenv("PARDL_TEST_SEED");
  unsigned const seed =
      given != nullptr ? static_cast<unsigned>(std::strtoul(given, nullptr, 10)) : std::random_device()();
  std::printf("seed %u (PARDL_TEST_SEED repeats it)\n", seed);
  std::fflush(stdout);  // ranks may be forked from here
  return seed;
}

}  // namespace pardl::testing
