// SPDX-License-Identifier: MIT
#include "pardl/fed/robust.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "pardl/fed/any_robust_aggregator.hpp"
#include "pardl/fed/detail/update_tiles.hpp"
#include "pardl/fed/draws.hpp"
#include "pardl/fed/robust_rules.hpp"
#include "support/robust_round.hpp"
#include "support/temporary_folder.hpp"

using namespace pardl::testing;
using pardl::ConfigError;
using pardl::DataError;

TEST_CASE("the sorting network sorts every pattern of zeros and ones, and so everything") {
  for (std::size_t n = 1; n <= 13; ++n) {
    pardl::fed::detail::Tile<float> tile(n);
    std::size_t const patterns = std::size_t{1} << n;
    bool sorted = true;
    for (std::size_t begin = 0; begin < patterns; begin += tile.most()) {
      std::size_t const size = std::min(tile.most(), patterns - begin);
      for (std::size_t i = 0; i < n; ++i) {
        std::vector<float> row(size);
        for (std::size_t k = 0; k < size; ++k) row[k] = static_cast<float>(((begin + k) >> i) & 1U);
        tile.load(i, row, 0, size);
      }
      pardl::fed::detail::sort_columns(tile);
      for (std::size_t k = 0; k < size; ++k) {
        auto const ones = static_cast<std::size_t>(std::popcount(begin + k));
        for (std::size_t i = 0; i < n; ++i) sorted &= tile.row(i)[k] == (i >= n - ones ? 1.0F : 0.0F);
      }
    }
    CHECK_MESSAGE(sorted, n, " rows");
  }
}

TEST_CASE("blocks depend on the number of coordinates alone, and shares of them cover all") {
  for (std::size_t const numbers : {std::size_t{1}, std::size_t{4096}, std::size_t{4097}, std::size_t{256 * 4096},
                                    std::size_t{256 * 4096 + 1}, std::size_t{6603902}, std::size_t{1} << 33U}) {
    Blocks const blocks(numbers);
    CHECK(blocks.count() <= Blocks::most);
    CHECK(blocks.count() > 0);
    CHECK(blocks.begin(0) == 0);
    CHECK(blocks.begin(blocks.count()) == numbers);
    CHECK(blocks.begin(blocks.count() - 1) % Blocks::unit == 0);
    CHECK(blocks.begin(blocks.count() - 1) < numbers);
    for (std::size_t const workers : {1U, 2U, 3U, 7U, 300U}) {
      std::size_t next = 0, least = blocks.count(), most = 0;
      for (std::size_t w = 0; w < workers; ++w) {
        auto const share = blocks.share(w, workers);
        CHECK(share.first == next);
        next = share.last;
        least = std::min(least, share.last - share.first);
        most = std::max(most, share.last - share.first);
      }
      CHECK(next == blocks.count());
      CHECK(most - least <= 1);
    }
  }
  CHECK(Blocks(256 * 4096).count() == 256);
  CHECK(Blocks(256 * 4096 + 1).count() == 129);
}

TEST_CASE("any number of workers gives the same bits, liars or not") {
  auto round = honest(11, 9 * Blocks::unit + 123, 1);
  SUBCASE("honest") {}
  SUBCASE("with a liar beyond any measure") { lie(round, 1, 1e30F, true); }
  auto const updates = round.updates();
  Blocks const blocks(updates.length());
  for (auto const& [name, rule] : all_rules(1)) {
    CAPTURE(name);
    auto const alone = run(rule, round);
    for (std::size_t const workers : {1U, 2U, 3U, 7U}) {
      CAPTURE(workers);
      std::vector<Plan> plans(workers, begin_plan(rule, updates));
      std::vector<double> partials(partials_size(rule, updates), -1.0), result(updates.length(), -1.0);
      while (!plans[0].ready) {
        for (std::size_t w = workers; w-- > 0;) survey(rule, updates, plans[w], blocks.share(w, workers), partials);
        for (auto& plan : plans) decide(rule, updates, partials, plan);  // each for itself
      }
      for (std::size_t w = workers; w-- > 0;) combine(rule, updates, plans[w], blocks.share(w, workers), result);
      CHECK(same_bits(result, alone));
    }
  }
}

