// SPDX-License-Identifier: MIT
#include "pardl/fed/screening.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "support/temporary_folder.hpp"

using pardl::ConfigError;
using pardl::fed::screen;
using pardl::fed::screen_norms;
using pardl::fed::Screening;
using pardl::testing::what_of;

namespace {
std::string name(std::size_t at) { return "fc.weight[" + std::to_string(at) + "]"; }
}  // namespace

TEST_CASE("a sound update passes, and its norm is that of the change") {
  std::vector<float> const start{1, 2, 3, 4}, update{1, 5, 3, 8};
  auto const screened = screen(update, start, {}, name);
  CHECK(!screened.reason);
  CHECK(screened.norm == 5);
  std::vector<float> const before(10007, 0.5F), after(10007, 1.0F);  // several blocks, and a rest
  CHECK(screen(after, before, {}, name).norm == doctest::Approx(0.5 * std::sqrt(10007.0)).epsilon(1e-14));
  std::vector<float> const far(4, 3e38F);  // finite numbers have a finite norm
  CHECK(screen(far, start, {}, name).norm == doctest::Approx(6e38));
}

TEST_CASE("an update of another shape, or with a number that is not finite, is named with the place") {
  std::vector<float> const start(9000, 1.0F);
  CHECK(screen(std::vector<float>(8999), start, {}, name).reason == "its update has 8999 numbers, the model has 9000");
  CHECK(screen(std::vector<float>{}, start, {}, name).reason.has_value());
  for (std::size_t const at : {0U, 17U, 4095U, 4096U, 8999U}) {
    auto update = start;
    update[at] = NAN;
    CHECK(screen(update, start, {}, name).reason == "its fc.weight[" + std::to_string(at) + "] is NaN");
    update[at] = INFINITY;
    CHECK(screen(update, start, {}, name).reason == "its fc.weight[" + std::to_string(at) + "] is infinite");
    update[at] = -INFINITY;
    CHECK(screen(update, start, {}, name).reason == "its fc.weight[" + std::to_string(at) + "] is minus infinity");
    update[at] = std::numeric_limits<float>::max();
    CHECK(!screen(update, start, {}, name).reason);
  }
  std::vector<float> broken = start;
  broken[5] = broken[6000] = NAN;  // the first of several
  CHECK(screen(broken, start, {}, name).reason == "its fc.weight[5] is NaN");
}

TEST_CASE("a change beyond the bound is refused with both numbers, one at the bound is not") {
  std::vector<float> const start{0, 0}, update{3, 4};
  CHECK(!screen(update, start, {.most_norm = 5}, name).reason);
  auto const screened = screen(update, start, {.most_norm = 4.5}, name);
  CHECK(screened.reason == "its change has norm 5, above 4.5");
  CHECK(screened.norm == 5);
}

TEST_CASE("a change is held against the median of the round") {
  std::vector<double> const norms{1, 40, 2, 3, 10};
  auto const reasons = screen_norms(norms, {.most_medians = 4});
  CHECK(!reasons[0]);
  CHECK(reasons[1] == "its change has norm 40, above 4 times the round's median of 3");
  CHECK(!reasons[4]);
  CHECK(screen_norms(norms, {.most_medians = 3})[4].has_value());
  std::vector<double> const even{1, 2, 4, 9.5};  // a median of 3
  CHECK(!screen_norms(even, {.most_medians = 3.2})[3]);
  CHECK(screen_norms(even, {.most_medians = 3.1})[3] ==
        "its change has norm 9.5, above 3.1 times the round's median of 3");
  for (auto const& reason : screen_norms(norms, {})) CHECK(!reason);
  CHECK(!screen_norms(std::vector<double>{7}, {.most_medians = 1})[0]);
  CHECK(screen_norms({}, {.most_medians = 1}).empty());
  auto const still = screen_norms(std::vector<double>{0, 0, 1}, {.most_medians = 100});
  CHECK(!still[0]);
  CHECK(still[2].has_value());
}

TEST_CASE("bounds that cannot be right are refused") {
  CHECK_NOTHROW(Screening{}.check());
  CHECK_NOTHROW(Screening{.most_norm = 1, .most_medians = 1}.check());
  for (double const bound : {0.0, -1.0, static_cast<double>(NAN)})
    CHECK(what_of<ConfigError>([&] { Screening{.most_norm = bound}.check(); }).find("give a positive bound") !=
          std::string::npos);
  for (double const medians : {0.9, -1.0, static_cast<double>(NAN)})
    CHECK(what_of<ConfigError>([&] { Screening{.most_medians = medians}.check(); }).find("give 1 or more") !=
          std::string::npos);
}
