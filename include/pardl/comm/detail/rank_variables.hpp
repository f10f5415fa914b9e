// SPDX-License-Identifier: MIT
/// \file   What pardl::launch tells its ranks: torchrun's variables, and what a rank cannot find out by itself.
/// \layer  comm (std and POSIX only).
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/comm/detail/processes.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::launching {

struct RankVariables {
  int rank = 0;
  int ranks = 1;
  int port = 0;  ///< of the store on 127.0.0.1
  int restart = 0;
  int max_restarts = 0;
  int words = -1;   ///< descriptor, in this process, of the rank's error file
  int columns = 0;  ///< of the terminal that shows what rank 0 draws; 0: none
  std::string run_id{};

  /// Names and values; an empty value unsets.
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> list() const {
    auto const r = std::to_string(rank);
    auto const n = std::to_string(ranks);
    std::vector<std::pair<std::string, std::string>> set = {
        {"RANK", r},
        {"LOCAL_RANK", r},
        {"GROUP_RANK", "0"},
        {"ROLE_RANK", r},
        {"ROLE_NAME", "default"},
        {"WORLD_SIZE", n},
        {"LOCAL_WORLD_SIZE", n},
        {"GROUP_WORLD_SIZE", "1"},
        {"ROLE_WORLD_SIZE", n},
        {"MASTER_ADDR", "127.0.0.1"},
        {"MASTER_PORT", std::to_string(port)},
        {"TORCHELASTIC_RESTART_COUNT", std::to_string(restart)},
        {"TORCHELASTIC_MAX_RESTARTS", std::to_string(max_restarts)},
        {"TORCHELASTIC_RUN_ID", run_id},
        {"TORCHELASTIC_USE_AGENT_STORE", "True"},
        {"TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT"},
        // The launcher's own descriptor, by a path that holds in every child: nothing to remove, whatever happens.
        {"TORCHELASTIC_ERROR_FILE", "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(words)},
        {"PARDL_RUN_ID", run_id},
        {"PARDL_ROLE", ""},
        {"PARDL_NUM_THREADS", ""},
    };
    // torchrun gives each rank one thread, which leaves most of a machine idle: share out the cores instead.
    if (std::getenv("OMP_NUM_THREADS") == nullptr && std::getenv("MKL_NUM_THREADS") == nullptr)
      for (auto const* name : {"OMP_NUM_THREADS", "PARDL_NUM_THREADS"})
        set.emplace_back(name, std::to_string(std::max(1, usable_cores() / ranks)));
    if (ranks > 1) add_terminal(set);
    return set;
  }

 private:
  /// What rank 0 draws into its pipe is shown on our terminal, behind its prefix. PARDL_TTY=0 from outside forbids it.
  void add_terminal(std::vector<std::pair<std::string, std::string>>& set) const {
    auto const outer = [](char const* name) {
      char const* const value = std::getenv(name);
      return std::string_view(value == nullptr ? "" : value);
    };
    if (outer("PARDL_TTY") == "0") return;
    bool const dumb = outer("TERM").empty() || outer("TERM") == "dumb";
    bool const shown = rank == 0 && columns > 0 && !dumb;
    constexpr int prefix_columns = 4;
    constexpr int narrowest = 20;
    set.emplace_back("PARDL_TTY", shown ? "1" : "");
    if (shown) set.emplace_back("COLUMNS", std::to_string(std::max(narrowest, columns - prefix_columns)));
  }
};

}  // namespace pardl::inline PARDL_ABI::detail::launching
