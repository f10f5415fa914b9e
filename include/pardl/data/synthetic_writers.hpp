// SPDX-License-Identifier: MIT
/// \file   Handwriting made in memory, in the shape of LEAF's FEMNIST: writers who differ in hand, amount and letters.
/// \layer  data.
///
/// A class is a glyph of three curved strokes, the same for everybody. A writer has a hand: a shift, a slant, a width
/// of the pen and a strength of the ink. A sample is the glyph of its class in the writer's hand, with its control
/// points a little displaced, dark on white as in LEAF, under noise. So a network can learn it, writers are unlike each
/// other, and no file is needed; it is no substitute for real data where accuracy is to mean something.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "pardl/data/detail/keyed_words.hpp"
#include "pardl/data/image_dataset.hpp"
#include "pardl/data/writers.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data {

struct SyntheticWritersOptions {
  std::int64_t writers = 100;
  std::vector<std::int64_t> samples{};   ///< of each writer; empty: the next four lines say how many
  double mean_samples = 100;             ///< of a writer (LEAF's FEMNIST: 227)
  double spread = 0;                     ///< deviation of their logarithm; 0: all alike (LEAF's FEMNIST: about 0.4)
  std::int64_t min_samples = 1;          ///< drawn numbers are raised to this
  std::int64_t max_samples = 1'000'000;  ///< and lowered to this
  std::int64_t classes = 62;             ///< ten digits and twice 26 letters, in LEAF's count
  std::int64_t classes_per_writer = 0;   ///< so many are drawn for each writer, who writes no other; 0: all classes
  double style = 1;                      ///< how unlike the hands are; 0: all alike
  double noise = 0.1;                    ///< half width of the pixels' noise as a part of the whole range; 0: none
  std::uint64_t seed = 0;                ///< another seed, other glyphs, hands and samples
};

/// Images uint8 [N, 1, 28, 28], a writer's samples one after the other, and who wrote them.
struct SyntheticWriters {
  ImageDataset samples;
  Writers writers;
};

namespace detail {

/// Draws one sample after the other. Coordinates are sixteenths of a pixel; integers only, so the same bytes on every
/// machine.
class Scribe {
 public:
  static constexpr int side = 28;
  struct Point {
    int x, y;
  };
  using Glyph = std::array<Point, 9>;  ///< three quadratic Bézier curves
  struct Hand {
    int right = 0, down = 0;  ///< shift
    int slant = 0;            ///< to the right per 256 upwards
    int radius = 29;          ///< of the pen
    int ink = 225;            ///< of 255
  };

  explicit Scribe(SyntheticWritersOptions const& o) : seed_(o.seed), noise_(static_cast<int>(o.noise * 256)) {
    for (std::int64_t c = 0; c < o.classes; ++c) {
      KeyedWords draws(seed_, static_cast<std::uint32_t>(c), 0, 1);
      auto& glyph = glyphs_.emplace_back();
      for (auto& point : glyph) point = {draws.between(6 * 16, 21 * 16), draws.between(5 * 16, 22 * 16)};
    }
  }

  /// \param strength 0 … 256
  [[nodiscard]] Hand hand(std::int64_t writer, int strength) const {
    KeyedWords draws(seed_, static_cast<std::uint32_t>(writer), 0, 2);
    auto const around = [&](int middle, int reach) { return middle + draws.between(-reach, reach) * strength / 256; };
    return {around(0, 40), around(0, 40), around(0, 110), around(29, 9), around(225, 30)};
  }

  void draw(std::int64_t writer, std::int64_t sample, std::int64_t label, Hand const& hand, std::uint8_t* pixel) {
    KeyedWords draws(seed_, static_cast<std::uint32_t>(sample), static_cast<std::uint32_t>(writer), 4);
    auto points = glyphs_[static_cast<std::size_t>(label)];
    for (auto& [x, y] : points) {
      x += draws.between(-14, 14) + hand.right + ((14 * 16 - y) * hand.slant >> 8);
      y += draws.between(-14, 14) + hand.down;
    }
    ink_.fill(0);
    for (std::size_t curve = 0; curve < points.size(); curve += 3)
      stroke(points[curve], points[curve + 1], points[curve + 2], hand.radius);
    std::uint32_t two = 0;
    for (std::size_t i = 0; i < ink_.size(); ++i, two >>= 16) {
      if (i % 2 == 0) two = draws.next();
      int const noise = static_cast<int>((two & 255) + ((two >> 8) & 255)) - 255;  // -255 … 255, triangular
      pixel[i] = static_cast<std::uint8_t>(std::clamp(255 - ink_[i] * hand.ink / 255 + noise * noise_ / 256, 0, 255));
    }
  }

 private:
  void stroke(Point a, Point b, Point c, int radius) {
    int const square = radius * radius, fade = (255 << 12) / square;
    for (int t = 0; t <= 32; ++t) {
      int const u = 32 - t;
      int const x = (a.x * u * u + 2 * b.x * t * u + c.x * t * t) >> 10;
      int const y = (a.y * u * u + 2 * b.y * t * u + c.y * t * t) >> 10;
      int const left = std::max((x - radius + 15) >> 4, 0), right = std::min((x + radius) >> 4, side - 1);
      int const top = std::max((y - radius + 15) >> 4, 0), bottom = std::min((y + radius) >> 4, side - 1);
      for (int row = top; row <= bottom; ++row)
        for (int column = left; column <= right; ++column) {
          int const dx = 16 * column - x, dy = 16 * row - y, distance = dx * dx + dy * dy;
          auto& ink = ink_[static_cast<std::size_t>(row * side + column)];
          if (distance < square) ink = std::max(ink, 255 - (distance * fade >> 12));
        }
    }
  }

