// SPDX-License-Identifier: MIT
/// \file   Calls that may block for ever (a store whose host is stopped, the end of a transport), with a limit.
/// \layer  comm, private.
#pragma once

#include <chrono>
#include <future>
#include <memory>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Runs f on a thread of its own and waits for it up to `limit`. What it throws is thrown here. Nothing is returned if
/// it takes longer: the thread is then left behind, with all that f owns, so f must own whatever it uses.
template <class F>
auto bounded(std::chrono::milliseconds limit, F f) -> std::optional<std::invoke_result_t<F&>> {
  using Result = std::invoke_result_t<F&>;
  auto task = std::make_shared<std::packaged_task<Result()>>(std::move(f));
  auto result = task->get_future();
  std::thread([task = std::move(task)]() mutable {
    (*task)();
    task.reset();
  }).detach();
  if (result.wait_for(limit) != std::future_status::ready) return std::nullopt;
  return result.get();
}

}  // namespace pardl::inline PARDL_ABI::detail
