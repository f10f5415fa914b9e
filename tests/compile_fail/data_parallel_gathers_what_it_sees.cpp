// SPDX-License-Identifier: MIT
// expect-error: pardl::DataParallel cannot look for tensors in what forward returns
#include "pardl/train/data_parallel.hpp"

class Hidden {
 public:
  explicit Hidden(torch::Tensor x) : x_(x) {}

 private:
  torch::Tensor x_;
};
struct Net : torch::nn::Cloneable<Net> {
  void reset() override {}
  Hidden forward(torch::Tensor x, int) { return Hidden(x); }
  torch::Tensor forward(torch::Tensor x) { return x; }
};

void use(Net& net) {
  pardl::DataParallel model{net, {torch::kCPU, torch::kCPU}};
  (void)model(torch::Tensor());
#ifdef PARDL_COMPILE_FAIL
  (void)model(torch::Tensor(), 1);
#endif
}
