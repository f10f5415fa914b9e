// SPDX-License-Identifier: MIT
// Clients with models of their own, against the same arithmetic written down by hand.
#include "pardl/fed/personal.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "pardl/fed/draws.hpp"
#include "points.hpp"

using namespace federation;

TEST_CASE("FedRep trains the head first, the body under that head, and each with the other at rest") {
  pardl::testing::TemporaryFolder const folder;
  auto const trains = [](fed::Trained what, std::int64_t steps, double rate) {
    return Training<>({.batches = {.batch_size = 1, .steps = steps}, .shuffle = false, .trained = what},
                      {.options = {.lr = rate}});
  };
  fed::Runner runner(
      product(0.5, 2), points(), first_points(3, 2),
      fed::FedRep<Training<>>(trains(fed::Trained::kept, 2, 0.02), trains(fed::Trained::shared, 1, 0.01)),
      fed::Average{}, head_kept());
  double w = 0.5, h = 2;
  for (int round = 0; round < 2; ++round) {
    runner.train({0});
    for (std::size_t const i : {0U, 1U}) h -= 0.02 * 2 * (h * w * xs[i] - ys[i]) * w * xs[i];
    w -= 0.01 * 2 * (h * w * xs[0] - ys[0]) * h * xs[0];
    runner.save(folder / "state");
    CHECK(read(folder / "state", "model.0.weight")[0] == doctest::Approx(w).epsilon(1e-5));
    CHECK(read(folder / "state", "client.0")[0] == doctest::Approx(h).epsilon(1e-5));
  }
}

TEST_CASE("Ditto's own model goes on from itself, pulled to where the round began, beside the global training") {
  pardl::testing::TemporaryFolder const folder;
  double const lambda = 2;
  fed::LocalTrainingOptions const steps{.batches = {.batch_size = 1, .steps = 2}, .shuffle = false};
  fed::Runner runner(line(0.5), points(), first_points(2),
                     fed::Ditto(Training<>(steps, plain),
                                Training<fed::Proximal>(steps, {.options = {.lr = 0.03}}, {}, {.mu = lambda})),
                     fed::Average{}, {.processes = false});
  double w = 0.5, own = 0.5;
  for (int round = 0; round < 3; ++round) {
    runner.train({0});
    double const start = w;
    for (std::size_t const i : {0U, 1U}) {
      w -= eta * gradient(w, {i});
      own -= 0.03 * (gradient(own, {i}) + lambda * (own - start));
    }
    runner.save(folder / "state");
    CHECK(read(folder / "state", "model.0.weight")[0] == doctest::Approx(w).epsilon(1e-5));
    CHECK(read(folder / "state", "client.0")[0] == doctest::Approx(own).epsilon(1e-5));
  }
}

TEST_CASE("the second training of a task draws orders of its own") {
  pardl::testing::TemporaryFolder const folder;
  fed::LocalTrainingOptions const epoch{.batches = {.batch_size = 1, .steps = 1, .unit = fed::StepUnit::epoch}};
  fed::Draws const first(9, 0, 0, fed::purpose::batches);
  fed::Draws const second(fed::fold(9, 0, 0, fed::purpose::personal), 0, 0, fed::purpose::batches);

  fed::Runner ditto(line(0.5), points(), first_points(5),
                    fed::Ditto(Training<>(epoch, plain), Training<fed::Proximal>(epoch, plain)), fed::Average{},
                    {.processes = false, .seed = 9});
  ditto.train({0});
  ditto.save(folder / "ditto");
  auto const step = [](double w, std::size_t i) { return eta * gradient(w, {i}); };
  double const global = after_passes(0.5, 1, first, step), own = after_passes(0.5, 1, second, step);
  CHECK(read(folder / "ditto", "model.0.weight")[0] == doctest::Approx(global).epsilon(1e-5));
  CHECK(read(folder / "ditto", "client.0")[0] == doctest::Approx(own).epsilon(1e-5));
  CHECK(std::abs(own - global) > 1e-3);

  auto head = epoch, body = epoch;
  head.trained = fed::Trained::kept;
  body.trained = fed::Trained::shared;
  auto options = head_kept();
  options.seed = 9;
  double const rate = 0.02;
  fed::Runner rep(
      product(0.5, 2), points(), first_points(5),
      fed::FedRep<Training<>>(Training<>(head, {.options = {.lr = rate}}), Training<>(body, {.options = {.lr = rate}})),
      fed::Average{}, options);
  rep.train({0});
  rep.save(folder / "rep");
  double const w0 = 0.5;
  double const h = after_passes(
      2, 1, second, [&](double at, std::size_t i) { return rate * 2 * (at * w0 * xs[i] - ys[i]) * w0 * xs[i]; });
  double const w = after_passes(
      w0, 1, first, [&](double at, std::size_t i) { return rate * 2 * (h * at * xs[i] - ys[i]) * h * xs[i]; });
  CHECK(read(folder / "rep", "client.0")[0] == doctest::Approx(h).epsilon(1e-5));
  CHECK(read(folder / "rep", "model.0.weight")[0] == doctest::Approx(w).epsilon(1e-5));
}

TEST_CASE("Ditto's two models have buffers of their own where clients keep them") {
  // Nothing is drawn, nothing pulls and there is one client: the personal training is the global one over again.
  fed::LocalTrainingOptions const steps{.batches = {.batch_size = 5, .steps = 3}, .shuffle = false};
  fed::RunnerOptions options{.processes = false};
  options.sharing.buffers = fed::BufferPolicy::client_local;
  fed::Runner ditto(small_net(true, 0), samples(), growing(2),
                    fed::Ditto(fed::LocalTraining<>(steps), training<fed::Proximal>()), fed::Average{}, options);
  fed::Runner same_twice(small_net(true, 0), samples(), growing(2),
                         fed::Ditto(fed::LocalTraining<>(steps),
                                    fed::LocalTraining<fed::CrossEntropy, fed::MakeSGD, fed::Proximal>(steps)),
                         fed::Average{}, options);
  fed::Runner average(small_net(true, 0), samples(), growing(2), fed::LocalTraining<>(steps), fed::Average{}, options);
  pardl::testing::TemporaryFolder const folder;
  for (int round = 0; round < 2; ++round) {
    ditto.train({0});
    same_twice.train({0});
    average.train({0});
    ditto.save(folder / "ditto");
    same_twice.save(folder / "same_twice");
    average.save(folder / "average");
    // What the client keeps of the global model: running means and variances, and how many batches those have seen.
    auto const buffers = read(folder / "average", "client.0");
    REQUIRE(buffers.size() == 32);
    for (auto const* name : {"ditto", "same_twice"}) {
      CAPTURE(name);
      auto const kept = read(folder / name, "client.0");
      CHECK(std::vector(kept.begin(), kept.begin() + 32) == buffers);
      CHECK(read<std::int64_t>(folder / name, "client.0.integers") ==
            read<std::int64_t>(folder / "average", "client.0.integers"));
    }
    // Behind them the personal model, whole: in the end its own buffers, after the same batches the same.
    auto const own_of = [](std::vector<float> const& kept) {
      return torch::tensor(std::vector(kept.end() - 32, kept.end()));
    };
    auto const expected = torch::tensor(buffers);
    CHECK(torch::allclose(own_of(read(folder / "same_twice", "client.0")), expected, 1e-5, 1e-6));
    CHECK_FALSE(torch::allclose(own_of(read(folder / "ditto", "client.0")), expected, 1e-5, 1e-6));
  }
}
