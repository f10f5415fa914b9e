// SPDX-License-Identifier: MIT
// expect-error: pardl::DistributedDataParallel would outlive this temporary module; keep the module in a variable
#include "pardl/train/distributed_data_parallel.hpp"

struct Net : torch::nn::Module {
  torch::Tensor forward(torch::Tensor x) { return x; }
};

void use(pardl::ProcessGroup const& world) {
  Net net;
  pardl::DistributedDataParallel model{net, world};
  (void)model;
#ifdef PARDL_COMPILE_FAIL
  pardl::DistributedDataParallel wrong{Net(), world};
  (void)wrong;
#endif
}
