// SPDX-License-Identifier: MIT
#include "pardl/fed/draws.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "support/golden.hpp"
#include "support/temporary_folder.hpp"

using pardl::ConfigError;
using pardl::fed::Draws;
using pardl::fed::fold;
using pardl::testing::golden;
using pardl::testing::GoldenRecord;
using pardl::testing::what_of;

namespace {

std::uint64_t whole(std::string const& text) { return std::strtoull(text.c_str(), nullptr, 10); }

std::vector<std::uint64_t> wholes(GoldenRecord const& record) {
  std::vector<std::uint64_t> numbers;
  for (auto const& value : record.values) numbers.push_back(whole(value));
  return numbers;
}

template <class T, class F>
std::vector<T> times(std::size_t count, F draw) {
  std::vector<T> drawn;
  for (std::size_t i = 0; i < count; ++i) drawn.push_back(draw());
  return drawn;
}

struct Moments {
  double mean = 0, variance = 0, skewness = 0;
};
template <class F>
Moments moments(int count, F draw) {
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) value = draw();
  Moments m;
  m.mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double third = 0;
  for (double const value : values) {
    double const d = value - m.mean;
    m.variance += d * d / count;
    third += d * d * d / count;
  }
  m.skewness = third / std::pow(m.variance, 1.5);
  return m;
}

/// Sum of (seen - expected)² / expected for equally likely cells.
double chi_square(std::vector<int> const& seen) {
  double const expected = std::accumulate(seen.begin(), seen.end(), 0.0) / static_cast<double>(seen.size());
  double chi = 0;
  for (int const count : seen) chi += (count - expected) * (count - expected) / expected;
  return chi;
}

/// Doubles between two of the same sign.
std::int64_t ulps(double a, double b) {
  return std::abs(std::bit_cast<std::int64_t>(a) - std::bit_cast<std::int64_t>(b));
}

}  // namespace

TEST_CASE("every stream is bit for bit what a second implementation in Python makes of its definition") {
  int seen = 0;
  for (auto const& record : golden("fed_draws.txt")) {
    std::string const& name = record.words[0];
    CAPTURE(name);
    if (record.words.size() > 1) CAPTURE(record.words[1]);
    auto const count = record.values.size();
    auto const reals = [&](auto draw) { CHECK(times<double>(count, draw) == record.reals()); };
    ++seen;
    if (name == "bits" || name == "fold") {
      auto const key = [&](std::size_t i) { return whole(record.words[i]); };
      auto const use = static_cast<std::uint32_t>(key(4));
      Draws draws(key(1), key(2), key(3), use);
      if (name == "bits")
        CHECK(times<std::uint64_t>(count, [&] { return draws.bits(); }) == wholes(record));
      else
        CHECK(fold(key(1), key(2), key(3), use) == wholes(record)[0]);
    } else if (name == "below") {
      Draws draws(3, 1, 4, 1);
      auto const bound = whole(record.words[1]);
      CHECK(times<std::uint64_t>(count, [&] { return draws.below(bound); }) == wholes(record));
    } else if (name == "uniform") {
      reals([draws = Draws(5)]() mutable { return draws.uniform(); });
    } else if (name == "open_uniform") {
      reals([draws = Draws(5)]() mutable { return draws.open_uniform(); });
    } else if (name == "normal") {
      reals([draws = Draws(6)]() mutable { return draws.normal(); });
    } else if (name == "gamma") {
      reals([&, draws = Draws(7)]() mutable { return draws.gamma(record.real(1)); });
    } else if (name == "log_gamma") {
      reals([&, draws = Draws(7)]() mutable { return draws.log_gamma(record.real(1)); });
    } else if (name == "dirichlet") {
      CHECK(Draws(8).dirichlet(record.real(1), count) == record.reals());
    } else if (name == "shuffle") {
      std::vector<std::int64_t> order(static_cast<std::size_t>(record.integer(1)));
      std::iota(order.begin(), order.end(), 0);
      Draws(9).shuffle(order);
      CHECK(order == record.integers());
    } else if (name == "sample") {
      CHECK(Draws(10).sample(record.integer(1), record.integer(2)) == record.integers());
    } else if (name == "log") {
      double const here = pardl::fed::detail::portable_log(record.real(1));
      CHECK(here == record.reals()[0]);
      CHECK(ulps(here, record.reals()[1]) <= 2);  // the true logarithm
    } else if (name == "exp") {
      double const here = pardl::fed::detail::portable_exp(record.real(1));
      CHECK(here == record.reals()[0]);
      CHECK(ulps(here, record.reals()[1]) <= 2);
    } else {
      --seen;  // of client_sampler.test.cpp
    }
  }
  CHECK(seen == 96);
}

