// SPDX-License-Identifier: MIT
/// \file   Mixed precision: beside Autocast, the GradScaler that keeps float16 gradients from vanishing.
/// \layer  train (comm only where gradients are sharded).
///
/// bfloat16 has float32's range and needs no scaler: give it {.enabled = false}, and the same program serves both.
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/loss_scale.hpp"
#include "pardl/train/autocast.hpp"  // IWYU pragma: export
#include "pardl/train/optimizer.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct GradScalerOptions {
  double init_scale = 65536;    ///< the first factor
  double growth_factor = 2;     ///< above 1: the factor's factor after growth_interval good steps
  double backoff_factor = 0.5;  ///< below 1: the factor's factor after an overflow
  int growth_interval = 2000;   ///< good steps in a row before the factor grows
  bool enabled = true;          ///< false: every call passes its argument through
};

/// Multiplies the loss so that float16 gradients do not vanish, divides the gradients again, skips the step if one
/// overflowed, and moves the factor: PyTorch's torch.amp.GradScaler, state for state. Per iteration:
///
///     scaler.scale(loss).backward();
///     scaler.step(sgd);             // or scaler.unscale_(sgd); clip_grad_norm_(...); scaler.step(sgd);
///     scaler.update();              // once, after the steps of all optimizers
///
/// The factor and its counter are device tensors, made by the first scale(). With a fused_optimizer no call waits for
/// the device except those that return a number. Optimizers are told apart by their address. Not thread-safe; a rank
/// each has its own.
///
/// Over ranks: behind DistributedDataParallel the gradients are equal, and so are the decisions, with no message. If
/// ranks hold different gradients (shards), give the group: each first look at an optimizer's gradients then is a
/// collective (an all-reduce of one number), and an overflow on one rank skips the step on all.
class GradScaler {
 public:
  /// \throws ConfigError for factors or an interval that cannot be right.
  explicit GradScaler(GradScalerOptions options = {});
  /// For gradients that differ between the ranks of `shards`.
  GradScaler(GradScalerOptions options, ProcessGroup shards) : GradScaler(options) { shards_ = std::move(shards); }
  GradScaler(GradScaler const&) = delete;
  GradScaler& operator=(GradScaler const&) = delete;
  GradScaler(GradScaler&&) = default;
  GradScaler& operator=(GradScaler&&) = default;

  /// The output times the factor, on the output's device.
  [[nodiscard]] torch::Tensor scale(torch::Tensor const& output);
  [[nodiscard]] std::vector<torch::Tensor> scale(std::vector<torch::Tensor> const& outputs);

  /// Divides the gradients of `optimizer` by the factor, now, so that they can be looked at or clipped before step().
  /// Once per step(); never waits for the device.
  /// \throws Error out of turn (before any scale(), twice, after step()), or for float16 gradients: keep the parameters
  /// in float32.
  template <class O>
  void unscale_(O& optimizer);

  /// Unscales, unless that was done, and steps if every gradient is finite. A step that overflowed is skipped; ask
  /// skipped(). \throws Error out of turn (before any scale(), twice before update()), or if no parameter has a
  /// gradient.
  template <class O>
  void step(O& optimizer);

  /// Ends the iteration: moves the factor by what the steps met.
  /// \throws Error before any scale(), or if no gradients were looked at since the last update().
  void update();
  /// Ends the iteration and sets the factor. \throws ConfigError unless it is a number above 0 that float32 can hold.
  void update(double new_scale);
  /// The same from a tensor of one element on the factor's kind of device, without gradient; its value is not checked.
  void update(torch::Tensor const& new_scale);

  /// Whether a step was skipped since the last update() or, right after one, in the iteration that it ended. What a
  /// schedule asks before it advances. Waits for the device if the optimizer was a fused one on a GPU.
  [[nodiscard]] bool skipped() const;

  /// The factor now; 1 if disabled. Waits for the device.
  [[nodiscard]] double get_scale() const {
    return !options_.enabled ? 1.0 : scale_.defined() ? scale_.item<double>() : options_.init_scale;
  }
  [[nodiscard]] double get_growth_factor() const noexcept { return options_.growth_factor; }
  [[nodiscard]] double get_backoff_factor() const noexcept { return options_.backoff_factor; }
  [[nodiscard]] int get_growth_interval() const noexcept { return options_.growth_interval; }
  /// \throws ConfigError, as the constructor.
  void set_growth_factor(double factor) { set(&GradScalerOptions::growth_factor, factor); }
  void set_backoff_factor(double factor) { set(&GradScalerOptions::backoff_factor, factor); }
  void set_growth_interval(int interval) { set(&GradScalerOptions::growth_interval, interval); }
  [[nodiscard]] bool is_enabled() const noexcept { return options_.enabled; }

