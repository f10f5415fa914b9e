// SPDX-License-Identifier: MIT
#include "pardl/fed/partition.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/fed/any_partitioner.hpp"
#include "support/temporary_folder.hpp"

using namespace pardl::fed;
using pardl::ConfigError;
using pardl::testing::what_of;

namespace {

using Labels = std::vector<std::int64_t>;

/// `per_class` samples of each class, in mixed order.
Labels even_labels(std::size_t classes, std::size_t per_class) {
  Labels labels;
  for (std::size_t c = 0; c < classes; ++c) labels.insert(labels.end(), per_class, static_cast<std::int64_t>(c));
  Draws(77).shuffle(labels);
  return labels;
}

std::map<std::int64_t, std::int64_t> histogram(std::vector<std::int64_t> const& samples, Labels const& labels) {
  std::map<std::int64_t, std::int64_t> counts;
  for (std::int64_t const sample : samples) ++counts[labels[static_cast<std::size_t>(sample)]];
  return counts;
}

bool covers(Partition const& partition, std::size_t samples) {
  check_partition(partition, samples);  // ascending, disjoint, within range
  std::size_t total = 0;
  for (auto const& client : partition) total += client.size();
  return total == samples;
}

std::size_t fewest(Partition const& partition) {
  std::size_t least = partition.front().size();
  for (auto const& client : partition) least = std::min(least, client.size());
  return least;
}
std::size_t most(Partition const& partition) {
  std::size_t largest = 0;
  for (auto const& client : partition) largest = std::max(largest, client.size());
  return largest;
}

/// FNV-1a over clients' lists and their lengths: one number for a partition too long to keep.
std::uint64_t digest(Partition const& partition) {
  std::uint64_t h = 0xCBF29CE484222325ULL;
  auto const take = [&](std::uint64_t value) {
    for (int byte = 0; byte < 8; ++byte, value >>= 8) h = (h ^ (value & 0xff)) * 0x100000001B3ULL;
  };
  for (auto const& client : partition) {
    take(client.size());
    for (std::int64_t const sample : client) take(static_cast<std::uint64_t>(sample));
  }
  return h;
}

struct Case {
  std::string_view name;
  any_partitioner partitioner;
  std::uint64_t digest;  // of 1003 samples of 10 classes among 20 clients with seed 5
};

std::vector<Case> cases() {
  return {
      {"Iid", Iid{}, 0x98a24d7b87e3d176ULL},
      {"Dirichlet", Dirichlet{.alpha = 0.3}, 0x4ed2580faddd0ef0ULL},
      {"Dirichlet as drawn", Dirichlet{.alpha = 0.3, .balanced = false}, 0xaf80c1f40c61418eULL},
      {"DirichletQuantity", DirichletQuantity{.alpha = 0.3}, 0xe2882bc82cd7c326ULL},
      {"LogNormalQuantity", LogNormalQuantity{.sigma = 1.5}, 0xe4cae510de135b75ULL},
      {"Pathological", Pathological{.classes_per_client = 3}, 0x73c9c2d05e216ea0ULL},
      {"Shards", Shards{}, 0xd9829e37187d2fc6ULL},
  };
}

Labels labels_1003() {
  Labels labels = even_labels(10, 100);
  labels.insert(labels.end(), {3, 3, 9});
  return labels;
}

std::string refusal(any_partitioner const& p, Labels const& labels, std::size_t clients) {
  return what_of<ConfigError>([&] { (void)p.split(labels, clients, 1); });
}

}  // namespace

TEST_CASE("every partitioner covers all samples once, is a function of its seed, and is the same on every machine") {
  Labels const labels = labels_1003();
  for (auto const& c : cases()) {
    CAPTURE(c.name);
    auto const partition = make_partition(c.partitioner, labels, 20, 5);
    CHECK(partition.size() == 20);
    CHECK(covers(partition, labels.size()));
    CHECK(fewest(partition) >= 1);
    CHECK(partition == c.partitioner.split(labels, 20, 5));
    CHECK(partition != c.partitioner.split(labels, 20, 6));
    CHECK(digest(partition) == c.digest);
  }
}

