// SPDX-License-Identifier: MIT
/// \file   Random words, and normal numbers, that belong to what they are drawn for.
/// \layer  data (private; std only).
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

#include "pardl/data/sample_stream.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data::detail {

/// The stream of (seed, a, b, purpose): made data does not change where more is made of it. Integers only, except for
/// normal(), which is good to the last digits of the C library's log, cos and sin.
class KeyedWords {
 public:
  constexpr KeyedWords(std::uint64_t seed, std::uint32_t a, std::uint32_t b, std::uint32_t purpose)
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}, counter_{a, b, purpose, 0} {}

  /// 32 random bits.
  constexpr std::uint32_t next() {
    if (used_ == 4) {
      words_ = philox4x32(counter_, key_);
      ++counter_[3];
      used_ = 0;
    }
    return words_[used_++];
  }

  /// Uniform in low … high, off uniform by at most (high - low) / 2^32.
  constexpr int between(int low, int high) {
    auto const values = static_cast<std::uint64_t>(std::int64_t{high} - low + 1);
    return static_cast<int>(low + static_cast<std::int64_t>((next() * values) >> 32));
  }

  /// Standard normal, from two words (Box and Muller).
  double normal() {
    double const radius = std::sqrt(-2 * std::log((next() + 0.5) * 0x1p-32));
    return radius * std::cos(2 * std::numbers::pi * (next() * 0x1p-32));
  }

 private:
  std::array<std::uint32_t, 2> key_;
  std::array<std::uint32_t, 4> counter_;
  std::array<std::uint32_t, 4> words_{};
  std::size_t used_ = 4;
};

}  // namespace pardl::inline PARDL_ABI::data::detail
