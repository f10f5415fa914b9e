// SPDX-License-Identifier: MIT
/// \file   A step of PowerSGD on one bucket, and its state as a checkpoint holds it.
/// \layer  train, private.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/comm/work.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/detail/model_state.hpp"
#include "pardl/train/detail/orthogonalize.hpp"
#include "pardl/train/detail/power_sgd_memory.hpp"
#include "pardl/train/power_sgd_options.hpp"
#include "pardl/train/state_dict.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// All that copies of one hook share. Not thread-safe: backward's thread calls it, bucket after bucket.
struct PowerSgdEngine {
  /// \throws ConfigError  for options that cannot be right.
  explicit PowerSgdEngine(comm_hooks::PowerSgdOptions const& given);

  /// Replaces the bucket's gradients by what PowerSGD makes of them, and counts. Every rank must call it.
  torch::Tensor reduce(ProcessGroup const& world, BucketParts const& parts);
  [[nodiscard]] StateDict save(std::vector<NamedTensor> const& parameters) const;
  /// \throws CheckpointError, and changes nothing.
  void load(std::vector<NamedTensor> const& parameters, StateDict const& saved);

  /// A step's values that are kept once it is known to be finite, and those to which it goes back otherwise.
  struct Attempt {
    torch::Tensor owed;        ///< what this rank wanted to send
    torch::Tensor before;      ///< the factors as they were
    torch::Tensor directions;  ///< the same, orthonormal
  };
  void draw(PowerSgdBucket& bucket);
  [[nodiscard]] Attempt approximate(ProcessGroup const& world, BucketParts const& parts, PowerSgdBucket& bucket);
  void remember(BucketParts const& parts, PowerSgdBucket& bucket, Attempt const& attempt);

  comm_hooks::PowerSgdOptions options;
  std::int64_t iter = 0;
  comm_hooks::CompressionStats stats;
  RandomStateSeeds seeds;
  PowerSgdMemory memory;
};

inline PowerSgdEngine::PowerSgdEngine(comm_hooks::PowerSgdOptions const& given)
    : options(given),
      seeds(given.random_seed),
      memory({.rank = given.matrix_approximation_rank,
              .min_compression_rate = given.min_compression_rate,
              .keeps_errors = given.use_error_feedback,
              .keeps_factors = given.warm_start,
              .batches = given.batch_tensors_with_same_shape}) {
  auto const require = [](bool fine, std::string const& what, char const* remedy) {
    if (!fine) throw ConfigError(sentence("train", "power_sgd with " + what, remedy));
  };
  require(given.matrix_approximation_rank >= 1,
          "matrix_approximation_rank " + std::to_string(given.matrix_approximation_rank), "it is 1 or more");
  require(given.start_powerSGD_iter >= (given.use_error_feedback || given.warm_start ? 2 : 0),
          "start_powerSGD_iter " + std::to_string(given.start_powerSGD_iter),
          "with use_error_feedback or warm_start it is 2 or more, else 0 or more");
  require(given.min_compression_rate > 0, "min_compression_rate " + std::to_string(given.min_compression_rate),
          "it is above 0");
  require(given.orthogonalization_epsilon >= 0,
          "orthogonalization_epsilon " + std::to_string(given.orthogonalization_epsilon), "it is zero or more");
}

