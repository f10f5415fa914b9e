// SPDX-License-Identifier: MIT
/// \file   Post-local SGD: gradients are averaged over all ranks at first, later models every few steps.
/// \layer  train.
///
/// Lin, Stich, Patel & Jaggi, "Don't Use Large Mini-Batches, Use Local SGD", ICLR 2020. A hook ends the averaging of
/// gradients, or confines it to a group such as a host; an averager brings the models together from that step on.
/// ```
/// auto host = *world.split(world.rank() / world.local_size());
/// model.register_comm_hook(pardl::comm_hooks::post_local_sgd({.start_localSGD_iter = 100, .subgroup = host}));
/// pardl::optim::PostLocalSgd sgd{pardl::optim::SGD{model.parameters(), {.lr = 0.1}},
///                                pardl::PeriodicModelAverager{world, {.period = 4, .warmup_steps = 100}}};
/// ```
/// Buffers, such as a batch norm's averages, are rank 0's at each forward all the same, unless `forward_sync_buffers`
/// of DistributedDataParallel is off. Between two averages each rank has a model of its own, and constructing
/// DistributedDataParallel gives all of them rank 0's (with `init_sync` off, each keeps what it has): so save where the
/// models are one, right after a step in which the averager brought all ranks together, or what the others learnt since
/// is lost. Going on from a checkpoint, give the hook the optimizer's count, which is `sgd.averager().step()`, as
/// `.iter`. PyTorch: post_localSGD_hook, PostLocalSGDOptimizer.
#pragma once

#include <torch/ordered_dict.h>
#include <torch/types.h>

#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/comm_hooks.hpp"
#include "pardl/train/model_averager.hpp"
#include "pardl/train/optimizer.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::comm_hooks {

/// PyTorch: PostLocalSGDState.
struct PostLocalSgdOptions {
  std::int64_t start_localSGD_iter = 0;       ///< steps with the gradients of all ranks; the averager's warmup_steps
  std::optional<ProcessGroup> subgroup = {};  ///< afterwards these average theirs; none: each rank has its own
  std::int64_t iter = 0;                      ///< steps done already
};

/// Made by post_local_sgd(). \cost Inner's over all ranks, later over the subgroup, or none.
template <comm_hook Inner>
class PostLocalSgd {
 public:
  static constexpr bool divides = true;
  /// \throws ConfigError for counts below 0.
  PostLocalSgd(PostLocalSgdOptions options, Inner inner) : options_(std::move(options)), inner_(std::move(inner)) {
    if (options_.start_localSGD_iter < 0 || options_.iter < 0)
      throw ConfigError(sentence("train",
                                 "post_local_sgd with start_localSGD_iter " +
                                     std::to_string(options_.start_localSGD_iter) + " and iter " +
                                     std::to_string(options_.iter),
                                 "both are 0 or more"));
  }

  TensorFuture operator()(ProcessGroup const& world, c10d::GradBucket& bucket) {
    bool const local = options_.iter >= options_.start_localSGD_iter;
    options_.iter += bucket.isLast();
    if (!local) return inner_(world, bucket);
    if (options_.subgroup) return inner_(*options_.subgroup, bucket);
    return completed(bucket.getBuffer());
  }

 private:
  PostLocalSgdOptions options_;
  Inner inner_;
};

static_assert(comm_hook<PostLocalSgd<AllReduce>>);

/// A hook that averages gradients over all ranks for a while, then over a subgroup or not at all. `inner` averages; it
/// must divide by itself, since DistributedDataParallel would divide the subgroup's sum by the number of all ranks.
/// \throws ConfigError for counts below 0.
template <class Inner = AllReduce>
[[nodiscard]] auto post_local_sgd(PostLocalSgdOptions options, Inner inner = {}) {
  static_assert(comm_hook<Inner>,
                "pardl::comm_hooks::post_local_sgd wraps a communication hook; say what a function returns by "
                "pardl::comm_hooks::returning_mean(f).");
  if constexpr (comm_hook<Inner>) {
    static_assert(
        Inner::divides,
        "pardl::comm_hooks::post_local_sgd wraps a hook that divides by itself, by the size of the group that "
        "it is called with; this one leaves a sum, which would be divided by the number of all ranks.");
    return PostLocalSgd<Inner>{std::move(options), std::move(inner)};
  }
}

}  // namespace pardl::inline PARDL_ABI::comm_hooks