  /// PyTorch's five entries: scale, growth_factor, backoff_factor, growth_interval, _growth_tracker; none if disabled.
  /// Call it after update(). Waits for the device.
  [[nodiscard]] std::map<std::string, double> state_dict() const;
  /// Takes those entries over; nothing happens if disabled.
  /// \throws CheckpointError, and changes nothing, if they are empty (a disabled scaler's), incomplete, or cannot be
  /// right.
  void load_state_dict(std::map<std::string, double> const& state);

 private:
  enum class Stage { ready, unscaled, stepped };
  struct PerOptimizer {
    Stage stage = Stage::ready;
    std::vector<std::pair<torch::Device, torch::Tensor>> found_inf;  // a flag for each device with gradients
    std::optional<bool> overflow;                                    // the same, once the host has read it
  };

  static void check(GradScalerOptions const& options);
  template <class T>
  void set(T GradScalerOptions::*member, T value) {
    auto options = options_;
    options.*member = value;
    check(options);
    options_ = options;
  }
  void require_scale(char const* call) const {
    if (!scale_.defined())
      throw Error(sentence("train", std::string("GradScaler::") + call + " before any scale()",
                           "call scaler.scale(loss).backward() first"));
  }
  void look_at(PerOptimizer& state, std::vector<torch::Tensor> parameters, torch::Tensor const& inverse,
               bool allow_half) const;
  [[nodiscard]] torch::Tensor combined(PerOptimizer const& state) const;
  [[nodiscard]] torch::Tensor combined() const;
  void finish();
  [[nodiscard]] std::optional<bool> known_overflow() const;

  GradScalerOptions options_;
  std::optional<ProcessGroup> shards_;
  torch::Tensor scale_;           // float32, no dimensions
  torch::Tensor growth_tracker_;  // int32, no dimensions
  std::int64_t init_growth_tracker_ = 0;
  std::map<void const*, PerOptimizer> optimizers_;
  torch::Tensor last_found_inf_;       // of the iteration that the last update() ended,
  std::optional<bool> last_overflow_;  // and the same where the host has read it
};

inline GradScaler::GradScaler(GradScalerOptions options) : options_(options) { check(options); }

/// \throws ConfigError (see LossScaleOptions: the automaton without tensors, whose rules these are).
inline void GradScaler::check(GradScalerOptions const& options) {
  validate(LossScaleOptions{.init_scale = options.init_scale,
                            .growth_factor = options.growth_factor,
                            .backoff_factor = options.backoff_factor,
                            .growth_interval = options.growth_interval});
}

inline torch::Tensor GradScaler::scale(torch::Tensor const& output) {
  if (!options_.enabled) return output;
  if (!scale_.defined()) {
    auto const there = torch::TensorOptions().device(output.device());
    scale_ = torch::full({}, options_.init_scale, there.dtype(torch::kFloat32));
    growth_tracker_ = torch::full({}, init_growth_tracker_, there.dtype(torch::kInt32));
  }
  return output * scale_.to(output.device(), /*non_blocking=*/true);
}

inline std::vector<torch::Tensor> GradScaler::scale(std::vector<torch::Tensor> const& outputs) {
  std::vector<torch::Tensor> scaled;
  scaled.reserve(outputs.size());
  for (auto const& output : outputs) scaled.push_back(scale(output));
  return scaled;
}

