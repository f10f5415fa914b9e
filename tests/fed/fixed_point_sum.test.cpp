// SPDX-License-Identifier: MIT
// Weights and values as integers: every rounding is the nearest, halves to even, and what is refused leaves no trace.
#include "pardl/fed/fixed_point_sum.hpp"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "pardl/fed/draws.hpp"
#include "support/temporary_folder.hpp"

namespace fed = pardl::fed;
using pardl::ConfigError;
using pardl::testing::what_of;

namespace {

/// The nearest whole number, halves to even, by comparing alone.
std::int64_t nearest(double x) {
  double const below = std::floor(x), part = x - below;
  auto const whole = static_cast<std::int64_t>(below);
  if (part == 0.5) return whole + (whole % 2 == 0 ? 0 : 1);
  return part < 0.5 ? whole : whole + 1;
}

/// What adding `values` in `units` to 0, 1, 2, … must give.
std::vector<std::int64_t> expected(std::span<float const> values, double units) {
  std::vector<std::int64_t> sums(values.size());
  for (std::size_t i = 0; i < values.size(); ++i)
    sums[i] = static_cast<std::int64_t>(i) + nearest(static_cast<double>(values[i]) * units);
  return sums;
}

std::vector<std::int64_t> counting(std::size_t size) {
  std::vector<std::int64_t> numbers(size);
  for (std::size_t i = 0; i < size; ++i) numbers[i] = static_cast<std::int64_t>(i);
  return numbers;
}

std::vector<float> random_values(std::size_t size, std::uint64_t seed, double factor) {
  fed::Draws draws(seed);
  std::vector<float> values(size);
  for (float& value : values) value = static_cast<float>(factor * (2 * draws.uniform() - 1));
  return values;
}

}  // namespace

TEST_CASE("a double goes to the nearest whole number, halves to even, on both sides of zero") {
  using fed::fixed_point::near_whole;
  for (std::int64_t whole = -9; whole <= 9; ++whole)
    for (double const part : {-0.5, -0.49999999999999, -0.25, 0.0, 0.25, 0.49999999999999, 0.5}) {
      double const x = static_cast<double>(whole) + part;
      CAPTURE(x);
      CHECK(near_whole(x) == nearest(x));
    }
  CHECK(near_whole(0.5) == 0);
  CHECK(near_whole(1.5) == 2);
  CHECK(near_whole(2.5) == 2);
  CHECK(near_whole(-0.5) == 0);
  CHECK(near_whole(-1.5) == -2);
  CHECK(near_whole(-2.5) == -2);
  CHECK(near_whole(std::nextafter(0.5, 0.0)) == 0);
  for (double const x : {0x1p50 + 1, 0x1p51 - 1, 0x1p51 - 0.5, 0x1p51 - 1.5, 0x1p50 + 0.25, 0x1p50 - 0.75}) {
    CAPTURE(x);
    CHECK(near_whole(x) == nearest(x));
    CHECK(near_whole(-x) == nearest(-x));
  }
  fed::Draws draws(7);
  for (int i = 0; i < 2000; ++i) {
    double const x = std::ldexp(2 * draws.uniform() - 1, static_cast<int>(draws.below(52)));
    CHECK(near_whole(x) == nearest(x));
  }
}

TEST_CASE("a block of any size is added to the nearest unit, in whole vectors and behind them") {
  // Halves all the way: each value is n/2 units, so each rounding is a tie or exact.
  for (std::size_t size = 0; size <= 27; ++size) {
    CAPTURE(size);
    std::vector<float> values(size);
    for (std::size_t i = 0; i < size; ++i) values[i] = static_cast<float>(i) * (i % 3 == 0 ? -1.5F : 0.5F);
    for (double const units : {1.0, -1.0, 3.0, -0.5}) {
      auto sums = counting(size);
      fed::fixed_point::add_block(sums.data(), values.data(), size, units, 60.0F);
      CHECK(sums == expected(values, units));
    }
  }
}

TEST_CASE("values of up to 2^62 units are added to the nearest one, whichever way they go") {
  // Around 2^51, where vectors end, products have halves; the largest value decides for its whole block.
  for (int const bits : {48, 50, 51, 52, 53, 57, 61}) {
    CAPTURE(bits);
    double const units = std::ldexp(1.0, bits - 20) + 1;  // odd: products are no multiples of powers of two
    for (std::size_t const size : {8U, 16U, 21U}) {
      auto values = random_values(size, static_cast<std::uint64_t>(bits), 0x1p20);
      values[0] = -0x1p20F;
      values[size - 1] = 0x1p20F;
      auto const largest = fed::fixed_point::largest_magnitude(values);
      CHECK(largest == 0x1p20F);
      for (double const sign : {1.0, -1.0}) {
        auto sums = counting(size);
        fed::fixed_point::add_block(sums.data(), values.data(), size, sign * units, largest);
        CHECK(sums == expected(values, sign * units));
      }
    }
  }
  // Products that lie between 2^51 and 2^52 and end in a half: each goes to its even neighbour.
  std::vector<float> const values{4097, -4097, 4099, -4099, 5001, -5001, 8191, -8191, 4097, -4099};
  double const units = 0x1p39 + 0.5;
  auto sums = counting(values.size());
  fed::fixed_point::add_block(sums.data(), values.data(), values.size(), units, 8191.0F);
  CHECK(sums == expected(values, units));
}

