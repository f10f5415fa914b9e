// SPDX-License-Identifier: MIT
/// \file   What a stopping policy is, how several make one (any_of, all_of), and the Stopper that a training loop asks.
/// \layer  policy (std only).
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

enum class Verdict {
  go_on,  ///< train another epoch
  stop,   ///< done: the result stands
  fail,   ///< end, and let the program fail: the result is worth nothing
};

// ---- the seam ------------------------------------------------------------------------------------------------------

/// Says in words why the last verdict was not go_on; empty otherwise.
template <class S>
concept explains = requires(S const& state) {
  { state.reason() } -> std::convertible_to<std::string>;
};
/// Can be kept in a checkpoint: save() appends numbers, restore() takes as many from the front.
template <class S>
concept resumable = requires(S& state, S const& saved, std::vector<double>& into, std::span<double const>& from) {
  saved.save(into);
  state.restore(from);
};
template <class S, class Metrics>
concept observes = requires(S& state, Metrics const& metrics) {
  { state.observe(metrics) } -> std::same_as<Verdict>;
};
/// Settings that make a state. Models: TargetReached, Patience, Diverged, MaxEpochs, any_of(…), all_of(…),
/// any_stopping_policy. A policy that reads a Metric also has `reads<Metrics>()`, so that a mistake shows before
/// training.
template <class P>
concept stopping_policy = std::copyable<P> && requires(P const& policy) {
  { policy.start() } -> std::copyable;
  { policy.start() } -> explains;
  { policy.start() } -> resumable;
};
static_assert(!stopping_policy<int>);

template <stopping_policy P>
using stopping_state_t = decltype(std::declval<P const&>().start());

namespace detail {

template <class Metrics, class P>
[[nodiscard]] constexpr bool reads(P const& policy) {
  if constexpr (requires { policy.template reads<Metrics>(); })
    return policy.template reads<Metrics>();
  else
    return true;
}

enum class Quorum { any, all };

/// The states of several policies as one. Every state sees every epoch, whatever the others say.
template <Quorum quorum, class... State>
class CombinedState {
 public:
  constexpr explicit CombinedState(State... states) : states_(std::move(states)...) {}

  template <class Metrics>
    requires(observes<State, Metrics> && ...)
  constexpr Verdict observe(Metrics const& metrics) {
    verdicts_ = std::apply([&](State&... state) { return Verdicts{state.observe(metrics)...}; }, states_);
    std::size_t stops = 0;
    for (Verdict const verdict : verdicts_) {
      if (verdict == Verdict::fail) return verdict_ = Verdict::fail;
      stops += verdict == Verdict::stop ? 1 : 0;
    }
    bool const enough = quorum == Quorum::any ? stops > 0 : stops == sizeof...(State);
    return verdict_ = enough ? Verdict::stop : Verdict::go_on;
  }
  /// The reasons of those that said what was said in the end.
  [[nodiscard]] std::string reason() const {
    std::string text;
    if (verdict_ == Verdict::go_on) return text;
    auto const add = [&](Verdict verdict, auto const& state) {
      if (verdict == verdict_) text.append(text.empty() ? "" : ", and ").append(state.reason());
    };
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (add(verdicts_[I], std::get<I>(states_)), ...);
    }(std::index_sequence_for<State...>{});
    return text;
  }
  constexpr void save(std::vector<double>& into) const {
    std::apply([&](State const&... state) { (state.save(into), ...); }, states_);
  }
  constexpr void restore(std::span<double const>& from) {
    std::apply([&](State&... state) { (state.restore(from), ...); }, states_);
  }

 private:
  using Verdicts = std::array<Verdict, sizeof...(State)>;
  std::tuple<State...> states_;
  Verdicts verdicts_{};
  Verdict verdict_ = Verdict::go_on;
};

/// True, or a misuse's first error. Asked in a static_assert, so that no error comes before it.
template <class P>
consteval bool is_stopping_policy() {
  static_assert(
      stopping_policy<P>,
      "pardl: this is not a stopping policy; use TargetReached, Patience, Diverged, MaxEpochs, any_of or all_of, or "
      "write settings whose start() makes a copyable state with observe(metrics), reason(), save() and restore().");
  return true;
}

template <Quorum quorum, class... P>
class Combined {
  static_assert(sizeof...(P) > 0, "pardl: any_of and all_of combine at least one stopping policy.");
  static_assert((is_stopping_policy<P>() && ...));

