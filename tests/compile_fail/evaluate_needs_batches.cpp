// SPDX-License-Identifier: MIT
// expect-error: pardl::evaluate needs a loader with epoch(n), or a range, of batches {inputs, targets}; use
// pardl::DataLoader.
#include <vector>

#include "pardl/data/dataset.hpp"
#include "pardl/train/evaluate.hpp"

void use(torch::nn::Sequential& model, std::vector<pardl::Batch>& batches, pardl::ProcessGroup const& world) {
  (void)pardl::evaluate(model, batches, world);
#ifdef PARDL_COMPILE_FAIL
  (void)pardl::evaluate(model, 100, world);
#endif
}
