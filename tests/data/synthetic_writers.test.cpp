// SPDX-License-Identifier: MIT
#include "pardl/data/synthetic_writers.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "pardl/data/toy.hpp"

using namespace pardl;
using data::SyntheticWritersOptions;

namespace {

/// Share of `of` whose nearest class mean (taken over `from`) is that of its own class.
double nearest_mean_accuracy(data::SyntheticWriters const& from, data::SyntheticWriters const& of) {
  auto const flat = [](data::SyntheticWriters const& set) { return set.samples.images().flatten(1).to(torch::kFloat); };
  auto const x = flat(from), y = flat(of);
  std::vector<torch::Tensor> means;
  for (std::int64_t c = 0; c < from.samples.classes(); ++c)
    means.push_back(x.index({from.samples.labels() == c}).mean(0));
  return torch::cdist(y, torch::stack(means)).argmin(1).eq(of.samples.labels()).to(torch::kFloat).mean().item<double>();
}

std::vector<std::int64_t> counts(data::SyntheticWriters const& set) {
  std::vector<std::int64_t> sizes;
  for (auto const& part : set.writers.partition()) sizes.push_back(static_cast<std::int64_t>(part.size()));
  return sizes;
}

/// The images of one writer.
torch::Tensor images_of(data::SyntheticWriters const& set, std::size_t writer) {
  return set.samples.batch(set.writers.partition()[writer]).inputs;
}

}  // namespace

TEST_CASE("synthetic writers have LEAF's shape: 28x28 grey, 62 classes, an owner for each sample") {
  auto const set = data::make_synthetic_writers({.writers = 5, .mean_samples = 40});
  CHECK(set.samples.images().sizes() == torch::IntArrayRef({200, 1, 28, 28}));
  CHECK(set.samples.classes() == 62);
  CHECK(set.writers.names == std::vector<std::string>{"writer_0", "writer_1", "writer_2", "writer_3", "writer_4"});
  CHECK(set.writers.owners.size() == 200);
  CHECK(counts(set) == std::vector<std::int64_t>(5, 40));
  CHECK(set.writers.partition()[3].front() == 120);
  CHECK(set.samples.labels().min().item<std::int64_t>() >= 0);
  CHECK(set.samples.labels().max().item<std::int64_t>() <= 61);
  // Dark on white: most of the paper is bare.
  CHECK(set.samples.images().to(torch::kFloat).median().item<float>() > 220);
  CHECK(set.samples.mean()[0] > 0.6);
  CHECK(set.samples.stddev()[0] > 0.1);
}

TEST_CASE("synthetic writers are the same for a seed, and a writer's samples do not depend on the others") {
  SyntheticWritersOptions const options{.writers = 4, .mean_samples = 30, .spread = 0.5, .seed = 9};
  auto const set = data::make_synthetic_writers(options), again = data::make_synthetic_writers(options);
  CHECK(torch::equal(set.samples.images(), again.samples.images()));
  CHECK(torch::equal(set.samples.labels(), again.samples.labels()));
  CHECK(set.writers.owners == again.writers.owners);
  // The bytes themselves, which are the same on every machine: a sum that notices any change of one.
  auto const fixed = data::make_synthetic_writers({.writers = 2, .samples = {3, 2}, .seed = 1});
  auto const flat = fixed.samples.images().flatten().to(torch::kLong);
  CHECK((flat * (torch::arange(flat.numel()) + 1)).sum().item<std::int64_t>() == 1808911253);

  auto more = options;
  more.writers = 6;
  auto const larger = data::make_synthetic_writers(more);
  for (std::size_t writer = 0; writer < 4; ++writer)
    CHECK(torch::equal(images_of(set, writer), images_of(larger, writer)));
  auto const longer = data::make_synthetic_writers({.writers = 2, .samples = {3, 8}, .seed = 1});
  CHECK(torch::equal(images_of(fixed, 1), images_of(longer, 1).narrow(0, 0, 2)));

  auto other = options;
  other.seed = 10;
  CHECK_FALSE(torch::equal(images_of(set, 0).narrow(0, 0, 5),
                           images_of(data::make_synthetic_writers(other), 0).narrow(0, 0, 5)));
}

