// SPDX-License-Identifier: MIT
/// \file   What PowerSGD keeps from step to step: by parameter for who saves it, by bucket for who works with it.
/// \layer  train, private.
///
/// A bucket's factors lie in one piece, so that one all-reduce sends them. But buckets come and go: DDP rebuilds them
/// after the first step, and a run that goes on from a checkpoint begins with other ones. So every value belongs to its
/// parameter, and a bucket that is new takes over what its parameters have.
#pragma once

#include <ATen/Functions.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// What is to know of a bucket once the hook has returned.
struct BucketParts {
  std::size_t index = 0;
  bool last = false;
  torch::Tensor buffer;                   ///< [elements]
  std::vector<torch::Tensor> gradients;   ///< views of the buffer in the parameters' shapes, not in their strides
  std::vector<torch::Tensor> parameters;  ///< in the order of the gradients
};

/// Gradients that are approximated together: one, or several of one shape.
struct PowerSgdGroup {
  std::vector<std::size_t> members;  ///< places in the bucket
  torch::Tensor p;                   ///< [members, rows, rank]
  torch::Tensor q;                   ///< [members, columns, rank]
};

struct PowerSgdBucket {
  std::vector<c10::TensorImpl const*> parameters{};
  torch::ScalarType dtype = torch::kFloat32;
  std::vector<PowerSgdGroup> groups{};
  std::vector<std::size_t> whole{};  ///< places of gradients that are not worth the work: they are sent whole
  torch::Tensor p{}, q{};            ///< all groups' factors, one after the other
  torch::Tensor error{};             ///< [elements]; zero where gradients are sent whole
  bool started = false;              ///< has drawn: q holds the step before, not nothing
};

/// What is kept of one parameter; undefined where there is nothing.
struct PowerSgdKept {
  torch::Tensor error;  ///< in the parameter's shape
  torch::Tensor q;      ///< [columns, rank]
};

/// Rows, columns, and the rank of the approximation; rank 0 where the gradient is sent whole.
struct PowerSgdShape {
  std::int64_t rows = 0, columns = 0, rank = 0;
};

class PowerSgdMemory {
 public:
  struct Settings {
    std::int64_t rank;
    double min_compression_rate;
    bool keeps_errors, keeps_factors, batches;
  };
  explicit PowerSgdMemory(Settings settings) : settings_(settings) {}

  /// A gradient as a matrix: its first dimension by all others.
  [[nodiscard]] PowerSgdShape shape_of(torch::Tensor const& gradient) const {
    if (gradient.dim() == 0 || gradient.numel() == 0) return {};
    auto const n = gradient.size(0), m = gradient.numel() / n, r = std::min({n, m, settings_.rank});
    bool const worth = static_cast<double>((n + m) * r) * settings_.min_compression_rate <
                       static_cast<double>(n) * static_cast<double>(m);
    return {n, m, worth ? r : 0};
  }

  /// The memory of this bucket, with what its parameters have kept.
  PowerSgdBucket& of(BucketParts const& parts) {
    std::vector<c10::TensorImpl const*> parameters;
    for (auto const& parameter : parts.parameters) parameters.push_back(parameter.unsafeGetTensorImpl());
    auto& bucket = buckets_[parts.index];
    if (bucket.parameters != parameters || bucket.dtype != parts.buffer.scalar_type())
      bucket = assembled(parts, std::move(parameters));
    return bucket;
  }

  [[nodiscard]] std::unordered_map<c10::TensorImpl const*, PowerSgdKept> const& kept() const noexcept { return kept_; }
  void replace(std::unordered_map<c10::TensorImpl const*, PowerSgdKept> kept) {
    resumed_ = !kept.empty();
    kept_ = std::move(kept);
    buckets_.clear();
  }

