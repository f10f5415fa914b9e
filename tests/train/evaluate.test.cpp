// SPDX-License-Identifier: MIT
#include "pardl/train/evaluate.hpp"

#include <ATen/autocast_mode.h>
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/ranks.hpp"
#include "support/temporary_folder.hpp"

using pardl::Evaluation;
using pardl::Meter;
using pardl::ProcessGroup;
using pardl::testing::what_of;
using pardl::testing::with_ranks;

namespace {

struct Pair {
  torch::Tensor inputs, targets;
};

/// Scores as the input says, plus a bias: a sample's loss does not depend on who shares its batch.
struct NetImpl : torch::nn::Module {
  torch::Tensor bias = register_parameter("bias", torch::zeros({10}));
  torch::nn::BatchNorm1d norm = register_module("norm", torch::nn::BatchNorm1d(10));
  torch::nn::Dropout dropout = register_module("dropout", torch::nn::Dropout(0.5));
  bool cast = false;
  torch::Tensor forward(torch::Tensor const& inputs) {
    CHECK_FALSE(torch::GradMode::is_enabled());
    CHECK_FALSE(is_training());
    CHECK_FALSE(norm->is_training());
    CHECK(at::autocast::is_autocast_enabled(torch::kCPU) == cast);
    return dropout(inputs + bias);
  }
};
TORCH_MODULE(Net);

/// What DistributedDataParallel looks like from here. Its own forward is a collective and must not be called.
struct Wrapper {
  Net& net;
  ProcessGroup world;
  int synced = 0;
  Net& module() { return net; }
  void sync_buffers() {
    ++synced;
    pardl::all_reduce(world, torch::zeros({1})).wait();
  }
  torch::Tensor forward(torch::Tensor const&) { throw std::logic_error("the wrapper was called"); }
};

/// A loader that also knows what epoch it is asked for.
struct Loader {
  std::vector<Pair> batches;
  std::int64_t asked = -1;
  std::vector<Pair>& epoch(std::int64_t number) {
    asked = number;
    return batches;
  }
};

/// 41 samples whose losses do not add up the same in every order. Made once: ranks are threads and share the generator.
Pair const& data() {
  static Pair const made = [] {
    torch::manual_seed(3);
    auto const inputs = torch::randn({41, 10}, torch::kFloat64) * torch::logspace(-4, 1, 41).unsqueeze(1);
    return Pair{inputs, torch::randint(10, {41})};
  }();
  return made;
}

/// Samples `from`, `from + step`, … below `end`, in batches of `size`.
std::vector<Pair> share(std::int64_t from, std::int64_t step, std::int64_t end, std::int64_t size) {
  auto const& all = data();
  std::vector<std::int64_t> mine;
  for (auto i = from; i < end; i += step) mine.push_back(i);
  std::vector<Pair> batches;
  for (std::size_t i = 0; i < mine.size(); i += static_cast<std::size_t>(size)) {
    auto const last = std::min(mine.size(), i + static_cast<std::size_t>(size));
    auto const rows = torch::tensor(std::vector<std::int64_t>(mine.begin() + static_cast<std::ptrdiff_t>(i),
                                                              mine.begin() + static_cast<std::ptrdiff_t>(last)));
    batches.push_back({all.inputs.index_select(0, rows), all.targets.index_select(0, rows)});
  }
  return batches;
}

}  // namespace

TEST_CASE("evaluate gives the mean loss and the accuracy of all samples") {
  Net net;
  auto const& all = data();
  auto const result = pardl::evaluate(net, share(0, 1, 41, 7), ProcessGroup{});
  auto const losses = torch::nn::functional::cross_entropy(
      all.inputs, all.targets, torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone));
  CHECK(result.loss == doctest::Approx(losses.to(torch::kFloat64).mean().item<double>()).epsilon(1e-9));
  CHECK(result.correct == all.inputs.argmax(1).eq(all.targets).sum().item<std::int64_t>());
  CHECK(result.accuracy == static_cast<double>(result.correct) / 41);
  CHECK(result.samples == 41);
  CHECK(result.seconds > 0);
  CHECK(result.samples_per_second() == 41 / result.seconds);
}

