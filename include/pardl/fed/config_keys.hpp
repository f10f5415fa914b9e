// SPDX-License-Identifier: MIT
/// \file   The keys of a configuration by their dotted names: setting them, explaining them, writing them out.
/// \layer  fed (std only).
///
/// Whatever was given takes effect or is refused. A key that does not exist is an error that names the nearest one that
/// does; a key of FederatedScope that nothing is built for may hold its default, and any other value is an error that
/// says so.
/// ```
/// pardl::fed::Config config = pardl::fed::read_config("femnist.yaml");   // fed/config_yaml.hpp
/// pardl::fed::apply_overrides(config, words);                            // federate.client_num 5 data.splits
/// [0.6,0.2,0.2] pardl::fed::check_config(config);                                      // what keys must be to each
/// other
/// ```
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "pardl/fed/config.hpp"
#include "pardl/fed/detail/config_convert.hpp"
#include "pardl/fed/detail/config_key.hpp"
#include "pardl/fed/detail/config_nearest.hpp"
#include "pardl/fed/detail/config_relations.hpp"
#include "pardl/fed/detail/config_table.hpp"
#include "pardl/fed/detail/config_table_known.hpp"
#include "pardl/fed/detail/config_table_training.hpp"
#include "pardl/fed/detail/config_value.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

namespace config_detail {

[[nodiscard]] inline std::vector<Key> const& all_keys() {
  static std::vector<Key> const keys = [] {
    std::vector<Key> all;
    for (std::span<Key const> const part : {job_keys(), training_keys(), known_keys()})
      all.insert(all.end(), part.begin(), part.end());
    return all;
  }();
  return keys;
}

[[nodiscard]] inline Key const* find_key(std::string_view name) {
  for (Key const& key : all_keys())
    if (key.name == name) return &key;
  return nullptr;
}

/// The sections, each once: `train`, `train.optimizer`, …
[[nodiscard]] inline std::vector<std::string_view> sections() {
  std::vector<std::string_view> found;
  for (Key const& key : all_keys())
    for (std::size_t dot = key.name.find('.'); dot != std::string_view::npos; dot = key.name.find('.', dot + 1)) {
      std::string_view const section = key.name.substr(0, dot);
      if (std::find(found.begin(), found.end(), section) == found.end()) found.push_back(section);
    }
  return found;
}

[[nodiscard]] inline bool is_section(std::string_view name) {
  std::vector<std::string_view> const all = sections();
  return std::find(all.begin(), all.end(), name) != all.end();
}

/// \param as_section  it has keys of its own, so what was meant is a section.
[[noreturn]] inline void refuse_unknown(std::string_view name, std::string_view where, bool as_section) {
  std::vector<std::string_view> names;
  if (as_section)
    names = sections();
  else
    for (Key const& key : all_keys()) names.push_back(key.name);
  std::string remedy;
  if (std::string_view const near = nearest(name, names); !near.empty()) {
    remedy = "did you mean " + std::string(near);
  } else {
    std::vector<std::string_view> siblings;
    SplitName const split = split_name(name);
    for (std::string_view const known : names)
      if (split_name(known).section == split.section) siblings.push_back(split_name(known).leaf);
    std::string const place = split.section.empty() ? "at the top level" : "under " + std::string(split.section);
    remedy = siblings.empty() ? "see the help for all keys" : "the keys " + place + " are " + joined(siblings);
  }
  refuse(where, "there is no " + std::string(as_section ? "section " : "key ") + std::string(name), remedy);
}

/// Sets one key. Nothing is changed if it throws.
/// \throws ConfigError for another type, a value outside of what the key takes, or one that nothing is built for.
inline void apply(Key const& key, Given const& given, std::string_view where, Config& config) {
  if (!key.alias.empty()) return apply(*find_key(key.alias), given, where, config);
  if (given.kind == Given::Kind::nothing)
    refuse(where, std::string(key.name) + " has no value", "give one, or leave the key out");
  auto const not_built = [&](std::string const& standard) {
    refuse(where,
           std::string(key.name) + " is " + shown(given) + ", but pardl has not built this key of FederatedScope (" +
               std::string(key.meaning) + ")",
           "leave it at " + standard + ", or leave it out");
  };
  if (key.field == nullptr) {
    std::optional<Given> const standard = Literal::parse(key.standard);
    if (!standard || !same(unfolded(given), *standard)) not_built(std::string(key.standard));
    return;
  }
  Config next = config;
  Field const field = key.field(next);
  std::visit([&](auto* into) { Converting{key, where}(given, *into); }, field);
  check_stored(key, where, field);
  if (key.status == Status::known) {
    Config standard;
    std::visit(
        [&](auto* value) {
          auto const* usual = std::get<decltype(value)>(key.field(standard));
          if (*value != *usual) not_built(yaml_text(*usual));
        },
        field);
  }
  config = std::move(next);
}

[[nodiscard]] inline char const* type_name(Field const& field) {
  constexpr char const* names[] = {"True or False", "whole number",  "number", "text",
                                   "numbers",       "whole numbers", "texts",  "names with arguments",
                                   "arguments"};
  static_assert(std::size(names) == std::variant_size_v<Field>);
  return names[field.index()];
}

}  // namespace config_detail

