// SPDX-License-Identifier: MIT
// The number of ranks alone does not say which of them this one is.
// expect-error: pardl::DistributedSampler needs the number of samples first, such as train.size(),
#include "pardl/data/distributed_sampler.hpp"

int main() {
#ifdef PARDL_COMPILE_FAIL
  pardl::DistributedSampler sampler{100, 4};
#else
  pardl::DistributedSampler sampler{100, {0, 4}};
#endif
  return sampler.size() == 25 ? 0 : 1;
}
