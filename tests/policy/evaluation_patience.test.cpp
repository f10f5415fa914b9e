// SPDX-License-Identifier: MIT
#include "pardl/policy/evaluation_patience.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <initializer_list>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/policy/any_stopping_policy.hpp"
#include "support/golden.hpp"

using pardl::EvaluationPatience;
using pardl::Goal;
using pardl::goal_of;
using pardl::Indicator;
using pardl::stopper;
using pardl::Verdict;

namespace {

struct Results {
  double val_loss = 0.0;
  double test_acc = 0.0;
};

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

std::string verdicts(auto stop, std::vector<double> const& values) {
  std::string said;
  for (double const value : values) {
    said += ".SF"[static_cast<int>(stop.observe(value))];
    CHECK(stop.reason().empty() == (said.back() == '.'));
  }
  return said;
}

constexpr int ends_after(EvaluationPatience const& policy, std::initializer_list<double> values) {
  auto stop = stopper(policy);
  int evaluation = 0;
  for (double const value : values) {
    ++evaluation;
    if (stop.observe(value) != Verdict::go_on) return evaluation;
  }
  return 0;
}

}  // namespace

TEST_CASE("EvaluationPatience says what FederatedScope's stopper says, evaluation by evaluation") {
  std::set<std::string> seen;
  for (auto const& record : pardl::testing::golden("evaluation_patience.txt")) {
    bool const best = record.words.at(0) == "best";
    EvaluationPatience const policy{.goal = record.words.at(1) == "maximize" ? Goal::maximize : Goal::minimize,
                                    .delta = record.real(2),
                                    .patience = record.integer(3),
                                    .mode = best ? Indicator::best : Indicator::mean};
    CHECK(verdicts(stopper(policy), record.reals()) == record.words.at(4));
    CHECK(verdicts(stopper(pardl::any_stopping_policy<double>(policy)), record.reals()) == record.words.at(4));
    seen.insert(record.words.at(0) + " " + record.words.at(1) + (policy.patience == 0 ? " off" : " on") +
                (policy.delta > 0.0 ? " delta" : ""));
  }
  CHECK(seen.size() == 16);  // both rules, both directions, on and off, with and without a delta
}

TEST_CASE("a tie is an improvement without a delta, and none with one") {
  static_assert(ends_after({.goal = Goal::minimize, .patience = 2}, {1.0, 1.0, 1.0, 1.0, 1.0}) == 0);
  static_assert(ends_after({.goal = Goal::minimize, .delta = 0.5, .patience = 2}, {1.0, 1.0, 1.0, 1.0}) == 3);
  static_assert(ends_after({.goal = Goal::maximize, .delta = 0.5, .patience = 1}, {1.0, 1.5, 2.0, 2.25}) == 4);
  static_assert(ends_after({.goal = Goal::maximize, .patience = 1}, {1.0, 1.0, 0.5}) == 3);
}

TEST_CASE("with a delta, a small gain neither counts nor moves the best") {
  // From 1.0: 0.75 and 0.625 are worse than 1.0 - 0.5; 0.5 is exactly enough.
  static_assert(ends_after({.goal = Goal::minimize, .delta = 0.5, .patience = 3}, {1.0, 0.75, 0.625, 0.5, 0.4}) == 0);
  auto state = EvaluationPatience{.goal = Goal::minimize, .delta = 0.5, .patience = 9}.start();
  for (double const value : {1.0, 0.75, 0.625}) (void)state.observe(value);
  CHECK(state.best() == 1.0);
  (void)state.observe(0.5);
  CHECK(state.best() == 0.5);
}

TEST_CASE("a patience of 0 never stops, whatever comes") {
  CHECK(verdicts(stopper(EvaluationPatience{.goal = Goal::minimize, .patience = 0}),
                 {1.0, 2.0, not_a_number, infinity, 5.0, 6.0, 7.0}) == ".......");
  CHECK(verdicts(stopper(EvaluationPatience{.goal = Goal::minimize, .patience = 0, .mode = Indicator::mean}),
                 {1.0, 2.0, not_a_number, infinity}) == "....");
}

TEST_CASE("a value that is not a number is never an improvement, and nothing is compared with it") {
  EvaluationPatience const policy{.goal = Goal::minimize, .patience = 2};
  CHECK(verdicts(stopper(policy), {not_a_number, not_a_number, 1.0}) == ".S.");
  CHECK(verdicts(stopper(policy), {1.0, not_a_number, 2.0}) == "..S");  // in FederatedScope 2.0 beats it
  CHECK(verdicts(stopper(policy), {1.0, not_a_number, 1.0, not_a_number}) == "....");
  EvaluationPatience const mean{.goal = Goal::maximize, .patience = 2, .mode = Indicator::mean};
  CHECK(verdicts(stopper(mean), {1.0, not_a_number, 0.5}) == "..S");  // the mean of what is a number is 1.0
  CHECK(verdicts(stopper(mean), {1.0, 1.0, not_a_number}) == "..S");
  CHECK(verdicts(stopper(mean), {not_a_number, not_a_number, -5.0}) == "...");
}

TEST_CASE("mode mean compares with the mean of the last values, not with all of them") {
  EvaluationPatience const policy{.goal = Goal::minimize, .patience = 2, .mode = Indicator::mean};
  CHECK(verdicts(stopper(policy), {9.0, 1.0, 5.0}) == "...");  // the mean of 9 and 1
  CHECK(verdicts(stopper(policy), {9.0, 1.0, 5.5}) == "..S");
  CHECK(verdicts(stopper(policy), {9.0, 1.0, 5.0, 3.5}) == "...S");  // of 1 and 5, no longer of 9
}

