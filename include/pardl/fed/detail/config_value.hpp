// SPDX-License-Identifier: MIT
/// \file   A value as someone wrote it, in YAML or as a Python literal, and what type it can be read as.
/// \layer  fed (std only).
///
/// What a scalar means is decided by the key that it is for, not by its looks: FederatedScope evaluates every text as a
/// Python literal, so that 1e-4, '1e-4' and 0.0001 are one number there, while YAML calls the first two texts.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::config_detail {

struct Given {
  enum class Kind { nothing, scalar, list, map };
  Kind kind = Kind::nothing;
  std::string text{};          ///< of a scalar
  bool quoted = false;         ///< of a scalar: surely a text
  std::vector<Given> items{};  ///< of a list; of a map, its values
  std::vector<Given> keys{};   ///< of a map
  int line = 0;                ///< from 1; 0: not from a file
  int column = 0;

  [[nodiscard]] static Given scalar(std::string text, bool quoted) {
    return {.kind = Kind::scalar, .text = std::move(text), .quoted = quoted};
  }
};

[[nodiscard]] inline std::string_view trimmed(std::string_view text) {
  constexpr std::string_view blanks = " \t\r\n";
  auto const from = text.find_first_not_of(blanks);
  if (from == std::string_view::npos) return {};
  return text.substr(from, text.find_last_not_of(blanks) + 1 - from);
}

// ---- scalars -------------------------------------------------------------------------------------------------------