TEST_CASE("any number of ranks, shares and batch sizes gives the numbers of one, bit for bit") {
  Net one;
  auto const expected = pardl::evaluate(one, share(0, 1, 41, 41), ProcessGroup{});
  for (int const ranks : {1, 2, 3})
    for (int const batch : {1, 4, 41}) {
      with_ranks(ranks, [&](ProcessGroup const& world) {
        Net net;
        Wrapper model{net, world};
        auto const result = pardl::evaluate(model, share(world.rank(), world.size(), 41, batch + world.rank()), world);
        CHECK(result.loss == expected.loss);
        CHECK(result.accuracy == expected.accuracy);
        CHECK(result.correct == expected.correct);
        CHECK(result.samples == 41);
        CHECK(model.synced == 1);
      });
    }
}

TEST_CASE("a rank with an empty share hangs nobody and changes nothing") {
  Net one;
  auto const expected = pardl::evaluate(one, share(0, 1, 41, 8), ProcessGroup{});
  with_ranks(3, [&](ProcessGroup const& world) {
    Net net;
    Wrapper model{net, world};
    auto const mine = world.rank() == 1 ? std::vector<Pair>{} : share(world.rank() / 2, 2, 41, 5);
    auto const result = pardl::evaluate(model, mine, world);
    CHECK(result.loss == expected.loss);
    CHECK(result.correct == expected.correct);
    CHECK(result.samples == 41);
  });
}

TEST_CASE("without a sample on any rank all ranks say so") {
  with_ranks(2, [](ProcessGroup const& world) {
    Net net;
    auto const what = what_of<pardl::DataError>([&] { (void)pardl::evaluate(net, std::vector<Pair>{}, world); });
    CHECK(what == "[train] rank " + std::to_string(world.rank()) +
                      "/2: evaluate was given no sample on any rank; check the test set and its sampler.");
  });
}

TEST_CASE("a rank that fails tells its own error, and the others name it") {
  with_ranks(3, [](ProcessGroup const& world) {
    Net net;
    net->norm->eval();
    auto batches = share(world.rank(), 3, 41, 5);
    if (world.rank() == 1) batches[1].targets[0] = 10;  // no such class
    if (world.rank() == 1) {
      CHECK_THROWS_AS((void)pardl::evaluate(net, batches, world), c10::Error);
    } else {
      auto const what = what_of<pardl::Error>([&] { (void)pardl::evaluate(net, batches, world); });
      CHECK(what == "[train] rank " + std::to_string(world.rank()) +
                        "/3: rank 1 could not finish the epoch; see what that rank says.");
    }
    CHECK(net->is_training());
    CHECK_FALSE(net->norm->is_training());  // it was frozen before, and is again
    CHECK(net->dropout->is_training());
  });
}

TEST_CASE("evaluate leaves every part of the model in the mode that it was in") {
  Net net;
  net->norm->eval();
  (void)pardl::evaluate(net, share(0, 1, 41, 41), ProcessGroup{});
  CHECK(net->is_training());
  CHECK_FALSE(net->norm->is_training());
  CHECK(net->dropout->is_training());
  net->eval();
  (void)pardl::evaluate(*net, share(0, 1, 41, 41), ProcessGroup{});  // the module itself will do
  CHECK_FALSE(net->is_training());
  auto const shared = net.ptr();
  (void)pardl::evaluate(shared, share(0, 1, 41, 41), ProcessGroup{});
  torch::nn::Sequential sequential{torch::nn::Dropout(0.5)};
  CHECK(pardl::evaluate(sequential, share(0, 1, 41, 41), ProcessGroup{}).samples == 41);
  CHECK(sequential->is_training());
}

TEST_CASE("the loader is asked for the epoch of the options") {
  Net net;
  Loader loader{share(0, 1, 41, 8)};
  (void)pardl::evaluate(net, loader, ProcessGroup{});
  CHECK(loader.asked == 0);
  (void)pardl::evaluate(net, loader, ProcessGroup{}, {.epoch = 5});
  CHECK(loader.asked == 5);
}

TEST_CASE("evaluate runs under autocast if asked, and the loss stays in float32") {
  Net net;
  net->cast = true;
  torch::ScalarType seen{};
  auto const result = pardl::evaluate(net, share(0, 1, 41, 8), ProcessGroup{},
                                      [&](torch::Tensor const& outputs, torch::Tensor const& targets) {
                                        auto const losses =
                                            pardl::CrossEntropy{}(outputs.to(torch::kBFloat16), targets);
                                        seen = losses.scalar_type();
                                        return losses;
                                      },
                                      {.autocast = torch::kBFloat16});
  CHECK((seen == torch::kFloat32));
  CHECK(result.samples == 41);
  CHECK_FALSE(at::autocast::is_autocast_enabled(torch::kCPU));
}

