// SPDX-License-Identifier: MIT
/// \file   How many batches a client trains in one round, in how many passes over its data, and how many samples those
/// are.
/// \layer  fed (std only).
///
/// FederatedScope's rules: local steps count epochs or batches; with batches, a pass that runs out is followed by a
/// freshly shuffled one, and the last may end early; with gradient accumulation there are that many times more of
/// either, so that the optimizer's steps stay as many. The samples processed are the client's weight in the mean: with
/// steps of batches every client weighs about the same, however much data it has.
/// \source FederatedScope, core/trainers/utils.py: calculate_batch_epoch_num.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// What local steps count.
enum class StepUnit { batch, epoch };

struct BatchRules {
  std::int64_t batch_size = 64;     ///< samples
  std::int64_t steps = 1;           ///< of the unit, in one local training
  StepUnit unit = StepUnit::batch;  ///< FederatedScope's default
  bool drop_last = false;           ///< leave out a pass's last batch if it is not full
  std::int64_t accumulate = 1;      ///< batches whose gradients make one optimizer step
  friend bool operator==(BatchRules const&, BatchRules const&) = default;
};

/// \throws ConfigError for a count below 1, or one so large that batches could not be counted.
constexpr void check(BatchRules const& rules) {
  constexpr std::int64_t most = std::int64_t{1} << 31;
  auto const counts = [](std::int64_t n, char const* what) {
    if (n < 1 || n > most)
      throw ConfigError(
          sentence("fed", std::string(what) + " of " + std::to_string(n), "give a number from 1 to 2147483648"));
  };
  counts(rules.batch_size, "a batch size");
  counts(rules.steps, "a number of local steps");
  counts(rules.accumulate, "an accumulation");
  if (rules.steps > most / rules.accumulate)
    throw ConfigError(sentence("fed",
                               std::to_string(rules.steps) + " local steps, each of " +
                                   std::to_string(rules.accumulate) + " batches or epochs",
                               "give fewer"));
}

/// One client's share of a round.
struct BatchPlan {
  std::int64_t batches_per_epoch = 0;
  std::int64_t epochs = 0;  ///< passes, the last one perhaps not whole
  std::int64_t batches_last_epoch = 0;
  std::int64_t batches = 0;  ///< all
  std::int64_t samples = 0;  ///< processed, a sample once for each pass it is in: the client's weight
  friend bool operator==(BatchPlan const&, BatchPlan const&) = default;
};

/// \param samples  that the client has to train on.
/// \throws ConfigError as check(); DataError for a client that cannot fill one batch: no samples, or with drop_last
/// fewer than a batch.
[[nodiscard]] constexpr BatchPlan plan_batches(BatchRules const& rules, std::int64_t samples) {
  check(rules);
  if (samples > (std::int64_t{1} << 31))  // so that no product below can overflow
    throw DataError(sentence("fed", "a client with " + std::to_string(samples) + " training samples",
                             "divide it into several of at most 2147483648"));
  std::int64_t const full = samples / rules.batch_size;
  std::int64_t const rest = rules.drop_last ? 0 : samples % rules.batch_size;
  BatchPlan plan{.batches_per_epoch = full + (rest > 0 ? 1 : 0)};
  if (samples < 1 || plan.batches_per_epoch == 0)
    throw DataError(sentence("fed",
                             "a client with " + std::to_string(samples) + " training samples has no batch of " +
                                 std::to_string(rules.batch_size),
                             samples < 1 ? "leave the client out" : "leave drop_last off, or make batches smaller"));
  std::int64_t const steps = rules.steps * rules.accumulate;
  bool const whole = rules.unit == StepUnit::epoch;
  plan.batches = whole ? steps * plan.batches_per_epoch : steps;
  plan.epochs = (plan.batches + plan.batches_per_epoch - 1) / plan.batches_per_epoch;
  plan.batches_last_epoch = plan.batches - (plan.epochs - 1) * plan.batches_per_epoch;
  std::int64_t const pass = full * rules.batch_size + rest;
  plan.samples = (plan.epochs - 1) * pass + std::min(plan.batches_last_epoch * rules.batch_size, pass);
  return plan;
}

static_assert(plan_batches({.batch_size = 10, .unit = StepUnit::epoch}, 60).samples == 60);
static_assert(plan_batches({.batch_size = 10, .steps = 8}, 25) == BatchPlan{3, 3, 2, 8, 70});

}  // namespace pardl::inline PARDL_ABI::fed
