// SPDX-License-Identifier: MIT
// expect-error: pardl::ParameterServer::serve: an observer has on_clock(pardl::ClockEvent const&),
// on_step(pardl::ClockEvent const&) or on_worker_lost
#include "pardl/train/optim.hpp"
#include "pardl/train/parameter_server.hpp"

struct Watches {
  void on_clock(pardl::ClockEvent const&) {}
};
struct WatchesSteps {
  void on_step(pardl::ClockEvent const&) {}
};

void use(torch::nn::Linear& net, pardl::ProcessGroup const& world) {
  pardl::ParameterServer ps{net, world, [](auto parameters) { return pardl::optim::SGD(parameters); }};
  ps.serve(Watches{}, WatchesSteps{});
#ifdef PARDL_COMPILE_FAIL
  ps.serve(7);
#endif
}
