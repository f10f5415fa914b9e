// SPDX-License-Identifier: MIT
// expect-error: pardl::comm_hooks::fp16_compress wraps a communication hook; say what a function returns by
#include "pardl/train/ring_hook.hpp"

void use() {
  (void)pardl::comm_hooks::fp16_compress(pardl::comm_hooks::ring_all_reduce{});
#ifdef PARDL_COMPILE_FAIL
  (void)pardl::comm_hooks::fp16_compress(pardl::ring_all_reduce);  // the collective, not the hook
#endif
}