 private:
  PowerSgdBucket assembled(BucketParts const& parts, std::vector<c10::TensorImpl const*> parameters) {
    PowerSgdBucket bucket{.parameters = std::move(parameters), .dtype = parts.buffer.scalar_type()};
    std::int64_t p_size = 0, q_size = 0;
    for (auto& [shape, members] : by_shape(parts, bucket.whole)) {
      auto const count = static_cast<std::int64_t>(members.size());
      p_size += count * shape.rows * shape.rank;
      q_size += count * shape.columns * shape.rank;
      if (settings_.batches)
        bucket.groups.push_back({std::move(members), {}, {}});
      else
        for (auto const member : members) bucket.groups.push_back({{member}, {}, {}});
    }
    bucket.started = settings_.keeps_factors && resumed_;
    if (bucket.groups.empty()) return bucket;

    bucket.p = at::empty({p_size}, parts.buffer.options());
    bucket.q = at::empty({q_size}, parts.buffer.options());
    if (settings_.keeps_errors) bucket.error = at::zeros_like(parts.buffer);
    p_size = q_size = 0;
    for (auto& group : bucket.groups) {
      auto const count = static_cast<std::int64_t>(group.members.size());
      auto const [rows, columns, rank] = shape_of(parts.gradients[group.members.front()]);
      group.p = bucket.p.narrow(0, p_size, count * rows * rank).view({count, rows, rank});
      group.q = bucket.q.narrow(0, q_size, count * columns * rank).view({count, columns, rank});
      p_size += group.p.numel();
      q_size += group.q.numel();
    }
    take_over(bucket, parts);
    return bucket;
  }

  /// Gradients worth the work by shape, shapes in order of appearance: PyTorch's order, on which the random start
  /// depends.
  std::vector<std::pair<PowerSgdShape, std::vector<std::size_t>>> by_shape(BucketParts const& parts,
                                                                           std::vector<std::size_t>& whole) const {
    std::vector<std::pair<PowerSgdShape, std::vector<std::size_t>>> groups;
    for (std::size_t i = 0; i < parts.gradients.size(); ++i) {
      auto const shape = shape_of(parts.gradients[i]);
      if (shape.rank == 0) {
        whole.push_back(i);
        continue;
      }
      auto const same = std::find_if(groups.begin(), groups.end(), [&](auto const& group) {
        return group.first.rows == shape.rows && group.first.columns == shape.columns;
      });
      if (same == groups.end())
        groups.push_back({shape, {i}});
      else
        same->second.push_back(i);
    }
    return groups;
  }

  /// Copies what parameters have kept into the bucket; from now on they keep it there.
  void take_over(PowerSgdBucket& bucket, BucketParts const& parts) {
    bucket.started = settings_.keeps_factors;
    for (auto const& group : bucket.groups)
      for (auto const member : group.members) {
        auto const found = kept_.find(bucket.parameters[member]);
        bucket.started = bucket.started && found != kept_.end() && found->second.q.defined();
      }
    for (auto const& group : bucket.groups)
      for (std::size_t i = 0; i < group.members.size(); ++i) {
        auto const& gradient = parts.gradients[group.members[i]];
        auto& kept = kept_[bucket.parameters[group.members[i]]];
        PowerSgdKept here;
        if (settings_.keeps_errors) {
          auto const offset = gradient.storage_offset() - parts.buffer.storage_offset();
          here.error = shaped_as(parts.parameters[group.members[i]], bucket.error.narrow(0, offset, gradient.numel()));
          if (kept.error.defined()) copy_here(here.error, kept.error);
        }
        if (settings_.keeps_factors) {
          here.q = group.q[static_cast<std::int64_t>(i)];
          if (bucket.started) copy_here(here.q, kept.q);
        }
        kept = std::move(here);
      }
  }

  /// A piece of a bucket is in the order of the parameter's memory, such as channels last, where that has no gaps.
  static torch::Tensor shaped_as(torch::Tensor const& parameter, torch::Tensor const& piece) {
    if (!parameter.is_non_overlapping_and_dense()) return piece.view(parameter.sizes());
    return piece.as_strided(parameter.sizes(), parameter.strides(), piece.storage_offset());
  }

  /// The old memory may go right after: its allocator must know that this stream still reads it.
  static void copy_here(torch::Tensor const& to, torch::Tensor const& from) {
    to.copy_(from);
    if (!from.is_cpu()) from.record_stream(c10::impl::VirtualGuardImpl(from.device().type()).getStream(from.device()));
  }

  Settings settings_;
  std::map<std::size_t, PowerSgdBucket> buckets_;  ///< by index
  std::unordered_map<c10::TensorImpl const*, PowerSgdKept> kept_;
  bool resumed_ = false;  ///< kept_ came from a checkpoint: its run has drawn for every bucket
};

}  // namespace pardl::inline PARDL_ABI::detail
