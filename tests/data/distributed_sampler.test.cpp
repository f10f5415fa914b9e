// SPDX-License-Identifier: MIT
#include "pardl/data/distributed_sampler.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <optional>
#include <ranges>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "support/golden.hpp"

using pardl::DistributedSampler;
using pardl::RandomSampler;
using pardl::SequentialSampler;

namespace {

using Indices = std::vector<std::int64_t>;

Indices list(pardl::index_range auto const& range) {
  Indices all(std::ranges::begin(range), std::ranges::end(range));
  CHECK(all.size() == std::ranges::size(range));
  return all;
}

// FNV-1a over the little-endian bytes, as generate.py computes it for lists too long to keep.
std::uint64_t fnv(Indices const& numbers) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (std::int64_t const number : numbers)
    for (int byte = 0; byte < 8; ++byte)
      hash = (hash ^ ((static_cast<std::uint64_t>(number) >> (8 * byte)) & 0xff)) * 0x100000001b3;
  return hash;
}

struct Member {  // of a group: anything ranked will do
  int rank_, size_;
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return size_; }
};

}  // namespace

TEST_CASE("every rank's indices are Python's DistributedSampler's, and the random sampler's are RandomSampler's") {
  std::size_t lists = 0, hashes = 0, randoms = 0;
  for (auto const& record : pardl::testing::golden("sampler.txt")) {
    if (record.words.at(0) == "random") {
      ++randoms;
      RandomSampler const sampler{record.integer(4),
                                  {.replacement = record.integer(1) == 1,
                                   .num_samples = record.integer(5),
                                   .seed = static_cast<std::uint64_t>(record.integer(2))}};
      CHECK(list(sampler.indices(record.integer(3))) == record.integers());
      continue;
    }
    DistributedSampler const sampler{record.integer(5),
                                     {static_cast<int>(record.integer(7)), static_cast<int>(record.integer(6))},
                                     {.shuffle = record.integer(1) == 1,
                                      .drop_last = record.integer(2) == 1,
                                      .seed = static_cast<std::uint64_t>(record.integer(3))}};
    auto const ours = list(sampler.indices(record.integer(4)));
    CHECK(static_cast<std::int64_t>(ours.size()) == sampler.size());
    if (record.words[0] == "distributed") {
      ++lists;
      CHECK(ours == record.integers());
    } else {
      ++hashes;
      CHECK(std::to_string(ours.size()) == record.values.at(0));
      CHECK(std::to_string(fnv(ours)) == record.values.at(1));
    }
  }
  CHECK(lists == 1748);
  CHECK(hashes == 552);
  CHECK(randoms == 76);
}

TEST_CASE("a range outlives its sampler, and threads read on while the next epochs are made") {
  std::optional<DistributedSampler> sampler{std::in_place, 5000, pardl::Ranks{1, 2},
                                            pardl::DistributedSamplerOptions{.seed = 3}};
  auto const expected = list(sampler->indices(0));
  std::vector<std::thread> readers;
  std::vector<Indices> read(4);
  for (auto& mine : read)
    readers.emplace_back([&mine, indices = sampler->indices(0)] {
      for (int pass = 0; pass < 20; ++pass) mine.assign(indices.begin(), indices.end());
    });
  for (std::int64_t epoch = 1; epoch < 20; ++epoch) CHECK(list(sampler->indices(epoch)) != expected);
  sampler.reset();
  for (auto& reader : readers) reader.join();
  for (auto const& mine : read) CHECK(mine == expected);
}

TEST_CASE("a pipeline of views built on an epoch keeps the permutation alive") {
  auto const sampler = DistributedSampler{100, {0, 1}, {.seed = 9}};
  auto const expected = list(sampler.indices(2));
  auto doubled = [&] {
    return DistributedSampler{100, {0, 1}, {.seed = 9}}.indices(2) |
           std::views::transform([](auto i) { return 2 * i; });
  }();
  Indices halves;
  for (auto const i : doubled) halves.push_back(i / 2);
  CHECK(halves == expected);
}

TEST_CASE("for evaluation the split is exact: all ranks together see every sample once") {
  for (std::int64_t const size : {0, 1, 3, 10, 97})
    for (int const ranks : {1, 2, 4, 5})
      for (bool const shuffle : {false, true}) {
        Indices all;
        for (int rank = 0; rank < ranks; ++rank) {
          DistributedSampler const sampler{size, {rank, ranks}, {.shuffle = shuffle, .exact = true}};
          auto const mine = list(sampler.indices(0));
          all.insert(all.end(), mine.begin(), mine.end());
          CHECK(sampler.total() == size);
          CHECK(sampler.size() - size / ranks <= 1);
        }
        std::ranges::sort(all);
        Indices every(static_cast<std::size_t>(size));
        std::iota(every.begin(), every.end(), 0);
        CHECK(all == every);
      }
}

