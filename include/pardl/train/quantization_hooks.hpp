// SPDX-License-Identifier: MIT
/// \file   Communication hooks that send gradients as 8-bit codes.
/// \layer  train.
///
/// Each rank codes its bucket as round(x / scale) + zero_point in 0 to 255, with scale and zero point from its own
/// least and greatest value; all codes go to all ranks, and each adds up what they stand for, in the order of ranks.
/// PyTorch: torch.distributed.algorithms.ddp_comm_hooks.quantization_hooks, bit for bit for float32.
/// ```
/// model.register_comm_hook(pardl::comm_hooks::quantization_per_channel({.bucket_size = 512}));
/// ```
/// A value is off by half a scale at most, and nothing makes up for it in later steps. A scale is 1.2e-7 at least, so
/// gradients below 6e-8 are lost. A bucket with an infinity or a NaN becomes NaN, or its channel does.
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <cstdint>
#include <limits>
#include <string>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <tuple>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/comm_hooks.hpp"
#include "pardl/train/detail/hook_parts.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

namespace detail {

/// Scale and zero point of each row, [2, rows, 1] in float32. PyTorch: MinMaxObserver's, quint8 and affine.
inline torch::Tensor quantization_parameters(torch::Tensor const& rows) {
  auto const [least, greatest] = at::aminmax(rows.to(torch::kFloat32), 1, /*keepdim=*/true);
  auto const below = least.clamp_max(0), above = greatest.clamp_min(0);
  auto const scale = ((above - below) / 255.0).clamp_min(std::numeric_limits<float>::epsilon());
  return at::stack({scale, (below / scale).round_().neg_().clamp_(0, 255)});
}

/// \param rows  [rows, width]; 16-bit types are computed with in float32.
inline torch::Tensor quantized(torch::Tensor const& rows, torch::Tensor const& parameters) {
  auto const wide = at::isReducedFloatingType(rows.scalar_type()) ? rows.to(torch::kFloat32) : rows;
  return (wide / parameters[0]).round_().add_(parameters[1]).clamp_(0, 255).to(torch::kUInt8);
}

inline torch::Tensor dequantized(torch::Tensor const& codes, torch::Tensor const& parameters) {
  return codes.to(torch::kFloat32).sub_(parameters[1]).mul_(parameters[0]);
}

}  // namespace detail

namespace comm_hooks {

struct QuantizationPerChannelOptions {
  std::int64_t bucket_size = 512;  ///< elements that share a scale and a zero point; fewer are finer and send more
};

/// Made by quantization_per_tensor() and quantization_per_channel().
///
/// \cost two all-gathers: of 8 bytes for each scale, and of one byte for each element. With n ranks a rank sends n - 1
/// quarters of a float32 bucket where an all-reduce sends 2 (n - 1) / n of it, so it pays below 8 ranks. Backward waits
/// for them on the CPU; on CUDA only a stream of the hook's own does. Memory: n quarters of the bucket, and 3 of its
/// size in float32.
class Quantization {
 public:
  static constexpr bool divides = true;

  /// \param width  elements of a channel; 0: the whole bucket.
  explicit Quantization(std::int64_t width) : width_(width) {}

  /// A communication hook. Every rank must call it with the same bucket. \throws ConfigError for sparse gradients.
  TensorFuture operator()(ProcessGroup const& world, c10d::GradBucket& bucket) const {
    detail::require_dense(world, bucket, "quantization");
    auto const buffer = bucket.getBuffer();
    auto const width = width_ == 0 ? buffer.numel() : width_;
    return detail::beside_backward(buffer, [=] { return mean(world, buffer, width); });
  }

 private:
  static torch::Tensor mean(ProcessGroup const& world, torch::Tensor const& buffer, std::int64_t width) {
    torch::NoGradGuard const no_grad;
    auto const length = buffer.numel();
    if (length == 0) return buffer;
    auto const rows = at::constant_pad_nd(buffer, {0, (width - length % width) % width}).view({-1, width});
    auto const parameters = detail::quantization_parameters(rows);
    auto const codes = detail::quantized(rows, parameters);
    std::int64_t const ranks = world.size(), channels = rows.size(0);
    auto const all_parameters = at::empty({ranks * 2, channels, 1}, parameters.options());
    auto const all_codes = at::empty({ranks * channels, width}, codes.options());
    auto first = pardl::all_gather_into(world, all_parameters, parameters);
    auto second = pardl::all_gather_into(world, all_codes, codes);
    first.wait();
    second.wait();
    auto sum = at::zeros(rows.sizes(), parameters.options());
    for (std::int64_t r = 0; r < ranks; ++r)
      sum.add_(detail::dequantized(all_codes.narrow(0, r * channels, channels), all_parameters.narrow(0, r * 2, 2)));
    return buffer.copy_(sum.div_(ranks).view(-1).narrow(0, 0, length));
  }

  std::int64_t width_;
};

static_assert(comm_hook<Quantization>);

/// 8-bit codes, one scale and zero point for each bucket. PyTorch: quantization_pertensor_hook.
[[nodiscard]] inline Quantization quantization_per_tensor() { return Quantization(0); }

/// 8-bit codes, a scale and zero point for each channel of `bucket_size` elements: finer where a bucket holds large
/// gradients and small ones. PyTorch: quantization_perchannel_hook. \throws ConfigError if it is below 1.
[[nodiscard]] inline Quantization quantization_per_channel(QuantizationPerChannelOptions options = {}) {
  if (options.bucket_size < 1)
    throw ConfigError(sentence("train",
                               "quantization_per_channel with bucket_size " + std::to_string(options.bucket_size),
                               "it is 1 or more"));
  return Quantization(options.bucket_size);
}

}  // namespace comm_hooks
}  // namespace pardl::inline PARDL_ABI
