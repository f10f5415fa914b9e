// SPDX-License-Identifier: MIT
/// \file   Mixed precision: while an Autocast lives, each operation runs in the type that suits it.
/// \layer  train (torch only).
///
/// What `with torch.autocast(...)` does in Python, on entry and on exit.
#pragma once

#include <ATen/autocast_mode.h>
#include <torch/cuda.h>
#include <torch/types.h>

#include <optional>
#include <string>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct AutocastOptions {
  std::optional<torch::ScalarType> dtype{};  ///< kHalf or kBFloat16; none: LibTorch's choice (CUDA half, CPU bfloat16)
  bool enabled = true;                       ///< false: full precision, also inside another Autocast
  std::optional<bool> cache_enabled{};       ///< keep the cast weights until the outermost ends; none: as it is (on)
};

/// While it lives, this thread's operations on one kind of device run in the type that suits each: products of matrices
/// and convolutions in half precision, reductions and losses in float32.
///
///     auto loss = [&] { pardl::Autocast amp{world.device()}; return cross_entropy(model(images), labels); }();
///
/// It must end in the thread that made it, in the reverse order of making, before backward(): backward runs in the
/// types that forward chose. The state is the thread's own (ranks as threads each need one); the cache of cast weights
/// belongs to the process and is dropped when this thread's outermost Autocast ends, so that the next forward sees the
/// stepped weights.
class Autocast {
 public:
  /// \throws ConfigError if the device kind or the type has no autocast, or CUDA is asked for where there is none.
  [[nodiscard("name it: it works until it goes out of scope")]] explicit Autocast(torch::Device device,
                                                                                  AutocastOptions options = {});
  [[nodiscard("name it: it works until it goes out of scope")]] Autocast(torch::Device device, torch::ScalarType dtype)
      : Autocast(device, AutocastOptions{.dtype = dtype, .enabled = true, .cache_enabled = {}}) {}
  ~Autocast();
  Autocast(Autocast const&) = delete;
  Autocast& operator=(Autocast const&) = delete;

 private:
  torch::DeviceType device_;
  bool enabled_before_;
  bool cache_before_;
  torch::ScalarType dtype_before_;
};

inline Autocast::Autocast(torch::Device device, AutocastOptions options) : device_(device.type()) {
  if (!at::autocast::is_autocast_available(device_))
    throw ConfigError(
        sentence("train", "there is no autocast for " + device.str(), "leave it out, or use cpu or cuda"));
  auto const dtype = options.dtype.value_or(at::autocast::get_autocast_dtype(device_));
  if (options.enabled && dtype != torch::kHalf && dtype != torch::kBFloat16)
    throw ConfigError(sentence("train", std::string("autocast to ") + c10::toString(dtype), "use kHalf or kBFloat16"));
  if (options.enabled && device_ == torch::kCUDA && !torch::cuda::is_available())
    throw ConfigError(sentence("train", "autocast for CUDA where no GPU can be used", "pass world.device()"));
  enabled_before_ = at::autocast::is_autocast_enabled(device_);
  cache_before_ = at::autocast::is_autocast_cache_enabled();
  dtype_before_ = at::autocast::get_autocast_dtype(device_);
  at::autocast::set_autocast_enabled(device_, options.enabled);
  at::autocast::set_autocast_dtype(device_, dtype);
  at::autocast::increment_nesting();
  at::autocast::set_autocast_cache_enabled(options.cache_enabled.value_or(cache_before_));
}

inline Autocast::~Autocast() {
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_, enabled_before_);
  at::autocast::set_autocast_dtype(device_, dtype_before_);
  at::autocast::set_autocast_cache_enabled(cache_before_);
}

}  // namespace pardl::inline PARDL_ABI
