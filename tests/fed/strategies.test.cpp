// SPDX-License-Identifier: MIT
// What strategies promise beyond FedAvg: SCAFFOLD, FedNova, Ditto, FedRep.
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "federation.hpp"
#include "pardl/fed/one_of.hpp"
#include "pardl/fed/personal.hpp"
#include "pardl/fed/runner.hpp"
#include "support/temporary_folder.hpp"

using namespace federation;

namespace {

/// Client i has one sample with loss a_i (w - b_i)^2, a_i = x_i^2, b_i = y_i / x_i.
struct Quadratics {
  std::vector<double> a{1, 4, 0.25, 2}, b{3, -1, 8, 0.5};

  [[nodiscard]] TensorDataset data() const {
    auto inputs = torch::empty({4, 1}), targets = torch::empty({4, 1});
    for (std::int64_t i = 0; i < 4; ++i) {
      auto const k = static_cast<std::size_t>(i);
      inputs[i] = std::sqrt(a[k]);
      targets[i] = std::sqrt(a[k]) * b[k];
    }
    return {inputs, targets};
  }
  [[nodiscard]] static fed::ClientShares shares() {
    fed::ClientShares all(4);
    for (std::int64_t i = 0; i < 4; ++i) all[static_cast<std::size_t>(i)].train = {i};
    return all;
  }
  [[nodiscard]] double optimum() const {
    double weighted = 0, total = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      weighted += a[i] * b[i];
      total += a[i];
    }
    return weighted / total;
  }
  [[nodiscard]] double gradient(std::size_t i, double w) const { return 2 * a[i] * (w - b[i]); }
};

template <class Term>
auto steps(std::int64_t count, Term term, double lr = 0.05) {
  return fed::LocalTraining<fed::MeanSquaredError, fed::MakeSGD, Term>(
      {.batches = {.batch_size = 1, .steps = count}, .autocast = {}}, {.options = {.lr = lr}}, {}, term);
}

template <class Runner>
double weight_of(Runner const& runner) {
  auto net = line();
  runner.load_global(net);
  return net->parameters()[0].template item<double>();
}

}  // namespace

TEST_CASE("SCAFFOLD's fixed point is the optimum of all clients, where FedAvg with several steps is biased") {
  Quadratics const problem;
  fed::RunnerOptions const options{.weighting = fed::Weighting::uniform};
  fed::Runner scaffold(line(), problem.data(), Quadratics::shares(), steps(5, fed::ControlVariates{}), fed::Average{},
                       options);
  fed::Runner average(line(), problem.data(), Quadratics::shares(), steps(5, fed::NoTerm{}), fed::Average{}, options);
  for (int round = 0; round < 300; ++round) {
    scaffold.train({0, 1, 2, 3});
    average.train({0, 1, 2, 3});
  }
  CHECK(weight_of(scaffold) == doctest::Approx(problem.optimum()).epsilon(1e-4));
  // FedAvg's own fixed point, from w = mean_i (b_i + (1 - 2 eta a_i)^K (w - b_i)).
  double numerator = 0, denominator = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    double const left = std::pow(1 - 2 * 0.05 * problem.a[i], 5);
    numerator += (1 - left) * problem.b[i];
    denominator += 1 - left;
  }
  CHECK(weight_of(average) == doctest::Approx(numerator / denominator).epsilon(1e-4));
  CHECK(std::abs(weight_of(average) - problem.optimum()) > 0.1);
}

