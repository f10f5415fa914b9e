// SPDX-License-Identifier: MIT
#include "pardl/policy/shard.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

using pardl::Ranks;
using pardl::Remainder;
using pardl::Shard;

namespace {

std::vector<std::int64_t> positions(Shard const& shard) {
  std::vector<std::int64_t> list;
  for (std::int64_t i = 0; i < shard.size(); ++i) list.push_back(shard[i]);
  return list;
}

// The definition, written the long way: make the whole list, fill it up or cut it, take every ranks-th entry.
std::vector<std::int64_t> by_hand(std::int64_t samples, int rank, int ranks, Remainder remainder, std::int64_t skip) {
  std::vector<std::int64_t> all;
  for (std::int64_t p = std::min(skip, samples); p < samples; ++p) all.push_back(p);
  auto const n = static_cast<std::int64_t>(all.size());
  if (remainder == Remainder::drop) all.resize(static_cast<std::size_t>(n - n % ranks));
  if (remainder == Remainder::repeat)
    for (std::int64_t p = 0; n > 0 && all.size() % static_cast<std::size_t>(ranks) != 0; ++p)
      all.push_back(p % samples);
  std::vector<std::int64_t> mine;
  for (std::size_t i = static_cast<std::size_t>(rank); i < all.size(); i += static_cast<std::size_t>(ranks))
    mine.push_back(all[i]);
  return mine;
}

}  // namespace

TEST_CASE("a shard is every ranks-th position of the order, filled up, cut or kept") {
  for (auto const remainder : {Remainder::repeat, Remainder::drop, Remainder::keep})
    for (std::int64_t const samples : {0, 1, 2, 3, 7, 10, 64, 101})
      for (int const ranks : {1, 2, 3, 4, 5, 8, 13}) {
        std::int64_t sum = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          Shard const shard(samples, {rank, ranks}, remainder);
          CHECK(positions(shard) == by_hand(samples, rank, ranks, remainder, 0));
          sum += shard.size();
        }
        CHECK(sum == Shard(samples, {0, ranks}, remainder).total());
      }
}

TEST_CASE("with keep, every sample is on exactly one rank and shares differ by at most one") {
  for (std::int64_t const samples : {0, 1, 5, 16, 99})
    for (int const ranks : {1, 2, 4, 7}) {
      std::vector<int> seen(static_cast<std::size_t>(samples), 0);
      std::int64_t least = samples, most = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        Shard const shard(samples, {rank, ranks}, Remainder::keep);
        for (auto const position : positions(shard)) ++seen[static_cast<std::size_t>(position)];
        least = std::min(least, shard.size());
        most = std::max(most, shard.size());
      }
      CHECK(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
      CHECK(most - least <= 1);
    }
}

TEST_CASE("skipping a multiple of the ranks leaves each rank the rest of its own share") {
  for (auto const remainder : {Remainder::repeat, Remainder::drop, Remainder::keep})
    for (std::int64_t const samples : {7, 10, 64})
      for (int const ranks : {1, 2, 3, 4})
        for (std::int64_t rounds = 0; rounds * ranks <= Shard(samples, {0, ranks}, remainder).total(); ++rounds)
          for (int rank = 0; rank < ranks; ++rank) {
            Shard const whole(samples, {rank, ranks}, remainder);
            auto rest = positions(whole);
            rest.erase(rest.begin(), rest.begin() + std::min<std::int64_t>(rounds, whole.size()));
            CHECK(positions(whole.skip(rounds * ranks)) == rest);
          }
}

TEST_CASE("after a restart on another number of ranks the rest of the epoch is dealt out, each sample once") {
  std::int64_t const samples = 103, taken = 3 * 8;  // three ranks took eight each
  std::vector<int> seen(samples, 0);
  for (int rank = 0; rank < 5; ++rank) {
    auto const rest = Shard(samples, {rank, 5}, Remainder::keep).skip(taken);
    CHECK(positions(rest) == by_hand(samples, rank, 5, Remainder::keep, taken));
    for (auto const position : positions(rest)) ++seen[static_cast<std::size_t>(position)];
    CHECK(positions(Shard(samples, {rank, 5}).skip(taken)) == by_hand(samples, rank, 5, Remainder::repeat, taken));
  }
  for (std::size_t p = 0; p < seen.size(); ++p) CHECK(seen[p] == (p < taken ? 0 : 1));
}

TEST_CASE("skips add up") {
  Shard const shard(100, {2, 4});
  CHECK(positions(shard.skip(8).skip(12)) == positions(shard.skip(20)));
  CHECK(shard.skip(100).size() == 0);
  CHECK(Shard(10, {0, 4}).skip(12).size() == 0);  // the repeated samples count as taken, too
}

TEST_CASE("what cannot be is refused in a sentence") {
  CHECK_THROWS_WITH_AS(Shard(-1, {0, 2}), "[shard] rank 0/2: -1 samples to share; a data set has 0 samples or more.",
                       pardl::ConfigError);
  CHECK_THROWS_AS((void)Shard(10, {0, 4}).skip(-1), pardl::ConfigError);
  CHECK_THROWS_AS((void)Shard(10, {0, 4}).skip(13), pardl::ConfigError);
  CHECK_THROWS_AS((void)Shard(10, {0, 4}, Remainder::drop).skip(11), pardl::ConfigError);
  CHECK_THROWS_AS((void)Shard(10, {0, 4}).skip(8).skip(5), pardl::ConfigError);
}

static_assert(Shard(1, {4, 5}).size() == 1 && Shard(1, {4, 5})[0] == 0,
              "more ranks than samples: the one sample for all");
static_assert(Shard(0, {0, 3}).size() == 0 && Shard(0, {0, 3}).total() == 0);
static_assert(Shard(10, {1, 4}).skip(4)[0] == 5);