TEST_CASE("partitioners take labels of any value, one client, and as many clients as samples") {
  Labels labels = labels_1003();
  for (std::int64_t& label : labels) label = label * 1'000'000'007 - 5;
  Labels const alike(12, 4);
  for (auto const& c : cases()) {
    CAPTURE(c.name);
    CHECK(covers(c.partitioner.split(labels, 20, 5), labels.size()));
    if (c.name != "Pathological") {
      auto const everything = c.partitioner.split(labels, 1, 5);
      CHECK(everything.size() == 1);
      CHECK(everything[0].size() == labels.size());
      CHECK(covers(c.partitioner.split(alike, 2, 5), alike.size()));  // one class only
    }
  }
  for (any_partitioner const& p :
       {any_partitioner(Iid{}), any_partitioner(DirichletQuantity{}), any_partitioner(LogNormalQuantity{}),
        any_partitioner(Shards{.shards_per_client = 1})})
    CHECK(most(p.split(alike, 12, 5)) == 1);
}

TEST_CASE("IID shares are equal and hold every class as often as chance says") {
  Labels const labels = even_labels(10, 1000);
  auto const partition = Iid{}.split(labels, 7, 3);
  CHECK(most(partition) - fewest(partition) == 1);
  double chi = 0;
  for (auto const& client : partition) {
    auto counts = histogram(client, labels);
    double const expected = static_cast<double>(client.size()) / 10;
    for (std::int64_t c = 0; c < 10; ++c) chi += std::pow(static_cast<double>(counts[c]) - expected, 2) / expected;
  }
  CHECK(chi < 54 + 5 * std::sqrt(108.0));  // 6 x 9 degrees of freedom
  CHECK(chi > 54 - 5 * std::sqrt(108.0));
}

TEST_CASE("a Dirichlet partition with a large alpha is uniform") {
  Labels const labels = even_labels(10, 1000);
  for (bool const balanced : {false, true}) {
    auto const partition = Dirichlet{.alpha = 1e9, .balanced = balanced}.split(labels, 8, 3);
    for (auto const& client : partition)
      for (auto const& [label, count] : histogram(client, labels)) CHECK(std::abs(count - 125) <= 2);
  }
}

TEST_CASE(
    "a Dirichlet partition with a small alpha gives every class to one client, and balanced every client one class") {
  Labels const labels = even_labels(10, 100);
  auto const as_drawn = Dirichlet{.alpha = 1e-6, .min_samples = 0, .balanced = false}.split(labels, 10, 3);
  CHECK(covers(as_drawn, labels.size()));
  std::size_t held = 0;
  for (auto const& client : as_drawn) held += histogram(client, labels).size();
  CHECK(held == 10);
  auto const balanced = Dirichlet{.alpha = 1e-6}.split(labels, 10, 3);
  for (auto const& client : balanced) CHECK(histogram(client, labels).size() == 1);
}

TEST_CASE("Dirichlet proportions of a class have the variance of the distribution") {
  // The share of one client in a class is Beta(alpha, (n-1) alpha): mean 1/n, variance (n-1) / (n² (n alpha + 1)).
  Labels const labels = even_labels(1, 5000);
  double const alpha = 0.7;
  std::size_t const clients = 5;
  double sum = 0, squares = 0;
  int const seeds = 600;
  for (std::uint64_t seed = 0; seed < seeds; ++seed)
    for (auto const& client :
         Dirichlet{.alpha = alpha, .min_samples = 0, .balanced = false}.split(labels, clients, seed)) {
      double const share = static_cast<double>(client.size()) / 5000;
      sum += share;
      squares += share * share;
    }
  double const mean = sum / (seeds * 5), variance = squares / (seeds * 5) - mean * mean;
  CHECK(mean == doctest::Approx(0.2));
  CHECK(variance == doctest::Approx(4 / (25 * (5 * alpha + 1))).epsilon(0.08));
}

