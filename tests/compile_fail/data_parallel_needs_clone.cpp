// SPDX-License-Identifier: MIT
// expect-error: pardl::DataParallel copies the module to each device by its clone(): derive the class and its parts
#include "pardl/train/data_parallel.hpp"

struct WithClone : torch::nn::Cloneable<WithClone> {
  void reset() override {}
  torch::Tensor forward(torch::Tensor x) { return x; }
};
struct Without : torch::nn::Module {
  torch::Tensor forward(torch::Tensor x) { return x; }
};
struct Abstract : torch::nn::Module {  // a class that derives from it may have one
  virtual torch::Tensor forward(torch::Tensor x) = 0;
};

void use(std::shared_ptr<Abstract> const& any) {
  WithClone net;
  pardl::DataParallel model{net, {torch::kCPU, torch::kCPU}};
  pardl::DataParallel of_any{any, {torch::kCPU, torch::kCPU}};
  (void)model(torch::Tensor());
  (void)of_any(torch::Tensor());
#ifdef PARDL_COMPILE_FAIL
  Without without;
  pardl::DataParallel wrong{without, {torch::kCPU, torch::kCPU}};
  (void)wrong;
#endif
}
