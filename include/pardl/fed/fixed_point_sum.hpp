// SPDX-License-Identifier: MIT
/// \file   A weighted mean whose bits do not depend on who added what first: sums are integers.
/// \layer  fed.
///
/// Floating-point sums depend on their order, and in a simulation the order is that of arrival. Here weight × value is
/// rounded once to a multiple of a fixed unit and added as a 64-bit integer; such sums are exact, so any number of
/// workers, any schedule and any order of merging give the same bits, and what was added can be taken back.
///
/// The price: 8 bytes a number and accumulator (one per worker), one pass of 4 bytes read and 8 read and written per
/// update (6.6 million numbers: about 10 ms on a CPU core), and values must lie within ±2^20 (or 4096 times what they
/// started from). The rounding is 2^-43 of an update's share of the weight: a float32 of 0.01 is 2^12 times coarser.
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// Sums that updates are folded into one at a time. `accumulate(update, weight)` adds weight × update and may refuse;
/// `merge(other)` adds what another has gathered, in any order; `finalize()` is the result. Models: FixedPointSum.
template <class A>
concept aggregator = requires(A& sum, A const& other, torch::Tensor const& update, double weight) {
  sum.zero();
  { sum.accumulate(update, weight) } -> std::convertible_to<std::optional<std::int64_t>>;
  sum.merge(other);
  { other.finalize() } -> std::same_as<torch::Tensor>;
};
static_assert(!aggregator<std::vector<float>>);

/// The arithmetic: how weights and values become integers. The same on every worker of a round.
class FixedPoint {
 public:
  FixedPoint() : FixedPoint(1) {}
  /// \param most     at least the sum of all weights of the round
  /// \param largest  of the magnitudes that the values started from; they may grow 4096 times beyond it, or to 2^20
  /// (batch norm's variances) \throws ConfigError unless both are finite and `most` is positive.
  explicit FixedPoint(double most, double largest = 0) {
    if (!(most > 0) || !std::isfinite(most))
      throw ConfigError(sentence("fed", "a round whose weights add up to " + std::to_string(most),
                                 "give clients positive, finite weights"));
    if (!std::isfinite(largest))
      throw ConfigError(sentence("fed", "a global model that is not finite", "go back to the round before"));
    int weight_bits = 0, value_bits = 0;
    if (std::frexp(most, &weight_bits) == 0.5) --weight_bits;  // a power of two needs no bit more
    (void)std::frexp(largest, &value_bits);
    value_bits = std::clamp(value_bits + 12, 20, 120);
    limit_ = std::ldexp(1.0F, value_bits);
    scale_ = std::ldexp(1.0, 62 - value_bits - weight_bits);
  }

  /// A weight in units: at most 2^62 / limit(). Whole numbers, exact while their sum is below that; where the values
  /// are so large that a weight is less than a unit, it is left as it is.
  [[nodiscard]] double units(double weight) const {
    return scale_ >= 1 ? std::nearbyint(weight * scale_) : weight * scale_;
  }
  /// Values lie strictly within ± this.
  [[nodiscard]] float limit() const noexcept { return limit_; }

 private:
  double scale_ = 1;
  float limit_ = 1;
};

namespace fixed_point {

/// The largest magnitude; infinity where a value is NaN or infinite.
[[nodiscard]] inline float largest_magnitude(std::span<float const> values) {
  constexpr std::size_t lanes = 8;
  constexpr std::int32_t finite = 0x7f7fffff;  // magnitudes are ordered as their bits are, NaN above all
  auto const magnitude = [](float value) { return std::bit_cast<std::int32_t>(value) & 0x7fffffff; };
  auto const whole = values.size() / lanes * lanes;
  std::int32_t most[lanes] = {};
  for (std::size_t i = 0; i < whole; i += lanes)
    for (std::size_t l = 0; l < lanes; ++l) {
      auto const here = magnitude(values.data()[i + l]);
      most[l] = most[l] < here ? here : most[l];
    }
  for (float const value : values.subspan(whole)) most[0] = std::max(most[0], magnitude(value));
  auto const all = std::ranges::max(most);
  return all > finite ? std::numeric_limits<float>::infinity() : std::bit_cast<float>(all);
}

/// To the nearest whole number, halves to even, for magnitudes below 2^51: they move to where a double's last bit
/// counts ones, so that conversion is an addition that every processor has as a vector.
[[nodiscard]] inline std::int64_t near_whole(double x) {
  constexpr double shift = 6755399441055744.0;  // 1.5 · 2^52
  return std::bit_cast<std::int64_t>(x + shift) - std::bit_cast<std::int64_t>(shift);
}

/// sums += units × values, one block that is known to fit.
inline void add_block(std::int64_t* __restrict sums, float const* __restrict values, std::size_t size, double units,
                      float largest) {
  constexpr std::size_t lanes = 8;  // whole steps of a fixed size: g++ vectorises them at -O2
  std::size_t i = 0;
  if (static_cast<double>(largest) * std::abs(units) < 0x1p51)
    for (; i + lanes <= size; i += lanes)
      for (std::size_t l = 0; l < lanes; ++l) sums[i + l] += near_whole(static_cast<double>(values[i + l]) * units);
  for (; i < size; ++i) sums[i] += std::llrint(static_cast<double>(values[i]) * units);
}

/// sums += units × values. On a value that is NaN, infinite or not within ± limit, nothing is added and its place
/// returned.
[[nodiscard]] inline std::optional<std::size_t> add(std::span<std::int64_t> sums, std::span<float const> values,
                                                    double units, float limit) {
  auto const fits = [limit](float value) { return std::abs(value) < limit; };  // false for NaN
  constexpr std::size_t block = 4096;  // looked at while it is in the nearest cache, then added
  for (std::size_t begin = 0; begin < values.size(); begin += block) {
    auto const part = values.subspan(begin, std::min(block, values.size() - begin));
    auto const largest = largest_magnitude(part);
    if (!(largest < limit)) {
      for (std::size_t back = 0; back < begin; back += block)
        add_block(sums.data() + back, values.data() + back, block, -units,
                  largest_magnitude(values.subspan(back, block)));
      return begin + static_cast<std::size_t>(std::ranges::find_if_not(part, fits) - part.begin());
    }
    add_block(sums.data() + begin, part.data(), part.size(), units, largest);
  }
  return std::nullopt;
}

}  // namespace fixed_point