inline torch::Tensor PowerSgdEngine::reduce(ProcessGroup const& world, BucketParts const& parts) {
  torch::NoGradGuard const no_grad;
  auto& bucket = memory.of(parts);
  for (auto const& gradient : parts.gradients) {
    auto const [rows, columns, rank] = memory.shape_of(gradient);
    stats.numel_before_compression += gradient.numel();
    stats.numel_after_compression += rank == 0 ? gradient.numel() : (rows + columns) * rank;
  }

  torch::Tensor whole;
  Work summed;  // under way while the factors are computed
  if (!bucket.whole.empty()) {
    std::vector<torch::Tensor> flat;
    for (auto const member : bucket.whole) flat.push_back(parts.gradients[member].reshape(-1));
    whole = at::cat(flat).div_(world.size());
    summed = pardl::all_reduce(world, whole);
  }
  if (!std::exchange(bucket.started, options.warm_start)) draw(bucket);
  auto const attempt = bucket.groups.empty() ? Attempt() : approximate(world, parts, bucket);
  summed.wait();
  std::int64_t at = 0;
  for (auto const member : bucket.whole) {
    auto const& gradient = parts.gradients[member];
    gradient.copy_(whole.narrow(0, at, gradient.numel()).view(gradient.sizes()));
    at += gradient.numel();
  }
  if (!bucket.groups.empty()) remember(parts, bucket, attempt);
  iter += parts.last;
  return parts.buffer;
}

/// New random factors, the same on every rank: drawn on the CPU, wherever they are used. A bucket that has nothing to
/// compress takes its seed all the same, as in PyTorch, so that the next bucket's is the same.
inline void PowerSgdEngine::draw(PowerSgdBucket& bucket) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seeds.next());
  for (auto const& group : bucket.groups)
    group.q.copy_(at::randn(group.q.sizes(), generator, at::TensorOptions(bucket.dtype)));
}

/// Replaces the gradients of all groups by P Q^T.
inline PowerSgdEngine::Attempt PowerSgdEngine::approximate(ProcessGroup const& world, BucketParts const& parts,
                                                           PowerSgdBucket& bucket) {
  Attempt attempt;
  if (options.use_error_feedback) attempt.owed = parts.buffer.add_(bucket.error).clone();
  if (options.warm_start) attempt.before = bucket.q.clone();

  std::vector<torch::Tensor> matrices;
  for (auto const& group : bucket.groups) {
    std::vector<torch::Tensor> members;
    auto const rows = group.p.size(1), columns = group.q.size(1);
    for (auto const member : group.members) members.push_back(parts.gradients[member].view({rows, columns}));
    matrices.push_back(members.size() == 1 ? members.front().unsqueeze(0) : at::stack(members));
  }

  for (std::size_t g = 0; g < matrices.size(); ++g) {
    auto& [members, p, q] = bucket.groups[g];
    orthogonalize(q, options.orthogonalization_epsilon);
    at::bmm_out(p, matrices[g], q);
  }
  pardl::all_reduce(world, bucket.p).wait();  // a sum will do: its columns are made orthonormal
  if (options.warm_start) attempt.directions = bucket.q.clone();
  for (std::size_t g = 0; g < matrices.size(); ++g) {
    auto& [members, p, q] = bucket.groups[g];
    orthogonalize(p, options.orthogonalization_epsilon);
    at::bmm_out(q, matrices[g].transpose(1, 2), p);
  }
  pardl::all_reduce(world, bucket.q).wait();
  bucket.q.div_(world.size());
  for (std::size_t g = 0; g < matrices.size(); ++g) {
    auto& [members, p, q] = bucket.groups[g];
    at::bmm_out(matrices[g], p, q.transpose(1, 2));
    if (members.size() > 1)
      for (std::size_t i = 0; i < members.size(); ++i) {
        auto const& gradient = parts.gradients[members[i]];
        gradient.copy_(matrices[g][static_cast<std::int64_t>(i)].view(gradient.sizes()));
      }
  }
  return attempt;
}