TEST_CASE("each part of the key, each of its bits, gives another stream and another seed for other generators") {
  std::set<std::uint64_t> first;
  std::size_t keys = 1;
  auto const add = [&](std::uint64_t seed, std::uint64_t a, std::uint64_t b, std::uint32_t use) {
    first.insert(Draws(seed, a, b, use).bits());
    first.insert(fold(seed, a, b, use));
  };
  add(0, 0, 0, 0);
  for (int bit = 0; bit < 64; ++bit, keys += 3) {
    add(std::uint64_t{1} << bit, 0, 0, 0);
    add(0, std::uint64_t{1} << bit, 0, 0);
    add(0, 0, std::uint64_t{1} << bit, 0);
  }
  for (int bit = 0; bit < 32; ++bit, ++keys) add(0, 0, 0, std::uint32_t{1} << bit);
  CHECK(first.size() == 2 * keys);
}

TEST_CASE("streams of neighbouring rounds and clients are not correlated") {
  // 100 rounds of 100 clients: the top bit of the first draw against that of the next client and of the next round.
  auto const top = [](std::uint64_t round, std::uint64_t client) {
    return static_cast<int>(Draws(1, round, client).bits() >> 63);
  };
  int beside = 0, below = 0, ones = 0;
  for (std::uint64_t round = 0; round < 100; ++round)
    for (std::uint64_t client = 0; client < 100; ++client) {
      ones += top(round, client);
      beside += top(round, client) == top(round, client + 1);
      below += top(round, client) == top(round + 1, client);
    }
  for (int const count : {ones, beside, below}) CHECK(std::abs(count - 5000) < 4 * 50);  // 50 = √(10000 / 4)
}

