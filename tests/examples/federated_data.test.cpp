// SPDX-License-Identifier: MIT
#include "federated/data.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "pardl/fed/config_keys.hpp"
#include "support/temporary_folder.hpp"

namespace {

namespace fed = pardl::fed;
using federated::Problem;
using pardl::testing::what_of;

fed::Config with(std::string const& transform) {
  fed::Config config;
  fed::apply_overrides(config, std::vector<std::string>{"data.transform", transform});
  return config;
}

/// Images that have no black pixel.
Problem images(std::int64_t height = 10, std::int64_t width = 12, std::int64_t channels = 1) {
  torch::manual_seed(3);
  auto const x = torch::randint(1, 256, {20, channels, height, width}, torch::kByte);
  return {.samples = {x, torch::zeros({20}, torch::kLong)},
          .shares = {},
          .names = {},
          .shape = x.sizes().slice(1).vec(),
          .what = ""};
}
Problem floats() {
  auto problem = images();
  problem.samples = {problem.samples.inputs().to(torch::kFloat).div(255), problem.samples.targets()};
  return problem;
}

std::vector<std::int64_t> numbers() {
  std::vector<std::int64_t> all(20);
  std::iota(all.begin(), all.end(), 100);
  return all;
}

bool same(torch::Tensor const& a, torch::Tensor const& b) { return a.dtype() == b.dtype() && torch::equal(a, b); }

}  // namespace

TEST_CASE("data.transform is the library's transforms in the order of the list") {
  auto const all = numbers();
  pardl::SampleStream const stream{7, 4096, all};
  auto const problem = images();
  auto const x = problem.samples.inputs();
  using pardl::Normalize, pardl::RandomCrop, pardl::RandomHorizontalFlip, pardl::ToFloat;
  auto const first = federated::transform(with("[['RandomCrop', {'size': 8, 'padding': 2}], ['RandomHorizontalFlip'], "
                                               "['ToTensor'], ['Normalize', {'mean': [0.5], 'std': [0.25]}]]"),
                                          problem);
  CHECK(same(first(x, stream),
             (RandomCrop{8, 2} | RandomHorizontalFlip{} | ToFloat{} | Normalize{{0.5}, {0.25}})(x, stream)));
  CHECK((first(x, stream) == -2).any().item<bool>());  // black, normalised
  auto const last = federated::transform(with("[['ToTensor'], ['Normalize', {'mean': [0.5], 'std': [0.25]}], "
                                              "['RandomHorizontalFlip', {'p': 0.25}], ['RandomCrop', {'size': 8, "
                                              "'padding': 2}]]"),
                                         problem);
  CHECK(same(last(x, stream),
             (ToFloat{} | Normalize{{0.5}, {0.25}} | RandomHorizontalFlip{0.25} | RandomCrop{8, 2})(x, stream)));
  CHECK_FALSE((last(x, stream) == -2).any().item<bool>());  // 0 around what is normalised
  CHECK(same(federated::transform(with("[['ToTensor']]"), problem)(x, stream), x.to(torch::kFloat).div(255)));
}

TEST_CASE("the draws depend on the seed, the round's pass, the sample and the place in the list") {
  auto const all = numbers();
  auto const config = with("[['ToTensor'], ['RandomCrop', {'size': 10, 'padding': 4}]]");
  auto const x = images(10, 10).samples.inputs();
  auto const crop = federated::transform(config, images(10, 10));
  auto const whole = crop(x, {7, 1, all});
  CHECK(same(whole, crop(x, {7, 1, all})));
  CHECK_FALSE(same(whole, crop(x, {7, 2, all})));
  CHECK_FALSE(same(whole, crop(x, {8, 1, all})));
  std::vector<std::int64_t> const two{103, 101};
  CHECK(
      same(crop(x.index_select(0, torch::tensor({3, 1})), {7, 1, two}), whole.index_select(0, torch::tensor({3, 1}))));
  auto const twice = federated::transform(
      with("[['ToTensor'], ['RandomCrop', {'size': 10, 'padding': 4}], ['RandomCrop', {'size': 10, 'padding': 4}]]"),
      images(10, 10));
  CHECK_FALSE(same(twice(x, {7, 1, all}), crop(whole, {7, 1, all})));
  // Floats need no ToTensor, and draw alike with it or without.
  auto const numbers_ = floats();
  auto const list = "[['ToTensor'], ['RandomCrop', {'size': 8, 'padding': 2}]]";
  CHECK(same(federated::transform(with(list), numbers_)(numbers_.samples.inputs(), {7, 1, all}),
             federated::transform(with(list), images())(images().samples.inputs(), {7, 1, all})));
}

