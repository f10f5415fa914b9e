// SPDX-License-Identifier: MIT
// A function of all updates could not be shared by workers, block by block.
// expect-error: pardl::fed::aggregate needs a rule that sees all updates: check(n), sums(n), partial(updates, plan,
#include "pardl/fed/robust.hpp"

#include <algorithm>
#include <vector>

#include "pardl/fed/robust_rules.hpp"

struct First {
  void operator()(pardl::fed::Updates const& updates, std::span<double> result) const {
    std::ranges::copy(updates.row(0), result.begin());
  }
};

int main() {
  std::vector<float> const start(4), row(4);
  pardl::fed::Updates const updates(start, {row});
  std::vector<double> result(4);
#ifdef PARDL_COMPILE_FAIL
  pardl::fed::aggregate(First{}, updates, result);
#else
  pardl::fed::aggregate(pardl::fed::Median{}, updates, result);
#endif
  return result[0] == 0 ? 0 : 1;
}
