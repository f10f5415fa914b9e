// SPDX-License-Identifier: MIT
/// \file   The loss-scale automaton of mixed-precision training: back off on overflow, grow after a quiet interval.
/// \layer  policy (std only).
///
/// float16 gradients underflow; so the loss is multiplied by a scale, gradients are divided by it, and the scale moves:
/// an overflow multiplies it by the back-off factor and the step is skipped; `growth_interval` clean steps in a row
/// multiply it by the growth factor, unless that would be infinite. Every rank must feed the same found_inf; under data
/// parallelism it does, because gradients are already averaged.
/// \source PyTorch, torch.amp.GradScaler and at::_amp_update_scale_: the same bits after every update.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Settings of the automaton; the names are GradScaler's.
struct LossScaleOptions {
  double init_scale = 65536.0;  ///< first scale, 2^16
  double growth_factor = 2.0;   ///< > 1; what a quiet interval multiplies the scale by
  double backoff_factor = 0.5;  ///< in (0, 1); what an overflow multiplies it by
  int growth_interval = 2000;   ///< clean steps in a row before it grows

  friend constexpr bool operator==(LossScaleOptions const&, LossScaleOptions const&) = default;
};

/// All that changes: what a checkpoint keeps.
struct LossScaleState {
  float scale;
  std::int32_t growth_tracker;  ///< clean steps since the last change

  friend constexpr bool operator==(LossScaleState const&, LossScaleState const&) = default;
};

namespace detail {
// double to float as the hardware rounds it, but defined (and so constexpr) for values that a float cannot hold.
[[nodiscard]] constexpr float narrow_to_float(double x) noexcept {
  constexpr double rounds_up = 0x1.ffffffp127;  // half a unit above the largest float
  if (x >= rounds_up) return std::numeric_limits<float>::infinity();
  if (x > std::numeric_limits<float>::max()) return std::numeric_limits<float>::max();
  return static_cast<float>(x);
}
}  // namespace detail

/// \throws ConfigError where a setting cannot work, so that the automaton itself never has to ask.
constexpr void validate(LossScaleOptions const& options) {
  auto const refuse = [](std::string const& what, char const* remedy) {
    throw ConfigError(sentence("loss scale", what, remedy));
  };
  if (!(options.init_scale > 0.0) || !(options.init_scale <= std::numeric_limits<float>::max()))
    refuse("init_scale is " + std::to_string(options.init_scale), "give a positive number that a float can hold");
  if (!(options.growth_factor > 1.0) || options.growth_factor > std::numeric_limits<float>::max())
    refuse("growth_factor is " + std::to_string(options.growth_factor), "give a finite number above 1");
  if (!(options.backoff_factor < 1.0) || !(options.backoff_factor > 0.0))
    refuse("backoff_factor is " + std::to_string(options.backoff_factor), "give a number above 0 and below 1");
  if (options.growth_interval < 1)
    refuse("growth_interval is " + std::to_string(options.growth_interval), "give at least one step");
}

/// The state after one more step. Grows when the tracker *equals* the interval, not when it is beyond it, as PyTorch
/// does: a tracker restored from a run with a longer interval grows again only after the next overflow.
[[nodiscard]] constexpr LossScaleState next(LossScaleState now, bool found_inf,
                                            LossScaleOptions const& options) noexcept {
  if (found_inf) return {detail::narrow_to_float(double{now.scale} * options.backoff_factor), 0};
  std::int32_t const clean = now.growth_tracker + 1;
  if (clean != options.growth_interval) return {now.scale, clean};
  float const grown = detail::narrow_to_float(double{now.scale} * options.growth_factor);
  bool const finite = grown <= std::numeric_limits<float>::max();
  return {finite ? grown : now.scale, 0};
}

/// The automaton with its state: GradScaler's scale() and update() without the tensors.
class LossScale {
 public:
  /// \throws ConfigError (see validate).
  constexpr explicit LossScale(LossScaleOptions options = {})
      : options_((validate(options), options)), state_{detail::narrow_to_float(options.init_scale), 0} {}

  [[nodiscard]] constexpr float scale() const noexcept { return state_.scale; }
  /// What gradients are multiplied by: the reciprocal in double, then rounded to float, as PyTorch takes it.
  [[nodiscard]] constexpr float inverse() const noexcept { return detail::narrow_to_float(1.0 / double{state_.scale}); }
  [[nodiscard]] constexpr std::int32_t growth_tracker() const noexcept { return state_.growth_tracker; }
  [[nodiscard]] constexpr LossScaleOptions const& options() const noexcept { return options_; }

  /// After each optimizer step: whether any gradient of any optimizer was infinite or not a number.
  constexpr void update(bool found_inf) noexcept { state_ = next(state_, found_inf, options_); }
  /// Overrides the scale and leaves the tracker, as GradScaler.update(new_scale) does.
  constexpr void set_scale(float scale) noexcept { state_.scale = scale; }

  [[nodiscard]] constexpr LossScaleState state() const noexcept { return state_; }
  constexpr void restore(LossScaleState state) noexcept { state_ = state; }

 private:
  LossScaleOptions options_;
  LossScaleState state_;
};

static_assert(next({65536.0F, 7}, true, {}) == LossScaleState{32768.0F, 0});
static_assert(next({65536.0F, 1999}, false, {}) == LossScaleState{131072.0F, 0});
static_assert(next({0x1p127F, 1999}, false, {}) == LossScaleState{0x1p127F, 0},
              "growth that would be infinite is left out");

}  // namespace pardl::inline PARDL_ABI
