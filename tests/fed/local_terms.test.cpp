// SPDX-License-Identifier: MIT
// What strategies add to local training, against the same arithmetic written down by hand.
#include "pardl/fed/local_terms.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "points.hpp"

using namespace federation;

TEST_CASE("FedProx pulls to where the round began, before gradients are clipped") {
  double const mu = 3, most = 2.5;
  Training<fed::Proximal> const local(
      {.batches = {.batch_size = 1, .steps = 4}, .shuffle = false, .max_grad_norm = most}, plain, {}, {.mu = mu});
  double w = 0.5;
  bool clipped = false, whole = false;
  for (std::size_t const i : {0U, 1U, 2U, 3U}) {
    double const g = gradient(w, {i}) + mu * (w - 0.5);
    (std::abs(g) > most ? clipped : whole) = true;
    w -= eta * std::clamp(g, -most, most);
  }
  CHECK(clipped);
  CHECK(whole);
  CHECK(train(local, 4).weight == doctest::Approx(w).epsilon(1e-5));
}

TEST_CASE("what SCAFFOLD divides by is the sum of the rates that were taken") {
  pardl::testing::TemporaryFolder const folder;
  auto const factor = [](std::int64_t step) { return step == 0 ? 1.0 : 0.25; };
  Training<fed::ControlVariates> const local(
      {.batches = {.batch_size = 1, .steps = 2}, .shuffle = false, .schedule = factor}, plain);
  fed::Runner runner(line(0.5), points(), first_points(3, 2), local, fed::Average{}, {.processes = false});
  double w = 0.5, own = 0, server = 0;
  for (int round = 0; round < 2; ++round) {
    runner.train({0});
    double const start = w;
    for (std::size_t const i : {0U, 1U})
      w -= eta * factor(static_cast<std::int64_t>(i)) * (gradient(w, {i}) - own + server);
    double const next = own - server + (start - w) / (eta * 1.25);
    server += (next - own) / 2;  // of two clients
    own = next;
    runner.save(folder / "state");
    CHECK(read(folder / "state", "model.0.weight")[0] == doctest::Approx(w).epsilon(1e-5));
    CHECK(read(folder / "state", "client.0")[0] == doctest::Approx(own).epsilon(1e-4));
    CHECK(read(folder / "state", "numbers")[0] == doctest::Approx(server).epsilon(1e-4));
  }
}

TEST_CASE("FedNova weighs each client's direction by the mass that its optimizer and its pull gave it") {
  fed::ClientShares shares(2);
  shares[0].train = {0};
  shares[1].train = {1, 2, 3};
  struct Case {
    double mu;
    pardl::optim::SGDOptions options;
  };
  for (auto const& [mu, options] : {Case{2, {.lr = eta}}, Case{0, {.lr = eta, .momentum = 0.8}},
                                    Case{0, {.lr = eta, .momentum = 0.8, .nesterov = true}},
                                    Case{0, {.lr = eta, .momentum = 0.8, .dampening = 0.3}}}) {
    CAPTURE(mu);
    CAPTURE(options.nesterov);
    CAPTURE(options.dampening);
    Training<fed::Normalised> const local(
        {.batches = {.batch_size = 1, .steps = 1, .unit = fed::StepUnit::epoch}, .shuffle = false}, {options}, {},
        {.mu = mu});
    fed::Runner runner(line(0.5), points(), shares, local, fed::Average{}, {.processes = false});
    runner.train({0, 1});
    double mass_sum = 0, direction = 0;
    for (auto const& [share, order] :
         std::vector<std::pair<double, std::vector<std::size_t>>>{{0.25, {0}}, {0.75, {1, 2, 3}}}) {
      double w = 0.5, velocity = 0;  // and the same steps for gradients of 1: what they add up to is the mass
      double mass = 0, mass_velocity = 0;
      bool first = true;
      for (auto const i : order) {
        double const g = gradient(w, {i}) + mu * (w - 0.5), one = 1 - eta * mu * mass, damped = 1 - options.dampening;
        velocity = options.momentum * velocity + (first ? 1 : damped) * g;
        mass_velocity = options.momentum * mass_velocity + (first ? 1 : damped) * one;
        first = false;
        w -= eta * (options.nesterov ? g + options.momentum * velocity : velocity);
        mass += options.nesterov ? one + options.momentum * mass_velocity : mass_velocity;
      }
      mass_sum += share * mass;
      direction += share * (w - 0.5) / mass;
    }
    auto net = line();
    runner.load_global(net);
    CHECK(net->parameters()[0].item<double>() == doctest::Approx(0.5 + mass_sum * direction).epsilon(1e-5));
  }
}

TEST_CASE("FedNova of one step is FedAvg bit for bit, and without a direction there is nothing to weigh") {
  auto const after = [](auto term, double rate, double factor) {
    fed::LocalTraining<fed::CrossEntropy, fed::MakeSGD, decltype(term)> const local(
        {.batches = {.batch_size = 4}, .schedule = [factor](std::int64_t) { return factor; }},
        {.options = {.lr = rate}}, {}, term);
    fed::Runner runner(small_net(false, 0), samples(), growing(4), local, fed::Average{}, {.processes = false});
    runner.train({0, 1, 2, 3});
    return global_of(runner, small_net(false, 0));
  };
  auto const start = state_of(small_net(false, 0));
  CHECK(same(after(fed::Normalised{}, 0.1, 1), after(fed::NoTerm{}, 0.1, 1)));
  CHECK_FALSE(same(after(fed::Normalised{}, 0.1, 1), start));
  CHECK(same(after(fed::Normalised{}, 0, 1), start));  // at a rate of 0 steps still count
  CHECK_THROWS_WITH_AS(after(fed::Normalised{}, 0.1, 0), doctest::Contains("do not add up to a direction"),
                       pardl::Error);
}

TEST_CASE("SCAFFOLD at a rate of zero learns nothing about gradients") {
  Training<fed::ControlVariates> const local({.batches = {.batch_size = 1, .steps = 2}}, {.options = {.lr = 0}});
  fed::Runner runner(line(0.5), points(), first_points(3), local, fed::Average{}, {.processes = false});
  runner.train({0});
  pardl::testing::TemporaryFolder const folder;
  runner.save(folder / "state");
  CHECK(read(folder / "state", "model.0.weight")[0] == 0.5F);
  CHECK(read(folder / "state", "client.0")[0] == 0);
  CHECK(read(folder / "state", "numbers")[0] == 0);
}

TEST_CASE("FedProx does not pull at what a client keeps") {
  double const mu = 3, rate = 0.02;
  pardl::testing::TemporaryFolder const folder;
  Training<fed::Proximal> const local({.batches = {.batch_size = 1, .steps = 3}, .shuffle = false},
                                      {.options = {.lr = rate}}, {}, {.mu = mu});
  fed::Runner runner(product(0.5, 2), points(), first_points(3), local, fed::Average{}, head_kept());
  runner.train({0});
  runner.save(folder / "state");
  double w = 0.5, h = 2;
  for (std::size_t const i : {0U, 1U, 2U}) {
    double const error = 2 * (h * w * xs[i] - ys[i]) * xs[i];
    double const of_w = error * h + mu * (w - 0.5), of_h = error * w;
    w -= rate * of_w;
    h -= rate * of_h;
  }
  CHECK(read(folder / "state", "model.0.weight")[0] == doctest::Approx(w).epsilon(1e-5));
  CHECK(read(folder / "state", "client.0")[0] == doctest::Approx(h).epsilon(1e-5));
}
