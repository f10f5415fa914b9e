// SPDX-License-Identifier: MIT
#include "pardl/policy/lr_schedule.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "pardl/policy/any_lr_schedule.hpp"
#include "support/golden.hpp"

using pardl::any_lr_schedule;
using pardl::constant;
using pardl::cosine;
using pardl::multi_step;
using pardl::one_cycle;
using pardl::warmup;
using pardl::testing::GoldenRecord;

namespace {

// PyTorch's rate against base · factor. Its chained forms gather rounding errors from step to step; ours is closed.
void compare(GoldenRecord const& record, double base, any_lr_schedule const& factor, double tolerance, bool relative) {
  auto const rates = record.reals();
  CHECK(!rates.empty());
  for (std::size_t step = 0; step < rates.size(); ++step) {
    double const ours = base * factor(static_cast<std::int64_t>(step));
    CAPTURE(record.words[0]);
    CAPTURE(step);
    CAPTURE(ours);
    CAPTURE(rates[step]);
    CHECK(std::abs(ours - rates[step]) <= tolerance * (relative ? rates[step] : base));
  }
}

}  // namespace

TEST_CASE("every schedule gives the rates that PyTorch's gives") {
  std::size_t warmups = 0, cosines = 0, steps = 0, sequences = 0, cycles = 0, momenta = 0;
  for (auto const& record : pardl::testing::golden("lr_schedule.txt")) {
    auto const& kind = record.words.at(0);
    if (kind == "warmup") {
      ++warmups;
      compare(record, record.real(1),
              warmup({.steps = record.integer(4), .start_factor = record.real(2), .end_factor = record.real(3)}), 1e-12,
              false);
    } else if (kind == "cosine") {
      ++cosines;
      compare(record, record.real(1), cosine({.steps = record.integer(3), .min_factor = record.real(2)}), 1e-12, false);
    } else if (kind == "multi_step") {
      ++steps;
      std::vector<std::int64_t> milestones;
      for (std::size_t i = 3; i < record.words.size(); ++i) milestones.push_back(record.integer(i));
      compare(record, record.real(1), multi_step({.milestones = milestones, .gamma = record.real(2)}), 1e-14, true);
    } else if (kind == "warmup_cosine") {
      ++sequences;
      compare(
          record, record.real(1),
          warmup({.steps = record.integer(3), .start_factor = record.real(2)}) | cosine({.steps = record.integer(4)}),
          1e-12, false);
    } else {
      auto const cycle = one_cycle({.steps = record.integer(7),
                                    .pct_start = record.real(4),
                                    .anneal = record.words[2] == "cos" ? pardl::Anneal::cosine : pardl::Anneal::linear,
                                    .div_factor = record.real(5),
                                    .final_div_factor = record.real(6),
                                    .three_phase = record.integer(1) == 1});
      if (kind == "one_cycle") {
        ++cycles;
        compare(record, record.real(3), cycle, 1e-14, false);
      } else {
        REQUIRE(kind == "one_cycle_momentum");
        ++momenta;
        compare(
            record, 1.0, [&](std::int64_t step) { return cycle.momentum(step); }, 1e-14, false);
      }
    }
  }
  CHECK(warmups == 12);
  CHECK(cosines == 12);
  CHECK(steps == 12);
  CHECK(sequences == 9);
  CHECK(cycles == 60);
  CHECK(momenta == 20);
}

TEST_CASE("one-cycle holds its last factor behind its end") {
  auto const cycle = one_cycle({.steps = 10});
  CHECK(cycle(9) == doctest::Approx(1.0 / 25 / 1e4).epsilon(1e-9));
  CHECK(cycle(10) == cycle(9));
  CHECK(cycle(1000) == cycle(9));
  CHECK(cycle.momentum(1000) == cycle.momentum(9));
}

TEST_CASE("a phase without length, where PyTorch divides by zero, is over at once") {
  auto const cycle = one_cycle({.steps = 10, .pct_start = 0.1});
  CHECK(cycle(0) == 1.0);
  CHECK(cycle(1) < 1.0);
}

