// SPDX-License-Identifier: MIT
#include "pardl/data/dataset.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstdint>
#include <vector>

#include "pardl/data/image_dataset.hpp"
#include "pardl/data/synthetic.hpp"
#include "support/temporary_folder.hpp"

using namespace pardl;
using pardl::testing::what_of;

TEST_CASE("a batch holds the rows asked for, in their order, with repeats, for any type and layout") {
  auto const numbers = torch::arange(6 * 2 * 4 * 5).view({6, 2, 4, 5});
  std::vector<std::int64_t> const picked{5, 0, 0, 3};
  auto const at = torch::tensor(picked);
  for (auto const type : {torch::kByte, torch::kFloat, torch::kDouble, torch::kHalf})
    for (auto const format : {torch::MemoryFormat::Contiguous, torch::MemoryFormat::ChannelsLast}) {
      auto const inputs = numbers.to(type).contiguous(format);
      data::TensorDataset const set{inputs, torch::arange(6)};
      auto const [x, y] = set.batch(picked);
      CHECK(torch::equal(x, inputs.index_select(0, at)));
      CHECK(x.is_contiguous(format));
      CHECK(torch::equal(y, at));
    }
  data::TensorDataset const flat{torch::arange(6).to(torch::kFloat), torch::arange(12).view({6, 2})};
  CHECK(torch::equal(flat.batch(picked).inputs, at.to(torch::kFloat)));
  CHECK(flat.batch({}).targets.sizes() == torch::IntArrayRef({0, 2}));
}

TEST_CASE("a tensor dataset takes a view that is not dense, and copies share the storage") {
  auto const wide = torch::arange(40).view({4, 10});
  data::TensorDataset const set{wide.t(), torch::arange(10)};
  std::vector<std::int64_t> const picked{9};
  CHECK(torch::equal(set.batch(picked).inputs, wide.t().index_select(0, torch::tensor(picked))));
  auto const copy = set;
  CHECK(copy.inputs().data_ptr() == set.inputs().data_ptr());
  CHECK(set.resident_on(torch::kCPU).inputs().data_ptr() == set.inputs().data_ptr());
}

TEST_CASE("a dataset refuses what does not fit, and says what") {
  CHECK(what_of<DataError>([] {
          data::TensorDataset{torch::zeros({3, 2}), torch::zeros({4})};
        }) ==
        "[data] inputs [3, 2] and targets [4] are not the same number of samples; give one row of each per sample.");
  CHECK_THROWS_AS((data::TensorDataset{torch::Tensor{}, torch::zeros({4})}), DataError);
  CHECK_THROWS_AS((data::TensorDataset{torch::tensor(1), torch::tensor(1)}), DataError);
  data::TensorDataset const set{torch::zeros({3, 2}), torch::zeros({3})};
  for (std::int64_t const wrong : {3, -1}) {
    std::vector<std::int64_t> const picked{0, wrong};
    CHECK(what_of<DataError>([&] {
            (void)set.batch(picked);
          }).find("sample " + std::to_string(wrong) + " of a dataset of 3") != std::string::npos);
  }
}

TEST_CASE("a subset renumbers, a limit keeps the head") {
  data::TensorDataset const set{torch::arange(10), torch::arange(10) * 10};
  data::Subset const odd{set, {1, 3, 5, 7, 9}};
  std::vector<std::int64_t> const picked{4, 0};
  CHECK(odd.size() == 5);
  CHECK(torch::equal(odd.batch(picked).targets, torch::tensor({90, 10})));
  CHECK(torch::equal(odd.resident_on(torch::kCPU).batch(picked).inputs, torch::tensor({9, 1})));
  CHECK(data::limit(set, 3).size() == 3);
  CHECK(data::limit(set, 30).size() == 10);
  CHECK_THROWS_AS((void)data::limit(set, 0), ConfigError);
  CHECK_THROWS_AS((data::Subset{set, {10}}), DataError);
  std::vector<std::int64_t> const beyond{5};
  CHECK_THROWS_AS((void)odd.batch(beyond), DataError);
}

TEST_CASE("an image dataset checks type, shape, statistics and every label") {
  auto const images = torch::zeros({4, 3, 2, 2}, torch::kByte);
  std::vector<double> const three{0.5, 0.5, 0.5};
  auto const make = [&](torch::Tensor const& x, torch::Tensor const& y, std::vector<double> const& statistics) {
    return what_of<DataError>([&] { data::ImageDataset{x, y, {"things", 5, statistics, statistics}}; });
  };
  CHECK(make(images, torch::tensor({0, 4, 1, 2}), three).empty());
  CHECK(make(images, torch::tensor({0, 4, 5, 2}), three).find("things: sample 2 has label 5 of 5 classes") !=
        std::string::npos);
  CHECK(make(images, torch::tensor({0, 4, 1, -1}), three).find("sample 3 has label -1") != std::string::npos);
  CHECK_FALSE(make(images.to(torch::kFloat), torch::tensor({0, 4, 1, 2}), three).empty());
  CHECK_FALSE(make(images, torch::tensor({0, 4, 1, 2}, torch::kInt), three).empty());
  CHECK_FALSE(make(images.view({4, 12}), torch::tensor({0, 4, 1, 2}), three).empty());
  CHECK_FALSE(make(images, torch::tensor({0, 4, 1, 2}), {0.5}).empty());
}

