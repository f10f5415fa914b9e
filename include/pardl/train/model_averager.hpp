// SPDX-License-Identifier: MIT
/// \file   Averages of the ranks' models every few steps, for training that does not meet at each.
/// \layer  train.
///
/// ```
/// pardl::PeriodicModelAverager averager{world, {.period = 4, .warmup_steps = 100}};
/// ... sgd.step(); averager.average_parameters(model.parameters());   // or let optim::PostLocalSgd do both
/// ```
/// PyTorch: torch.distributed.algorithms.model_averaging. Unlike there, what is averaged is every parameter that
/// requires a gradient, not every one that has one at the moment: ranks that differ in that would send each other
/// tensors of different sizes, and after zero_grad() nobody would send anything.
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/optimizer.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Replaces each parameter that requires a gradient by its mean over the ranks: divided, then summed. Every rank must
/// call it, with the same parameters. Strides and memory stay.
/// \cost one all-reduce of all parameters, one for each dtype; a copy of them while it lasts.
template <tensor_range R>
void average_parameters(ProcessGroup const& world, R&& parameters) {
  if (world.size() == 1) return;
  struct OfOneDtype {
    torch::ScalarType dtype;
    std::vector<torch::Tensor> members, flat;
    torch::Tensor sum;
    Work work;
  };
  torch::NoGradGuard const no_grad;
  std::vector<OfOneDtype> batches;
  for (torch::Tensor const& parameter : parameters) {
    if (!parameter.requires_grad() || parameter.numel() == 0) continue;
    OfOneDtype* batch = nullptr;
    for (auto& candidate : batches)
      if (candidate.dtype == parameter.scalar_type()) batch = &candidate;
    if (!batch) batch = &batches.emplace_back(OfOneDtype{parameter.scalar_type(), {}, {}, {}, {}});
    batch->members.push_back(parameter);
    batch->flat.push_back(parameter.detach().reshape(-1));
  }
  for (auto& batch : batches) {
    batch.sum = at::cat(std::exchange(batch.flat, {})).div_(world.size());
    batch.work = all_reduce(world, batch.sum);
  }
  for (auto& batch : batches) {
    batch.work.wait();
    std::int64_t at = 0;
    for (auto& member : batch.members) {
      member.copy_(batch.sum.narrow(0, at, member.numel()).view(member.sizes()));
      at += member.numel();
    }
  }
}

/// Called once after each step of an optimizer; says whether it averaged. step() counts the calls, and is what a
/// checkpoint keeps.
template <class A>
concept model_averager =
    std::move_constructible<A> && requires(A& averager, A const& fixed, std::vector<torch::Tensor> const& parameters) {
      { averager.average_parameters(parameters) } -> std::same_as<bool>;
      { fixed.step() } -> std::convertible_to<std::int64_t>;
      averager.set_step(std::int64_t{});
    };

struct PeriodicModelAveragerOptions {
  std::int64_t period = 0;        ///< steps from one average to the next, 1 or more; to be given
  std::int64_t warmup_steps = 0;  ///< steps without; the first after them is averaged. start_localSGD_iter of the hook
};

/// Averages over one group: at step warmup_steps, counted from 0, and every `period` steps from there.
class PeriodicModelAverager {
 public:
  /// Local. \throws ConfigError for a period below 1 or a warm-up below 0.
  PeriodicModelAverager(ProcessGroup world, PeriodicModelAveragerOptions options)
      : world_(std::move(world)), options_(options) {
    if (options.period < 1 || options.warmup_steps < 0)
      throw ConfigError(sentence("train",
                                 "PeriodicModelAverager with period " + std::to_string(options.period) +
                                     " and warmup_steps " + std::to_string(options.warmup_steps),
                                 "a period is 1 or more, a warm-up 0 or more"));
  }

  /// Every rank must call it after each step. \cost none, or that of pardl::average_parameters.
  template <tensor_range R>
  bool average_parameters(R&& parameters) {
    auto const since = step_++ - options_.warmup_steps;
    if (since < 0 || since % options_.period != 0) return false;
    pardl::average_parameters(world_, std::forward<R>(parameters));
    return true;
  }

  [[nodiscard]] PeriodicModelAveragerOptions const& options() const noexcept { return options_; }
  [[nodiscard]] std::int64_t step() const noexcept { return step_; }
  void set_step(std::int64_t step) noexcept { step_ = step; }

 private:
  ProcessGroup world_;
  PeriodicModelAveragerOptions options_;
  std::int64_t step_ = 0;
};

struct AveragingLevel {
  std::int64_t period = 0;  ///< steps
  int group_size = 0;       ///< ranks that average: neighbours, as many as divide the world
};

struct HierarchicalModelAveragerOptions {
  std::vector<AveragingLevel> levels{};  ///< periods and groups from small to large; the last group is the world
  std::int64_t warmup_steps = 0;         ///< steps without; periods count from step 0 all the same
};

/// Averages often over few ranks and seldom over many; where several periods divide a step, over the most (Wang et al.,
/// "Demystifying Why Local Aggregation Helps: Convergence Analysis of Hierarchical SGD", AAAI 2022).
class HierarchicalModelAverager {
 public:
  /// Every rank must call it. \throws ConfigError for levels that cannot be. \cost a split for each level but the last.
  HierarchicalModelAverager(ProcessGroup world, HierarchicalModelAveragerOptions options)
      : options_(std::move(options)) {
    auto const refuse = [&world](std::string const& what) {
      throw ConfigError(
          sentence("train", world.rank(), world.size(), "HierarchicalModelAverager with " + what,
                   "give levels from small to large whose groups divide the world, the last of them all of it"));
    };
    auto const& levels = options_.levels;
    if (levels.empty()) refuse("no levels");
    if (options_.warmup_steps < 0) refuse("warmup_steps " + std::to_string(options_.warmup_steps));
    for (std::size_t i = 0; i < levels.size(); ++i) {
      auto const [period, size] = levels[i];
      if (period <= (i == 0 ? 0 : levels[i - 1].period)) refuse("period " + std::to_string(period));
      if (size <= (i == 0 ? 0 : levels[i - 1].group_size) || world.size() % size != 0)
        refuse("groups of " + std::to_string(size));
    }
    if (levels.back().group_size != world.size()) refuse("no group of all ranks");
    for (std::size_t i = 0; i + 1 < levels.size(); ++i)
      groups_.push_back(*world.split(world.rank() / levels[i].group_size, world.rank()));
    groups_.push_back(std::move(world));
  }

  /// Every rank must call it after each step. \cost none, or that of pardl::average_parameters.
  template <tensor_range R>
  bool average_parameters(R&& parameters) {
    auto const step = step_++;
    if (step < options_.warmup_steps) return false;
    for (auto i = groups_.size(); i-- > 0;)
      if (step % options_.levels[i].period == 0) {
        pardl::average_parameters(groups_[i], std::forward<R>(parameters));
        return true;
      }
    return false;
  }

  [[nodiscard]] HierarchicalModelAveragerOptions const& options() const noexcept { return options_; }
  [[nodiscard]] std::int64_t step() const noexcept { return step_; }
  void set_step(std::int64_t step) noexcept { step_ = step; }

 private:
  HierarchicalModelAveragerOptions options_;
  std::vector<ProcessGroup> groups_;  ///< by level
  std::int64_t step_ = 0;
};

static_assert(model_averager<PeriodicModelAverager> && model_averager<HierarchicalModelAverager>);
static_assert(!model_averager<int>);

}  // namespace pardl::inline PARDL_ABI
