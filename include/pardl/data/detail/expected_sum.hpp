// SPDX-License-Identifier: MIT
/// \file   The checksum that a file is said to have, as a user types it.
/// \layer  data, private (std only).
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data::detail {

/// A sum that a file must have: algorithm and lower-case hexadecimal digits.
struct ExpectedSum {
  std::string algorithm;  ///< "SHA-256" or "MD5"
  std::string hex;
};

/// \throws ConfigError for digits that cannot be such a sum: a typing error must not look like a bad file.
inline ExpectedSum expected_sum(std::string algorithm, std::string hex, std::size_t digits) {
  std::ranges::transform(hex, hex.begin(), [](char c) { return c >= 'A' && c <= 'F' ? char(c - 'A' + 'a') : c; });
  if (hex.size() != digits || hex.find_first_not_of("0123456789abcdef") != hex.npos)
    throw ConfigError(sentence("data", "\"" + hex + "\" is no " + algorithm + " sum",
                               "give its " + std::to_string(digits) + " hexadecimal digits"));
  return {std::move(algorithm), std::move(hex)};
}

}  // namespace pardl::inline PARDL_ABI::data::detail
