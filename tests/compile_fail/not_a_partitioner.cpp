// SPDX-License-Identifier: MIT
// A partitioner is told the seed: one that draws from elsewhere is not reproducible.
// expect-error: pardl: this is not a partitioner
#include "pardl/fed/partition.hpp"

struct Halves {
  pardl::fed::Partition split(std::span<std::int64_t const>, std::size_t) const { return {{0}, {1}}; }
};

int main() {
  std::vector<std::int64_t> const labels{0, 1};
#ifdef PARDL_COMPILE_FAIL
  auto const partition = pardl::fed::make_partition(Halves{}, labels, 2, 7);
#else
  auto const partition = pardl::fed::make_partition(pardl::fed::Iid{}, labels, 2, 7);
#endif
  return partition.size() == 2 ? 0 : 1;
}
