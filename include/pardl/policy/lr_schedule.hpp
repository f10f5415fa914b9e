// SPDX-License-Identifier: MIT
/// \file   Learning-rate schedules as pure functions of the step: factor(step), to be multiplied by the base rate.
/// \layer  policy (std only).
///
/// A schedule holds no optimizer and no counter, so resuming is calling it with another step, and every rank gets the
/// same rate. Step s is the s-th optimizer step from 0 on: the rate to set *before* that step. `warmup({…}) |
/// cosine({…})` runs the left one to its end, then the right one from its own step 0 (PyTorch's SequentialLR).
///
/// Equal to torch.optim.lr_scheduler: one-cycle, whose PyTorch form is closed too, within 1e-14 of the base rate; the
/// others within 1e-12 of it, because PyTorch multiplies its way from step to step and gathers rounding errors that a
/// closed form does not have.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <functional>
#include <numbers>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Step to factor, pure: the same step always gives the same factor. Models: all below, and a lambda.
template <class S>
concept lr_schedule = std::copy_constructible<S> && requires(S const& schedule, std::int64_t step) {
  { schedule(step) } -> std::convertible_to<double>;
};

/// A schedule with an end, after which another may begin. Models: Warmup, Cosine, OneCycle, Constant with steps.
template <class S>
concept finite_lr_schedule = lr_schedule<S> && requires(S const& schedule) {
  { schedule.steps() } -> std::convertible_to<std::int64_t>;
};

namespace detail {
constexpr void check_schedule(bool good, char const* what, char const* remedy) {
  if (!good) throw ConfigError(sentence("lr schedule", what, remedy));
}
}  // namespace detail

/// The linear scaling rule: the rate grows with the global batch.  \paper Goyal et al., arXiv:1706.02677, section 2.1.
struct BatchSizes {
  std::int64_t global = 0;     ///< samples per optimizer step over all ranks
  std::int64_t reference = 0;  ///< the global batch that the base rate was found for
};
/// \throws ConfigError unless both sizes are positive.
[[nodiscard]] constexpr double linear_scaling(double base_lr, BatchSizes batch) {
  detail::check_schedule(batch.global > 0 && batch.reference > 0,
                         "linear scaling between batches that are not positive",
                         "give .global and .reference, in samples over all ranks");
  return base_lr * (static_cast<double>(batch.global) / static_cast<double>(batch.reference));
}

// ---- constant ------------------------------------------------------------------------------------------------------

struct ConstantOptions {
  double factor = 1.0;  ///< of the base rate, for ever
};
class Constant {
 public:
  constexpr explicit Constant(ConstantOptions options) : factor_(options.factor) {}
  [[nodiscard]] constexpr double operator()(std::int64_t) const noexcept { return factor_; }

 private:
  double factor_;
};
[[nodiscard]] constexpr Constant constant(ConstantOptions options = {}) { return Constant{options}; }

// ---- warm-up -------------------------------------------------------------------------------------------------------

struct WarmupOptions {
  std::int64_t steps = 0;         ///< length; 0 = none at all
  double start_factor = 1.0 / 3;  ///< at step 0 (LinearLR's default)
  double end_factor = 1.0;        ///< from step `steps` on
};
/// A straight line from start_factor to end_factor.  \source torch.optim.lr_scheduler.LinearLR.
class Warmup {
 public:
  /// \throws ConfigError for a negative length or factor.
  constexpr explicit Warmup(WarmupOptions options) : options_(options) {
    detail::check_schedule(options.steps >= 0, "a warm-up of fewer than 0 steps", "give .steps = 0 for none");
    detail::check_schedule(options.start_factor >= 0.0 && options.end_factor >= 0.0, "a warm-up through negative rates",
                           "give factors of 0 or more");
  }
  [[nodiscard]] constexpr double operator()(std::int64_t step) const noexcept {
    auto const& [steps, start, end] = options_;
    if (step >= steps) return end;
    return start + (end - start) * static_cast<double>(step) / static_cast<double>(steps);
  }
  [[nodiscard]] constexpr std::int64_t steps() const noexcept { return options_.steps; }

 private:
  WarmupOptions options_;
};
[[nodiscard]] constexpr Warmup warmup(WarmupOptions options) { return Warmup{options}; }