TEST_CASE("SCAFFOLD keeps c = mean c_i however few take part, and c_i is the client's gradient after one step") {
  pardl::testing::TemporaryFolder const folder;
  auto const file = folder.path() / "state";
  Quadratics const problem;
  fed::Runner runner(line(0.75), problem.data(), Quadratics::shares(), steps(1, fed::ControlVariates{}), fed::Average{},
                     {.workers = 2, .weighting = fed::Weighting::uniform});
  std::vector<std::vector<std::int64_t>> const rounds{{2}, {0, 1}, {0, 1, 2, 3}, {1, 3}};
  double w = 0.75;
  std::vector<double> c(4, 0.0);
  for (auto const& clients : rounds) {
    double const start = w, mean = (c[0] + c[1] + c[2] + c[3]) / 4;
    double change = 0;
    for (auto const client : clients) {
      auto const i = static_cast<std::size_t>(client);
      change -= 0.05 * (problem.gradient(i, start) - c[i] + mean) / static_cast<double>(clients.size());
      c[i] = problem.gradient(i, start);
    }
    w = start + change;
    runner.train(clients);
    runner.save(file);
    CHECK(weight_of(runner) == doctest::Approx(w).epsilon(1e-5));
    CHECK(read(file, "numbers")[0] == doctest::Approx((c[0] + c[1] + c[2] + c[3]) / 4).epsilon(1e-5));
    for (auto const client : clients)
      CHECK(read(file, "client." + std::to_string(client))[0] ==
            doctest::Approx(c[static_cast<std::size_t>(client)]).epsilon(1e-5));
  }
}

TEST_CASE("SCAFFOLD's first round of one step is FedAvg's; momentum is refused") {
  Quadratics const problem;
  fed::RunnerOptions const options{.weighting = fed::Weighting::uniform};
  fed::Runner scaffold(line(), problem.data(), Quadratics::shares(), steps(1, fed::ControlVariates{}), fed::Average{},
                       options);
  fed::Runner average(line(), problem.data(), Quadratics::shares(), steps(1, fed::NoTerm{}), fed::Average{}, options);
  for (int round = 0; round < 3; ++round) {
    scaffold.train({0, 1, 2, 3});
    average.train({0, 1, 2, 3});
    CHECK(weight_of(scaffold) == doctest::Approx(weight_of(average)).epsilon(1e-6));
  }
  fed::LocalTraining<fed::MeanSquaredError, fed::MakeSGD, fed::ControlVariates> const heavy(
      {.batches = {.batch_size = 1}}, {.options = {.lr = 0.1, .momentum = 0.9}});
  fed::Runner refused(line(), problem.data(), Quadratics::shares(), heavy, fed::Average{}, {});
  CHECK_THROWS_WITH_AS(refused.train({0, 1}), doctest::Contains("SCAFFOLD over an optimizer with momentum"),
                       pardl::Error);
}

TEST_CASE("the mass of gradients has its closed forms") {
  double const rho = 0.9, eta = 0.1, mu = 0.5;
  int const K = 7;
  std::vector<double> const rates(K, eta);
  CHECK(fed::gradient_mass({.rate = eta, .rates = rates}) == doctest::Approx(K));
  CHECK(fed::gradient_mass({.rate = eta, .rates = rates, .momentum = rho}) ==
        doctest::Approx((K - rho * (1 - std::pow(rho, K)) / (1 - rho)) / (1 - rho)));
  CHECK(fed::gradient_mass({.rate = eta, .rates = rates}, mu) ==
        doctest::Approx((1 - std::pow(1 - eta * mu, K)) / (eta * mu)));
  CHECK(fed::gradient_mass({.rate = eta, .rates = {eta, eta / 2, 0}}) == doctest::Approx(1.5));
}

TEST_CASE("the mass of gradients is that of a real optimizer, with momentum, Nesterov, dampening and a schedule") {
  for (auto const& options : {pardl::optim::SGDOptions{.lr = 0.1, .momentum = 0.8, .nesterov = true},
                              pardl::optim::SGDOptions{.lr = 0.1, .momentum = 0.8, .dampening = 0.3}}) {
    auto weight = torch::zeros({1}, torch::dtype(torch::kDouble).requires_grad(true));
    pardl::optim::SGD optimizer({weight}, options);
    fed::LocalTrace trace{
        .rate = 0.1, .momentum = options.momentum, .dampening = options.dampening, .nesterov = options.nesterov};
    for (double const rate : {0.1, 0.05, 0.2, 0.1}) {
      optimizer.set_lr(rate);
      trace.rates.push_back(rate);
      weight.mutable_grad() = torch::ones({1}, torch::kDouble);
      optimizer.step();
    }
    CHECK(-weight.item<double>() / 0.1 == doctest::Approx(fed::gradient_mass(trace)));
  }
}