TEST_CASE("a class can be learned from some writers and read from others") {
  auto const known = data::make_synthetic_writers({.writers = 40, .mean_samples = 100, .seed = 3});
  auto all = data::make_synthetic_writers({.writers = 50, .mean_samples = 100, .seed = 3});
  std::vector<std::int64_t> fresh(1000);
  for (std::size_t i = 0; i < fresh.size(); ++i) fresh[i] = 4000 + static_cast<std::int64_t>(i);
  auto const batch = all.samples.batch(fresh);
  data::SyntheticWriters const unseen{{batch.inputs, batch.targets, {"unseen", 62, {0.5}, {0.5}}}, {}};
  double const accuracy = nearest_mean_accuracy(known, unseen);
  CHECK(accuracy > 0.3);   // chance is 0.016
  CHECK(accuracy < 0.99);  // and it is no gift
}

TEST_CASE("hands differ as much as `style` says") {
  auto const spread = [](double style) {
    // One class, one sample shape: the mean image of each writer, and how far these lie apart.
    auto const set = data::make_synthetic_writers(
        {.writers = 20, .mean_samples = 20, .classes = 1, .style = style, .noise = 0, .seed = 5});
    std::vector<torch::Tensor> means;
    for (std::size_t writer = 0; writer < 20; ++writer)
      means.push_back(images_of(set, writer).to(torch::kFloat).mean(0));
    return torch::stack(means).std(0).mean().item<double>();
  };
  double const alike = spread(0), medium = spread(0.5), full = spread(1);
  CHECK(medium > 1.5 * alike);
  CHECK(full > 1.2 * medium);
}

TEST_CASE("amounts are as given, or log-normal around the mean and within the bounds") {
  CHECK(counts(data::make_synthetic_writers({.writers = 3, .samples = {4, 0, 7}})) ==
        std::vector<std::int64_t>{4, 0, 7});
  auto const drawn = counts(data::make_synthetic_writers(
      {.writers = 2000, .mean_samples = 8, .spread = 0.5, .min_samples = 2, .max_samples = 20, .classes = 2}));
  CHECK(*std::ranges::min_element(drawn) >= 2);
  CHECK(*std::ranges::max_element(drawn) == 20);
  double sum = 0, logs = 0;
  for (auto const count : drawn) sum += static_cast<double>(count), logs += std::log(static_cast<double>(count));
  CHECK(std::abs(sum / 2000 - 8) < 0.4);                          // deviation of the mean: 0.1, and the bounds
  CHECK(std::abs(logs / 2000 - (std::log(8.0) - 0.125)) < 0.06);  // median below mean: skewed to the right
}

TEST_CASE("a writer who knows few classes writes no other, and writers know different ones") {
  auto const set = data::make_synthetic_writers({.writers = 10, .mean_samples = 60, .classes_per_writer = 3});
  std::set<std::set<std::int64_t>> alphabets;
  for (auto const& part : set.writers.partition()) {
    auto const labels = set.samples.batch(part).targets;
    std::set<std::int64_t> known;
    for (std::int64_t i = 0; i < labels.size(0); ++i) known.insert(labels[i].item<std::int64_t>());
    CHECK(known.size() == 3);
    alphabets.insert(known);
  }
  CHECK(alphabets.size() > 8);
}

TEST_CASE("labels are uniform over the classes") {
  auto const set = data::make_synthetic_writers({.writers = 40, .mean_samples = 500, .classes = 10});
  auto const counts = torch::bincount(set.samples.labels(), {}, 10);  // 2000 each, deviation 42
  CHECK(counts.min().item<std::int64_t>() > 1800);
  CHECK(counts.max().item<std::int64_t>() < 2200);
}

