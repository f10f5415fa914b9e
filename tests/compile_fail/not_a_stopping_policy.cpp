// SPDX-License-Identifier: MIT
// Not everything with an observe() is a policy: settings make a state that can explain itself and be saved.
// expect-error: pardl: this is not a stopping policy
#include "pardl/policy/early_stopping.hpp"

struct Impatience {
  pardl::Verdict observe(double) { return pardl::Verdict::stop; }
};

int main() {
#ifdef PARDL_COMPILE_FAIL
  auto stop = pardl::stopper(pardl::any_of(Impatience{}, pardl::MaxEpochs{1}));
#else
  auto stop = pardl::stopper(pardl::any_of(pardl::Diverged{}, pardl::MaxEpochs{1}));
#endif
  return stop.observe(0.5) == pardl::Verdict::stop ? 0 : 1;
}
