// SPDX-License-Identifier: MIT
/// \file   Reads the golden vectors of tests/golden: `words : values` per line, the last line counts the records.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace pardl::testing {

struct GoldenRecord {
  std::vector<std::string> words, values;

  [[nodiscard]] std::int64_t integer(std::size_t word) const { return std::stoll(words.at(word)); }
  [[nodiscard]] double real(std::size_t word) const { return std::strtod(words.at(word).c_str(), nullptr); }
  [[nodiscard]] std::vector<std::int64_t> integers() const {
    std::vector<std::int64_t> numbers;
    for (auto const& value : values) numbers.push_back(std::stoll(value));
    return numbers;
  }
  [[nodiscard]] std::vector<double> reals() const {
    std::vector<double> numbers;
    for (auto const& value : values) numbers.push_back(std::strtod(value.c_str(), nullptr));
    return numbers;
  }
};

/// \throws std::runtime_error for a file that is missing, or has not as many records as its last line says; it names
/// the script of the file's own line `# Written by …; do not edit.`, if that can be read.
[[nodiscard]] inline std::vector<GoldenRecord> golden(std::string const& name) {
  auto const path = std::filesystem::path(PARDL_TEST_DATA) / name;
  std::ifstream file(path);
  std::vector<GoldenRecord> records;
  std::string writer = "the script that writes it";
  constexpr std::string_view by = "# Written by ";
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(by)) writer = line.substr(by.size(), line.find(';') - by.size());
    if (line.starts_with('#')) continue;
    GoldenRecord record;
    bool behind_colon = false;
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      if (word == ":")
        behind_colon = true;
      else
        (behind_colon ? record.values : record.words).push_back(word);
    }
    records.push_back(record);
  }
  bool const counted = !records.empty() && records.back().words.size() == 2 && records.back().words[0] == "records";
  if (!counted || records.back().integer(1) != static_cast<std::int64_t>(records.size()) - 1)
    throw std::runtime_error("golden vectors missing or truncated: " + path.string() + "; run " + writer +
                             " in tests/golden");
  records.pop_back();
  return records;
}

}  // namespace pardl::testing
