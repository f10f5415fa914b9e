// SPDX-License-Identifier: MIT
/// \file   Slurm's two compressed notations, tasks per node and host lists, and the port that a job step owns.
/// \layer  policy (std only).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/policy/whole_number.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Tasks of each node from "2(x3),1": {2, 2, 2, 1}. Nothing if the text is not of that form.
[[nodiscard]] inline std::optional<std::vector<int>> tasks_per_node(std::string_view text) {
  constexpr std::size_t most_nodes = 1'000'000;  // a typing error must not fill the memory
  std::vector<int> nodes;
  while (true) {
    auto const comma = text.find(',');
    auto item = text.substr(0, comma);
    int repeat = 1;
    if (auto const open = item.find("(x"); open != std::string_view::npos) {
      if (item.back() != ')') return std::nullopt;
      auto const count = whole_number(item.substr(open + 2, item.size() - open - 3));
      if (!count || *count < 1) return std::nullopt;
      repeat = *count;
      item = item.substr(0, open);
    }
    auto const tasks = whole_number(item);
    if (!tasks || *tasks < 0 || nodes.size() + static_cast<std::size_t>(repeat) > most_nodes) return std::nullopt;
    nodes.insert(nodes.end(), static_cast<std::size_t>(repeat), *tasks);
    if (comma == std::string_view::npos) return nodes;
    text.remove_prefix(comma + 1);
  }
}

/// The first host of "gpu[03-07,11],login2": "gpu03". Every bracket yields its first number, zeros kept.
[[nodiscard]] inline std::string first_host(std::string_view nodelist) {
  std::string host;
  bool inside = false;  // of a bracket
  bool chosen = false;  // of this bracket, the first number is complete
  for (char const c : nodelist) {
    if (!inside && c == ',') break;
    if (c == '[') {
      inside = true;
      chosen = false;
    } else if (c == ']') {
      inside = false;
    } else if (!inside) {
      host.push_back(c);
    } else if (c == '-' || c == ',') {
      chosen = true;
    } else if (!chosen) {
      host.push_back(c);
    }
  }
  return host;
}

/// A port for a job's step, below the range from which the kernel draws ports by itself. Steps of one job and
/// neighbouring jobs get different ones: 20011 is prime, so jobs share one only when their numbers, times 127, plus
/// the steps' agree modulo 20011.
[[nodiscard]] constexpr int slurm_port(std::uint64_t job, std::uint64_t step) {
  return static_cast<int>(12000 + (job % 20011 * 127 + step % 20011) % 20011);
}

}  // namespace pardl::inline PARDL_ABI::detail
