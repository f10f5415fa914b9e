// SPDX-License-Identifier: MIT
/// \file   Of several ranks that failed, which one was first, and how to say so.
/// \layer  comm (std and POSIX only).
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pardl/comm/detail/error_file.hpp"
#include "pardl/comm/detail/processes.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::launching {

/// One rank's end that was not as it should be.
struct Failure {
  int rank = 0;
  int size = 1;
  pid_t pid = 0;
  int status = 0;                    ///< of waitpid
  std::int64_t unix_ns = 0;          ///< when it was written down by the rank, or else seen by the launcher
  bool late = false;                 ///< after the launcher had begun to end the ranks
  std::optional<LastWords> words{};  ///< what the rank said

  [[nodiscard]] bool symptom() const { return words && words->symptom; }
};

/// Puts the root cause first. A rank whose communication broke tells of another's end, and may well be seen before it:
/// such symptoms come after every failure of another kind; within a kind the earliest comes first.
inline void sort_by_cause(std::vector<Failure>& failures) {
  std::stable_sort(failures.begin(), failures.end(), [](Failure const& a, Failure const& b) {
    return a.symptom() != b.symptom() ? b.symptom() : a.unix_ns < b.unix_ns;
  });
}

/// "rank 1/4 failed first (pid 12, exit code 1): [data] …"
[[nodiscard]] inline std::string describe(Failure const& failure, std::string const& verb) {
  std::string text = "rank " + std::to_string(failure.rank) + "/" + std::to_string(failure.size) + " " + verb +
                     " (pid " + std::to_string(failure.pid) + ", ";
  int const signal = WIFSIGNALED(failure.status) ? WTERMSIG(failure.status) : 0;
  if (signal != 0)
    text += "killed by " + signal_name(signal);
  else
    text += "exit code " + std::to_string(WEXITSTATUS(failure.status));
  text += ")";
  if (failure.words) return text + ": " + failure.words->message;
  if (signal == SIGKILL) return text + "; if nobody killed it, memory may have run out.";
  if (signal != 0) return text + "; its own output may say why.";
  return text + " without an exception; its own output may say why.";
}

/// The launcher's account: the root cause, then a line for each other failure unless it said the same.
[[nodiscard]] inline std::vector<std::string> account(std::vector<Failure> const& failures) {
  std::vector<std::string> lines;
  std::vector<std::string> said;
  int repeated = 0;
  for (auto const& failure : failures) {
    auto const text = failure.words ? failure.words->message : std::string();
    if (!text.empty() && std::find(said.begin(), said.end(), text) != said.end()) {
      ++repeated;
      continue;
    }
    said.push_back(text);
    lines.push_back("[launch] " + describe(failure, lines.empty() ? "failed first" : "failed then"));
  }
  if (repeated > 0)
    lines.push_back("[launch] " + std::to_string(repeated) + (repeated == 1 ? " other rank" : " other ranks") +
                    " said the same.");
  return lines;
}

}  // namespace pardl::inline PARDL_ABI::detail::launching
