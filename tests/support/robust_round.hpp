// SPDX-License-Identifier: MIT
/// \file   Rounds in memory for tests of robust aggregation: honest clients, liars, and plain ways to compare.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "pardl/fed/any_robust_aggregator.hpp"
#include "pardl/fed/draws.hpp"
#include "pardl/fed/robust.hpp"
#include "pardl/fed/robust_rules.hpp"

namespace pardl::testing {

using namespace pardl::fed;

inline constexpr double infinity = std::numeric_limits<double>::infinity();

/// A round in memory: honest clients near a common point, liars as a test wants them.
struct Round {
  std::vector<float> start;
  std::vector<std::vector<float>> rows;
  std::vector<double> weights;

  [[nodiscard]] Updates updates() const {
    std::vector<std::span<float const>> views(rows.begin(), rows.end());
    return {start, views, weights};
  }
  [[nodiscard]] double low(std::size_t at, std::size_t from = 0) const {
    double least = infinity;
    for (std::size_t i = from; i < rows.size(); ++i) least = std::min(least, double{rows[i][at]});
    return least;
  }
  [[nodiscard]] double high(std::size_t at, std::size_t from = 0) const {
    double most = -infinity;
    for (std::size_t i = from; i < rows.size(); ++i) most = std::max(most, double{rows[i][at]});
    return most;
  }
};

inline Round honest(std::size_t clients, std::size_t numbers, std::uint64_t seed, bool equal_weights = false) {
  Draws draws(seed);
  Round round;
  for (std::size_t k = 0; k < numbers; ++k) round.start.push_back(static_cast<float>(draws.normal()));
  for (std::size_t i = 0; i < clients; ++i) {
    std::vector<float> row;
    for (float const at : round.start) row.push_back(at + static_cast<float>(0.1 + 0.2 * draws.normal()));
    round.rows.push_back(std::move(row));
    round.weights.push_back(equal_weights ? 1.0 : static_cast<double>(1 + draws.below(50)));
  }
  return round;
}

/// The first `liars` clients send `value` in every place, with alternating signs if asked to.
inline void lie(Round& round, std::size_t liars, float value, bool alternate = false) {
  for (std::size_t i = 0; i < liars; ++i)
    for (std::size_t k = 0; k < round.start.size(); ++k)
      round.rows[i][k] = alternate && (i + k) % 2 != 0 ? -value : value;
}

inline std::vector<double> run(any_robust_aggregator const& rule, Round const& round) {
  std::vector<double> result(round.start.size());
  aggregate(rule, round.updates(), result);
  return result;
}

inline std::vector<double> mean(Round const& round, bool weighted) {
  std::vector<double> sums(round.start.size());
  double total = 0;
  for (std::size_t i = 0; i < round.rows.size(); ++i) {
    double const weight = weighted ? round.weights[i] : 1;
    total += weight;
    for (std::size_t k = 0; k < sums.size(); ++k) sums[k] += weight * double{round.rows[i][k]};
  }
  for (double& sum : sums) sum /= total;
  return sums;
}

inline double largest_difference(std::span<double const> a, std::span<double const> b) {
  double most = 0;
  for (std::size_t k = 0; k < a.size(); ++k) most = std::max(most, std::abs(a[k] - b[k]));
  return most;
}

inline bool same_bits(std::span<double const> a, std::span<double const> b) {
  return std::ranges::equal(
      a, b, [](double x, double y) { return std::bit_cast<std::uint64_t>(x) == std::bit_cast<std::uint64_t>(y); });
}

struct Named {
  char const* name;
  any_robust_aggregator rule;
};
inline std::vector<Named> all_rules(std::int64_t liars) {
  return {{"Krum", {Krum{.byzantine = liars}}},
          {"multi-Krum", {Krum{.byzantine = liars, .average = 4}}},
          {"median", {Median{.byzantine = liars}}},
          {"trimmed mean", {TrimmedMean{.excluded_ratio = 0.3, .byzantine = liars}}},
          {"Bulyan", {Bulyan{.byzantine = liars}}},
          {"geometric median", {GeometricMedian{.byzantine = liars}}},
          {"bounded norms", {NormBounding{.bound = 2}}}};
}

inline double square_distance(std::vector<float> const& a, std::vector<float> const& b) {
  double sum = 0;
  for (std::size_t k = 0; k < a.size(); ++k) sum += (double{a[k]} - double{b[k]}) * (double{a[k]} - double{b[k]});
  return sum;
}

inline std::vector<double> column(Round const& round, std::vector<std::size_t> const& rows, std::size_t at) {
  std::vector<double> values;
  for (std::size_t const i : rows) values.push_back(round.rows[i][at]);
  std::ranges::sort(values);
  return values;
}

inline std::vector<std::size_t> everyone(Round const& round) {
  std::vector<std::size_t> rows(round.rows.size());
  std::iota(rows.begin(), rows.end(), std::size_t{0});
  return rows;
}

}  // namespace pardl::testing
