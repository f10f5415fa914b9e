// SPDX-License-Identifier: MIT
#include "pardl/data/transforms.hpp"

#include <ATen/core/PhiloxRNGEngine.h>
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstdint>
#include <numeric>
#include <vector>

#include "support/temporary_folder.hpp"

using namespace pardl;
using pardl::testing::what_of;

namespace {

std::vector<std::int64_t> numbered(std::int64_t count, std::int64_t first = 0) {
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(count));
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}

torch::Tensor images_of(std::int64_t n, std::int64_t channels, std::int64_t h, std::int64_t w) {
  torch::manual_seed(17);
  return torch::randint(1, 256, {n, channels, h, w}, torch::kByte);  // no zero: black is the border
}

std::vector<torch::MemoryFormat> const formats{torch::MemoryFormat::Contiguous, torch::MemoryFormat::ChannelsLast};

bool same(torch::Tensor const& a, torch::Tensor const& b) { return a.dtype() == b.dtype() && torch::equal(a, b); }

}  // namespace

TEST_CASE("our Philox is the one inside LibTorch") {
  for (std::uint64_t const seed : {0ULL, 12345678901234567ULL})
    for (std::uint64_t const sequence : {0ULL, 987654321987ULL}) {
      at::Philox4_32 theirs(seed, sequence);
      auto const ours =
          philox4x32({0, 0, static_cast<std::uint32_t>(sequence), static_cast<std::uint32_t>(sequence >> 32)},
                     {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
      for (auto const word : ours) CHECK(word == theirs());
    }
}

TEST_CASE("a random crop is the window of the padded image that the sample's draws name, in every layout and type") {
  auto const numbers = numbered(40, 100);
  SampleStream const stream{9, 2, numbers};
  for (auto const type : {torch::kByte, torch::kFloat})
    for (auto const format : formats)
      for (std::int64_t const channels : {1, 3, 5}) {
        auto const x = images_of(40, channels, 10, 12).to(type).contiguous(format);
        auto const before = x.clone();
        auto const y = RandomCrop{8, 3}(x, stream);
        auto const padded = torch::constant_pad_nd(x, {3, 3, 3, 3});
        for (std::int64_t b = 0; b < 40; ++b)
          CHECK(same(y[b], padded[b]
                               .narrow(1, stream.below(b, 0, 10 + 6 - 8 + 1), 8)
                               .narrow(2, stream.below(b, 1, 12 + 6 - 8 + 1), 8)));
        CHECK(y.is_contiguous(format));
        CHECK(same(x, before));
      }
}

TEST_CASE("a random crop reaches every place, and moves nothing when there is one place only") {
  auto const numbers = numbered(2000);
  SampleStream const stream{1, 0, numbers};
  auto const x = torch::arange(1, 17).to(torch::kByte).view({1, 1, 4, 4}).expand({2000, 1, 4, 4});
  auto const y = RandomCrop{4, 1}(x, stream).select(2, 1).select(2, 1).flatten();  // the pixel at (1, 1) of each
  CHECK(std::get<0>(torch::_unique(y)).size(0) == 9);
  CHECK(same(RandomCrop{4}(x, stream), x.contiguous()));
}

TEST_CASE("a centre crop takes the middle, where torchvision has it, and pads what is too small") {
  auto const numbers = numbered(5);
  auto const cropped = [&](std::int64_t height, std::int64_t width, std::int64_t size, std::int64_t top,
                           std::int64_t left) {  // from the image with a border of 4
    for (auto const type : {torch::kByte, torch::kFloat})
      for (auto const format : formats) {
        auto const x = images_of(5, 3, height, width).to(type).contiguous(format);
        auto const y = CenterCrop{size}(x, {0, 0, numbers});
        auto const expected =
            torch::constant_pad_nd(x, {4, 4, 4, 4}).narrow(2, 4 + top, size).narrow(3, 4 + left, size);
        CHECK(same(y, expected));
        CHECK(y.is_contiguous(format));
        auto const border = (std::max<std::int64_t>(0, size - std::min(height, width)) + 1) / 2;
        CHECK(same(pardl::detail::shift_on_device(x, format, border, size, size, std::vector<std::int64_t>(5, top),
                                                  std::vector<std::int64_t>(5, left)),
                   y));
      }
  };
  cropped(10, 12, 8, 1, 2);
  cropped(9, 11, 8, 0, 2);   // 0.5 rounds to 0, 1.5 to 2
  cropped(13, 15, 8, 2, 4);  // 2.5 to 2, 3.5 to 4
  cropped(8, 8, 8, 0, 0);
  cropped(6, 5, 8, -1, -1);  // of three pixels that lack, one is on top
  cropped(5, 9, 8, -1, 0);
}

TEST_CASE("a flip mirrors the images whose draw is below p, and no others") {
  auto const numbers = numbered(64);
  SampleStream const stream{5, 1, numbers};
  for (auto const type : {torch::kByte, torch::kFloat, torch::kHalf})
    for (auto const format : formats)
      for (std::int64_t const channels : {1, 3, 4})
        for (std::int64_t const width : {32, 5, 13}) {
          auto const x = images_of(64, channels, 3, width).to(type).contiguous(format);
          auto const y = RandomHorizontalFlip{.p = 0.3}(x, stream);
          int mirrored = 0;
          bool right = y.is_contiguous(format);
          for (std::int64_t b = 0; b < 64; ++b) {
            bool const flip = stream.uniform(b, 0) < 0.3;
            mirrored += flip;
            right = right && same(y[b], flip ? x[b].flip(2) : x[b]);
          }
          CHECK(right);
          CHECK(mirrored > 8);
          CHECK(mirrored < 32);
        }
  auto const x = images_of(64, 3, 4, 4);
  CHECK(same(RandomHorizontalFlip{.p = 0}(x, stream), x));
  CHECK(same(RandomHorizontalFlip{.p = 1}(x, stream), x.flip(3)));
}

TEST_CASE("cutout blackens one square per image, cut off at the border") {
  auto const numbers = numbered(50);
  SampleStream const stream{5, 1, numbers};
  for (auto const format : formats) {
    auto const x = images_of(50, 3, 9, 7).contiguous(format);
    auto const y = Cutout{.size = 4}(x, stream);
    auto expected = x.clone();
    for (std::int64_t b = 0; b < 50; ++b) {
      auto const top = stream.below(b, 0, 9) - 2, left = stream.below(b, 1, 7) - 2;
      expected[b]
          .slice(1, std::max<std::int64_t>(top, 0), top + 4)
          .slice(2, std::max<std::int64_t>(left, 0), left + 4)
          .zero_();
    }
    CHECK(same(y, expected));
    CHECK_FALSE(same(y, x));
    CHECK(same(x, images_of(50, 3, 9, 7)));
  }
}

TEST_CASE("padding adds black on all sides") {
  auto const numbers = numbered(4);
  for (auto const format : formats) {
    auto const x = images_of(4, 3, 5, 6).contiguous(format);
    CHECK(same(Pad{2}(x, {0, 0, numbers}), torch::constant_pad_nd(x, {2, 2, 2, 2})));
    CHECK(same(Pad{0}(x, {0, 0, numbers}), x));
  }
}

TEST_CASE("normalising bytes gives the bits of ToTensor and Normalize, one rounding after the other") {
  auto const numbers = numbered(3);
  std::vector<double> const mean{0.5071, 0.4867, 0.4408}, deviation{0.2675, 0.2565, 0.2761};
  for (auto const format : formats) {
    auto const x =
        torch::arange(3 * 3 * 16 * 16).remainder(256).to(torch::kByte).view({3, 3, 16, 16}).contiguous(format);
    auto const m = torch::tensor({0.5071F, 0.4867F, 0.4408F}).view({1, 3, 1, 1}),
               s = torch::tensor({0.2675F, 0.2565F, 0.2761F}).view({1, 3, 1, 1});
    auto const expected = x.to(torch::kFloat).div(255).sub(m).div(s);
    auto const y = Normalize{mean, deviation}(x, {0, 0, numbers});
    CHECK(same(y, expected));
    CHECK(y.is_contiguous(format));
    CHECK(same(Normalize{mean, deviation}(ToFloat{}(x, {0, 0, numbers}), {0, 0, numbers}), expected));
    CHECK(same(ToFloat{}(x, {0, 0, numbers}), x.to(torch::kFloat).div(255)));
  }
  auto const real = torch::rand({3, 3, 4, 4});
  CHECK(same(ToFloat{}(real, {0, 0, numbers}), real));
}

TEST_CASE("what runs on a GPU gives the same pixels as what runs on a CPU") {
  auto const numbers = numbered(30, 5);
  SampleStream const stream{2, 3, numbers};
  for (auto const format : formats) {
    auto const x = images_of(30, 3, 8, 8).contiguous(format);
    std::vector<std::int64_t> top, left;
    std::vector<std::uint8_t> flags;
    std::vector<pardl::detail::Box> boxes;
    for (std::int64_t b = 0; b < 30; ++b) {
      top.push_back(stream.below(b, 0, 5) - 2);
      left.push_back(stream.below(b, 1, 5) - 2);
      flags.push_back(stream.uniform(b, 0) < 0.5);
      auto const y = stream.below(b, 0, 8) - 1, z = stream.below(b, 1, 8) - 1;
      boxes.push_back({std::max<std::int64_t>(y, 0), std::max<std::int64_t>(z, 0), std::min<std::int64_t>(y + 3, 8),
                       std::min<std::int64_t>(z + 3, 8)});
    }
    CHECK(same(pardl::detail::shift_on_device(x, format, 2, 8, 8, top, left), RandomCrop{8, 2}(x, stream)));
    CHECK(same(pardl::detail::mirror_on_device(x, format, flags), RandomHorizontalFlip{}(x, stream)));
    CHECK(same(pardl::detail::blacken_on_device(x, format, boxes), Cutout{3}(x, stream)));
    std::vector<std::int64_t> const shift(30, -2);
    CHECK(same(pardl::detail::shift_on_device(x, format, 2, 12, 12, shift, shift), Pad{2}(x, stream)));
    CHECK(same(pardl::detail::scale_on_device(x), ToFloat{}(x, stream)));
    CHECK(pardl::detail::shift_on_device(x, format, 2, 8, 8, top, left).is_contiguous(format));
  }
}

TEST_CASE("a sample's pixels do not depend on the batch that it comes in") {
  auto const chain =
      RandomCrop{8, 2} | RandomHorizontalFlip{} | Cutout{3} | Normalize{{0.5, 0.5, 0.5}, {0.25, 0.25, 0.25}};
  auto const x = images_of(60, 3, 8, 8);
  auto const all = numbered(60);
  auto const whole = chain(x, {7, 4, all});
  for (std::int64_t const size : {1, 7, 32})
    for (std::int64_t first = 0; first < 60; first += size) {
      auto const count = std::min(size, 60 - first);
      auto const numbers = numbered(count, first);
      CHECK(same(chain(x.narrow(0, first, count), {7, 4, numbers}), whole.narrow(0, first, count)));
    }
  std::vector<std::int64_t> const shuffled{33, 2, 59, 2};
  CHECK(same(chain(x.index_select(0, torch::tensor(shuffled)), {7, 4, shuffled}),
             whole.index_select(0, torch::tensor(shuffled))));
  CHECK_FALSE(same(chain(x, {7, 5, all}), whole));
  CHECK_FALSE(same(chain(x, {8, 4, all}), whole));
}

TEST_CASE("two crops in a chain draw differently, and a chain does not depend on its brackets") {
  auto const numbers = numbered(200);
  SampleStream const stream{1, 1, numbers};
  auto const x = images_of(200, 1, 8, 8);
  CHECK(same((RandomCrop{8, 2} | RandomCrop{8, 2})(x, stream),
             RandomCrop{8, 2}(RandomCrop{8, 2}(x, stream.at(0)), stream.at(1))));
  CHECK_FALSE(same(RandomCrop{8, 2}(x, stream.at(0)), RandomCrop{8, 2}(x, stream.at(1))));
  RandomCrop const a{8, 2};
  RandomHorizontalFlip const b{};
  Cutout const c{3};
  CHECK(same(((a | b) | c)(x, stream), (a | (b | c))(x, stream)));
  auto const doubled = a | [](torch::Tensor const& t, SampleStream const&) { return t * 2; };
  CHECK(same(doubled(x, stream), a(x, stream) * 2));
}

TEST_CASE("transforms refuse what they cannot do, and say what") {
  auto const numbers = numbered(2);
  SampleStream const stream{0, 0, numbers};
  auto const x = images_of(2, 3, 8, 8);
  CHECK(what_of<ConfigError>([&] { (void)RandomCrop{10}(x, stream); }) ==
        "[data] RandomCrop{.size = 10, .padding = 0} on images [2, 3, 8, 8]; the window must be at least 1 and fit in "
        "the padded image.");
  CHECK_THROWS_AS((void)RandomCrop{}(x, stream), ConfigError);
  CHECK_THROWS_AS((void)(RandomCrop{8, -1}(x, stream)), ConfigError);
  CHECK_THROWS_AS((void)RandomHorizontalFlip{1.5}(x, stream), ConfigError);
  CHECK_THROWS_AS((void)CenterCrop{}(x, stream), ConfigError);
  CHECK_THROWS_AS((void)Cutout{}(x, stream), ConfigError);
  CHECK_THROWS_AS((void)Pad{-1}(x, stream), ConfigError);
  CHECK_THROWS_AS((Normalize{{0.5}, {0.0}}), ConfigError);
  CHECK_THROWS_AS((Normalize{{0.5, 0.5}, {0.5}}), ConfigError);
  CHECK(what_of<DataError>([&] {
          (void)Normalize({0.5}, {0.5})(x, stream);
        }).find("Normalize has 1 channels, the batch is [2, 3, 8, 8]") != std::string::npos);
  CHECK_THROWS_AS((void)ToFloat{}(x[0], stream), DataError);
  CHECK_THROWS_AS((void)ToFloat{}(x.narrow(0, 0, 1), stream), DataError);
}
