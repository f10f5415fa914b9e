// SPDX-License-Identifier: MIT
// expect-error: pardl::evaluate needs a module (or a wrapper whose module() is one): parameters(), buffers(), train(),
// eval() and forward(); derive from torch::nn::Module.
#include <vector>

#include "pardl/data/dataset.hpp"
#include "pardl/train/evaluate.hpp"

void use(torch::nn::Sequential& model, std::vector<pardl::Batch>& batches, pardl::ProcessGroup const& world) {
  (void)pardl::evaluate(model, batches, world);
#ifdef PARDL_COMPILE_FAIL
  auto const function = [](torch::Tensor const& inputs) { return inputs; };
  (void)pardl::evaluate(function, batches, world);
#endif
}
