// SPDX-License-Identifier: MIT
// Groups and backends over shared memory for tests of them.
#pragma once

#include <chrono>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <vector>

#include "pardl/comm/backend/shm.hpp"
#include "pardl/policy/error.hpp"
#include "support/ranks.hpp"

namespace shm_test {

template <class F>
void over_shm(int n, F&& f) {
  pardl::testing::with_ranks(n, f, {.backend = "shm"});
}

/// Backends without a group around them, on threads; f(backend, rank).
template <class F>
void bare(int n, pardl::ShmOptions options, F&& f) {
  if (options.timeout == std::chrono::minutes(10)) options.timeout = std::chrono::seconds(30);
  auto const store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::exception_ptr first;
  for (int rank = 0; rank < n; ++rank)
    threads.emplace_back([&, rank] {
      try {
        auto const backend = pardl::backend::shm(store, rank, n, options);
        f(*backend, rank);
      } catch (...) {
        std::lock_guard const lock(mutex);
        if (!first) first = std::current_exception();
      }
    });
  for (auto& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace shm_test
