// SPDX-License-Identifier: MIT
/// \file   Batch norm's running statistics measured anew: cumulative averages over some batches.
/// \layer  fed, private.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "pardl/train/module_like.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// While it lives, forward passes of a module in evaluation mode gather the statistics of its batch norms, from
/// nothing and each batch counting the same; dropout stays off.
class Recalibration {
 public:
  template <module_like M>
  explicit Recalibration(M& module) {
    auto& net = pardl::detail::contained(module);
    net.eval();
    if constexpr (requires { net.modules(); })
      for (auto const& part : net.modules()) {
        take<torch::nn::BatchNorm1dImpl>(part);
        take<torch::nn::BatchNorm2dImpl>(part);
        take<torch::nn::BatchNorm3dImpl>(part);
      }
  }
  Recalibration(Recalibration&&) = delete;
  ~Recalibration() {
    for (auto const& back : back_) back();
  }
  /// Whether the module has any batch norm that tracks statistics.
  [[nodiscard]] bool any() const noexcept { return !back_.empty(); }

 private:
  template <class Norm>
  void take(std::shared_ptr<torch::nn::Module> const& part) {
    auto const norm = std::dynamic_pointer_cast<Norm>(part);
    if (!norm || !norm->options.track_running_stats()) return;
    norm->reset_running_stats();
    back_.emplace_back([norm, momentum = norm->options.momentum()] {
      norm->options.momentum(momentum);
      norm->eval();
    });
    norm->options.momentum(std::nullopt);  // a plain average over all batches
    norm->train();
  }

  std::vector<std::function<void()>> back_;
};

}  // namespace pardl::inline PARDL_ABI::fed::detail
