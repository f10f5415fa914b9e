// SPDX-License-Identifier: MIT
/// \file   Bytes that golden files keep as hexadecimal text.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

#include "support/golden.hpp"

namespace pardl::testing {

inline std::string from_hexadecimal(std::string_view text) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2)
    bytes.push_back(static_cast<char>(std::stoi(std::string(text.substr(i, 2)), nullptr, 16)));
  return bytes;
}

inline std::string to_hexadecimal(std::string_view bytes) {
  static constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (char const c : bytes) {
    auto const byte = static_cast<unsigned char>(c);
    (text += digits[byte >> 4]) += digits[byte & 15];
  }
  return text;
}

/// The bytes that the golden file `file` has under `key`.
inline std::string golden_bytes(std::string const& file, std::string const& key) {
  for (auto const& record : golden(file))
    if (record.words.at(0) == key) return from_hexadecimal(record.values.empty() ? "" : record.values[0]);
  throw std::runtime_error(file + " has no record " + key + "; run tests/golden/files.py");
}

}  // namespace pardl::testing
