// SPDX-License-Identifier: MIT
// expect-error: pardl::comm_hooks::post_local_sgd wraps a hook that divides by itself, by the size of the group that it
#include "pardl/train/post_local_sgd.hpp"

void use() {
  auto const sum = [](pardl::ProcessGroup const& world, c10d::GradBucket& bucket) {
    return pardl::all_reduce(world, bucket.getBuffer()).future();
  };
  (void)pardl::comm_hooks::post_local_sgd({.start_localSGD_iter = 1}, pardl::comm_hooks::fp16_compress());
#ifdef PARDL_COMPILE_FAIL
  (void)pardl::comm_hooks::post_local_sgd({.start_localSGD_iter = 1}, pardl::comm_hooks::returning_sum(sum));
#endif
  (void)sum;
}
