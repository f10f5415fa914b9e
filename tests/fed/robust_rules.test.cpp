// SPDX-License-Identifier: MIT
#include "pardl/fed/robust_rules.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "pardl/fed/robust.hpp"
#include "support/robust_round.hpp"

using namespace pardl::testing;

namespace {

/// Krum's choice among `left`, with as many neighbours, by the definition.
std::size_t krum_of(Round const& round, std::vector<std::size_t> const& left, std::size_t neighbours) {
  std::size_t best = left.front();
  double best_score = infinity;
  for (std::size_t const i : left) {
    std::vector<double> distances;
    for (std::size_t const j : left)
      if (j != i) distances.push_back(square_distance(round.rows[i], round.rows[j]));
    std::ranges::sort(distances);
    double score = 0;
    for (std::size_t k = 0; k < std::min(neighbours, distances.size()); ++k) score += distances[k];
    bool const earlier = std::tie(score, round.weights[i], round.rows[i]) <
                         std::tie(best_score, round.weights[best], round.rows[best]);  // ties are common
    if (earlier) best = i;
    if (earlier) best_score = score;
  }
  return best;
}

}  // namespace

TEST_CASE("settings that exclude nobody give the mean") {
  auto const round = honest(9, 500, 4);
  CHECK(largest_difference(run({TrimmedMean{.excluded_ratio = 0}}, round), mean(round, false)) < 1e-14);
  CHECK(largest_difference(run({NormBounding{.bound = infinity}}, round), mean(round, true)) < 1e-14);
  CHECK(largest_difference(run({NormBounding{.bound = 1e9}}, round), mean(round, true)) < 1e-14);
  CHECK(largest_difference(run({Krum{.average = 9}}, round), mean(round, true)) < 1e-14);
  CHECK(largest_difference(run({Bulyan{}}, round), mean(round, false)) < 1e-14);
  auto const equals = honest(9, 500, 4, true);
  CHECK(largest_difference(run({Krum{.average = 9}}, equals), mean(equals, false)) < 1e-14);
}

TEST_CASE("clients that agree are believed, whatever the rule") {
  auto round = honest(11, 300, 5);
  for (auto& row : round.rows) row = round.rows[0];
  std::vector<double> const common(round.rows[0].begin(), round.rows[0].end());
  for (auto const& [name, rule] : all_rules(2)) {
    if (std::string(name) == "bounded norms") continue;
    CHECK_MESSAGE(largest_difference(run(rule, round), common) < 1e-6, name);
  }
}

TEST_CASE("one client is a round for the rules that stand it") {
  auto const round = honest(1, 40, 6);
  std::vector<double> const only(round.rows[0].begin(), round.rows[0].end());
  CHECK(same_bits(run({Median{}}, round), only));
  CHECK(same_bits(run({TrimmedMean{.excluded_ratio = 0.4}}, round), only));
  CHECK(same_bits(run({GeometricMedian{}}, round), only));
  CHECK(same_bits(run({NormBounding{}}, round), only));
}

TEST_CASE("medians and trimmed means are those of each column, for any number of updates") {
  for (std::size_t const n : {1U, 2U, 3U, 4U, 5U, 8U, 13U, 40U, 64U, 65U, 600U}) {
    auto const round = honest(n, n > 100 ? 50 : 1000, 7 + n);
    auto const medians = run({Median{}}, round);
    for (double const ratio : {0.0, 0.1, 0.29, 0.499}) {
      TrimmedMean const rule{.excluded_ratio = ratio};
      auto const trimmed = run({rule}, round);
      std::size_t const cut = rule.excluded(n);
      bool same_median = true;
      double off = 0;
      for (std::size_t k = 0; k < round.start.size(); ++k) {
        auto const values = column(round, everyone(round), k);
        same_median &= medians[k] == (values[(n - 1) / 2] + values[n / 2]) / 2;
        double sum = 0;
        for (std::size_t i = cut; i < n - cut; ++i) sum += values[i];
        off = std::max(off, std::abs(trimmed[k] - sum / static_cast<double>(n - 2 * cut)));
      }
      CHECK_MESSAGE(same_median, n);
      CHECK(off < 1e-13);
    }
  }
}

TEST_CASE("a trimmed mean cuts off the share rounded down, and never everything") {
  CHECK(TrimmedMean{.excluded_ratio = 0.29}.excluded(100) == 29);
  CHECK(TrimmedMean{.excluded_ratio = 0.1}.excluded(19) == 1);
  CHECK(TrimmedMean{.excluded_ratio = 0.1}.excluded(9) == 0);
  CHECK(TrimmedMean{.excluded_ratio = std::nextafter(0.5, 0.0)}.excluded(2) == 0);
  CHECK(TrimmedMean{.excluded_ratio = std::nextafter(0.5, 0.0)}.excluded(10) == 4);
}

