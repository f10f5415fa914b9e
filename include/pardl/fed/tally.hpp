// SPDX-License-Identifier: MIT
/// \file   Losses and right answers of one client, added up batch by batch on the device where they arise.
/// \layer  fed.
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <cstdint>
#include <string>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// A client is seen by one worker in one order, so a plain sum repeats bit for bit; counts divide once, at the end.
/// On a GPU nothing waits before loss() or correct() is asked for. (pardl::Meter is its counterpart over ranks.)
class Tally {
 public:
  explicit Tally(torch::Device device = torch::kCPU) {
    if (!device.is_cpu()) there_ = torch::zeros({2}, torch::dtype(torch::kDouble).device(device));
  }

  /// One batch. \param loss  the batch's mean, without dimensions. \param outputs  [B, C, ...] scores, the greatest is
  /// the answer; answers are counted where targets are integers of outputs' shape without C.
  void add(torch::Tensor const& loss, torch::Tensor const& outputs, torch::Tensor const& targets) {
    auto const rows = outputs.size(0);
    bool const answers = outputs.dim() == targets.dim() + 1 && at::isIntegralType(targets.scalar_type(), false);
    if (there_.defined()) {
      there_[0] += loss.to(torch::kDouble) * static_cast<double>(rows);
      if (answers) there_[1] += outputs.argmax(1).eq(targets).sum();
    } else {
      loss_ += loss.item<double>() * static_cast<double>(rows);
      if (answers) correct_ += static_cast<double>(outputs.argmax(1).eq(targets).sum().template item<std::int64_t>());
    }
    samples_ += rows;
    if (answers) answers_ += targets.numel();
  }

  [[nodiscard]] std::int64_t samples() const noexcept { return samples_; }
  [[nodiscard]] std::int64_t answers() const noexcept { return answers_; }
  /// The sum of losses over samples.
  [[nodiscard]] double loss() const { return there_.defined() ? there_[0].item<double>() : loss_; }
  [[nodiscard]] std::int64_t correct() const {
    return static_cast<std::int64_t>(there_.defined() ? there_[1].item<double>() : correct_);
  }

 private:
  torch::Tensor there_;  // on a GPU: losses, right answers
  double loss_ = 0, correct_ = 0;
  std::int64_t samples_ = 0, answers_ = 0;
};

}  // namespace pardl::inline PARDL_ABI::fed
