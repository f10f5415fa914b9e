// SPDX-License-Identifier: MIT
// A sampler that models the concept and no more cannot go on in the middle of an epoch.
// expect-error: needs a sampler with skip(samples)
#include <cstdint>
#include <utility>
#include <vector>

#include "pardl/data/data_loader.hpp"

struct Fixed {
  [[nodiscard]] std::vector<std::int64_t> indices(std::int64_t) const { return {0, 1, 2}; }
};

int main() {
  auto const x = torch::zeros({8, 2}), y = torch::zeros({8});
  pardl::DataLoader loader{pardl::data::TensorDataset{x, y}, Fixed{}, {.batch_size = 2}};
#ifdef PARDL_COMPILE_FAIL
  (void)loader.epoch(0, 4);
#else
  (void)loader.epoch(0);
#endif
  return loader.batch_size() > 0 ? 0 : 1;
}
