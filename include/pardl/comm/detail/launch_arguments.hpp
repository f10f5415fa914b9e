// SPDX-License-Identifier: MIT
/// \file   The launcher's own options, taken out of a command line; everything else is handed on.
/// \layer  comm (std only).
#pragma once

#include <charconv>
#include <chrono>
#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/policy/whole_number.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::launching {

/// What stood on the command line for the launcher, and what is left of it.
struct LaunchArguments {
  std::optional<std::string> nproc;  ///< "4", "gpu" or "cpu"
  int max_restarts = 0;
  std::optional<std::string> backend;
  std::optional<std::string> device;
  std::optional<std::chrono::milliseconds> timeout;
  std::vector<char*> rest;          ///< for the program, with a null at its end, as argv has
  std::vector<std::string> worker;  ///< for a rank that starts by exec: all but --nproc and --max-restarts
};

[[nodiscard]] inline ConfigError bad_option(std::string_view option, std::string_view value, std::string_view remedy) {
  return ConfigError(
      sentence("launch", std::string(option) + " \"" + std::string(value) + "\" cannot be right", remedy));
}

/// "2.5" -> 2500 ms. \throws ConfigError unless it is a positive number of seconds below a year.
[[nodiscard]] inline std::chrono::milliseconds parse_seconds(std::string_view option, std::string_view text) {
  double seconds = 0;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  constexpr double a_year = 365.0 * 24 * 3600;
  bool const right = error == std::errc{} && end == text.data() + text.size() && seconds >= 1e-3 && seconds <= a_year;
  if (!right) throw bad_option(option, text, "give seconds, for example 600 or 2.5");
  return std::chrono::milliseconds(std::llround(seconds * 1000));
}

/// Splits a command line. `--option value` and `--option=value` mean the same, the last one counts, and after a bare
/// `--` nothing is touched. \throws ConfigError for a missing or impossible value of one of the launcher's options.
[[nodiscard]] inline LaunchArguments parse_launch_arguments(std::span<char* const> argv) {
  LaunchArguments found;
  bool ours = true;
  for (std::size_t i = 0; i < argv.size() && argv[i] != nullptr; ++i) {
    std::string_view const argument = argv[i];
    if (i > 0 && argument == "--") ours = false;
    auto const equals = argument.find('=');
    std::string_view const option = argument.substr(0, equals);
    bool const for_workers = option == "--backend" || option == "--device" || option == "--timeout";
    bool const for_parent = option == "--nproc" || option == "--max-restarts";
    if (i == 0 || !ours || !(for_workers || for_parent)) {
      found.rest.push_back(argv[i]);
      found.worker.emplace_back(argument);
      continue;
    }
    std::string value;
    if (equals != std::string_view::npos) {
      value = argument.substr(equals + 1);
    } else if (i + 1 < argv.size() && argv[i + 1] != nullptr && std::string_view(argv[i + 1]) != "--") {
      value = argv[++i];
    }
    if (value.empty())
      throw ConfigError(sentence("launch", std::string(option) + " lacks its value",
                                 "write for example --nproc 2, --backend gloo, --timeout 600"));
    if (for_workers) found.worker.push_back(std::string(option) + "=" + value);
    if (option == "--nproc") {
      auto const count = whole_number(value);
      constexpr int most_processes = 4096;
      if (value != "gpu" && value != "cpu" && (!count || *count < 1 || *count > most_processes))
        throw bad_option(option, value, "give a number of ranks from 1, or gpu, or cpu");
      found.nproc = value;
    } else if (option == "--max-restarts") {
      auto const count = whole_number(value);
      if (!count || *count < 0) throw bad_option(option, value, "give how often the ranks may be restarted, from 0");
      found.max_restarts = *count;
    } else if (option == "--backend") {
      found.backend = value;
    } else if (option == "--device") {
      found.device = value;
    } else {
      found.timeout = parse_seconds(option, value);
    }
  }
  if (found.max_restarts > 0 && !found.nproc)
    throw ConfigError(sentence("launch", "--max-restarts without --nproc restarts nothing",
                               "add --nproc N, or give it to the launcher that starts the ranks"));
  found.rest.push_back(nullptr);
  return found;
}

}  // namespace pardl::inline PARDL_ABI::detail::launching
