// SPDX-License-Identifier: MIT
/// \file   Clipping and stepping as one: where the step can take the factor, the gradients are not written again.
/// \layer  train (torch only).
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <optional>
#include <vector>

#include "pardl/train/clip_grad.hpp"
#include "pardl/train/low_rank.hpp"  // IWYU pragma: export
#include "pardl/train/optim.hpp"
#include "pardl/train/optimizer.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

namespace detail {

/// Whether a factor on the gradients is one on the rate.
template <optimizer O>
[[nodiscard]] bool steps_plainly(O const& optimizer) {
  if constexpr (std::same_as<O, optim::SGD>)
    return optimizer.groups() == 1 && optimizer.options().momentum == 0 && optimizer.options().weight_decay == 0 &&
           std::ranges::all_of(optimizer.parameters(), [](auto const& parameter) { return parameter.is_cpu(); });
  return false;
}

/// The Euclidean norm of all gradients there are, dense and as factors; nothing where dtypes or devices are mixed.
template <optimizer O>
[[nodiscard]] std::optional<double> norm_of_all(O& optimizer, std::vector<LowRankGradient> const& factors) {
  auto const dense = gradient_buckets(optimizer.parameters());
  if (dense.size() > 1) return std::nullopt;
  double square = 0;
  if (!dense.empty()) {
    auto const norm =
        at::linalg_vector_norm(at::stack(at::_foreach_norm(dense.front().tensors))).template item<double>();
    square = norm * norm;
  }
  for (auto const& gradient : factors) square += LowRankGradients::squared_norm(gradient);
  return std::sqrt(square);
}

}  // namespace detail

/// `clip_grad_norm_(parameters, max_norm); optimizer.step();` for a norm of 2; max_norm 0 steps unclipped. For
/// pardl::optim::SGD without momentum and weight decay on a CPU, a factor on the gradients is one on the rate, which
/// saves a pass that reads and writes all gradients (they then stay as backward left them); everything else, gradients
/// that are not finite too, goes the two steps.
/// \cost   a memory-bound layer's step on a CPU takes about two thirds of the two calls.
template <optimizer O>
void clip_and_step(O& optimizer, double max_norm) {
  if (max_norm == 0) return optimizer.step();
  if constexpr (std::same_as<O, optim::SGD>)
    if (detail::steps_plainly(optimizer)) {
      torch::NoGradGuard const no_grad;
      if (auto const norm = detail::norm_of_all(optimizer, {}); norm && std::isfinite(*norm)) {
        double const rate = optimizer.lr();
        optimizer.set_lr(rate * std::min(1.0, max_norm / (*norm + 1e-6)));
        optimizer.step();
        optimizer.set_lr(rate);
        return;
      }
    }
  clip_grad_norm_(parameters_of(optimizer), max_norm);
  optimizer.step();
}

/// The same where some gradients are kept as factors, which it clears. They stay factors for the optimizer above; for
/// every other one, and for weights with a dense gradient too, they are multiplied out first.
template <optimizer O>
void clip_and_step(O& optimizer, double max_norm, LowRankGradients& low_rank) {
  if constexpr (std::same_as<O, optim::SGD>)
    if (auto const& factors = low_rank.gradients();
        detail::steps_plainly(optimizer) && !optimizer.options().maximize &&
        std::ranges::all_of(factors, [&](LowRankGradient const& gradient) {
          return !gradient.weight.grad().defined() &&
                 std::ranges::any_of(optimizer.parameters(),
                                     [&](auto const& parameter) { return parameter.is_same(gradient.weight); });
        })) {
      torch::NoGradGuard const no_grad;
      auto const norm = max_norm == 0 ? std::optional(0.0) : detail::norm_of_all(optimizer, factors);
      if (norm && std::isfinite(*norm)) {
        double const rate = optimizer.lr();
        double const clipped = max_norm == 0 ? rate : rate * std::min(1.0, max_norm / (*norm + 1e-6));
        optimizer.set_lr(clipped);
        optimizer.step();
        optimizer.set_lr(rate);
        for (auto const& [weight, outputs, inputs] : factors)
          torch::Tensor(weight).addmm_(outputs.t(), inputs, /*beta=*/1, /*alpha=*/-clipped);
        low_rank.clear();
        return;
      }
    }
  low_rank.materialize();
  clip_and_step(optimizer, max_norm);
}

}  // namespace pardl::inline PARDL_ABI
