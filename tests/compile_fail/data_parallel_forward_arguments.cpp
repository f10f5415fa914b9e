// SPDX-License-Identifier: MIT
// expect-error: pardl::DataParallel: the wrapped module's forward does not take these arguments.
#include "pardl/train/data_parallel.hpp"

void use(torch::nn::Linear& net) {
  pardl::DataParallel model{net, {torch::kCPU, torch::kCPU}};
  (void)model(torch::Tensor());
#ifdef PARDL_COMPILE_FAIL
  (void)model(torch::Tensor(), "twice");
#endif
}
