// SPDX-License-Identifier: MIT
/// \file   Reads a configuration from YAML, as FederatedScope's files are.
/// \layer  fed (std only). Needs the CMake target pardl::yaml (yaml-cpp); without it every call is a compile error.
///
/// Each error says where: file, line and column. Nothing of a file is passed over: unknown keys, a key twice, more than
/// one document, tags and values of another type are errors.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <type_traits>

#include "pardl/fed/config.hpp"
#include "pardl/version.hpp"

#ifdef PARDL_WITH_YAML
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <ios>
#include <system_error>
#include <vector>

#include "pardl/fed/config_keys.hpp"
#include "pardl/fed/detail/config_key.hpp"
#include "pardl/fed/detail/config_value.hpp"
#endif

namespace pardl::inline PARDL_ABI::fed {

#ifdef PARDL_WITH_YAML

namespace config_detail {

inline constexpr std::size_t most_yaml_bytes = std::size_t{1} << 20;

/// One document on its way to a Config.
class YamlReading {
 public:
  explicit YamlReading(std::string_view source) : source_(source) {}

  [[nodiscard]] Config read(std::string_view text) {
    std::vector<YAML::Node> documents;
    try {
      documents = YAML::LoadAll(std::string(text));
    } catch (YAML::Exception const& error) {
      refuse(place(error.mark.line + 1, error.mark.column + 1), "this is no YAML: " + error.msg, "mend the file");
    }
    std::size_t const filled = static_cast<std::size_t>(
        std::count_if(documents.begin(), documents.end(), [](auto const& d) { return !d.IsNull(); }));
    if (filled == 0) refuse(place(0, 0), "the configuration is empty", "give at least one key, such as seed: 0");
    if (documents.size() > 1)
      refuse(place(0, 0), "there are " + std::to_string(documents.size()) + " YAML documents in it",
             "keep one, and put the others into files of their own");
    Given const root = given(documents[0], 0);
    if (root.kind != Given::Kind::map) refuse(place(root), "this is no mapping of keys to values", "write key: value");
    section({}, root);
    return assemble();
  }

 private:
  struct Setting {
    Key const* key;
    Given given;
  };

  [[nodiscard]] std::string place(int line, int column) const {
    if (line <= 0) return source_ + ": ";
    return source_ + ":" + std::to_string(line) + ":" + std::to_string(column) + ": ";
  }
  [[nodiscard]] std::string place(Given const& at) const { return place(at.line, at.column); }

  [[nodiscard]] Given given(YAML::Node const& node, int depth) {
    int const line = node.Mark().line + 1, column = node.Mark().column + 1;
    // Anchors can make a short text into an endless tree, so both are bounded.
    if (depth > 16 || ++nodes_ > 100000)
      refuse(place(line, column), "the values are nested too deeply, or are too many", "write them out flat");
    std::string const& tag = node.Tag();
    if (!tag.empty() && tag != "?" && tag != "!")
      refuse(place(line, column), "the tag " + tag + " is not supported", "leave it out");
    Given result{.line = line, .column = column};
    if (node.IsScalar()) {
      result.kind = Given::Kind::scalar;
      result.text = node.Scalar();
      result.quoted = tag == "!";
    } else if (node.IsSequence()) {
      result.kind = Given::Kind::list;
      for (auto const& item : node) result.items.push_back(given(item, depth + 1));
    } else if (node.IsMap()) {
      result.kind = Given::Kind::map;
      for (auto const& pair : node) {
        result.keys.push_back(given(pair.first, depth + 1));
        result.items.push_back(given(pair.second, depth + 1));
      }
    }
    return result;
  }

