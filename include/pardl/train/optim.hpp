// SPDX-License-Identifier: MIT
/// \file   Stochastic gradient descent in one fused pass over parameters, gradients and momentum.
/// \layer  train (torch only).
///
/// The trajectory is torch.optim.SGD's. With fused = true (the default) it is that of SGD(fused=True): the same kernels
/// in the same order, bit for bit. With fused = false it is that of SGD(foreach=False), and so of foreach=True, bit for
/// bit. The two differ from each other in last bits only (the fused kernel uses multiply-add). Differences from
/// SGD(fused=True), all of them where that one goes wrong:
///   - half and bfloat16 parameters on the CPU take the per-tensor operations: LibTorch 2.11's fused CPU kernel leaves
///   most
///     such parameters as they were;
///   - a gradient whose strides are not its parameter's is brought to them first: the fused CPU kernel does not look at
///   strides, and
///     would pair values of different places, say of a channels_last parameter;
///   - when the very first step overflows, that kernel leaves the momentum buffer unwritten and reads it at the next
///   step. Here the
///     first step that counts is the first that was not skipped.
/// Over ranks: every rank steps by itself, with the gradients that DistributedDataParallel made equal.
#pragma once

#include <ATen/Functions.h>
#include <ATen/ScalarOps.h>
#include <torch/ordered_dict.h>
#include <torch/types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/train/clip_grad.hpp"  // IWYU pragma: export: clipping belongs to the step
#include "pardl/train/optimizer.hpp"  // IWYU pragma: export
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::optim {

struct SGDOptions {
  double lr = 1e-3;         ///< learning rate, zero or more
  double momentum = 0;      ///< share of the last direction that is kept; 0: no momentum, no buffer
  double dampening = 0;     ///< share of the gradient that is left out of the momentum, from the second step on
  double weight_decay = 0;  ///< L2 penalty, added to the gradient
  bool nesterov = false;    ///< look ahead; needs momentum and no dampening
  bool maximize = false;    ///< climb instead of descend
  bool fused = true;        ///< one kernel per device and dtype; false: one small operation after the other
};

/// Parameters with settings of their own.
struct SGDGroup {
  std::vector<torch::Tensor> params;
  SGDOptions options{};
};

/// SGD over one or several groups of parameters. Models fused_optimizer.
class SGD {
 public:
  /// \throws ConfigError for settings that cannot be right, no parameters, one parameter twice, or one that cannot be
  /// trained.
  explicit SGD(std::vector<torch::Tensor> params, SGDOptions options = {})
      : SGD(std::vector<SGDGroup>{{std::move(params), options}}) {}

  explicit SGD(std::vector<SGDGroup> groups);

  /// All parameters, group after group.
  [[nodiscard]] std::vector<torch::Tensor> const& parameters() const noexcept { return parameters_; }

  /// One step along the gradients that are there; a parameter without one stays as it is. Never waits for the device.
  /// \throws ConfigError for a sparse gradient.
  void step() { step_groups({}, {}); }

  /// One step under a loss scale: gradients are divided by grad_scale (unless it is undefined) and keep the quotient;
  /// nothing at all changes if found_inf is 1. Both are float32 tensors of one element. GradScaler::step calls this.
  /// Waits for the device only with fused = false on CUDA.
  void step(torch::Tensor const& grad_scale, torch::Tensor const& found_inf) { step_groups(grad_scale, found_inf); }

  /// Forgets the gradients; or, with set_to_none = false, keeps their memory and fills it with zeros.
  void zero_grad(bool set_to_none = true);

  /// The rate of one group.
  [[nodiscard]] double lr(std::size_t group = 0) const { return options(group).lr; }
  /// Sets the rate of all groups. \throws ConfigError if it is negative or not a number.
  void set_lr(double lr) {
    for (std::size_t g = 0; g < groups_.size(); ++g) set_lr(lr, g);
  }
  /// Sets the rate of one group.
  void set_lr(double lr, std::size_t group);
  /// Sets the momentum of all groups, for schedules that move it (OneCycle::momentum).
  /// \throws ConfigError if it is negative or not a number, or zero with nesterov.
  void set_momentum(double momentum);

  [[nodiscard]] std::size_t groups() const noexcept { return groups_.size(); }
  /// \throws ConfigError if there is no such group.
  [[nodiscard]] SGDOptions const& options(std::size_t group = 0) const {
    if (group >= groups_.size())
      throw ConfigError(sentence(
          "train",
          "SGD has " + std::to_string(groups_.size()) + " parameter groups, no number " + std::to_string(group),
          "count from 0"));
    return groups_[group].options;
  }
  /// Whether GradScaler may leave scale and overflow to step(grad_scale, found_inf).
  [[nodiscard]] bool fused() const noexcept { return fused_; }

  /// Momentum buffers and settings, by the names of Python's state_dict joined with dots: `state.3.momentum_buffer`
  /// (parameters counted over all groups), `param_groups.0.lr` as float64 tensors without dimensions. The buffers are
  /// this optimizer's own, not copies. Waits for the device only after a scaled first step with dampening.
  [[nodiscard]] torch::OrderedDict<std::string, torch::Tensor> state_dict() const;

  /// Takes over copies of the buffers, and all settings except `fused`, which says how this object computes.
  /// \throws CheckpointError, and changes nothing, if a key is missing or unknown, or a buffer's shape is not its
  /// parameter's.
  void load_state_dict(torch::OrderedDict<std::string, torch::Tensor> const& state);

 private:
  /// What momentum needs for one parameter. `started` exists only while it is up to the device whether any step has
  /// counted yet: with dampening the first one that counts must take the gradient undamped. Parameters that began
  /// together share it.
  struct Momentum {
    torch::Tensor buffer;
    torch::Tensor started;
  };
  /// What one call of the fused kernel takes.
  struct Bucket {
    torch::Device device;
    torch::ScalarType dtype;
    torch::Tensor started;
    bool first = false;
    std::vector<torch::Tensor> params, grads, buffers;
  };
  struct Group {
    SGDOptions options;
    std::size_t begin, end;  // a range of parameters_ and momentum_
  };

  static void check(SGDOptions const& options);
  void step_groups(torch::Tensor const& grad_scale, torch::Tensor const& found_inf);
  void step_fused(SGDOptions const& options, std::size_t index, torch::Tensor const& grad, bool gated,
                  std::vector<Bucket>& buckets);
  void step_plain(SGDOptions const& options, std::size_t index, torch::Tensor grad, torch::Tensor const& grad_scale);
  static void launch(SGDOptions const& options, Bucket& bucket, torch::Tensor const& grad_scale,
                     torch::Tensor const& found_inf);

  std::vector<torch::Tensor> parameters_;
  std::vector<Momentum> momentum_;
  std::vector<Group> groups_;
  bool fused_ = true;
};

inline SGD::SGD(std::vector<SGDGroup> groups) {
  for (auto& group : groups) {
    check(group.options);
    auto const begin = parameters_.size();
    for (auto& parameter : group.params) {
      auto const where = "parameter " + std::to_string(parameters_.size());
      if (!parameter.defined()) throw ConfigError(sentence("train", where + " of SGD is undefined", "leave it out"));
      if (!parameter.is_leaf())
        throw ConfigError(sentence("train", where + " of SGD is the result of a computation",
                                   "pass the leaves, as model.parameters() does"));
      if (!at::isFloatingType(parameter.scalar_type()) || !parameter.is_non_overlapping_and_dense())
        throw ConfigError(sentence("train", where + " of SGD is not a dense floating-point tensor",
                                   "leave it out, or make it contiguous"));
      for (auto const& other : parameters_)
        if (other.is_same(parameter))
          throw ConfigError(sentence("train", where + " of SGD was given before", "give each parameter once"));
      parameters_.push_back(std::move(parameter));
    }
    groups_.push_back({group.options, begin, parameters_.size()});
    fused_ = fused_ && group.options.fused;
  }
  if (parameters_.empty())
    throw ConfigError(sentence("train", "SGD was given no parameters", "pass model.parameters()"));
  momentum_.resize(parameters_.size());
}

inline void SGD::check(SGDOptions const& options) {
  auto const require = [](bool fine, std::string const& what, char const* remedy) {
    if (!fine) throw ConfigError(sentence("train", "SGD with " + what, remedy));
  };
  require(options.lr >= 0, "lr " + std::to_string(options.lr), "it is zero or more");
  require(options.momentum >= 0, "momentum " + std::to_string(options.momentum), "it is zero or more");
  require(options.weight_decay >= 0, "weight_decay " + std::to_string(options.weight_decay), "it is zero or more");
  require(!std::isnan(options.dampening), "dampening NaN", "0 is usual");
  require(!options.nesterov || (options.momentum > 0 && options.dampening == 0),
          "nesterov but no momentum, or with dampening", "give it momentum above 0 and leave dampening at 0");
}

inline void SGD::set_lr(double lr, std::size_t group) {
  if (!(lr >= 0)) throw ConfigError(sentence("train", "SGD with lr " + std::to_string(lr), "it is zero or more"));
  (void)options(group);
  groups_[group].options.lr = lr;
}

inline void SGD::set_momentum(double momentum) {
  for (auto const& group : groups_) {
    auto options = group.options;
    options.momentum = momentum;
    check(options);
  }
  for (auto& group : groups_) group.options.momentum = momentum;
}

inline void SGD::zero_grad(bool set_to_none) {
  torch::NoGradGuard const no_grad;
  std::vector<detail::TensorBucket> buckets;
  for (auto& parameter : parameters_) {
    auto& grad = parameter.mutable_grad();
    if (!grad.defined()) continue;
    if (set_to_none) {
      grad.reset();
    } else {
      // As Python: what the gradient was computed from (create_graph) is let go.
      if (grad.grad_fn())
        grad.detach_();
      else
        grad.requires_grad_(false);
      if (grad.is_sparse())
        grad.zero_();
      else
        detail::add_to_bucket(buckets, grad);
    }
  }
  for (auto& bucket : buckets) at::_foreach_zero_(bucket.tensors);
}

inline void SGD::step_groups(torch::Tensor const& grad_scale, torch::Tensor const& found_inf) {
  torch::NoGradGuard const no_grad;
  for (auto const& parameter : parameters_)  // looked at first, so that nothing is half done
    if (auto const& grad = parameter.grad(); grad.defined() && grad.is_sparse())
      throw ConfigError(sentence("train", "pardl::optim::SGD met a sparse gradient",
                                 "use torch::optim::SGD for such parameters, or dense embeddings"));
  std::optional<bool> skip;  // read at most once, and only where no fused kernel can
  for (auto const& group : groups_) {
    std::vector<Bucket> buckets;
    for (auto i = group.begin; i < group.end; ++i) {
      auto const& parameter = parameters_[i];
      auto const& grad = parameter.grad();
      if (!grad.defined()) continue;
      bool const small = parameter.is_cpu() && at::isReducedFloatingType(parameter.scalar_type());
      if (group.options.fused && !small) {
        step_fused(group.options, i, grad, found_inf.defined(), buckets);
      } else {
        if (!skip) skip = found_inf.defined() && found_inf.item<float>() != 0;
        if (!*skip) step_plain(group.options, i, grad, grad_scale);
      }
    }
    for (auto& bucket : buckets) {
      launch(group.options, bucket, grad_scale, found_inf);
      // Without a flag the step was taken: from here on everybody knows.
      if (bucket.started.defined() && !found_inf.defined())
        for (auto i = group.begin; i < group.end; ++i)
          if (momentum_[i].started.is_same(bucket.started)) momentum_[i].started.reset();
    }
  }
}

/// Puts a parameter into the bucket of its kind.
inline void SGD::step_fused(SGDOptions const& options, std::size_t index, torch::Tensor const& grad, bool gated,
                            std::vector<Bucket>& buckets) {
  auto const& parameter = parameters_[index];
  auto& momentum = momentum_[index];
  bool const fresh = options.momentum != 0 && !momentum.buffer.defined();
  // mu * 0 + g is g: without dampening a buffer of zeros needs no first step, and a skipped step leaves it one of
  // zeros.
  bool const first = fresh && options.dampening != 0;
  if (fresh) momentum.buffer = at::zeros_like(parameter);

  Bucket* bucket = nullptr;
  for (auto& candidate : buckets)
    if (candidate.device == parameter.device() && candidate.dtype == parameter.scalar_type() &&
        candidate.first == first && (first || candidate.started.is_same(momentum.started)))
      bucket = &candidate;
  if (!bucket) {
    bucket =
        &buckets.emplace_back(Bucket{parameter.device(), parameter.scalar_type(), momentum.started, first, {}, {}, {}});
    if (first && gated) bucket->started = at::zeros({}, parameter.options().dtype(at::kFloat).requires_grad(false));
  }
  if (first) momentum.started = bucket->started;
  bucket->params.push_back(parameter);
  bucket->grads.push_back(grad);
  if (options.momentum != 0) bucket->buffers.push_back(momentum.buffer);
}

inline void SGD::launch(SGDOptions const& options, Bucket& bucket, torch::Tensor const& grad_scale,
                        torch::Tensor const& found_inf) {
  std::vector<std::pair<std::size_t, torch::Tensor>> strayed;
  for (std::size_t i = 0; i < bucket.grads.size(); ++i)
    if (auto& grad = bucket.grads[i]; grad.strides() != bucket.params[i].strides()) {
      auto const& param = bucket.params[i];
      bool same_order = true;  // strides of dimensions of one element mean nothing, and often differ (1x1 convolutions)
      for (std::int64_t d = 0; d < param.dim(); ++d)
        same_order = same_order && (param.size(d) == 1 || grad.stride(d) == param.stride(d));
      if (!same_order) strayed.emplace_back(i, grad);
      grad = same_order ? grad.as_strided(param.sizes(), param.strides()) : at::empty_like(param).copy_(grad);
    }
  auto const there = [&](torch::Tensor const& flag) -> std::optional<torch::Tensor> {
    if (!flag.defined()) return std::nullopt;
    return flag.to(bucket.device, /*non_blocking=*/true);
  };
  auto const call = [&](bool first, std::optional<torch::Tensor> const& skip) {
    at::_fused_sgd_(bucket.params, bucket.grads, bucket.buffers, options.weight_decay, options.momentum, options.lr,
                    options.dampening, options.nesterov, options.maximize, first, there(grad_scale), skip);
  };
  auto const skip = there(found_inf);
  if (bucket.started.defined()) {
    // Only the device knows whether a step has counted yet. So both kinds of step are launched, and each is told to
    // skip where the other is right: no wait, at the price of a launch that returns at once.
    auto const inf = skip ? *skip : at::zeros_like(bucket.started);
    auto const was_started = bucket.started.clone();
    auto const not_started = 1 - was_started;
    bucket.started.copy_(at::maximum(was_started, 1 - inf));
    call(true, at::maximum(inf, was_started));
    call(false, at::maximum(inf, not_started));
  } else {
    call(bucket.first, skip);
  }
  if (grad_scale.defined())
    for (auto& [i, grad] : strayed) grad.copy_(bucket.grads[i]);
}

/// torch.optim.SGD(foreach=False), operation for operation. The step is known to count.
inline void SGD::step_plain(SGDOptions const& options, std::size_t index, torch::Tensor grad,
                            torch::Tensor const& grad_scale) {
  auto& parameter = parameters_[index];
  auto& momentum = momentum_[index];
  if (grad_scale.defined()) grad.div_(grad_scale.to(grad.device(), /*non_blocking=*/true));
  if (options.maximize) grad = grad.neg();
  if (options.weight_decay != 0) grad = grad.add(parameter, options.weight_decay);
  if (options.momentum != 0) {
    // As a wrapped number: mul_(Scalar) rounds the scalar to bfloat16 first, which Python's mul_ does not.
    auto const kept = at::native::wrapped_scalar_tensor(options.momentum);
    if (!momentum.buffer.defined())
      momentum.buffer = grad.detach().clone();
    else
      momentum.buffer.mul_(kept).add_(grad, 1 - options.dampening);
    grad = options.nesterov ? grad.add(momentum.buffer, options.momentum) : momentum.buffer;
  }
  parameter.add_(grad, -options.lr);
}

}  // namespace pardl::inline PARDL_ABI::optim

