// SPDX-License-Identifier: MIT
/// \file   What DataParallel does whatever its module: devices, replicas, threads, and what goes wrong in them.
/// \layer  train, private.
#pragma once

#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/train/data_parallel_options.hpp"
#include "pardl/train/detail/device_threads.hpp"
#include "pardl/train/detail/replicas.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// The devices as tensors name them: the CPU without an index, any other with one.
/// \throws ConfigError for an empty list, a device twice (but the CPU), or one that is not there.
inline std::vector<torch::Device> checked_devices(std::vector<torch::Device> devices) {
  if (devices.empty())
    throw ConfigError(sentence("train", "DataParallel was given no device", "list those that the module shall use"));
  for (auto& device : devices) {
    if (device.is_cpu()) {
      device = torch::Device(torch::kCPU);
      continue;
    }
    bool usable = false;
    try {
      c10::impl::VirtualGuardImpl const kind(device.type());
      if (!device.has_index()) device = kind.getDevice();
      usable = device.index() < kind.deviceCount();
    } catch (c10::Error const&) {  // nobody here knows this kind of device
    }
    if (!usable)
      throw ConfigError(sentence("train", "DataParallel was given " + device.str() + ", which cannot be used here",
                                 "list devices of this machine, and link the backend that knows them"));
  }
  for (auto device = devices.begin(); device != devices.end(); ++device)
    if (!device->is_cpu() && std::find(devices.begin(), device, *device) != device)
      throw ConfigError(
          sentence("train", "DataParallel was given " + device->str() + " twice", "list each device once"));
  return devices;
}

class DataParallelEngine {
 public:
  DataParallelEngine(torch::nn::Module& module, std::vector<torch::Device> devices, DataParallelOptions options)
      : options_(options), replicas_(module, checked_devices(std::move(devices))) {
    if (options_.parallel && this->devices().size() > 1) threads_.emplace(this->devices());
  }

  [[nodiscard]] std::vector<torch::Device> const& devices() const noexcept { return replicas_.devices(); }
  [[nodiscard]] DataParallelOptions const& options() const noexcept { return options_; }
  void replicate() { replicas_.replicate(); }

  /// Calls `forward(module, i)` for the first `count` devices and waits for all. While the result lives, whatever is
  /// computed from a replica's parameters, one that forward handed out as well, leads to the module's.
  /// \throws Error that names the first device whose call threw, with that exception nested in it.
  [[nodiscard]] std::optional<Redirection> apply(std::size_t count,
                                                 std::function<void(torch::nn::Module&, std::size_t)> const& forward) {
    replicas_.follow(count);
    std::optional<Redirection> redirection;
    if (c10::GradMode::is_enabled()) redirection.emplace(replicas_.tie(count));
    if (threads_ && count > 1) {
      auto const failures = threads_->run(count, [&](std::size_t i) { forward(replicas_[i], i); });
      for (std::size_t i = 0; i < count; ++i)
        if (failures[i]) say_where(i, failures[i]);
    } else {
      for (std::size_t i = 0; i < count; ++i) {
        c10::OptionalDeviceGuard const on_device(devices()[i].is_cpu() ? std::optional<torch::Device>() : devices()[i]);
        try {
          forward(replicas_[i], i);
        } catch (...) {
          say_where(i, std::current_exception());
        }
      }
    }
    return redirection;
  }

 private:
  [[noreturn]] void say_where(std::size_t i, std::exception_ptr const& failure) const {
    auto const fail = [&](std::string const& what) {
      std::throw_with_nested(Error(sentence(
          "train", "forward failed on device " + std::to_string(i) + " (" + devices()[i].str() + "): " + what)));
    };
    try {
      std::rethrow_exception(failure);
    } catch (c10::Error const& error) {
      fail(error.what_without_backtrace());
    } catch (std::exception const& error) {
      fail(error.what());
    } catch (...) {
      fail("an exception of no standard type");
    }
    std::terminate();  // not reached: each branch throws
  }

  DataParallelOptions options_;
  Replicas replicas_;
  std::optional<DeviceThreads> threads_{};
};

}  // namespace pardl::inline PARDL_ABI::detail
