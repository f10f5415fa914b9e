// SPDX-License-Identifier: MIT
// The end of a round, against closed forms: every block of a model of several, each number once, whoever does it.
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "federation.hpp"
#include "pardl/fed/runner.hpp"

using namespace federation;

namespace {

/// 8763 parameters and 2 · 127 buffers: three blocks of 4096 numbers, the border between the two inside the last.
torch::nn::Sequential three_blocks() {
  torch::manual_seed(4);
  torch::nn::Sequential net(torch::nn::Linear(65, 127), torch::nn::BatchNorm1d(127));
  net->push_back(torch::nn::Linear(torch::nn::LinearOptions(127, 1).bias(false)));
  return net;
}

/// Number i of client c in a round: no two alike, and exact in float32 and in every mean of four clients.
double number(std::int64_t i, std::int64_t client, std::int64_t round) {
  return static_cast<double>((i % 1000 - 500) * (client + 1) + 16 * round) * 0.25;
}
torch::Tensor numbers(std::int64_t size, std::int64_t client, std::int64_t round) {
  auto row = torch::empty({size});
  for (std::int64_t i = 0; i < size; ++i) row.data_ptr<float>()[i] = static_cast<float>(number(i, client, round));
  return row;
}

/// Trains nothing: its update, what it keeps and its change of the server's numbers are `numbers`.
struct Written {
  std::int64_t of_server = 9001, of_client = 5;
  double stretch = 1;
  [[nodiscard]] static std::int64_t processed(std::int64_t) { return 1; }
  [[nodiscard]] fed::CrossEntropy loss() const { return {}; }
  [[nodiscard]] std::int64_t client_numbers(fed::FlatModel const&) const { return of_client; }
  [[nodiscard]] std::int64_t server_numbers(fed::FlatModel const&) const { return of_server; }
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    torch::NoGradGuard const no_grad;
    task.model.shared().copy_(numbers(task.model.shared().numel(), task.client, task.round));
    torch::Tensor kept = task.kept, change = task.change;
    kept.copy_(numbers(of_client, task.client, task.round));
    change.copy_(numbers(of_server, task.client, task.round));
    fed::LocalResult result;
    result.samples = 1;
    result.stretch = stretch;
    return result;
  }
};

/// Half a step to the mean; keeps how often and at which step each weight was moved.
struct HalfWay {
  [[nodiscard]] static constexpr std::size_t states() { return 2; }
  void check() const {}
  void apply(std::span<float> weights, std::span<double const> mean, std::span<std::span<float> const> state,
             std::int64_t step) const {
    for (std::size_t i = 0; i < weights.size(); ++i) {
      weights[i] = static_cast<float>((static_cast<double>(weights[i]) + mean[i]) / 2);
      state[0][i] += 1;
      state[1][i] = static_cast<float>(step);
    }
  }
};

std::vector<float> row_of(torch::nn::Sequential const& net) {
  fed::FlatModel const model(const_cast<torch::nn::Sequential&>(net));
  auto const row = model.shared().contiguous();
  return {row.data_ptr<float>(), row.data_ptr<float>() + row.numel()};
}

}  // namespace

