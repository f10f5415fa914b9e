// SPDX-License-Identifier: MIT
// expect-error: pardl::DistributedDataParallel::register_comm_hook needs a communication hook; make one of a function
// by
#include "pardl/train/distributed_data_parallel.hpp"

void use(pardl::DistributedDataParallel<torch::nn::Linear>& model) {
  auto const hook = [](pardl::ProcessGroup const&, c10d::GradBucket& bucket) {
    return pardl::comm_hooks::completed(bucket.getBuffer());
  };
  model.register_comm_hook(pardl::comm_hooks::returning_mean(hook));
#ifdef PARDL_COMPILE_FAIL
  model.register_comm_hook(hook);
#endif
}
