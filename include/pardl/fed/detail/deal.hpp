// SPDX-License-Identifier: MIT
/// \file   What partitioners share: grouping by label, cutting a shuffled list into sizes, and the checks.
/// \layer  fed (std only).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/fed/draws.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// \throws ConfigError for what no partitioner can do: no samples, no clients, more promised than there is.
inline void check_split(std::string_view what, std::size_t samples, std::size_t clients, std::int64_t min_samples) {
  std::string const who(what);
  if (samples == 0)
    throw ConfigError(sentence("fed", who + " of no samples: the list of labels is empty", "load the data first"));
  if (clients == 0) throw ConfigError(sentence("fed", who + " among 0 clients", "take at least 1"));
  if (min_samples < 0)
    throw ConfigError(
        sentence("fed", who + " with min_samples " + std::to_string(min_samples), "0 or more samples per client"));
  if (static_cast<std::size_t>(min_samples) > samples / clients)
    throw ConfigError(sentence("fed",
                               who + " of " + std::to_string(samples) + " samples among " + std::to_string(clients) +
                                   " clients cannot give each at least " + std::to_string(min_samples),
                               "take fewer clients" + std::string(min_samples > 1 ? " or lower min_samples" : "")));
}

inline void check_positive(std::string_view what, std::string_view name, double value) {
  if (!(value > 0) || !std::isfinite(value))
    throw ConfigError(sentence("fed", std::string(what) + " with " + std::string(name) + " " + std::to_string(value),
                               std::string(name) + " is a finite number above 0"));
}

inline void check_minimum(std::string_view what, std::span<std::vector<std::int64_t> const> partition,
                          std::int64_t min_samples, std::string_view remedy) {
  for (std::size_t client = 0; client < partition.size(); ++client)
    if (static_cast<std::int64_t>(partition[client].size()) < min_samples)
      throw ConfigError(sentence("fed",
                                 std::string(what) + " that leaves client " + std::to_string(client) + " with " +
                                     std::to_string(partition[client].size()) + " samples, where min_samples is " +
                                     std::to_string(min_samples),
                                 remedy));
}

struct LabelGroup {
  std::int64_t label;
  std::vector<std::int64_t> samples;  // ascending
};

/// One group per distinct label, ascending.
[[nodiscard]] inline std::vector<LabelGroup> group_by(std::span<std::int64_t const> labels) {
  std::vector<std::int64_t> order(labels.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  auto const label_of = [&](std::int64_t sample) { return labels[static_cast<std::size_t>(sample)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return label_of(a) < label_of(b); });
  std::vector<LabelGroup> groups;
  for (std::int64_t const sample : order) {
    if (groups.empty() || groups.back().label != label_of(sample)) groups.push_back({label_of(sample), {}});
    groups.back().samples.push_back(sample);
  }
  return groups;
}

/// 0 … count-1 in random order.
[[nodiscard]] inline std::vector<std::int64_t> shuffled(std::size_t count, Draws& draws) {
  std::vector<std::int64_t> order(count);
  std::iota(order.begin(), order.end(), std::int64_t{0});
  draws.shuffle(order);
  return order;
}

/// `total` in `parts` sizes that differ by one at most, the larger ones first.
[[nodiscard]] inline std::vector<std::int64_t> even_sizes(std::size_t total, std::size_t parts) {
  std::vector<std::int64_t> sizes(parts, static_cast<std::int64_t>(total / parts));
  for (std::size_t i = 0; i < total % parts; ++i) ++sizes[i];
  return sizes;
}

/// `total` in sizes proportional to `shares` (which sum to 1), by cutting at the rounded-down running sums: each size
/// is off its share by at most one, and all together make up the total. What a running sum lost to rounding is given
/// back first, up to a millionth of a sample, so that equal shares give equal sizes.
[[nodiscard]] inline std::vector<std::int64_t> proportional_sizes(std::size_t total, std::span<double const> shares) {
  std::vector<std::int64_t> sizes(shares.size());
  double running = 0;
  std::int64_t cut = 0;
  for (std::size_t i = 0; i + 1 < shares.size(); ++i) {
    running += shares[i];
    auto const next = std::min(static_cast<std::int64_t>(std::fma(running, static_cast<double>(total), 1e-6)),
                               static_cast<std::int64_t>(total));
    sizes[i] = next - cut;
    cut = next;
  }
  sizes.back() = static_cast<std::int64_t>(total) - cut;
  return sizes;
}

/// `least` for each, and what is left in proportion to `shares`.
[[nodiscard]] inline std::vector<std::int64_t> sizes_above(std::int64_t least, std::size_t total,
                                                           std::span<double const> shares) {
  auto sizes = proportional_sizes(total - static_cast<std::size_t>(least) * shares.size(), shares);
  for (std::int64_t& size : sizes) size += least;
  return sizes;
}

inline void sort_each(std::vector<std::vector<std::int64_t>>& lists) {
  for (auto& list : lists) std::sort(list.begin(), list.end());
}

/// Consecutive pieces of `order` of these sizes, each sorted.
[[nodiscard]] inline std::vector<std::vector<std::int64_t>> cut(std::vector<std::int64_t> const& order,
                                                                std::vector<std::int64_t> const& sizes) {
  std::vector<std::vector<std::int64_t>> pieces;
  pieces.reserve(sizes.size());
  auto next = order.begin();
  for (std::int64_t const size : sizes) {
    pieces.emplace_back(next, next + size);
    next += size;
  }
  sort_each(pieces);
  return pieces;
}

}  // namespace pardl::inline PARDL_ABI::fed::detail
