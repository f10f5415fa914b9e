// SPDX-License-Identifier: MIT
// A pair of tensors has no batch(indices).
// expect-error: pardl::DataLoader needs a dataset first
#include <cstdint>
#include <utility>
#include <vector>

#include "pardl/data/data_loader.hpp"

int main() {
  auto const x = torch::zeros({8, 2}), y = torch::zeros({8});
#ifdef PARDL_COMPILE_FAIL
  pardl::DataLoader loader{std::pair{x, y}, pardl::SequentialSampler{8}, {.batch_size = 4}};
#else
  pardl::DataLoader loader{pardl::data::TensorDataset{x, y}, pardl::SequentialSampler{8}, {.batch_size = 4}};
#endif
  return loader.batch_size() > 0 ? 0 : 1;
}
