// SPDX-License-Identifier: MIT
// Local training step by step, against the same arithmetic written down by hand.
#include "pardl/fed/local_training.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "pardl/fed/draws.hpp"
#include "pardl/train/low_rank.hpp"
#include "points.hpp"

using namespace federation;

TEST_CASE("batches go through the samples in order where nothing is shuffled, a short one at the end of each pass") {
  Training<> const local({.batches = {.batch_size = 2, .steps = 4}, .shuffle = false}, plain);
  auto const [weight, report] = train(local, 3);
  double w = 0.5, sum = 0;
  for (auto const& batch : std::vector<std::vector<std::size_t>>{{0, 1}, {2}, {0, 1}, {2}}) {
    sum += loss(w, batch) * static_cast<double>(batch.size());
    w -= eta * gradient(w, batch);
  }
  CHECK(weight == doctest::Approx(w).epsilon(1e-5));
  CHECK(report.loss == doctest::Approx(sum).epsilon(1e-5));
  CHECK(report.samples == 6);
  CHECK(report.batches == 4);
  CHECK(report.answers == 0);
}

TEST_CASE("each pass has an order of its own, drawn for the seed, the round and the client") {
  Training<> const local({.batches = {.batch_size = 1, .steps = 3, .unit = fed::StepUnit::epoch}}, plain);
  fed::Runner runner(line(0.5), points(), first_points(5, 3), local, fed::Average{}, {.processes = false, .seed = 9});
  double w = 0.5;
  for (std::uint64_t round = 0; round < 2; ++round) {
    runner.train({2});
    w = after_passes(w, 3, fed::Draws(9, round, 2, fed::purpose::batches),
                     [](double at, std::size_t i) { return eta * gradient(at, {i}); });
  }
  auto net = line();
  runner.load_global(net);
  CHECK(net->parameters()[0].item<double>() == doctest::Approx(w).epsilon(1e-5));
}

TEST_CASE("accumulated batches make one step along their mean, at the schedule's rate for that step") {
  auto const factor = [](std::int64_t step) { return step == 0 ? 1.0 : step == 1 ? 0.5 : 2.0; };
  Training<> const local(
      {.batches = {.batch_size = 1, .steps = 3, .accumulate = 2}, .shuffle = false, .schedule = factor}, plain);
  auto const [weight, report] = train(local, 4);
  double w = 0.5;
  std::int64_t step = 0;
  for (auto const& [a, b] : std::vector<std::pair<std::size_t, std::size_t>>{{0, 1}, {2, 3}, {0, 1}})
    w -= eta * factor(step++) * (gradient(w, {a}) + gradient(w, {b})) / 2;
  CHECK(weight == doctest::Approx(w).epsilon(1e-5));
  CHECK(report.batches == 6);
}

namespace {

/// The type in which outputs come to the loss, as the loss's value.
struct TypeOfOutputs {
  torch::Tensor operator()(torch::Tensor const& outputs, torch::Tensor const&) const {
    return outputs.to(torch::kFloat).sum() * 0 + (outputs.scalar_type() == torch::kBFloat16 ? 1.0 : 0.0);
  }
};

}  // namespace

TEST_CASE("mixed precision is for training alone, and only where it is asked for") {
  for (bool const mixed : {false, true}) {
    fed::LocalTrainingOptions options{.batches = {.batch_size = 2, .steps = 2}};
    if (mixed) options.autocast = torch::kBFloat16;
    fed::Runner runner(line(0.5), points(), first_points(4), fed::LocalTraining<TypeOfOutputs>(options), fed::Average{},
                       {.processes = false});
    CHECK(runner.train({0}).clients[0].loss == (mixed ? 4 : 0));
    CHECK(runner.evaluate(fed::Part::test)[0].loss == 0);
  }
}

namespace {

/// Cannot bear a target of 9.
struct Picky : fed::MeanSquaredError {
  torch::Tensor operator()(torch::Tensor const& outputs, torch::Tensor const& targets) const {
    if (targets.eq(9).any().item<bool>()) throw std::runtime_error("a target of 9");
    return fed::MeanSquaredError::operator()(outputs, targets);
  }
};

}  // namespace

TEST_CASE("gradients of a client that failed between two batches do not come to the next one") {
  auto data = points();
  data.targets()[1] = 9;
  fed::ClientShares shares(2);
  shares[0].train = {0, 1, 2, 3};  // trained first; its second batch fails, and the first has left a gradient
  shares[1].train = {2, 3};
  fed::LocalTraining<Picky> const local({.batches = {.batch_size = 1, .steps = 1, .accumulate = 2}, .shuffle = false},
                                        plain);
  fed::Runner runner(line(0.5), data, shares, local, fed::Average{},
                     {.processes = false, .on_client_failure = fed::OnFailure::leave_out});
  auto const report = runner.train({0, 1});
  CHECK(report.clients[0].failure == "a target of 9");
  auto net = line();
  runner.load_global(net);
  CHECK(net->parameters()[0].item<double>() == doctest::Approx(0.5 - eta * gradient(0.5, {2, 3})).epsilon(1e-6));
}

namespace {

/// One large layer, whose gradient may stay factors.
struct Large : torch::nn::Module {
  torch::nn::Linear layer{nullptr};
  Large() {
    torch::manual_seed(8);
    layer = register_module("layer", torch::nn::Linear(1024, 512));
  }
  torch::Tensor forward(torch::Tensor const& x) { return pardl::linear(x, layer->weight, layer->bias); }
};

}  // namespace

TEST_CASE("gradients that stay factors learn as those that are written out, also under a pull") {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(std::uint64_t{6});
  TensorDataset const data{torch::randn({24, 1024}, generator), torch::arange(24) % 7};
  auto const run = [&](auto term, bool low_rank, std::int64_t accumulate, double max_norm) {
    fed::LocalTraining<fed::CrossEntropy, fed::MakeSGD, decltype(term)> const local(
        {.batches = {.batch_size = 4, .steps = 3, .accumulate = accumulate},
         .max_grad_norm = max_norm,
         .low_rank = low_rank},
        plain, {}, term);
    fed::ClientShares shares(1);
    for (std::int64_t i = 0; i < 24; ++i) shares[0].train.push_back(i);
    auto net = std::make_shared<Large>();
    fed::Runner runner(net, data, shares, local, fed::Average{}, {.processes = false});
    runner.train({0});
    auto trained = std::make_shared<Large>();
    runner.load_global(trained);
    return trained->layer->weight.detach().clone();
  };
  auto const alike = [](torch::Tensor const& a, torch::Tensor const& b) {
    return torch::allclose(a, b, 1e-5, 2e-6);  // a norm is rounded otherwise; steps are a thousand times longer
  };
  for (std::int64_t const accumulate : {1, 2})
    for (double const max_norm : {0.0, 0.5}) {
      CHECK(alike(run(fed::NoTerm{}, true, accumulate, max_norm), run(fed::NoTerm{}, false, accumulate, max_norm)));
      CHECK(alike(run(fed::Proximal{.mu = 5}, true, accumulate, max_norm),
                  run(fed::Proximal{.mu = 5}, false, accumulate, max_norm)));
    }
  CHECK_FALSE(alike(run(fed::NoTerm{}, true, 1, 0), run(fed::Proximal{.mu = 5}, true, 1, 0)));
}
