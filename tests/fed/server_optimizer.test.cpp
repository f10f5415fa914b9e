// SPDX-License-Identifier: MIT
#include "pardl/fed/server_optimizer.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pardl/fed/any_server_optimizer.hpp"
#include "support/golden.hpp"
#include "support/temporary_folder.hpp"

using pardl::ConfigError;
using pardl::fed::any_server_optimizer;
using pardl::fed::Average;
using pardl::fed::ServerAdagrad;
using pardl::fed::ServerAdam;
using pardl::fed::ServerSGD;
using pardl::fed::ServerYogi;
using pardl::testing::golden;
using pardl::testing::GoldenRecord;
using pardl::testing::what_of;

namespace {

/// The numbers that a runner holds for a server: weights, and states that start at zero.
struct Held {
  std::vector<float> weights;
  std::vector<std::vector<float>> states;

  Held(std::vector<float> start, std::size_t count)
      : weights(std::move(start)), states(count, std::vector<float>(weights.size(), 0.0F)) {}

  /// One step of the numbers from `begin` to `end`.
  template <class Server>
  void slice(Server const& server, std::span<double const> means, std::int64_t step, std::size_t begin,
             std::size_t end) {
    std::vector<std::span<float>> state;
    for (auto& one : states) state.push_back(std::span(one).subspan(begin, end - begin));
    server.apply(std::span(weights).subspan(begin, end - begin), means.subspan(begin, end - begin),
                 std::span<std::span<float> const>(state), step);
  }
  template <class Server>
  void apply(Server const& server, std::span<double const> means, std::int64_t step) {
    slice(server, means, step, 0, weights.size());
  }
};

std::vector<float> floats(std::vector<double> const& numbers) {
  std::vector<float> rounded;
  for (double const number : numbers) rounded.push_back(static_cast<float>(number));
  return rounded;
}

constexpr std::size_t step_word = 6;

any_server_optimizer server_of(GoldenRecord const& record) {
  auto const& kind = record.words[0];
  double const lr = record.real(1), beta1 = record.real(2), beta2 = record.real(3), tau = record.real(4);
  if (kind == "sgd") return any_server_optimizer(ServerSGD{.lr = lr, .momentum = beta1});
  if (kind == "adagrad") return any_server_optimizer(ServerAdagrad{.lr = lr, .tau = tau});
  if (kind == "adam")
    return any_server_optimizer(
        ServerAdam{.lr = lr, .beta1 = beta1, .beta2 = beta2, .tau = tau, .bias_correction = record.integer(5) != 0});
  if (kind == "yogi") return any_server_optimizer(ServerYogi{.lr = lr, .beta1 = beta1, .beta2 = beta2, .tau = tau});
  throw std::runtime_error("no server optimizer is called " + kind);
}

std::vector<double> means_of(GoldenRecord const& record) {
  std::vector<double> means;
  for (std::size_t word = step_word + 1; word < record.words.size(); ++word) means.push_back(record.real(word));
  return means;
}

std::string name_of(GoldenRecord const& record) {
  return record.words[0] + " lr " + std::to_string(record.real(1)) + (record.integer(5) != 0 ? " corrected" : "") +
         " step " + record.words[step_word];
}

bool near(double found, double expected) {
  return std::abs(found - expected) <= 1e-6 * std::max(std::abs(expected), 1.0 / 16);
}

}  // namespace

TEST_CASE("every server optimizer goes the way of its paper, and of PyTorch's optimizer where there is one") {
  Held held({}, 0);
  any_server_optimizer server;
  int traces = 0, steps = 0;
  for (auto const& record : golden("server_optimizer.txt")) {
    CAPTURE(name_of(record));
    auto const step = record.integer(step_word);
    if (step == 0) {
      server = server_of(record);
      CHECK_NOTHROW(server.check());
      held = Held(floats(record.reals()), server.states());
      ++traces;
      continue;
    }
    auto const means = means_of(record), expected = record.reals();
    REQUIRE(means.size() == held.weights.size());
    REQUIRE(expected.size() == held.weights.size());
    held.apply(server, means, step);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(i);
      CAPTURE(held.weights[i]);
      CAPTURE(expected[i]);
      CHECK(near(static_cast<double>(held.weights[i]), expected[i]));
    }
    ++steps;
  }
  CHECK(traces == 11);
  CHECK(steps == 8 * traces);
}

TEST_CASE("a model that is stepped in slices is bit for bit the one that is stepped whole") {
  Held whole({}, 0), parts({}, 0);
  any_server_optimizer server;
  for (auto const& record : golden("server_optimizer.txt")) {
    auto const step = record.integer(step_word);
    if (step == 0) {
      server = server_of(record);
      whole = parts = Held(floats(record.reals()), server.states());
      continue;
    }
    auto const means = means_of(record);
    whole.apply(server, means, step);
    parts.slice(server, means, step, 4, 6);
    parts.slice(server, means, step, 0, 1);
    parts.slice(server, means, step, 1, 1);
    parts.slice(server, means, step, 1, 4);
    CAPTURE(name_of(record));
    CHECK(parts.weights == whole.weights);
    CHECK(parts.states == whole.states);
  }
}