TEST_CASE("the order of the updates changes no bit") {
  auto round = honest(11, 700, 2);
  round.rows[4] = round.rows[9];  // ties: the same update twice, with other weights
  round.rows[5] = round.rows[9];
  std::vector<std::vector<double>> before;
  for (auto const& [name, rule] : all_rules(2)) before.push_back(run(rule, round));
  Draws draws(3);
  for (int time = 0; time < 5; ++time) {
    auto order = everyone(round);
    draws.shuffle(std::span(order));
    Round other{.start = round.start, .rows = {}, .weights = {}};
    for (std::size_t const i : order) {
      other.rows.push_back(round.rows[i]);
      other.weights.push_back(round.weights[i]);
    }
    std::size_t at = 0;
    for (auto const& [name, rule] : all_rules(2)) CHECK_MESSAGE(same_bits(run(rule, other), before[at++]), name);
  }
}

TEST_CASE("ties between clients that weigh alike are decided by what they sent, not by their place") {
  auto round = honest(7, 90, 16, true);  // the last choices of Bulyan are between pairs at one distance
  Round three{.start = round.start, .rows = {round.rows.begin(), round.rows.begin() + 3}, .weights = {1, 1, 1}};
  auto const check = [](any_robust_aggregator const& rule, Round tied) {
    auto const before = run(rule, tied);
    std::ranges::sort(tied.rows);
    do CHECK(same_bits(run(rule, tied), before));
    while (std::ranges::next_permutation(tied.rows).found);
  };
  check({Krum{}}, three);  // one neighbour each: the two that are nearest to each other tie
  check({Krum{.average = 2}}, three);
  check({Bulyan{.byzantine = 1}}, round);
}

TEST_CASE("too few updates for so many liars: one sentence with both numbers") {
  auto const round = honest(6, 10, 14);
  CHECK(
      what_of<ConfigError>([&] { run({Krum{.byzantine = 2}}, round); }) ==
      "[fed] Krum against 2 lying clients needs 7 updates, and this round has 6; sample more clients, or expect fewer "
      "liars.");
  CHECK(what_of<ConfigError>([&] {
          run({Bulyan{.byzantine = 1}}, round);
        }).find("needs 7 updates, and this round has 6") != std::string::npos);
  CHECK(what_of<ConfigError>([&] { run({Median{.byzantine = 3}}, round); }).find("needs 7 updates") !=
        std::string::npos);
  CHECK(what_of<ConfigError>([&] { run({GeometricMedian{.byzantine = 3}}, round); }).find("needs 7") !=
        std::string::npos);
  CHECK(what_of<ConfigError>([&] {
          run({TrimmedMean{.excluded_ratio = 0.4, .byzantine = 3}}, round);
        }).find("needs 7") != std::string::npos);
  CHECK(what_of<ConfigError>([&] {
          run({Krum{.byzantine = std::numeric_limits<std::int64_t>::max()}}, round);
        }).find("needs more than 9223372036854775807") != std::string::npos);
  // The least numbers that are enough.
  CHECK_NOTHROW(Krum{.byzantine = 2}.check(7));
  CHECK_THROWS_AS(Krum{.byzantine = 2}.check(6), ConfigError);
  CHECK_NOTHROW(Bulyan{.byzantine = 2}.check(11));
  CHECK_THROWS_AS(Bulyan{.byzantine = 2}.check(10), ConfigError);
  CHECK_NOTHROW(Median{.byzantine = 2}.check(5));
  CHECK_THROWS_AS(Median{.byzantine = 2}.check(4), ConfigError);
}

