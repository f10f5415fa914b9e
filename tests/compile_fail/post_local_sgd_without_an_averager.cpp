// SPDX-License-Identifier: MIT
// expect-error: pardl::optim::PostLocalSgd needs a model averager, such as pardl::PeriodicModelAverager: one with
#include "pardl/train/optim.hpp"
#include "pardl/train/post_local_sgd.hpp"

void use(pardl::ProcessGroup const& world, pardl::optim::SGD sgd) {
  pardl::optim::PostLocalSgd wrapped{std::move(sgd), pardl::PeriodicModelAverager{world, {.period = 4}}};
#ifdef PARDL_COMPILE_FAIL
  pardl::optim::PostLocalSgd wrong{std::move(sgd), world};
#endif
}
