// SPDX-License-Identifier: MIT
// Robust rules, screening, recalibrated buffers and prefetching, as a runner uses them.
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "federation.hpp"
#include "pardl/fed/runner.hpp"

using namespace federation;

namespace {

using Clients = std::vector<std::int64_t>;

/// The global model after one round of these clients.
std::vector<torch::Tensor> round_of(Clients const& clients, fed::RunnerOptions options, TensorDataset data = samples(),
                                    int rounds = 1) {
  options.seed = 8;
  fed::Runner runner(small_net(), std::move(data), growing(9), training(), fed::Average{}, options);
  for (int round = 0; round < rounds; ++round) runner.train(clients);
  return global_of(runner);
}

/// Client 2 lies: it adds a number to all its weights.
struct Lying : fed::LocalTraining<> {
  explicit Lying(float by) : fed::LocalTraining<>(training()), by_(by) {}
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    auto const result = fed::LocalTraining<>::operator()(task);
    torch::NoGradGuard const no_grad;
    if (task.client == 2) task.model.shared().narrow(0, 0, task.model.shared_parameters()).add_(by_);
    return result;
  }

 private:
  float by_;
};

using LyingRunner = fed::Runner<torch::nn::Sequential, TensorDataset, Lying>;

}  // namespace

TEST_CASE("a robust rule in the runner is the rule over the clients' own updates, for any number of workers") {
  Clients const clients{0, 1, 3, 4, 6, 7, 8};
  std::vector<std::vector<torch::Tensor>> own;  // of each client alone: a mean of one
  for (auto const client : clients) own.push_back(round_of({client}, {}));
  std::vector<torch::Tensor> median;
  for (std::size_t i = 0; i < own[0].size(); ++i) {
    std::vector<torch::Tensor> all;
    for (auto const& one : own) all.push_back(one[i]);
    median.push_back(std::get<0>(torch::stack(all).median(0)));
  }
  median.back() = own.back().back();  // num_batches_tracked: the largest, which the last client has
  for (int const workers : {1, 2, 4}) {
    CAPTURE(workers);
    CHECK(same(median, round_of(clients, {.workers = workers, .robust = fed::Median{}})));
  }
  auto const krum = round_of(clients, {.workers = 2, .robust = fed::Krum{.byzantine = 1}});
  bool one_of_them = false;
  for (auto const& one : own) one_of_them = one_of_them || torch::equal(one[0], krum[0]);
  CHECK(one_of_them);
}

TEST_CASE("rules give the same bits for any number of workers, round after round") {
  for (auto const& rule :
       std::vector<fed::any_robust_aggregator>{fed::Krum{.byzantine = 1, .average = 3}, fed::Bulyan{.byzantine = 1},
                                               fed::TrimmedMean{.excluded_ratio = 0.2},
                                               fed::GeometricMedian{.byzantine = 1}, fed::NormBounding{.bound = 0.3}}) {
    Clients const clients{0, 1, 2, 3, 4, 5, 6, 7};
    auto const one = round_of(clients, {.processes = false, .robust = rule}, samples(), 3);
    CHECK(same(one, round_of(clients, {.workers = 3, .robust = rule}, samples(), 3)));
    CHECK_FALSE(same(one, round_of(clients, {.robust = rule}, samples(), 2)));
  }
}

TEST_CASE("rules without anything to guard against are the mean") {
  Clients const clients{0, 1, 2, 3, 4};
  auto const infinity = std::numeric_limits<double>::infinity();
  CHECK(close(round_of(clients, {}), round_of(clients, {.robust = fed::NormBounding{.bound = infinity}})));
  fed::RunnerOptions const uniform{.weighting = fed::Weighting::uniform};
  auto options = uniform;
  options.robust = fed::TrimmedMean{.excluded_ratio = 0};
  CHECK(close(round_of(clients, uniform), round_of(clients, options)));
  options.robust = fed::Krum{.byzantine = 0, .average = 5};
  CHECK(close(round_of(clients, uniform), round_of(clients, options)));
}

TEST_CASE("a liar moves the mean and not the median") {
  Clients const honest{0, 1, 3, 4, 5, 6}, all{0, 1, 2, 3, 4, 5, 6};
  auto const far = [&](fed::RunnerOptions options) {
    options.seed = 8;
    LyingRunner runner(small_net(), samples(), growing(9), Lying(100.0F), fed::Average{}, options);
    runner.train(all);
    return (global_of(runner)[0] - round_of(honest, options)[0]).abs().max().item<double>();
  };
  CHECK(far({}) > 5);
  CHECK(far({.robust = fed::Median{.byzantine = 1}}) < 0.1);
  CHECK(far({.robust = fed::Krum{.byzantine = 1, .average = 4}}) < 0.1);
  CHECK(far({.robust = fed::NormBounding{.bound = 1}}) < 1);
}