 public:
  constexpr explicit Combined(P... policies) : policies_(std::move(policies)...) {}
  template <class Metrics>
  [[nodiscard]] constexpr bool reads() const {
    return std::apply([](P const&... policy) { return (detail::reads<Metrics>(policy) && ...); }, policies_);
  }
  [[nodiscard]] constexpr auto start() const
    requires(stopping_policy<P> && ...)
  {
    return std::apply(
        [](P const&... policy) { return CombinedState<quorum, stopping_state_t<P>...>{policy.start()...}; }, policies_);
  }

 private:
  std::tuple<P...> policies_;
};

}  // namespace detail

/// Fail as soon as one fails; else stop as soon as one stops.
template <class... P>
[[nodiscard]] constexpr auto any_of(P... policies) {
  return detail::Combined<detail::Quorum::any, P...>{std::move(policies)...};
}

/// Fail as soon as one fails; else stop at the epoch after which all say stop. A policy may take its word back (a
/// target reached and lost again); it is what they say of this epoch that counts.
template <class... P>
[[nodiscard]] constexpr auto all_of(P... policies) {
  return detail::Combined<detail::Quorum::all, P...>{std::move(policies)...};
}

/// A running policy: what a training loop asks after each epoch. A copy goes on by itself.
template <stopping_policy P>
class Stopper {
 public:
  /// \throws ConfigError where a setting of the policy cannot work.
  constexpr explicit Stopper(P const& policy) : state_(policy.start()) {}

  /// The verdict on one more epoch. Show every rank the same numbers.
  /// \throws ConfigError where a policy's .metric belongs to another type.
  template <class Metrics>
  [[nodiscard]] constexpr Verdict observe(Metrics const& metrics) {
    static_assert(observes<stopping_state_t<P>, Metrics>,
                  "pardl: this stopping policy cannot observe these metrics; its state needs a member "
                  "observe(metrics) for this type that returns a pardl::Verdict.");
    ++epochs_;
    return verdict_ = state_.observe(metrics);
  }
  [[nodiscard]] constexpr Verdict verdict() const noexcept { return verdict_; }  ///< the last one
  [[nodiscard]] std::string reason() const { return state_.reason(); }  ///< why, in words; empty while it goes on
  [[nodiscard]] constexpr std::int64_t epochs() const noexcept { return epochs_; }  ///< observed so far

  /// All that a checkpoint must keep, as plain numbers (which may be infinite).
  [[nodiscard]] constexpr std::vector<double> save() const {
    std::vector<double> numbers{static_cast<double>(epochs_), static_cast<double>(verdict_)};
    state_.save(numbers);
    return numbers;
  }
  /// Goes on from what save() gave; all or nothing. reason() is that of the next observe on.
  /// \throws CheckpointError where the numbers were not saved from such a policy.
  constexpr void restore(std::span<double const> numbers) {
    auto const refuse = [] {
      throw CheckpointError(sentence("early stopping", "the saved state does not fit these policies",
                                     "restore it into the policies that it was saved from"));
    };
    if (numbers.size() < 2 || !(numbers[0] >= 0) || !(numbers[1] >= 0 && numbers[1] <= 2)) refuse();
    auto state = state_;
    auto rest = numbers.subspan(2);
    state.restore(rest);
    if (!rest.empty()) refuse();
    epochs_ = static_cast<std::int64_t>(numbers[0]);
    verdict_ = static_cast<Verdict>(static_cast<int>(numbers[1]));
    state_ = std::move(state);
  }

 private:
  stopping_state_t<P> state_;
  std::int64_t epochs_ = 0;
  Verdict verdict_ = Verdict::go_on;
};

/// Starts a policy. With the metrics' type named, `stopper<Metrics>(policy)`, a metric that belongs to another type is
/// found here, before the first epoch. \throws ConfigError where a setting cannot work.
template <class Metrics = void, class P>
[[nodiscard]] constexpr auto stopper(P const& policy) {
  static_assert(detail::is_stopping_policy<P>());
  if constexpr (!std::is_void_v<Metrics>) {
    static_assert(observes<stopping_state_t<P>, Metrics>,
                  "pardl: this stopping policy cannot observe these metrics; its state needs a member "
                  "observe(metrics) for this type that returns a pardl::Verdict.");
    if (!detail::reads<Metrics>(policy))
      throw ConfigError(sentence("early stopping",
                                 "a policy's .metric belongs to another type than the metrics of this training",
                                 "point it at a member of the struct that observe() is given"));
  }
  if constexpr (stopping_policy<P>) return Stopper<P>{policy};
}

}  // namespace pardl::inline PARDL_ABI
