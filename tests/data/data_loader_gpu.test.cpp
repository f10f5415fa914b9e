// SPDX-License-Identifier: MIT
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstdint>
#include <cstdio>
#include <vector>

#include "pardl/data/data_loader.hpp"
#include "pardl/data/synthetic.hpp"

using namespace pardl;

namespace {

bool no_gpu() {
  if (torch::cuda::is_available()) return false;
  std::puts("skipped: no GPU");
  return true;
}

std::vector<Batch> batches_on(torch::Device device, bool resident, bool pinned, torch::MemoryFormat format,
                              int workers = 2) {
  data::Synthetic const set{{.samples = 200, .classes = 5}};
  auto const augment =
      RandomCrop{32, 4} | RandomHorizontalFlip{} | Pad{1} | Normalize{set.mean(), set.stddev()} | Cutout{8};
  DataLoader const loader{set,
                          DistributedSampler{set.size(), {0, 1}},
                          augment,
                          {.batch_size = 64,
                           .workers = workers,
                           .device = device,
                           .pin_memory = pinned,
                           .resident = resident,
                           .memory_format = format,
                           .seed = 3}};
  std::vector<Batch> batches;
  for (auto const& [x, y] : loader.epoch(1)) {
    CHECK(x.device().type() == device.type());
    CHECK(y.device().type() == device.type());
    CHECK(x.is_contiguous(format));
    batches.push_back({x.cpu(), y.cpu()});
  }
  return batches;
}

}  // namespace

TEST_CASE("a GPU gets the pixels that a CPU gets, bit for bit, staged, pageable or resident") {
  if (no_gpu()) return;
  for (auto const format : {torch::MemoryFormat::Contiguous, torch::MemoryFormat::ChannelsLast}) {
    auto const expected = batches_on(torch::kCPU, false, false, format);
    for (bool const resident : {false, true})
      for (bool const pinned : {false, true})
        for (int const workers : {0, 2}) {
          auto const got = batches_on(torch::kCUDA, resident, pinned, format, workers);
          REQUIRE(got.size() == expected.size());
          for (std::size_t i = 0; i < got.size(); ++i) {
            CHECK(torch::equal(got[i].inputs, expected[i].inputs));
            CHECK(torch::equal(got[i].targets, expected[i].targets));
          }
        }
  }
}

TEST_CASE("staging blocks are not reused before their copy has run, however far the host is ahead") {
  if (no_gpu()) return;
  auto const numbers = torch::arange(1 << 22).view({64, 1 << 16});
  DataLoader const loader{data::TensorDataset{numbers, torch::arange(64)},
                          SequentialSampler{64},
                          {.batch_size = 1, .workers = 3, .device = torch::kCUDA}};
  auto const busy = torch::rand({4096, 4096}, torch::kCUDA);
  std::vector<torch::Tensor> kept;
  for (auto const& [x, y] : loader.epoch(0)) {
    (void)torch::mm(busy, busy);  // the stream falls behind the host
    kept.push_back(x);
  }
  CHECK(torch::equal(torch::cat(kept).cpu(), numbers));
}

TEST_CASE("a dataset that lives on the GPU is refused from loader threads, and served without them") {
  if (no_gpu()) return;
  data::TensorDataset const set{torch::arange(8, torch::kCUDA), torch::arange(8, torch::kCUDA)};
  DataLoader const threaded{set, SequentialSampler{8}, {.batch_size = 8, .workers = 1, .device = torch::kCUDA}};
  CHECK_THROWS_AS((void)threaded.epoch(0).begin(), ConfigError);
  DataLoader const direct{set, SequentialSampler{8}, {.batch_size = 8, .workers = 0, .device = torch::kCUDA}};
  for (auto const& [x, y] : direct.epoch(0)) CHECK(torch::equal(x.cpu(), torch::arange(8)));
}