namespace pardl::inline PARDL_ABI::detail {

/// Visits the settings that a state holds, each under Python's name. Options may be const.
template <class Options, class F>
void each_sgd_setting(Options& options, F&& visit) {
  visit("lr", options.lr);
  visit("momentum", options.momentum);
  visit("dampening", options.dampening);
  visit("weight_decay", options.weight_decay);
  visit("nesterov", options.nesterov);
  visit("maximize", options.maximize);
}

inline std::string buffer_key(std::size_t parameter) {
  return "state." + std::to_string(parameter) + ".momentum_buffer";
}

}  // namespace pardl::inline PARDL_ABI::detail

namespace pardl::inline PARDL_ABI::optim {

inline torch::OrderedDict<std::string, torch::Tensor> SGD::state_dict() const {
  torch::OrderedDict<std::string, torch::Tensor> state;
  for (std::size_t i = 0; i < momentum_.size(); ++i) {
    auto const& [buffer, started] = momentum_[i];
    bool const counts = buffer.defined() && (!started.defined() || started.item<float>() != 0);
    if (counts) state.insert(detail::buffer_key(i), buffer);
  }
  for (std::size_t g = 0; g < groups_.size(); ++g)
    detail::each_sgd_setting(groups_[g].options, [&](char const* name, auto value) {
      state.insert("param_groups." + std::to_string(g) + "." + name,
                   torch::tensor(static_cast<double>(value), torch::kFloat64));
    });
  return state;
}

inline void SGD::load_state_dict(torch::OrderedDict<std::string, torch::Tensor> const& state) {
  torch::NoGradGuard const no_grad;
  auto const refuse = [](std::string const& what) {
    throw CheckpointError(sentence("train", "this state is not of such an SGD: " + what,
                                   "load the state of an optimizer with the same parameters and groups"));
  };
  std::size_t used = 0;
  auto groups = groups_;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    detail::each_sgd_setting(groups[g].options, [&](char const* name, auto& setting) {
      auto const key = "param_groups." + std::to_string(g) + "." + name;
      auto const* value = state.find(key);
      if (!value) refuse(key + " is missing");
      if (!value->defined() || value->numel() != 1) refuse(key + " is not one number");
      setting = static_cast<std::remove_reference_t<decltype(setting)>>(value->item<double>());
      ++used;
    });
    try {
      check(groups[g].options);
    } catch (ConfigError const& error) {
      refuse(error.what());
    }
  }
  std::vector<Momentum> momentum(parameters_.size());
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    auto const* buffer = state.find(detail::buffer_key(i));
    if (!buffer) continue;
    if (!buffer->defined() || buffer->sizes() != parameters_[i].sizes())
      refuse(detail::buffer_key(i) + " has another shape than its parameter");
    momentum[i].buffer = at::empty_like(parameters_[i]).copy_(*buffer);
    ++used;
  }
  if (used != state.size())
    for (auto const& item : state)
      if (item.key().rfind("param_groups.", 0) != 0 && item.key().rfind("state.", 0) != 0)
        refuse("it has " + item.key());
  if (used != state.size()) refuse("it has more groups or parameters");
  momentum_ = std::move(momentum);
  groups_ = std::move(groups);
}

static_assert(fused_optimizer<SGD>);

}  // namespace pardl::inline PARDL_ABI::optim