TEST_CASE("a loss of one's own is one number per sample, or more") {
  Net net;
  auto const& all = data();
  auto const square = [](torch::Tensor const& outputs, torch::Tensor const&) { return outputs.square(); };
  auto const result = pardl::evaluate(net, share(0, 1, 41, 9), ProcessGroup{}, square);
  CHECK(result.loss == doctest::Approx(all.inputs.to(torch::kFloat64).square().mean().item<double>()).epsilon(1e-6));
  CHECK(result.samples == 41);
  auto const mean = [](torch::Tensor const& outputs, torch::Tensor const&) { return outputs.mean(); };
  CHECK(what_of<pardl::DataError>([&] { (void)pardl::evaluate(net, share(0, 1, 41, 9), ProcessGroup{}, mean); }) ==
        "[train] rank 0/1: evaluate's loss is not one per sample; let loss_fn return [batch], without a reduction.");
}

TEST_CASE("a Meter counts a training epoch: means of batches, real samples, the slowest rank") {
  with_ranks(2, [](ProcessGroup const& world) {
    Meter meter;
    auto const scores = torch::eye(4);
    // Rank 0 has 4 samples, rank 1 has 2: the mean of the means would be 2.5.
    if (world.rank() == 0) meter.add(torch::tensor(1.0F), scores, torch::tensor({0, 1, 2, 0}));
    if (world.rank() == 1) meter.add(torch::tensor(4.0F), scores.slice(0, 0, 2), torch::tensor({0, 1}));
    auto const result = meter.reduce(world);
    CHECK(result.loss == 2);
    CHECK(result.correct == 5);
    CHECK(result.accuracy == 5.0 / 6);
    CHECK(result.samples == 6);
    auto const seconds = torch::tensor(result.seconds, torch::kFloat64);
    auto least = seconds.clone();
    pardl::all_reduce(world, least, pardl::ReduceOp::min).wait();
    CHECK(least.item<double>() == result.seconds);  // the same number everywhere
    meter.reset();
    CHECK(meter.reduce(world).samples == 0);
    CHECK(std::isnan(meter.reduce(world).loss));
    CHECK(std::isnan(meter.reduce(world).accuracy));
  });
}

TEST_CASE("a Meter keeps losses that are not finite, or too great for exact sums") {
  ProcessGroup const world;
  Meter meter;
  meter.add(torch::tensor({1.0, 3.0}), 2);
  meter.add(torch::tensor({-2.5e-9}, torch::kFloat64), 1);
  CHECK(meter.reduce(world).loss == doctest::Approx((4 - 2.5e-9) / 3).epsilon(1e-10));
  meter.add(torch::tensor({1e20}, torch::kFloat64), 1);
  CHECK(meter.reduce(world).loss == doctest::Approx(2.5e19));
  meter.add(torch::tensor({std::numeric_limits<float>::quiet_NaN()}), 1);
  CHECK(std::isnan(meter.reduce(world).loss));
  meter.reset();
  meter.add(torch::tensor({std::numeric_limits<float>::infinity()}), 1);
  CHECK(std::isinf(meter.reduce(world).loss));
  meter.reset();
  for (int i = 0; i < 3; ++i) meter.add(torch::tensor(1e6, torch::kFloat64), 1'000'000'000);  // beyond 64 bits of units
  CHECK(meter.reduce(world).loss == doctest::Approx(1e6));
  CHECK(meter.reduce(world).samples == 3'000'000'000);
}

TEST_CASE("a Meter counts answers only where there are classes") {
  ProcessGroup const world;
  Meter meter;
  meter.add(torch::ones({2}), torch::ones({2, 3}), torch::ones({2, 3}));  // a regression
  CHECK(std::isnan(meter.reduce(world).accuracy));
  CHECK(meter.reduce(world).samples == 2);
  meter.reset();
  meter.add(torch::ones({2, 5}), torch::ones({2, 3, 5}), torch::zeros({2, 5}, torch::kInt64));  // a class per pixel
  CHECK(meter.reduce(world).accuracy == 1);
  CHECK(meter.reduce(world).correct == 10);
  CHECK(meter.reduce(world).samples == 2);
  CHECK_THROWS_AS(meter.add(torch::ones({3}), torch::ones({2, 3}), torch::zeros({2}, torch::kInt64)), pardl::DataError);
  CHECK_THROWS_AS(meter.add(torch::ones({2}), torch::ones({2, 3}), torch::zeros({3}, torch::kInt64)), pardl::DataError);
  CHECK_THROWS_AS(meter.add(torch::ones({2}), -1), pardl::DataError);
}