TEST_CASE("padding centres the image on black, and first() keeps the head without a copy") {
  auto const images = torch::arange(1, 1 + 2 * 1 * 2 * 3).to(torch::kByte).view({2, 1, 2, 3});
  data::ImageDataset const set{images, torch::tensor({0, 1}), {"things", 2, {0.5}, {0.5}}};
  auto const wide = set.padded(4);
  CHECK(wide.height() == 4);
  CHECK(wide.width() == 4);
  CHECK(torch::equal(wide.images(), torch::constant_pad_nd(images, {0, 1, 1, 1})));
  CHECK(torch::equal(wide.labels(), set.labels()));
  CHECK_THROWS_AS((void)set.padded(2), ConfigError);
  CHECK(set.first(1).size() == 1);
  CHECK(set.first(7).size() == 2);
  CHECK(set.first(1).images().data_ptr() == set.images().data_ptr());
  CHECK_THROWS_AS((void)set.first(0), ConfigError);
}

TEST_CASE("channel statistics are the population's") {
  torch::manual_seed(3);
  auto const images = torch::randint(0, 256, {7, 3, 5, 6}, torch::kByte);
  auto const [mean, stddev] = data::channel_statistics(images.contiguous(torch::MemoryFormat::ChannelsLast));
  auto const scaled = images.to(torch::kDouble) / 255.0;
  for (std::int64_t c = 0; c < 3; ++c) {
    CHECK(mean[static_cast<std::size_t>(c)] ==
          doctest::Approx(scaled.select(1, c).mean().item<double>()).epsilon(1e-12));
    CHECK(stddev[static_cast<std::size_t>(c)] ==
          doctest::Approx(scaled.select(1, c).std(false).item<double>()).epsilon(1e-9));
  }
}

TEST_CASE("synthetic data has the shape asked for, comes back bit for bit, and differs by seed and split") {
  data::SyntheticOptions const options{.samples = 50, .classes = 7, .channels = 2, .height = 9, .width = 5, .seed = 4};
  data::Synthetic const one{options}, again{options};
  CHECK(one.images().sizes() == torch::IntArrayRef({50, 2, 9, 5}));
  CHECK(one.classes() == 7);
  CHECK(one.labels().max().item<std::int64_t>() == 6);
  CHECK(torch::equal(one.images(), again.images()));
  auto other = options;
  other.seed = 5;
  CHECK_FALSE(torch::equal(one.images(), data::Synthetic{other}.images()));
  other = options;
  other.split = data::Split::test;
  CHECK_FALSE(torch::equal(one.images(), data::Synthetic{other}.images()));
  other = options;
  other.noise = 0;
  data::Synthetic const still{other};
  CHECK(torch::equal(still.images()[0], still.images()[7]));  // one class, no noise: one picture
  CHECK(torch::equal(still.images().flip(3), still.images()));
  CHECK_FALSE(torch::equal(still.images()[0], still.images()[1]));
  for (auto const& wrong : {data::SyntheticOptions{.samples = 0}, data::SyntheticOptions{.classes = 0},
                            data::SyntheticOptions{.height = 0}, data::SyntheticOptions{.noise = 1.5}})
    CHECK_THROWS_AS(data::Synthetic{wrong}, ConfigError);
}

TEST_CASE("a linear classifier learns synthetic data and gets the test split right") {
  data::Synthetic const train{{.samples = 400, .classes = 20, .channels = 1, .height = 16, .width = 16}};
  data::Synthetic const test{
      {.samples = 200, .classes = 20, .channels = 1, .height = 16, .width = 16, .split = data::Split::test}};
  torch::manual_seed(1);
  torch::nn::Linear net(256, 20);
  torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  auto const input = [&](data::Synthetic const& set) {
    return (set.images().flatten(1).to(torch::kFloat) / 255.0 - train.mean()[0]) / train.stddev()[0];
  };
  for (int step = 0; step < 60; ++step) {
    sgd.zero_grad();
    torch::cross_entropy_loss(net(input(train)), train.labels()).backward();
    sgd.step();
  }
  auto const right = net(input(test)).argmax(1).eq(test.labels()).to(torch::kFloat).mean().item<float>();
  CHECK(right > 0.95F);
}