[[nodiscard]] inline std::optional<bool> flag_in(std::string_view text) {
  for (std::string_view const yes : {"True", "true", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
    if (text == yes) return true;
  for (std::string_view const no : {"False", "false", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
    if (text == no) return false;
  return std::nullopt;
}

/// A number, whole or not. Not 010, which Python refuses and YAML reads as eight; nor 0x10 or 1_000.
[[nodiscard]] inline std::optional<double> number_in(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  std::string_view const digits = text.starts_with('-') ? text.substr(1) : text;
  auto const digit = [](char c) { return c >= '0' && c <= '9'; };
  for (std::string_view const word : {".inf", ".Inf", ".INF", "inf"})
    if (digits == word) return text.starts_with('-') ? -HUGE_VAL : HUGE_VAL;
  for (std::string_view const word : {".nan", ".NaN", ".NAN", "nan"})
    if (digits == word) return std::nan("");
  if (digits.empty() || !(digit(digits[0]) || (digits.size() > 1 && digits[0] == '.' && digit(digits[1]))))
    return std::nullopt;
  if (digits.size() > 1 && digits[0] == '0' && digit(digits[1])) return std::nullopt;
  double value = 0.0;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end != text.data() + text.size()) return std::nullopt;
  if (error == std::errc::result_out_of_range) return HUGE_VAL;  // refused as not finite, where it is used
  if (error != std::errc{}) return std::nullopt;
  return value;
}

/// A whole number: 20, and 20.0 as FederatedScope's casts have it, but not 20.5.
[[nodiscard]] inline std::optional<std::int64_t> whole_in(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  std::optional<double> const number = number_in(text);
  if (!number) return std::nullopt;
  std::int64_t whole = 0;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), whole);
  if (error == std::errc{} && end == text.data() + text.size()) return whole;
  if (!(std::abs(*number) <= 9007199254740992.0) || std::trunc(*number) != *number) return std::nullopt;
  return static_cast<std::int64_t>(*number);
}

[[nodiscard]] inline bool is_none(std::string_view text) {
  return text == "None" || text == "~" || text == "null" || text == "Null" || text == "NULL";
}

/// A scalar that is a text without quotes: neither a number nor a flag nor nothing.
[[nodiscard]] inline std::optional<std::string> text_in(Given const& given) {
  if (given.kind != Given::Kind::scalar) return std::nullopt;
  if (!given.quoted && (flag_in(given.text) || number_in(given.text) || is_none(given.text))) return std::nullopt;
  return given.text;
}

// ---- Python literals and YAML's flow style --------------------------------------------------------------------------

/// [1, 2], (1, 2), ['a', b], {'mean': [0.1]}: what both languages write in brackets.
class Literal {
 public:
  /// The whole of `text`, or nothing if its brackets or quotes do not match up.
  [[nodiscard]] static std::optional<Given> parse(std::string_view text) {
    Literal literal{trimmed(text)};
    std::optional<Given> value = literal.value(0, false);
    literal.skip_blanks();
    if (!value || literal.at_ != literal.text_.size()) return std::nullopt;
    return value;
  }

 private:
  explicit Literal(std::string_view text) : text_(text) {}

  void skip_blanks() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  [[nodiscard]] bool take(char c) {
    skip_blanks();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  [[nodiscard]] std::optional<Given> value(int depth, bool as_key) {
    if (depth > deepest) return std::nullopt;
    skip_blanks();
    if (at_ == text_.size()) return std::nullopt;
    char const first = text_[at_];
    if (first == '[') return list(']', depth);
    if (first == '(') return list(')', depth);
    if (first == '{') return map(depth);
    if (first == '\'' || first == '"') return quoted(first);
    return word(depth, as_key);
  }

  [[nodiscard]] std::optional<Given> list(char close, int depth) {
    ++at_;
    Given result{.kind = Given::Kind::list};
    while (!take(close)) {
      std::optional<Given> item = value(depth + 1, false);
      if (!item) return std::nullopt;
      result.items.push_back(std::move(*item));
      if (take(',')) continue;
      if (!take(close)) return std::nullopt;
      break;
    }
    return result;
  }

  [[nodiscard]] std::optional<Given> map(int depth) {
    ++at_;
    Given result{.kind = Given::Kind::map};
    while (!take('}')) {
      std::optional<Given> key = value(depth + 1, true);
      if (!key || !take(':')) return std::nullopt;
      std::optional<Given> item = value(depth + 1, false);
      if (!item) return std::nullopt;
      result.keys.push_back(std::move(*key));
      result.items.push_back(std::move(*item));
      if (take(',')) continue;
      if (!take('}')) return std::nullopt;
      break;
    }
    return result;
  }

  [[nodiscard]] std::optional<Given> quoted(char quote) {
    std::string result;
    for (++at_; at_ < text_.size(); ++at_) {
      if (text_[at_] == quote) {
        ++at_;
        return Given::scalar(std::move(result), true);
      }
      bool const escaped = text_[at_] == '\\' && at_ + 1 < text_.size() &&
                           std::string_view("\\'\"").find(text_[at_ + 1]) != std::string_view::npos;
      if (escaped) ++at_;
      result += text_[at_];
    }
    return std::nullopt;
  }

  /// A word without quotes: up to the next separator, or outside of brackets all there is.
  [[nodiscard]] std::optional<Given> word(int depth, bool as_key) {
    std::string_view const ends = depth == 0 ? "" : as_key ? ":,]})" : ",]})";
    std::size_t const end = ends.empty() ? text_.size() : std::min(text_.find_first_of(ends, at_), text_.size());
    std::string_view const text = trimmed(text_.substr(at_, end - at_));
    at_ = end;
    if (text.empty()) return std::nullopt;
    if (is_none(text)) return Given{};
    return Given::scalar(std::string(text), false);
  }

  static constexpr int deepest = 16;
  std::string_view text_;
  std::size_t at_ = 0;
};

/// One word of a command line as a value: a literal, or where it is none, the text itself.
[[nodiscard]] inline Given given_in_word(std::string_view word) {
  if (trimmed(word).empty()) return Given::scalar(std::string(word), true);
  if (std::optional<Given> literal = Literal::parse(word)) return *literal;
  return Given::scalar(std::string(word), false);
}

/// A list as a list, and a scalar that holds the text of one too, as FederatedScope has it.
[[nodiscard]] inline Given unfolded(Given const& given) {
  if (given.kind != Given::Kind::scalar) return given;
  std::string_view const text = trimmed(given.text);
  if (text.empty() || std::string_view("[({").find(text[0]) == std::string_view::npos) return given;
  std::optional<Given> literal = Literal::parse(text);
  if (!literal) return given;
  literal->line = given.line;
  literal->column = given.column;
  return *literal;
}

/// Whether two values mean the same: as numbers, flags, texts, or lists and maps of such.
[[nodiscard]] inline bool same(Given const& a, Given const& b) {
  if (a.kind != b.kind || a.items.size() != b.items.size() || a.keys.size() != b.keys.size()) return false;
  if (a.kind == Given::Kind::scalar) {
    if (a.text == b.text) return true;
    auto const x = number_in(a.text), y = number_in(b.text);
    if (x && y) return *x == *y;
    auto const p = flag_in(a.text), q = flag_in(b.text);
    return p && q && *p == *q;
  }
  for (std::size_t i = 0; i < a.keys.size(); ++i)
    if (!same(a.keys[i], b.keys[i])) return false;
  for (std::size_t i = 0; i < a.items.size(); ++i)
    if (!same(a.items[i], b.items[i])) return false;
  return true;
}

/// As one line, for messages.
[[nodiscard]] inline std::string shown(Given const& given) {
  std::string text;
  switch (given.kind) {
    case Given::Kind::nothing:
      return "nothing";
    case Given::Kind::scalar:
      return given.quoted ? "'" + given.text + "'" : given.text;
    case Given::Kind::list:
      for (Given const& item : given.items) text += (text.empty() ? "" : ", ") + shown(item);
      return "[" + text + "]";
    case Given::Kind::map:
      for (std::size_t i = 0; i < given.keys.size(); ++i)
        text += (i == 0 ? "" : ", ") + shown(given.keys[i]) + ": " + shown(given.items[i]);
      return "{" + text + "}";
  }
  return text;
}

/// The shortest text that reads back as the same double, in the form that PyYAML takes for a number: with a point.
[[nodiscard]] inline std::string real_text(double value) {
  std::array<char, 32> digits{};
  std::string text(digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr);
  if (text.find_first_of(".n") != std::string::npos) return text;  // it has a point, or is inf or nan
  std::size_t const exponent = std::min(text.find('e'), text.size());
  return text.insert(exponent, ".0");
}

}  // namespace pardl::inline PARDL_ABI::fed::config_detail