TEST_CASE("an evaluation sees no random step, and the middle where a crop changes the size") {
  auto const all = numbers();
  pardl::SampleStream const stream{7, 0, all};
  auto const normal = with("[['ToTensor'], ['Normalize', {'mean': [0.5], 'std': [0.25]}]]");
  auto const problem = images(10, 10);
  auto const x = problem.samples.inputs();
  auto const plain = federated::transform(normal, problem)(x, stream);
  CHECK(same(federated::evaluation_transform(normal, problem)(x, stream), plain));
  auto const config = with(
      "[['RandomCrop', {'size': 10, 'padding': 4}], ['RandomHorizontalFlip', {'p': 0.5}], ['ToTensor'], "
      "['Normalize', {'mean': [0.5], 'std': [0.25]}]]");
  CHECK(same(federated::evaluation_transform(config, problem)(x, stream), plain));
  CHECK_FALSE(same(federated::transform(config, problem)(x, stream), plain));
  auto const smaller = with("[['ToTensor'], ['RandomCrop', {'size': 7}]]");
  auto const middle = federated::evaluation_transform(smaller, images())(images().samples.inputs(), stream);
  CHECK(same(middle, images().samples.inputs().to(torch::kFloat).div(255).narrow(2, 2, 7).narrow(3, 2, 7)));
  CHECK(federated::make_transform(smaller, images(), false).shape == std::vector<std::int64_t>{1, 7, 7});
  CHECK(federated::make_transform(smaller, images(), true).shape == std::vector<std::int64_t>{1, 7, 7});
}

TEST_CASE("data is loaded with the shape that the model gets") {
  auto config = with("[['RandomCrop', {'size': 24}], ['ToTensor']]");
  fed::apply_overrides(config, std::vector<std::string>{"data.type", "synthetic_femnist", "federate.client_num", "2"});
  CHECK(federated::load(config, false).shape == std::vector<std::int64_t>{1, 24, 24});
  config = with("[['ToTensor']]");
  fed::apply_overrides(config, std::vector<std::string>{"data.type", "toy"});
  CHECK(federated::load(config, false).shape == std::vector<std::int64_t>{5});
}

TEST_CASE("a transform that cannot be applied is refused in one sentence") {
  auto const refusal = [](std::string const& list, Problem const& problem) {
    auto const text = what_of<pardl::ConfigError>([&] { (void)federated::transform(with(list), problem); });
    CHECK(what_of<pardl::ConfigError>([&] { (void)federated::evaluation_transform(with(list), problem); }) == text);
    return text;
  };
  CHECK(refusal("[['RandomCrop', {'size': 15, 'padding': 2}], ['ToTensor']]", images()) ==
        "[config] data.transform: RandomCrop of 15 pixels from images of 10 x 12 with 2 around them; take a size that "
        "fits.");
  CHECK(refusal("[['RandomCrop', {'size': 14, 'padding': 2}], ['ToTensor']]", images()).empty());
  auto const says = [&](std::string const& list, std::string const& part) {
    auto const text = refusal(list, images());
    CHECK_MESSAGE(text.find(part) != std::string::npos, text);
  };
  says("[['RandomCrop']]", "RandomCrop without a whole number as size; it is at least 1");
  says("[['RandomCrop', {'size': 7.5}]]", "without a whole number as size");
  says("[['RandomCrop', {'size': 7, 'padding': -1}]]", "without a whole number as padding; it is at least 0");
  says("[['RandomCrop', {'size': 7, 'fill': 1}]]", "takes no argument 'fill'");
  says("[['RandomHorizontalFlip', {'p': 1.5}]]", "a probability of 1.5");
  says("[['RandomHorizontalFlip']]", "images stay bytes; add ['ToTensor']");
  says("[['Normalize', {'mean': [0.5], 'std': [0.5]}], ['ToTensor']]", "Normalize comes before ToTensor");
  says("[['ToTensor'], ['Normalize', {'mean': [0.5, 0.5], 'std': [0.5, 0.5]}]]", "other than 1 means");
  says("[['ToTensor'], ['Normalize', {'mean': [0.5], 'std': [0]}]]", "a std of 0");
  Problem const numbers{
      .samples = {torch::zeros({4, 5}), torch::zeros({4, 1})}, .shares = {}, .names = {}, .shape = {5}, .what = ""};
  CHECK(refusal("[['ToTensor']]", numbers).empty());
  for (std::string const list : {"[['Normalize', {'mean': [0.5], 'std': [0.5]}]]", "[['RandomCrop', {'size': 2}]]",
                                 "[['RandomHorizontalFlip']]"})
    CHECK(refusal(list, numbers).find("takes images, and the data has none; leave it out") != std::string::npos);
}
