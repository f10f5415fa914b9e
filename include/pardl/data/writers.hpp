// SPDX-License-Identifier: MIT
/// \file   Who made which sample of a dataset: what a federated program splits by natural identity.
/// \layer  data (std only).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data {

/// Writers 0 … names.size()-1 of a dataset's samples.
struct Writers {
  std::vector<std::string> names;    ///< of each writer, in the order found
  std::vector<std::int64_t> owners;  ///< of each sample, its writer
  /// Writers, not samples.
  [[nodiscard]] std::size_t size() const noexcept { return names.size(); }

  /// For each writer the numbers of its samples, ascending; empty for one without samples.
  [[nodiscard]] std::vector<std::vector<std::int64_t>> partition() const {
    std::vector<std::size_t> counts(names.size());
    for (std::int64_t const owner : owners) ++counts.at(static_cast<std::size_t>(owner));
    std::vector<std::vector<std::int64_t>> parts(names.size());
    for (std::size_t writer = 0; writer < parts.size(); ++writer) parts[writer].reserve(counts[writer]);
    for (std::size_t sample = 0; sample < owners.size(); ++sample)
      parts[static_cast<std::size_t>(owners[sample])].push_back(static_cast<std::int64_t>(sample));
    return parts;
  }
};

}  // namespace pardl::inline PARDL_ABI::data
