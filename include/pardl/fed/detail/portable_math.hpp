// SPDX-License-Identifier: MIT
/// \file   log and exp whose last bit is the same on every machine.
/// \layer  fed (std only).
///
/// The C library's log and exp differ in the last bit between libraries and between CPUs with and without FMA. One such
/// bit, in a rejection test, changes every draw that follows. These two are made only of operations that IEEE 754
/// rounds in one way (+, -, /, sqrt, fma, scaling by two), in a written order. They are accurate to about two units in
/// the last place and take some 70 ns. Not for -ffast-math, which gives up the order.
#pragma once

#include <cmath>
#include <limits>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// `product`, rounded to a double here and now. GCC fuses a product with a sum that follows, even in another function
/// that was inlined, where the CPU has FMA, and so rounds once instead of twice; whoever hands out a product that a
/// caller may add passes it through this.
[[nodiscard]] inline double rounded(double product) noexcept {
  asm("" : "+m"(product));
  return product;
}

inline constexpr double ln2_high = 0x1.62e42fee00000p-1;  // the first 32 bits: a multiple by an exponent is exact
inline constexpr double ln2_low = 0x1.a39ef35793c76p-33;  // the rest

/// Natural logarithm of a positive, normal, finite x. \cost one division, 15 fma.
[[nodiscard]] inline double portable_log(double x) noexcept {
  int exponent = 0;
  double m = std::frexp(x, &exponent);
  if (m < 0x1.6a09e667f3bcdp-1) {  // √½: keeps m within [√½, √2), so that s stays small and x ≈ 1 loses no digits
    m *= 2;
    --exponent;
  }
  // log m = 2 artanh s = 2s (1 + s²/3 + s⁴/5 + …) with |s| < 0.172: twelve terms reach the last bit.
  double const s = (m - 1) / (m + 1);
  double const z = s * s;
  double series = 1.0 / 25;
  for (int odd = 23; odd >= 3; odd -= 2) series = std::fma(series, z, 1.0 / odd);
  double const log_m = std::fma(2 * s * z, series, 2 * s);
  return std::fma(exponent, ln2_high, std::fma(exponent, ln2_low, log_m));
}

/// e to the power x: 0 below about -745, infinity above about 709.78. \cost 17 fma.
[[nodiscard]] inline double portable_exp(double x) noexcept {
  if (!(x > -746)) return std::isnan(x) ? x : 0.0;
  if (x > 710) return std::numeric_limits<double>::infinity();
  double const twos = std::floor(std::fma(x, 0x1.71547652b82fep+0, 0.5));
  double const r = std::fma(-twos, ln2_low, std::fma(-twos, ln2_high, x));  // |r| <= ½ ln 2
  // 1/2! … 1/13!, the Taylor series of e^r; what is left out is below 2^-57.
  constexpr double inverse_factorials[] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
      1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      1.0 / 2,
  };
  double series = inverse_factorials[0];
  for (int i = 1; i < 12; ++i) series = std::fma(series, r, inverse_factorials[i]);
  double const e_to_r = 1 + std::fma(series, rounded(r * r), r);
  return std::ldexp(e_to_r, static_cast<int>(twos));
}

}  // namespace pardl::inline PARDL_ABI::fed::detail