TEST_CASE("the largest magnitude is found at every place, and what is not finite is infinite") {
  using fed::fixed_point::largest_magnitude;
  CHECK(largest_magnitude({}) == 0);
  for (std::size_t size = 1; size <= 19; ++size)
    for (std::size_t at = 0; at < size; ++at) {
      CAPTURE(size);
      CAPTURE(at);
      std::vector<float> values(size, -1.0F);
      for (float const large : {-3.0F, 2.5F}) {
        values[at] = large;
        CHECK(largest_magnitude(values) == std::abs(large));
      }
      for (float const bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN()}) {
        values[at] = bad;
        CHECK(std::isinf(largest_magnitude(values)));
      }
      values[at] = std::numeric_limits<float>::max();
      CHECK(largest_magnitude(values) == std::numeric_limits<float>::max());
    }
}

TEST_CASE("an update with a value that does not fit is taken back to the last bit, however large it was") {
  std::size_t const size = 3 * 4096 + 5;
  for (double const factor : {1.0, 0x1p19}) {
    CAPTURE(factor);
    auto const values = random_values(size, 3, factor);
    for (std::size_t const at : {std::size_t{0}, std::size_t{4095}, std::size_t{4096}, std::size_t{8195}, size - 1})
      for (float const bad : {0x1p20F, -0x1p20F, 1e30F, std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN()}) {
        auto broken = values;
        broken[at] = bad;
        if (at + 1 < size) broken[size - 1] = bad;  // the first of two is named
        auto sums = counting(size);
        CHECK(fed::fixed_point::add(sums, broken, 0x1p41 + 1, 0x1p20F) == at);
        CHECK(sums == counting(size));
      }
    auto sums = counting(size);
    CHECK_FALSE(fed::fixed_point::add(sums, values, 0x1p41 + 1, 0x1p20F));
    CHECK(sums == expected(values, 0x1p41 + 1));
    CHECK_FALSE(fed::fixed_point::add(sums, values, -0x1p41 - 1, 0x1p20F));
    CHECK(sums == counting(size));
  }
  std::vector<std::int64_t> sum{0};
  CHECK_FALSE(fed::fixed_point::add(sum, std::vector<float>{std::nextafter(0x1p20F, 0.0F)}, 1, 0x1p20F));
}

TEST_CASE("all weights of a round, at the limit of what values may be, fit into 2^62 and use most of it") {
  for (double const most : {1.0, 3.0, 4.0, 5.0, 1000.0, 1024.0, 0.75})
    for (float const largest : {0.0F, 1.0F, 255.0F, 256.0F, 300.0F, 1e6F, 1e15F}) {
      CAPTURE(most);
      CAPTURE(largest);
      fed::FixedPoint const scale(most, largest);
      auto const limit = static_cast<double>(scale.limit());
      CHECK(limit >= 0x1p20);
      CHECK(limit > 4096 * static_cast<double>(largest));
      CHECK((limit == 0x1p20 || limit <= 2 * 4096 * static_cast<double>(largest)));
      double const all = scale.units(most) * limit;
      CHECK(all <= 0x1p62);
      CHECK(all > 0x1p61 * (1 - 1e-9));
    }
  fed::FixedPoint const scale(1024);
  CHECK(scale.units(1) == 0x1p32);
  CHECK(scale.units(1 / 3.0) == std::nearbyint(0x1p32 / 3));  // whole units, so that their sum is exact
  CHECK(fed::FixedPoint(1024, 1e30F).units(1) < 1);           // but for values so large that a weight is less than one
  CHECK(fed::FixedPoint(1024, 1e30F).units(1) > 0);
}

TEST_CASE("the mean of values that do not divide is right to the last bit of a share") {
  fed::FixedPoint const scale(7);
  fed::FixedPointSum sum(10, scale);
  auto const ramp = torch::arange(10, torch::kFloat) / 3;
  CHECK_FALSE(sum.accumulate(ramp, 3));
  CHECK_FALSE(sum.accumulate(-ramp, 4));
  auto const mean = sum.finalize();
  for (std::int64_t i = 0; i < 10; ++i) CHECK(std::abs(mean[i].item<double>() + ramp[i].item<double>() / 7) <= 0x1p-42);
  sum.zero();
  CHECK(sum.units() == 0);
  CHECK(sum.tensor().eq(0).all().item<bool>());
  CHECK_THROWS_WITH_AS((void)sum.finalize(), doctest::Contains("the mean of no updates"), pardl::Error);
}

TEST_CASE("weights and accumulators that cannot be right are refused in one sentence") {
  auto const nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  for (double const most : {0.0, -1.0, nan, infinity})
    CHECK(what_of<ConfigError>([&] { fed::FixedPoint{most}; }).find("positive, finite weights") != std::string::npos);
  for (double const largest : {nan, infinity})
    CHECK(what_of<ConfigError>([&] { fed::FixedPoint(1, largest); }).find("not finite") != std::string::npos);
  fed::FixedPointSum sum(4, fed::FixedPoint(1));
  for (double const weight : {0.0, -1.0, nan, infinity})
    CHECK(what_of<ConfigError>([&] { (void)sum.accumulate(torch::ones({4}), weight); }).find("update of weight") !=
          std::string::npos);
  for (auto const& update :
       {torch::ones({3}), torch::ones({4}, torch::kDouble), torch::ones({2, 2}), torch::ones({8}).slice(0, 0, 8, 2)})
    CHECK(what_of<ConfigError>([&] { (void)sum.accumulate(update, 1); }).find("for a model of 4") != std::string::npos);
  CHECK(sum.units() == 0);
  for (auto const& sums :
       {torch::zeros({4}), torch::zeros({2, 2}, torch::kLong), torch::zeros({8}, torch::kLong).slice(0, 0, 8, 2)})
    CHECK(what_of<ConfigError>([&] { fed::FixedPointSum(sums, fed::FixedPoint(1)); }).find("not one row of int64") !=
          std::string::npos);
}
