// SPDX-License-Identifier: MIT
#include "pardl/policy/loss_scale.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <limits>

#include "support/golden.hpp"

using pardl::LossScale;
using pardl::LossScaleOptions;

TEST_CASE("scale and tracker are GradScaler's, bit for bit, after every update") {
  auto const records = pardl::testing::golden("loss_scale.txt");
  REQUIRE(records.size() == 32);
  for (auto const& record : records) {
    LossScale scale({.init_scale = record.real(0),
                     .growth_factor = record.real(1),
                     .backoff_factor = record.real(2),
                     .growth_interval = static_cast<int>(record.integer(3))});
    auto const trace = record.reals();
    for (std::size_t i = 0; i + 2 < trace.size(); i += 3) {
      scale.update(trace[i] != 0.0);
      CHECK(double{scale.scale()} == trace[i + 1]);
      CHECK(scale.growth_tracker() == trace[i + 2]);
    }
  }
}

TEST_CASE("a state carries the run on") {
  LossScale a({.growth_interval = 3}), b({.growth_interval = 3});
  for (bool const bad : {false, true, false, false}) a.update(bad);
  b.restore(a.state());
  for (bool const bad : {false, false, true, false}) {
    a.update(bad);
    b.update(bad);
    CHECK(a.state() == b.state());
  }
}

TEST_CASE("a tracker beyond the interval waits for the next overflow, as PyTorch's does") {
  LossScale scale({.growth_interval = 3});
  scale.restore({8.0F, 5});
  for (int i = 0; i < 10; ++i) scale.update(false);
  CHECK(scale.scale() == 8.0F);
  scale.update(true);
  for (int i = 0; i < 3; ++i) scale.update(false);
  CHECK(scale.scale() == 8.0F);  // halved, then doubled
}

TEST_CASE("an override leaves the tracker") {
  LossScale scale;
  scale.update(false);
  scale.set_scale(4.0F);
  CHECK(scale.state() == pardl::LossScaleState{4.0F, 1});
}

TEST_CASE("the inverse is the double reciprocal, rounded once") {
  LossScale scale({.init_scale = 3.0});
  CHECK(scale.inverse() == static_cast<float>(1.0 / 3.0));
}

TEST_CASE("double to float rounds as the hardware does, up to infinity") {
  using pardl::detail::narrow_to_float;
  constexpr float largest = std::numeric_limits<float>::max();
  CHECK(narrow_to_float(0.1) == 0.1F);
  CHECK(narrow_to_float(1e-50) == 0.0F);
  CHECK(narrow_to_float(std::nextafter(0x1.ffffffp127, 0.0)) == largest);
  CHECK(std::isinf(narrow_to_float(0x1.ffffffp127)));
  CHECK(narrow_to_float(std::nextafter(double{largest}, 1e39)) == largest);
}

TEST_CASE("settings that cannot work are refused in a sentence") {
  CHECK_THROWS_WITH_AS(LossScale({.growth_factor = 1.0}),
                       "[loss scale] growth_factor is 1.000000; give a finite number above 1.", pardl::ConfigError);
  CHECK_THROWS_AS(LossScale({.backoff_factor = 1.0}), pardl::ConfigError);
  CHECK_THROWS_AS(LossScale({.backoff_factor = 0.0}), pardl::ConfigError);
  CHECK_THROWS_AS(LossScale({.growth_interval = 0}), pardl::ConfigError);
  CHECK_THROWS_AS(LossScale({.init_scale = 0.0}), pardl::ConfigError);
  CHECK_THROWS_AS(LossScale({.init_scale = 1e39}), pardl::ConfigError);
  CHECK_THROWS_AS(LossScale({.init_scale = std::nan("")}), pardl::ConfigError);
  CHECK_THROWS_AS(LossScale({.growth_factor = std::nan("")}), pardl::ConfigError);
}

namespace {
constexpr float after(int overflows, int clean) {
  LossScale scale({.growth_interval = 2});
  for (int i = 0; i < overflows; ++i) scale.update(true);
  for (int i = 0; i < clean; ++i) scale.update(false);
  return scale.scale();
}
}  // namespace
static_assert(after(0, 0) == 65536.0F && after(3, 0) == 8192.0F && after(1, 1) == 32768.0F && after(1, 4) == 131072.0F);
