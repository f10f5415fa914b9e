// SPDX-License-Identifier: MIT
/// \file   Turns a written value into the type that its key keeps, and a kept one back into text.
/// \layer  fed (std only).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "pardl/fed/config.hpp"
#include "pardl/fed/detail/config_key.hpp"
#include "pardl/fed/detail/config_value.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::config_detail {

// ---- in ------------------------------------------------------------------------------------------------------------

/// One conversion: the key that it is for, and where the value stands.
struct Converting {
  Key const& key;
  std::string_view where;

  [[noreturn]] void wrong(Given const& given, std::string const& wanted, std::string const& remedy) const {
    refuse(where, std::string(key.name) + " is " + shown(given) + ", which is no " + wanted, remedy);
  }

  void operator()(Given const& given, bool& into) const {
    auto const value = given.kind == Given::Kind::scalar ? flag_in(given.text) : std::nullopt;
    if (!value) wrong(given, "truth value", "give True or False");
    into = *value;
  }
  void operator()(Given const& given, std::int64_t& into) const {
    auto const value = given.kind == Given::Kind::scalar ? whole_in(given.text) : std::nullopt;
    if (!value) wrong(given, "whole number", "give one such as 10");
    into = *value;
  }
  void operator()(Given const& given, double& into) const {
    auto const value = given.kind == Given::Kind::scalar ? number_in(given.text) : std::nullopt;
    if (!value) wrong(given, "number", "give one such as 0.5 or 1e-4");
    into = *value;
  }
  void operator()(Given const& given, std::string& into) const {
    auto const value = text_in(given);
    if (!value) wrong(given, "text", "put it in quotes if it is meant as one");
    into = *value;
  }
  template <class Element>
  void operator()(Given const& given, std::vector<Element>& into) const {
    Given const list = unfolded(given);
    constexpr bool texts = std::is_same_v<Element, std::string>;
    char const* const wanted = texts ? "list of texts" : "list of numbers";
    char const* const remedy = texts ? "give one such as ['acc', 'correct']" : "give one such as [0.6, 0.2, 0.2]";
    if (list.kind != Given::Kind::list) wrong(given, wanted, remedy);
    std::vector<Element> values;
    for (Given const& item : list.items) {
      bool const scalar = item.kind == Given::Kind::scalar;
      std::optional<Element> value;
      if constexpr (texts)
        value = text_in(item);
      else if constexpr (std::is_same_v<Element, double>)
        value = scalar ? number_in(item.text) : std::nullopt;
      else
        value = scalar ? whole_in(item.text) : std::nullopt;
      if (!value) wrong(given, wanted, remedy);
      values.push_back(std::move(*value));
    }
    into = std::move(values);
  }
  void operator()(Given const& given, Calls& into) const {
    Given const list = unfolded(given);
    char const* const remedy = "write it as [['ToTensor'], ['Normalize', {'mean': [0.5], 'std': [0.5]}]]";
    if (list.kind != Given::Kind::list) wrong(given, "list of names with arguments", remedy);
    Calls calls;
    for (Given const& item : list.items) {
      bool const bare = item.kind == Given::Kind::scalar;
      bool const shaped =
          bare || (item.kind == Given::Kind::list && (item.items.size() == 1 || item.items.size() == 2));
      auto const name = shaped ? text_in(bare ? item : item.items[0]) : std::nullopt;
      if (!name) wrong(given, "list of names with arguments", remedy);
      Call call{.name = *name};
      if (!bare && item.items.size() == 2) call.args = arguments(given, item.items[1], remedy);
      calls.push_back(std::move(call));
    }
    into = std::move(calls);
  }
  /// FederatedScope writes arguments as a list of one map.
  void operator()(Given const& given, Arguments& into) const {
    Given const list = unfolded(given);
    char const* const remedy = "write it as [{'alpha': 0.5}]";
    if (list.kind == Given::Kind::map) {
      into = arguments(given, list, remedy);
    } else {
      if (list.kind != Given::Kind::list || list.items.size() > 1) wrong(given, "list of one map", remedy);
      into = list.items.empty() ? Arguments{} : arguments(given, list.items[0], remedy);
    }
  }

