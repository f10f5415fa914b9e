// SPDX-License-Identifier: MIT
/// \file   A schedule chosen at run time: one value type, and the one table from names to makers.
/// \layer  policy (std only).
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "pardl/policy/error.hpp"
#include "pardl/policy/lr_schedule.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Any lr_schedule as a value; it models lr_schedule itself.  \cost one indirect call per step.
class any_lr_schedule {
 public:
  template <class S>
    requires(!std::same_as<std::remove_cvref_t<S>, any_lr_schedule>) && lr_schedule<S>
  any_lr_schedule(S schedule)  // NOLINT(google-explicit-constructor): a schedule is a schedule
      : factor_([schedule = std::move(schedule)](std::int64_t step) { return static_cast<double>(schedule(step)); }) {}

  [[nodiscard]] double operator()(std::int64_t step) const { return factor_(step); }

 private:
  std::function<double(std::int64_t)> factor_;
};
static_assert(lr_schedule<any_lr_schedule>);

/// What a command line knows when it chooses a schedule by name.
struct LrScheduleChoice {
  std::int64_t steps = 0;         ///< optimizer steps of the whole training
  std::int64_t warmup_steps = 0;  ///< of these, how many climb first; 0 = none
};

struct LrScheduleMaker {
  std::string_view name;
  any_lr_schedule (*make)(LrScheduleChoice);
};

/// The one table from names to makers.
inline constexpr std::array<LrScheduleMaker, 3> lr_schedules{{
    {"constant",
     [](LrScheduleChoice choice) -> any_lr_schedule { return warmup({.steps = choice.warmup_steps}) | constant(); }},
    {"cosine",
     [](LrScheduleChoice choice) -> any_lr_schedule {
       return warmup({.steps = choice.warmup_steps}) | cosine({.steps = choice.steps - choice.warmup_steps});
     }},
    {"one-cycle",
     [](LrScheduleChoice choice) -> any_lr_schedule {
       detail::check_schedule(choice.warmup_steps == 0, "a warm-up before one-cycle",
                              "leave it out: one-cycle begins with its own");
       return one_cycle({.steps = choice.steps});
     }},
}};

/// \throws ConfigError for a name that is not in the table (the sentence lists them) and for settings a maker refuses.
[[nodiscard]] inline any_lr_schedule make_lr_schedule(std::string_view name, LrScheduleChoice choice) {
  std::string known;
  for (auto const& entry : lr_schedules) {
    if (entry.name == name) return entry.make(choice);
    known.append(known.empty() ? "" : ", ").append(entry.name);
  }
  throw ConfigError(
      sentence("lr schedule", "no schedule is called '" + std::string(name) + "'", "choose one of " + known));
}

}  // namespace pardl::inline PARDL_ABI
