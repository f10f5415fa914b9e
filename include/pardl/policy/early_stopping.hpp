// SPDX-License-Identifier: MIT
/// \file   When to end a training: policies that look at one epoch's metrics and say go on, stop or fail, and why.
/// \layer  policy (std only).
///
/// Settings are aggregates, `start()` makes a state, `observe(metrics)` moves it. Every rank must be shown the same
/// numbers (those that evaluate() summed over the ranks); then every rank says the same, and no message is needed.
/// ```
/// auto stop = pardl::stopper(pardl::any_of(
///     pardl::TargetReached{.metric = &Metrics::accuracy, .goal = pardl::Goal::maximize, .target = 0.85, .patience =
///     2}, pardl::Diverged{.metric = &Metrics::loss}, pardl::MaxEpochs{100}));
/// if (stop.observe(metrics) != pardl::Verdict::go_on) say(stop.reason());
/// ```
#pragma once

#include <array>
#include <charconv>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/policy/metric.hpp"
#include "pardl/policy/stopping_policy.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

namespace detail {

[[nodiscard]] inline std::string number(double x) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), x).ptr};
}
[[nodiscard]] inline std::string epochs(std::int64_t n) { return std::to_string(n) + (n == 1 ? " epoch" : " epochs"); }

constexpr void check_stopping(bool good, char const* what, char const* remedy) {
  if (!good) throw ConfigError(sentence("early stopping", what, remedy));
}

/// \throws CheckpointError if fewer numbers are left than the policy keeps.
[[nodiscard]] constexpr double take(std::span<double const>& from) {
  if (from.empty())
    throw CheckpointError(sentence("early stopping", "the saved state has fewer numbers than these policies keep",
                                   "restore it into the policies that it was saved from"));
  double const value = from.front();
  from = from.subspan(1);
  return value;
}

/// \throws CheckpointError where the next number is no count of epochs.
[[nodiscard]] constexpr std::int64_t take_count(std::span<double const>& from) {
  double const count = take(from);
  if (!(count >= 0.0 && count <= 1e15))
    throw CheckpointError(sentence("early stopping", "the saved state counts " + number(count) + " epochs",
                                   "restore it into the policies that it was saved from"));
  return static_cast<std::int64_t>(count);
}

}  // namespace detail

// ---- target reached ------------------------------------------------------------------------------------------------

class TargetReachedState;

/// Stop once the last `patience` epochs have all reached the target.
struct TargetReached {
  Metric metric{};                                           ///< left out: observe() is given the number itself
  Goal goal;                                                 ///< no default
  double target = std::numeric_limits<double>::quiet_NaN();  ///< no default: start() refuses its absence
  int patience = 1;                                          ///< epochs in a row at or beyond the target
  std::string_view name = "the metric";                      ///< for reason(); must outlive the state: a literal

  template <class Metrics>
  [[nodiscard]] constexpr bool reads() const {
    return metric.reads<Metrics>();
  }
  /// \throws ConfigError without a target, or for a patience below 1.
  [[nodiscard]] constexpr TargetReachedState start() const;
};

class TargetReachedState {
 public:
  constexpr explicit TargetReachedState(TargetReached const& settings) : settings_(settings) {
    detail::check_stopping(settings.target == settings.target, "TargetReached without a target", "give .target");
    detail::check_stopping(settings.patience >= 1, "TargetReached with a patience below 1 epoch",
                           "give .patience = 1 or more");
  }
  template <class Metrics>
  constexpr Verdict observe(Metrics const& metrics) {
    double const value = settings_.metric(metrics);
    in_a_row_ = settings_.goal.reached(value, settings_.target) ? in_a_row_ + 1 : 0;
    return in_a_row_ >= settings_.patience ? Verdict::stop : Verdict::go_on;
  }
  [[nodiscard]] std::string reason() const {
    if (in_a_row_ < settings_.patience) return {};
    return std::string(settings_.name) + (settings_.goal == Goal::maximize ? " at or above " : " at or below ") +
           detail::number(settings_.target) + " for " + detail::epochs(settings_.patience) +
           (settings_.patience == 1 ? "" : " in a row");
  }
  constexpr void save(std::vector<double>& into) const { into.push_back(static_cast<double>(in_a_row_)); }
  constexpr void restore(std::span<double const>& from) { in_a_row_ = detail::take_count(from); }

 private:
  TargetReached settings_;
  std::int64_t in_a_row_ = 0;
};
constexpr TargetReachedState TargetReached::start() const { return TargetReachedState{*this}; }
static_assert(stopping_policy<TargetReached>);

// ---- patience ------------------------------------------------------------------------------------------------------

class PatienceState;

/// Stop once `patience` epochs in a row have brought no improvement on the best. Equality is none, nor is a value that
/// is not a number.  \source Lightning's EarlyStopping, whose checks are epochs here.
struct Patience {
  Metric metric{};                       ///< left out: observe() is given the number itself
  Goal goal;                             ///< no default
  double min_delta = 0.0;                ///< an improvement is more than this
  int patience = 3;                      ///< epochs in a row without one
  std::string_view name = "the metric";  ///< for reason(); must outlive the state: a literal

  template <class Metrics>
  [[nodiscard]] constexpr bool reads() const {
    return metric.reads<Metrics>();
  }
  /// \throws ConfigError for a patience below 1 or a min_delta below 0.
  [[nodiscard]] constexpr PatienceState start() const;
};

