// SPDX-License-Identifier: MIT
/// \file   Random numbers keyed by (seed, round, client, purpose): whoever computes them, whenever, gets the same ones.
/// \layer  fed (std only; data for Philox).
///
/// A simulation is reproducible for any number of workers only if no draw depends on who made the draws before it. So
/// nothing in this room holds a generator: each use makes its own short stream from its key, and two uses that differ
/// in one bit of the key are independent.
///
/// Everything here, normal and gamma draws included, is bit for bit the same on every machine with IEEE 754 doubles,
/// whatever the compiler, the C library or the instruction set (detail/portable_math.hpp says how). The standard's
/// distributions are not used: each standard library has its own.
/// \paper Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox);
/// Marsaglia, Tsang, "A simple method for generating gamma variables", ACM TOMS 26(3), 2000; Marsaglia, Bray, SIAM
/// Review 6(3), 1964 (polar method); Bentley, Floyd, "Programming pearls: a sample of brilliance", CACM 30(9), 1987.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/data/sample_stream.hpp"
#include "pardl/fed/detail/portable_math.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// What a stream is for, the fourth part of its key: one list, so that no two uses share a stream. Numbers below 1000
/// are this library's (a header that adds one names it here: 20 is shares, fed/clients.hpp); a program's own start
/// there. Changing a number changes the results of every seed.
namespace purpose {
inline constexpr std::uint32_t general = 0;          ///< what Draws{seed} gives
inline constexpr std::uint32_t partition = 1;        ///< fed/partition.hpp
inline constexpr std::uint32_t client_sampling = 2;  ///< fed/client_sampler.hpp
}  // namespace purpose

namespace detail {

/// 128 bits from 224 of key. For one seed and purpose this is a bijection of (a, b), since Philox is one of its
/// counter: two clients or two rounds never share a stream. Across seeds and purposes a pair coincides with
/// probability 2^-128.
[[nodiscard]] constexpr std::array<std::uint32_t, 4> mix_key(std::uint64_t seed, std::uint64_t a, std::uint64_t b,
                                                             std::uint32_t use, std::uint32_t domain) noexcept {
  auto const low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  auto const high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
  auto const mixed = philox4x32({low(a), high(a), low(b), high(b)}, {low(seed), high(seed)});
  return philox4x32(mixed, {use, domain});
}

}  // namespace detail

/// One 64-bit seed from a key, for a generator that is not ours (torch's). Independent of the Draws of the same key.
/// Note that ATen's CPU generator takes in the low 32 bits only; they are as well mixed as the others, so two keys
/// start it alike with probability 2^-32.
[[nodiscard]] constexpr std::uint64_t fold(std::uint64_t seed, std::uint64_t a = 0, std::uint64_t b = 0,
                                           std::uint32_t use = purpose::general) noexcept {
  auto const mixed = detail::mix_key(seed, a, b, use, 0x666f6c64);  // "fold"
  return std::uint64_t{mixed[1]} << 32 | mixed[0];
}

/// A stream of draws with its own key. A value: copying it copies its position. One thread at a time.
/// \cost 48 bytes; some 20 ns for 64 bits and 0.1 µs to make one: streams are made anew, not kept.
class Draws {
 public:
  /// By custom `a` is the round and `b` the client; all 64 bits of each count.
  explicit constexpr Draws(std::uint64_t seed, std::uint64_t a = 0, std::uint64_t b = 0,
                           std::uint32_t use = purpose::general) noexcept
      : key_(detail::mix_key(seed, a, b, use, 0x64726177)) {}  // "draw"

  /// 64 random bits.
  [[nodiscard]] constexpr std::uint64_t bits() noexcept {
    if (block_position_ == 0)
      block_ = philox4x32(
          {static_cast<std::uint32_t>(next_block_), static_cast<std::uint32_t>(next_block_ >> 32), key_[0], key_[1]},
          {key_[2], key_[3]});
    std::uint64_t const value =
        std::uint64_t{block_[2 * block_position_ + 1]} << 32 | std::uint64_t{block_[2 * block_position_]};
    next_block_ += block_position_;  // after the second half of a block comes the next one
    block_position_ ^= 1;
    return value;
  }

  /// Exactly uniform in 0 … bound-1 (what would favour small numbers is drawn again). \throws ConfigError if bound = 0.
  [[nodiscard]] constexpr std::uint64_t below(std::uint64_t bound) {
    if (bound == 0) throw ConfigError(sentence("fed", "a draw from no numbers at all", "draw below 1 or more"));
    std::uint64_t const excess = (0 - bound) % bound;  // 2^64 modulo bound
    std::uint64_t value = bits();
    while (value < excess) value = bits();
    return value % bound;
  }

  /// Uniform in [0, 1), a multiple of 2^-53.
  [[nodiscard]] constexpr double uniform() noexcept { return static_cast<double>(bits() >> 11) * 0x1p-53; }

  /// Uniform in (0, 1), without both ends: an odd multiple of 2^-53. For logarithms.
  [[nodiscard]] constexpr double open_uniform() noexcept { return (static_cast<double>(bits() >> 12) + 0.5) * 0x1p-52; }