TEST_CASE("settings that cannot be right are refused") {
  double const nan = std::numeric_limits<double>::quiet_NaN();
  for (auto const& wrong : std::vector<SyntheticWritersOptions>{{.writers = 0},
                                                                {.writers = 2, .samples = {1}},
                                                                {.writers = 2, .samples = {1, -1}},
                                                                {.writers = 2, .samples = {0, 0}},
                                                                {.mean_samples = 0},
                                                                {.mean_samples = nan},
                                                                {.spread = -1},
                                                                {.min_samples = 5, .max_samples = 4},
                                                                {.classes = 0},
                                                                {.classes = 3, .classes_per_writer = 4},
                                                                {.style = 1.5},
                                                                {.noise = -0.1}})
    CHECK_THROWS_AS((void)data::make_synthetic_writers(wrong), ConfigError);
}

TEST_CASE("toy data obeys one linear law, and the spread of the inputs grows with the client") {
  auto const toy = data::make_toy({.clients = 4, .seed = 3});
  CHECK(toy.samples.inputs().sizes() == torch::IntArrayRef({6000, 5}));
  CHECK(toy.samples.targets().sizes() == torch::IntArrayRef({6000, 1}));
  auto const weights = torch::tensor(toy.weights, torch::kDouble);
  auto const predicted = toy.samples.inputs().to(torch::kDouble).matmul(weights) + toy.bias;
  CHECK((predicted - toy.samples.targets().squeeze(1).to(torch::kDouble)).abs().max().item<double>() < 1e-5);
  REQUIRE(toy.train.size() == 4);
  for (std::size_t client = 0; client < 4; ++client) {
    CHECK(toy.train[client].size() == 1000);
    CHECK(toy.train[client].front() == static_cast<std::int64_t>(1000 * client));
    auto const inputs = toy.samples.batch(toy.train[client]).inputs;
    double const deviation = 0.5 * static_cast<double>(client + 1);
    CHECK(std::abs(inputs.std().item<double>() / deviation - 1) < 0.05);  // 5000 numbers: 0.01
    CHECK(std::abs(inputs.mean().item<double>() / deviation) < 0.06);
  }
  for (auto const* common : {&toy.val, &toy.test}) {
    CHECK(common->size() == 1000);
    CHECK(std::abs(toy.samples.batch(*common).inputs.std().item<double>() - 1) < 0.05);
  }
  CHECK(toy.val.front() == 4000);
  CHECK(toy.test.front() == 5000);
  CHECK_FALSE(torch::equal(toy.samples.batch(toy.val).inputs, toy.samples.batch(toy.test).inputs));
}

TEST_CASE("toy data is the same for a seed, and a client's does not depend on the others") {
  auto const few = data::make_toy({.clients = 2, .samples = 50, .seed = 4});
  auto const many = data::make_toy({.clients = 3, .samples = 60, .seed = 4});
  CHECK(few.weights == many.weights);
  CHECK(few.bias == many.bias);
  for (std::size_t client = 0; client < 2; ++client)
    CHECK(torch::equal(few.samples.batch(few.train[client]).inputs,
                       many.samples.batch(many.train[client]).inputs.narrow(0, 0, 50)));
  CHECK(torch::equal(few.samples.batch(few.test).targets, many.samples.batch(many.test).targets.narrow(0, 0, 50)));
  CHECK(data::make_toy({.clients = 2, .samples = 50, .seed = 5}).weights != few.weights);
}

TEST_CASE("toy data without clients, samples, features or spread is refused") {
  for (auto const& wrong : std::vector<data::ToyOptions>{{.clients = 0},
                                                         {.samples = 0},
                                                         {.features = 0},
                                                         {.spread = 0},
                                                         {.spread = std::numeric_limits<double>::infinity()}})
    CHECK_THROWS_AS((void)data::make_toy(wrong), ConfigError);
}
