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
///   - a step whose gradients overflow, as a loss scaler's first ones do, reaches the scaler as such and leaves errors
///   and factors as they were, bucket by bucket: those of a bucket that is finite on all ranks go on. There they are
///   NaN from then on;
///   - values belong to parameters, not to buckets: a run goes on from a checkpoint with its first step, whatever the
///   buckets;
///   - every all-reduce is started from backward's own thread, so several buckets over Gloo keep one order on all
///   ranks; and without warm_start the end of one bucket does not clear what the next still needs.
/// As there, an error is in units of its step's loss scale: where a scaler changes that, what is owed counts double or
/// half for once. Left out: batched_powerSGD_hook, which flattens whole buckets, and the log: ask compression_stats().
#pragma once

#include <cstdint>
#include <memory>
#include <torch/csrc/distributed/c10d/comm.hpp>

#include "pardl/comm/process_group.hpp"
#include "pardl/train/comm_hooks.hpp"
#include "pardl/train/detail/hook_parts.hpp"
#include "pardl/train/detail/model_state.hpp"
#include "pardl/train/detail/power_sgd_engine.hpp"
#include "pardl/train/detail/power_sgd_memory.hpp"
#include "pardl/train/module_like.hpp"
#include "pardl/train/power_sgd_options.hpp"
#include "pardl/train/state_dict.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::comm_hooks {

/// The hook, and the handle of what it keeps: copies share it. One for each model. Not thread-safe: ask between steps.
///
/// \cost for a bucket three all-reduces: its gradients that are sent whole, all P, all Q; r (n + m) elements for one of
/// n x m that is compressed. Backward waits for the last two on the CPU; on CUDA only a stream of the hook's own does.
/// 3 n m r multiply-adds for each gradient, twice its size in memory with error feedback (half of it for good).
class PowerSgd {
 public:
  static constexpr bool divides = true;

  /// \throws ConfigError  for options that cannot be right.
  explicit PowerSgd(PowerSgdOptions options = {}) : engine_(std::make_shared<detail::PowerSgdEngine>(options)) {}

  /// A communication hook. Every rank must call it with the same bucket. \throws ConfigError for sparse gradients.
  TensorFuture operator()(ProcessGroup const& world, c10d::GradBucket& bucket) const {
    detail::require_dense(world, bucket, "power_sgd");
    if (engine_->iter < engine_->options.start_powerSGD_iter) {
      engine_->iter += bucket.isLast();
      return AllReduce{}(world, bucket);
    }
    detail::BucketParts const parts{.index = bucket.getIndex(),
                                    .last = bucket.isLast(),
                                    .buffer = bucket.getBuffer(),
                                    .gradients = bucket.getGradients(),
                                    .parameters = bucket.getParameters()};
    return detail::beside_backward(parts.buffer,
                                   [parts, world, engine = engine_] { return engine->reduce(world, parts); });
  }

  [[nodiscard]] PowerSgdOptions const& options() const noexcept { return engine_->options; }
  /// Steps so far, the plain ones too. PyTorch: PowerSGDState.iter.
  [[nodiscard]] std::int64_t iter() const noexcept { return engine_->iter; }
  [[nodiscard]] CompressionStats compression_stats() const noexcept {
    auto stats = engine_->stats;
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
    return engine_->save(detail::all_parameters(detail::contained(module)));
  }
  /// Takes over copies of a state. Every rank must load its own, of the same step, before the next backward. The next
  /// steps are then those that would have followed, bit for bit where sums are. Buckets, batching and memory formats
  /// may differ. Without warm_start each step draws bucket by bucket, and a new DistributedDataParallel has other
  /// buckets in its first step: then only the errors are those of a run that was not stopped. \throws CheckpointError,
  /// and changes nothing, where a number is missing, a key unknown, or a shape does not fit.
  template <class M>
  void load_state_dict(M& module, StateDict const& state) {
    static_assert(module_like<M>, "pardl::comm_hooks::PowerSgd::load_state_dict needs the module that is trained.");
    engine_->load(detail::all_parameters(detail::contained(module)), state);
  }

 private:
  std::shared_ptr<detail::PowerSgdEngine> engine_;
};

static_assert(comm_hook<PowerSgd>);

/// PowerSGD as a hook. \throws ConfigError for options that cannot be right.
[[nodiscard]] inline PowerSgd power_sgd(PowerSgdOptions options = {}) { return PowerSgd(options); }

}  // namespace pardl::inline PARDL_ABI::comm_hooks