TEST_CASE("balanced Dirichlet: a client that has its even share gets none of the classes that follow") {
  Labels const labels = even_labels(20, 100);
  auto const partition = Dirichlet{.alpha = 0.2, .min_samples = 0}.split(labels, 10, 9);
  for (auto const& client : partition) {
    // Classes come in ascending order: before the last one that it got, it was below 200 samples.
    auto const counts = histogram(client, labels);
    if (counts.empty()) continue;
    CHECK(static_cast<std::int64_t>(client.size()) - counts.rbegin()->second < 200);
  }
  auto const as_drawn = Dirichlet{.alpha = 0.2, .min_samples = 0, .balanced = false}.split(labels, 10, 9);
  CHECK(most(partition) < most(as_drawn));
}

TEST_CASE("a Dirichlet partition honours the minimum or says what to change") {
  Labels const labels = even_labels(10, 100);
  for (std::uint64_t seed = 0; seed < 20; ++seed)
    CHECK(fewest(Dirichlet{.alpha = 0.5, .min_samples = 25}.split(labels, 20, seed)) >= 25);
  auto const sentence =
      refusal(Dirichlet{.alpha = 0.001, .min_samples = 40, .balanced = false, .attempts = 7}, labels, 20);
  CHECK(
      sentence.find("alpha 0.001000) of 1000 samples left one of 20 clients with 0 samples or fewer, where min_samples "
                    "is 40, in each of 7 attempts; raise alpha, lower min_samples, take fewer clients, set balanced") !=
      std::string::npos);
}

TEST_CASE("quantity skew: minimum for all, the rest by proportion, labels as chance says") {
  Labels const labels = even_labels(10, 1000);
  for (any_partitioner const& p : {any_partitioner(DirichletQuantity{.alpha = 0.2, .min_samples = 30}),
                                   any_partitioner(LogNormalQuantity{.sigma = 2, .min_samples = 30})}) {
    auto const partition = p.split(labels, 50, 4);
    CHECK(covers(partition, labels.size()));
    CHECK(fewest(partition) >= 30);
    CHECK(most(partition) > 600);  // 200 would be even
    auto const largest = std::max_element(partition.begin(), partition.end(),
                                          [](auto const& a, auto const& b) { return a.size() < b.size(); });
    for (auto const& [label, count] : histogram(*largest, labels))
      CHECK(static_cast<double>(count) == doctest::Approx(static_cast<double>(largest->size()) / 10).epsilon(0.35));
  }
  auto const even = LogNormalQuantity{.sigma = 0}.split(labels, 40, 4);
  CHECK(most(even) - fewest(even) <= 1);
  auto const nearly = DirichletQuantity{.alpha = 1e9}.split(labels, 40, 4);
  CHECK(most(nearly) - fewest(nearly) <= 2);
}

TEST_CASE("log-normal sizes have the spread that was asked for") {
  Labels const labels(2'000'000, 0);
  auto const partition = LogNormalQuantity{.sigma = 0.5, .min_samples = 0}.split(labels, 2000, 4);
  double sum = 0, squares = 0;
  for (auto const& client : partition) {
    double const logarithm = std::log(static_cast<double>(client.size()));
    sum += logarithm / 2000;
    squares += logarithm * logarithm / 2000;
  }
  CHECK(std::sqrt(squares - sum * sum) == doctest::Approx(0.5).epsilon(0.05));
}

TEST_CASE("pathological clients have exactly so many classes, and classes as many holders as each other") {
  for (std::size_t k = 1; k <= 10; ++k) {
    CAPTURE(k);
    Labels const labels = labels_1003();
    auto const partition = Pathological{.classes_per_client = k}.split(labels, 23, 8);
    CHECK(covers(partition, labels.size()));
    std::map<std::int64_t, std::size_t> holders;
    std::map<std::int64_t, std::vector<std::int64_t>> parts;
    for (auto const& client : partition) {
      auto const counts = histogram(client, labels);
      CHECK(counts.size() == k);
      for (auto const& [label, count] : counts) {
        ++holders[label];
        parts[label].push_back(count);
      }
    }
    for (auto const& [label, count] : holders)
      CHECK(std::abs(static_cast<double>(count) - 2.3 * static_cast<double>(k)) < 1);
    for (auto const& [label, sizes] : parts)
      CHECK(*std::max_element(sizes.begin(), sizes.end()) - *std::min_element(sizes.begin(), sizes.end()) <= 1);
  }
}