/// Multiplies the gradients by `inverse` and raises the flag of their device if one is not finite.
inline void GradScaler::look_at(PerOptimizer& state, std::vector<torch::Tensor> parameters,
                                torch::Tensor const& inverse, bool allow_half) const {
  torch::NoGradGuard const no_grad;
  struct Bucket {
    torch::Device device;
    torch::ScalarType dtype;
    std::vector<torch::Tensor> gradients;
  };
  std::vector<Bucket> buckets;
  for (auto& parameter : parameters)  // looked at first, so that nothing is half done
    if (!allow_half && parameter.grad().defined() && parameter.grad().scalar_type() == torch::kHalf)
      throw Error(sentence("train", "GradScaler cannot unscale float16 gradients",
                           "keep the parameters in float32 and let Autocast choose the type of operations"));
  for (auto& parameter : parameters) {
    auto& gradient = parameter.mutable_grad();
    if (!gradient.defined()) continue;
    // Adding up duplicate entries can overflow in float16 where each alone did not: the sums must be looked at.
    if (gradient.is_sparse() && gradient.scalar_type() == torch::kHalf) gradient = gradient.coalesce();
    auto const values = gradient.is_sparse() ? gradient._values() : gradient;
    auto bucket = buckets.begin();
    while (bucket != buckets.end() && (bucket->device != values.device() || bucket->dtype != values.scalar_type()))
      ++bucket;
    if (bucket == buckets.end()) bucket = buckets.insert(bucket, {values.device(), values.scalar_type(), {}});
    bucket->gradients.push_back(values);
  }
  std::vector<std::pair<torch::Device, torch::Tensor>> flags;
  for (auto& bucket : buckets) {
    auto flag = flags.begin();
    while (flag != flags.end() && flag->first != bucket.device) ++flag;
    if (flag == flags.end())
      flag = flags.insert(flag, {bucket.device, torch::zeros({}, torch::dtype(torch::kFloat32).device(bucket.device))});
    at::_amp_foreach_non_finite_check_and_unscale_(bucket.gradients, flag->second,
                                                   inverse.to(bucket.device, /*non_blocking=*/true));
  }
  state.found_inf = std::move(flags);
  if (shards_) {
    auto worst = combined(state);
    all_reduce(*shards_, worst, ReduceOp::max).wait();
    state.found_inf.clear();
    state.found_inf.emplace_back(worst.device(), worst);
  }
}

/// 1 if any device's flag is up, on the factor's device. PyTorch adds the flags up, and its fused kernels, which skip
/// at exactly 1, then step on the overflow of two devices at once; the greatest is what is meant.
inline torch::Tensor GradScaler::combined(PerOptimizer const& state) const {
  torch::NoGradGuard const no_grad;
  torch::Tensor worst;
  for (auto const& [device, flag] : state.found_inf) {
    auto here = flag.to(scale_.device(), /*non_blocking=*/true);
    worst = worst.defined() ? at::maximum(worst, here) : std::move(here);
  }
  return worst.defined() ? worst : at::zeros({}, scale_.options());
}

inline torch::Tensor GradScaler::combined() const {
  torch::NoGradGuard const no_grad;
  torch::Tensor worst;
  for (auto const& [address, state] : optimizers_) {
    if (state.found_inf.empty()) continue;
    auto here = combined(state);
    worst = worst.defined() ? at::maximum(worst, here) : std::move(here);
  }
  return worst;
}

template <class O>
void GradScaler::unscale_(O& optimizer) {
  static_assert(pardl::optimizer<O>,
                "pardl::GradScaler::unscale_ needs an optimizer: one with parameters(), step(), zero_grad(), lr() and "
                "set_lr(), or "
                "derived from torch::optim::Optimizer.");
  if (!options_.enabled) return;
  require_scale("unscale_");
  auto& state = optimizers_[&optimizer];
  if (state.stage == Stage::unscaled)
    throw Error(
        sentence("train", "GradScaler::unscale_ was called twice on this optimizer", "call it once before step()"));
  if (state.stage == Stage::stepped)
    throw Error(
        sentence("train", "GradScaler::unscale_ was called after step()", "call it between backward() and step()"));
  // The reciprocal in double, then rounded once: what PyTorch multiplies by.
  look_at(state, parameters_of(optimizer), scale_.to(torch::kFloat64).reciprocal().to(torch::kFloat32), false);
  state.stage = Stage::unscaled;
}

template <class O>
void GradScaler::step(O& optimizer) {
  static_assert(
      pardl::optimizer<O>,
      "pardl::GradScaler::step needs an optimizer: one with parameters(), step(), zero_grad(), lr() and set_lr(), or "
      "derived from torch::optim::Optimizer.");
  if (!options_.enabled) {
    optimizer.step();
    return;
  }
  require_scale("step");
  auto& state = optimizers_[&optimizer];
  if (state.stage == Stage::stepped)
    throw Error(
        sentence("train", "GradScaler::step was called twice on this optimizer", "call update() after each step()"));
  if constexpr (fused_optimizer<O>) {
    if (optimizer.fused()) {
      bool const scaled = state.stage == Stage::ready;
      if (scaled) look_at(state, parameters_of(optimizer), torch::ones_like(scale_), true);
      optimizer.step(scaled ? scale_ : torch::Tensor(), combined(state));
      state.stage = Stage::stepped;
      return;
    }
  }
  if (state.stage == Stage::ready) unscale_(optimizer);
  if (state.found_inf.empty())
    throw Error(sentence("train", "GradScaler::step found no gradient",
                         "call backward() before, and pass the trained parameters"));
  state.overflow = combined(state).template item<float>() != 0;
  if (!*state.overflow) optimizer.step();
  state.stage = Stage::stepped;
}

