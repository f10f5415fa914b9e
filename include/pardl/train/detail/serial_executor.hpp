// SPDX-License-Identifier: MIT
/// \file   One thread that runs jobs in the order in which they came, beside the caller.
/// \layer  train, private. No torch.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Its end waits for the thread, but not long: jobs under way, which may wait for a rank that will never come, are left
/// to end by themselves. So a job must own whatever it uses, and must not throw.
class SerialExecutor {
 public:
  /// How long its end may take.
  static constexpr std::chrono::seconds farewell{1};

  SerialExecutor() : thread_([queue = queue_] { serve(*queue); }) {}
  SerialExecutor(SerialExecutor const&) = delete;
  SerialExecutor& operator=(SerialExecutor const&) = delete;
  ~SerialExecutor() {
    std::unique_lock lock(queue_->mutex);
    queue_->closed = true;
    queue_->changed.notify_all();
    bool const idle = queue_->changed.wait_for(lock, farewell, [&] { return queue_->jobs.empty() && !queue_->busy; });
    lock.unlock();
    if (idle)
      thread_.join();
    else
      thread_.detach();
  }

  void submit(std::function<void()> job) {
    {
      std::lock_guard lock(queue_->mutex);
      queue_->jobs.push_back(std::move(job));
    }
    queue_->changed.notify_all();
  }

 private:
  struct Queue {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> jobs;
    bool busy = false;
    bool closed = false;
  };

  static void serve(Queue& queue) {
    std::unique_lock lock(queue.mutex);
    for (;;) {
      queue.changed.wait(lock, [&] { return queue.closed || !queue.jobs.empty(); });
      if (queue.jobs.empty()) return;
      auto job = std::move(queue.jobs.front());
      queue.jobs.pop_front();
      queue.busy = true;
      lock.unlock();
      job();
      job = nullptr;  // what it owns ends here, outside the lock
      lock.lock();
      queue.busy = false;
      queue.changed.notify_all();
    }
  }

  std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
  std::thread thread_;
};

}  // namespace pardl::inline PARDL_ABI::detail