TEST_CASE("the average is the mean rounded once, whatever the weights were, and SGD with lr 1 ends there as well") {
  std::vector<double> const means{0.1, -1.0 / 3, 7, 0};
  std::vector<float> const start{0.15F, -0.3F, 6.5F, 1};
  Held average(start, Average{}.states()), sgd(start, ServerSGD{}.states());
  average.apply(Average{}, means, 1);
  sgd.apply(ServerSGD{}, means, 1);
  CHECK(average.weights == floats(means));
  CHECK(sgd.weights == average.weights);
  CHECK(any_server_optimizer{}.states() == 0);
}

TEST_CASE(
    "without bias correction FedAdam's and FedYogi's first steps are lr d (1 - beta1) / (sqrt((1 - beta2) d d) + "
    "tau)") {
  double const d = 0.5, moved = 0.01 * d * (1 - 0.9) / (std::sqrt((1 - 0.99) * d * d) + 1e-3);
  std::vector<double> const means{1.0 - d};
  for (any_server_optimizer const& server : {any_server_optimizer(ServerAdam{}), any_server_optimizer(ServerYogi{})}) {
    Held held({1.0F}, server.states());
    held.apply(server, means, 1);
    CHECK(near(static_cast<double>(held.weights[0]), 1 - moved));
  }
  // With it, the first step is about lr long whatever d is.
  Held corrected({1.0F}, 2);
  corrected.apply(ServerAdam{.tau = 1e-9, .bias_correction = true}, means, 1);
  CHECK(near(static_cast<double>(corrected.weights[0]), 1 - 0.01));
}

TEST_CASE("clients that agree with the server move nothing, from the first step on") {
  std::vector<float> const start{0.5F, -3, 0};
  std::vector<double> const means(start.begin(), start.end());
  for (any_server_optimizer const& server :
       {any_server_optimizer(Average{}), any_server_optimizer(ServerSGD{.lr = 0.5, .momentum = 0.9}),
        any_server_optimizer(ServerAdagrad{}), any_server_optimizer(ServerAdam{}),
        any_server_optimizer(ServerAdam{.bias_correction = true}), any_server_optimizer(ServerYogi{})}) {
    Held held(start, server.states());
    for (std::int64_t step = 1; step <= 3; ++step) held.apply(server, means, step);
    CHECK(held.weights == start);
    for (auto const& state : held.states) CHECK(state == std::vector<float>(start.size(), 0.0F));
  }
}

TEST_CASE("settings that make no sense are refused in a sentence that says what they may be") {
  auto const what = [](auto const& chosen) {
    any_server_optimizer const server(chosen);
    CHECK_THROWS_AS(server.check(), ConfigError);
    return what_of<ConfigError>([&] { server.check(); });
  };
  double const nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();

  CHECK(what(ServerSGD{.lr = -1}) == "[fed] a server learning rate of -1.000000; it is zero or more.");
  for (double const lr : {-0.5, nan, infinity}) {
    CAPTURE(lr);
    for (any_server_optimizer const& server :
         {any_server_optimizer(ServerSGD{.lr = lr}), any_server_optimizer(ServerAdagrad{.lr = lr}),
          any_server_optimizer(ServerAdam{.lr = lr}), any_server_optimizer(ServerYogi{.lr = lr})})
      CHECK(what(server).find("learning rate") != std::string::npos);
  }
  CHECK(what(ServerSGD{.momentum = 1}) ==
        "[fed] a server optimizer with momentum 1.000000; it lies from 0 up to, but not at, 1.");
  for (double const share : {-0.1, 1.0, 1.5, nan}) {
    CAPTURE(share);
    CHECK(what(ServerSGD{.momentum = share}).find(" momentum ") != std::string::npos);
    CHECK(what(ServerAdam{.beta1 = share}).find(" beta1 ") != std::string::npos);
    CHECK(what(ServerAdam{.beta2 = share}).find(" beta2 ") != std::string::npos);
    CHECK(what(ServerYogi{.beta1 = share}).find(" beta1 ") != std::string::npos);
    CHECK(what(ServerYogi{.beta2 = share}).find(" beta2 ") != std::string::npos);
  }
  CHECK(what(ServerAdagrad{.tau = 0}) == "[fed] a server optimizer with tau 0.000000; it is above 0, and finite.");
  for (double const tau : {0.0, -1e-3, nan}) {
    CAPTURE(tau);
    for (any_server_optimizer const& server :
         {any_server_optimizer(ServerAdagrad{.tau = tau}), any_server_optimizer(ServerAdam{.tau = tau}),
          any_server_optimizer(ServerYogi{.tau = tau})})
      CHECK(what(server).find(" tau ") != std::string::npos);
  }
  // What stands at the border is fine.
  CHECK_NOTHROW(ServerSGD{.lr = 0}.check());
  CHECK_NOTHROW(ServerAdam{.beta1 = 0, .beta2 = 0}.check());
  CHECK_NOTHROW(any_server_optimizer{}.check());
}