TEST_CASE("Krum returns the update whose neighbours are nearest, bit for bit") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    auto round = honest(9, 300, 100 + seed);
    std::size_t const liars = 1 + seed % 3;
    lie(round, liars, seed % 2 != 0 ? 1.0F : 1e20F);
    for (auto f = static_cast<std::int64_t>(liars); f <= 3; ++f) {
      auto const expected = krum_of(round, everyone(round), static_cast<std::size_t>(9 - f - 2));
      std::vector<double> const row(round.rows[expected].begin(), round.rows[expected].end());
      CHECK(same_bits(run({Krum{.byzantine = f}}, round), row));
    }
  }
}

TEST_CASE("multi-Krum averages the updates of the least scores by weight") {
  auto round = honest(10, 200, 8);
  lie(round, 2, -3.0F);
  auto const n = round.rows.size();
  std::vector<std::pair<double, std::size_t>> scores;
  for (std::size_t i = 0; i < n; ++i) {
    std::vector<double> distances;
    for (std::size_t j = 0; j < n; ++j)
      if (j != i) distances.push_back(square_distance(round.rows[i], round.rows[j]));
    std::ranges::sort(distances);
    scores.emplace_back(std::accumulate(distances.begin(), distances.begin() + 6, 0.0), i);
  }
  std::ranges::sort(scores);
  Round best{.start = round.start, .rows = {}, .weights = {}};
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(scores[i].second >= 2);
    best.rows.push_back(round.rows[scores[i].second]);
    best.weights.push_back(round.weights[scores[i].second]);
  }
  CHECK(largest_difference(run({Krum{.byzantine = 2, .average = 5}}, round), mean(best, true)) < 1e-14);
}

TEST_CASE("Bulyan selects with Krum again and again, then averages what is nearest to the median") {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    std::size_t const f = 1 + seed % 3, n = 4 * f + 3 + seed % 2;
    auto round = honest(n, 150, 200 + seed);
    lie(round, f, seed % 2 != 0 ? 0.7F : -1e25F, seed % 4 == 0);
    auto left = everyone(round);
    std::vector<std::size_t> selected;
    while (selected.size() < n - 2 * f) {
      std::size_t const neighbours = left.size() > f + 2 ? left.size() - f - 2 : 1;
      selected.push_back(krum_of(round, left, neighbours));
      std::erase(left, selected.back());
    }
    std::vector<double> expected;
    for (std::size_t k = 0; k < round.start.size(); ++k) {
      auto values = column(round, selected, k);
      double const median = (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
      std::ranges::stable_sort(values, {}, [median](double value) { return std::abs(value - median); });
      std::size_t const kept = selected.size() - 2 * f;
      expected.push_back(std::accumulate(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(kept), 0.0) /
                         static_cast<double>(kept));
    }
    CHECK(largest_difference(run({Bulyan{.byzantine = static_cast<std::int64_t>(f)}}, round), expected) < 1e-12);
  }
}

TEST_CASE("no liar moves a result out of what honest clients span") {
  std::size_t const n = 15, f = 3;
  for (float const value : {1e3F, -1e10F, 3e38F}) {
    for (bool const alternate : {false, true}) {
      CAPTURE(value);
      CAPTURE(alternate);
      auto round = honest(n, 400, 9);
      lie(round, f, value, alternate);
      for (auto const& [name, rule] : all_rules(f)) {
        CAPTURE(name);
        auto const result = run(rule, round);
        double beyond = 0;
        for (std::size_t k = 0; k < result.size(); ++k)
          beyond = std::max({beyond, round.low(k, f) - result[k], result[k] - round.high(k, f)});
        // A bounded norm lets a liar have its share of the bound; the geometric median a bounded pull.
        CHECK(beyond <= (std::string(name) == "bounded norms" ? 2.0 : 0.0));
      }
    }
  }
}

TEST_CASE("liars just below half of all cannot move the medians, at half and above they can") {
  auto round = honest(9, 100, 10, true);
  lie(round, 4, 1e12F);
  auto const median = run({Median{.byzantine = 4}}, round);
  for (std::size_t k = 0; k < median.size(); ++k) {
    CHECK(median[k] >= round.low(k, 4));
    CHECK(median[k] <= round.high(k, 4));
  }
  auto const center = run({GeometricMedian{.byzantine = 4}}, round);
  CHECK(std::ranges::max(center) < 100);
  lie(round, 5, 1e12F);
  CHECK(run({Median{}}, round)[0] == doctest::Approx(1e12));
  CHECK(run({GeometricMedian{}}, round)[0] > 1e11);
}

TEST_CASE("Krum sees liars that hide among honest norms only as far as they lie apart") {
  auto round = honest(12, 300, 11);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t k = 0; k < 300; ++k) round.rows[i][k] = round.start[k] - 0.3F;  // all alike, against the others
  auto const result = run({Krum{.byzantine = 3}}, round);
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(!std::ranges::equal(result, round.rows[i], [](double a, float b) { return a == double{b}; }));
}

