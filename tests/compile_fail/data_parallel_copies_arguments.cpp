// SPDX-License-Identifier: MIT
// expect-error: pardl::DataParallel gives each device a copy of an argument that holds tensors or is a temporary
#include "pardl/train/data_parallel.hpp"

struct Net : torch::nn::Cloneable<Net> {
  void reset() override {}
  torch::Tensor forward(torch::Tensor x, std::unique_ptr<int> const& number) { return x * *number; }
};

void use(Net& net, std::unique_ptr<int> const& number) {
  pardl::DataParallel model{net, {torch::kCPU, torch::kCPU}};
  (void)model(torch::Tensor(), number);
#ifdef PARDL_COMPILE_FAIL
  (void)model(torch::Tensor(), std::make_unique<int>(2));
#endif
}
