// SPDX-License-Identifier: MIT
/// \file   Looks at an update before anything is made of it: shape, numbers that are not finite, length of the change.
/// \layer  fed (std only).
///
/// Two looks. The worker that trained a client looks at its row while it has it in hand (`screen`): one pass of 8 bytes
/// a number, no memory. Once the round's norms are known, whoever holds them compares each with their median
/// (`screen_norms`).
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// What an update may be. The change is the update less the global weights that it started from, its norm Euclidean.
struct Screening {
  double most_norm = std::numeric_limits<double>::infinity();     ///< of a change; infinity: any
  double most_medians = std::numeric_limits<double>::infinity();  ///< of a change, in medians of the round's norms

  /// \throws ConfigError for a bound that is not positive, or a multiple below 1, which the median itself would exceed.
  void check() const {
    if (!(most_norm > 0))
      throw ConfigError(sentence("fed", "updates screened for a norm of " + std::to_string(most_norm) + " at the most",
                                 "give a positive bound; infinity allows all"));
    if (!(most_medians >= 1))
      throw ConfigError(sentence(
          "fed", "updates screened for " + std::to_string(most_medians) + " medians of the round's norms at the most",
          "give 1 or more; infinity allows all"));
  }
};

/// What the first look says.
struct Screened {
  double norm = 0;                    ///< of the change, where the update has the right shape and is finite
  std::optional<std::string> reason;  ///< why it cannot be used, in words; none: it can
};

namespace detail {

/// A number as short as it can be written and read back.
[[nodiscard]] inline std::string brief(double value) {
  std::array<char, 32> text;
  auto const end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  return {text.data(), end};
}

}  // namespace detail

/// The first look at one update.
/// \param update  what came, [S] if it is right.  \param start  the global weights [S].
/// \param name_of  the name of number i of the row for messages, as "fc1.weight[17]" (FlatModel::name_of).
template <class NameOf>
[[nodiscard]] Screened screen(std::span<float const> update, std::span<float const> start, Screening const& screening,
                              NameOf&& name_of) {
  static_assert(
      requires {
        { name_of(std::size_t{}) } -> std::convertible_to<std::string>;
      },
      "pardl::fed::screen names a number of the update: give it a function of the number's place that returns a "
      "string.");
  if (update.size() != start.size())
    return {.norm = 0,
            .reason = "its update has " + std::to_string(update.size()) + " numbers, the model has " +
                      std::to_string(start.size())};
  constexpr std::size_t lanes = 8, block = 4096;  // eight sums a block, then added in pairs: one order on every worker
  double square = 0;
  for (std::size_t begin = 0; begin < update.size(); begin += block) {
    auto const size = std::min(block, update.size() - begin);
    auto const now = update.subspan(begin, size), before = start.subspan(begin, size);
    bool fine = true;
    for (float const value : now) fine &= std::abs(value) <= std::numeric_limits<float>::max();
    if (!fine) {
      auto const bad = std::ranges::find_if_not(now, [](float value) { return std::isfinite(value); });
      std::string const what = std::isnan(*bad) ? "NaN" : *bad > 0 ? "infinite" : "minus infinity";
      return {
          .norm = 0,
          .reason = "its " + std::string(name_of(begin + static_cast<std::size_t>(bad - now.begin()))) + " is " + what};
    }
    double sums[lanes] = {};
    std::size_t k = 0;
    for (; k + lanes <= size; k += lanes)
      for (std::size_t l = 0; l < lanes; ++l) {
        double const change = static_cast<double>(now[k + l]) - static_cast<double>(before[k + l]);
        sums[l] += change * change;
      }
    for (; k < size; ++k) {
      double const change = static_cast<double>(now[k]) - static_cast<double>(before[k]);
      sums[k % lanes] += change * change;
    }
    square += ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
  }
  double const norm = std::sqrt(square);
  if (norm <= screening.most_norm) return {.norm = norm, .reason = std::nullopt};
  return {.norm = norm,
          .reason = "its change has norm " + detail::brief(norm) + ", above " + detail::brief(screening.most_norm)};
}

/// The second look, at the norms of all updates of a round that passed the first: for each a reason, or none. The
/// median of an even number is the mean of the two middle ones. Where it is 0, most clients did not move at all, and
/// no multiple allows one that did.
[[nodiscard]] inline std::vector<std::optional<std::string>> screen_norms(std::span<double const> norms,
                                                                          Screening const& screening) {
  std::vector<std::optional<std::string>> reasons(norms.size());
  if (norms.empty() || std::isinf(screening.most_medians)) return reasons;
  std::vector<double> sorted(norms.begin(), norms.end());
  std::ranges::sort(sorted);
  double const median = (sorted[(sorted.size() - 1) / 2] + sorted[sorted.size() / 2]) / 2;
  for (std::size_t i = 0; i < norms.size(); ++i)
    if (norms[i] > screening.most_medians * median)
      reasons[i] = "its change has norm " + detail::brief(norms[i]) + ", above " +
                   detail::brief(screening.most_medians) + " times the round's median of " + detail::brief(median);
  return reasons;
}

}  // namespace pardl::inline PARDL_ABI::fed
