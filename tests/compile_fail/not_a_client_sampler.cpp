// SPDX-License-Identifier: MIT
// A sampler is told the round: one that keeps its own count cannot be resumed.
// expect-error: pardl: this is not a client sampler
#include "pardl/fed/client_sampler.hpp"

struct Everyone {
  std::vector<std::int64_t> sample() const { return {0, 1}; }
};

int main() {
#ifdef PARDL_COMPILE_FAIL
  auto const clients = pardl::fed::sample_clients(Everyone{}, 0, 2, 7);
#else
  auto const clients = pardl::fed::sample_clients(pardl::fed::Uniform{.count = 2}, 0, 2, 7);
#endif
  return clients.size() == 2 ? 0 : 1;
}
