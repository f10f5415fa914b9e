// SPDX-License-Identifier: MIT
// A function that trains says neither how much it will do nor what the loss is.
// expect-error: pardl::fed::Runner trains clients with a local update: processed(samples) -> int64, loss(), and
#include "pardl/fed/runner.hpp"

struct OnlyTrains {
  template <class Task>
  pardl::fed::LocalResult operator()(Task const&) const {
    return {};
  }
};

void use(torch::nn::Linear& net, pardl::data::TensorDataset const& data, pardl::fed::ClientShares const& shares) {
#ifdef PARDL_COMPILE_FAIL
  pardl::fed::Runner runner(net, data, shares, OnlyTrains(), pardl::fed::Average(), pardl::fed::RunnerOptions());
#else
  pardl::fed::Runner runner(net, data, shares, pardl::fed::LocalTraining<>(), pardl::fed::Average(),
                            pardl::fed::RunnerOptions());
#endif
  (void)runner.clients();
}
