// SPDX-License-Identifier: MIT
/// \file   PowerSGD: gradients sent as two narrow factors each, with what they leave out sent later.
/// \layer  train.
///
/// Vogels, Karimireddy & Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization",
/// NeurIPS 2019. A gradient of n x m becomes P [n, r] and Q [m, r] by one step of power iteration that all ranks take
/// together, and every rank goes on with P Q^T, the mean's best directions of late. Options, random start and order of
/// operations are those of torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook.
/// ```
/// auto power_sgd = pardl::comm_hooks::power_sgd({.matrix_approximation_rank = 2, .start_powerSGD_iter = 500});
/// model.register_comm_hook(power_sgd);                                  // or fp16_compress(power_sgd)
/// ...
/// pardl::save_tensors(name_of_this_rank, power_sgd.state_dict(net));     // errors differ from rank to rank
/// ```
/// Differences from PyTorch, all of them where that one goes wrong or gives up:
///   - a gradient that is sent whole is divided before it is summed, as all_reduce does, and owes nothing afterwards.
///   There each rank keeps its distance from the mean as an error: it averages out, but grows, and with it the
///   rounding;
///   - a layer whose gradient is all zeros once (no rank has a sample for it) goes on with the directions it had. There
///   its columns are divided by a norm of 0, or stay 0 for good with an epsilon;
///   - a step whose gradients overflow, as a loss scaler's first ones do, reaches the scaler as NaN and leaves errors
///   and factors as they were. There they are NaN from then on;
///   - values belong to parameters, not to buckets: a run goes on from a checkpoint with its first step, whatever the
///   buckets;
///   - every all-reduce is started from backward's own thread, so several buckets over Gloo keep one order on all
///   ranks.
/// Left out: batched_powerSGD_hook, which flattens whole buckets, and the log: ask compression_stats().
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/comm_hooks.hpp"
#include "pardl/train/detail/hook_parts.hpp"
#include "pardl/train/detail/model_state.hpp"
#include "pardl/train/detail/orthogonalize.hpp"
#include "pardl/train/detail/power_sgd_memory.hpp"
#include "pardl/train/module_like.hpp"
#include "pardl/train/state_dict.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::comm_hooks {

/// Equal on all ranks. PyTorch: PowerSGDState.
struct PowerSgdOptions {
  std::int64_t matrix_approximation_rank = 1;  ///< r, columns of P and Q; 1 to 4 are usual, more err less
  std::int64_t start_powerSGD_iter = 1000;     ///< steps of plain all-reduce before; a tenth of all is usual
  double min_compression_rate = 2;             ///< a gradient is sent whole unless (n + m) r times this is below n m
  bool use_error_feedback = true;              ///< what was left out is added to the next step's gradient
  bool warm_start = true;                      ///< Q starts from the step before, not from random numbers
  double orthogonalization_epsilon = 0;        ///< added to norms before Gram-Schmidt divides by them
  std::uint32_t random_seed = 0;               ///< of the first Q
  bool batch_tensors_with_same_shape = false;  ///< one product for all gradients of a shape; copies them
};

struct CompressionStats {
  double compress_rate = 0;                   ///< the one below over the other; 0 before compression has begun
  std::int64_t numel_before_compression = 0;  ///< elements that all-reduce would have sent since then
  std::int64_t numel_after_compression = 0;   ///< elements that were sent
};

/// The hook, and the handle of what it keeps: copies share it. One for each model. Not thread-safe: ask between steps.
///
/// \cost for a bucket three all-reduces: its gradients that are sent whole, all P, all Q; r (n + m) elements for one of
/// n x m that is compressed. Backward waits for the last two on the CPU; on CUDA only a stream of the hook's own does.
/// 3 n m r multiply-adds for each gradient, twice its size in memory with error feedback (half of it for good).
class PowerSgd {
 public:
  static constexpr bool divides = true;

  /// \throws ConfigError  for options that cannot be right.
  explicit PowerSgd(PowerSgdOptions options = {}) : state_(std::make_shared<State>(options)) {}

