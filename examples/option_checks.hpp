// SPDX-License-Identifier: MIT
/// \file   What programs ask of the numbers on their command lines, in sentences a user can read.
#pragma once

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include "pardl/policy/environment.hpp"

namespace option_checks {

/// The whole of `text` as a number, or nothing.
template <class Number>
std::optional<Number> whole_number(std::string_view text) {
  Number value = 0;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

/// What CLI11 would say of a range is a line of 300 digits.
inline CLI::Validator at_least(std::int64_t least) {
  return CLI::Validator(
      [least](std::string const& text) {
        auto const value = whole_number<std::int64_t>(text);
        return value && *value >= least ? "" : "\"" + text + "\" is no whole number from " + std::to_string(least);
      },
      "");
}
inline CLI::Validator above_zero() {
  return CLI::Validator(
      [](std::string const& text) {
        double value = 0;
        return CLI::detail::lexical_cast(text, value) && value > 0 && std::isfinite(value)
                   ? ""
                   : "\"" + text + "\" is no number above 0";
      },
      "");
}

/// A file that rank 0 can make where it shall be: better heard of before a training than after it. The other ranks, on
/// other hosts perhaps, write nothing.
inline CLI::Validator can_be_written() {
  return CLI::Validator(
      [](std::string const& text) -> std::string {
        if (pardl::read_environment().rank != 0) return "";
        auto folder = std::filesystem::path(text).parent_path();
        if (folder.empty()) folder = ".";
        if (std::filesystem::is_directory(text)) return "\"" + text + "\" is a folder; name a file";
        if (::access(folder.c_str(), W_OK | X_OK) == 0) return "";
        return "no file can be made in \"" + folder.string() + "\"; make the folder, or name another";
      },
      "");
}

}  // namespace option_checks
