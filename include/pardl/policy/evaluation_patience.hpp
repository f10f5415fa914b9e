// SPDX-License-Identifier: MIT
/// \file   FederatedScope's early stopping as a policy: how many evaluations may pass without an improvement.
/// \layer  policy (std only).
///
/// Unlike Patience it counts evaluations (rounds are that times eval.freq), takes a tie for an improvement, can be
/// switched off by a patience of 0, and can compare with the mean of the last values instead of with the best.
/// \source FederatedScope, core/monitors/early_stopper.py. Different on purpose: a value that is not a number is never
/// an improvement (there it became the best, and nothing could be worse), and a metric's direction is looked up by its
/// whole name (there any key that contains `loss` or `acc` did, so that `val_loss` also matched `val_loss_regular`).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/policy/early_stopping.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/metric.hpp"
#include "pardl/policy/stopping_policy.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// What a new value is compared with.
enum class Indicator {
  best,  ///< the best so far; stop after `patience` evaluations in a row that were worse
  mean,  ///< the mean of the `patience` values before it; stop as soon as it is worse, once there are as many
};

class EvaluationPatienceState;

/// With a delta of 0, worse means worse: a tie is an improvement. With a larger one, a value is worse unless it beats
/// what it is compared with by delta or more.
struct EvaluationPatience {
  Metric metric{};                       ///< left out: observe() is given the number itself
  Goal goal;                             ///< no default; goal_of() knows FederatedScope's keys
  double delta = 0.0;                    ///< an improvement is at least this
  std::int64_t patience = 5;             ///< evaluations; 0: never stop
  Indicator mode = Indicator::best;      ///< what a new value is compared with
  std::string_view name = "the metric";  ///< for reason(); must outlive the state: a literal

  template <class Metrics>
  [[nodiscard]] constexpr bool reads() const {
    return metric.reads<Metrics>();
  }
  /// \throws ConfigError for a negative patience, or a delta that is negative or not finite.
  [[nodiscard]] constexpr EvaluationPatienceState start() const;
};

class EvaluationPatienceState {
 public:
  constexpr explicit EvaluationPatienceState(EvaluationPatience const& settings) : settings_(settings) {
    constexpr double largest = std::numeric_limits<double>::max();
    detail::check_stopping(settings.delta >= 0.0 && settings.delta <= largest,
                           "EvaluationPatience with a delta that is negative or not finite", "give .delta = 0 or more");
    detail::check_stopping(settings.patience >= 0, "EvaluationPatience with a negative patience",
                           "give .patience = 0 for never, or a number of evaluations");
  }

  template <class Metrics>
  constexpr Verdict observe(Metrics const& metrics) {
    if (settings_.patience == 0) return Verdict::go_on;
    double const value = settings_.metric(metrics);
    bool const stops = settings_.mode == Indicator::best ? observe_best(value) : observe_mean(value);
    stopped_ = stops;
    return stops ? Verdict::stop : Verdict::go_on;
  }
  [[nodiscard]] std::string reason() const {
    if (!stopped_) return {};
    std::string const name(settings_.name);
    if (settings_.mode == Indicator::mean)
      return name + " is worse than its mean over the " + evaluations(settings_.patience) + " before";
    return "no improvement of " + name + (best_ ? " on " + detail::number(*best_) : std::string()) + " for " +
           evaluations(waited_);
  }
  /// The best value seen, in mode best; nothing before the first that is a number.
  [[nodiscard]] constexpr std::optional<double> best() const noexcept { return best_; }

  /// A value that is not a number is kept as a pair {0, 0}, for checkpoints in formats that have none.
  constexpr void save(std::vector<double>& into) const {
    push(into, best_);
    into.push_back(static_cast<double>(waited_));
    into.push_back(stopped_ ? 1.0 : 0.0);
    into.push_back(static_cast<double>(last_.size()));
    for (auto const& value : last_) push(into, value);
  }
  constexpr void restore(std::span<double const>& from) {
    auto const best = pop(from);
    std::int64_t const waited = detail::take_count(from);
    bool const stopped = detail::take_count(from) != 0;
    std::int64_t const kept = detail::take_count(from);
    if (kept > settings_.patience || static_cast<std::size_t>(kept) > from.size())
      throw CheckpointError(sentence("early stopping", "the saved state keeps more values than this policy looks at",
                                     "restore it into the policies that it was saved from"));
    std::vector<std::optional<double>> last;
    for (std::int64_t i = 0; i < kept; ++i) last.push_back(pop(from));
    best_ = best;
    waited_ = waited;
    stopped_ = stopped;
    last_ = std::move(last);
  }