namespace pardl::inline PARDL_ABI::optim {

/// An optimizer that also brings the ranks' models together, when its averager says. Models fused_optimizer, so that
/// GradScaler leaves skipping to it: every rank counts every step, whether its own gradients overflowed or not, and so
/// all meet at the same averages. (PyTorch's does not count a skipped step, and ranks that differ then wait for each
/// other forever.) With momentum each rank keeps its own.
template <class O, class A>
class PostLocalSgd {
  static_assert(optimizer<O>,
                "pardl::optim::PostLocalSgd wraps an optimizer: one with parameters(), step(), zero_grad(), lr() and "
                "set_lr(), or derived from torch::optim::Optimizer.");
  static_assert(model_averager<A>,
                "pardl::optim::PostLocalSgd needs a model averager, such as pardl::PeriodicModelAverager: one with "
                "average_parameters(parameters) -> bool, step() and set_step().");
  using State = torch::OrderedDict<std::string, torch::Tensor>;

 public:
  PostLocalSgd(O local, A averager) : local_(std::move(local)), averager_(std::move(averager)) {}

  /// The local step, then the averager's. Every rank must call it.
  void step() {
    local_.step();
    averager_.average_parameters(parameters());
  }
  /// The same under a loss scale; see fused_optimizer. Waits for the device where the local optimizer is not fused.
  void step(torch::Tensor const& grad_scale, torch::Tensor const& found_inf) {
    bool fused = false;
    if constexpr (fused_optimizer<O>)
      if (fused = local_.fused(); fused) local_.step(grad_scale, found_inf);
    if (!fused) {
      torch::NoGradGuard const no_grad;
      if (grad_scale.defined())
        for (auto const& parameter : parameters())
          if (auto const& grad = parameter.grad(); grad.defined()) grad.div_(grad_scale.to(grad.device()));
      if (!found_inf.defined() || found_inf.item<float>() == 0) local_.step();
    }
    averager_.average_parameters(parameters());
  }
  [[nodiscard]] bool fused() const noexcept { return true; }

  void zero_grad() { local_.zero_grad(); }
  [[nodiscard]] std::vector<torch::Tensor> parameters() { return parameters_of(local_); }
  [[nodiscard]] double lr() const {
    if constexpr (torch_optimizer<O>)
      return learning_rate(local_);
    else
      return local_.lr();
  }
  void set_lr(double lr) { set_learning_rate(local_, lr); }

  /// The optimizer of this rank.
  [[nodiscard]] O& local() noexcept { return local_; }
  [[nodiscard]] O const& local() const noexcept { return local_; }
  [[nodiscard]] A& averager() noexcept { return averager_; }
  [[nodiscard]] A const& averager() const noexcept { return averager_; }

  /// The local optimizer's state and, as `step`, the averager's count.
  [[nodiscard]] State state_dict() const
    requires requires(O const& local) {
      { local.state_dict() } -> std::same_as<State>;
    }
  {
    auto state = local_.state_dict();
    state.insert("step", torch::tensor(static_cast<std::int64_t>(averager_.step())));
    return state;
  }
  /// \throws CheckpointError, and changes nothing, where `step` is missing or the local optimizer refuses the rest.
  void load_state_dict(State const& state)
    requires requires(O& local) { local.load_state_dict(state); }
  {
    auto const* step = state.find("step");
    if (!step || !step->defined() || step->numel() != 1)
      throw CheckpointError(sentence("train", "this state is of no PostLocalSgd: step is missing",
                                     "load the state of a bare optimizer by local().load_state_dict()"));
    State rest;
    for (auto const& item : state)
      if (item.key() != "step") rest.insert(item.key(), item.value());
    local_.load_state_dict(rest);
    averager_.set_step(step->template item<std::int64_t>());
  }

 private:
  O local_;
  A averager_;
};

}  // namespace pardl::inline PARDL_ABI::optim