  /// A communication hook. Every rank must call it with the same bucket. \throws ConfigError for sparse gradients.
  TensorFuture operator()(ProcessGroup const& world, c10d::GradBucket& bucket) const {
    detail::require_dense(world, bucket, "power_sgd");
    if (state_->iter < state_->options.start_powerSGD_iter) {
      state_->iter += bucket.isLast();
      return AllReduce{}(world, bucket);
    }
    detail::BucketParts const parts{.index = bucket.getIndex(),
                                    .last = bucket.isLast(),
                                    .buffer = bucket.getBuffer(),
                                    .gradients = bucket.getGradients(),
                                    .parameters = bucket.getParameters()};
    return detail::beside_backward(parts.buffer,
                                   [parts, world, state = state_] { return state->reduce(world, parts); });
  }

  [[nodiscard]] PowerSgdOptions const& options() const noexcept { return state_->options; }
  /// Steps so far, the plain ones too. PyTorch: PowerSGDState.iter.
  [[nodiscard]] std::int64_t iter() const noexcept { return state_->iter; }
  [[nodiscard]] CompressionStats compression_stats() const noexcept {
    auto stats = state_->stats;
    if (stats.numel_after_compression > 0)
      stats.compress_rate =
          static_cast<double>(stats.numel_before_compression) / static_cast<double>(stats.numel_after_compression);
    return stats;
  }

  /// What goes on: `iter`, counts, and of each compressed parameter `error_dict.NAME` in its shape and
  /// `q_memory_dict.NAME` [columns, r]. The errors are this rank's own, so every rank saves a file of its own. The
  /// tensors share memory with the hook's: clone() what shall stay as it is. Local.
  /// \param module  the one that is trained, wrapped or not; it gives the names.
  template <class M>
  [[nodiscard]] StateDict state_dict(M& module) const {
    static_assert(module_like<M>, "pardl::comm_hooks::PowerSgd::state_dict needs the module that is trained.");
    return state_->save(detail::all_parameters(detail::contained(module)));
  }
  /// Takes over copies of a state. Every rank must load its own, of the same step, before the next backward. The next
  /// steps are then those that would have followed, bit for bit where sums are. Buckets, world and batching may differ.
  /// \throws CheckpointError, and changes nothing, where a key is missing or unknown, or a shape does not fit.
  template <class M>
  void load_state_dict(M& module, StateDict const& state) {
    static_assert(module_like<M>, "pardl::comm_hooks::PowerSgd::load_state_dict needs the module that is trained.");
    state_->load(detail::all_parameters(detail::contained(module)), state);
  }

 private:
  struct State {
    explicit State(PowerSgdOptions const& given);
    torch::Tensor reduce(ProcessGroup const& world, detail::BucketParts const& parts);
    void draw(detail::PowerSgdBucket& bucket);
    void approximate(ProcessGroup const& world, detail::BucketParts const& parts, detail::PowerSgdBucket& bucket);
    [[nodiscard]] StateDict save(std::vector<detail::NamedTensor> const& parameters) const;
    void load(std::vector<detail::NamedTensor> const& parameters, StateDict const& saved);

    PowerSgdOptions options;
    std::int64_t iter = 0;
    CompressionStats stats;
    detail::RandomStateSeeds seeds;
    detail::PowerSgdMemory memory;
  };
  std::shared_ptr<State> state_;
};

static_assert(comm_hook<PowerSgd>);

/// PowerSGD as a hook. \throws ConfigError for options that cannot be right.
[[nodiscard]] inline PowerSgd power_sgd(PowerSgdOptions options = {}) { return PowerSgd(options); }

inline PowerSgd::State::State(PowerSgdOptions const& given)
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

inline torch::Tensor PowerSgd::State::reduce(ProcessGroup const& world, detail::BucketParts const& parts) {
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
  if (!bucket.groups.empty()) approximate(world, parts, bucket);
  summed.wait();
  std::int64_t at = 0;
  for (auto const member : bucket.whole) {
    auto const& gradient = parts.gradients[member];
    gradient.copy_(whole.narrow(0, at, gradient.numel()).view(gradient.sizes()));
    at += gradient.numel();
  }
  iter += parts.last;
  return parts.buffer;
}

/// New random factors, the same on every rank: drawn on the CPU, wherever they are used.
inline void PowerSgd::State::draw(detail::PowerSgdBucket& bucket) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seeds.next());
  for (auto const& group : bucket.groups)
    group.q.copy_(at::randn(group.q.sizes(), generator, at::TensorOptions(bucket.dtype)));
}

