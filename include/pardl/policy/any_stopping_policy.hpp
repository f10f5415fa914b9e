// SPDX-License-Identifier: MIT
/// \file   A stopping policy chosen at run time: one value type over all of them, for one type of metrics.
/// \layer  policy (std only).
#pragma once

#include <any>
#include <concepts>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/policy/stopping_policy.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Any stopping policy over Metrics as a value; it models stopping_policy itself, so a list read from a file folds into
/// one: `policy = any_of(policy, another)`.  \cost one indirect call per epoch.
template <class Metrics>
class any_stopping_policy {
 public:
  class State {
   public:
    template <class S>
      requires(!std::same_as<std::remove_cvref_t<S>, State> && !std::same_as<std::remove_cvref_t<S>, std::any>)
    explicit State(S state) : state_(std::move(state)), table_(&table<S>) {}

    Verdict observe(Metrics const& metrics) { return table_->observe(state_, metrics); }
    [[nodiscard]] std::string reason() const { return table_->reason(state_); }
    void save(std::vector<double>& into) const { table_->save(state_, into); }
    void restore(std::span<double const>& from) { table_->restore(state_, from); }

   private:
    struct Table {
      Verdict (*observe)(std::any&, Metrics const&);
      std::string (*reason)(std::any const&);
      void (*save)(std::any const&, std::vector<double>&);
      void (*restore)(std::any&, std::span<double const>&);
    };
    template <class S>
    static constexpr Table table{
        [](std::any& state, Metrics const& metrics) { return std::any_cast<S&>(state).observe(metrics); },
        [](std::any const& state) -> std::string { return std::any_cast<S const&>(state).reason(); },
        [](std::any const& state, std::vector<double>& into) { std::any_cast<S const&>(state).save(into); },
        [](std::any& state, std::span<double const>& from) { std::any_cast<S&>(state).restore(from); }};

    std::any state_;  // the copyable box; its type is known to the table alone
    Table const* table_;
  };

  /// \throws ConfigError where the policy's metric cannot read a Metrics.
  template <class P>
    requires(!std::same_as<std::remove_cvref_t<P>, any_stopping_policy>)
  any_stopping_policy(P policy) {  // NOLINT(google-explicit-constructor): a policy is a policy
    static_assert(detail::is_stopping_policy<P>());
    static_assert(observes<stopping_state_t<P>, Metrics>,
                  "pardl: this stopping policy cannot observe these metrics; its state needs a member "
                  "observe(metrics) for this type that returns a pardl::Verdict.");
    if (!detail::reads<Metrics>(policy))
      throw ConfigError(sentence("early stopping",
                                 "a policy's .metric belongs to another type than the metrics of this training",
                                 "point it at a member of the struct that observe() is given"));
    start_ = [policy = std::move(policy)] { return State{policy.start()}; };
  }

  /// Whether it can be asked about metrics of this type.
  template <class Observed>
  [[nodiscard]] constexpr bool reads() const {
    return std::is_convertible_v<Observed const&, Metrics const&>;
  }
  [[nodiscard]] State start() const { return start_(); }

 private:
  std::function<State()> start_;
};

}  // namespace pardl::inline PARDL_ABI