  std::uint64_t seed_;
  int noise_;
  std::vector<Glyph> glyphs_;
  std::array<int, std::size_t{side} * side> ink_{};
};

/// How many samples each writer has. \throws ConfigError
[[nodiscard]] inline std::vector<std::int64_t> samples_of_writers(SyntheticWritersOptions const& o) {
  auto const refuse = [](std::string const& what, std::string const& remedy) {
    throw ConfigError(sentence("data", "synthetic writers: " + what, remedy));
  };
  if (o.writers < 1 || o.writers >= (std::int64_t{1} << 32))
    refuse(std::to_string(o.writers) + " of them", "ask for at least one");
  if (o.classes < 1 || o.classes_per_writer < 0 || o.classes_per_writer > o.classes)
    refuse(std::to_string(o.classes_per_writer) + " classes per writer of " + std::to_string(o.classes),
           "give at least one class, and no more per writer than there are (0: all)");
  if (!(o.noise >= 0 && o.noise <= 1) || !(o.style >= 0 && o.style <= 1))
    refuse("noise " + std::to_string(o.noise) + " and style " + std::to_string(o.style), "both lie between 0 and 1");
  if (!o.samples.empty()) {
    if (static_cast<std::int64_t>(o.samples.size()) != o.writers)
      refuse(std::to_string(o.samples.size()) + " numbers of samples for " + std::to_string(o.writers) + " writers",
             "give one for each writer");
    for (std::int64_t const samples : o.samples)
      if (samples < 0) refuse(std::to_string(samples) + " samples for a writer", "give 0 or more");
    return o.samples;
  }
  if (!(o.mean_samples > 0) || !(o.spread >= 0 && o.spread <= 10) || o.min_samples < 0 ||
      o.max_samples < o.min_samples || !(o.mean_samples <= 1e9))
    refuse("a mean of " + std::to_string(o.mean_samples) + " samples with spread " + std::to_string(o.spread) +
               " between " + std::to_string(o.min_samples) + " and " + std::to_string(o.max_samples),
           "the mean is above 0, the spread lies between 0 and 10, and the bounds are in order");
  std::vector<std::int64_t> samples(static_cast<std::size_t>(o.writers));
  for (std::size_t writer = 0; writer < samples.size(); ++writer) {
    KeyedWords draws(o.seed, static_cast<std::uint32_t>(writer), 0, 5);
    // The mean of exp(s z) is exp(s² / 2).
    double const drawn = o.mean_samples * std::exp(o.spread * draws.normal() - o.spread * o.spread / 2);
    samples[writer] =
        std::clamp(static_cast<std::int64_t>(std::llround(std::min(drawn, 1e15))), o.min_samples, o.max_samples);
  }
  return samples;
}

}  // namespace detail

/// Makes the data. A writer's samples depend on the seed, the writer's number and their own alone: more writers or
/// samples leave the others as they are. Labels are uniform over the writer's classes. \cost about 5 us a sample.
/// \throws ConfigError for no writer or class, lists of the wrong length, noise or style outside 0 … 1, and where no
/// writer has a sample.
[[nodiscard]] inline SyntheticWriters make_synthetic_writers(SyntheticWritersOptions const& o = {}) {
  auto const counts = detail::samples_of_writers(o);
  auto const total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  if (total == 0)
    throw ConfigError(sentence("data", "synthetic writers without a single sample", "give one of them some"));
  constexpr std::int64_t side = detail::Scribe::side;
  auto images = torch::empty({total, 1, side, side}, torch::kByte);
  auto labels = torch::empty({total}, torch::kLong);
  auto* pixel = images.mutable_data_ptr<std::uint8_t>();
  auto* label = labels.mutable_data_ptr<std::int64_t>();
  Writers writers;
  writers.owners.reserve(static_cast<std::size_t>(total));
  detail::Scribe scribe(o);
  std::vector<std::int64_t> known(static_cast<std::size_t>(o.classes));
  for (std::int64_t writer = 0; writer < o.writers; ++writer) {
    writers.names.push_back("writer_" + std::to_string(writer));
    detail::KeyedWords draws(o.seed, static_cast<std::uint32_t>(writer), 0, 3);
    std::iota(known.begin(), known.end(), std::int64_t{0});
    auto const kept = o.classes_per_writer == 0 ? o.classes : o.classes_per_writer;
    if (kept < o.classes)
      for (std::int64_t k = 0; k < kept; ++k)
        std::swap(known[static_cast<std::size_t>(k)],
                  known[static_cast<std::size_t>(draws.between(static_cast<int>(k), static_cast<int>(o.classes - 1)))]);
    auto const hand = scribe.hand(writer, static_cast<int>(o.style * 256));
    for (std::int64_t sample = 0; sample < counts[static_cast<std::size_t>(writer)]; ++sample, pixel += side * side) {
      *label = known[static_cast<std::size_t>(draws.between(0, static_cast<int>(kept - 1)))];
      scribe.draw(writer, sample, *label++, hand, pixel);
      writers.owners.push_back(writer);
    }
  }
  auto [mean, stddev] = channel_statistics(images);
  for (double& s : stddev) s = std::max(s, 1.0 / 255.0);
  return {{std::move(images), std::move(labels), {"synthetic writers", o.classes, std::move(mean), std::move(stddev)}},
          std::move(writers)};
}

}  // namespace pardl::inline PARDL_ABI::data
