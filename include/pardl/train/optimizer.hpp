// SPDX-License-Identifier: MIT
/// \file   What the library asks of an optimizer, and how torch::optim's answer to it.
/// \layer  train (torch only).
#pragma once

#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <concepts>
#include <ranges>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// A range whose elements are tensors: what `parameters()` returns.
template <class R>
concept tensor_range =
    std::ranges::input_range<R> && std::convertible_to<std::ranges::range_reference_t<R>, torch::Tensor const&>;

template <class O>
concept holds_parameters = requires(O& optimizer) {
  { optimizer.parameters() } -> tensor_range;
};

template <class O>
concept steps = requires(O& optimizer) {
  optimizer.step();
  optimizer.zero_grad();
};

template <class O>
concept has_learning_rate = requires(O& optimizer, O const& fixed, double lr) {
  { fixed.lr() } -> std::convertible_to<double>;
  optimizer.set_lr(lr);
};

/// Everything of LibTorch's own. Its parameters() knows the first group only and its rate sits in the groups, so the
/// free functions below speak for it.
template <class O>
concept torch_optimizer = std::derived_from<O, torch::optim::Optimizer>;

/// Parameters, step(), zero_grad(), lr() and set_lr(). Models: pardl::optim::*, torch::optim::*.
/// Generic code reads one through parameters_of(), learning_rate() and set_learning_rate().
template <class O>
concept optimizer = torch_optimizer<O> || (holds_parameters<O> && steps<O> && has_learning_rate<O>);

/// An optimizer whose step takes the loss scale and the overflow flag as tensors and skips by itself, so that nobody
/// waits for the device: `step(grad_scale, found_inf)`. An undefined grad_scale means that the gradients are unscaled
/// already; found_inf is a float32 tensor of one element, 1 to skip and 0 to step. fused() says whether it does so as
/// it stands (PyTorch: `_step_supports_amp_scaling`).
template <class O>
concept fused_optimizer = optimizer<O> && requires(O& optimizer, O const& fixed, torch::Tensor const& flag) {
  optimizer.step(flag, flag);
  { fixed.fused() } -> std::convertible_to<bool>;
};

/// Every parameter of every group, in the order of the groups.
template <class O>
[[nodiscard]] std::vector<torch::Tensor> parameters_of(O& from) {
  static_assert(optimizer<O>,
                "pardl: an optimizer has parameters(), step(), zero_grad(), lr() and set_lr(), or derives from "
                "torch::optim::Optimizer; add the missing member.");
  std::vector<torch::Tensor> all;
  if constexpr (torch_optimizer<O>) {
    for (auto const& group : from.param_groups()) all.insert(all.end(), group.params().begin(), group.params().end());
  } else {
    for (torch::Tensor const& parameter : from.parameters()) all.push_back(parameter);
  }
  return all;
}

/// The learning rate; of several groups the first one's.
/// \throws ConfigError for a torch::optim optimizer without groups or whose options keep no rate.
template <class O>
[[nodiscard]] double learning_rate(O& of) {
  static_assert(optimizer<O>,
                "pardl: an optimizer has parameters(), step(), zero_grad(), lr() and set_lr(), or derives from "
                "torch::optim::Optimizer; add the missing member.");
  if constexpr (torch_optimizer<O>) {
    if (of.param_groups().empty())
      throw ConfigError(sentence("train", "the optimizer has no parameter group", "give it parameters first"));
    return of.param_groups().front().options().get_lr();
  } else {
    return of.lr();
  }
}

/// Sets the rate of every group; what a schedule calls before each step.
/// \throws ConfigError if lr is negative or not a number.
template <class O>
void set_learning_rate(O& of, double lr) {
  static_assert(optimizer<O>,
                "pardl: an optimizer has parameters(), step(), zero_grad(), lr() and set_lr(), or derives from "
                "torch::optim::Optimizer; add the missing member.");
  if (!(lr >= 0)) throw ConfigError(sentence("train", "learning rate " + std::to_string(lr), "it is zero or more"));
  if constexpr (torch_optimizer<O>) {
    for (auto& group : of.param_groups()) group.options().set_lr(lr);
  } else {
    of.set_lr(lr);
  }
}

static_assert(optimizer<torch::optim::Optimizer> && !fused_optimizer<torch::optim::Optimizer>);
static_assert(!optimizer<int>);

}  // namespace pardl::inline PARDL_ABI
