// SPDX-License-Identifier: MIT
#include "pardl/fed/batch_plan.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "support/golden.hpp"
#include "support/temporary_folder.hpp"

using pardl::fed::BatchPlan;
using pardl::fed::BatchRules;
using pardl::fed::plan_batches;
using pardl::fed::StepUnit;

TEST_CASE("a plan has the batches, passes and samples that FederatedScope's loops have") {
  std::size_t plans = 0, refused = 0;
  for (auto const& record : pardl::testing::golden("batch_plan.txt")) {
    BatchRules const rules{.batch_size = record.integer(1),
                           .steps = record.integer(4),
                           .unit = record.words.at(3) == "epoch" ? StepUnit::epoch : StepUnit::batch,
                           .drop_last = record.integer(2) == 1,
                           .accumulate = record.integer(5)};
    INFO("samples " << record.words[0] << " batch " << record.words[1] << " drop_last " << record.words[2] << " "
                    << record.words[3] << " steps " << record.words[4] << " accumulate " << record.words[5]);
    if (record.values.at(0) == "none") {
      ++refused;
      CHECK_THROWS_AS((void)plan_batches(rules, record.integer(0)), pardl::DataError);
      continue;
    }
    ++plans;
    auto const expected = record.integers();
    CHECK(plan_batches(rules, record.integer(0)) == BatchPlan{.batches_per_epoch = expected.at(0),
                                                              .epochs = expected.at(1),
                                                              .batches_last_epoch = expected.at(2),
                                                              .batches = expected.at(3),
                                                              .samples = expected.at(4)});
  }
  CHECK(plans > 1000);
  CHECK(refused > 100);
}

TEST_CASE("the weight in batch steps hardly depends on the client's data, in epochs it is its data") {
  static_assert(plan_batches({.batch_size = 10, .steps = 6}, 100).samples == 60);
  static_assert(plan_batches({.batch_size = 10, .steps = 6}, 20).samples == 60);
  static_assert(plan_batches({.batch_size = 10, .steps = 2, .unit = StepUnit::epoch}, 97).samples == 194);
  static_assert(plan_batches({.batch_size = 10, .steps = 2, .unit = StepUnit::epoch, .drop_last = true}, 97).samples ==
                180);
}

TEST_CASE("accumulation leaves the number of optimizer steps whole") {
  for (std::int64_t samples = 1; samples < 40; ++samples)
    for (StepUnit const unit : {StepUnit::batch, StepUnit::epoch})
      CHECK(plan_batches({.batch_size = 7, .steps = 3, .unit = unit, .accumulate = 4}, samples).batches % 4 == 0);
}

TEST_CASE("a client that cannot fill a batch is refused with what to do") {
  using pardl::testing::what_of;
  CHECK(what_of<pardl::DataError>([] { (void)plan_batches({.batch_size = 10, .drop_last = true}, 9); }) ==
        "[fed] a client with 9 training samples has no batch of 10; leave drop_last off, or make batches smaller.");
  CHECK(what_of<pardl::DataError>([] { (void)plan_batches({}, 0); }) ==
        "[fed] a client with 0 training samples has no batch of 64; leave the client out.");
  CHECK_THROWS_AS((void)plan_batches({}, -5), pardl::DataError);
}

TEST_CASE("counts that cannot be are refused, and none overflows") {
  constexpr std::int64_t most = std::int64_t{1} << 31;
  constexpr std::int64_t all = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t const bad : {std::int64_t{0}, std::int64_t{-1}, most + 1, all}) {
    CHECK_THROWS_AS(check(BatchRules{.batch_size = bad}), pardl::ConfigError);
    CHECK_THROWS_AS(check(BatchRules{.steps = bad}), pardl::ConfigError);
    CHECK_THROWS_AS(check(BatchRules{.accumulate = bad}), pardl::ConfigError);
  }
  CHECK_THROWS_AS(check(BatchRules{.steps = 1 << 20, .accumulate = 1 << 20}), pardl::ConfigError);
  CHECK_THROWS_AS((void)plan_batches({}, all), pardl::DataError);
  auto const largest = plan_batches({.batch_size = 1, .steps = most, .unit = StepUnit::epoch}, most);
  CHECK(largest.batches == most * most);
  CHECK(largest.samples == most * most);
  CHECK(largest.epochs == most);
}
