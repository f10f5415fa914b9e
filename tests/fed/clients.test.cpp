// SPDX-License-Identifier: MIT
#include "pardl/fed/clients.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "pardl/policy/error.hpp"

using namespace pardl;
using fed::Fractions;

namespace {

using Numbers = std::vector<std::int64_t>;

/// Clients with these counts of samples, numbered through.
fed::Partition clients_of(std::vector<std::int64_t> const& counts) {
  fed::Partition partition;
  std::int64_t next = 0;
  for (auto const count : counts) {
    Numbers numbers(static_cast<std::size_t>(count));
    std::iota(numbers.begin(), numbers.end(), next);
    next += count;
    partition.push_back(std::move(numbers));
  }
  return partition;
}

std::vector<std::size_t> sizes(fed::Shares const& shares) {
  return {shares.train.size(), shares.val.size(), shares.test.size()};
}

std::vector<std::size_t> sizes_of(std::int64_t samples, Fractions const& fractions) {
  return sizes(fed::split_shares(clients_of({samples}), fractions, 0)[0]);
}

}  // namespace

TEST_CASE("shares are as large as scikit-learn's train_test_split, applied twice, makes them") {
  // floor(train n); floor(val / (1 - train) rest); the rest.
  using S = std::vector<std::size_t>;
  Fractions const seed{.train = 0.6, .val = 0.2, .test = 0.2}, usual{};
  CHECK(sizes_of(100, seed) == S{60, 20, 20});
  CHECK(sizes_of(10, seed) == S{6, 2, 2});
  CHECK(sizes_of(11, seed) == S{6, 2, 3});
  CHECK(sizes_of(12, seed) == S{7, 2, 3});
  CHECK(sizes_of(9, seed) == S{5, 2, 2});
  CHECK(sizes_of(7, seed) == S{4, 1, 2});
  CHECK(sizes_of(2, seed) == S{1, 0, 1});
  CHECK(sizes_of(3, seed) == S{1, 1, 1});
  CHECK(sizes_of(227, usual) == S{181, 23, 23});
  CHECK(sizes_of(19, usual) == S{15, 2, 2});
  CHECK(sizes_of(10, {.train = 0.9, .val = 0, .test = 0.1}) == S{9, 0, 1});
  CHECK(sizes_of(10, {.train = 1, .val = 0, .test = 0}) == S{10, 0, 0});
  CHECK(sizes_of(10, {.train = 0.7, .val = 0.3, .test = 0}) == S{7, 3, 0});
}

TEST_CASE("a sample is not lost because a fraction is not exact in binary") {
  CHECK(0.29 * 100 < 29);  // why
  CHECK(sizes_of(100, {.train = 0.29, .val = 0.71, .test = 0}) == std::vector<std::size_t>{29, 71, 0});
  CHECK(sizes_of(90, {.train = 0.7, .val = 0.2, .test = 0.1}) == std::vector<std::size_t>{63, 18, 9});
  CHECK(sizes_of(1000, {.train = 0.7, .val = 0.3, .test = 0}) == std::vector<std::size_t>{700, 300, 0});
}

TEST_CASE("fractions below 1 in sum leave samples unused") {
  CHECK(sizes_of(100, {.train = 0.5, .val = 0.1, .test = 0.2}) == std::vector<std::size_t>{50, 10, 20});
  CHECK(sizes_of(9, {.train = 0.5, .val = 0, .test = 0}) == std::vector<std::size_t>{4, 0, 0});
}

TEST_CASE("each client's shares are ascending, disjoint and cover its samples, and are drawn, not cut off") {
  auto const partition = clients_of({100, 7, 33, 500});
  auto const clients = fed::split_shares(partition, {.train = 0.6, .val = 0.2, .test = 0.2}, 12345);
  REQUIRE(clients.size() == 4);
  for (std::size_t c = 0; c < clients.size(); ++c) {
    Numbers all;
    for (auto const* share : {&clients[c].train, &clients[c].val, &clients[c].test}) {
      CHECK(std::ranges::is_sorted(*share));
      all.insert(all.end(), share->begin(), share->end());
    }
    std::ranges::sort(all);
    CHECK(all == partition[c]);
  }
  CHECK(clients[0].train.back() >= 60);  // 60 of 100 in order would end at 59
  CHECK(clients[0].test.front() < 80);
}

