// SPDX-License-Identifier: MIT
/// \file   Items 0, 1, 2, … made ahead by threads and handed out in order.
/// \layer  data (private; std only).
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Threads call make(i) for i = 0 … count-1, each i once, never more than `capacity` ahead of the consumer; next()
/// hands the results out by i, so their order does not depend on the threads. Zero threads: next() calls make itself.
/// What make throws comes out of next() in its turn, after the items before it, and ends the sequence.
/// The destructor drops what nobody has taken: it waits for the calls of make that are under way, no longer.
template <class Item>
class Prefetcher {
 public:
  struct Work {
    std::function<Item(std::int64_t)> make;  ///< called from several threads at once
    std::function<void()> enter = [] {};     ///< called once by each thread, first
  };

  Prefetcher(std::int64_t count, int threads, std::int64_t capacity, Work work)
      : count_(count),
        work_(std::move(work)),
        slots_(threads > 0 ? static_cast<std::size_t>(std::max<std::int64_t>(capacity, 1)) : 0) {
    auto const useful = std::min<std::int64_t>({threads, count, static_cast<std::int64_t>(slots_.size())});
    for (std::int64_t t = 0; t < useful; ++t)
      threads_.emplace_back([this](std::stop_token stop) { work_off(std::move(stop)); });
  }
  Prefetcher(Prefetcher&&) = delete;  // threads hold its address
  ~Prefetcher() {
    for (auto& thread : threads_) thread.request_stop();  // all before the first join
  }

  /// The next item, or nothing after the last. Only one thread may call it.
  [[nodiscard]] std::optional<Item> next() {
    if (taken_ >= count_) return std::nullopt;
    if (threads_.empty()) {
      auto const number = std::exchange(taken_, count_);  // so that a throw ends the sequence
      std::optional<Item> item{work_.make(number)};
      taken_ = number + 1;
      return item;
    }
    std::unique_lock lock(mutex_);
    auto& slot = slot_of(taken_);
    filled_.wait(lock, [&] { return slot.item || slot.failure; });
    if (slot.failure) {
      taken_ = count_;
      std::rethrow_exception(std::exchange(slot.failure, nullptr));
    }
    auto item = std::exchange(slot.item, std::nullopt);
    ++taken_;
    lock.unlock();
    room_.notify_one();
    return item;
  }

 private:
  struct Slot {
    std::optional<Item> item;
    std::exception_ptr failure;
  };

  Slot& slot_of(std::int64_t number) { return slots_[static_cast<std::size_t>(number) % slots_.size()]; }

  void work_off(std::stop_token stop) {
    std::exception_ptr no_start;
    try {
      work_.enter();
    } catch (...) {
      no_start = std::current_exception();
    }
    std::unique_lock lock(mutex_);
    for (;;) {
      room_.wait(lock, stop,
                 [&] { return started_ >= end() || started_ < taken_ + static_cast<std::int64_t>(slots_.size()); });
      if (stop.stop_requested() || started_ >= end()) return;
      auto const number = started_++;
      lock.unlock();
      std::optional<Item> item;
      auto failure = std::exchange(no_start, nullptr);  // moved on, never shared: the consumer frees it
      if (!failure) {
        try {
          item.emplace(work_.make(number));
        } catch (...) {
          failure = std::current_exception();
        }
      }
      lock.lock();
      if (failure) {
        failed_ = true;
        room_.notify_all();
      }
      slot_of(number) = Slot{std::move(item), std::exchange(failure, nullptr)};
      filled_.notify_one();
    }
  }

  /// Behind a failure nothing will be asked for, so nothing is started.
  [[nodiscard]] std::int64_t end() const { return failed_ ? 0 : count_; }

  std::int64_t const count_;
  Work const work_;
  std::mutex mutex_;
  std::condition_variable_any room_;  // for the threads: there is a slot to fill, or nothing left to do
  std::condition_variable filled_;    // for the consumer
  std::vector<Slot> slots_;
  std::int64_t started_ = 0;
  std::int64_t taken_ = 0;
  bool failed_ = false;
  std::vector<std::jthread> threads_;  // last, so that they end before what they use
};

}  // namespace pardl::inline PARDL_ABI::detail