TEST_CASE("pathological clients combine classes at random") {
  Labels const labels = even_labels(10, 100);
  std::set<std::set<std::int64_t>> combinations;
  for (auto const& client : Pathological{}.split(labels, 100, 8)) {
    std::set<std::int64_t> mine;
    for (auto const& [label, count] : histogram(client, labels)) mine.insert(label);
    combinations.insert(mine);
  }
  CHECK(combinations.size() > 25);  // of 45 pairs
}

TEST_CASE("shards: equal sizes, few classes each") {
  Labels const labels = even_labels(10, 200);
  auto const partition = Shards{}.split(labels, 20, 8);  // 40 shards of 50: none crosses a class
  std::size_t two = 0;
  for (auto const& client : partition) {
    CHECK(client.size() == 100);
    auto const classes = histogram(client, labels).size();
    CHECK(classes <= 2);
    two += classes == 2;
  }
  CHECK(two > 10);
  auto const one = Shards{.shards_per_client = 1}.split(labels, 10, 8);
  for (auto const& client : one) CHECK(histogram(client, labels).size() == 1);
}

TEST_CASE("by owner: one client per owner, in ascending order") {
  Labels const owner{30, -4, 30, 7, 7, 7};
  Partition const expected{{1}, {3, 4, 5}, {0, 2}};
  CHECK(by_owner(owner) == expected);
  Labels const labels(6, 0);
  CHECK(ByOwner{.owner = owner}.split(labels, 3, 1) == expected);
  CHECK(ByOwner{.owner = owner, .drop_others = true}.split(labels, 2, 1) == Partition{{1}, {3, 4, 5}});
  CHECK(refusal(ByOwner{.owner = owner}, labels, 2) ==
        "[fed] 2 clients by owner where the samples have 3 owners; take as many clients, or set drop_others.");
  CHECK(refusal(ByOwner{.owner = owner, .drop_others = true}, labels, 4) ==
        "[fed] 4 clients by owner where the samples have 3 owners; take at most as many clients as there are owners.");
  CHECK(refusal(ByOwner{.owner = {1, 2}}, labels, 2).find("2 owners for 6 samples") != std::string::npos);
  CHECK(refusal(ByOwner{.owner = owner, .min_samples = 2}, labels, 3).find("leaves client 0 with 1 samples") !=
        std::string::npos);
  CHECK(what_of<ConfigError>([] { (void)by_owner({}); }).find("no samples") != std::string::npos);
}