TEST_CASE("skip goes on in the middle of an epoch, with the same and with another number of ranks") {
  DistributedSampler const sampler{50, {1, 4}, {.seed = 5}};
  auto rest = list(sampler.indices(3));
  rest.erase(rest.begin(), rest.begin() + 6);
  CHECK(list(sampler.skip(24).indices(3)) == rest);
  CHECK(sampler.skip(24).size() == 7);

  Indices all, once = list(DistributedSampler{50, {0, 1}, {.seed = 5}}.indices(3));
  for (int rank = 0; rank < 3; ++rank) {
    auto const mine = list(DistributedSampler{50, {rank, 3}, {.exact = true, .seed = 5}}.skip(24).indices(3));
    all.insert(all.end(), mine.begin(), mine.end());
  }
  once.erase(once.begin(), once.begin() + 24);
  std::ranges::sort(all);
  std::ranges::sort(once);
  CHECK(all == once);

  RandomSampler const random{20, {.seed = 1}};
  auto tail = list(random.indices(0));
  tail.erase(tail.begin(), tail.begin() + 8);
  CHECK(list(random.skip(8).indices(0)) == tail);
  CHECK(list(SequentialSampler{5}.skip(3).indices(0)) == Indices{3, 4});
  CHECK_THROWS_AS((void)sampler.skip(53), pardl::ConfigError);
}

TEST_CASE("the range is random access") {
  auto const range = DistributedSampler{10, {1, 3}, {.shuffle = false}}.indices(0);  // 1 4 7 0
  CHECK(range[2] == 7);
  CHECK(range.front() == 1);
  CHECK(range.back() == 0);
  CHECK(range.end() - range.begin() == 4);
  auto i = range.begin() + 3;
  CHECK(*i-- == 0);
  CHECK(*i == 7);
  CHECK(i[-1] == 4);
  CHECK(range.begin() < i);
  CHECK((range | std::views::drop(2) | std::views::take(1)).front() == 7);
}

TEST_CASE("the group is anything ranked, or {rank, ranks}; the size any integer") {
  Indices const expected{1, 5, 9};
  pardl::DistributedSamplerOptions const plain{.shuffle = false};
  std::vector<int> const dataset(10);
  CHECK(list(DistributedSampler{dataset.size(), {1, 4}, plain}.indices(0)) == expected);
  CHECK(list(DistributedSampler{10U, Member{1, 4}, plain}.indices(0)) == expected);
  CHECK(list(DistributedSampler{10, pardl::Ranks{1, 4}, {.shuffle = false}}.indices(0)) == expected);
  DistributedSampler const defaults{10, {1, 4}};
  CHECK(defaults.options().shuffle);
}

TEST_CASE("options that cannot be are refused in a sentence") {
  CHECK_THROWS_WITH_AS(
      (DistributedSampler{10, {1, 4}, {.drop_last = true, .exact = true}}),
      "[sampler] rank 1/4: DistributedSampler with both drop_last and exact; drop_last leaves samples out and "
      "exact leaves none out: choose one.",
      pardl::ConfigError);
  CHECK_THROWS_AS((DistributedSampler{-1, {0, 1}}), pardl::ConfigError);
  CHECK_THROWS_AS((DistributedSampler{10, {4, 4}}), pardl::ConfigError);
  CHECK_THROWS_AS((RandomSampler{0, {.num_samples = 3}}), pardl::ConfigError);
  CHECK_THROWS_AS((RandomSampler{5, {.num_samples = -2}}), pardl::ConfigError);
  CHECK(list(RandomSampler{0}.indices(0)).empty());
}

namespace {
struct BorrowingSampler {
  std::vector<std::int64_t> order;
  [[nodiscard]] std::span<std::int64_t const> indices(std::int64_t) const { return order; }
};
struct ReferringSampler {
  std::vector<std::int64_t> order;
  [[nodiscard]] std::vector<std::int64_t> const& indices(std::int64_t) const { return order; }
};
struct OwningSampler {
  [[nodiscard]] std::vector<std::int64_t> indices(std::int64_t epoch) const { return {epoch}; }
};
struct CountingSampler {
  [[nodiscard]] auto indices(std::int64_t) const { return std::views::iota(std::int64_t{0}, std::int64_t{4}); }
};
}  // namespace
static_assert(pardl::sampler<OwningSampler> && pardl::sampler<CountingSampler>);
static_assert(!pardl::sampler<BorrowingSampler> && !pardl::sampler<ReferringSampler>,
              "the next epoch would overwrite it");
static_assert(!pardl::resumable_sampler<OwningSampler>);
