// SPDX-License-Identifier: MIT
/// \file   Whom to trust: distances between all pairs of updates, Krum's scores made of them, and how many are enough.
/// \layer  fed, private (std only).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pardl/fed/detail/update_tiles.hpp"
#include "pardl/fed/robust.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// f liars ask for at least factor · f + extra updates.
inline void check_liars(char const* rule, std::int64_t liars, std::size_t updates, std::int64_t factor,
                        std::int64_t extra) {
  if (liars < 0)
    throw ConfigError(sentence("fed", std::string(rule) + " against " + std::to_string(liars) + " lying clients",
                               "byzantine is zero or more"));
  auto const n = static_cast<std::int64_t>(updates);
  if (liars <= n && factor * liars + extra <= n) return;  // the first keeps the product small
  std::string const needed = liars <= n ? std::to_string(factor * liars + extra) : "more than " + std::to_string(liars);
  throw ConfigError(sentence("fed",
                             std::string(rule) + " against " + std::to_string(liars) + " lying clients needs " +
                                 needed + " updates, and this round has " + std::to_string(updates),
                             "sample more clients, or expect fewer liars"));
}

/// Squared distances of all pairs of updates, pair (i, j < i) at i(i-1)/2 + j.
[[nodiscard]] constexpr std::size_t pairs(std::size_t n) { return n * (n - 1) / 2; }
[[nodiscard]] constexpr std::size_t pair(std::size_t i, std::size_t j) {
  return i > j ? i * (i - 1) / 2 + j : j * (j - 1) / 2 + i;
}

inline void add_distances(Updates const& updates, std::size_t begin, std::size_t end, std::span<double> numbers) {
  Tile<double> tile(updates.size());
  through_tiles(updates, tile, begin, end, [&](std::size_t, std::size_t) {
    for (std::size_t i = 1; i < tile.rows(); ++i)
      for (std::size_t j = 0; j < i; ++j)
        numbers[pair(i, j)] += square_distance(tile.row(i), tile.row(j), tile.width());
  });
}

/// For each update the others, nearest first, with their squared distances.
struct Neighbour {
  double distance;
  std::size_t row;
};
[[nodiscard]] inline std::vector<std::vector<Neighbour>> neighbours(std::size_t n, std::span<double const> distances) {
  std::vector<std::vector<Neighbour>> all(n);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j)
      if (j != i) all[i].push_back({distances[pair(i, j)], j});
    std::ranges::sort(all[i], {}, &Neighbour::distance);  // equal distances add up alike in any order
  }
  return all;
}

/// Krum's score among the updates that are left: the sum of the squared distances to the `count` nearest of them.
[[nodiscard]] inline double krum_score(std::vector<Neighbour> const& nearest, std::vector<bool> const& gone,
                                       std::size_t count) {
  double score = 0;
  for (std::size_t at = 0; count > 0 && at < nearest.size(); ++at) {
    if (gone[nearest[at].row]) continue;
    score += nearest[at].distance;
    --count;
  }
  return score;
}

}  // namespace pardl::inline PARDL_ABI::fed::detail
