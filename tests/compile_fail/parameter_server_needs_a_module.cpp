// SPDX-License-Identifier: MIT
// expect-error: pardl::ParameterServer needs a module: a torch::nn::Module, a shared_ptr or a holder of one
#include "pardl/train/optim.hpp"
#include "pardl/train/parameter_server.hpp"

void use(torch::nn::Linear& net, pardl::ProcessGroup const& world) {
  auto make = [](std::vector<torch::Tensor> parameters) { return pardl::optim::SGD(parameters); };
  pardl::ParameterServer ps{net, world, make};
  (void)ps;
#ifdef PARDL_COMPILE_FAIL
  pardl::ParameterServer wrong{7, world, make};
  (void)wrong;
#endif
}
