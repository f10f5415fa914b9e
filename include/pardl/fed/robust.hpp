// SPDX-License-Identifier: MIT
/// \file   Aggregation that sees all updates of a round at once, dealt to workers in blocks of coordinates.
/// \layer  fed (std only).
///
/// A mean can take updates one at a time (the concept `aggregator`); a median cannot, and to name the outliers of a
/// round one must compare each update with all others. Such a rule works in three phases, so that several workers can
/// share it and no phase needs more than a tile of memory:
///
///   1. survey   each worker takes some blocks and writes, for each of them, the numbers that the rule wants summed
///               over all coordinates: squared distances, squared norms;
///   2. decide   the blocks' numbers are added in the order of the blocks, and the rule makes its plan of them: which
///               updates count, and how much, or that it wants another pass of 1 and 2. Every worker may do this for
///               itself: same numbers, same plan;
///   3. combine  each worker finishes its own coordinates by the plan.
///
/// Rules that look at one coordinate at a time have phase 3 alone. The blocks depend on the number of coordinates and
/// nothing else, and every sum has a stated order, so the result is bit for bit the same for any number of workers.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// The updates of a round, looked at where they lie: for each client its weights after training, how much it counts,
/// and the global weights that all started from. Rows in any order; where a rule keeps an order of addition, it is made
/// of what the rows hold, so that permuting them changes no bit.
class Updates {
 public:
  /// \param start  the global weights [S].  \param rows  n rows of [S], finite (screening.hpp); nothing is copied.
  /// \param weights  n positive numbers, any total.
  /// \throws ConfigError for no rows, rows of no numbers, rows of another length than the start, or such weights.
  Updates(std::span<float const> start, std::vector<std::span<float const>> rows, std::vector<double> weights)
      : start_(start), rows_(std::move(rows)), weights_(std::move(weights)) {
    if (rows_.empty()) refuse("no updates to aggregate", "let at least one client train");
    if (start_.empty()) refuse("updates of no numbers", "share at least one parameter");
    for (std::size_t i = 0; i < rows_.size(); ++i)
      if (rows_[i].size() != start_.size())
        refuse("update " + std::to_string(i) + " has " + std::to_string(rows_[i].size()) + " numbers, the model has " +
                   std::to_string(start_.size()),
               "leave it out, or train the same model everywhere");
    if (weights_.size() != rows_.size())
      refuse(std::to_string(rows_.size()) + " updates with " + std::to_string(weights_.size()) + " weights",
             "give each update one");
    for (std::size_t i = 0; i < weights_.size(); ++i)
      if (!(weights_[i] > 0) || !std::isfinite(weights_[i]))
        refuse("update " + std::to_string(i) + " has weight " + std::to_string(weights_[i]),
               "weights are positive and finite");
  }
  /// Updates that count alike.
  Updates(std::span<float const> start, std::vector<std::span<float const>> const& rows)
      : Updates(start, rows, std::vector<double>(rows.size(), 1.0)) {}

  [[nodiscard]] std::size_t size() const noexcept { return rows_.size(); }     ///< n
  [[nodiscard]] std::size_t length() const noexcept { return start_.size(); }  ///< S
  [[nodiscard]] std::span<float const> row(std::size_t i) const noexcept { return rows_[i]; }
  [[nodiscard]] double weight(std::size_t i) const noexcept { return weights_[i]; }
  [[nodiscard]] std::span<float const> start() const noexcept { return start_; }

 private:
  [[noreturn]] static void refuse(std::string const& what, char const* remedy) {
    throw ConfigError(sentence("fed", what, remedy));
  }

  std::span<float const> start_;
  std::vector<std::span<float const>> rows_;
  std::vector<double> weights_;
};

/// S coordinates in blocks: whole multiples of 4096 coordinates each but for the last, 256 blocks at the most.
class Blocks {
 public:
  static constexpr std::size_t unit = 4096, most = 256;

  explicit Blocks(std::size_t numbers) noexcept
      : numbers_(numbers), block_(std::max<std::size_t>(1, (numbers + unit * most - 1) / (unit * most)) * unit) {}

  [[nodiscard]] std::size_t count() const noexcept { return (numbers_ + block_ - 1) / block_; }
  /// The first coordinate of a block; of block count(): S.
  [[nodiscard]] std::size_t begin(std::size_t block) const noexcept { return std::min(numbers_, block * block_); }

  struct Share {
    std::size_t first, last;  ///< blocks [first, last)
  };
  /// What worker w of `workers` takes: shares that differ by one block at most and cover all in order.
  [[nodiscard]] Share share(std::size_t worker, std::size_t workers) const noexcept {
    return {count() * worker / workers, count() * (worker + 1) / workers};
  }

 private:
  std::size_t numbers_, block_;
};

/// What a rule has settled so far; small (n terms), a value, the same on every worker.
struct Plan {
  struct Term {
    std::size_t row;
    double factor;
  };

  bool ready = false;          ///< phase 3 may begin; else another pass is wanted
  int passes = 0;              ///< done
  std::vector<Term> terms;     ///< the updates that count, in the order in which they are added
  double of_start = 0;         ///< the factor of the global weights
  std::vector<Term> before{};  ///< for a rule that iterates: the terms of the pass before
  double pull = 0;             ///< likewise: the sum of that pass's factors before they were scaled to 1
};

