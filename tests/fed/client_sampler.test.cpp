// SPDX-License-Identifier: MIT
#include "pardl/fed/client_sampler.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "pardl/fed/any_client_sampler.hpp"
#include "support/golden.hpp"
#include "support/sentences.hpp"
#include "support/temporary_folder.hpp"

using namespace pardl::fed;
using pardl::ConfigError;
using pardl::testing::golden;
using pardl::testing::has;
using pardl::testing::what_of;

namespace {

using Ids = std::vector<std::int64_t>;

/// How often each client took part in `rounds` rounds; checks on the way that each round is ascending and exact.
std::vector<double> frequencies(any_client_sampler const& sampler, std::size_t clients, int rounds,
                                std::int64_t count) {
  std::vector<double> seen(clients);
  bool exact = true;
  for (int round = 0; round < rounds; ++round) {
    auto const chosen = sample_clients(sampler, round, clients, 123);  // ascending, each once, within range
    exact = exact && static_cast<std::int64_t>(chosen.size()) == count;
    for (std::int64_t const client : chosen) ++seen[static_cast<std::size_t>(client)];
  }
  CHECK(exact);
  return seen;
}

std::string refusal(any_client_sampler const& sampler, std::size_t clients, std::int64_t round = 0) {
  return what_of<ConfigError>([&] { (void)sampler.sample(round, clients, 1); });
}

Ids everyone(std::int64_t clients) {
  Ids ids(static_cast<std::size_t>(clients));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

}  // namespace

TEST_CASE("a rate stands for FederatedScope's count when rounded down, and for the nearest otherwise") {
  int seen = 0;
  for (auto const& record : golden("fed_draws.txt")) {
    if (record.words[0] != "count") continue;
    ++seen;
    CAPTURE(record.real(1));
    CAPTURE(record.integer(2));
    CHECK(count_from_rate(record.real(1), record.integer(2), Rounding::floor) == record.integers()[0]);
    CHECK(count_from_rate(record.real(1), record.integer(2), Rounding::nearest) == record.integers()[1]);
  }
  CHECK(seen == 91);
  CHECK(count_from_rate(0.29, 100, Rounding::floor) == 28);  // 0.29 * 100 is a little below 29
  CHECK(count_from_rate(0.29, 100, Rounding::nearest) == 29);
  CHECK(count_from_rate(0.4, 100, Rounding::floor) == 40);
  CHECK(count_from_rate(1e-9, 100, Rounding::nearest) == 1);
  CHECK(count_from_rate(1, 100, Rounding::nearest) == 100);
  for (double const rate : {0.0, -0.1, 1.0000001, std::numeric_limits<double>::infinity(), std::nan("")})
    for (Rounding const rounding : {Rounding::floor, Rounding::nearest})
      CHECK(has(what_of<ConfigError>([&] { (void)count_from_rate(rate, 100, rounding); }),
                "a rate lies above 0 and at most at 1"));
  CHECK(has(what_of<ConfigError>([] { (void)count_from_rate(0.5, 0, Rounding::floor); }), "have at least 1 client"));
}

TEST_CASE("uniform sampling is what a second implementation in Python draws for (seed, round)") {
  int seen = 0;
  for (auto const& record : golden("fed_draws.txt")) {
    if (record.words[0] != "uniform_sampler") continue;
    ++seen;
    auto const seed = static_cast<std::uint64_t>(record.integer(1));
    auto const clients = static_cast<std::size_t>(record.integer(3));
    CHECK(Uniform{.count = record.integer(4)}.sample(record.integer(2), clients, seed) == record.integers());
  }
  CHECK(seen == 6);
}

TEST_CASE("a sample depends on seed and round alone, and another of either gives another") {
  std::vector<double> weights(50);
  Ids groups;
  for (std::size_t i = 0; i < 50; ++i) {
    weights[i] = static_cast<double>(1 + i % 7);
    groups.push_back(static_cast<std::int64_t>(i % 3));
  }
  auto const odd = [](std::int64_t, std::int64_t client) { return client % 4 != 0; };
  for (any_client_sampler const& sampler :
       {any_client_sampler(Uniform{.count = 20}), any_client_sampler(Weighted{.weights = weights, .count = 20}),
        any_client_sampler(Poisson{.rate = 0.4}), any_client_sampler(Stratified{.groups = groups, .count = 20}),
        any_client_sampler(AvailabilityAware{.available = odd, .count = 20})}) {
    auto const reference = sampler.sample(7, 50, 11);
    CHECK(sampler.sample(8, 50, 11) != reference);
    CHECK(sampler.sample(7, 50, 12) != reference);
    CHECK(sampler.sample(7, 50, 11) == reference);
  }
}

TEST_CASE("uniform: exact counts, every client as often as any other, every pair too") {
  int const rounds = 20'000;
  auto const seen = frequencies(Uniform{.count = 8}, 20, rounds, 8);
  double const expected = rounds * 8.0 / 20;
  double chi = 0;
  for (double const count : seen) chi += (count - expected) * (count - expected) / (expected * (1 - 0.4));
  // With exact counts the statistic, scaled by 20/19, is chi-square with 19 degrees of freedom.
  CHECK(chi * 19 / 20 < 19 + 5 * std::sqrt(38.0));
  CHECK(chi * 19 / 20 > 19 - 3 * std::sqrt(38.0));

  std::map<std::pair<std::int64_t, std::int64_t>, int> pairs;
  for (int round = 0; round < 10'000; ++round) {
    auto const two = Uniform{.count = 2}.sample(round, 5, 9);
    ++pairs[{two[0], two[1]}];
  }
  CHECK(pairs.size() == 10);
  double pair_chi = 0;
  for (auto const& [pair, count] : pairs) pair_chi += (count - 1000.0) * (count - 1000.0) / 1000;
  CHECK(pair_chi < 9 + 5 * std::sqrt(18.0));

  CHECK(Uniform{.count = 12}.sample(0, 12, 1) == everyone(12));
}

TEST_CASE("weighted: one draw follows the weights, two follow successive draws, weight 0 never comes") {
  std::vector<double> const weights{1, 2, 0, 3, 4};
  int const rounds = 40'000;
  auto const one = frequencies(Weighted{.weights = weights, .count = 1}, 5, rounds, 1);
  double chi = 0;
  for (std::size_t i : {0U, 1U, 3U, 4U}) {
    double const expected = rounds * weights[i] / 10;
    chi += (one[i] - expected) * (one[i] - expected) / expected;
  }
  CHECK(one[2] == 0);
  CHECK(chi < 3 + 5 * std::sqrt(6.0));

  auto const two = frequencies(Weighted{.weights = weights, .count = 2}, 5, rounds, 2);
  for (std::size_t i : {0U, 1U, 3U, 4U}) {
    double probability = weights[i] / 10;  // first, or second after any other
    for (std::size_t j : {0U, 1U, 3U, 4U})
      if (j != i) probability += weights[j] / 10 * weights[i] / (10 - weights[j]);
    double const deviation = std::sqrt(rounds * probability * (1 - probability));
    CHECK(std::abs(two[i] - rounds * probability) < 4.5 * deviation);
  }
  CHECK(two[2] == 0);
  CHECK(Weighted{.weights = weights, .count = 4}.sample(3, 5, 1) == Ids{0, 1, 3, 4});
}

TEST_CASE("Poisson: clients come and stay away independently, and a round may be empty") {
  int const rounds = 20'000;
  double const rate = 0.15;
  std::vector<double> seen(10);
  double sum = 0, squares = 0;
  int empty = 0;
  for (int round = 0; round < rounds; ++round) {
    auto const chosen = sample_clients(Poisson{.rate = rate}, round, 10, 5);
    for (std::int64_t const client : chosen) ++seen[static_cast<std::size_t>(client)];
    auto const count = static_cast<double>(chosen.size());
    sum += count;
    squares += count * count;
    empty += chosen.empty();
  }
  for (double const count : seen) CHECK(std::abs(count - rounds * rate) < 4.5 * std::sqrt(rounds * rate * (1 - rate)));
  double const mean = sum / rounds;
  CHECK(squares / rounds - mean * mean == doctest::Approx(10 * rate * (1 - rate)).epsilon(0.05));  // binomial
  double const none = std::pow(1 - rate, 10);
  CHECK(std::abs(empty - rounds * none) < 4.5 * std::sqrt(rounds * none * (1 - none)));
  CHECK(Poisson{.rate = 1}.sample(0, 10, 5) == everyone(10));
}

TEST_CASE("stratified: each group its share, rounded down or up, and every client equally often") {
  // 7 of 20 clients; groups of 10, 6, 3 and 1: shares 3.5, 2.1, 1.05, 0.35
  Ids const groups{5, 5, 5, 5, 5, 5, 5, 5, 5, 5, -1, -1, -1, -1, -1, -1, 2, 2, 2, 8};
  std::map<std::int64_t, double> const shares{{5, 3.5}, {-1, 2.1}, {2, 1.05}, {8, 0.35}};
  int const rounds = 20'000;
  Stratified const sampler{.groups = groups, .count = 7};
  bool within = true;
  for (int round = 0; round < 500; ++round) {
    std::map<std::int64_t, double> taken;
    for (std::int64_t const client : sampler.sample(round, 20, 123)) ++taken[groups[static_cast<std::size_t>(client)]];
    for (auto const& [group, share] : shares) within = within && std::abs(taken[group] - share) < 1;
  }
  CHECK(within);
  double const probability = 7.0 / 20;
  for (double const count : frequencies(sampler, 20, rounds, 7))
    CHECK(std::abs(count - rounds * probability) < 4.5 * std::sqrt(rounds * probability * (1 - probability)));

  CHECK(Stratified{.groups = groups, .count = 20}.sample(0, 20, 1) == everyone(20));
  // Five groups with shares of 1.4: two of them are rounded up, other ones from round to round.
  Ids fives(20);
  for (std::size_t i = 0; i < 20; ++i) fives[i] = static_cast<std::int64_t>(i % 5);
  for (double const count : frequencies(Stratified{.groups = fives, .count = 7}, 20, rounds, 7))
    CHECK(std::abs(count - rounds * probability) < 4.5 * std::sqrt(rounds * probability * (1 - probability)));
  // One client of two equal groups: neither is always first.
  auto const halves = frequencies(Stratified{.groups = {0, 1}, .count = 1}, 2, 1000, 1);
  CHECK(std::abs(halves[0] - 500) < 4.5 * std::sqrt(250));
}

TEST_CASE("availability-aware: only those that are there, alike, and a shortage is told") {
  auto const by_day = [](std::int64_t round, std::int64_t client) {
    return round < 10'000 ? client % 3 != 0 : client < 2;
  };
  std::vector<std::string> told;
  AvailabilityAware sampler{
      .available = by_day, .count = 4, .on_shortage = [&](std::string const& s) { told.push_back(s); }};
  int const rounds = 8000;
  auto const seen = frequencies(sampler, 12, rounds, 4);
  for (std::size_t client = 0; client < 12; ++client)
    if (client % 3 == 0)
      CHECK(seen[client] == 0);
    else
      CHECK(std::abs(seen[client] - 0.5 * rounds) < 4.5 * std::sqrt(0.25 * rounds));
  CHECK(told.empty());

  CHECK(sampler.sample(10'000, 12, 1) == Ids{0, 1});
  CHECK(sampler.available_clients(10'000, 12) == 2);
  REQUIRE(told.size() == 1);
  CHECK(told[0] ==
        "[fed] round 10000: 2 of 12 clients are available where 4 were to be sampled; the round goes on with those.");
  sampler.on_shortage = nullptr;
  CHECK(sampler.sample(10'000, 12, 1) == Ids{0, 1});
  sampler.on_too_few = Shortage::error;
  CHECK(has(refusal(sampler, 12, 10'000), "2 of 12 clients are available where 4 were to be sampled; sample fewer"));
  AvailabilityAware const nobody{.available = [](std::int64_t, std::int64_t) { return false; }, .count = 4};
  CHECK(nobody.sample(0, 12, 1).empty());
}

TEST_CASE("with everybody there availability-aware sampling is uniform sampling, draw for draw") {
  AvailabilityAware const sampler{.available = [](std::int64_t, std::int64_t) { return true; }, .count = 5};
  for (std::int64_t round = 0; round < 20; ++round)
    CHECK(sampler.sample(round, 30, 4) == Uniform{.count = 5}.sample(round, 30, 4));
}

TEST_CASE("what cannot be sampled is refused in a sentence") {
  CHECK(refusal(Uniform{.count = 41}, 40) ==
        "[fed] 41 clients to sample per round where there are 40; sample at most as many.");
  CHECK(refusal(Uniform{.count = 0}, 40) == "[fed] 0 clients to sample per round; sample at least 1.");
  CHECK(has(refusal(Uniform{.count = -3}, 40), "-3 clients"));
  CHECK(refusal(Uniform{}, 0) == "[fed] a round to sample from 0 clients; have at least 1 client.");
  CHECK(has(refusal(Uniform{}, 5, -1), "round -1"));
  CHECK(has(refusal(Poisson{}, 0), "0 clients"));
  for (double const rate : {0.0, -0.5, 1.5, std::numeric_limits<double>::infinity(), std::nan("")})
    CHECK(has(refusal(Poisson{.rate = rate}, 5), "a rate lies above 0 and at most at 1"));

  CHECK(has(refusal(Weighted{.weights = {1, 2}}, 3), "2 sampling weights for 3 clients; give one per client"));
  CHECK(has(refusal(Weighted{.weights = {1, -2, 1}}, 3), "client 1 has sampling weight -2"));
  CHECK(has(refusal(Weighted{.weights = {1, 1, std::nan("")}}, 3), "client 2 has sampling weight"));
  CHECK(has(refusal(Weighted{.weights = {1, 0, 1}, .count = 3}, 3),
            "3 clients to sample per round where 2 have a weight above 0"));
  CHECK(has(refusal(Weighted{.weights = {1, 1}, .count = 3}, 2), "where there are 2"));
  CHECK(has(refusal(Stratified{.groups = {1, 2}}, 3), "2 groups named for 3 clients"));
  CHECK(has(refusal(Stratified{.groups = {1, 2}, .count = 3}, 2), "where there are 2"));
  CHECK(has(refusal(AvailabilityAware{}, 2), "nobody to ask"));
}

TEST_CASE("a sampler of the user's is checked like ours") {
  struct Fixed {
    Ids ids;
    Ids sample(std::int64_t, std::size_t, std::uint64_t) const { return ids; }
  };
  static_assert(client_sampler<Fixed>);
  auto const why = [](Ids ids) {
    return what_of<ConfigError>([&] { (void)sample_clients(Fixed{std::move(ids)}, 0, 5, 0); });
  };
  CHECK(why({0, 3, 4}).empty());
  CHECK(why({}).empty());
  CHECK(has(why({0, 0}), "client 0 after 0"));
  CHECK(has(why({3, 1}), "client 1 after 3"));
  CHECK(has(why({5}), "client 5 after -1, of 5 clients"));
  CHECK(has(why({-1}), "client -1"));
}

TEST_CASE("a sampler chosen by name is the one of that name, and an unknown name lists those there are") {
  SamplerChoice const choice{.count = 3,
                             .rate = 0.3,
                             .weights = {1, 2, 3, 4, 5, 6},
                             .groups = {0, 0, 1, 1, 2, 2},
                             .available = [](std::int64_t, std::int64_t client) { return client > 1; }};
  auto const same = [&](std::string_view name, auto const& sampler) {
    for (std::int64_t round = 0; round < 10; ++round)
      CHECK(make_client_sampler(name, choice).sample(round, 6, 2) == sampler.sample(round, 6, 2));
  };
  same("uniform", Uniform{.count = 3});
  same("weighted", Weighted{.weights = choice.weights, .count = 3});
  same("poisson", Poisson{.rate = 0.3});
  same("stratified", Stratified{.groups = choice.groups, .count = 3});
  same("available", AvailabilityAware{.available = choice.available, .count = 3});
  CHECK(what_of<ConfigError>([] { (void)make_client_sampler("random"); }) ==
        "[fed] no client sampler is called 'random'; choose one of uniform, weighted, poisson, stratified, available.");
}
