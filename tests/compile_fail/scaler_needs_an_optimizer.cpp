// SPDX-License-Identifier: MIT
// expect-error: pardl::GradScaler::step needs an optimizer: one with parameters(), step(), zero_grad(), lr() and
// set_lr(), or derived from torch::optim::Optimizer.
#include "pardl/train/amp.hpp"
#include "pardl/train/optim.hpp"

struct NoRate {
  std::vector<torch::Tensor> parameters();
  void step();
  void zero_grad();
};

void use(pardl::GradScaler& scaler, pardl::optim::SGD& sgd, torch::optim::Optimizer& theirs, NoRate& wrong) {
  scaler.step(sgd);
  scaler.step(theirs);
#ifdef PARDL_COMPILE_FAIL
  scaler.step(wrong);
#else
  (void)wrong;
#endif
}
