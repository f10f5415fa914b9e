// SPDX-License-Identifier: MIT
#include "pardl/fed/evaluation.hpp"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace fed = pardl::fed;
using doctest::Approx;

namespace {

/// Client `id`: so many samples, right answers of so many, and the losses' sum.
fed::ClientEvaluation client(std::int64_t id, std::int64_t samples, std::int64_t correct, std::int64_t answers,
                             double loss) {
  return {.client = id, .samples = samples, .correct = correct, .answers = answers, .loss = loss};
}

/// first, first + 1, … : `count` of them, out of order.
std::vector<double> shuffled(std::size_t count, double first) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i * 7 % count] = first + static_cast<double>(i);
  return values;
}

void check_nothing(fed::Spread const& found) {
  for (double const number : {found.mean, found.deviation, found.min, found.bottom_decile, found.top_decile, found.max,
                              found.bottom_tenth, found.top_tenth, found.cosine, found.entropy})
    CHECK(std::isnan(number));
}

}  // namespace

TEST_CASE("accuracy is right answers over answers and loss is per sample, never an average of averages") {
  // 90 of 100, and 1 of 10: the clients' average would be a half.
  std::vector<fed::ClientEvaluation> const clients{client(4, 100, 90, 100, 50), client(9, 10, 1, 10, 30)};
  auto const all = fed::summarize(clients);
  CHECK(all.clients == 2);
  CHECK(all.samples == 110);
  CHECK(all.correct == 91);
  CHECK(all.answers == 110);
  CHECK(all.accuracy == 91.0 / 110);
  CHECK(all.loss == 80.0 / 110);

  // Over clients, each counts once.
  CHECK(all.client_accuracy.mean == Approx(0.5));
  CHECK(all.client_accuracy.min == 0.1);
  CHECK(all.client_accuracy.max == 0.9);
  CHECK(all.client_accuracy.deviation == Approx(0.4));
  CHECK(all.client_loss.mean == Approx(1.75));
  CHECK(all.client_loss.min == 0.5);
  CHECK(all.client_loss.max == 3);
}

TEST_CASE("one sample may ask for many answers: accuracy is over answers, loss over samples") {
  std::vector<fed::ClientEvaluation> const clients{client(0, 2, 30, 160, 4), client(1, 1, 40, 80, 8)};
  auto const all = fed::summarize(clients);
  CHECK(all.accuracy == 70.0 / 240);
  CHECK(all.loss == 4);
  CHECK(all.client_accuracy.min == 30.0 / 160);
  CHECK(all.client_accuracy.max == 0.5);
  CHECK(all.client_loss.min == 2);
  CHECK(all.client_loss.max == 8);
}

TEST_CASE("clients without samples do not count, and where nothing can be right there is no accuracy") {
  std::vector<fed::ClientEvaluation> const clients{client(0, 0, 0, 0, 0), client(1, 4, 3, 4, 2), client(2, 0, 0, 0, 0)};
  auto const one = fed::summarize(clients);
  CHECK(one.clients == 1);
  CHECK(one.samples == 4);
  CHECK(one.accuracy == 0.75);
  CHECK(one.client_accuracy.mean == 0.75);
  CHECK(one.client_accuracy.min == 0.75);
  CHECK(one.client_loss.mean == 0.5);

  // A regression: losses, no answers.
  std::vector<fed::ClientEvaluation> const regression{client(0, 4, 0, 0, 2), client(1, 4, 0, 0, 6)};
  auto const all = fed::summarize(regression);
  CHECK(all.clients == 2);
  CHECK(all.loss == 1);
  CHECK(std::isnan(all.accuracy));
  check_nothing(all.client_accuracy);
  CHECK(all.client_loss.mean == 1);
}

TEST_CASE("nothing evaluated is counts of zero and figures that are not numbers") {
  std::vector<fed::ClientEvaluation> const empty{client(3, 0, 0, 0, 0)};
  for (std::size_t const size : {std::size_t{0}, std::size_t{1}}) {
    auto const all = fed::summarize(std::span(empty).first(size));
    CHECK(all.clients == 0);
    CHECK(all.samples == 0);
    CHECK(all.correct == 0);
    CHECK(all.answers == 0);
    CHECK(std::isnan(all.loss));
    CHECK(std::isnan(all.accuracy));
    check_nothing(all.client_loss);
    check_nothing(all.client_accuracy);
  }
  check_nothing(fed::spread({}));
}

TEST_CASE("deciles are the values at n/10 and 9n/10 of n in order, tenths the means beyond them") {
  // 25 values 1 … 25, not in order: places 2 and 22; the tenths are 1, 2 and 23, 24, 25.
  auto const found = fed::spread(shuffled(25, 1));
  CHECK(found.mean == Approx(13));
  CHECK(found.deviation == Approx(std::sqrt((25.0 * 25 - 1) / 12)));
  CHECK(found.min == 1);
  CHECK(found.max == 25);
  CHECK(found.bottom_decile == 3);
  CHECK(found.top_decile == 23);
  CHECK(found.bottom_tenth == Approx(1.5));
  CHECK(found.top_tenth == Approx(24));

  auto const twenty = fed::spread(shuffled(20, 0));
  CHECK(twenty.bottom_decile == 2);
  CHECK(twenty.top_decile == 18);
  CHECK(twenty.bottom_tenth == Approx(0.5));
  CHECK(twenty.top_tenth == Approx(18.5));
}

TEST_CASE("with fewer than ten clients the tenths hold one each") {
  auto const found = fed::spread({0.5, 0.25, 0.75});
  CHECK(found.bottom_decile == 0.25);
  CHECK(found.bottom_tenth == 0.25);
  CHECK(found.top_decile == 0.75);
  CHECK(found.top_tenth == 0.75);

  auto const one = fed::spread({0.25});
  for (double const number :
       {one.mean, one.min, one.bottom_decile, one.bottom_tenth, one.top_decile, one.top_tenth, one.max})
    CHECK(number == 0.25);
  CHECK(one.deviation == 0);
  CHECK(one.cosine == Approx(1));
  CHECK(std::abs(one.entropy) < 1e-12);
}

TEST_CASE("cosine and entropy say how even clients are: 1 and log n where all are equal") {
  auto const even = fed::spread(std::vector<double>(8, 0.3));
  CHECK(even.deviation == Approx(0));
  CHECK(even.cosine == Approx(1));
  CHECK(even.entropy == Approx(std::log(8.0)));

  // (3, 4): cosine 7 / (5 sqrt 2), shares 3/7 and 4/7.
  auto const two = fed::spread({4, 3});
  CHECK(two.cosine == Approx(7 / (5 * std::sqrt(2.0))));
  CHECK(two.entropy == Approx(-(3 * std::log(3.0 / 7) + 4 * std::log(4.0 / 7)) / 7));

  // One client has everything.
  auto const uneven = fed::spread({0, 0, 1, 0});
  CHECK(uneven.cosine == Approx(0.5));
  CHECK(std::abs(uneven.entropy) < 1e-6);

  // Nobody has anything: equal, with no angle to speak of, and no figure that is not a number.
  auto const zero = fed::spread({0, 0, 0, 0});
  CHECK(zero.mean == 0);
  CHECK(zero.cosine == 0);
  CHECK(zero.entropy == Approx(std::log(4.0)));
}
