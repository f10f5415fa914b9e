// SPDX-License-Identifier: MIT
// What follows a schedule without an end would never begin.
// expect-error: pardl: the schedule left of | needs an end, or the right one would never begin
#include "pardl/policy/lr_schedule.hpp"

int main() {
#ifdef PARDL_COMPILE_FAIL
  auto schedule = pardl::constant() | pardl::cosine({.steps = 10});
#else
  auto schedule = pardl::warmup({.steps = 10}) | pardl::cosine({.steps = 10});
#endif
  return schedule(10) == 1.0 ? 0 : 1;
}
