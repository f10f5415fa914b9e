// SPDX-License-Identifier: MIT
/// \file   Rules that hold when some clients lie: Krum, Bulyan, medians, trimmed means, bounded norms.
/// \layer  fed (std only).
///
/// n updates x_1 … x_n of a round are given, of which f may be anything at all. A rule's breakdown point is the share
/// f/n from which on liars can move its result as far as they like. All arithmetic is in double. The temporary memory
/// of a phase is one or two tiles of all updates, 64 KiB each (256 · n bytes where n is above 256), however long the
/// updates are; to decide, Krum and Bulyan also hold n² distances.
///
/// Krum, the median, the trimmed mean and Bulyan take clients as equals, as their papers do; but where Krum averages
/// several updates it weights them, as FederatedScope does (give equal weights for the paper's mean). The geometric
/// median and the bounded mean are weighted, and then f/n is a share of weight.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/fed/detail/update_distances.hpp"
#include "pardl/fed/detail/update_tiles.hpp"
#include "pardl/fed/robust.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// Krum and multi-Krum. An update's score is the sum of its squared distances to the n - f - 2 updates nearest to it;
/// the result is the mean of the `average` updates of the least scores, so with 1 an update as it came. Ties are
/// decided by what the updates hold. (FederatedScope sums distances per tensor without squaring them; this is the
/// paper's score.) Breakdown: needs 2f + 2 < n, so below 1/2.
/// Cost: n²S/2 multiply-adds, in one pass, and n²/2 numbers a block for the workers to share.
/// \paper Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries: Byzantine tolerant gradient
/// descent", NeurIPS 2017.
struct Krum {
  std::int64_t byzantine = 0;  ///< f, clients that may lie
  std::int64_t average = 1;    ///< updates that are averaged, n - f at most; more than 1 is multi-Krum

  void check(std::size_t n) const {
    detail::check_liars("Krum", byzantine, n, 2, 3);
    if (average < 1 || average > static_cast<std::int64_t>(n) - byzantine)
      throw ConfigError(sentence("fed",
                                 "Krum is to average " + std::to_string(average) + " of " + std::to_string(n) +
                                     " updates, of which " + std::to_string(byzantine) + " may lie",
                                 "average from 1 to " + std::to_string(static_cast<std::int64_t>(n) - byzantine)));
  }
  [[nodiscard]] static constexpr std::size_t sums(std::size_t n) { return detail::pairs(n); }
  void partial(Updates const& updates, Plan const&, std::size_t begin, std::size_t end,
               std::span<double> numbers) const {
    detail::add_distances(updates, begin, end, numbers);
  }
  void choose(Updates const& updates, std::span<double const> sums, Plan& plan) const {
    std::size_t const n = updates.size();
    auto const nearest = detail::neighbours(n, sums);
    std::vector<bool> const gone(n, false);
    std::vector<double> scores;
    for (auto const& others : nearest)
      scores.push_back(detail::krum_score(others, gone, n - static_cast<std::size_t>(byzantine) - 2));
    auto order = detail::in_order(updates, scores);
    order.resize(static_cast<std::size_t>(average));
    plan.terms = detail::mean_of(updates, order);
    plan.ready = true;
  }
  void combine(Updates const& updates, Plan const& plan, std::size_t begin, std::span<double> result) const {
    detail::weighted_sum(updates, plan, begin, result);
  }
};
static_assert(robust_aggregator<Krum>);

/// The median of each coordinate; of an even number the mean of the two middle ones. Unweighted. While f < n/2 the
/// result lies between honest values in every coordinate. Breakdown: 1/2.
/// Cost: n log²n / 4 exchanges a coordinate.
/// \paper Yin, Chen, Ramchandran, Bartlett, "Byzantine-robust distributed learning: towards optimal statistical
/// rates", ICML 2018, definition 1.
struct Median {
  std::int64_t byzantine = 0;  ///< f, clients that may lie; fewer than half

  void check(std::size_t n) const { detail::check_liars("a median", byzantine, n, 2, 1); }
  [[nodiscard]] static constexpr std::size_t sums(std::size_t) { return 0; }
  void partial(Updates const&, Plan const&, std::size_t, std::size_t, std::span<double>) const {}
  void choose(Updates const&, std::span<double const>, Plan& plan) const { plan.ready = true; }
  void combine(Updates const& updates, Plan const&, std::size_t begin, std::span<double> result) const {
    detail::Tile<float> tile(updates.size());
    std::vector<double> medians(tile.most());
    detail::through_tiles(updates, tile, begin, begin + result.size(), [&](std::size_t at, std::size_t size) {
      detail::sort_columns(tile);
      detail::middle(tile, medians.data());
      std::ranges::copy_n(medians.begin(), static_cast<std::ptrdiff_t>(size), result.subspan(at - begin, size).begin());
    });
  }
};
static_assert(robust_aggregator<Median>);

