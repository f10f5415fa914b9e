// SPDX-License-Identifier: MIT
// expect-error: pardl::DataParallel cannot split a view of tensors such as at::TensorList; pass a std::vector.
#include "pardl/train/data_parallel.hpp"

struct Net : torch::nn::Cloneable<Net> {
  void reset() override {}
  torch::Tensor forward(at::TensorList x) { return x[0]; }
};

void use(Net& net, std::vector<torch::Tensor> const& batch) {
  pardl::DataParallel model{net, {torch::kCPU, torch::kCPU}};
  (void)model(batch);
#ifdef PARDL_COMPILE_FAIL
  (void)model(at::TensorList(batch));
#endif
}
