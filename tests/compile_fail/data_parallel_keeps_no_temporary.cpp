// SPDX-License-Identifier: MIT
// expect-error: pardl::DataParallel would outlive this temporary module; keep the module in a variable
#include "pardl/train/data_parallel.hpp"

void use() {
  torch::nn::LinearImpl net(1, 1);
  pardl::DataParallel model{net, {torch::kCPU}};
  pardl::DataParallel holder{torch::nn::Linear(1, 1), {torch::kCPU}};
  (void)model;
  (void)holder;
#ifdef PARDL_COMPILE_FAIL
  pardl::DataParallel wrong{torch::nn::LinearImpl(1, 1), {torch::kCPU}};
  (void)wrong;
#endif
}