TEST_CASE("every sample is as likely in each share") {
  // 2000 seeds of one client of 10: train holds each sample 1200 times, deviation 22.
  std::vector<int> times(10);
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    auto const clients = fed::split_shares(clients_of({10}), {.train = 0.6, .val = 0.2, .test = 0.2}, seed);
    for (auto const sample : clients[0].train) ++times[static_cast<std::size_t>(sample)];
  }
  for (int const count : times) CHECK(std::abs(count - 1200) < 110);
}

TEST_CASE("shares depend on the seed, the client's number and its samples, and on nothing else") {
  Fractions const f{.train = 0.6, .val = 0.2, .test = 0.2};
  auto const same = [](fed::Shares const& a, fed::Shares const& b) {
    return a.train == b.train && a.val == b.val && a.test == b.test;
  };
  auto const three = fed::split_shares(clients_of({50, 50, 50}), f, 7);
  auto const two = fed::split_shares(clients_of({50, 50}), f, 7);
  CHECK(same(three[0], two[0]));
  CHECK(same(three[1], two[1]));
  auto const again = fed::split_shares(clients_of({50, 50}), f, 8);
  CHECK_FALSE(same(two[0], again[0]));
  auto shifted = three[1].train;  // the second client's samples start at 50: not the first one's draw again
  for (auto& sample : shifted) sample -= 50;
  CHECK(shifted != three[0].train);
}

TEST_CASE("a client that is left without training samples is named, by its name where there is one") {
  auto const partition = clients_of({10, 1, 10});
  std::vector<std::string> const names{"f0000_14", "f0001_41", "f0005_26"};
  CHECK_THROWS_WITH_AS(
      (void)fed::split_shares(partition, {.train = 0.6, .val = 0.2, .test = 0.2}, 0, names),
      "[fed] client 1 (f0001_41) has 1 samples, of which a share of 0.600000 leaves none to train on; give it more "
      "samples, or raise the training share.",
      DataError);
  CHECK_THROWS_WITH_AS((void)fed::split_shares(clients_of({5, 5, 0}), {.train = 1, .val = 0, .test = 0}, 0),
                       doctest::Contains("client 2 has 0 samples"), DataError);
}

TEST_CASE("fractions that cannot be right are refused") {
  double const nan = std::numeric_limits<double>::quiet_NaN();
  for (auto const& f :
       {Fractions{.train = 0.8, .val = 0.2, .test = 0.1}, Fractions{.train = -0.1, .val = 0.5, .test = 0.5},
        Fractions{.train = 1.1, .val = 0, .test = 0}, Fractions{.train = 0, .val = 0.5, .test = 0.5},
        Fractions{.train = nan, .val = 0.1, .test = 0.1}, Fractions{.train = 0.8, .val = nan, .test = 0.1},
        Fractions{.train = 0.8, .val = 0.1, .test = -0.1}})
    CHECK_THROWS_AS((void)fed::split_shares(clients_of({10}), f, 0), ConfigError);
  CHECK(sizes_of(10, {.train = 0.1 + 0.2, .val = 0.3, .test = 0.4}) == std::vector<std::size_t>{3, 3, 4});
}

TEST_CASE("a common validation and test set is every client's") {
  auto const clients = fed::with_common_evaluation(clients_of({3, 2}), {5, 6}, {7});
  REQUIRE(clients.size() == 2);
  CHECK(clients[0].train == Numbers{0, 1, 2});
  CHECK(clients[1].train == Numbers{3, 4});
  for (auto const& client : clients) {
    CHECK(client.val == Numbers{5, 6});
    CHECK(client.test == Numbers{7});
  }
  CHECK_THROWS_WITH_AS((void)fed::with_common_evaluation(clients_of({3, 0}), {}, {}),
                       doctest::Contains("client 1 has no training samples"), DataError);
}
