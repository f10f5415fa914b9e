// SPDX-License-Identifier: MIT
#include "pardl/fed/partition_report.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/sentences.hpp"
#include "support/temporary_folder.hpp"

using namespace pardl::fed;
using pardl::ConfigError;
using pardl::testing::has;
using pardl::testing::what_of;

TEST_CASE("a report counts who has what, and measures how far that is from the whole") {
  //                                     0  1  2  3  4  5  6  7
  std::vector<std::int64_t> const labels{7, 7, 7, 7, 2, 2, 2, 9};
  Partition const partition{{0, 1, 4, 5}, {2, 3}, {6}, {}};  // sample 7, the only one of class 9, is nobody's
  auto const report = report_partition(partition, labels);
  CHECK(report.classes == std::vector<std::int64_t>{2, 7, 9});
  CHECK(report.counts == std::vector<std::int64_t>{2, 2, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0});
  CHECK(report.count(1, 1) == 2);
  CHECK(report.sizes == std::vector<std::int64_t>{4, 2, 1, 0});
  CHECK(report.samples == 7);
  CHECK(report.left_out == 1);
  CHECK(report.fewest == 0);
  CHECK(report.most == 4);
  CHECK(report.median == 1.5);
  // The whole has 3/7 of class 2 and 4/7 of class 7.
  CHECK(report.skew[0] == doctest::Approx(1.0 / 2 - 3.0 / 7));
  CHECK(report.skew[1] == doctest::Approx(3.0 / 7));
  CHECK(report.skew[2] == doctest::Approx(4.0 / 7));
  CHECK(report.skew[3] == 0);
  CHECK(report.most_skew == doctest::Approx(4.0 / 7));
  CHECK(report.mean_skew == doctest::Approx((1.0 / 14 + 3.0 / 7 + 4.0 / 7) / 3));
}

TEST_CASE("the median of an odd number of clients is the middle one") {
  std::vector<std::int64_t> const labels(6, 0);
  CHECK(report_partition({{0}, {1, 2, 3}, {4, 5}}, labels).median == 2);
}

TEST_CASE("skew is 0 for equal mixes and grows as alpha falls") {
  std::vector<std::int64_t> labels(5000);
  for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<std::int64_t>(i % 10);
  Partition equal(5);
  for (std::size_t i = 0; i < labels.size(); ++i) equal[i / 1000].push_back(static_cast<std::int64_t>(i));
  CHECK(report_partition(equal, labels).mean_skew == doctest::Approx(0));
  double before = 0;
  for (double const alpha : {100.0, 10.0, 1.0, 0.1}) {
    double const skew = report_partition(Dirichlet{.alpha = alpha}.split(labels, 20, 1), labels).mean_skew;
    CHECK(skew > before + 0.02);
    before = skew;
  }
  CHECK(before > 0.6);
}

TEST_CASE("as text: the figures, then a row per client, with a column per class while there are few") {
  std::vector<std::int64_t> const labels{7, 7, 7, 7, 2, 2, 2, 9};
  auto const report = report_partition({{0, 1, 4, 5}, {2, 3}, {6}, {}}, labels);
  CHECK(to_text(report) ==
        "4 clients, 7 samples of 3 classes, 1 samples left out\n"
        "samples per client: fewest 0, median 1.5, most 4\n"
        "label skew: mean 0.357, most 0.571 (total variation distance of a client's labels from all labels: 0 = the "
        "same mix, 1 = nothing shared)\n"
        "client  samples   skew  2  7  9\n"
        "     0        4  0.071  2  2  0\n"
        "     1        2  0.429  0  2  0\n"
        "     2        1  0.571  1  0  0\n"
        "     3        0  0.000  0  0  0\n");
  auto const narrow = to_text(report, {.clients = 2, .columns = 2});
  CHECK(has(narrow, "client  samples   skew  label:samples\n"));
  CHECK(has(narrow, "     0        4  0.071  2:2 7:2\n"));
  CHECK(has(narrow, "     1        2  0.429  7:2\nand 2 more clients\n"));
}

TEST_CASE("as text: of many classes the most frequent per client") {
  std::vector<std::int64_t> labels;
  for (std::int64_t c = 0; c < 30; ++c) labels.insert(labels.end(), static_cast<std::size_t>(c % 8 + 1), c);
  Partition everything(1);
  for (std::size_t i = 0; i < labels.size(); ++i) everything[0].push_back(static_cast<std::int64_t>(i));
  CHECK(has(to_text(report_partition(everything, labels)), "0.000  7:8 15:8 23:8 6:7 14:7 22:7 (24 more)\n"));
}

TEST_CASE("a report on what is no partition of these samples is refused") {
  std::vector<std::int64_t> const labels{0, 1};
  CHECK(has(what_of<ConfigError>([&] { (void)report_partition({}, labels); }), "a partition without clients"));
  CHECK(has(what_of<ConfigError>([&] { (void)report_partition({{0, 2}}, labels); }), "sample 2 of 2"));
  CHECK(has(what_of<ConfigError>([&] { (void)report_partition({{0}, {0}}, labels); }), "which another client has"));
}