class PatienceState {
 public:
  constexpr explicit PatienceState(Patience const& settings) : settings_(settings), best_(worst(settings.goal)) {
    detail::check_stopping(settings.min_delta >= 0.0, "Patience with a negative min_delta",
                           "give .min_delta = 0 or more");
    detail::check_stopping(settings.patience >= 1, "Patience with fewer than 1 epoch", "give .patience = 1 or more");
  }
  template <class Metrics>
  constexpr Verdict observe(Metrics const& metrics) {
    double const value = settings_.metric(metrics);
    if (settings_.goal.improved(value, best_, settings_.min_delta)) {
      best_ = value;
      waited_ = 0;
    } else {
      ++waited_;
    }
    return waited_ >= settings_.patience ? Verdict::stop : Verdict::go_on;
  }
  [[nodiscard]] std::string reason() const {
    if (waited_ < settings_.patience) return {};
    return "no improvement of " + std::string(settings_.name) + " on " + detail::number(best_) + " for " +
           detail::epochs(waited_);
  }
  /// The best value seen; infinitely bad before the first.
  [[nodiscard]] constexpr double best() const noexcept { return best_; }
  constexpr void save(std::vector<double>& into) const {
    into.push_back(best_);
    into.push_back(static_cast<double>(waited_));
  }
  constexpr void restore(std::span<double const>& from) {
    best_ = detail::take(from);
    waited_ = detail::take_count(from);
  }

 private:
  [[nodiscard]] static constexpr double worst(Goal goal) noexcept {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    return goal == Goal::maximize ? -infinity : infinity;
  }

  Patience settings_;
  double best_;
  std::int64_t waited_ = 0;
};
constexpr PatienceState Patience::start() const { return PatienceState{*this}; }
static_assert(stopping_policy<Patience>);

// ---- diverged ------------------------------------------------------------------------------------------------------

class DivergedState;

/// Fail when the metric is not a number, infinite, or outside its bounds. The bounds say their direction themselves.
struct Diverged {
  Metric metric{};                                          ///< left out: observe() is given the number itself
  double above = std::numeric_limits<double>::infinity();   ///< fail above this (a loss)
  double below = -std::numeric_limits<double>::infinity();  ///< fail below this (an accuracy)
  std::string_view name = "the metric";                     ///< for reason(); must outlive the state: a literal

  template <class Metrics>
  [[nodiscard]] constexpr bool reads() const {
    return metric.reads<Metrics>();
  }
  /// \throws ConfigError where the bounds leave no value between them.
  [[nodiscard]] constexpr DivergedState start() const;
};

class DivergedState {
 public:
  constexpr explicit DivergedState(Diverged const& settings) : settings_(settings) {
    detail::check_stopping(settings.below < settings.above, "Diverged with bounds that leave nothing between them",
                           "give .above greater than .below");
  }
  template <class Metrics>
  constexpr Verdict observe(Metrics const& metrics) {
    last_ = settings_.metric(metrics);
    constexpr double largest = std::numeric_limits<double>::max();
    bool const finite = last_ >= -largest && last_ <= largest;  // false for NaN
    diverged_ = !finite || last_ > settings_.above || last_ < settings_.below;
    return diverged_ ? Verdict::fail : Verdict::go_on;
  }
  [[nodiscard]] std::string reason() const {
    if (!diverged_) return {};
    auto what = std::string(settings_.name) + " is " + detail::number(last_);
    if (last_ > settings_.above) return what + ", above " + detail::number(settings_.above);
    if (last_ < settings_.below) return what + ", below " + detail::number(settings_.below);
    return what;
  }
  constexpr void save(std::vector<double>&) const {}
  constexpr void restore(std::span<double const>&) {}

 private:
  Diverged settings_;
  double last_ = 0.0;
  bool diverged_ = false;
};
constexpr DivergedState Diverged::start() const { return DivergedState{*this}; }
static_assert(stopping_policy<Diverged>);

// ---- a number of epochs --------------------------------------------------------------------------------------------

class MaxEpochsState;

/// Stop after so many epochs, whatever the metrics are.
struct MaxEpochs {
  int epochs = 0;  ///< no default: start() refuses 0

  /// \throws ConfigError for fewer than 1 epoch.
  [[nodiscard]] constexpr MaxEpochsState start() const;
};

class MaxEpochsState {
 public:
  constexpr explicit MaxEpochsState(MaxEpochs const& settings) : settings_(settings) {
    detail::check_stopping(settings.epochs >= 1, "MaxEpochs of fewer than 1 epoch",
                           "give a number, as in MaxEpochs{100}");
  }
  template <class Metrics>
  constexpr Verdict observe(Metrics const&) {
    return ++seen_ >= settings_.epochs ? Verdict::stop : Verdict::go_on;
  }
  [[nodiscard]] std::string reason() const {
    return seen_ >= settings_.epochs ? detail::epochs(settings_.epochs) + " done" : std::string();
  }
  constexpr void save(std::vector<double>& into) const { into.push_back(static_cast<double>(seen_)); }
  constexpr void restore(std::span<double const>& from) { seen_ = detail::take_count(from); }

 private:
  MaxEpochs settings_;
  std::int64_t seen_ = 0;
};
constexpr MaxEpochsState MaxEpochs::start() const { return MaxEpochsState{*this}; }
static_assert(stopping_policy<MaxEpochs>);

}  // namespace pardl::inline PARDL_ABI
