// SPDX-License-Identifier: MIT
/// \file   What this machine offers a job, found without using it.
#pragma once

#include <sys/wait.h>
#include <torch/cuda.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <thread>

#include "pardl/fed/config_rules.hpp"

namespace federated {

/// A worker that is forked later may use a GPU only if this process has not: so a child asks how many there are.
inline std::int64_t gpus() {
  int ends[2];
  if (::access("/dev/nvidiactl", F_OK) != 0 || ::pipe(ends) != 0) return 0;
  pid_t const pid = ::fork();
  if (pid == 0) {
    auto const count = static_cast<char>(std::min<int>(torch::cuda::device_count(), 100));
    (void)!::write(ends[1], &count, 1);
    ::_exit(0);
  }
  ::close(ends[1]);
  char count = 0;
  if (::read(ends[0], &count, 1) != 1) count = 0;
  ::close(ends[0]);
  if (pid > 0) ::waitpid(pid, nullptr, 0);
  return count;
}

inline pardl::fed::Machine machine() {
  return {.gpus = gpus(), .cores = static_cast<std::int64_t>(std::thread::hardware_concurrency())};
}

}  // namespace federated
