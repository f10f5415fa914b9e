// SPDX-License-Identifier: MIT
// A term that only has a coefficient: nothing begins with a task.
// expect-error: pardl::fed::LocalTraining's term is begun with each task and returns something with active(),
#include "pardl/fed/runner.hpp"

struct Coefficient {
  double mu = 0.1;
};

void use(torch::nn::Linear& net, pardl::data::TensorDataset const& data, pardl::fed::ClientShares const& shares) {
#ifdef PARDL_COMPILE_FAIL
  using Term = Coefficient;
#else
  using Term = pardl::fed::Proximal;
#endif
  pardl::fed::LocalTraining<pardl::fed::CrossEntropy, pardl::fed::MakeSGD, Term> const local({}, {}, {}, Term{});
  pardl::fed::Runner runner(net, data, shares, local, pardl::fed::Average(), pardl::fed::RunnerOptions());
  (void)runner.clients();
}
