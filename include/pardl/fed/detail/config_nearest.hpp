// SPDX-License-Identifier: MIT
/// \file   Which key someone meant who wrote one that does not exist.
/// \layer  fed (std only).
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/fed/detail/config_key.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::config_detail {

/// Letters to insert, delete, replace or swap with their neighbour, whatever their case.
[[nodiscard]] inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::string const from = lower(a), to = lower(b);
  std::size_t const width = to.size() + 1;
  std::vector<std::size_t> before(width), last(width), row(width);
  std::iota(last.begin(), last.end(), std::size_t{0});
  for (std::size_t i = 1; i <= from.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j < width; ++j) {
      bool const equal = from[i - 1] == to[j - 1];
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (equal ? 0 : 1)});
      if (i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(last);
    last.swap(row);
  }
  return last[width - 1];
}

[[nodiscard]] inline std::vector<std::string> parts_of(std::string_view name, char separator) {
  std::vector<std::string> parts(1);
  for (char const c : name) {
    if (c == separator)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

/// As edit_distance, but a word left out or put in (sample_rate for sample_client_rate) costs 2, not its letters.
[[nodiscard]] inline std::size_t word_distance(std::string_view a, std::string_view b) {
  auto shorter = parts_of(lower(a), '_'), longer = parts_of(lower(b), '_');
  if (shorter.size() > longer.size()) shorter.swap(longer);
  std::size_t found = 0;
  for (auto const& word : longer)
    if (found < shorter.size() && shorter[found] == word) ++found;
  std::size_t const letters = edit_distance(a, b);
  return found == shorter.size() ? std::min(letters, 2 * (longer.size() - shorter.size())) : letters;
}

struct SplitName {
  std::string_view section, leaf;
};
[[nodiscard]] inline SplitName split_name(std::string_view name) {
  std::size_t const dot = name.rfind('.');
  if (dot == std::string_view::npos) return {{}, name};
  return {name.substr(0, dot), name.substr(dot + 1)};
}

/// 0 for the same, 1 for a section inside of the other, and bounded: one foreign section is as good as another.
[[nodiscard]] inline std::size_t section_distance(std::string_view a, std::string_view b) {
  constexpr std::size_t furthest = 4;
  if (a == b) return 0;
  auto const inside = [](std::string_view inner, std::string_view outer) {
    return !outer.empty() && inner.starts_with(outer) && inner.substr(outer.size()).starts_with('.');
  };
  if (inside(a, b) || inside(b, a)) return 1;
  return 1 + std::min(furthest, edit_distance(a, b));
}

/// The name among `names` that is nearest to `name`, where the same section counts; empty if none is near.
[[nodiscard]] inline std::string_view nearest(std::string_view name, std::span<std::string_view const> names) {
  SplitName const wanted = split_name(name);
  std::size_t best_cost = std::numeric_limits<std::size_t>::max();
  std::string_view best;
  for (std::string_view const candidate : names) {
    SplitName const split = split_name(candidate);
    std::size_t const leaf = word_distance(wanted.leaf, split.leaf);
    if (2 * leaf > std::max(wanted.leaf.size(), split.leaf.size())) continue;
    std::size_t const section = section_distance(wanted.section, split.section);
    if (2 * leaf + section < best_cost) {
      best_cost = 2 * leaf + section;
      best = candidate;
    }
  }
  return best;
}

}  // namespace pardl::inline PARDL_ABI::fed::config_detail
