// SPDX-License-Identifier: MIT
/// \file   What the server makes of a round: the clients' mean, or a step along it with an optimizer of its own.
/// \layer  fed (std only).
///
/// The difference between the global weights and the clients' mean is taken as a gradient (a pseudo-gradient). A step
/// looks at one number at a time, so the workers of a simulation each do a slice of the model.
/// \paper Reddi et al., "Adaptive federated optimization", ICLR 2021 (FedAdagrad, FedAdam, FedYogi: algorithm 2);
/// Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution", 2019 (server momentum, FedAvgM).
#pragma once

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// `states()` numbers (4 at most) are kept for each weight, zero at first. `apply(weights, mean, state, step)` moves a
/// slice of n weights: `mean` is the clients' [n], `state` [states][n], `step` counts from 1. It computes in double and
/// rounds once. Models: Average, ServerSGD, ServerAdagrad, ServerAdam, ServerYogi.
template <class S>
concept server_optimizer =
    std::copy_constructible<S> && requires(S const& server, std::span<float> weights, std::span<double const> mean,
                                           std::span<std::span<float> const> state, std::int64_t step) {
      { server.states() } -> std::convertible_to<std::size_t>;
      server.check();
      server.apply(weights, mean, state, step);
    };
static_assert(!server_optimizer<int>);

namespace detail {

inline constexpr std::size_t most_server_states = 4;

inline void check_server(bool fine, std::string const& what, char const* remedy) {
  if (!fine) throw ConfigError(sentence("fed", what, remedy));
}
inline void check_rate(double lr) {
  check_server(lr >= 0 && std::isfinite(lr), "a server learning rate of " + std::to_string(lr), "it is zero or more");
}
inline void check_share(char const* name, double share) {
  check_server(share >= 0 && share < 1, "a server optimizer with " + std::string(name) + " " + std::to_string(share),
               "it lies from 0 up to, but not at, 1");
}

}  // namespace detail

/// FedAvg: the mean of the clients is the new model.
/// \paper McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017.
struct Average {
  [[nodiscard]] static constexpr std::size_t states() { return 0; }
  void check() const {}
  void apply(std::span<float> weights, std::span<double const> mean, std::span<std::span<float> const>,
             std::int64_t) const {
    for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(mean[i]);
  }
};
static_assert(server_optimizer<Average>);

/// SGD with momentum on the pseudo-gradient (FedAvgM). lr 1 without momentum is FedAvg.
struct ServerSGD {
  double lr = 1;        ///< of the server
  double momentum = 0;  ///< share of the last direction that is kept

  [[nodiscard]] static constexpr std::size_t states() { return 1; }
  void check() const {
    detail::check_rate(lr);
    detail::check_share("momentum", momentum);
  }
  void apply(std::span<float> weights, std::span<double const> mean, std::span<std::span<float> const> state,
             std::int64_t) const {
    auto const velocity = state[0];
    for (std::size_t i = 0; i < weights.size(); ++i) {
      double const old = weights[i];
      double direction = old - mean[i];
      if (momentum != 0) {
        direction += momentum * static_cast<double>(velocity[i]);
        velocity[i] = static_cast<float>(direction);
      }
      weights[i] = static_cast<float>(old - lr * direction);
    }
  }
};
static_assert(server_optimizer<ServerSGD>);

/// FedAdagrad: v += d², w -= lr · d / (sqrt(v) + tau), v starting at 0.
struct ServerAdagrad {
  double lr = 0.1;    ///< of the server
  double tau = 1e-3;  ///< how adaptive: the smaller the more