TEST_CASE("FedNova is FedAvg where all clients step alike, and weighs directions where they do not") {
  Quadratics const problem;
  fed::RunnerOptions const options{.weighting = fed::Weighting::uniform};
  fed::Runner nova(line(), problem.data(), Quadratics::shares(), steps(4, fed::Normalised{}), fed::Average{}, options);
  fed::Runner average(line(), problem.data(), Quadratics::shares(), steps(4, fed::NoTerm{}), fed::Average{}, options);
  for (int round = 0; round < 3; ++round) {
    nova.train({0, 1, 2, 3});
    average.train({0, 1, 2, 3});
    CHECK(weight_of(nova) == doctest::Approx(weight_of(average)).epsilon(1e-5));
  }

  // Client 0 with one sample of problem 0 steps once an epoch, client 1 with three copies of problem 1 three times.
  fed::ClientShares uneven(2);
  uneven[0].train = {0};
  uneven[1].train = {1, 1, 1};
  double const eta = 0.05;
  fed::LocalTraining<fed::MeanSquaredError, fed::MakeSGD, fed::Normalised> const epoch(
      {.batches = {.batch_size = 1, .steps = 1, .unit = fed::StepUnit::epoch}}, {.options = {.lr = eta}});
  fed::Runner weighted(line(), problem.data(), uneven, epoch, fed::Average{}, {.workers = 2});
  weighted.train({0, 1});
  double const d0 = problem.gradient(0, 0);
  double w = 0, sum = 0;
  for (int k = 0; k < 3; ++k) {
    sum += problem.gradient(1, w);
    w -= eta * problem.gradient(1, w);
  }
  double const tau = 0.25 * 1 + 0.75 * 3;
  CHECK(weight_of(weighted) == doctest::Approx(-eta * tau * (0.25 * d0 + 0.75 * sum / 3)).epsilon(1e-5));
}

TEST_CASE("strategies give the same bits for any number of workers, and after a resume") {
  pardl::testing::TemporaryFolder const folder;
  auto const file = folder.path() / "round.safetensors";
  auto const body = fed::LocalTraining<>(two_epochs(fed::Trained::shared), {.options = {.lr = 0.1}});
  auto const head = fed::LocalTraining<>(two_epochs(fed::Trained::kept), {.options = {.lr = 0.2}});
  using Update = fed::one_of<decltype(training(fed::ControlVariates{})), decltype(training(fed::Normalised{})),
                             fed::Ditto<>, fed::FedRep<>>;
  std::vector<Update> const updates{training(fed::ControlVariates{}), training(fed::Normalised{.mu = 0.1}),
                                    fed::Ditto(training(), training(fed::Proximal{.mu = 0.3})),
                                    fed::FedRep(head, body)};
  for (std::size_t which = 0; which < updates.size(); ++which) {
    CAPTURE(which);
    auto const make = [&](int workers) {
      fed::RunnerOptions options{.workers = workers, .processes = workers > 1, .seed = 4};
      options.sharing.buffers = fed::BufferPolicy::client_local;
      if (which == 3) options.sharing.keep_local = fed::containing({"4."});
      return std::make_unique<fed::Runner<torch::nn::Sequential, TensorDataset, Update>>(
          small_net(), samples(), growing(9), updates[which], fed::Average{}, options);
    };
    auto const outcome = [](auto& runner) {
      auto state = global_of(runner);
      for (auto const view : {fed::View::personal, fed::View::global})
        for (auto& figure : figures_of(runner.evaluate(fed::Part::test, view))) state.push_back(figure);
      return state;
    };
    auto through = make(1), other = make(4);
    for (int round = 0; round < 3; ++round) {
      through->train(fed::Uniform{.count = 4});
      other->train(fed::Uniform{.count = 4});
      if (round == 1) other->save(file);
    }
    auto resumed = make(2);
    resumed->load(file);
    resumed->train(fed::Uniform{.count = 4});
    auto const expected = outcome(*through);
    CHECK(same(expected, outcome(*other)));
    CHECK(same(expected, outcome(*resumed)));
  }
}