TEST_CASE("screening names the client, and leaves it out where the options say so") {
  Clients const clients{0, 1, 2, 3, 4};
  auto shares = growing(9);
  auto const make = [&](fed::Screening screening, fed::OnFailure policy, bool rule) {
    fed::RunnerOptions options{.workers = 2, .seed = 8, .on_client_failure = policy, .screening = screening};
    if (rule) options.robust = fed::NormBounding{.bound = std::numeric_limits<double>::infinity()};
    return std::make_unique<LyingRunner>(small_net(), samples(), shares, Lying(1.0F), fed::Average{}, options);
  };
  auto loose = make({.most_norm = 1e9}, fed::OnFailure::stop, false);
  auto const report = loose->train(clients);
  double second = 0;
  for (auto const& client : report.clients)
    if (client.client != 2) second = std::max(second, client.norm.value());
  REQUIRE(report.clients[2].norm.value() > 2 * second);
  double const bound = report.clients[2].norm.value() / 1.5;

  auto strict = make({.most_norm = bound}, fed::OnFailure::stop, false);
  CHECK_THROWS_WITH_AS(strict->train(clients), doctest::Contains("client 2 failed: its update is screened out"),
                       pardl::Error);
  CHECK(same(global_of(*strict), state_of(small_net())));
  for (bool const rule : {false, true}) {
    auto lenient = make({.most_norm = bound}, fed::OnFailure::leave_out, rule);
    auto without = make({}, fed::OnFailure::stop, rule);
    CHECK(lenient->train(clients).clients[2].failure.find("above") != std::string::npos);
    without->train({0, 1, 3, 4});
    CHECK(same(global_of(*lenient), global_of(*without)));
  }
  for (std::int64_t i = 900; i < 930; ++i) shares[2].train.push_back(i);  // no other client sees as many batches
  auto together = make({.most_medians = 2.5}, fed::OnFailure::leave_out, true);
  auto without = make({}, fed::OnFailure::stop, true);
  CHECK(together->train(clients).clients[2].failure.find("times the round's median") != std::string::npos);
  without->train({0, 1, 3, 4});
  CHECK(same(global_of(*together), global_of(*without)));
  CHECK_THROWS_WITH_AS(make({.most_medians = 2}, fed::OnFailure::stop, false),
                       doctest::Contains("choose a robust rule"), pardl::ConfigError);
}

TEST_CASE("an update with a number that is not finite never comes to a robust rule") {
  Clients const all{0, 1, 2, 3, 4, 5, 6};
  for (float const bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()})
    for (auto const& rule : std::vector<fed::any_robust_aggregator>{
             fed::Median{}, fed::TrimmedMean{.excluded_ratio = 0}, fed::Krum{.byzantine = 1}}) {
      fed::RunnerOptions options{
          .workers = 2, .seed = 8, .on_client_failure = fed::OnFailure::leave_out, .robust = rule};
      LyingRunner runner(small_net(), samples(), growing(9), Lying(bad), fed::Average{}, options);
      auto const report = runner.train(all);
      CHECK(report.clients[2].failure ==
            std::string("its update is screened out: its 0.weight[0] is ") + (bad > 0   ? "infinite"
                                                                              : bad < 0 ? "minus infinity"
                                                                                        : "NaN"));
      CHECK(same(global_of(runner), round_of({0, 1, 3, 4, 5, 6}, {.robust = rule})));
    }
}

TEST_CASE("a rule that does not suit the clients that are left ends the round, and the next one is whole") {
  fed::Runner runner(small_net(), samples(), growing(9), training(), fed::Average{},
                     {.workers = 2, .seed = 8, .robust = fed::Krum{.byzantine = 1}});
  CHECK_THROWS_WITH_AS(runner.train({0, 1, 2}), doctest::Contains("Krum against 1"), pardl::ConfigError);
  CHECK(same(global_of(runner), state_of(small_net())));
  runner.train({0, 1, 2, 3, 4});
  CHECK(same(global_of(runner), round_of({0, 1, 2, 3, 4}, {.robust = fed::Krum{.byzantine = 1}})));
}