/// Notes what the step left out, and where it was heard: for good if all of the bucket is finite, which is what a loss
/// scaler looks at. The same on all ranks, since all have the same bucket now; nobody waits for the device to tell.
inline void PowerSgdEngine::remember(BucketParts const& parts, PowerSgdBucket& bucket, Attempt const& attempt) {
  auto const largest = at::linalg_vector_norm(parts.buffer, std::numeric_limits<double>::infinity());
  auto const finite = largest.isfinite();  // NaN where anything is
  if (options.use_error_feedback) {
    attempt.owed.sub_(parts.buffer);
    for (auto const member : bucket.whole) {
      auto const& gradient = parts.gradients[member];
      attempt.owed.narrow(0, gradient.storage_offset() - parts.buffer.storage_offset(), gradient.numel()).zero_();
    }
    at::where_out(bucket.error, finite, attempt.owed, bucket.error);
  }
  if (options.warm_start) {
    std::int64_t at = 0;
    for (auto& [members, p, q] : bucket.groups) {
      auto const direction = attempt.directions.narrow(0, at, q.numel()).view(q.sizes());
      auto const heard = at::linalg_vector_norm(q, 2, {1}, /*keepdim=*/true).ne(0);
      at::where_out(q, heard, q, direction);
      at += q.numel();
    }
    at::where_out(bucket.q, finite, bucket.q, attempt.before);
  }
}

inline StateDict PowerSgdEngine::save(std::vector<NamedTensor> const& parameters) const {
  StateDict saved("name");
  auto const number = [&](char const* name, std::int64_t value) { saved.insert(name, torch::tensor(value)); };
  number("iter", iter);
  number("random_draws", seeds.draws());
  number("total_numel_before_compression", stats.numel_before_compression);
  number("total_numel_after_compression", stats.numel_after_compression);
  for (auto const& [name, tensor, sparse] : distinct(parameters, {})) {
    auto const found = memory.kept().find(tensor.unsafeGetTensorImpl());
    if (found == memory.kept().end()) continue;
    if (found->second.error.defined()) saved.insert("error_dict." + name, found->second.error);
    if (found->second.q.defined()) saved.insert("q_memory_dict." + name, found->second.q);
  }
  return saved;
}

inline void PowerSgdEngine::load(std::vector<NamedTensor> const& parameters, StateDict const& saved) {
  auto const refuse = [](std::string const& what) {
    throw CheckpointError(sentence("train", "this state is not of such a power_sgd: " + what,
                                   "load the state of the same model and options"));
  };
  std::size_t used = 0;
  auto const number = [&](std::string const& name) {
    auto const* value = saved.find(name);
    if (!value || !value->defined() || value->numel() != 1) refuse(name + " is missing or not one number");
    ++used;
    return value->item<std::int64_t>();
  };
  auto const tensor_of = [&](std::string const& name, std::vector<std::int64_t> const& shape) {
    auto const* value = saved.find(name);
    if (!value) return torch::Tensor();
    if (!value->defined() || value->sizes() != c10::IntArrayRef(shape)) refuse(name + " has another shape");
    ++used;
    return value->detach().clone();
  };

  auto const steps = number("iter"), draws = number("random_draws");
  comm_hooks::CompressionStats const counts{.numel_before_compression = number("total_numel_before_compression"),
                                            .numel_after_compression = number("total_numel_after_compression")};
  if (steps < 0 || draws < 0) refuse("it counts backwards");
  std::unordered_map<c10::TensorImpl const*, PowerSgdKept> kept;
  for (auto const& [name, tensor, sparse] : distinct(parameters, {})) {
    auto const [rows, columns, rank] = memory.shape_of(tensor);
    if (rank == 0) continue;
    PowerSgdKept own;
    if (options.use_error_feedback) own.error = tensor_of("error_dict." + name, tensor.sizes().vec());
    if (options.warm_start) own.q = tensor_of("q_memory_dict." + name, {columns, rank});
    if (options.use_error_feedback && options.warm_start && own.error.defined() != own.q.defined())
      refuse("of " + name + " it has the error or the factor, not both");
    if (own.error.defined() || own.q.defined()) kept[tensor.unsafeGetTensorImpl()] = std::move(own);
  }
  if (used != saved.size())
    refuse("it has " + std::to_string(saved.size() - used) + " entries of parameters that are not compressed here");

  iter = steps;
  stats = counts;
  seeds = RandomStateSeeds(options.random_seed);
  seeds.skip(draws);
  memory.replace(std::move(kept));
}

}  // namespace pardl::inline PARDL_ABI::detail