/// Whether any gradient overflowed, if the host has read that of all optimizers.
inline std::optional<bool> GradScaler::known_overflow() const {
  bool any = false;
  for (auto const& [address, state] : optimizers_) {
    if (state.found_inf.empty()) continue;
    if (!state.overflow) return std::nullopt;
    any = any || *state.overflow;
  }
  return any;
}

/// Keeps what skipped() may be asked for, and begins the next iteration.
inline void GradScaler::finish() {
  last_found_inf_ = combined();
  last_overflow_ = known_overflow();
  optimizers_.clear();
}

inline void GradScaler::update() {
  if (!options_.enabled) return;
  require_scale("update");
  auto const found_inf = combined();
  if (!found_inf.defined())
    throw Error(sentence("train", "GradScaler::update before any gradient was looked at", "call step() first"));
  at::_amp_update_scale_(scale_, growth_tracker_, found_inf, options_.growth_factor, options_.backoff_factor,
                         options_.growth_interval);
  finish();
}

inline void GradScaler::update(double new_scale) {
  if (!options_.enabled) return;
  require_scale("update");
  validate(LossScaleOptions{.init_scale = new_scale});
  scale_.fill_(new_scale);
  finish();
}

inline void GradScaler::update(torch::Tensor const& new_scale) {
  if (!options_.enabled) return;
  require_scale("update");
  if (!new_scale.defined() || new_scale.numel() != 1 || new_scale.requires_grad() ||
      new_scale.device().type() != scale_.device().type())
    throw ConfigError(sentence("train", "GradScaler::update with a tensor that cannot be the factor",
                               "pass one element without gradient on the loss's kind of device"));
  scale_.copy_(new_scale.reshape({}));
  finish();
}

inline bool GradScaler::skipped() const {
  if (!options_.enabled) return false;
  if (auto const known = optimizers_.empty() ? last_overflow_ : known_overflow()) return *known;
  auto const found_inf = optimizers_.empty() ? last_found_inf_ : combined();
  return found_inf.defined() && found_inf.item<float>() != 0;
}

inline std::map<std::string, double> GradScaler::state_dict() const {
  if (!options_.enabled) return {};
  auto const tracker = growth_tracker_.defined() ? growth_tracker_.item<std::int64_t>() : init_growth_tracker_;
  return {{"scale", get_scale()},
          {"growth_factor", options_.growth_factor},
          {"backoff_factor", options_.backoff_factor},
          {"growth_interval", static_cast<double>(options_.growth_interval)},
          {"_growth_tracker", static_cast<double>(tracker)}};
}

inline void GradScaler::load_state_dict(std::map<std::string, double> const& state) {
  if (!options_.enabled) return;
  if (state.empty())
    throw CheckpointError(sentence("train", "this GradScaler state is empty, as a disabled scaler's is",
                                   "load the state of an enabled one, or disable this one"));
  auto const entry = [&](char const* key) {
    auto const found = state.find(key);
    if (found == state.end())
      throw CheckpointError(
          sentence("train", std::string("this GradScaler state lacks ") + key, "load a complete one"));
    return found->second;
  };
  GradScalerOptions options{.init_scale = entry("scale"),
                            .growth_factor = entry("growth_factor"),
                            .backoff_factor = entry("backoff_factor"),
                            .growth_interval = static_cast<int>(entry("growth_interval")),
                            .enabled = true};
  auto const tracker = static_cast<std::int64_t>(entry("_growth_tracker"));
  try {
    check(options);
  } catch (ConfigError const& error) {
    throw CheckpointError(error.what());
  }
  options_ = options;
  init_growth_tracker_ = tracker;
  if (scale_.defined()) scale_.fill_(options.init_scale);
  if (growth_tracker_.defined()) growth_tracker_.fill_(tracker);
}

}  // namespace pardl::inline PARDL_ABI