  /// Standard normal, by the polar method. \cost 2.5 uniform draws, a logarithm and a root on average.
  [[nodiscard]] double normal() noexcept {
    for (;;) {
      double const x = 2 * uniform() - 1;  // exact
      double const y = 2 * uniform() - 1;
      double const square = std::fma(x, x, detail::rounded(y * y));
      if (square >= 1 || square == 0) continue;
      return detail::rounded(x * std::sqrt(-2 * detail::portable_log(square) / square));
    }
  }

  /// Gamma with mean `shape` (scale 1). Tiny shapes give 0 where the value is below the smallest double: take
  /// log_gamma where that matters. \throws ConfigError unless shape is finite and above 0.
  [[nodiscard]] double gamma(double shape) {
    shape = checked_shape(shape);
    return shape < 1 ? detail::portable_exp(log_gamma(shape)) : gamma_from_one(shape);
  }

  /// The logarithm of a gamma draw: finite for every shape from 1e-300 up (smaller ones count as that), where the draw
  /// itself has long become 0. \throws ConfigError unless shape is finite and above 0.
  [[nodiscard]] double log_gamma(double shape) {
    shape = checked_shape(shape);
    if (shape >= 1) return detail::portable_log(gamma_from_one(shape));
    double const log_boost = detail::portable_log(open_uniform()) / std::max(shape, 1e-300);
    return detail::portable_log(gamma_from_one(shape + 1)) + log_boost;
  }

  /// Proportions that sum to 1 (up to rounding), from the Dirichlet distribution with these concentrations: one draw
  /// per entry, in order. Works in logarithms, so tiny concentrations end in one entry of 1 and never in 0/0.
  /// \throws ConfigError unless there is an entry and each is finite and above 0.
  [[nodiscard]] std::vector<double> dirichlet(std::span<double const> concentrations) {
    if (concentrations.empty())
      throw ConfigError(sentence("fed", "a Dirichlet draw of no proportions", "give one concentration per entry"));
    std::vector<double> shares;
    shares.reserve(concentrations.size());
    double most = -std::numeric_limits<double>::infinity();
    for (double const concentration : concentrations) {
      shares.push_back(log_gamma(concentration));
      most = std::max(most, shares.back());
    }
    double sum = 0;
    for (double& share : shares) sum += share = detail::portable_exp(share - most);
    for (double& share : shares) share /= sum;
    return shares;
  }

  /// `entries` proportions with one concentration for all.
  [[nodiscard]] std::vector<double> dirichlet(double concentration, std::size_t entries) {
    return dirichlet(std::vector<double>(entries, concentration));
  }

  /// Puts the elements into an order drawn uniformly among all (Fisher and Yates).
  template <class T>
  constexpr void shuffle(std::span<T> elements) {
    for (std::size_t left = elements.size(); left > 1; --left) {
      using std::swap;
      swap(elements[left - 1], elements[static_cast<std::size_t>(below(left))]);
    }
  }
  template <class T>
  constexpr void shuffle(std::vector<T>& elements) {
    shuffle(std::span<T>(elements));
  }

  /// `count` different numbers of 0 … population-1, ascending; every subset is equally likely (Floyd).
  /// \throws ConfigError unless 0 <= count <= population. \cost `count` draws and population/8 bytes.
  [[nodiscard]] std::vector<std::int64_t> sample(std::int64_t population, std::int64_t count) {
    if (population < 0 || count < 0 || count > population)
      throw ConfigError(sentence(
          "fed", "a sample without replacement of " + std::to_string(count) + " out of " + std::to_string(population),
          "ask for no more than there are"));
    std::vector<bool> taken(static_cast<std::size_t>(population));
    for (std::int64_t last = population - count; last < population; ++last) {
      auto const drawn = static_cast<std::size_t>(below(static_cast<std::uint64_t>(last) + 1));
      taken[taken[drawn] ? static_cast<std::size_t>(last) : drawn] = true;
    }
    std::vector<std::int64_t> chosen;
    chosen.reserve(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < population; ++i)
      if (taken[static_cast<std::size_t>(i)]) chosen.push_back(i);
    return chosen;
  }

 private:
  static double checked_shape(double shape) {
    if (!(shape > 0) || !std::isfinite(shape))
      throw ConfigError(sentence("fed", "a gamma or Dirichlet draw of shape " + std::to_string(shape),
                                 "shapes are finite numbers above 0"));
    return detail::rounded(shape);
  }

  /// Marsaglia and Tsang's rejection from a cubed normal, for shape >= 1 (without their squeeze, which saves a
  /// logarithm and costs a branch to explain).
  [[nodiscard]] double gamma_from_one(double shape) noexcept {
    double const d = shape - 1.0 / 3;
    double const c = 1 / std::sqrt(9 * d);
    for (;;) {
      double const x = normal();
      double const root = std::fma(c, x, 1.0);
      if (root <= 0) continue;
      double const square = detail::rounded(root * root);
      // log u < x²/2 + d (1 - v + log v) with v = root³
      double const bracket = std::fma(3.0, detail::portable_log(root), std::fma(-square, root, 1.0));
      double const bound = std::fma(d, bracket, detail::rounded(0.5 * x * x));
      if (detail::portable_log(open_uniform()) < bound) return detail::rounded(d * square * root);
    }
  }

  std::array<std::uint32_t, 4> key_;
  std::array<std::uint32_t, 4> block_{};
  std::uint64_t next_block_ = 0;
  std::uint32_t block_position_ = 0;  // 0: the next draw opens a block; 1: its second half is left
};

}  // namespace pardl::inline PARDL_ABI::fed
