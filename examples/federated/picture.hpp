// SPDX-License-Identifier: MIT
/// \file   The partition of a job as a picture, and as text.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

#include "data.hpp"
#include "pardl/fed/partition_picture.hpp"
#include "pardl/fed/partition_report.hpp"
#include "pardl/policy/error.hpp"

namespace federated {

/// What each client has, all its shares together. \throws pardl::ConfigError for targets that are no classes.
inline void draw_partition(Problem const& problem, std::string const& path) {
  if (problem.classes == 0)
    throw pardl::ConfigError(
        pardl::sentence("federated", "--partition shows classes, and this data has none", "leave it out"));
  fed::Partition partition;
  for (auto const& shares : problem.shares) {
    auto& all = partition.emplace_back(shares.train);
    all.insert(all.end(), shares.val.begin(), shares.val.end());
    all.insert(all.end(), shares.test.begin(), shares.test.end());
    std::ranges::sort(all);
  }
  auto const labels = problem.samples.targets().contiguous();
  auto const report = fed::report_partition(
      partition, {labels.const_data_ptr<std::int64_t>(), static_cast<std::size_t>(labels.numel())});
  fed::write_svg(report, path);
  std::printf("%s", fed::to_text(report).c_str());
}

}  // namespace federated