/// Every key, in the order of the written file; those that nothing is built for last.
[[nodiscard]] inline std::vector<std::string_view> config_keys() {
  std::vector<std::string_view> names;
  for (auto const& key : config_detail::all_keys()) names.push_back(key.name);
  return names;
}

/// Sets keys as FederatedScope's command line does: `federate.client_num 5 data.splits [0.6,0.2,0.2] seed 7`, where
/// values are Python literals or YAML. A later word wins over an earlier one, and over the file. Nothing is changed if
/// it throws. \throws ConfigError
inline void apply_overrides(Config& config, std::span<std::string const> words) {
  using namespace config_detail;
  Config next = config;
  for (std::size_t i = 0; i < words.size(); i += 2) {
    std::string const& name = words[i];
    std::string const where = "command line: ";
    Key const* const key = find_key(name);
    if (key == nullptr && is_section(name))
      refuse(
          where, name + " is a section, not a key", "name one of its keys, such as " + [&] {
            for (Key const& other : all_keys())
              if (other.name.starts_with(name + ".")) return std::string(other.name);
            return name;
          }());
    if (key == nullptr) refuse_unknown(name, where, false);
    if (i + 1 == words.size()) refuse(where, name + " has no value", "give pairs: a key, a value, a key, a value");
    apply(*key, given_in_word(words[i + 1]), where, next);
  }
  config = std::move(next);
}

/// Checks each value, and what values must be to each other. Reading has done the first already; this is for a Config
/// that a program filled in, and for the second, which only makes sense when the file and the command line are read.
/// \throws ConfigError
inline void check_config(Config const& config) {
  using namespace config_detail;
  Config copy = config, standard;
  for (Key const& key : all_keys()) {
    if (key.field == nullptr) continue;
    Field const field = key.field(copy);
    auto const text_of = [](Field const& which) {
      return std::visit([](auto const* value) { return yaml_text(*value); }, which);
    };
    std::string const before = text_of(field);
    check_stored(key, "", field);
    if (std::string const after = text_of(field); before != after)
      refuse("", std::string(key.name) + " is " + before, "spell it " + after);
    if (std::string const usual = text_of(key.field(standard)); key.status == Status::known && before != usual)
      refuse("", std::string(key.name) + " is " + before + ", but pardl has not built this key of FederatedScope",
             "leave it at " + usual);
  }
  check_relations(config);
}

/// The configuration as YAML, every built key with its value, as FederatedScope writes config.yaml; what FederatedScope
/// would hand on to a constructor (momentum, …) only where it is set. Reading it gives `config` again.
[[nodiscard]] inline std::string to_yaml(Config const& config) {
  using namespace config_detail;
  Config copy = config, standard;
  auto const text_of = [](Field const& field) {
    return std::visit([](auto const* value) { return yaml_text(*value); }, field);
  };
  std::string text;
  std::vector<std::string> open;
  for (Key const& key : all_keys()) {
    if (key.field == nullptr || key.status == Status::known) continue;
    std::string const value = text_of(key.field(copy));
    if (key.status == Status::added && value == text_of(key.field(standard))) continue;
    std::vector<std::string> const path = parts_of(key.name, '.');
    std::size_t const depth = path.size() - 1;
    std::size_t same_sections = 0;
    while (same_sections < std::min(open.size(), depth) && open[same_sections] == path[same_sections]) ++same_sections;
    open.resize(same_sections);
    for (std::size_t i = same_sections; i < depth; ++i) {
      text.append(2 * i, ' ').append(path[i]).append(":\n");
      open.push_back(path[i]);
    }
    text.append(2 * depth, ' ').append(path[depth]).append(": ").append(value).append("\n");
  }
  return text;
}

/// One line for each key whose name starts with `prefix`: its type, default and meaning, and the values it can take;
/// keys that nothing is built for are marked.
[[nodiscard]] inline std::string config_help(std::string_view prefix = {}) {
  using namespace config_detail;
  Config standard;
  std::string text;
  for (Key const& key : all_keys()) {
    if (!key.name.starts_with(prefix)) continue;
    text.append(key.name);
    if (!key.alias.empty()) {
      text.append(": old name of ").append(key.alias).append("\n");
      continue;
    }
    if (key.field == nullptr) {
      text.append(" = ").append(key.standard);
    } else {
      Field const field = key.field(standard);
      text.append(" = ");
      std::visit([&](auto const* value) { text += yaml_text(*value); }, field);
      text.append(" (").append(type_name(field)).append(")");
    }
    text.append(": ").append(key.meaning);
    if (!key.rule.choices.empty()) text.append("; one of ").append(joined(words_of(key.rule.choices)));
    if (key.status == Status::known) text.append(" [not built: leave it at its default]");
    text += '\n';
  }
  return text;
}

}  // namespace pardl::inline PARDL_ABI::fed
