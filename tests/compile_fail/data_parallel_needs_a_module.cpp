// SPDX-License-Identifier: MIT
// expect-error: pardl::DataParallel needs a module: a torch::nn::Module, or a shared_ptr or a holder of one.
#include "pardl/train/data_parallel.hpp"

void use(torch::nn::Linear& net) {
  pardl::DataParallel model{net, {torch::kCPU, torch::kCPU}};
  (void)model;
#ifdef PARDL_COMPILE_FAIL
  pardl::DataParallel wrong{7, {torch::kCPU, torch::kCPU}};
  (void)wrong;
#endif
}
