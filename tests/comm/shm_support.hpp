// SPDX-License-Identifier: MIT
// Groups over shared memory for tests of it.
#pragma once

#include <string>

#include "pardl/comm/process_group.hpp"
#include "support/ranks.hpp"

namespace shm_test {

template <class F>
void over_shm(int n, F&& f) {
  pardl::testing::with_ranks(n, f, {.backend = "shm"});
}

inline bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

}  // namespace shm_test
