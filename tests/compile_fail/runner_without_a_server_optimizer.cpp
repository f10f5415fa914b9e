// SPDX-License-Identifier: MIT
// An optimizer of LibTorch steps a module; the server's steps a slice of numbers.
// expect-error: pardl::fed::Runner's server is a server optimizer: states(), check() and apply(weights, mean, state,
#include "pardl/fed/runner.hpp"

void use(torch::nn::Linear& net, pardl::data::TensorDataset const& data, pardl::fed::ClientShares const& shares) {
#ifdef PARDL_COMPILE_FAIL
  pardl::fed::Runner runner(net, data, shares, pardl::fed::LocalTraining<>(), torch::optim::SGDOptions(1.0),
                            pardl::fed::RunnerOptions());
#else
  pardl::fed::Runner runner(net, data, shares, pardl::fed::LocalTraining<>(), pardl::fed::ServerSGD{.lr = 1.0},
                            pardl::fed::RunnerOptions());
#endif
  (void)runner.clients();
}
