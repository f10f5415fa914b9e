// SPDX-License-Identifier: MIT
/// \file   One thread for each device, kept from call to call, that does its share as the calling thread would.
/// \layer  train, private.
#pragma once

#include <ATen/Config.h>
#include <ATen/Parallel.h>
#include <ATen/SequenceNumber.h>
#include <ATen/ThreadLocalState.h>
#include <ATen/autocast_mode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/types.h>

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

/// Nodes are numbered in each thread on its own, and backward takes the highest number first. A thread that goes on
/// with another's work goes on with its numbers: the order of backward, and with it the bits of its sums, then is that
/// of the forward, whatever the threads did before.
inline void continue_numbering(std::uint64_t from) {
  while (at::sequence_number::peek() < from) (void)at::sequence_number::get_and_increment();
}

/// What a thread's results depend on besides its arguments: grad and inference mode, autocast, hooks, profiler, current
/// streams, the number of the next node. (The default dtype belongs to the process.)
class CallerState {
 public:
  explicit CallerState(std::vector<torch::Device> const& devices) {
    for (auto const device : devices)
      streams_.push_back(device.is_cpu() ? std::optional<c10::Stream>()
                                         : c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  }

  /// Calls `f()` in this thread as the caller would have it on the device of that index.
  template <class F>
  void apply(std::size_t index, F&& f) const {
    at::ThreadLocalStateGuard const modes(state_);
    at::autocast::set_autocast_cache_enabled(cache_enabled_);  // the one part of autocast that is not among them
    c10::OptionalStreamGuard const on_device(streams_[index]);
    continue_numbering(next_node_);
    std::forward<F>(f)();
  }

 private:
  at::ThreadLocalState state_{};
  bool cache_enabled_ = at::autocast::is_autocast_cache_enabled();
  std::uint64_t next_node_ = at::sequence_number::peek();
  std::vector<std::optional<c10::Stream>> streams_{};
};

/// Threads of the same number as devices. Not to be used by two threads at a time.
class DeviceThreads {
 public:
  explicit DeviceThreads(std::vector<torch::Device> devices)
      : devices_(std::move(devices)),
        on_cpu_(std::count(devices_.begin(), devices_.end(), torch::Device(torch::kCPU))) {
    for (std::size_t i = 0; i < devices_.size(); ++i)
      threads_.emplace_back([this, i](std::stop_token const& stop) { serve(stop, i); });
  }
  DeviceThreads(DeviceThreads const&) = delete;
  DeviceThreads& operator=(DeviceThreads const&) = delete;
  ~DeviceThreads() = default;

  /// Calls `f(i)` for each of the first `count` devices, all at once, each in its own thread. Devices that are the CPU
  /// share the caller's intra-op threads evenly, and have one at least. \return what each of them threw, or null.
  [[nodiscard]] std::vector<std::exception_ptr> run(std::size_t count, std::function<void(std::size_t)> const& f) {
    CallerState const caller(devices_);
    std::vector<std::exception_ptr> failures(count);
    int const intra_op = at::get_num_threads();
    std::uint64_t next_node = 0;
    bool reset_default = false;
    std::function<void(std::size_t)> const job = [&](std::size_t i) {
      bool resized = false;
      try {
        resized = devices_[i].is_cpu() && share(intra_op);
        caller.apply(i, [&] { f(i); });
      } catch (...) {
        failures[i] = std::current_exception();
      }
      std::lock_guard const lock(mutex_);
      next_node = std::max(next_node, at::sequence_number::peek());
      reset_default = reset_default || resized;
    };
    {
      std::unique_lock lock(mutex_);
      job_ = &job;
      wanted_ = left_ = count;
      ++round_;
      wake_.notify_all();
      done_.wait(lock, [this] { return left_ == 0; });
      job_ = nullptr;
    }
    continue_numbering(next_node);
    // Setting a thread's number also sets what threads that start later get; this sets that back.
    if (reset_default) at::set_num_threads(intra_op);
    return failures;
  }

 private:
  /// Gives this thread its part of the intra-op threads. \return whether that changed anything.
  [[nodiscard]] bool share(int intra_op) const {
    if constexpr (AT_PARALLEL_OPENMP == 0) return false;  // LibTorch then has one pool, which all threads share
    int const part = std::max(1, intra_op / static_cast<int>(on_cpu_));
    if (at::get_num_threads() == part) return false;
    at::set_num_threads(part);
    return true;
  }

  void serve(std::stop_token const& stop, std::size_t index) {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (wake_.wait(lock, stop, [&] { return round_ != seen; })) {
      seen = round_;
      if (index >= wanted_) continue;
      auto const* const job = job_;
      lock.unlock();
      (*job)(index);
      lock.lock();
      if (--left_ == 0) done_.notify_one();
    }
  }

  std::vector<torch::Device> devices_;
  std::ptrdiff_t on_cpu_;
  std::mutex mutex_{};
  std::condition_variable_any wake_{};
  std::condition_variable done_{};
  std::function<void(std::size_t)> const* job_ = nullptr;
  std::size_t wanted_ = 0;
  std::size_t left_ = 0;
  std::uint64_t round_ = 0;
  std::vector<std::jthread> threads_{};  ///< last, so that they end before what they use
};

}  // namespace pardl::inline PARDL_ABI::detail
