// SPDX-License-Identifier: MIT
// expect-error: pardl::ParameterServer needs a function that takes std::vector<torch::Tensor>, the parameters
#include "pardl/train/optim.hpp"
#include "pardl/train/parameter_server.hpp"

void use(torch::nn::Linear& net, pardl::ProcessGroup const& world) {
  pardl::ParameterServer ps{net, world, [](auto parameters) { return torch::optim::SGD(parameters, 0.1); }};
  (void)ps;
#ifdef PARDL_COMPILE_FAIL
  pardl::optim::SGD optimizer{net->parameters()};  // which every rank would have, and nobody would step
  pardl::ParameterServer wrong{net, world, optimizer};
  (void)wrong;
#endif
}
