// SPDX-License-Identifier: MIT
/// \file   Loss and accuracy as counts that ranks add up and divide once, so that N ranks print what one would.
/// \layer  train (may include comm).
///
/// The mean of the ranks' means is not the mean: shares differ. And a sum of floating-point losses depends on who added
/// what first. So a Meter keeps integers only: samples, right answers, and the losses in units of 2^-32, whose sum is
/// the same in any order, for any number of ranks, batches and workers.
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// What all ranks found together; the same numbers on every rank.
struct Evaluation {
  double loss = std::numeric_limits<double>::quiet_NaN();      ///< mean over all losses; NaN if there was none
  double accuracy = std::numeric_limits<double>::quiet_NaN();  ///< right answers / answers; NaN if none was counted
  std::int64_t samples = 0;                                    ///< really processed, by all ranks
  std::int64_t correct = 0;                                    ///< right answers
  double seconds = 0;                                          ///< of the slowest rank

  /// Samples per second of all ranks together.
  [[nodiscard]] double samples_per_second() const noexcept {
    return seconds > 0 ? static_cast<double>(samples) / seconds : 0;
  }
};

/// Sums of one epoch on one rank. It stays on the device: add() never waits, reduce() does once.
class Meter {
 public:
  /// The clock starts here.
  explicit Meter(torch::Device device = torch::kCPU) : device_(device) { reset(); }

  /// One batch of classification.
  /// \param losses   [B, ...], a loss per sample (or per pixel); or a tensor without dimensions: the mean of the batch,
  /// as a training
  ///                 loss is.
  /// \param outputs  [B, C, ...] scores; the answer is the greatest.
  /// \param targets  [B, ...] classes as integers. Where outputs and targets have other shapes or types, no answers are
  /// counted. \throws DataError if the first dimensions differ.
  void add(torch::Tensor const& losses, torch::Tensor const& outputs, torch::Tensor const& targets);

  /// One batch of anything: losses as above, and the number of samples that they are of.
  /// \throws DataError unless losses has no dimensions or `samples` rows.
  void add(torch::Tensor const& losses, std::int64_t samples);

  /// Adds all ranks' sums in one all-reduce of doubles (counts are exact up to 2^53) and divides. Every rank must call
  /// it, also one that had no batch. \param healthy  false: this rank could not finish; then every rank's call throws.
  /// \throws Error that names the ranks that could not finish.
  [[nodiscard]] Evaluation reduce(ProcessGroup const& world, bool healthy = true) const;

  /// Back to zero; the clock starts again.
  void reset();

 private:
  static constexpr double units = 4294967296.0;     // 2^32 to the loss of 1
  static constexpr double too_great = 1048576.0;    // a loss from here on is kept in plain floating point only,
  static constexpr double too_many = 1073741824.0;  // and so is a sum from here on: it nears the end of 64 bits

  torch::Device device_;
  torch::Tensor whole_;    // int64 [2]: losses in units, right answers
  torch::Tensor inexact_;  // float64 [2]: losses, number of those that did not fit
  std::int64_t terms_ = 0, answers_ = 0, samples_ = 0;
  std::chrono::steady_clock::time_point start_;
};

inline void Meter::reset() {
  whole_ = torch::zeros({2}, torch::dtype(torch::kInt64).device(device_));
  inexact_ = torch::zeros({2}, torch::dtype(torch::kFloat64).device(device_));
  terms_ = answers_ = samples_ = 0;
  start_ = std::chrono::steady_clock::now();
}