 private:
  [[nodiscard]] constexpr bool is_worse(double value, double than) const noexcept {
    bool const up = settings_.goal == Goal::maximize;
    return up ? value < than + settings_.delta : than - settings_.delta < value;
  }

  constexpr bool observe_best(double value) {
    if (value == value && (!best_ || !is_worse(value, *best_))) {
      best_ = value;
      waited_ = 0;
    } else {
      ++waited_;
    }
    return waited_ >= settings_.patience;
  }

  /// Values that are no numbers do not count in the mean; where there is nothing else, a number is an improvement.
  constexpr bool observe_mean(double value) {
    bool const enough = static_cast<std::int64_t>(last_.size()) == settings_.patience;
    double sum = 0.0;
    std::int64_t numbers = 0;
    for (auto const& earlier : last_) {
      sum += earlier.value_or(0.0);
      numbers += earlier ? 1 : 0;
    }
    bool const number = value == value;
    bool const worse = !number || (numbers > 0 && is_worse(value, sum / static_cast<double>(numbers)));
    if (enough) last_.erase(last_.begin());
    last_.push_back(number ? std::optional<double>(value) : std::nullopt);
    return enough && worse;
  }

  static constexpr void push(std::vector<double>& into, std::optional<double> const& value) {
    into.push_back(value ? 1.0 : 0.0);
    into.push_back(value.value_or(0.0));
  }
  [[nodiscard]] static constexpr std::optional<double> pop(std::span<double const>& from) {
    bool const given = detail::take_count(from) != 0;
    double const value = detail::take(from);
    return given ? std::optional<double>(value) : std::nullopt;
  }
  [[nodiscard]] static std::string evaluations(std::int64_t n) {
    return std::to_string(n) + (n == 1 ? " evaluation" : " evaluations");
  }

  EvaluationPatience settings_;
  std::optional<double> best_{};
  std::int64_t waited_ = 0;
  bool stopped_ = false;
  std::vector<std::optional<double>> last_{};  // in mode mean: the last `patience` values, those not a number empty
};
constexpr EvaluationPatienceState EvaluationPatience::start() const { return EvaluationPatienceState{*this}; }
static_assert(stopping_policy<EvaluationPatience>);

// ---- which way is up -----------------------------------------------------------------------------------------------

/// The direction of FederatedScope's metric keys, such as `val_loss`, `test_acc` or `val_hits@5`: a metric's name with
/// or without the split in front. Nothing for a key that is none of its metrics, or counts samples and so has no
/// direction
/// (`val_total`).
/// \source FederatedScope, core/monitors/metric_calculator.py: SUPPORT_METRICS.
[[nodiscard]] constexpr std::optional<Goal> find_goal(std::string_view key) {
  constexpr std::array<std::string_view, 6> smaller{"loss", "avg_loss", "loss_regular", "mse", "rmse", "std"};
  constexpr std::array<std::string_view, 6> larger{"acc", "correct", "ap", "f1", "roc_auc", "imp_ratio"};
  std::string_view name = key;
  for (std::string_view const split : {"train_", "val_", "test_"})
    if (key.starts_with(split)) name = key.substr(split.size());
  for (std::string_view const metric : smaller)
    if (name == metric) return Goal::minimize;
  for (std::string_view const metric : larger)
    if (name == metric) return Goal::maximize;
  bool const hits =
      name.starts_with("hits@") && name.size() > 5 && name.find_first_not_of("0123456789", 5) == std::string_view::npos;
  return hits ? std::optional<Goal>(Goal::maximize) : std::nullopt;
}

/// As find_goal(). \throws ConfigError for a key without a direction.
[[nodiscard]] inline Goal goal_of(std::string_view key) {
  if (std::optional<Goal> const goal = find_goal(key)) return *goal;
  throw ConfigError(sentence("early stopping",
                             "whether more or less of '" + std::string(key) + "' is better is not known",
                             "watch a metric such as val_loss, val_avg_loss, test_acc or test_correct"));
}

}  // namespace pardl::inline PARDL_ABI
