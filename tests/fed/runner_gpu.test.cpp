// SPDX-License-Identifier: MIT
// Workers on a GPU; skips, saying so, without one. Workers that are processes are forked, and CUDA does not survive a
// fork: whatever uses it in this process comes last.
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "federated/machine.hpp"
#include "federation.hpp"
#include "pardl/fed/fixed_point_sum.hpp"
#include "pardl/fed/runner.hpp"
#include "pardl/train/memory_format.hpp"

using namespace federation;

namespace {

bool no_gpu() {
  if (federated::gpus() > 0) return false;
  MESSAGE("skipped: no GPU");
  return true;
}

/// The global model after some rounds, and what its clients make of it.
std::vector<torch::Tensor> after(fed::RunnerOptions options, double dropout, int rounds = 3) {
  options.seed = 11;
  fed::Runner runner(small_net(true, dropout), samples(enough), growing(12), training(),
                     fed::ServerSGD{.lr = 1.0, .momentum = 0.5}, options);
  for (int round = 0; round < rounds; ++round) {
    auto const report = runner.train(fed::Uniform{.count = 7});
    CHECK(report.clients.size() == 7);
    CHECK(report.warnings.empty());
  }
  auto state = global_of(runner, small_net(true, dropout));
  for (auto const& figures : figures_of(runner.evaluate(fed::Part::test))) state.push_back(figures);
  return state;
}

}  // namespace

TEST_CASE("workers that share a GPU give the same bits, however many they are, and nearly those of a CPU") {
  if (no_gpu()) return;
  std::vector<torch::Device> const gpu{torch::Device(torch::kCUDA, 0)};
  auto const one = after({.workers = 1, .devices = gpu}, 0.5);
  CHECK(same(one, after({.workers = 2, .devices = gpu}, 0.5)));
  CHECK(same(one, after({.workers = 4, .devices = gpu}, 0.5)));
  // Dropout draws from each device's own generator; without it the two differ by rounding.
  auto const plain = after({.workers = 2, .devices = gpu}, 0), there = after({.workers = 2}, 0);
  auto const models = plain.size() - 12;
  REQUIRE(plain.size() == there.size());
  for (std::size_t i = 0; i < models; ++i)
    CHECK(torch::allclose(plain[i].to(torch::kDouble), there[i].to(torch::kDouble), 1e-3, 1e-4));
}

TEST_CASE("convolutions in channels_last work on parameters of any size, and repeat") {
  if (no_gpu()) return;
  auto const images = [] {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(std::uint64_t{5});
    auto inputs = torch::randn({enough, 1, 8, 8}, generator);
    return TensorDataset{inputs, (inputs.sum({1, 2, 3}) > 0).to(torch::kLong)};
  };
  auto const after_two = [&](int workers) {
    auto generator = at::globalContext().defaultGenerator(torch::kCPU);
    generator.set_current_seed(3);
    // 62 numbers come before batch norm's statistics: cuDNN refuses those that do not begin at multiples of 16 bytes.
    torch::nn::Sequential net(torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 8, 3).padding(1)),
                              torch::nn::BatchNorm2d(8), torch::nn::ReLU(), torch::nn::MaxPool2d(2),
                              torch::nn::Flatten(), torch::nn::Linear(128, 62));
    pardl::to_memory_format(*net, torch::MemoryFormat::ChannelsLast);
    fed::Runner runner(net, images(), growing(12), training(), fed::Average{},
                       {.workers = workers, .devices = {torch::Device(torch::kCUDA, 0)}, .seed = 11});
    for (int round = 0; round < 2; ++round) runner.train(fed::Uniform{.count = 7});
    runner.load_global(net);
    return state_of(net);
  };
  CHECK(same(after_two(1), after_two(2)));
}

TEST_CASE("a sum on a GPU has the bits of a sum on the CPU, and finds the same bad number") {
  if (no_gpu()) return;
  fed::FixedPoint const scale(100.0, 4.0);
  constexpr std::int64_t size = 10'007;
  fed::FixedPointSum here(size, scale), there(size, scale, torch::kCUDA);
  torch::manual_seed(9);
  for (double const weight : {1.0, 3.0, 0.37, 20.0}) {
    auto const update = torch::randn({size});
    CHECK_FALSE(here.accumulate(update, weight).has_value());
    CHECK_FALSE(there.accumulate(update.cuda(), weight).has_value());
  }
  CHECK(torch::equal(there.tensor().cpu(), here.tensor()));
  CHECK(there.units() == here.units());
  CHECK(torch::equal(there.finalize().cpu(), here.finalize()));

  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::max()}) {
    auto update = torch::randn({size});
    update[777] = bad;
    auto const before = there.tensor().clone();
    CHECK(there.accumulate(update.cuda(), 1.0) == here.accumulate(update, 1.0));
    CHECK(torch::equal(there.tensor(), before));
  }

  fed::FixedPointSum both(size, scale);
  both.merge(there);
  CHECK(torch::equal(both.tensor(), here.tensor()));
}

TEST_CASE("a GPU that this process uses already is refused before a worker is forked") {
  if (no_gpu()) return;
  (void)torch::zeros({1}, torch::kCUDA);
  auto const text = pardl::testing::what_of<pardl::ConfigError>([] {
    fed::Runner const runner(small_net(), samples(), growing(3), training(), fed::Average{},
                             {.devices = {torch::Device(torch::kCUDA, 0)}});
  });
  CHECK_MESSAGE(text.find("workers on a GPU that this process uses already") != std::string::npos, text);
}