// ---- cosine --------------------------------------------------------------------------------------------------------

struct CosineOptions {
  std::int64_t steps = 0;   ///< from 1 down to min_factor (PyTorch's T_max)
  double min_factor = 0.0;  ///< eta_min / base rate
};
/// Half a cosine from 1 to min_factor. Behind its end it rises again, as PyTorch's does: a training that goes on longer
/// than it said shows it.  \source torch.optim.lr_scheduler.CosineAnnealingLR.  \paper Loshchilov and Hutter,
/// arXiv:1608.03983.
class Cosine {
 public:
  /// \throws ConfigError unless steps is positive.
  constexpr explicit Cosine(CosineOptions options) : options_(options) {
    detail::check_schedule(options.steps > 0, "a cosine of no steps",
                           "give .steps, the optimizer steps it goes on for");
  }
  [[nodiscard]] double operator()(std::int64_t step) const noexcept {
    double const angle = std::numbers::pi * static_cast<double>(step) / static_cast<double>(options_.steps);
    return options_.min_factor + (1.0 - options_.min_factor) * (1.0 + std::cos(angle)) / 2.0;
  }
  [[nodiscard]] constexpr std::int64_t steps() const noexcept { return options_.steps; }

 private:
  CosineOptions options_;
};
[[nodiscard]] constexpr Cosine cosine(CosineOptions options) { return Cosine{options}; }

// ---- multi-step ----------------------------------------------------------------------------------------------------

struct MultiStepOptions {
  std::vector<std::int64_t> milestones;  ///< steps at which the rate falls; one named twice counts twice
  double gamma = 0.1;                    ///< what each multiplies it by
};
/// gamma to the power of the milestones passed.  \source torch.optim.lr_scheduler.MultiStepLR.
class MultiStep {
 public:
  /// \throws ConfigError for a negative milestone.
  constexpr explicit MultiStep(MultiStepOptions options) : options_(std::move(options)) {
    std::sort(options_.milestones.begin(), options_.milestones.end());
    detail::check_schedule(options_.milestones.empty() || options_.milestones.front() >= 0, "a milestone before step 0",
                           "milestones are counted in optimizer steps from 0 on");
  }
  [[nodiscard]] constexpr double operator()(std::int64_t step) const noexcept {
    double factor = 1.0;
    for (std::int64_t const milestone : options_.milestones)
      if (milestone <= step) factor *= options_.gamma;
    return factor;
  }

 private:
  MultiStepOptions options_;
};
[[nodiscard]] constexpr MultiStep multi_step(MultiStepOptions options) { return MultiStep{std::move(options)}; }

// ---- one-cycle -----------------------------------------------------------------------------------------------------

enum class Anneal { cosine, linear };

struct OneCycleOptions {
  std::int64_t steps = 0;          ///< of the whole training (total_steps)
  double pct_start = 0.3;          ///< share of the steps that climb
  Anneal anneal = Anneal::cosine;  ///< shape of each phase
  double div_factor = 25.0;        ///< starts at 1 / div_factor
  double final_div_factor = 1e4;   ///< ends at 1 / (div_factor · final_div_factor)
  bool three_phase = false;        ///< true: fall as long as it climbed, then fade out (the paper's form)
  double base_momentum = 0.85;     ///< momentum() at the peak of the rate
  double max_momentum = 0.95;      ///< momentum() at both ends
};
/// Climb to the base rate (factor 1), then fall to next to nothing. From step `steps` on the last factor holds; PyTorch
/// raises an error one step later.
/// \source torch.optim.lr_scheduler.OneCycleLR.  \paper Smith and Topin, arXiv:1708.07120.
class OneCycle {
 public:
  /// \throws ConfigError where a setting is out of its range.
  constexpr explicit OneCycle(OneCycleOptions options) : options_(options) {
    detail::check_schedule(options.steps > 0, "a one-cycle of no steps", "give .steps, those of the whole training");
    detail::check_schedule(options.pct_start >= 0.0 && options.pct_start <= 1.0, "pct_start outside 0 to 1",
                           "give the share of the steps that climb");
    detail::check_schedule(options.div_factor > 0.0 && options.final_div_factor > 0.0, "a division factor of 0 or less",
                           "give positive factors");
    double const total = static_cast<double>(options.steps);
    double const up = options.pct_start * total - 1.0;
    double const down = 2.0 * options.pct_start * total - 2.0;
    double const low = 1.0 / options.div_factor, lowest = low / options.final_div_factor;
    double const rest = options.max_momentum, peak = options.base_momentum;
    if (options.three_phase)
      phases_ = {Phase{up, {low, 1.0}, {rest, peak}},
                 {down, {1.0, low}, {peak, rest}},
                 {total - 1, {low, lowest}, {rest, rest}}};
    else
      phases_ = {Phase{up, {low, 1.0}, {rest, peak}}, {total - 1, {1.0, lowest}, {peak, rest}}, {}};
  }

