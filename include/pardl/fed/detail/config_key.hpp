// SPDX-License-Identifier: MIT
/// \file   One key of the configuration: where its value is kept, what values it takes, and what it means.
/// \layer  fed (std only).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "pardl/fed/config.hpp"
#include "pardl/fed/detail/config_value.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::config_detail {

using Field = std::variant<bool*, std::int64_t*, double*, std::string*, std::vector<double>*,
                           std::vector<std::int64_t>*, std::vector<std::string>*, Calls*, Arguments*>;

/// What a value must be beyond its type; of a list, each element.
struct Rule {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool above_low = false;                                   ///< low itself is too low
  bool below_high = false;                                  ///< high itself is too high
  double unset = std::numeric_limits<double>::quiet_NaN();  ///< stands outside of the range for "not given"
  std::string_view choices{};  ///< words a text may be, with blanks between; '' is the empty text; empty: any text
  std::string_view known{};    ///< words of FederatedScope that nothing is built for
};

inline constexpr Rule any_value{};
[[nodiscard]] constexpr Rule at_least(double low) { return {.low = low}; }
[[nodiscard]] constexpr Rule above(double low) { return {.low = low, .above_low = true}; }
[[nodiscard]] constexpr Rule between(double low, double high) { return {.low = low, .high = high}; }
/// From 0 to below 1, as a share that is left out.
[[nodiscard]] constexpr Rule below_one() { return {.low = 0.0, .high = 1.0, .below_high = true}; }
/// Above 0 and at most 1: a share of which something must be left. 0 is an error, as it would leave nothing.
[[nodiscard]] constexpr Rule rate() { return {.low = 0.0, .high = 1.0, .above_low = true}; }
[[nodiscard]] constexpr Rule or_unset(Rule rule, double unset) {
  rule.unset = unset;
  return rule;
}
[[nodiscard]] constexpr Rule one_of(std::string_view choices, std::string_view known = {}) {
  return {.choices = choices, .known = known};
}

enum class Status {
  built,  ///< does what FederatedScope says, or what the README's table of differences says
  added,  ///< built, and FederatedScope takes it without knowing it: written out only where it is not the default
  known,  ///< may hold its default only
};

struct Key {
  std::string_view name;              ///< dotted
  Field (*field)(Config&) = nullptr;  ///< where it is kept; null: nowhere, it may hold its default only
  Rule rule{};
  std::string_view meaning{};
  Status status = Status::built;
  std::string_view standard{};  ///< the default as a literal, of a key that is not kept
  std::string_view alias{};     ///< the key that took this one's place
};

/// FederatedScope's key that nothing is built for and no member is kept for.
[[nodiscard]] constexpr Key only_known(std::string_view name, std::string_view standard, std::string_view meaning) {
  return {.name = name, .meaning = meaning, .status = Status::known, .standard = standard};
}

// ---- words of a rule -----------------------------------------------------------------------------------------------

[[nodiscard]] inline std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t const end = std::min(text.find(' ', at), text.size());
    if (std::string_view const word = text.substr(at, end - at); !word.empty()) words.push_back(word);
    at = end + 1;
  }
  return words;
}

[[nodiscard]] inline std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return result;
}

/// The word among `choices` that `text` is but for its case, in the spelling of the list; null if there is none.
[[nodiscard]] inline std::string_view const* find_word(std::vector<std::string_view> const& words,
                                                       std::string_view text) {
  std::string const wanted = text.empty() ? "''" : lower(text);
  for (std::string_view const& word : words)
    if (lower(word) == wanted) return &word;
  return nullptr;
}

[[nodiscard]] inline std::string joined(std::vector<std::string_view> const& words) {
  std::string text;
  for (std::string_view const word : words) text.append(text.empty() ? "" : ", ").append(word);
  return text;
}

// ---- checking ------------------------------------------------------------------------------------------------------

/// `where` says where the value stands ("job.yaml:12:3: "), empty if it is the program's own.
[[noreturn]] inline void refuse(std::string_view where, std::string const& what, std::string const& remedy) {
  throw ConfigError(sentence("config", std::string(where) + what, remedy));
}

[[nodiscard]] inline std::string limits_text(Rule const& rule) {
  constexpr double endless = std::numeric_limits<double>::infinity();
  auto const number = [](double x) {
    std::string text = real_text(x);
    return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
  };
  std::string text;
  if (rule.low > -endless) text = (rule.above_low ? "above " : "at least ") + number(rule.low);
  if (rule.high < endless)
    text += (text.empty() ? "" : " and ") + std::string(rule.below_high ? "below " : "at most ") + number(rule.high);
  if (text.empty()) text = "any finite number";
  if (rule.unset == rule.unset) text += ", or " + number(rule.unset) + " for 'not given'";
  return text;
}

inline void check_number(Key const& key, std::string_view where, double value) {
  Rule const& rule = key.rule;
  if (value == rule.unset) return;
  bool const finite = std::abs(value) <= std::numeric_limits<double>::max();
  bool const low = rule.above_low ? value > rule.low : value >= rule.low;
  bool const high = rule.below_high ? value < rule.high : value <= rule.high;
  if (finite && low && high) return;
  std::string const text = real_text(value);
  std::string limits = limits_text(rule);
  if (!finite && !limits.starts_with("any finite")) limits = "finite, " + limits;
  refuse(where, std::string(key.name) + " is " + (text.ends_with(".0") ? text.substr(0, text.size() - 2) : text),
         "it must be " + limits);
}

/// \returns the text in the spelling of the list of choices.
[[nodiscard]] inline std::string check_text(Key const& key, std::string_view where, std::string const& value) {
  if (key.rule.choices.empty()) return value;
  std::vector<std::string_view> const choices = words_of(key.rule.choices);
  if (std::string_view const* word = find_word(choices, value)) return *word == "''" ? "" : std::string(*word);
  bool const known = find_word(words_of(key.rule.known), value) != nullptr;
  refuse(where,
         std::string(key.name) + " is '" + value + "'" +
             (known ? ", which FederatedScope has and pardl has not built" : ", which is none of its values"),
         "it can be " + joined(choices));
}

/// Holds a value that is stored already against the key's rule, and puts words into the list's spelling.
/// \throws ConfigError
inline void check_stored(Key const& key, std::string_view where, Field const& field) {
  std::visit(
      [&](auto* value) {
        using Value = std::remove_pointer_t<decltype(value)>;
        if constexpr (std::is_same_v<Value, double> || std::is_same_v<Value, std::int64_t>) {
          check_number(key, where, static_cast<double>(*value));
        } else if constexpr (std::is_same_v<Value, std::string>) {
          *value = check_text(key, where, *value);
        } else if constexpr (std::is_same_v<Value, std::vector<double>> ||
                             std::is_same_v<Value, std::vector<std::int64_t>>) {
          for (auto const element : *value) check_number(key, where, static_cast<double>(element));
        } else if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
          for (std::string& element : *value) element = check_text(key, where, element);
        } else if constexpr (std::is_same_v<Value, Calls>) {
          for (Call& call : *value) call.name = check_text(key, where, call.name);
        }
      },
      field);
}

}  // namespace pardl::inline PARDL_ABI::fed::config_detail
