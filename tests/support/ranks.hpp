// SPDX-License-Identifier: MIT
// Ranks as threads: a world of n in one process, over shared memory. Inside a rank use CHECK, not
// REQUIRE: doctest's REQUIRE throws, and only the first rank's exception is told.
#pragma once

#include <chrono>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/process_group.hpp"

namespace pardl::testing {

struct RanksOptions {
  std::chrono::milliseconds timeout{30'000};  ///< of one operation: a broken test ends
  std::string backend = {};                   ///< empty: self for one rank, for more shm, or gloo over several hosts
  torch::Device device = torch::kCPU;         ///< of every rank
  std::vector<std::string> hosts = {};        ///< pretend that rank i sits on hosts[i]; empty: all on this one
};

/// Calls f(world) on n threads, a rank each, joins them, and rethrows what was thrown first. A rank that throws ends
/// the others' operations, as it would in a process of its own.
template <class F>
void with_ranks(int n, F&& f, RanksOptions const& options = {}) {
  auto const store = c10::make_intrusive<c10d::HashStore>();
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < n; ++rank)
    threads.emplace_back([&, rank] {
      try {
        Environment environment;
        environment.rank = environment.local_rank = rank;
        environment.size = environment.local_size = n;
        ProcessGroup world =
            init({.backend = options.backend,
                  .device = options.device,
                  .timeout = options.timeout,
                  .store = store,
                  .environment = environment,
                  .host = options.hosts.empty() ? "" : options.hosts.at(static_cast<std::size_t>(rank))});
        try {
          f(world);
        } catch (...) {
          std::lock_guard lock(mutex);
          if (!first) first = std::current_exception();
          throw;
        }
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
    });
  for (auto& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

/// Blocks a rank that is meant to be missing until the others have given up on it.
inline void wait_until_failed(ProcessGroup const& world) {
  auto const backend = world.c10d()->getDefaultBackend();
  while (backend->getError() == c10d::ErrorType::SUCCESS) std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

}  // namespace pardl::testing
