// SPDX-License-Identifier: MIT
/// \file   Whole numbers out of variables, options and files, where anything else must be an error.
/// \layer  policy (std only).
#pragma once

#include <charconv>
#include <optional>
#include <string_view>
#include <system_error>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// The whole of `text` as a number, or nothing: no sign but '-', no spaces, no tail.
template <class Number = int>
[[nodiscard]] std::optional<Number> whole_number(std::string_view text) {
  Number value{};
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace pardl::inline PARDL_ABI::detail