TEST_CASE("three parts run one after the other, and the whole has an end where the last has") {
  auto const schedule = warmup({.steps = 2, .start_factor = 0.5}) |
                        warmup({.steps = 3, .start_factor = 1.0, .end_factor = 0.25}) | cosine({.steps = 4});
  CHECK(schedule.steps() == 9);
  CHECK(schedule(0) == 0.5);
  CHECK(schedule(2) == 1.0);
  CHECK(schedule(3) == 0.75);
  CHECK(schedule(5) == 1.0);
  CHECK(schedule(7) == doctest::Approx(0.5));
  CHECK(schedule(9) == doctest::Approx(0.0));
}

TEST_CASE("a warm-up of no steps is none") {
  auto const schedule = warmup({.steps = 0, .start_factor = 0.0}) | multi_step({.milestones = {4}});
  CHECK(schedule(0) == 1.0);
  CHECK(schedule(4) == doctest::Approx(0.1));
}

TEST_CASE("a lambda is a schedule") {
  auto const schedule =
      warmup({.steps = 1, .start_factor = 0.5}) | [](std::int64_t step) { return 10.0 + static_cast<double>(step); };
  CHECK(schedule(0) == 0.5);
  CHECK(schedule(3) == 12.0);
}

TEST_CASE("the linear scaling rule scales with the global batch") {
  CHECK(pardl::linear_scaling(0.1, {.global = 1024, .reference = 256}) == 0.4);
  CHECK(pardl::linear_scaling(0.1, {.global = 128, .reference = 256}) == 0.05);
  CHECK_THROWS_AS((void)pardl::linear_scaling(0.1, {.global = 128}), pardl::ConfigError);
}

TEST_CASE("a name on the command line becomes a schedule") {
  auto const flat = pardl::make_lr_schedule("constant", {.steps = 10, .warmup_steps = 2});
  CHECK(flat(0) == doctest::Approx(1.0 / 3));
  CHECK(flat(2) == 1.0);
  CHECK(flat(99) == 1.0);
  auto const half = pardl::make_lr_schedule("cosine", {.steps = 10, .warmup_steps = 2});
  CHECK(half(2) == 1.0);
  CHECK(half(6) == doctest::Approx(0.5));
  CHECK(half(10) == doctest::Approx(0.0));
  auto const cycle = pardl::make_lr_schedule("one-cycle", {.steps = 10});
  for (std::int64_t step = 0; step < 10; ++step) CHECK(cycle(step) == one_cycle({.steps = 10})(step));
  CHECK_THROWS_WITH_AS((void)pardl::make_lr_schedule("cos", {.steps = 10}),
                       "[lr schedule] no schedule is called 'cos'; choose one of constant, cosine, one-cycle.",
                       pardl::ConfigError);
  CHECK_THROWS_AS((void)pardl::make_lr_schedule("one-cycle", {.steps = 10, .warmup_steps = 1}), pardl::ConfigError);
  CHECK_THROWS_AS((void)pardl::make_lr_schedule("cosine", {.steps = 10, .warmup_steps = 10}), pardl::ConfigError);
}

TEST_CASE("settings that cannot work are refused in a sentence") {
  CHECK_THROWS_WITH_AS((void)cosine({}),
                       "[lr schedule] a cosine of no steps; give .steps, the optimizer steps it goes on for.",
                       pardl::ConfigError);
  CHECK_THROWS_AS((void)warmup({.steps = -1}), pardl::ConfigError);
  CHECK_THROWS_AS((void)warmup({.steps = 1, .start_factor = -0.1}), pardl::ConfigError);
  CHECK_THROWS_AS((void)multi_step({.milestones = {3, -1}}), pardl::ConfigError);
  CHECK_THROWS_AS((void)one_cycle({}), pardl::ConfigError);
  CHECK_THROWS_AS((void)one_cycle({.steps = 1, .pct_start = 1.5}), pardl::ConfigError);
  CHECK_THROWS_AS((void)one_cycle({.steps = 1, .div_factor = 0.0}), pardl::ConfigError);
}

static_assert((warmup({.steps = 4, .start_factor = 0.0}) | constant({.factor = 2.0}))(1) == 0.25);
static_assert(multi_step({.milestones = {5, 2}, .gamma = 0.5})(5) == 0.25);
static_assert(one_cycle({.steps = 10, .anneal = pardl::Anneal::linear})(2) == 1.0);
static_assert(pardl::linear_scaling(1.0, {.global = 3, .reference = 2}) == 1.5);
