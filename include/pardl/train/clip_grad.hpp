// SPDX-License-Identifier: MIT
/// \file   Gradients kept within bounds: by their common norm, or value by value.
/// \layer  train (torch only).
///
/// As torch.nn.utils.clip_grad_norm_ and clip_grad_value_ in Python: gradients are taken by device and dtype, one
/// fused call each, and nothing waits for the device. (LibTorch's own C++ clip_grad_norm_ returns a double, and so
/// waits at every step.)
///
/// Over ranks: behind DistributedDataParallel every rank holds the same gradients, so each clips by itself, alike.
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <cmath>
#include <concepts>
#include <string>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/train/optimizer.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {
namespace detail {

/// Tensors of one device and dtype: what a foreach kernel takes.
struct TensorBucket {
  torch::Device device;
  torch::ScalarType dtype;
  std::vector<torch::Tensor> tensors;
};

/// Adds a tensor to the bucket of its device and dtype; buckets stand in the order in which they were first needed.
inline void add_to_bucket(std::vector<TensorBucket>& buckets, torch::Tensor tensor) {
  for (auto& bucket : buckets)
    if (bucket.device == tensor.device() && bucket.dtype == tensor.scalar_type()) {
      bucket.tensors.push_back(std::move(tensor));
      return;
    }
  buckets.push_back({tensor.device(), tensor.scalar_type(), {tensor}});
}

template <tensor_range R>
[[nodiscard]] std::vector<TensorBucket> gradient_buckets(R&& parameters) {
  std::vector<TensorBucket> buckets;
  for (torch::Tensor const& parameter : parameters)
    if (auto const& gradient = parameter.grad(); gradient.defined()) add_to_bucket(buckets, gradient);
  return buckets;
}

}  // namespace detail

/// Scales all gradients by min(1, max_norm / (total + 1e-6)), total being the norm of all gradients as one vector.
/// Returns that norm as it was before, a tensor of no dimensions on the first gradient's device; reading it with item()
/// is what would wait for a GPU. Without gradients it is 0. norm_type may be infinity. \throws ConfigError if max_norm
/// is negative or not a number; Error if error_if_nonfinite and the norm is inf or NaN (this
///         option waits for the device), the gradients then being as they were.
/// \cost   two passes over the gradients.
/// Bit for bit Python's where all gradients share one device and dtype; with several kinds the order of their norms,
/// and so the last bit, may differ.
template <class R>
torch::Tensor clip_grad_norm_(R&& parameters, double max_norm, double norm_type = 2.0,
                              bool error_if_nonfinite = false) {
  static_assert(tensor_range<R>,
                "pardl::clip_grad_norm_ clips the gradients of a range of tensors; pass model.parameters() (or "
                "pardl::parameters_of(optimizer)).");
  if (!(max_norm >= 0))
    throw ConfigError(
        sentence("train", "clip_grad_norm_ with max_norm " + std::to_string(max_norm), "it is zero or more"));
  if (std::isnan(norm_type)) throw ConfigError(sentence("train", "clip_grad_norm_ with norm_type NaN", "2 is usual"));
  torch::NoGradGuard const no_grad;
  auto const buckets = detail::gradient_buckets(parameters);
  if (buckets.empty()) return torch::zeros({});
  auto const first = buckets.front().device;
  std::vector<torch::Tensor> norms;
  for (auto const& bucket : buckets)
    for (auto const& norm : at::_foreach_norm(bucket.tensors, norm_type)) norms.push_back(norm.to(first));
  auto total = at::linalg_vector_norm(at::stack(norms), norm_type);
  if (error_if_nonfinite && !at::isfinite(total).item<bool>())
    throw Error(sentence(
        "train", "the norm of the gradients is " + std::to_string(total.item<double>()) + " and cannot be clipped",
        "look for the batch that diverged, or let error_if_nonfinite be false"));
  auto const factor = at::clamp_max(at::reciprocal(total + 1e-6) * max_norm, 1.0);
  for (auto const& bucket : buckets) at::_foreach_mul_(bucket.tensors, factor.to(bucket.device));
  return total;
}

/// Clamps every gradient to [-limit, limit].
/// \throws ConfigError if limit is negative or not a number.
template <class R>
void clip_grad_value_(R&& parameters, double limit) {
  static_assert(tensor_range<R>,
                "pardl::clip_grad_value_ clips the gradients of a range of tensors; pass model.parameters() (or "
                "pardl::parameters_of(optimizer)).");
  if (!(limit >= 0))
    throw ConfigError(sentence("train", "clip_grad_value_ with limit " + std::to_string(limit), "it is zero or more"));
  torch::NoGradGuard const no_grad;
  for (auto const& bucket : detail::gradient_buckets(parameters)) {
    at::_foreach_clamp_min_(bucket.tensors, -limit);
    at::_foreach_clamp_max_(bucket.tensors, limit);
  }
}

}  // namespace pardl::inline PARDL_ABI
