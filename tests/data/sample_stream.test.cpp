// SPDX-License-Identifier: MIT
#include "pardl/data/sample_stream.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <set>
#include <vector>

using pardl::philox4x32;
using pardl::SampleStream;

TEST_CASE("Philox4x32-10 gives the known answers of its authors' library Random123") {
  using Block = std::array<std::uint32_t, 4>;
  static_assert(philox4x32({0, 0, 0, 0}, {0, 0}) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  static_assert(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
                Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  static_assert(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
                Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0})[0] == 0x6627e8d5);
}

TEST_CASE("a draw belongs to its sample, whatever row the sample stands in") {
  std::vector<std::int64_t> const one{7}, many{1, 2, 7, 7};
  SampleStream const alone{3, 5, one}, among{3, 5, many};
  for (std::uint32_t draw : {0U, 1U, 3U, 4U, 100U}) {
    CHECK(alone.bits(0, draw) == among.bits(2, draw));
    CHECK(among.bits(2, draw) == among.bits(3, draw));
  }
}

TEST_CASE("seed, epoch, sample, position and draw each change the numbers") {
  std::vector<std::int64_t> const samples{0, 1, std::int64_t{1} << 32};
  std::set<std::uint32_t> seen;
  int count = 0;
  for (std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 32})
    for (std::int64_t epoch : {0, 1})
      for (std::int64_t row : {0, 1, 2})
        for (std::uint32_t position : {0U, 1U})
          for (std::uint32_t draw = 0; draw < 9; ++draw, ++count)
            seen.insert(SampleStream{seed, epoch, samples}.at(position).bits(row, draw));
  CHECK(static_cast<int>(seen.size()) == count);
}

TEST_CASE("below and uniform are uniform") {
  std::vector<std::int64_t> samples(90'000);
  for (std::size_t i = 0; i < samples.size(); ++i) samples[i] = static_cast<std::int64_t>(i);
  SampleStream const stream{11, 0, samples};
  std::array<int, 9> counts{};
  double sum = 0, least = 1, most = 0;
  for (std::int64_t row = 0; row < stream.rows(); ++row) {
    ++counts[static_cast<std::size_t>(stream.below(row, 0, 9))];
    double const u = stream.uniform(row, 1);
    sum += u;
    least = std::min(least, u);
    most = std::max(most, u);
  }
  double chi = 0;
  for (int const c : counts) chi += (c - 10'000.0) * (c - 10'000.0) / 10'000.0;
  CHECK(chi < 26.1);  // 8 degrees of freedom, 0.1 %; the numbers are fixed, so this cannot flicker
  CHECK(sum / 90'000 == doctest::Approx(0.5).epsilon(0.01));
  CHECK(least >= 0);
  CHECK(most < 1);
}
