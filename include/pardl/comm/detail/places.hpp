// SPDX-License-Identifier: MIT
/// \file   Who sits where, from each rank's host.
/// \layer  comm, private.
#pragma once

#include <algorithm>
#include <set>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

struct Places {
  int nodes = 1;       ///< hosts
  int local_rank = 0;  ///< among this rank's host's
  int local_size = 1;  ///< ranks on this rank's host
};

/// \param hosts  by rank, any numbers: equal ones are one host.
inline Places places_of(std::vector<int> const& hosts, int rank) {
  auto const mine = hosts.at(static_cast<std::size_t>(rank));
  return {.nodes = static_cast<int>(std::set<int>(hosts.begin(), hosts.end()).size()),
          .local_rank = static_cast<int>(std::count(hosts.begin(), hosts.begin() + rank, mine)),
          .local_size = static_cast<int>(std::count(hosts.begin(), hosts.end(), mine))};
}

}  // namespace pardl::inline PARDL_ABI::detail
