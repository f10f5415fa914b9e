// SPDX-License-Identifier: MIT
// The conversions that sums of half are made with, beside c10's: every half there is, and floats all along the scale.
#include <c10/util/Half.h>
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>

#include "pardl/comm/detail/shm/half.hpp"

using pardl::detail::shm::to_float;
using pardl::detail::shm::to_half;

namespace {

c10::Half half_of(std::uint32_t bits) { return {static_cast<std::uint16_t>(bits), c10::Half::from_bits()}; }
bool same(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}
/// The bits of a NaN are the processor's affair in c10's.
bool rounds_as_c10(float value) {
  auto const ours = to_half(value), theirs = static_cast<c10::Half>(value);
  return ours.x == theirs.x || (std::isnan(value) && std::isnan(static_cast<float>(ours)));
}

}  // namespace

TEST_CASE("every half becomes the float that c10 makes of it, and that float the half again") {
  int wrong = 0, lost = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    auto const wide = to_float(half_of(bits));
    wrong += !same(wide, static_cast<float>(half_of(bits)));
    lost += !std::isnan(wide) && to_half(wide).x != bits;
  }
  CHECK(wrong == 0);
  CHECK(lost == 0);
}

TEST_CASE("floats are rounded to half as c10 rounds them: ties, both ends of the subnormals, overflow") {
  int wrong = 0;
  // Beside every half, halfway to the next and a bit to either side of there: where rounding decides.
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    auto const here = std::bit_cast<std::uint32_t>(to_float(half_of(bits)));
    auto const there = std::bit_cast<std::uint32_t>(to_float(half_of((bits & 0x8000) | ((bits + 1) & 0x7fff))));
    auto const between = here + (there - here) / 2;
    for (auto const at : {here - 1, here, here + 1, between - 1, between, between + 1})
      wrong += !rounds_as_c10(std::bit_cast<float>(at));
  }
  for (std::uint64_t bits = 0; bits <= 0xffffffff; bits += 4099)  // a prime: every exponent, all kinds of mantissas
    wrong += !rounds_as_c10(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  CHECK(wrong == 0);
}