  /// Finds the settings of a section, however deep.
  void section(std::string const& prefix, Given const& map) {
    for (std::size_t i = 0; i < map.keys.size(); ++i) {
      Given const& name = map.keys[i];
      Given value = map.items[i];
      if (value.kind == Given::Kind::nothing) {  // it stands nowhere
        value.line = name.line;
        value.column = name.column;
      }
      if (name.kind != Given::Kind::scalar) refuse(place(name), "a key is no plain word", "write key: value");
      for (std::size_t j = 0; j < i; ++j)
        if (map.keys[j].text == name.text)
          refuse(place(name),
                 prefix + name.text + " stands here twice, the first time on line " + std::to_string(map.keys[j].line),
                 "keep one of the two");
      std::string const full = prefix + name.text;
      if (Key const* const key = find_key(full)) {
        if (!prefix.empty() || full.find('.') == std::string::npos)
          settings_.push_back({key, value});
        else
          refuse(place(name), full + " is written with a dot", "write it under its section: " + nested(full));
      } else if (!is_section(full)) {
        refuse_unknown(full, place(name), value.kind == Given::Kind::map);
      } else if (value.kind == Given::Kind::map) {
        section(full + ".", value);
      } else {
        bool const nothing = value.kind == Given::Kind::nothing;
        refuse(place(value),
               full + " is a section, and " + (nothing ? "there is nothing in it" : "not " + shown(value)),
               nothing ? "leave it out, or indent its keys under it" : "indent its keys under it");
      }
    }
  }

  [[nodiscard]] static std::string nested(std::string name) {
    for (std::size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1))
      name.replace(dot, 1, ": ");
    return name;
  }

  [[nodiscard]] Config assemble() const {
    Config config;
    for (Setting const& setting : settings_) {
      std::string const where = place(setting.given);
      Key const& key = *setting.key;
      if (!key.alias.empty()) {
        // FederatedScope's own config.yaml spells both out, the old one with the value that changes nothing.
        bool const idle = same(setting.given, *Literal::parse(key.standard));
        Setting const* const now = find(key.alias);
        if (now != nullptr && !idle && !same(now->given, setting.given))
          refuse(where,
                 std::string(key.name) + " is " + shown(setting.given) + ", but its new name " +
                     std::string(key.alias) + " is " + shown(now->given) + " on line " +
                     std::to_string(now->given.line),
                 "keep one of the two");
        if (idle) continue;
      }
      apply(key, setting.given, where, config);
    }
    return config;
  }
  [[nodiscard]] Setting const* find(std::string_view name) const {
    for (Setting const& setting : settings_)
      if (setting.key->name == name) return &setting;
    return nullptr;
  }

  std::string source_;
  std::size_t nodes_ = 0;
  std::vector<Setting> settings_;
};

}  // namespace config_detail

/// A configuration from YAML text. Keys that are not in it keep their defaults; check_config() is still to be called,
/// after the overrides. \param source  what messages call the text: a file's name.
/// \throws ConfigError
[[nodiscard]] inline Config parse_config(std::string_view text, std::string_view source = "the configuration") {
  using namespace config_detail;
  if (text.size() > most_yaml_bytes)
    refuse(std::string(source) + ": ", "the configuration has more than 1 MiB", "check that it is the right file");
  return YamlReading(source).read(text);
}

/// A configuration from a YAML file. \throws ConfigError, also for a file that cannot be read.
[[nodiscard]] inline Config read_config(std::filesystem::path const& path) {
  using namespace config_detail;
  std::error_code error;
  bool const file = std::filesystem::is_regular_file(path, error);
  std::ifstream in(path, std::ios::binary);
  if (!file || !in) refuse("", path.string() + " cannot be read", "check its name and its permissions");
  std::string text(most_yaml_bytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) refuse("", path.string() + " cannot be read to its end", "check the disk");
  text.resize(static_cast<std::size_t>(in.gcount()));
  return parse_config(text, path.string());
}

#else

namespace config_detail {
template <class Never>
Config no_yaml_target() {
  static_assert(!std::is_void_v<Never>,
                "pardl::fed::read_config and parse_config need yaml-cpp: link the CMake target pardl::yaml "
                "(target_link_libraries(app pardl::yaml)).");
  return {};
}
}  // namespace config_detail

/// Without the CMake target pardl::yaml every call is a compile error that says so.
template <class Never = void>
Config parse_config(std::string_view, std::string_view = {}) {
  return config_detail::no_yaml_target<Never>();
}
template <class Never = void>
Config read_config(std::filesystem::path const&) {
  return config_detail::no_yaml_target<Never>();
}

#endif

}  // namespace pardl::inline PARDL_ABI::fed
