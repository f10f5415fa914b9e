// SPDX-License-Identifier: MIT
/// \file   What this process and its children hold in memory, as Linux tells it.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace benchmarks {

/// A line of /proc/PID/FILE in MiB, summed over this process and its children.
inline double memory_mib(char const* file, std::string const& line_begins) {
  auto const of = [&](std::filesystem::path const& process) {
    std::ifstream lines(process / file);
    for (std::string line; std::getline(lines, line);)
      if (line.starts_with(line_begins)) return std::stod(line.substr(line_begins.size())) / 1024;
    return 0.0;
  };
  std::filesystem::path const proc = "/proc", self = proc / std::to_string(::getpid());
  double all = of(self);
  std::ifstream children(self / "task" / std::to_string(::getpid()) / "children");
  for (int child = 0; children >> child;) all += of(proc / std::to_string(child));
  return all;
}

/// The most that each process has held so far, added up: no less than what PeakMemory in federated_job.py sees by
/// looking 4 times a second. What processes share counts in each, there too.
inline double peak_resident_mib() { return memory_mib("status", "VmHWM:"); }

/// At present; what n processes share counts 1/n in each, so once.
inline double proportional_mib() { return memory_mib("smaps_rollup", "Pss:"); }

}  // namespace benchmarks