/// A pure function of all updates of a round.
///   check(n)          throws ConfigError where the settings are out of range or do not suit n updates;
///   sums(n)           how many numbers a pass adds up over all coordinates; 0: there is no pass;
///   partial(updates, plan, begin, end, numbers)   adds the part of coordinates [begin, end), one block, to `numbers`;
///   choose(updates, sums, plan)                   makes the next plan of the sums; sets `ready` sooner or later;
///   combine(updates, plan, begin, result)         the result for coordinates [begin, begin + result.size()).
/// Models: fed/robust_rules.hpp, any_robust_aggregator.
template <class R>
concept robust_aggregator =
    std::copy_constructible<R> && requires(R const& rule, Updates const& updates, Plan const& plan, Plan& next,
                                           std::size_t n, std::span<double> numbers, std::span<double const> sums) {
      rule.check(n);
      { rule.sums(n) } -> std::convertible_to<std::size_t>;
      rule.partial(updates, plan, n, n, numbers);
      rule.choose(updates, sums, next);
      rule.combine(updates, plan, n, numbers);
    };
static_assert(!robust_aggregator<int>);

/// The plan before the first phase. \throws ConfigError as the rule's check().
template <robust_aggregator R>
[[nodiscard]] Plan begin_plan(R const& rule, Updates const& updates) {
  rule.check(updates.size());
  Plan plan;
  plan.ready = rule.sums(updates.size()) == 0;
  return plan;
}

/// How many numbers the workers share during a pass: [blocks][sums].
template <robust_aggregator R>
[[nodiscard]] std::size_t partials_size(R const& rule, Updates const& updates) {
  return Blocks(updates.length()).count() * rule.sums(updates.size());
}

/// Phase 1 for some blocks. \param partials  partials_size() numbers, of which the rows of these blocks are written.
template <robust_aggregator R>
void survey(R const& rule, Updates const& updates, Plan const& plan, Blocks::Share share, std::span<double> partials) {
  Blocks const blocks(updates.length());
  std::size_t const sums = rule.sums(updates.size());
  for (std::size_t block = share.first; block < share.last; ++block) {
    auto const numbers = partials.subspan(block * sums, sums);
    std::ranges::fill(numbers, 0.0);
    rule.partial(updates, plan, blocks.begin(block), blocks.begin(block + 1), numbers);
  }
}

/// Phase 2, once all blocks are surveyed. Whoever does it gets the same plan.
template <robust_aggregator R>
void decide(R const& rule, Updates const& updates, std::span<double const> partials, Plan& plan) {
  std::size_t const count = rule.sums(updates.size());
  std::vector<double> sums(count, 0.0);
  for (std::size_t at = 0; at < partials.size(); at += count)
    for (std::size_t i = 0; i < count; ++i) sums[i] += partials[at + i];
  rule.choose(updates, std::span<double const>(sums), plan);
  ++plan.passes;
}

/// Phase 3 for some blocks. \param result  all S coordinates, of which those of these blocks are written.
template <robust_aggregator R>
void combine(R const& rule, Updates const& updates, Plan const& plan, Blocks::Share share, std::span<double> result) {
  Blocks const blocks(updates.length());
  std::size_t const begin = blocks.begin(share.first), end = blocks.begin(share.last);
  if (begin < end) rule.combine(updates, plan, begin, result.subspan(begin, end - begin));
}

/// All phases by one worker. \param result  float64 [S].
/// \throws ConfigError as the rule's check(), or for a result of another length; DataError for an update with a number
/// that is not finite: a median of such numbers means nothing.
template <class R>
void aggregate(R const& rule, Updates const& updates, std::span<double> result) {
  static_assert(robust_aggregator<R>,
                "pardl::fed::aggregate needs a rule that sees all updates: check(n), sums(n), partial(updates, plan, "
                "begin, end, numbers), choose(updates, sums, plan) and combine(updates, plan, begin, result); take one "
                "of pardl/fed/robust_rules.hpp, or write one like Median.");
  if (result.size() != updates.length())
    throw ConfigError(sentence(
        "fed",
        "a result of " + std::to_string(result.size()) + " numbers for updates of " + std::to_string(updates.length()),
        "give room for all of them"));
  auto plan = begin_plan(rule, updates);
  for (std::size_t i = 0; i < updates.size(); ++i) {
    auto const row = updates.row(i);
    auto const bad = std::ranges::find_if_not(row, [](float value) { return std::isfinite(value); });
    if (bad != row.end())
      throw DataError(sentence("fed",
                               "number " + std::to_string(bad - row.begin()) + " of update " + std::to_string(i) +
                                   " is " + std::to_string(*bad),
                               "screen updates before they are aggregated, and leave that one out"));
  }
  Blocks::Share const all{0, Blocks(updates.length()).count()};
  std::vector<double> partials(plan.ready ? 0 : partials_size(rule, updates));
  while (!plan.ready) {
    survey(rule, updates, plan, all, partials);
    decide(rule, updates, partials, plan);
  }
  combine(rule, updates, plan, all, result);
}

}  // namespace pardl::inline PARDL_ABI::fed