TEST_CASE("recalibrated statistics are those of the new weights over the calibration samples") {
  std::vector<std::int64_t> calibration(400);
  for (std::size_t i = 0; i < calibration.size(); ++i) calibration[i] = static_cast<std::int64_t>(i + 300);
  fed::RunnerOptions options{.calibration = calibration, .evaluation_batch_size = 100};
  options.sharing.buffers = fed::BufferPolicy::recalibrate;
  auto const state = round_of({0, 1, 2}, options);
  options.workers = 2;
  CHECK(same(state, round_of({0, 1, 2}, options)));
  auto const averaged = round_of({0, 1, 2}, {});
  for (std::size_t i = 0; i < 6; ++i) CHECK(torch::equal(state[i], averaged[i]));  // parameters
  CHECK_FALSE(torch::equal(state[6], averaged[6]));
  auto const data = samples();
  auto mean = torch::zeros({16}), variance = torch::zeros({16});
  for (int batch = 0; batch < 4; ++batch) {
    auto const inputs = data.inputs().narrow(0, 300 + 100 * batch, 100);
    auto const hidden = torch::linear(inputs, state[0], state[1]);
    mean += hidden.mean(0) / 4;
    variance += hidden.var(0) / 4;
  }
  CHECK(torch::allclose(state[6], mean, 1e-5, 1e-6));
  CHECK(torch::allclose(state[7], variance, 1e-5, 1e-6));
  CHECK(state[8].item<std::int64_t>() == 4);

  // Batch norm is given back as it was taken.
  auto net = small_net();
  auto const& norm = *net[1]->as<torch::nn::BatchNorm1d>();
  options.processes = false;
  options.workers = 1;
  fed::Runner here(net, samples(), growing(3), training(), fed::Average{}, options);
  here.train({0, 1, 2});
  CHECK(norm.options.momentum() == 0.1);
  options.processes = true;

  options.calibration.clear();
  CHECK_THROWS_WITH_AS(round_of({0}, options), doctest::Contains("recalibrated on no samples"), pardl::ConfigError);
  options.calibration = {5000};
  CHECK_THROWS_WITH_AS(round_of({0}, options), doctest::Contains("calibration on sample 5000"), pardl::ConfigError);
  options.calibration = {1, 2};
  CHECK_THROWS_WITH_AS(fed::Runner(small_net(false), samples(), growing(9), training(), fed::Average{}, options),
                       doctest::Contains("without batch norm"), pardl::ConfigError);
}

namespace {

/// A dataset that takes its time, and knows who asked.
struct Slow {
  TensorDataset data = samples();
  mutable std::vector<std::thread::id> askers{};

  [[nodiscard]] std::int64_t size() const { return data.size(); }
  [[nodiscard]] pardl::Batch batch(std::span<std::int64_t const> indices) const {
    askers.push_back(std::this_thread::get_id());
    auto const end = std::chrono::steady_clock::now() + std::chrono::microseconds(500);
    while (std::chrono::steady_clock::now() < end) {
    }
    return data.batch(indices);
  }
};

}  // namespace

TEST_CASE("where gathering takes long the next client's samples are gathered meanwhile, and are the same") {
  Slow const slow;
  fed::detail::Gatherer<Slow> gatherer(slow);
  auto const shares = growing(4);
  auto const expected = [&](std::size_t client) { return slow.data.batch(shares[client].train).inputs; };
  gatherer.expect(0, shares[0].train);  // nothing is known yet of how long it takes
  CHECK(slow.askers.empty());
  CHECK(torch::equal(gatherer.gather(0, shares[0].train).inputs, expected(0)));
  gatherer.expect(1, shares[1].train);
  CHECK(torch::equal(gatherer.gather(1, shares[1].train).inputs, expected(1)));
  REQUIRE(slow.askers.size() == 2);
  CHECK(slow.askers[0] == std::this_thread::get_id());
  CHECK(slow.askers[1] != std::this_thread::get_id());
  gatherer.expect(2, shares[2].train);  // another worker takes client 2
  CHECK(torch::equal(gatherer.gather(3, shares[3].train).inputs, expected(3)));

  TensorDataset const fast = samples();
  fed::Runner prompt(small_net(), fast, growing(6), training(), fed::Average{}, {.workers = 2, .seed = 3});
  fed::Runner patient(small_net(), Slow{}, growing(6), training(), fed::Average{}, {.workers = 2, .seed = 3});
  for (int round = 0; round < 2; ++round) {
    prompt.train({0, 1, 2, 3, 4, 5});
    patient.train({0, 1, 2, 3, 4, 5});
  }
  CHECK(same(global_of(prompt), global_of(patient)));
}