TEST_CASE("below is uniform, also where the bound does not divide 2^64") {
  for (std::uint64_t const bound : {3U, 10U, 62U}) {
    Draws draws(17, bound);
    std::vector<int> seen(bound);
    for (std::uint64_t i = 0; i < 5000 * bound; ++i) ++seen[draws.below(bound)];
    // mean f, deviation √(2f): five deviations, and the numbers are fixed, so this cannot flicker
    auto const freedom = static_cast<double>(bound - 1);
    CHECK(chi_square(seen) < freedom + 5 * std::sqrt(2 * freedom));
  }
  // A bound of 3/4 of 2^64: without the rejection the lowest third would come twice as often as the rest.
  Draws draws(18);
  std::uint64_t const bound = 3ULL << 62;
  std::vector<int> thirds(3);
  for (int i = 0; i < 30'000; ++i) ++thirds[draws.below(bound) >> 62];
  CHECK(chi_square(thirds) < 2 + 5 * 2);
}

TEST_CASE("uniform draws fill [0, 1) evenly") {
  Draws draws(19);
  auto const m = moments(100'000, [&] { return draws.uniform(); });
  CHECK(std::abs(m.mean - 0.5) < 5 * std::sqrt(1.0 / 12 / 1e5));
  CHECK(m.variance == doctest::Approx(1.0 / 12).epsilon(0.01));
  std::vector<int> cells(20);
  for (int i = 0; i < 100'000; ++i) ++cells[static_cast<std::size_t>(draws.uniform() * 20)];
  CHECK(chi_square(cells) < 19 + 5 * std::sqrt(38.0));
}

TEST_CASE("normal draws have the moments and the tails of a normal distribution") {
  Draws draws(20);
  int const count = 200'000;
  auto const m = moments(count, [&] { return draws.normal(); });
  CHECK(std::abs(m.mean) < 5 / std::sqrt(count));
  CHECK(std::abs(m.variance - 1) < 5 * std::sqrt(2.0 / count));
  CHECK(std::abs(m.skewness) < 5 * std::sqrt(6.0 / count));
  int beyond = 0;
  for (int i = 0; i < count; ++i) beyond += std::abs(draws.normal()) > 1.959963984540054;
  CHECK(std::abs(beyond - 0.05 * count) < 5 * std::sqrt(0.05 * 0.95 * count));
}

TEST_CASE("gamma draws have mean and variance equal to the shape, below and above 1") {
  for (double const shape : {0.1, 0.5, 0.99, 1.0, 2.5, 100.0}) {
    CAPTURE(shape);
    Draws draws(21);
    int const count = 200'000;
    auto const m = moments(count, [&] { return draws.gamma(shape); });
    CHECK(std::abs(m.mean - shape) < 5 * std::sqrt(shape / count));
    // the variance of the estimate of the variance: (excess kurtosis 6/shape + 2) shape² / n
    CHECK(std::abs(m.variance - shape) < 5 * shape * std::sqrt((6 / shape + 2) / count));
    CHECK(m.skewness == doctest::Approx(2 / std::sqrt(shape)).epsilon(0.15));
  }
}

TEST_CASE("Dirichlet proportions have the moments of the distribution and never end in 0/0") {
  Draws draws(22);
  std::vector<double> const concentrations{0.5, 1, 2.5};  // sum 4: means 1/8, 1/4, 5/8
  std::vector<double> mean(3);
  double second_moment = 0;
  int const count = 50'000;
  for (int i = 0; i < count; ++i) {
    auto const shares = draws.dirichlet(concentrations);
    for (std::size_t k = 0; k < 3; ++k) mean[k] += shares[k] / count;
    second_moment += shares[0] * shares[0] / count;
    CHECK(std::abs(std::accumulate(shares.begin(), shares.end(), 0.0) - 1) < 1e-15 * 8);
  }
  CHECK(mean[0] == doctest::Approx(0.125).epsilon(0.02));
  CHECK(mean[1] == doctest::Approx(0.25).epsilon(0.02));
  CHECK(mean[2] == doctest::Approx(0.625).epsilon(0.02));
  CHECK(second_moment == doctest::Approx(0.5 * 1.5 / (4 * 5)).epsilon(0.05));

  for (double const tiny : {1e-6, 1e-100, 1e-300, 5e-324}) {
    auto const shares = draws.dirichlet(tiny, 10);
    CHECK(std::count(shares.begin(), shares.end(), 1.0) == 1);
    CHECK(std::count(shares.begin(), shares.end(), 0.0) == 9);
  }
  for (double const share : draws.dirichlet(1e12, 10)) CHECK(share == doctest::Approx(0.1).epsilon(1e-4));
}

TEST_CASE("a shuffle reaches every order alike and a sample every subset") {
  std::vector<int> orders(24), subsets(10);
  Draws draws(23);
  std::vector<std::vector<std::int64_t>> known;
  auto const number = [&](std::vector<std::int64_t> const& list) {
    auto const at = std::find(known.begin(), known.end(), list);
    auto const position = static_cast<std::size_t>(at - known.begin());
    if (at == known.end()) known.push_back(list);
    return position;
  };
  for (int i = 0; i < 24'000; ++i) {
    std::vector<std::int64_t> order{0, 1, 2, 3};
    draws.shuffle(order);
    ++orders.at(number(order));
  }
  CHECK(known.size() == 24);
  CHECK(chi_square(orders) < 23 + 5 * std::sqrt(46.0));
  known.clear();
  for (int i = 0; i < 10'000; ++i) ++subsets.at(number(draws.sample(5, 2)));
  CHECK(known.size() == 10);
  CHECK(chi_square(subsets) < 9 + 5 * std::sqrt(18.0));
}

TEST_CASE("what cannot be drawn is refused in a sentence") {
  Draws draws(0);
  CHECK(what_of<ConfigError>([&] { (void)draws.below(0); }) ==
        "[fed] a draw from no numbers at all; draw below 1 or more.");
  CHECK(what_of<ConfigError>([&] { (void)draws.sample(3, 4); }) ==
        "[fed] a sample without replacement of 4 out of 3; ask for no more than there are.");
  CHECK(what_of<ConfigError>([&] { (void)draws.sample(3, -1); }).find("-1 out of 3") != std::string::npos);
  double const infinite = std::numeric_limits<double>::infinity();
  for (double const shape : {0.0, -1.0, infinite, std::nan("")}) {
    CHECK(what_of<ConfigError>([&] { (void)draws.gamma(shape); }).find("above 0") != std::string::npos);
    CHECK(what_of<ConfigError>([&] { (void)draws.log_gamma(shape); }).find("above 0") != std::string::npos);
    CHECK(what_of<ConfigError>([&] { (void)draws.dirichlet(shape, 2); }).find("above 0") != std::string::npos);
  }
  CHECK(what_of<ConfigError>([&] { (void)draws.dirichlet(1, 0); }).find("no proportions") != std::string::npos);
}

TEST_CASE("the exponential ends in 0 and infinity, not in nonsense") {
  using pardl::fed::detail::portable_exp;
  CHECK(portable_exp(-1e308) == 0);
  CHECK(portable_exp(-std::numeric_limits<double>::infinity()) == 0);
  CHECK(portable_exp(1e308) == std::numeric_limits<double>::infinity());
  CHECK(std::isnan(portable_exp(std::nan(""))));
}
