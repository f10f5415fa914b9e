// SPDX-License-Identifier: MIT
// A list of indices says nothing of epochs.
// expect-error: pardl::DataLoader needs a sampler second
#include <cstdint>
#include <utility>
#include <vector>

#include "pardl/data/data_loader.hpp"

int main() {
  auto const x = torch::zeros({8, 2}), y = torch::zeros({8});
#ifdef PARDL_COMPILE_FAIL
  pardl::DataLoader loader{pardl::data::TensorDataset{x, y}, std::vector<std::int64_t>{0, 1}, {.batch_size = 4}};
#else
  pardl::DataLoader loader{pardl::data::TensorDataset{x, y}, pardl::SequentialSampler{8}, {.batch_size = 4}};
#endif
  return loader.batch_size() > 0 ? 0 : 1;
}
