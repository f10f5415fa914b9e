// SPDX-License-Identifier: MIT
// expect-error: pardl::comm_hooks::bf16_compress wraps a communication hook; say what a function returns by
#include "pardl/train/ring_hook.hpp"

// A ring that adds and leaves it open who divides: the wrapper hands on what the hook inside states.
struct Sum {
  pardl::TensorFuture operator()(pardl::ProcessGroup const& world, c10d::GradBucket& bucket) const {
    return pardl::ring_all_reduce(world, bucket.getBuffer()).future();
  }
};

void use() {
  auto const stated = pardl::comm_hooks::bf16_compress(pardl::comm_hooks::returning_sum(Sum{}));
  static_assert(!decltype(stated)::divides);
#ifdef PARDL_COMPILE_FAIL
  (void)pardl::comm_hooks::bf16_compress(Sum{});
#endif
}