/// Replaces the gradients of all groups by P Q^T, and notes what that leaves out.
inline void PowerSgd::State::approximate(ProcessGroup const& world, detail::BucketParts const& parts,
                                         detail::PowerSgdBucket& bucket) {
  torch::Tensor owed;  // what this rank wanted to send
  if (options.use_error_feedback) owed = parts.buffer.add_(bucket.error).clone();

  std::vector<torch::Tensor> matrices;
  for (auto const& group : bucket.groups) {
    std::vector<torch::Tensor> members;
    auto const rows = group.p.size(1), columns = group.q.size(1);
    for (auto const member : group.members) members.push_back(parts.gradients[member].view({rows, columns}));
    matrices.push_back(members.size() == 1 ? members.front().unsqueeze(0) : at::stack(members));
  }

  if (!std::exchange(bucket.started, options.warm_start)) draw(bucket);
  for (std::size_t g = 0; g < matrices.size(); ++g) {
    auto& [members, p, q] = bucket.groups[g];
    detail::orthogonalize(q, options.orthogonalization_epsilon);
    at::bmm_out(p, matrices[g], q);
  }
  pardl::all_reduce(world, bucket.p).wait();  // a sum will do: its columns are made orthonormal
  auto const directions = options.warm_start ? bucket.q.clone() : torch::Tensor();
  for (std::size_t g = 0; g < matrices.size(); ++g) {
    auto& [members, p, q] = bucket.groups[g];
    detail::orthogonalize(p, options.orthogonalization_epsilon);
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

  // The same on all ranks, since all have the same Q; nobody waits for the device to tell.
  auto const finite = bucket.q.isfinite().all();
  if (options.use_error_feedback) {
    owed.sub_(parts.buffer);
    for (auto const member : bucket.whole) {
      auto const& gradient = parts.gradients[member];
      owed.narrow(0, gradient.storage_offset() - parts.buffer.storage_offset(), gradient.numel()).zero_();
    }
    at::where_out(bucket.error, finite, owed, bucket.error);
  }
  if (options.warm_start) {
    std::int64_t at = 0;
    for (auto& [members, p, q] : bucket.groups) {
      auto const before = directions.narrow(0, at, q.numel()).view(q.sizes());
      auto const heard = at::linalg_vector_norm(q, 2, {1}, /*keepdim=*/true).ne(0).logical_and_(finite);
      at::where_out(q, heard, q, before);
      at += q.numel();
    }
  }
}

inline StateDict PowerSgd::State::save(std::vector<detail::NamedTensor> const& parameters) const {
  StateDict saved("name");
  auto const number = [&](char const* name, std::int64_t value) { saved.insert(name, torch::tensor(value)); };
  number("iter", iter);
  number("random_draws", seeds.draws());
  number("total_numel_before_compression", stats.numel_before_compression);
  number("total_numel_after_compression", stats.numel_after_compression);
  for (auto const& [name, tensor, sparse] : detail::distinct(parameters, {})) {
    auto const found = memory.kept().find(tensor.unsafeGetTensorImpl());
    if (found == memory.kept().end()) continue;
    if (found->second.error.defined()) saved.insert("error_dict." + name, found->second.error);
    if (found->second.q.defined()) saved.insert("q_memory_dict." + name, found->second.q);
  }
  return saved;
}

inline void PowerSgd::State::load(std::vector<detail::NamedTensor> const& parameters, StateDict const& saved) {
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
  CompressionStats const counts{.numel_before_compression = number("total_numel_before_compression"),
                                .numel_after_compression = number("total_numel_after_compression")};
  if (steps < 0 || draws < 0) refuse("it counts backwards");
  std::unordered_map<c10::TensorImpl const*, detail::PowerSgdKept> kept;
  for (auto const& [name, tensor, sparse] : detail::distinct(parameters, {})) {
    auto const [rows, columns, rank] = memory.shape_of(tensor);
    if (rank == 0) continue;
    detail::PowerSgdKept own;
    if (options.use_error_feedback) own.error = tensor_of("error_dict." + name, tensor.sizes().vec());
    if (options.warm_start) own.q = tensor_of("q_memory_dict." + name, {columns, rank});
    if (own.error.defined() || own.q.defined()) kept[tensor.unsafeGetTensorImpl()] = std::move(own);
  }
  if (used != saved.size())
    refuse("it has " + std::to_string(saved.size() - used) + " entries of parameters that are not compressed here");

  iter = steps;
  stats = counts;
  seeds = detail::RandomStateSeeds(options.random_seed);
  seeds.skip(draws);
  memory.replace(std::move(kept));
}

}  // namespace pardl::inline PARDL_ABI::comm_hooks
