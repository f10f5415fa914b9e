// SPDX-License-Identifier: MIT
// A policy that does not say which way is up would stop the wrong run.
// expect-error: pardl: this policy has no default direction
#include "pardl/policy/early_stopping.hpp"

struct Metrics {
  double accuracy;
};

int main() {
#ifdef PARDL_COMPILE_FAIL
  auto stop = pardl::stopper(pardl::TargetReached{.metric = &Metrics::accuracy, .target = 0.85});
#else
  auto stop =
      pardl::stopper(pardl::TargetReached{.metric = &Metrics::accuracy, .goal = pardl::Goal::maximize, .target = 0.85});
#endif
  return stop.observe(Metrics{0.9}) == pardl::Verdict::stop ? 0 : 1;
}