TEST_CASE("what no partitioner can do is refused in a sentence") {
  Labels const labels = even_labels(10, 10);
  for (auto const& c : cases()) {
    CAPTURE(c.name);
    CHECK(refusal(c.partitioner, {}, 3).find("of no samples: the list of labels is empty; load the data first") !=
          std::string::npos);
    CHECK(refusal(c.partitioner, labels, 0).find("among 0 clients; take at least 1") != std::string::npos);
    CHECK(refusal(c.partitioner, labels, 101)
              .find("of 100 samples among 101 clients cannot give each at least 1; take fewer clients.") !=
          std::string::npos);
  }
  CHECK(refusal(Iid{.min_samples = 30}, labels, 4).find("each at least 30; take fewer clients or lower min_samples") !=
        std::string::npos);
  CHECK(refusal(Iid{.min_samples = -1}, labels, 4).find("min_samples -1") != std::string::npos);
  CHECK(Iid{.min_samples = 0}.split(labels, 101, 1).back().empty());  // asked for
  double const infinite = std::numeric_limits<double>::infinity();
  for (double const alpha : {0.0, -0.5, infinite, std::nan("")}) {
    CHECK(refusal(Dirichlet{.alpha = alpha}, labels, 4).find("alpha is a finite number above 0") != std::string::npos);
    CHECK(refusal(DirichletQuantity{.alpha = alpha}, labels, 4).find("alpha is a finite number above 0") !=
          std::string::npos);
  }
  for (double const sigma : {-0.1, infinite, std::nan("")})
    CHECK(refusal(LogNormalQuantity{.sigma = sigma}, labels, 4).find("sigma is a finite number, 0 or above") !=
          std::string::npos);
  CHECK(refusal(Dirichlet{.attempts = 0}, labels, 4).find("0 attempts") != std::string::npos);
  CHECK(refusal(Pathological{.classes_per_client = 11}, labels, 4) ==
        "[fed] a pathological partition with 11 classes per client where the labels hold 10; choose 1 to 10.");
  CHECK(refusal(Pathological{.classes_per_client = 0}, labels, 4).find("choose 1 to 10") != std::string::npos);
  CHECK(refusal(Pathological{.classes_per_client = 2}, labels, 4).find("leave some of the 10 classes to nobody") !=
        std::string::npos);
  CHECK(refusal(Pathological{.classes_per_client = 5}, labels, 40).find("20 clients share the 10 samples of class 0") !=
        std::string::npos);
  CHECK(refusal(Pathological{.classes_per_client = 1, .min_samples = 8}, labels, 12).find("min_samples is 8") !=
        std::string::npos);
  CHECK(refusal(Shards{.shards_per_client = 3}, labels, 40).find("into 3 shards for each of 40 clients") !=
        std::string::npos);
  CHECK(refusal(Shards{.shards_per_client = 0}, labels, 40).find("choose 1 shard or more") != std::string::npos);
}

TEST_CASE("a partitioner of the user's is checked like ours") {
  struct Fixed {
    Partition partition;
    Partition split(std::span<std::int64_t const>, std::size_t, std::uint64_t) const { return partition; }
  };
  static_assert(partitioner<Fixed>);
  Labels const labels(4, 0);
  auto const why = [&](Partition partition) {
    return what_of<ConfigError>([&] { (void)make_partition(Fixed{std::move(partition)}, labels, 2, 0); });
  };
  CHECK(why({{0, 1}, {3}}).empty());  // need not cover
  CHECK(why({{0, 1}}).find("1 clients where 2 were asked for") != std::string::npos);
  CHECK(why({{0, 1}, {1, 3}}).find("client 1 has sample 1, which another client has") != std::string::npos);
  CHECK(why({{0, 1}, {3, 2}}).find("lists sample 2 after 3") != std::string::npos);
  CHECK(why({{0, 0}, {3}}).find("lists sample 0 after 0") != std::string::npos);
  CHECK(why({{0, 4}, {3}}).find("has sample 4 of 4") != std::string::npos);
  CHECK(why({{-1}, {3}}).find("has sample -1 of 4") != std::string::npos);
}

TEST_CASE("a partitioner chosen by name is the one of that name, and an unknown name lists those there are") {
  Labels const labels = labels_1003();
  PartitionChoice const choice{.alpha = 0.3, .sigma = 1.5, .classes_per_client = 3, .min_samples = 2};
  auto const same = [&](std::string_view name, auto const& p) {
    CHECK(make_partitioner(name, choice).split(labels, 20, 5) == p.split(labels, 20, 5));
  };
  same("iid", Iid{.min_samples = 2});
  same("lda", Dirichlet{.alpha = 0.3, .min_samples = 2});
  same("dirichlet", Dirichlet{.alpha = 0.3, .min_samples = 2, .balanced = false});
  same("dirichlet-quantity", DirichletQuantity{.alpha = 0.3, .min_samples = 2});
  same("log-normal", LogNormalQuantity{.sigma = 1.5, .min_samples = 2});
  same("pathological", Pathological{.classes_per_client = 3, .min_samples = 2});
  same("shards", Shards{.min_samples = 2});
  CHECK(what_of<ConfigError>([] { (void)make_partitioner("lad"); }) ==
        "[fed] no partitioner is called 'lad'; choose one of iid, lda, dirichlet, dirichlet-quantity, log-normal, "
        "pathological, shards.");
}