/// The mean of each coordinate without the k smallest and the k largest values, k being `excluded_ratio` of n rounded
/// down (0.29 of 100 is 29). Unweighted. Breakdown: k + 1 liars; more than k are refused here, where FederatedScope
/// goes on. Cost as the median's.
/// \paper Yin et al. 2018, definition 2.
struct TrimmedMean {
  double excluded_ratio = 0.1;  ///< share of the updates cut off at each end, from 0 up to but not at 0.5
  std::int64_t byzantine = 0;   ///< f, clients that may lie; no more than are cut off at each end

  /// k of n updates; at least one is left.
  [[nodiscard]] std::size_t excluded(std::size_t n) const {
    auto const k = static_cast<std::size_t>(excluded_ratio * static_cast<double>(n) * (1 + 1e-12));
    return std::min(k, (n - 1) / 2);
  }
  void check(std::size_t n) const {
    if (!(excluded_ratio >= 0 && excluded_ratio < 0.5))
      throw ConfigError(
          sentence("fed", "a trimmed mean that cuts off a share of " + std::to_string(excluded_ratio) + " at each end",
                   "give excluded_ratio, from 0 up to but not at 0.5"));
    detail::check_liars("a trimmed mean", byzantine, n, 2, 1);
    if (byzantine > static_cast<std::int64_t>(excluded(n)))
      throw ConfigError(sentence("fed",
                                 "a trimmed mean cuts off " + std::to_string(excluded(n)) + " of " + std::to_string(n) +
                                     " updates at each end, but " + std::to_string(byzantine) + " clients may lie",
                                 "raise excluded_ratio, or expect fewer liars"));
  }
  [[nodiscard]] static constexpr std::size_t sums(std::size_t) { return 0; }
  void partial(Updates const&, Plan const&, std::size_t, std::size_t, std::span<double>) const {}
  void choose(Updates const&, std::span<double const>, Plan& plan) const { plan.ready = true; }
  void combine(Updates const& updates, Plan const&, std::size_t begin, std::span<double> result) const {
    std::size_t const n = updates.size(), k = excluded(n);
    detail::Tile<float> tile(n);
    detail::through_tiles(updates, tile, begin, begin + result.size(), [&](std::size_t at, std::size_t size) {
      detail::sort_columns(tile);
      detail::mean_of_rows(tile, k, n - k, result.subspan(at - begin, size));
    });
  }
};
static_assert(robust_aggregator<TrimmedMean>);

/// Bulyan over Krum. First θ = n - 2f updates are selected: Krum's choice among those left, θ times (of r updates left
/// the nearest r - f - 2 count, one at least). Then each coordinate is the mean of the θ - 2f selected values nearest
/// to their median; of two that are equally near the smaller. Unweighted. (FederatedScope takes the θ best of one
/// ranking and trims f at each end.) Breakdown: needs 4f + 3 <= n, so below 1/4; but unlike Krum a liar cannot spoil
/// one coordinate by looking honest in all others.
/// Cost: as Krum and the median together, and n³ additions of scores.
/// \paper El Mhamdi, Guerraoui, Rouault, "The hidden vulnerability of distributed learning in Byzantium", ICML 2018.
struct Bulyan {
  std::int64_t byzantine = 0;  ///< f, clients that may lie