  [[nodiscard]] constexpr double operator()(std::int64_t step) const noexcept { return at(step, &Phase::factor); }
  /// The momentum that goes with the rate (PyTorch's cycle_momentum): high where the rate is low. An absolute value,
  /// for SGD::set_momentum.
  [[nodiscard]] constexpr double momentum(std::int64_t step) const noexcept { return at(step, &Phase::momentum); }
  [[nodiscard]] constexpr std::int64_t steps() const noexcept { return options_.steps; }

 private:
  struct Span {
    double from = 0, to = 0;
  };
  struct Phase {
    double end = 0;
    Span factor, momentum;
  };

  [[nodiscard]] constexpr double at(std::int64_t step, Span Phase::*what) const noexcept {
    std::size_t const last = options_.three_phase ? 2 : 1;
    double const now = static_cast<double>(std::min(step, options_.steps - 1));
    double begin = 0.0;
    std::size_t i = 0;
    for (; i < last && now > phases_[i].end; ++i) begin = phases_[i].end;
    double const length = phases_[i].end - begin;
    // PyTorch divides by zero in a phase without length; here such a phase is over at once. Not compared with 0: where
    // the compiler fuses the product and the difference that end came from, it is off by a rounding error.
    return blend(phases_[i].*what, length < 1e-9 ? 1.0 : (now - begin) / length);
  }
  [[nodiscard]] constexpr double blend(Span span, double share) const noexcept {
    if (options_.anneal == Anneal::linear) return (span.to - span.from) * share + span.from;
    return span.to + (span.from - span.to) / 2.0 * (std::cos(std::numbers::pi * share) + 1.0);
  }

  OneCycleOptions options_;
  std::array<Phase, 3> phases_{};
};
[[nodiscard]] constexpr OneCycle one_cycle(OneCycleOptions options) { return OneCycle{options}; }

// ---- one after the other -------------------------------------------------------------------------------------------

/// First to its end, then Second from its step 0.  \source torch.optim.lr_scheduler.SequentialLR.
template <finite_lr_schedule First, lr_schedule Second>
class Sequence {
 public:
  constexpr Sequence(First first, Second second) : first_(std::move(first)), second_(std::move(second)) {}
  [[nodiscard]] constexpr double operator()(std::int64_t step) const {
    std::int64_t const switch_at = first_.steps();
    return step < switch_at ? first_(step) : second_(step - switch_at);
  }
  [[nodiscard]] constexpr std::int64_t steps() const
    requires finite_lr_schedule<Second>
  {
    return first_.steps() + second_.steps();
  }

 private:
  First first_;
  Second second_;
};

template <lr_schedule First, lr_schedule Second>
[[nodiscard]] constexpr auto operator|(First first, Second second) {
  static_assert(finite_lr_schedule<First>,
                "pardl: the schedule left of | needs an end, or the right one would never begin; give it a member "
                "steps(), or put warmup, cosine or one_cycle there.");
  if constexpr (finite_lr_schedule<First>) return Sequence<First, Second>{std::move(first), std::move(second)};
}

static_assert(finite_lr_schedule<Warmup> && finite_lr_schedule<Cosine> && finite_lr_schedule<OneCycle>);
static_assert(lr_schedule<Constant> && !finite_lr_schedule<Constant>);
static_assert(lr_schedule<MultiStep> && !finite_lr_schedule<MultiStep>);
static_assert(finite_lr_schedule<Sequence<Warmup, Cosine>> && !finite_lr_schedule<Sequence<Warmup, Constant>>);
static_assert(!lr_schedule<double>);

}  // namespace pardl::inline PARDL_ABI
