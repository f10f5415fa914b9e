// SPDX-License-Identifier: MIT
// expect-error: pardl::comm_hooks::PowerSgd::state_dict needs the module that is trained
#include "pardl/train/power_sgd.hpp"

void use(torch::nn::Linear layer, std::vector<torch::Tensor> parameters) {
  auto const hook = pardl::comm_hooks::power_sgd();
  (void)hook.state_dict(layer);
#ifdef PARDL_COMPILE_FAIL
  (void)hook.state_dict(parameters);
#endif
  (void)parameters;
}
