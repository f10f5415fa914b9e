// SPDX-License-Identifier: MIT
/// \file   Weight gradients of linear layers kept as the two narrow factors they are the product of.
/// \layer  train (torch only).
///
/// The gradient of a linear layer's weight for a batch of B samples is G^T X, with G [B, out] the gradient of the
/// layer's outputs and X [B, in] its inputs: a matrix of rank B at most. For a small batch and a large layer, writing
/// it out, reading it for the norm and reading it again for the step moves many times more memory than its factors
/// hold. Its norm follows from two B x B matrices, |G^T X|^2 = sum (G G^T) * (X X^T), and a step of plain SGD is one
/// product added to the weight.
#pragma once

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// The gradient of one weight, as outputs^T inputs.
struct LowRankGradient {
  torch::Tensor weight;   ///< [out, in]
  torch::Tensor outputs;  ///< [rows, out], gradients of the layer's outputs
  torch::Tensor inputs;   ///< [rows, in]
};

namespace detail {

struct LowRankList : torch::CustomClassHolder {
  std::vector<LowRankGradient> gradients;
};

inline thread_local c10::intrusive_ptr<LowRankList> low_rank_list;  // of the innermost scope of this thread

/// Whether a weight is so large beside a few rows that reading it is all the work.
[[nodiscard]] inline bool few_rows(torch::Tensor const& input, torch::Tensor const& weight) {
  return input.dim() == 2 && input.size(0) > 1 && input.size(0) <= 32 && weight.numel() >= (1 << 20) &&
         weight.is_cpu() && input.scalar_type() == torch::kFloat && weight.scalar_type() == torch::kFloat;
}

/// input weight^T + bias by oneDNN, whose code is made for the shape and the processor at hand; LibTorch's own choice
/// is MKL, which reads the weight once for every three rows, and has general code only on processors of other makers.
/// (2048 x 3136 and 10 rows on one core: 7.7 ms for 10.1 on an AMD EPYC.) It knows no autograd. The operation is the
/// one that torch.compile emits for a linear layer; undefined where this LibTorch has none.
[[nodiscard]] inline torch::Tensor onednn_linear(torch::Tensor const& input, torch::Tensor const& weight,
                                                 torch::Tensor const& bias = {}) {
  static auto const operation = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  if (!operation || !at::globalContext().userEnabledMkldnn() || at::autocast::is_autocast_enabled(torch::kCPU))
    return {};
  std::vector<c10::IValue> stack{input,
                                 weight,
                                 bias.defined() ? c10::IValue(bias) : c10::IValue(),
                                 "none",
                                 c10::List<std::optional<at::Scalar>>(),
                                 c10::IValue()};
  operation->callBoxed(stack);
  return stack.front().toTensor();
}

/// at::linear; by oneDNN where that pays and nobody asks for a gradient.
[[nodiscard]] inline torch::Tensor plain_linear(torch::Tensor const& input, torch::Tensor const& weight,
                                                torch::Tensor const& bias) {
  if (!at::GradMode::is_enabled() && few_rows(input, weight))
    if (auto result = onednn_linear(input, weight, bias); result.defined()) return result;
  return at::linear(input, weight, bias);
}

/// gradient weight, as a linear layer with the weight turned.
[[nodiscard]] inline torch::Tensor input_gradient(torch::Tensor const& gradient, torch::Tensor const& weight) {
  if (!at::GradMode::is_enabled() && few_rows(gradient, weight))
    if (auto result = onednn_linear(gradient, weight.t()); result.defined()) return result;
  return gradient.matmul(weight);
}

struct LowRankLinear : torch::autograd::Function<LowRankLinear> {
  static torch::Tensor forward(torch::autograd::AutogradContext* context, torch::Tensor const& input,
                               torch::Tensor const& weight, std::optional<torch::Tensor> const& bias,
                               c10::intrusive_ptr<LowRankList> list) {
    context->save_for_backward({input, weight});
    context->saved_data["bias"] = bias.has_value();
    context->saved_data["list"] = c10::IValue::make_capsule(std::move(list));
    return plain_linear(input, weight, bias.value_or(torch::Tensor()));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list const& gradients) {
    auto const saved = context->get_saved_variables();
    auto const &input = saved[0], &weight = saved[1], &gradient = gradients[0];
    torch::Tensor of_input, of_weight, of_bias;
    if (context->needs_input_grad(0)) of_input = input_gradient(gradient, weight);
    auto const outputs = gradient.reshape({-1, weight.size(0)}), inputs = input.reshape({-1, weight.size(1)});
    if (at::GradMode::is_enabled())  // somebody differentiates the gradient itself
      of_weight = outputs.t().mm(inputs);
    else
      c10::static_intrusive_pointer_cast<LowRankList>(context->saved_data["list"].toCapsule())
          ->gradients.push_back({weight, outputs, inputs.detach()});
    if (context->saved_data["bias"].toBool() && context->needs_input_grad(2)) of_bias = outputs.sum(0);
    return {of_input, of_weight, of_bias, {}};
  }
};

/// Whether the factors are much smaller than the product.
[[nodiscard]] inline bool worth_factors(std::int64_t rows, torch::Tensor const& weight) {
  return 2 * rows * (weight.size(0) + weight.size(1)) < weight.numel();
}

}  // namespace detail

