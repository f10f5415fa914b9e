// SPDX-License-Identifier: MIT
/// \file   A robust rule chosen at run time: one value type, and the one table from names to makers.
/// \layer  fed (std only).
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "pardl/fed/robust.hpp"
#include "pardl/fed/robust_rules.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// Any of the robust rules; it models robust_aggregator itself.
class any_robust_aggregator {
 public:
  using Choice = std::variant<Median, Krum, TrimmedMean, Bulyan, GeometricMedian, NormBounding>;

  any_robust_aggregator() = default;
  template <class Rule>
    requires std::constructible_from<Choice, Rule> && (!std::same_as<std::remove_cvref_t<Rule>, any_robust_aggregator>)
  any_robust_aggregator(Rule rule)  // NOLINT(google-explicit-constructor): a rule is a rule
      : choice_(std::move(rule)) {}

  void check(std::size_t n) const {
    std::visit([&](auto const& rule) { rule.check(n); }, choice_);
  }
  [[nodiscard]] std::size_t sums(std::size_t n) const {
    return std::visit([&](auto const& rule) { return rule.sums(n); }, choice_);
  }
  void partial(Updates const& updates, Plan const& plan, std::size_t begin, std::size_t end,
               std::span<double> numbers) const {
    std::visit([&](auto const& rule) { rule.partial(updates, plan, begin, end, numbers); }, choice_);
  }
  void choose(Updates const& updates, std::span<double const> sums, Plan& plan) const {
    std::visit([&](auto const& rule) { rule.choose(updates, sums, plan); }, choice_);
  }
  void combine(Updates const& updates, Plan const& plan, std::size_t begin, std::span<double> result) const {
    std::visit([&](auto const& rule) { rule.combine(updates, plan, begin, result); }, choice_);
  }

 private:
  Choice choice_;
};
static_assert(robust_aggregator<any_robust_aggregator>);

/// What a command line or a YAML file knows when it chooses a rule by name. Each maker reads what it uses; -1 is "not
/// given", as in FederatedScope, and refused by the rule that needs it.
struct RobustChoice {
  std::int64_t byzantine = 0;     ///< all but normbounding: clients that may lie
  std::int64_t krum_agg_num = 1;  ///< krum: updates that are averaged; more than 1 is multi-Krum
  double excluded_ratio = -1;     ///< trimmedmean: share cut off at each end
  double norm_bound = -1;         ///< normbounding: largest norm of an update's change
};

struct RobustMaker {
  std::string_view name;
  any_robust_aggregator (*make)(RobustChoice const&);
};

/// The one table from names to makers, in FederatedScope's words and one more.
inline constexpr std::array<RobustMaker, 6> robust_aggregators{{
    {"krum",
     [](RobustChoice const& c) -> any_robust_aggregator {
       return {Krum{.byzantine = c.byzantine, .average = c.krum_agg_num}};
     }},
    {"median", [](RobustChoice const& c) -> any_robust_aggregator { return {Median{.byzantine = c.byzantine}}; }},
    {"trimmedmean",
     [](RobustChoice const& c) -> any_robust_aggregator {
       return {TrimmedMean{.excluded_ratio = c.excluded_ratio, .byzantine = c.byzantine}};
     }},
    {"bulyan", [](RobustChoice const& c) -> any_robust_aggregator { return {Bulyan{.byzantine = c.byzantine}}; }},
    {"normbounding",
     [](RobustChoice const& c) -> any_robust_aggregator { return {NormBounding{.bound = c.norm_bound}}; }},
    {"geometric_median",
     [](RobustChoice const& c) -> any_robust_aggregator { return {GeometricMedian{.byzantine = c.byzantine}}; }},
}};

/// \throws ConfigError for a name that is not in the table (the sentence lists them); settings that cannot be right are
/// refused by check(n), as soon as the number of updates is known.
[[nodiscard]] inline any_robust_aggregator make_robust_aggregator(std::string_view name,
                                                                  RobustChoice const& choice = {}) {
  std::string known;
  for (auto const& entry : robust_aggregators) {
    if (entry.name == name) return entry.make(choice);
    known.append(known.empty() ? "" : ", ").append(entry.name);
  }
  throw ConfigError(sentence("fed", "no robust rule is called '" + std::string(name) + "'", "choose one of " + known));
}

}  // namespace pardl::inline PARDL_ABI::fed
