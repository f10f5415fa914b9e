// SPDX-License-Identifier: MIT
// expect-error: pardl: a communication hook is called as hook(pardl::ProcessGroup const&, c10d::GradBucket&) and
#include "pardl/train/comm_hooks.hpp"

void use() {
  (void)pardl::comm_hooks::fp16_compress(pardl::comm_hooks::all_reduce());
#ifdef PARDL_COMPILE_FAIL
  (void)pardl::comm_hooks::returning_sum([](torch::Tensor bucket) { return bucket; });
#endif
}