inline void Meter::add(torch::Tensor const& losses, std::int64_t samples) {
  torch::NoGradGuard const no_grad;
  if (samples < 0 || (losses.dim() > 0 && losses.size(0) != samples))
    throw DataError(sentence("train",
                             "a batch of " + std::to_string(samples) + " samples came with " +
                                 std::to_string(losses.dim() > 0 ? losses.size(0) : 0) + " losses",
                             "give one loss per sample, or their mean"));
  if (samples == 0) return;
  bool const is_mean = losses.dim() == 0;
  auto values =
      losses.detach().to(torch::TensorOptions().device(device_).dtype(torch::kFloat64), /*non_blocking=*/true);
  if (is_mean) values = values * samples;
  auto const fits = values.abs() < too_great;  // false for NaN
  auto const whole = at::where(fits, values * units, 0.0).round_().to(torch::kInt64);
  whole_[0] += whole.sum();
  inexact_ += at::stack({values.sum(), fits.logical_not().sum().to(torch::kFloat64)});
  terms_ += is_mean ? samples : values.numel();
  samples_ += samples;
}

inline void Meter::add(torch::Tensor const& losses, torch::Tensor const& outputs, torch::Tensor const& targets) {
  torch::NoGradGuard const no_grad;
  if (outputs.dim() < 1 || targets.dim() < 1 || outputs.size(0) != targets.size(0))
    throw DataError(sentence("train", "outputs and targets of a batch are of different numbers of samples",
                             "their first dimension is the batch"));
  add(losses, outputs.size(0));
  bool const classes = outputs.dim() == targets.dim() + 1 && at::isIntegralType(targets.scalar_type(), false);
  if (!classes || targets.numel() == 0) return;
  auto const right = outputs.detach().argmax(1).eq(targets.to(outputs.device())).sum();
  whole_[1] += right.to(device_, /*non_blocking=*/true);
  answers_ += targets.numel();
}

inline Evaluation Meter::reduce(ProcessGroup const& world, bool healthy) const {
  // Reading the sums waits for the device: only then has the work been done that is timed.
  auto const whole = whole_.cpu();
  auto const inexact = inexact_.cpu();
  double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  auto const losses = whole[0].item<std::int64_t>();

  // A double holds 53 bits, so the loss travels in two halves. Each rank writes its seconds into a place of its own: a
  // sum over ranks then collects them.
  enum : std::int64_t { high, low, correct, plain, unfit, terms, answers, samples, fixed };
  auto packed = torch::zeros({fixed + world.size()}, torch::kFloat64);
  auto* sum = packed.mutable_data_ptr<double>();
  sum[high] = static_cast<double>(losses >> 32);
  sum[low] = static_cast<double>(losses & 0xffffffff);
  sum[correct] = static_cast<double>(whole[1].item<std::int64_t>());
  sum[plain] = inexact[0].item<double>();
  sum[unfit] = inexact[1].item<double>();
  sum[terms] = static_cast<double>(terms_);
  sum[answers] = static_cast<double>(answers_);
  sum[samples] = static_cast<double>(samples_);
  sum[fixed + world.rank()] = healthy ? seconds : -1;

  auto const device = world.device();
  auto shared = packed.to(device);
  all_reduce(world, shared).wait();
  auto const all = shared.cpu();
  auto const* total = all.const_data_ptr<double>();

  std::string broken;
  Evaluation result;
  for (int rank = 0; rank < world.size(); ++rank) {
    double const there = total[fixed + rank];
    if (there < 0) broken += (broken.empty() ? "rank " : ", rank ") + std::to_string(rank);
    result.seconds = std::max(result.seconds, there);
  }
  if (!broken.empty())
    throw Error(sentence("train", world.rank(), world.size(), broken + " could not finish the epoch",
                         "see what that rank says"));
  bool const exact = total[unfit] == 0 && std::abs(total[plain]) < too_many;
  double const loss = exact ? (total[high] * units + total[low]) / units : total[plain];
  result.samples = static_cast<std::int64_t>(total[samples]);
  result.correct = static_cast<std::int64_t>(total[correct]);
  if (total[terms] > 0) result.loss = loss / total[terms];
  if (total[answers] > 0) result.accuracy = total[correct] / total[answers];
  return result;
}

}  // namespace pardl::inline PARDL_ABI
