// SPDX-License-Identifier: MIT
/// \file   A robust rule over the updates of one round, as they lie in shared memory.
/// \layer  fed, private.
#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "pardl/fed/any_robust_aggregator.hpp"
#include "pardl/fed/detail/round_memory.hpp"
#include "pardl/fed/robust.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// The coordinator and each worker have one of their own, and come to the same plan by themselves. A pass writes one
/// half of the shared partial sums while the half of the pass before may still be read.
class RobustRound {
 public:
  /// Of the updates that count. \throws ConfigError where the rule does not suit so many.
  RobustRound(any_robust_aggregator const& rule, RoundMemory& memory)
      : rule_(rule), memory_(memory), updates_(look(memory)), plan_(begin_plan(rule_, updates_)) {}

  [[nodiscard]] bool ready() const noexcept { return plan_.ready; }
  /// This worker's part of the next pass.
  void survey(std::size_t worker) {
    fed::survey(rule_, updates_, plan_, Blocks(updates_.length()).share(worker, memory_.sizes().workers), half());
  }
  /// After all workers' parts.
  void decide() { fed::decide(rule_, updates_, half(), plan_); }
  /// How often decide() was called.
  [[nodiscard]] int passes() const noexcept { return plan_.passes; }
  void combine(std::size_t begin, std::span<double> result) const { rule_.combine(updates_, plan_, begin, result); }

 private:
  static Updates look(RoundMemory const& memory) {
    std::vector<std::span<float const>> rows;
    std::vector<double> weights;
    auto const size = memory.sizes().shared;
    for (std::size_t task = 0; task < static_cast<std::size_t>(memory.desk().tasks); ++task)
      if (auto const& outcome = memory.outcomes[task]; outcome.state == TaskState::done) {
        rows.emplace_back(memory.rows.span(task * size, size));
        weights.push_back(outcome.weight);
      }
    return {memory.global.span(), std::move(rows), std::move(weights)};
  }
  [[nodiscard]] std::span<double> half() const {
    auto const size = partials_size(rule_, updates_);
    return memory_.partials.span(plan_.passes % 2 == 0 ? 0 : size, size);
  }

  any_robust_aggregator const& rule_;
  RoundMemory& memory_;
  Updates updates_;
  Plan plan_;
};

}  // namespace pardl::inline PARDL_ABI::fed::detail
