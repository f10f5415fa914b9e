// SPDX-License-Identifier: MIT
#include "models/wide_resnet.hpp"

#include <doctest/doctest.h>

#include <stdexcept>

namespace {

std::int64_t count(torch::nn::Module const& module) {
  std::int64_t numbers = 0;
  for (auto const& parameter : module.parameters()) numbers += parameter.numel();
  return numbers;
}

// From the layers as the guide lists them, written down without the code under test.
std::int64_t guide_by_hand(std::int64_t channels, std::int64_t classes) {
  auto const conv = [](std::int64_t in, std::int64_t out) { return in * out * 9; };
  auto const norm = [](std::int64_t width) { return 2 * width; };
  std::int64_t numbers = conv(channels, 16) + norm(16);
  std::int64_t in = 16;
  for (std::int64_t const out : {160, 160, 320, 320, 640, 640}) {
    numbers += conv(in, out) + norm(out) + conv(out, out) + norm(out);
    if (in != out) numbers += in * out + out;
    in = out;
  }
  return numbers + 640 * classes + classes;
}

}  // namespace

TEST_CASE("the guide's network has the parameters that its layers have by hand") {
  CHECK(count(*models::GuideWideResNet{}) == guide_by_hand(3, 100));
  CHECK(count(*models::GuideWideResNet{models::GuideWideResNetOptions{.classes = 10, .channels = 1}}) ==
        guide_by_hand(1, 10));
}

TEST_CASE("WRN-depth-width has the parameters of the paper's table") {
  // Zagoruyko & Komodakis 2016, table 4: WRN-40-4 8.9 M, WRN-16-8 11.0 M, WRN-28-10 36.5 M.
  CHECK(count(*models::WideResNet{models::WideResNetOptions{.depth = 40, .widen_factor = 4}}) == 8'972'340);
  CHECK(count(*models::WideResNet{models::WideResNetOptions{.depth = 28, .widen_factor = 10}}) == 36'536'884);
  auto const wide = count(*models::WideResNet{models::WideResNetOptions{.depth = 16, .widen_factor = 8}});
  CHECK(wide > 10'950'000);
  CHECK(wide < 11'050'000);
}

TEST_CASE("a depth that is not 6 n + 4 is refused by name") {
  CHECK_THROWS_WITH_AS((models::WideResNet{models::WideResNetOptions{.depth = 17, .widen_factor = 1}}),
                       doctest::Contains("WRN-17-1"), std::invalid_argument);
  CHECK_THROWS_AS((models::WideResNet{models::WideResNetOptions{.depth = 16, .widen_factor = 0}}),
                  std::invalid_argument);
}

TEST_CASE("both networks give logits for images, and every parameter gets a gradient") {
  torch::manual_seed(3);
  auto const check = [](auto net, std::int64_t channels, std::int64_t classes) {
    auto const logits = net->forward(torch::rand({2, channels, 32, 32}));
    CHECK(logits.sizes() == torch::IntArrayRef({2, classes}));
    logits.sum().backward();
    for (auto const& item : net->named_parameters()) CHECK_MESSAGE(item.value().grad().defined(), item.key());
  };
  check(models::WideResNet{models::WideResNetOptions{
            .depth = 10, .widen_factor = 1, .classes = 10, .channels = 1, .dropout = 0.3}},
        1, 10);
  check(models::GuideWideResNet{models::GuideWideResNetOptions{.classes = 7}}, 3, 7);
}
