// SPDX-License-Identifier: MIT
// expect-error: pardl::DistributedDataParallel needs a module: a torch::nn::Module, a shared_ptr or a holder of one
#include "pardl/train/distributed_data_parallel.hpp"

void use(torch::nn::Linear& net, pardl::ProcessGroup const& world) {
  pardl::DistributedDataParallel model{net, world};
  (void)model;
#ifdef PARDL_COMPILE_FAIL
  pardl::DistributedDataParallel wrong{7, world};
  (void)wrong;
#endif
}
