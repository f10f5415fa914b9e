// SPDX-License-Identifier: MIT
// A metric must say of what it is one, or it could not be checked.
// expect-error: pardl: a metric is a pointer to a member such as &Metrics::accuracy, or a callable
#include "pardl/policy/early_stopping.hpp"

struct Metrics {
  double loss;
};

int main() {
#ifdef PARDL_COMPILE_FAIL
  auto stop = pardl::stopper(pardl::Diverged{.metric = [](auto const& metrics) { return metrics.loss; }});
#else
  auto stop = pardl::stopper(pardl::Diverged{.metric = [](Metrics const& metrics) { return metrics.loss; }});
#endif
  return stop.observe(Metrics{0.5}) == pardl::Verdict::go_on ? 0 : 1;
}
