// SPDX-License-Identifier: MIT
#include "pardl/policy/early_stopping.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "pardl/policy/any_stopping_policy.hpp"
#include "support/golden.hpp"

using pardl::all_of;
using pardl::any_of;
using pardl::any_stopping_policy;
using pardl::Diverged;
using pardl::Goal;
using pardl::MaxEpochs;
using pardl::Patience;
using pardl::stopper;
using pardl::TargetReached;
using pardl::Verdict;

namespace {

struct Metrics {
  double accuracy = 0.0;
  double loss = 0.0;
  int samples = 0;
  [[nodiscard]] double error() const { return 1.0 - accuracy; }
};
struct Extended : Metrics {
  double f1 = 0.0;
};
struct Other {
  double loss = 0.0;
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

/// The epoch after which it ends, counted from 1; 0: never.
constexpr int ends_after(auto const& policy, std::initializer_list<double> values) {
  auto stop = stopper(policy);
  int epoch = 0;
  for (double const value : values) {
    ++epoch;
    if (stop.observe(value) != Verdict::go_on) return epoch;
  }
  return 0;
}

}  // namespace

TEST_CASE("TargetReached is the seed's rule and Patience is Lightning's, verdict by verdict") {
  std::size_t targets = 0, patiences = 0;
  for (auto const& record : pardl::testing::golden("early_stopping.txt")) {
    auto const goal = record.words.at(1) == "maximize" ? Goal::maximize : Goal::minimize;
    auto const patience = static_cast<int>(record.integer(3));
    if (record.words[0] == "target") {
      ++targets;
      CHECK(verdicts(stopper(TargetReached{.goal = goal, .target = record.real(2), .patience = patience}),
                     record.reals()) == record.words.at(4));
    } else {
      ++patiences;
      Patience const policy{.goal = goal, .min_delta = record.real(2), .patience = patience};
      CHECK(verdicts(stopper(policy), record.reals()) == record.words.at(4));
      auto state = policy.start();
      for (double const value : record.reals()) (void)state.observe(value);
      CHECK(state.best() == record.real(5));
    }
  }
  CHECK(targets == 60);
  CHECK(patiences == 60);
}

TEST_CASE("a policy reads a member, a getter or a callable of the caller's metrics") {
  Metrics const good{.accuracy = 0.9, .loss = 0.3, .samples = 12}, bad{.accuracy = 0.1, .loss = 3.0, .samples = 3};
  auto const ends = [&](auto const& policy) {
    auto stop = stopper<Metrics>(policy);
    CHECK(stop.observe(bad) == Verdict::go_on);
    return stop.observe(good) == Verdict::stop;
  };
  CHECK(ends(TargetReached{.metric = &Metrics::accuracy, .goal = Goal::maximize, .target = 0.9}));
  CHECK(ends(TargetReached{.metric = &Metrics::loss, .goal = Goal::minimize, .target = 0.3}));
  CHECK(ends(TargetReached{.metric = &Metrics::samples, .goal = Goal::maximize, .target = 12}));
  CHECK(ends(TargetReached{.metric = &Metrics::error, .goal = Goal::minimize, .target = 0.2}));
  double const weight = 2.0;
  CHECK(ends(TargetReached{
      .metric = [&](Metrics const& m) { return weight * m.accuracy; }, .goal = Goal::maximize, .target = 1.8}));
  CHECK(ends(TargetReached{.metric = +[](Metrics m) { return m.accuracy; }, .goal = Goal::maximize, .target = 0.9}));
}

TEST_CASE("a member that a base class declares is read through the derived metrics") {
  Extended const metrics{{.accuracy = 0.9, .loss = 0.2, .samples = 1}, 0.5};
  for (auto const& metric : {pardl::Metric{&Extended::accuracy}, pardl::Metric{&Metrics::accuracy}}) {
    auto stop = stopper<Extended>(TargetReached{.metric = metric, .goal = Goal::maximize, .target = 0.9});
    CHECK(stop.observe(metrics) == Verdict::stop);
  }
}

TEST_CASE("a metric of another struct is refused before the first epoch, or at the first at the latest") {
  Diverged const of_other{.metric = &Other::loss};
  CHECK_THROWS_AS((void)stopper<Metrics>(of_other), pardl::ConfigError);
  CHECK_THROWS_AS((void)stopper<Metrics>(any_of(MaxEpochs{3}, all_of(of_other))), pardl::ConfigError);
  CHECK_THROWS_AS((void)stopper<Metrics>(Diverged{}), pardl::ConfigError);  // no .metric: it wants the number itself
  CHECK_THROWS_AS((void)stopper<double>(of_other), pardl::ConfigError);
  CHECK_THROWS_AS(any_stopping_policy<Metrics>{of_other}, pardl::ConfigError);
  auto late = stopper(of_other);
  CHECK_THROWS_AS((void)late.observe(Metrics{}), pardl::ConfigError);
  auto bare = stopper(Diverged{});
  CHECK_THROWS_WITH_AS(
      (void)bare.observe(Metrics{}),
      "[early stopping] a policy without .metric was shown a struct; name the number it watches, for instance "
      ".metric = &Metrics::loss.",
      pardl::ConfigError);
}

TEST_CASE("Diverged fails on what is not a finite number, and beyond its bounds") {
  CHECK(verdicts(stopper(Diverged{}), {1.0, not_a_number, infinity, -infinity, 1e308}) == ".FFF.");
  CHECK(verdicts(stopper(Diverged{.above = 10.0}), {10.0, 10.5, -1e9}) == ".F.");
  CHECK(verdicts(stopper(Diverged{.below = 0.01}), {0.01, 0.009, 1e9}) == ".F.");
}

TEST_CASE("the verdict says why, in words") {
  auto const why = [](auto const& policy, std::initializer_list<double> values) {
    auto stop = stopper(policy);
    for (double const value : values) (void)stop.observe(value);
    return stop.reason();
  };
  TargetReached const target{.goal = Goal::maximize, .target = 0.85, .patience = 2, .name = "validation accuracy"};
  CHECK(why(target, {0.9, 0.9}) == "validation accuracy at or above 0.85 for 2 epochs in a row");
  CHECK(why(TargetReached{.goal = Goal::minimize, .target = 0.5}, {0.5}) == "the metric at or below 0.5 for 1 epoch");
  CHECK(why(Patience{.goal = Goal::minimize, .patience = 2, .name = "loss"}, {0.5, 0.5, 0.6}) ==
        "no improvement of loss on 0.5 for 2 epochs");
  CHECK(why(Diverged{.name = "loss"}, {not_a_number}).starts_with("loss is nan"));
  CHECK(why(Diverged{.above = 4.0, .name = "loss"}, {5.0}) == "loss is 5, above 4");
  CHECK(why(Diverged{.below = 4.0, .name = "loss"}, {3.5}) == "loss is 3.5, below 4");
  CHECK(why(MaxEpochs{2}, {0.0}).empty());
  CHECK(why(MaxEpochs{2}, {0.0, 0.0}) == "2 epochs done");
  CHECK(why(any_of(target, MaxEpochs{2}), {0.9, 0.9}) ==
        "validation accuracy at or above 0.85 for 2 epochs in a row, and 2 epochs done");
  CHECK(why(any_of(Diverged{.name = "loss"}, MaxEpochs{1}), {infinity}) == "loss is inf");
  CHECK(why(all_of(target, MaxEpochs{3}), {0.9, 0.9}).empty());
}

TEST_CASE("any_of ends with the first, all_of when all agree on one epoch, and a failure ends both") {
  TargetReached const target{.goal = Goal::maximize, .target = 0.5};
  CHECK(verdicts(stopper(any_of(target, MaxEpochs{3})), {0.1, 0.6, 0.1, 0.1}) == ".SSS");
  CHECK(verdicts(stopper(all_of(target, MaxEpochs{2})), {0.6, 0.1, 0.1, 0.6}) == "...S");
  CHECK(verdicts(stopper(any_of(MaxEpochs{1}, Diverged{})), {not_a_number}) == "F");
  CHECK(verdicts(stopper(all_of(MaxEpochs{9}, Diverged{})), {0.1, not_a_number}) == ".F");
  CHECK(verdicts(stopper(any_of(all_of(target, MaxEpochs{2}), MaxEpochs{4})), {0.1, 0.1, 0.1, 0.1}) == "...S");
}

TEST_CASE("a copy goes on by itself, and a saved state goes on where it was") {
  auto const policy = any_of(TargetReached{.goal = Goal::maximize, .target = 0.5, .patience = 3},
                             Patience{.goal = Goal::maximize, .patience = 4}, Diverged{}, MaxEpochs{50});
  std::vector<double> const values{0.1, 0.6, 0.2, 0.6, 0.6, 0.3, 0.1, 0.2, 0.1, 0.6, 0.7, 0.8};
  for (std::size_t cut = 0; cut <= values.size(); ++cut) {
    auto whole = stopper(policy);
    for (std::size_t i = 0; i < cut; ++i) (void)whole.observe(values[i]);
    auto resumed = stopper(policy);
    resumed.restore(whole.save());
    auto copy = whole;
    CHECK(resumed.epochs() == static_cast<std::int64_t>(cut));
    CHECK(resumed.verdict() == whole.verdict());
    for (std::size_t i = cut; i < values.size(); ++i) {
      auto const verdict = whole.observe(values[i]);
      CHECK(resumed.observe(values[i]) == verdict);
      CHECK(resumed.reason() == whole.reason());
      CHECK(copy.observe(values[i]) == verdict);
    }
    CHECK(resumed.save() == whole.save());
  }
}

TEST_CASE("a state that was saved from other policies is refused and changes nothing") {
  auto stop = stopper(Patience{.goal = Goal::maximize});
  (void)stop.observe(0.5);
  auto const before = stop.save();
  CHECK_THROWS_AS(stop.restore(stopper(MaxEpochs{3}).save()), pardl::CheckpointError);
  CHECK_THROWS_AS(stop.restore(stopper(any_of(MaxEpochs{3}, Patience{.goal = Goal::maximize})).save()),
                  pardl::CheckpointError);
  CHECK_THROWS_AS(stop.restore({}), pardl::CheckpointError);
  CHECK_THROWS_AS(stopper(MaxEpochs{3}).restore(stopper(any_of(MaxEpochs{3}, MaxEpochs{4})).save()),
                  pardl::CheckpointError);
  std::vector<double> nonsense{not_a_number, 0.0, 0.0, 0.0};
  CHECK_THROWS_AS(stop.restore(nonsense), pardl::CheckpointError);
  CHECK_THROWS_AS(stop.restore(std::vector<double>{1.0, 0.0, 0.5, -1.0}), pardl::CheckpointError);
  CHECK(stop.save() == before);
}

TEST_CASE("policies chosen at run time fold into one value that behaves like the policy itself") {
  any_stopping_policy<double> chosen = MaxEpochs{5};
  chosen =
      any_of(chosen, any_stopping_policy<double>(TargetReached{.goal = Goal::maximize, .target = 0.5, .patience = 2}));
  std::vector<double> const values{0.6, 0.1, 0.6, 0.1, 0.1, 0.1};
  CHECK(verdicts(stopper(chosen), values) ==
        verdicts(stopper(any_of(MaxEpochs{5}, TargetReached{.goal = Goal::maximize, .target = 0.5, .patience = 2})),
                 values));
  auto a = stopper<double>(chosen);
  (void)a.observe(0.6);
  auto b = a;  // states are values, too
  CHECK(a.observe(0.6) == Verdict::stop);
  CHECK(b.observe(0.1) == Verdict::go_on);
  auto c = stopper(chosen);
  c.restore(b.save());
  CHECK(c.save() == b.save());

  any_stopping_policy<Metrics> const on_metrics = Diverged{.metric = &Metrics::loss, .name = "loss"};
  auto stop = stopper<Metrics>(on_metrics);
  CHECK(stop.observe(Metrics{.loss = not_a_number}) == Verdict::fail);
  CHECK(stop.reason().starts_with("loss is nan"));
}

namespace {
// A user's own policy: settings and state, apart.
struct TooSlow {
  double seconds = 1.0;
  struct State {
    double seconds, spent = 0.0;
    Verdict observe(double epoch_seconds) {
      return (spent += epoch_seconds) > seconds ? Verdict::stop : Verdict::go_on;
    }
    [[nodiscard]] std::string reason() const { return spent > seconds ? "time is up" : ""; }
    void save(std::vector<double>& into) const { into.push_back(spent); }
    void restore(std::span<double const>& from) { spent = pardl::detail::take(from); }
  };
  [[nodiscard]] State start() const { return {seconds}; }
};
static_assert(pardl::stopping_policy<TooSlow>);
}  // namespace

TEST_CASE("a user's own policy composes with ours") {
  CHECK(verdicts(stopper(any_of(TooSlow{2.0}, MaxEpochs{3})), {0.9, 0.9, 0.9}) == "..S");
  CHECK(verdicts(stopper(any_stopping_policy<double>(any_of(TooSlow{1.0}, MaxEpochs{3}))), {0.9, 0.9, 0.9}) == ".SS");
}

TEST_CASE("settings that cannot work are refused in a sentence") {
  CHECK_THROWS_WITH_AS((void)stopper(TargetReached{.goal = Goal::maximize}),
                       "[early stopping] TargetReached without a target; give .target.", pardl::ConfigError);
  CHECK_THROWS_AS((void)stopper(TargetReached{.goal = Goal::maximize, .target = 0.5, .patience = 0}),
                  pardl::ConfigError);
  CHECK_THROWS_AS((void)stopper(Patience{.goal = Goal::maximize, .patience = 0}), pardl::ConfigError);
  CHECK_THROWS_AS((void)stopper(Patience{.goal = Goal::maximize, .min_delta = -0.1}), pardl::ConfigError);
  CHECK_THROWS_AS((void)stopper(Diverged{.above = 1.0, .below = 2.0}), pardl::ConfigError);
  CHECK_THROWS_AS((void)stopper(Diverged{.above = not_a_number}), pardl::ConfigError);
  CHECK_THROWS_AS((void)stopper(MaxEpochs{}), pardl::ConfigError);
  CHECK_THROWS_AS((void)stopper(any_of(MaxEpochs{1}, MaxEpochs{0})), pardl::ConfigError);
}

static_assert(ends_after(TargetReached{.goal = Goal::maximize, .target = 0.5, .patience = 2}, {0.6, 0.4, 0.5, 0.7}) ==
              4);
static_assert(ends_after(Patience{.goal = Goal::minimize, .patience = 2}, {1.0, 0.5, 0.5, 0.5}) == 4,
              "equality is no improvement");
static_assert(ends_after(Diverged{}, {1.0, 2.0, not_a_number}) == 3);
static_assert(ends_after(any_of(Diverged{.above = 9.0}, MaxEpochs{4}), {1.0, 10.0}) == 2);
static_assert(ends_after(all_of(MaxEpochs{3}, TargetReached{.goal = Goal::maximize, .target = 0.0}), {1.0, 1.0, 1.0}) ==
              3);
static_assert(!(Goal::maximize == Goal::minimize));