/// While it lives, backward through pardl::linear leaves the gradients of large weights here and not in grad(): for a
/// step that knows what to do with them (clip_and_step), or materialize(). One thread's; scopes nest, and the innermost
/// gathers.
class LowRankGradients {
 public:
  LowRankGradients()
      : list_(c10::make_intrusive<detail::LowRankList>()), before_(std::exchange(detail::low_rank_list, list_)) {}
  LowRankGradients(LowRankGradients&&) = delete;
  ~LowRankGradients() { detail::low_rank_list = before_; }

  /// Gathered since the last clear(), each weight once.
  [[nodiscard]] std::vector<LowRankGradient> const& gradients() {
    auto& all = list_->gradients;
    for (std::size_t i = 0; i < all.size(); ++i)  // a weight that was used or accumulated more than once: more rows
      for (std::size_t j = all.size(); --j > i;)
        if (all[j].weight.is_same(all[i].weight)) {
          all[i].outputs = at::cat({all[i].outputs, all[j].outputs});
          all[i].inputs = at::cat({all[i].inputs, all[j].inputs});
          all.erase(all.begin() + static_cast<std::ptrdiff_t>(j));
        }
    return all;
  }
  void clear() { list_->gradients.clear(); }

  /// Adds all products to the weights' grad(), for code that wants to see them there, and clears.
  void materialize() {
    torch::NoGradGuard const no_grad;
    for (auto const& [weight, outputs, inputs] : list_->gradients) {
      auto& grad = torch::Tensor(weight).mutable_grad();
      if (grad.defined())
        grad.addmm_(outputs.t(), inputs);
      else
        grad = outputs.t().mm(inputs);
    }
    clear();
  }

  /// The squared Euclidean norm of a gradient, from its factors.
  [[nodiscard]] static double squared_norm(LowRankGradient const& gradient) {
    auto const product = gradient.outputs.mm(gradient.outputs.t()).mul_(gradient.inputs.mm(gradient.inputs.t()));
    auto const norm = product.sum(torch::kDouble).item<double>();
    return norm < 0 ? 0 : norm;  // a sum of products of either sign; NaN stays
  }

 private:
  c10::intrusive_ptr<detail::LowRankList> list_, before_;
};

/// input [..., in] times weight^T [in, out], plus bias [out]: at::linear up to the order of additions, and faster for a
/// few rows and a large weight on a CPU where no gradient is asked for, or inside a LowRankGradients scope. There a
/// float weight on the CPU that is large beside the batch leaves its gradient in the scope. A model whose forward calls
/// `pardl::linear(x, fc->weight, fc->bias)` for `fc->forward(x)` keeps its parameters and their names. \cost with a
/// weight of 25 MiB and 10 rows, backward, clipping and the step together move 4/7 of the memory.
[[nodiscard]] inline torch::Tensor linear(torch::Tensor const& input, torch::Tensor const& weight,
                                          torch::Tensor const& bias = {}) {
  auto const& list = detail::low_rank_list;
  if (list && at::GradMode::is_enabled() && weight.requires_grad() && weight.is_leaf() && weight.is_cpu() &&
      weight.dim() == 2 && weight.scalar_type() == torch::kFloat && input.scalar_type() == torch::kFloat &&
      input.dim() > 0 && !at::autocast::is_autocast_enabled(torch::kCPU) &&
      detail::worth_factors(input.numel() / std::max<std::int64_t>(input.size(-1), 1), weight))
    return detail::LowRankLinear::apply(input, weight, bias.defined() ? std::optional(bias) : std::nullopt, list);
  return detail::plain_linear(input, weight, bias);
}

}  // namespace pardl::inline PARDL_ABI
