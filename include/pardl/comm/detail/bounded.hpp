// SPDX-License-Identifier: MIT
/// \file   Calls that may block for ever (a store whose host is stopped, the end of a transport), with a limit.
/// \layer  comm, private.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Runs f on a thread of its own and waits for it up to `limit`. What it throws is thrown here. \returns false if it
/// takes longer: the thread is then left behind, with all that f owns, so f must own whatever it uses.
inline bool ends_within(std::chrono::milliseconds limit, std::function<void()> f) {
  struct Result {
    std::mutex mutex;
    std::condition_variable told;
    bool ended = false;
    std::exception_ptr error;
  };
  auto const ending = std::make_shared<Result>();
  std::thread([ending, f = std::move(f)]() mutable {
    std::exception_ptr error;
    try {
      f();
      f = nullptr;  // the end of what it owns belongs to the call
    } catch (...) {
      error = std::current_exception();
    }
    std::lock_guard lock(ending->mutex);
    ending->error = error;
    ending->ended = true;
    ending->told.notify_all();
  }).detach();
  std::unique_lock lock(ending->mutex);
  if (!ending->told.wait_for(lock, limit, [&] { return ending->ended; })) return false;
  if (ending->error) std::rethrow_exception(ending->error);
  return true;
}

/// As above, for a call that has a result; nothing if it takes longer.
template <class F>
auto bounded(std::chrono::milliseconds limit, F f) -> std::optional<std::invoke_result_t<F&>> {
  auto const result = std::make_shared<std::optional<std::invoke_result_t<F&>>>();
  if (!ends_within(limit, [result, f = std::move(f)]() mutable { *result = f(); })) return std::nullopt;
  return std::move(*result);
}

}  // namespace pardl::inline PARDL_ABI::detail
