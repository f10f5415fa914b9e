// SPDX-License-Identifier: MIT
/// \file   A server optimizer chosen at run time, as a value.
/// \layer  fed (std only).
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>
#include <variant>

#include "pardl/fed/server_optimizer.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// Any of the server optimizers; it models server_optimizer itself.
class any_server_optimizer {
 public:
  using Choice = std::variant<Average, ServerSGD, ServerAdagrad, ServerAdam, ServerYogi>;

  any_server_optimizer() = default;
  template <class Optimizer>
    requires std::constructible_from<Choice, Optimizer> &&
             (!std::same_as<std::remove_cvref_t<Optimizer>, any_server_optimizer>)
  any_server_optimizer(Optimizer optimizer)  // NOLINT(google-explicit-constructor): an optimizer is an optimizer
      : choice_(std::move(optimizer)) {}

  [[nodiscard]] std::size_t states() const {
    return std::visit([](auto const& one) { return one.states(); }, choice_);
  }
  void check() const {
    std::visit([](auto const& one) { one.check(); }, choice_);
  }
  void apply(std::span<float> weights, std::span<double const> mean, std::span<std::span<float> const> state,
             std::int64_t step) const {
    std::visit([&](auto const& one) { one.apply(weights, mean, state, step); }, choice_);
  }

 private:
  Choice choice_;
};
static_assert(server_optimizer<any_server_optimizer>);

}  // namespace pardl::inline PARDL_ABI::fed