TEST_CASE("settings out of range are refused") {
  for (double const ratio : {-1.0, 0.5, 0.7, static_cast<double>(NAN)})
    CHECK(what_of<ConfigError>([&] {
            TrimmedMean{.excluded_ratio = ratio}.check(10);
          }).find("from 0 up to but not at 0.5") != std::string::npos);
  CHECK(what_of<ConfigError>([] {
          TrimmedMean{.excluded_ratio = 0.1, .byzantine = 2}.check(10);
        }).find("cuts off 1 of 10 updates at each end, but 2 clients may lie") != std::string::npos);
  CHECK(what_of<ConfigError>([] {
          Krum{.byzantine = 1, .average = 9}.check(9);
        }).find("average 9 of 9 updates, of which 1 may lie; average from 1 to 8") != std::string::npos);
  CHECK_THROWS_AS(Krum{.average = 0}.check(9), ConfigError);
  CHECK_THROWS_AS(Krum{.byzantine = -1}.check(9), ConfigError);
  for (double const bound : {0.0, -1.0, static_cast<double>(NAN)})
    CHECK_THROWS_AS(NormBounding{.bound = bound}.check(9), ConfigError);
  CHECK_THROWS_AS(GeometricMedian{.smoothing = 0}.check(9), ConfigError);
  CHECK_THROWS_AS(GeometricMedian{.iterations = 0}.check(9), ConfigError);
  CHECK_THROWS_AS(GeometricMedian{.tolerance = -1e-3}.check(9), ConfigError);
}

TEST_CASE("updates that are not rows of one length with positive weights are refused") {
  std::vector<float> const start{1, 2, 3}, fine{1, 2, 4}, brief{1, 2};
  CHECK(what_of<ConfigError>([&] { Updates(start, std::vector<std::span<float const>>{}); }).find("no updates") !=
        std::string::npos);
  CHECK(what_of<ConfigError>([&] {
          Updates(start, {fine, brief});
        }).find("update 1 has 2 numbers, the model has 3") != std::string::npos);
  CHECK(what_of<ConfigError>([&] {
          Updates(start, {fine, fine}, {1});
        }).find("2 updates with 1 weights") != std::string::npos);
  for (double const weight : {0.0, -2.0, infinity, static_cast<double>(NAN)})
    CHECK(what_of<ConfigError>([&] {
            Updates(start, {fine, fine}, {1, weight});
          }).find("update 1 has weight") != std::string::npos);
  CHECK_THROWS_AS(Updates({}, {{}}), ConfigError);
  std::vector<double> two(2);
  CHECK_THROWS_AS(aggregate(Median{}, Updates(start, {fine}), two), ConfigError);
  for (float const bad : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> const broken{1, bad, 3};
    std::vector<double> three(3);
    CHECK(what_of<DataError>([&] {
            aggregate(Median{}, Updates(start, {fine, broken, fine}), three);
          }).find("number 1 of update 1 is") != std::string::npos);
  }
}

TEST_CASE("rules are found by FederatedScope's names, and an unknown name lists them") {
  auto round = honest(11, 100, 15);
  lie(round, 1, 9.0F);
  RobustChoice const choice{.byzantine = 1, .krum_agg_num = 3, .excluded_ratio = 0.2, .norm_bound = 1.5};
  auto const made = [&](char const* name) { return run(make_robust_aggregator(name, choice), round); };
  CHECK(same_bits(made("krum"), run({Krum{.byzantine = 1, .average = 3}}, round)));
  CHECK(same_bits(made("median"), run({Median{}}, round)));
  CHECK(same_bits(made("trimmedmean"), run({TrimmedMean{.excluded_ratio = 0.2}}, round)));
  CHECK(same_bits(made("bulyan"), run({Bulyan{.byzantine = 1}}, round)));
  CHECK(same_bits(made("normbounding"), run({NormBounding{.bound = 1.5}}, round)));
  CHECK(same_bits(made("geometric_median"), run({GeometricMedian{}}, round)));
  for (auto const& entry : robust_aggregators)
    if (entry.name != "normbounding")
      CHECK_MESSAGE(what_of<ConfigError>([&] {
                      entry.make({.byzantine = 6, .excluded_ratio = 0.4}).check(11);
                    }).find("6 lying") != std::string::npos,
                    std::string(entry.name));
  CHECK_THROWS_AS(make_robust_aggregator("trimmedmean").check(9), ConfigError);  // what is not given is not guessed
  CHECK_THROWS_AS(make_robust_aggregator("normbounding").check(9), ConfigError);
  CHECK(what_of<ConfigError>([] { (void)make_robust_aggregator("krumm"); }) ==
        "[fed] no robust rule is called 'krumm'; choose one of krum, median, trimmedmean, bulyan, normbounding, "
        "geometric_median.");
}