 private:
  [[nodiscard]] Arguments arguments(Given const& whole, Given const& map, char const* remedy) const {
    if (map.kind != Given::Kind::map) wrong(whole, "list of names with arguments", remedy);
    Arguments args;
    for (std::size_t i = 0; i < map.keys.size(); ++i) {
      auto const name = text_in(map.keys[i]);
      auto value = argument(map.items[i]);
      if (!name || !value) wrong(whole, "list of names with arguments", remedy);
      if (find_argument(args, *name) != nullptr)
        refuse(where, std::string(key.name) + " gives the argument '" + *name + "' twice", "keep one of the two");
      args.push_back({.name = *name, .value = std::move(*value)});
    }
    return args;
  }

  [[nodiscard]] static std::optional<ArgumentValue> argument(Given const& given) {
    if (given.kind == Given::Kind::scalar) {
      if (given.quoted) return given.text;
      if (auto const flag = flag_in(given.text)) return *flag;
      bool const whole = given.text.find_first_of(".eEn") == std::string::npos;
      if (auto const number = whole ? whole_in(given.text) : std::nullopt) return *number;
      if (auto const number = number_in(given.text)) return *number;
      if (auto text = text_in(given)) return std::move(*text);
      return std::nullopt;
    }
    if (given.kind != Given::Kind::list) return std::nullopt;
    std::vector<double> numbers;
    std::vector<std::string> texts;
    for (Given const& item : given.items) {
      if (item.kind != Given::Kind::scalar) return std::nullopt;
      auto const number = item.quoted ? std::nullopt : number_in(item.text);
      if (number) numbers.push_back(*number);
      if (auto text = number ? std::nullopt : text_in(item)) texts.push_back(std::move(*text));
    }
    if (numbers.size() == given.items.size()) return numbers;
    if (texts.size() == given.items.size()) return texts;
    return std::nullopt;
  }
};

// ---- out -----------------------------------------------------------------------------------------------------------

/// In single quotes, or where control characters are in it, in double quotes with escapes.
[[nodiscard]] inline std::string quoted_text(std::string_view text) {
  bool plain = true;
  for (char const c : text) plain = plain && static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
  std::string result;
  for (char const c : text) {
    constexpr std::string_view hex = "0123456789abcdef";
    auto const byte = static_cast<unsigned char>(c);
    if (plain)
      result.append(c == '\'' ? 2 : 1, c);
    else if (byte < 0x20 || byte == 0x7f)
      (result += "\\x") += {hex[byte >> 4], hex[byte & 0xf]};
    else if (c == '"' || c == '\\')
      (result += '\\') += c;
    else
      result += c;
  }
  return plain ? "'" + result + "'" : "\"" + result + "\"";
}

[[nodiscard]] inline std::string yaml_text(bool value) { return value ? "True" : "False"; }
[[nodiscard]] inline std::string yaml_text(std::int64_t value) { return std::to_string(value); }
[[nodiscard]] inline std::string yaml_text(double value) { return real_text(value); }
[[nodiscard]] inline std::string yaml_text(std::string const& value) { return quoted_text(value); }
template <class Element>
[[nodiscard]] std::string yaml_text(std::vector<Element> const& values) {
  std::string text;
  for (Element const& value : values) text.append(text.empty() ? "" : ", ").append(yaml_text(value));
  return "[" + text + "]";
}
[[nodiscard]] inline std::string yaml_map(Arguments const& args) {
  std::string text;
  for (Argument const& arg : args) {
    text.append(text.empty() ? "" : ", ").append(quoted_text(arg.name)).append(": ");
    std::visit([&](auto const& value) { text += yaml_text(value); }, arg.value);
  }
  return "{" + text + "}";
}
[[nodiscard]] inline std::string yaml_text(Arguments const& args) {
  return args.empty() ? "[]" : "[" + yaml_map(args) + "]";
}
[[nodiscard]] inline std::string yaml_text(Calls const& calls) {
  std::string text;
  for (Call const& call : calls) {
    text.append(text.empty() ? "[" : ", [").append(quoted_text(call.name));
    if (!call.args.empty()) text.append(", ").append(yaml_map(call.args));
    text += "]";
  }
  return "[" + text + "]";
}

}  // namespace pardl::inline PARDL_ABI::fed::config_detail