  [[nodiscard]] static constexpr std::size_t states() { return 1; }
  void check() const {
    detail::check_rate(lr);
    detail::check_server(tau > 0 && std::isfinite(tau), "a server optimizer with tau " + std::to_string(tau),
                         "it is above 0, and finite");
  }
  void apply(std::span<float> weights, std::span<double const> mean, std::span<std::span<float> const> state,
             std::int64_t) const {
    for (std::size_t i = 0; i < weights.size(); ++i) {
      double const d = static_cast<double>(weights[i]) - mean[i];
      double const v = static_cast<double>(state[0][i]) + d * d;
      state[0][i] = static_cast<float>(v);
      weights[i] = static_cast<float>(static_cast<double>(weights[i]) - lr * d / (std::sqrt(v) + tau));
    }
  }
};
static_assert(server_optimizer<ServerAdagrad>);

namespace detail {

/// Adam and Yogi differ in how the second moment moves.
template <class SecondMoment>
void adaptive_step(std::span<float> weights, std::span<double const> mean, std::span<std::span<float> const> state,
                   double lr, double beta1, double tau, double correction1, double correction2, SecondMoment second) {
  for (std::size_t i = 0; i < weights.size(); ++i) {
    double const d = static_cast<double>(weights[i]) - mean[i];
    double const m = beta1 * static_cast<double>(state[0][i]) + (1 - beta1) * d;
    double const v = second(static_cast<double>(state[1][i]), d * d);
    state[0][i] = static_cast<float>(m);
    state[1][i] = static_cast<float>(v);
    weights[i] = static_cast<float>(static_cast<double>(weights[i]) -
                                    lr * (m / correction1) / (std::sqrt(v / correction2) + tau));
  }
}

}  // namespace detail

/// FedAdam as the paper has it, but for v, which starts at 0 and not at tau²; without bias correction the first step is
/// lr · d(1-β1) / (sqrt((1-β2)d²) + tau).
struct ServerAdam {
  double lr = 0.01;              ///< of the server
  double beta1 = 0.9;            ///< memory of the direction
  double beta2 = 0.99;           ///< memory of its square
  double tau = 1e-3;             ///< how adaptive: the smaller the more
  bool bias_correction = false;  ///< divide both moments by what they lack at the start, as Adam does

  [[nodiscard]] static constexpr std::size_t states() { return 2; }
  void check() const {
    detail::check_rate(lr);
    detail::check_share("beta1", beta1);
    detail::check_share("beta2", beta2);
    detail::check_server(tau > 0 && std::isfinite(tau), "a server optimizer with tau " + std::to_string(tau),
                         "it is above 0, and finite");
  }
  void apply(std::span<float> weights, std::span<double const> mean, std::span<std::span<float> const> state,
             std::int64_t step) const {
    auto const t = static_cast<double>(step);
    detail::adaptive_step(weights, mean, state, lr, beta1, tau, bias_correction ? 1 - std::pow(beta1, t) : 1,
                          bias_correction ? 1 - std::pow(beta2, t) : 1,
                          [this](double v, double square) { return beta2 * v + (1 - beta2) * square; });
  }
};
static_assert(server_optimizer<ServerAdam>);

/// FedYogi: the second moment moves towards d² by (1-β2)d² at most, so it forgets slowly.
struct ServerYogi {
  double lr = 0.01;     ///< of the server
  double beta1 = 0.9;   ///< memory of the direction
  double beta2 = 0.99;  ///< memory of its square
  double tau = 1e-3;    ///< how adaptive: the smaller the more

  [[nodiscard]] static constexpr std::size_t states() { return 2; }
  void check() const { ServerAdam{.lr = lr, .beta1 = beta1, .beta2 = beta2, .tau = tau}.check(); }
  void apply(std::span<float> weights, std::span<double const> mean, std::span<std::span<float> const> state,
             std::int64_t) const {
    detail::adaptive_step(weights, mean, state, lr, beta1, tau, 1, 1, [this](double v, double square) {
      double const sign = v > square ? 1 : (v < square ? -1 : 0);
      return v - (1 - beta2) * square * sign;
    });
  }
};
static_assert(server_optimizer<ServerYogi>);

}  // namespace pardl::inline PARDL_ABI::fed
