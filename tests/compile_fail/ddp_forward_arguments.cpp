// SPDX-License-Identifier: MIT
// expect-error: pardl::DistributedDataParallel: the wrapped module's forward does not take these arguments.
#include "pardl/train/distributed_data_parallel.hpp"

void use(torch::nn::Linear& net, pardl::ProcessGroup const& world) {
  pardl::DistributedDataParallel model{net, world};
  (void)model(torch::Tensor());
#ifdef PARDL_COMPILE_FAIL
  (void)model(torch::Tensor(), "twice");
#endif
}
