// SPDX-License-Identifier: MIT
/// \file   Text for one line of a terminal: how wide it is, how to shorten it, and numbers that people can read.
/// \layer  io (std only).
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::io {

namespace detail {

/// The code point that starts at `text[at]`, which moves behind it. A broken sequence counts as one narrow character.
inline char32_t next_code_point(std::string_view text, std::size_t& at) {
  auto const first = static_cast<unsigned char>(text[at++]);
  int const more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : first >= 0xc0 ? 1 : 0;
  char32_t point = more == 0 ? first : first & (0x3fu >> more);
  for (int i = 0; i < more && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80; ++i)
    point = (point << 6) | (static_cast<unsigned char>(text[at++]) & 0x3fu);
  return point;
}

/// Columns of a code point: two for East Asian and emoji blocks, none for combining marks (Unicode TR 11, the blocks
/// rather than every character: a line that comes out a column short is no harm).
constexpr int columns_of_point(char32_t c) {
  if ((c >= 0x300 && c <= 0x36f) || (c >= 0x200b && c <= 0x200f) || c == 0xfe0f) return 0;
  bool const wide = (c >= 0x1100 && c <= 0x115f) || (c >= 0x2e80 && c <= 0xa4cf) || (c >= 0xac00 && c <= 0xd7a3) ||
                    (c >= 0xf900 && c <= 0xfaff) || (c >= 0xfe30 && c <= 0xfe6f) || (c >= 0xff00 && c <= 0xff60) ||
                    (c >= 0xffe0 && c <= 0xffe6) || (c >= 0x1f300 && c <= 0x1faff) || (c >= 0x20000 && c <= 0x3fffd);
  return wide ? 2 : 1;
}

/// Three digits, e.g. 1.23, 45.6, 789; always with a point, whatever the locale.
inline std::string three_digits(double value) {
  int const decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  char text[64];
  auto const end = std::to_chars(text, text + sizeof text, value, std::chars_format::fixed, decimals).ptr;
  return {text, end};
}

}  // namespace detail

/// Columns that UTF-8 text takes on a terminal.
[[nodiscard]] inline int text_width(std::string_view text) {
  int width = 0;
  for (std::size_t at = 0; at < text.size();) width += detail::columns_of_point(detail::next_code_point(text, at));
  return width;
}

/// The longest beginning of UTF-8 text that takes at most `columns`, never cut inside a character.
[[nodiscard]] inline std::string clip(std::string_view text, int columns) {
  std::size_t at = 0;
  for (int width = 0; at < text.size();) {
    std::size_t next = at;
    width += detail::columns_of_point(detail::next_code_point(text, next));
    if (width > columns) break;
    at = next;
  }
  return std::string(text.substr(0, at));
}

/// Text that cannot move the cursor: control characters (and, unless `utf8`, whatever is not ASCII) become '?'.
/// Labels come from file names and URLs, which others wrote.
[[nodiscard]] inline std::string printable(std::string_view text, bool utf8) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t const from = at;
    char32_t const point = detail::next_code_point(text, at);
    bool const control = point < 0x20 || (point >= 0x7f && point < 0xa0);
    bool const stray = at - from == 1 && point >= 0x80;
    if (control || stray || (point >= 0x80 && !utf8))
      out += '?';
    else
      out += text.substr(from, at - from);
  }
  return out;
}

/// 950, 1.23k, 45.6M, …: a count or a rate.
[[nodiscard]] inline std::string decimal_size(double value) {
  if (!std::isfinite(value)) return "?";
  for (char const* unit : {"", "k", "M", "G"}) {
    if (value < 999.5) return detail::three_digits(value) + unit;
    value /= 1000;
  }
  return detail::three_digits(value) + "T";
}

/// 950 B, 1.23 KiB, 45.6 MiB, …: a size in bytes.
[[nodiscard]] inline std::string binary_size(double bytes) {
  if (!std::isfinite(bytes)) return "?";
  if (bytes < 1024) return std::to_string(static_cast<int>(bytes)) + " B";
  for (char const* unit : {" KiB", " MiB", " GiB"}) {
    bytes /= 1024;
    if (bytes < 1023.5) return detail::three_digits(bytes) + unit;
  }
  return detail::three_digits(bytes / 1024) + " TiB";
}

/// 0:07, 12:34, 1:02:03: a duration in seconds, rounded down.
[[nodiscard]] inline std::string clock_time(double seconds) {
  if (!std::isfinite(seconds) || seconds > 1e9) return "?";
  auto const whole = static_cast<std::int64_t>(std::max(seconds, 0.0));
  auto const two = [](std::int64_t n) { return (n < 10 ? "0" : "") + std::to_string(n); };
  std::string const tail = two(whole % 60);
  if (whole < 3600) return std::to_string(whole / 60) + ":" + tail;
  return std::to_string(whole / 3600) + ":" + two(whole / 60 % 60) + ":" + tail;
}

}  // namespace pardl::inline PARDL_ABI::io
