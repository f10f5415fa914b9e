// SPDX-License-Identifier: MIT
// A function of one tensor has no random stream to draw from.
// expect-error: pardl::DataLoader needs a batch transform third
#include <cstdint>
#include <utility>
#include <vector>

#include "pardl/data/data_loader.hpp"

int main() {
  auto const x = torch::zeros({8, 2}), y = torch::zeros({8});
#ifdef PARDL_COMPILE_FAIL
  pardl::DataLoader loader{pardl::data::TensorDataset{x, y},
                           pardl::SequentialSampler{8},
                           [](torch::Tensor t) { return t; },
                           {.batch_size = 4}};
#else
  pardl::DataLoader loader{pardl::data::TensorDataset{x, y},
                           pardl::SequentialSampler{8},
                           [](torch::Tensor t, pardl::SampleStream const&) { return t; },
                           {.batch_size = 4}};
#endif
  return loader.batch_size() > 0 ? 0 : 1;
}