  void check(std::size_t n) const { detail::check_liars("Bulyan", byzantine, n, 4, 3); }
  [[nodiscard]] static constexpr std::size_t sums(std::size_t n) { return detail::pairs(n); }
  void partial(Updates const& updates, Plan const&, std::size_t begin, std::size_t end,
               std::span<double> numbers) const {
    detail::add_distances(updates, begin, end, numbers);
  }
  void choose(Updates const& updates, std::span<double const> sums, Plan& plan) const {
    std::size_t const n = updates.size(), f = static_cast<std::size_t>(byzantine);
    auto const nearest = detail::neighbours(n, sums);
    std::vector<bool> gone(n, false);
    std::vector<double> scores(n);
    plan.terms.clear();
    for (std::size_t left = n; plan.terms.size() < n - 2 * f; --left) {
      std::size_t const count = left > f + 3 ? left - f - 2 : 1;
      std::size_t best = n;
      for (std::size_t i = 0; i < n; ++i) {
        if (gone[i]) continue;
        scores[i] = detail::krum_score(nearest[i], gone, count);
        if (best == n || detail::comes_before(updates, scores, i, best)) best = i;
      }
      gone[best] = true;
      plan.terms.push_back({best, 1.0});
    }
    plan.ready = true;
  }
  void combine(Updates const& updates, Plan const& plan, std::size_t begin, std::span<double> result) const {
    std::vector<std::span<float const>> selected;
    for (auto const& term : plan.terms) selected.push_back(updates.row(term.row));
    Updates const chosen(updates.start(), selected);
    std::size_t const cut = 2 * static_cast<std::size_t>(byzantine), kept = chosen.size() - cut;
    detail::Tile<float> tile(chosen.size());
    std::vector<double> medians(tile.most());
    std::vector<float> first(tile.most());  // of each column, the smallest row that is kept
    detail::through_tiles(chosen, tile, begin, begin + result.size(), [&](std::size_t at, std::size_t size) {
      detail::sort_columns(tile);
      detail::middle(tile, medians.data());
      std::ranges::fill(first, 0.0F);
      // The values nearest to the median are neighbours in the sorted column: that window moves up while its lowest
      // value is farther off than the one above it.
      for (std::size_t i = 0; i < cut; ++i) {
        float const* const below = tile.row(i);
        float const* const above = tile.row(i + kept);
        for (std::size_t k = 0; k < size; ++k)
          first[k] +=
              medians[k] - static_cast<double>(below[k]) > static_cast<double>(above[k]) - medians[k] ? 1.0F : 0.0F;
      }
      auto const means = result.subspan(at - begin, size);
      std::ranges::fill(means, 0.0);
      for (std::size_t i = 0; i < chosen.size(); ++i) {
        float const* const row = tile.row(i);
        auto const place = static_cast<float>(i), end = static_cast<float>(kept);
        for (std::size_t k = 0; k < size; ++k)
          means[k] += place >= first[k] && place < first[k] + end ? static_cast<double>(row[k]) : 0.0;
      }
      for (double& sum : means) sum /= static_cast<double>(kept);
    });
  }
};
static_assert(robust_aggregator<Bulyan>);

/// The weighted geometric median: the point whose weighted distances Σ α_i ‖z - x_i‖ are least, found by smoothed
/// Weiszfeld steps z ← Σ β_i x_i / Σ β_i, β_i = α_i / max(ν, ‖z - x_i‖), one pass each. The start is the median of
/// each coordinate, not the mean, so that liars cannot put it so far away that the steps run out; the first step is
/// smoothed by a tenth of the median distance at least, so that a start which is one of the updates is not held there.
/// A last step is taken once the mean of the unit vectors from z to the updates is no longer than `tolerance`, or after
/// `iterations` steps. Breakdown: 1/2 of the weight.
/// Cost: about 4nS multiply-adds a pass, n + 1 numbers a block for the workers to share.
/// \paper Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning", IEEE Trans. Signal Processing 70,
/// 2022 (RFA, with the smoothed Weiszfeld algorithm).
struct GeometricMedian {
  std::int64_t byzantine = 0;  ///< f, clients that may lie; fewer than half
  double smoothing = 1e-6;     ///< ν, a distance between models below which two are the same
  int iterations = 16;         ///< steps at the most
  double tolerance = 1e-3;     ///< when to stop, from 0 (when a step moves nothing) to 1