TEST_CASE("Ditto's global model is FedAvg's bit for bit; a personal model without a pull does not hear of others") {
  fed::RunnerOptions const options{.workers = 2, .seed = 6};
  fed::Runner average(small_net(), samples(), growing(4), training(), fed::Average{}, options);
  auto const ditto = [&](double lambda, std::vector<std::int64_t> const& clients) {
    auto runner = std::make_unique<fed::Runner<torch::nn::Sequential, TensorDataset, fed::Ditto<>>>(
        small_net(), samples(), growing(4), fed::Ditto(training(), training(fed::Proximal{.mu = lambda})),
        fed::Average{}, options);
    for (int round = 0; round < 2; ++round) runner->train(clients);
    return runner;
  };
  for (int round = 0; round < 2; ++round) average.train({0, 1, 2, 3});
  auto const all = ditto(0, {0, 1, 2, 3}), alone = ditto(0, {1}), pulled = ditto(2, {0, 1, 2, 3});
  CHECK(same(global_of(average), global_of(*all)));
  CHECK(same(figures_of(average.evaluate(fed::Part::test)),
             figures_of(all->evaluate(fed::Part::test, fed::View::global))));
  auto const own = all->evaluate(fed::Part::test, {1});
  CHECK(own[0].loss != all->evaluate(fed::Part::test, {1}, fed::View::global)[0].loss);
  CHECK(own[0].loss == alone->evaluate(fed::Part::test, {1})[0].loss);
  CHECK(own[0].loss != pulled->evaluate(fed::Part::test, {1})[0].loss);
  // A client that was never trained is served by the global model.
  CHECK(alone->evaluate(fed::Part::test, {0})[0].loss ==
        alone->evaluate(fed::Part::test, {0}, fed::View::global)[0].loss);
}

TEST_CASE("FedRep's body travels and its heads do not") {
  auto const make = [](double head_rate, double body_rate) {
    fed::RunnerOptions options{.workers = 2, .seed = 6};
    options.sharing.keep_local = fed::containing({"3."});
    return std::make_unique<fed::Runner<torch::nn::Sequential, TensorDataset, fed::FedRep<>>>(
        small_net(false), samples(), growing(3),
        fed::FedRep(fed::LocalTraining<>(two_epochs(fed::Trained::kept), {.options = {.lr = head_rate}}),
                    fed::LocalTraining<>(two_epochs(fed::Trained::shared), {.options = {.lr = body_rate}})),
        fed::Average{}, options);
  };
  auto const start = state_of(small_net(false));
  auto const figures = [](auto& runner, fed::View view) { return figures_of(runner.evaluate(fed::Part::test, view)); };
  auto heads = make(0.2, 0);
  heads->train({0, 1, 2});
  CHECK(same(global_of(*heads, small_net(false)), start));
  CHECK_FALSE(same(figures(*heads, fed::View::personal), figures(*heads, fed::View::global)));
  auto bodies = make(0, 0.2);
  bodies->train({0, 1, 2});
  auto const after = global_of(*bodies, small_net(false));
  CHECK_FALSE(torch::equal(after[0], start[0]));
  CHECK(torch::equal(after[2], start[2]));  // the head
  CHECK(same(figures(*bodies, fed::View::personal), figures(*bodies, fed::View::global)));

  auto const shared = fed::LocalTraining<>(two_epochs(fed::Trained::shared));
  CHECK_THROWS_WITH_AS((void)fed::FedRep(shared, shared), doctest::Contains("train the same parameters"),
                       pardl::ConfigError);
  fed::Runner headless(small_net(false), samples(), growing(3), fed::LocalTraining<>(two_epochs(fed::Trained::kept)),
                       fed::Average{}, {});
  CHECK_THROWS_WITH_AS(headless.train({0}), doctest::Contains("parameters that clients keep, and they keep none"),
                       pardl::Error);
}