TEST_CASE("a change beyond the bound is shortened to it, in its own direction") {
  Round round{.start = {1, 2, 3}, .rows = {{4, 6, 3}}, .weights = {7}};  // a change of (3, 4, 0), norm 5
  auto const result = run({NormBounding{.bound = 0.5}}, round);
  CHECK(result[0] == doctest::Approx(1.3).epsilon(1e-14));
  CHECK(result[1] == doctest::Approx(2.4).epsilon(1e-14));
  CHECK(result[2] == doctest::Approx(3.0).epsilon(1e-14));
  CHECK(same_bits(run({NormBounding{.bound = 5}}, round), std::vector<double>{4, 6, 3}));

  auto many = honest(6, 200, 12);
  lie(many, 2, 1e30F);
  double const bound = 2.5;
  std::vector<double> expected(200);
  double const total = std::accumulate(many.weights.begin(), many.weights.end(), 0.0);
  for (std::size_t i = 0; i < 6; ++i) {
    double const norm = std::sqrt(square_distance(many.rows[i], many.start));
    for (std::size_t k = 0; k < 200; ++k)
      expected[k] +=
          many.weights[i] / total * std::min(1.0, bound / norm) * (double{many.rows[i][k]} - double{many.start[k]});
  }
  for (std::size_t k = 0; k < 200; ++k) expected[k] += many.start[k];
  CHECK(largest_difference(run({NormBounding{.bound = bound}}, many), expected) < 1e-13);
}

TEST_CASE("the geometric median is the point of a triangle that sees its sides alike") {
  // Legs 4 at the origin: the point lies at (t, t), t = 4 (3 - sqrt 3) / 6. The median of the coordinates is a corner.
  Round const round{.start = {0, 0}, .rows = {{0, 0}, {4, 0}, {0, 4}}, .weights = {1, 1, 1}};
  double const t = 4 * (3 - std::sqrt(3.0)) / 6;
  auto const exact = run({GeometricMedian{.iterations = 200, .tolerance = 0}}, round);
  CHECK(exact[0] == doctest::Approx(t).epsilon(1e-9));
  CHECK(exact[1] == doctest::Approx(t).epsilon(1e-9));
  auto const usual = run({GeometricMedian{}}, round);
  CHECK(usual[0] == doctest::Approx(t).epsilon(0.01));
}

TEST_CASE("the geometric median minimises the weighted distances") {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    auto round = honest(7, 5, 300 + seed);
    lie(round, 2, 50.0F, true);
    if (seed == 0) round.weights[5] = 1e4;  // most of the weight: the point is that update
    // The reference: many plain Weiszfeld steps from the mean in long double.
    std::vector<long double> z(5);
    auto const start = mean(round, true);
    std::ranges::copy(start, z.begin());
    for (int step = 0; step < 20000; ++step) {
      std::vector<long double> next(5);
      long double total = 0;
      for (std::size_t i = 0; i < 7; ++i) {
        long double square = 0;
        for (std::size_t k = 0; k < 5; ++k) square += (round.rows[i][k] - z[k]) * (round.rows[i][k] - z[k]);
        long double const beta = round.weights[i] / std::max(1e-12L, std::sqrt(square));
        for (std::size_t k = 0; k < 5; ++k) next[k] += beta * round.rows[i][k];
        total += beta;
      }
      for (std::size_t k = 0; k < 5; ++k) z[k] = next[k] / total;
    }
    std::vector<double> const reference(z.begin(), z.end());
    auto const exact = run({GeometricMedian{.iterations = 2000, .tolerance = 0}}, round);
    CHECK(largest_difference(exact, reference) < 1e-6);
    auto const usual = run({GeometricMedian{}}, round);
    CHECK(largest_difference(usual, reference) < 0.02);
    if (seed == 0)
      CHECK(largest_difference(usual, std::vector<double>(round.rows[5].begin(), round.rows[5].end())) < 1e-3);
  }
}

TEST_CASE("the geometric median stops when it is there, and after its iterations at the latest") {
  auto const round = honest(20, 3000, 13);
  auto const updates = round.updates();
  auto const passes = [&](GeometricMedian const& rule) {
    auto plan = begin_plan(rule, updates);
    std::vector<double> partials(partials_size(rule, updates));
    Blocks::Share const all{0, Blocks(updates.length()).count()};
    while (!plan.ready) {
      survey(rule, updates, plan, all, partials);
      decide(rule, updates, partials, plan);
    }
    return plan.passes;
  };
  CHECK(passes({.iterations = 1}) == 1);
  CHECK(passes({.iterations = 2, .tolerance = 0}) == 2);
  CHECK(passes({.iterations = 500, .tolerance = 1e-3}) >= 3);
  CHECK(passes({.iterations = 500, .tolerance = 1e-3}) < 10);
  CHECK(passes({.iterations = 500, .tolerance = 1e-3}) < passes({.iterations = 500, .tolerance = 1e-9}));
}