  void check(std::size_t n) const {
    auto const refuse = [](std::string const& what, char const* remedy) {
      throw ConfigError(sentence("fed", "a geometric median with " + what, remedy));
    };
    if (!(smoothing > 0) || !std::isfinite(smoothing))
      refuse("smoothing " + std::to_string(smoothing), "it is a small positive distance");
    if (iterations < 1) refuse(std::to_string(iterations) + " iterations", "take one at least");
    if (!(tolerance >= 0 && tolerance <= 1)) refuse("tolerance " + std::to_string(tolerance), "it lies from 0 to 1");
    detail::check_liars("a geometric median", byzantine, n, 2, 1);
  }
  [[nodiscard]] static constexpr std::size_t sums(std::size_t n) { return n + 1; }
  /// Squared distances of the updates from the present point; behind them that of the present point from the last.
  void partial(Updates const& updates, Plan const& plan, std::size_t begin, std::size_t end,
               std::span<double> numbers) const {
    std::size_t const n = updates.size();
    detail::Tile<double> tile(n);
    detail::Tile<float> sorted(plan.passes == 0 ? n : 1);
    std::vector<double> point(tile.most()), last(tile.most());
    detail::through_tiles(updates, tile, begin, end, [&](std::size_t at, std::size_t size) {
      if (plan.passes == 0) {
        for (std::size_t i = 0; i < n; ++i) sorted.load(i, updates.row(i), at, size);
        detail::sort_columns(sorted);
        detail::middle(sorted, point.data());
      } else {
        detail::weighted_sum(tile, plan.terms, point.data());
      }
      for (std::size_t i = 0; i < n; ++i)
        numbers[i] += detail::square_distance(tile.row(i), point.data(), tile.width());
      if (plan.before.empty()) return;
      detail::weighted_sum(tile, plan.before, last.data());
      numbers[n] += detail::square_distance(point.data(), last.data(), tile.width());
    });
  }
  void choose(Updates const& updates, std::span<double const> sums, Plan& plan) const {
    std::size_t const n = updates.size();
    double least = smoothing;
    if (plan.passes == 0) {
      for (std::size_t const row : detail::in_order(updates, sums.first(n))) plan.terms.push_back({row, 0.0});
      least = std::max(smoothing, 0.1 * std::sqrt(sums[plan.terms[n / 2].row]));
    }
    double weight = 0;
    for (auto const& term : plan.terms) weight += updates.weight(term.row);
    // The pull on the last point, Σ β_i (x_i - z), is its step times Σ β_i.
    bool const still = !plan.before.empty() && std::sqrt(sums[n]) * plan.pull <= tolerance * weight;
    plan.before = plan.passes == 0 ? std::vector<Plan::Term>{} : plan.terms;
    plan.pull = 0;
    for (auto& [row, factor] : plan.terms) {
      factor = updates.weight(row) / std::max(least, std::sqrt(sums[row]));
      plan.pull += factor;
    }
    for (auto& term : plan.terms) term.factor /= plan.pull;
    plan.ready = still || plan.passes + 1 >= iterations;
  }
  void combine(Updates const& updates, Plan const& plan, std::size_t begin, std::span<double> result) const {
    detail::weighted_sum(updates, plan, begin, result);
  }
};
static_assert(robust_aggregator<GeometricMedian>);

/// The weighted mean of updates whose change from the global weights is scaled down to `bound` where it is longer: a
/// liar moves the result by its share of the weight times the bound, no more. With an infinite bound it is FedAvg.
/// Breakdown: none by size; liars below the bound are believed. Cost: nS multiply-adds in one pass, n numbers a block.
/// \paper Sun, Kairouz, Suresh, McMahan, "Can you really backdoor federated learning?", 2019.
struct NormBounding {
  double bound = std::numeric_limits<double>::infinity();  ///< of a change's Euclidean norm

  void check(std::size_t) const {
    if (!(bound > 0))
      throw ConfigError(sentence("fed", "changes bounded by a norm of " + std::to_string(bound),
                                 "give a positive bound; infinity bounds nothing"));
  }
  [[nodiscard]] static constexpr std::size_t sums(std::size_t n) { return n; }
  void partial(Updates const& updates, Plan const&, std::size_t begin, std::size_t end,
               std::span<double> numbers) const {
    detail::Tile<double> tile(updates.size()), start(1);
    detail::through_tiles(updates, tile, begin, end, [&](std::size_t at, std::size_t size) {
      start.load(0, updates.start(), at, size);
      for (std::size_t i = 0; i < tile.rows(); ++i)
        numbers[i] += detail::square_distance(tile.row(i), start.row(0), tile.width());
    });
  }
  void choose(Updates const& updates, std::span<double const> sums, Plan& plan) const {
    plan.terms = detail::mean_of(updates, detail::in_order(updates, sums));
    for (auto& [row, factor] : plan.terms) {
      double const norm = std::sqrt(sums[row]);
      if (!(norm > bound)) continue;
      plan.of_start += factor * (1 - bound / norm);
      factor *= bound / norm;
    }
    plan.ready = true;
  }
  void combine(Updates const& updates, Plan const& plan, std::size_t begin, std::span<double> result) const {
    detail::weighted_sum(updates, plan, begin, result);
  }
};
static_assert(robust_aggregator<NormBounding>);

}  // namespace pardl::inline PARDL_ABI::fed