TEST_CASE("every number of a large model gets its mean and its server's step once, for any number of workers") {
  constexpr std::int64_t parameters = 65 * 127 + 127 + 2 * 127 + 127;
  std::int64_t const of_server = 9001;
  for (int const workers : {1, 2, 3, 5}) {
    CAPTURE(workers);
    pardl::testing::TemporaryFolder const folder;
    fed::Runner runner(three_blocks(), samples(), growing(8), Written{}, HalfWay{}, {.workers = workers});
    std::vector<double> expected;
    for (float const weight : row_of(three_blocks())) expected.push_back(static_cast<double>(weight));
    REQUIRE(expected.size() == static_cast<std::size_t>(parameters + 2 * 127));
    std::vector<double> server(static_cast<std::size_t>(of_server));
    for (std::int64_t round = 0; round < 2; ++round) {
      runner.train({0, 2, 5, 7});
      for (std::size_t i = 0; i < expected.size(); ++i) {
        auto const at = static_cast<std::int64_t>(i);
        double const mean =
            (number(at, 0, round) + number(at, 2, round) + number(at, 5, round) + number(at, 7, round)) / 4;
        expected[i] = at < parameters ? (expected[i] + mean) / 2 : mean;  // averaged buffers know no server
        expected[i] = static_cast<double>(static_cast<float>(expected[i]));
      }
      for (std::size_t i = 0; i < server.size(); ++i)
        for (std::int64_t const client : {0, 2, 5, 7})
          server[i] += number(static_cast<std::int64_t>(i), client, round) / 8;  // of all clients
    }
    auto net = three_blocks();
    runner.load_global(net);
    auto const row = row_of(net);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < row.size(); ++i) wrong += static_cast<double>(row[i]) == expected[i] ? 0 : 1;
    CHECK(wrong == 0);
    auto const file = folder / "state";
    runner.save(file);
    auto const there = read(file, "numbers");
    REQUIRE(there.size() == server.size());
    for (std::size_t i = 0; i < there.size(); ++i) wrong += static_cast<double>(there[i]) == server[i] ? 0 : 1;
    CHECK(wrong == 0);
    for (std::int64_t const client : {0, 2, 5, 7}) {
      auto const kept = read(file, "client." + std::to_string(client));
      REQUIRE(kept.size() == 5);
      for (std::int64_t i = 0; i < 5; ++i)
        CHECK(static_cast<double>(kept[static_cast<std::size_t>(i)]) == number(i, client, 1));
    }
    auto const times = read(file, "server.0"), steps = read(file, "server.1");
    for (std::size_t i = 0; i < times.size(); ++i) {
      bool const moved = i < static_cast<std::size_t>(parameters);
      wrong += times[i] == (moved ? 2.0F : 0.0F) && steps[i] == (moved ? 2.0F : 0.0F) ? 0 : 1;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("a stretch multiplies the mean change of parameters and leaves averaged buffers alone") {
  std::int64_t const parameters = 65 * 127 + 127 + 2 * 127 + 127;
  auto const run = [](double stretch) {
    fed::Runner runner(three_blocks(), samples(), growing(4), Written{.stretch = stretch}, fed::Average{},
                       {.workers = 2});
    runner.train({0, 1, 2, 3});
    auto net = three_blocks();
    runner.load_global(net);
    return row_of(net);
  };
  auto const start = row_of(three_blocks()), plain = run(1), twice = run(2);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < start.size(); ++i) {
    double const from = static_cast<double>(start[i]), to = static_cast<double>(plain[i]);
    double const expected = i < static_cast<std::size_t>(parameters) ? from + 2 * (to - from) : to;
    wrong += std::abs(static_cast<double>(twice[i]) - expected) <= 1e-6 * (1 + std::abs(expected)) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

namespace {

/// Multiplies all weights, and the server's numbers.
struct Growing {
  double by, first;
  [[nodiscard]] static std::int64_t processed(std::int64_t samples) { return samples; }
  [[nodiscard]] fed::MeanSquaredError loss() const { return {}; }
  [[nodiscard]] std::int64_t client_numbers(fed::FlatModel const&) const { return 1; }
  [[nodiscard]] std::int64_t server_numbers(fed::FlatModel const&) const { return 2; }
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    torch::NoGradGuard const no_grad;
    task.model.shared().mul_(by);
    torch::Tensor change = task.change;
    // Four clients of as many, so this multiplies what the server has, which begins with `first`.
    change.copy_(task.round == 0 ? torch::full_like(change, first) : task.server * (by - 1));
    fed::LocalResult result;
    result.samples = task.samples;
    return result;
  }
};

auto grow(double by, int workers, double start = 1, double first = 1) {
  auto const data = TensorDataset{torch::ones({100, 1}), torch::ones({100, 1})};
  return std::make_unique<fed::Runner<torch::nn::Sequential, TensorDataset, Growing>>(
      line(start), data, growing(4), Growing{by, first}, fed::Average{}, fed::RunnerOptions{.workers = workers});
}

double weight_of(auto const& runner) {
  auto net = line();
  runner->load_global(net);
  return net->parameters()[0].template item<double>();
}

}  // namespace

TEST_CASE("what a sum can hold follows the model and the server's numbers, round by round and from a checkpoint") {
  pardl::testing::TemporaryFolder const folder;
  double const factor = 4000;         // almost the 4096 that a round has room for, whatever its clients weigh
  for (int const workers : {1, 3}) {  // of three workers only one has a number to look at
    CAPTURE(workers);
    auto runner = grow(factor, workers);
    for (int round = 0; round < 6; ++round) {
      runner->train({0, 1, 2, 3});
      CHECK(weight_of(runner) == doctest::Approx(std::pow(factor, round + 1)).epsilon(1e-6));
    }
    auto const file = folder / ("state" + std::to_string(workers));
    runner->save(file);
    CHECK(read(file, "numbers")[1] == doctest::Approx(std::pow(factor, 5)).epsilon(1e-6));
    runner->save_model(folder / "model");

    auto resumed = grow(factor, workers);
    resumed->load(file);
    resumed->train({0, 1, 2, 3});
    CHECK(weight_of(resumed) == doctest::Approx(std::pow(factor, 7)).epsilon(1e-6));
    auto with_weights = grow(factor, workers);
    with_weights->load_model(folder / "model");
    with_weights->train({0, 1, 2, 3});
    CHECK(weight_of(with_weights) == doctest::Approx(std::pow(factor, 7)).epsilon(1e-6));
  }
  // And back: a model that has become small is summed as finely as if it had always been.
  auto shrinking = grow(1e-3, 1, 1e13, 1e6);
  for (int round = 0; round < 6; ++round) shrinking->train({0, 1, 2, 3});
  CHECK(weight_of(shrinking) * 1e5 == doctest::Approx(1).epsilon(1e-4));
  shrinking->save(folder / "small");
  CHECK(read(folder / "small", "numbers")[1] * 1e9F == doctest::Approx(1).epsilon(0.01));
  auto resumed = grow(0.1, 1, 1e13, 1e6);
  resumed->train({0, 1, 2, 3});
  resumed->load(folder / "small");
  resumed->train({0, 1, 2, 3});
  CHECK(weight_of(resumed) * 1e6 == doctest::Approx(1).epsilon(1e-4));
  resumed->save(folder / "smaller");
  CHECK(read(folder / "smaller", "numbers")[1] * 1e10F == doctest::Approx(1).epsilon(0.05));
}