TEST_CASE("it says why in words that count evaluations") {
  auto best = stopper(EvaluationPatience{.goal = Goal::minimize, .patience = 1, .name = "val_loss"});
  (void)best.observe(0.5);
  (void)best.observe(0.75);
  CHECK(best.reason() == "no improvement of val_loss on 0.5 for 1 evaluation");
  auto mean =
      stopper(EvaluationPatience{.goal = Goal::maximize, .patience = 2, .mode = Indicator::mean, .name = "test_acc"});
  for (double const value : {0.5, 0.5, 0.25}) (void)mean.observe(value);
  CHECK(mean.reason() == "test_acc is worse than its mean over the 2 evaluations before");
  auto never = stopper(EvaluationPatience{.goal = Goal::minimize, .patience = 1, .name = "val_loss"});
  (void)never.observe(not_a_number);
  CHECK(never.reason() == "no improvement of val_loss for 1 evaluation");
}

TEST_CASE("it reads its number out of a struct") {
  auto stop =
      stopper<Results>(EvaluationPatience{.metric = &Results::test_acc, .goal = goal_of("test_acc"), .patience = 1});
  CHECK(stop.observe(Results{.val_loss = 1.0, .test_acc = 0.5}) == Verdict::go_on);
  CHECK(stop.observe(Results{.val_loss = 2.0, .test_acc = 0.6}) == Verdict::go_on);
  CHECK(stop.observe(Results{.val_loss = 0.1, .test_acc = 0.5}) == Verdict::stop);
}

TEST_CASE("a saved stopper goes on as if it had never stopped, in both modes and at every place") {
  std::vector<double> const values{3.0, not_a_number, 2.0, 2.5, infinity, 2.0, 1.5, 4.0, 1.75, 1.0, 1.0, 6.0};
  for (auto const mode : {Indicator::best, Indicator::mean})
    for (std::int64_t const patience : {0, 1, 3}) {
      EvaluationPatience const policy{.goal = Goal::minimize, .delta = 0.25, .patience = patience, .mode = mode};
      std::string const whole = verdicts(stopper(policy), values);
      for (std::size_t cut = 0; cut <= values.size(); ++cut) {
        auto first = stopper(policy), second = stopper(policy);
        for (std::size_t i = 0; i < cut; ++i) (void)first.observe(values[i]);
        std::vector<double> const saved = first.save();
        for (double const number : saved) CHECK(number == number);
        second.restore(saved);
        CHECK(second.save() == saved);
        CHECK(second.epochs() == static_cast<std::int64_t>(cut));
        CHECK(second.verdict() == first.verdict());
        CHECK(second.reason() == first.reason());
        std::string rest;
        for (std::size_t i = cut; i < values.size(); ++i) rest += ".SF"[static_cast<int>(second.observe(values[i]))];
        CHECK(rest == whole.substr(cut));
      }
    }
}

TEST_CASE("a state that does not fit is refused and changes nothing") {
  EvaluationPatience const longer{.goal = Goal::minimize, .patience = 4, .mode = Indicator::mean};
  EvaluationPatience const shorter{.goal = Goal::minimize, .patience = 2, .mode = Indicator::mean};
  auto from = stopper(longer);
  for (double const value : {1.0, 2.0, 3.0, 4.0}) (void)from.observe(value);
  auto saved = from.save();
  auto into = stopper(shorter);
  CHECK_THROWS_AS(into.restore(saved), pardl::CheckpointError);
  CHECK(into.save() == stopper(shorter).save());
  saved.pop_back();
  auto other = stopper(longer);
  CHECK_THROWS_AS(other.restore(saved), pardl::CheckpointError);
  CHECK(other.save() == stopper(longer).save());
  CHECK_THROWS_AS(other.restore(std::vector<double>{0, 0, 1, 2, 0, 0, 1e15}), pardl::CheckpointError);
}

TEST_CASE("settings that cannot work are refused") {
  CHECK_THROWS_AS((void)stopper(EvaluationPatience{.goal = Goal::minimize, .patience = -1}), pardl::ConfigError);
  for (double const delta : {-0.5, not_a_number, infinity})
    CHECK_THROWS_AS((void)stopper(EvaluationPatience{.goal = Goal::minimize, .delta = delta}), pardl::ConfigError);
}

TEST_CASE("the direction comes from a metric's whole name, not from a part of it") {
  for (std::string_view const key : {"val_loss", "test_loss", "train_loss", "loss", "val_avg_loss", "test_loss_regular",
                                     "val_mse", "test_rmse", "val_std"})
    CHECK(goal_of(key) == Goal::minimize);
  for (std::string_view const key : {"val_acc", "test_correct", "acc", "val_f1", "test_roc_auc", "val_ap",
                                     "test_imp_ratio", "val_hits@5", "test_hits@100"})
    CHECK(goal_of(key) == Goal::maximize);
  for (std::string_view const key : {"", "val_", "total", "val_total", "val_lossy", "accuracy", "my_loss", "val_hits@",
                                     "val_hits@x", "val_val_loss"})
    CHECK_THROWS_AS((void)goal_of(key), pardl::ConfigError);
}