/// An accumulator for vectors of one size, on the CPU or on a GPU, over its own memory or somebody's.
class FixedPointSum {
 public:
  /// Over memory of its own, zeroed.
  FixedPointSum(std::int64_t size, FixedPoint scale, torch::Device device = torch::kCPU)
      : FixedPointSum(torch::zeros({size}, torch::dtype(torch::kLong).device(device)), scale) {}
  /// Over `sums`, int64 [S] contiguous, as it is.
  FixedPointSum(torch::Tensor sums, FixedPoint scale) : sums_(std::move(sums)), scale_(scale) {
    if (sums_.scalar_type() != torch::kLong || sums_.dim() != 1 || !sums_.is_contiguous())
      throw ConfigError(sentence("fed", "an accumulator that is not one row of int64", "give it int64 [S]"));
  }

  void zero() {
    sums_.zero_();
    units_ = 0;
  }

  /// Adds weight × update. Returns the place of a number that cannot be added (NaN, infinite, out of range); then
  /// nothing was. On a GPU this waits for the device once.
  /// \param update  float32 [S] contiguous, where the accumulator is.
  /// \throws ConfigError for another shape, type or device, or a weight that is not positive and finite.
  std::optional<std::int64_t> accumulate(torch::Tensor const& update, double weight) {
    check(update);
    if (!(weight > 0) || !std::isfinite(weight))
      throw ConfigError(sentence("fed", "an update of weight " + std::to_string(weight), "weights are positive"));
    auto const units = scale_.units(weight);
    if (sums_.is_cpu()) {
      std::span<float const> const values{update.const_data_ptr<float>(), static_cast<std::size_t>(update.numel())};
      if (auto const bad = fixed_point::add(numbers(), values, units, scale_.limit()))
        return static_cast<std::int64_t>(*bad);
    } else {
      auto const fine = update.abs() < scale_.limit();
      if (!fine.all().item<bool>()) return fine.to(torch::kInt).argmin().item<std::int64_t>();
      auto const x = update.to(torch::kDouble) * units;
      sums_ += x.round().to(torch::kLong);  // halves to even, as on the CPU
    }
    units_ += units;
    return std::nullopt;
  }

  /// Adds what another one has gathered.
  void merge(FixedPointSum const& other) {
    sums_ += other.sums_.to(sums_.device());
    units_ += other.units_;
  }

  /// The weighted mean of all updates, float64 [S]. \throws Error if there was none.
  [[nodiscard]] torch::Tensor finalize() const {
    if (units_ == 0) throw Error(sentence("fed", "the mean of no updates", "let at least one client train"));
    // By a tensor: a GPU divides by a number by multiplying with its reciprocal, which has other bits.
    return sums_.to(torch::kDouble) / torch::full({}, units_, sums_.options().dtype(torch::kDouble));
  }

  /// The sums, int64 [S].
  [[nodiscard]] torch::Tensor const& tensor() const noexcept { return sums_; }
  /// The weights added so far, in units of the scale.
  [[nodiscard]] double units() const noexcept { return units_; }
  [[nodiscard]] std::span<std::int64_t> numbers() const {
    return {sums_.mutable_data_ptr<std::int64_t>(), static_cast<std::size_t>(sums_.numel())};
  }

 private:
  void check(torch::Tensor const& update) const {
    if (update.scalar_type() != torch::kFloat || update.dim() != 1 || update.numel() != sums_.numel() ||
        update.device() != sums_.device() || !update.is_contiguous())
      throw ConfigError(sentence("fed",
                                 "an update of " + std::to_string(update.numel()) + " numbers of " +
                                     c10::toString(update.scalar_type()) + " on " + update.device().str() +
                                     " for a model of " + std::to_string(sums_.numel()),
                                 "updates are the model's shared numbers, float32, where the accumulator is"));
  }

  torch::Tensor sums_;
  FixedPoint scale_;
  double units_ = 0;  // a whole number below 2^53
};
static_assert(aggregator<FixedPointSum>);

}  // namespace pardl::inline PARDL_ABI::fed
