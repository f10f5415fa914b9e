// SPDX-License-Identifier: MIT
/// \file   Images made in memory that a network can learn: a pattern per class, under noise.
/// \layer  data.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "pardl/data/image_dataset.hpp"
#include "pardl/data/sample_stream.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data {

struct SyntheticOptions {
  std::int64_t samples = 10'000;
  std::int64_t classes = 10;
  std::int64_t channels = 3;
  std::int64_t height = 32;
  std::int64_t width = 32;
  double noise = 0.25;         ///< half width of the noise as a part of the whole range; 0: the patterns alone
  Split split = Split::train;  ///< train and test have the same patterns and different noise
  std::uint64_t seed = 0;      ///< another seed, other patterns
};

/// Sample i has label i mod classes. Its class has a grid of 4 × 4 patches of random brightness per channel, symmetric
/// left to right so that mirroring changes nothing; noise is triangular. Integers only: the same bytes on every
/// machine. \cost about 5 ns a pixel, once.
class Synthetic : public ImageDataset {
 public:
  /// \throws ConfigError for an empty shape, no class, or noise outside 0 … 1.
  explicit Synthetic(SyntheticOptions const& options = {}) : ImageDataset(make(options)) {}

 private:
  static ImageDataset make(SyntheticOptions const& o) {
    if (o.samples < 1 || o.classes < 1 || o.channels < 1 || o.height < 1 || o.width < 1 ||
        !(o.noise >= 0 && o.noise <= 1))
      throw ConfigError(sentence("data",
                                 "synthetic data of " + std::to_string(o.samples) + " samples [" +
                                     std::to_string(o.channels) + ", " + std::to_string(o.height) + ", " +
                                     std::to_string(o.width) + "], " + std::to_string(o.classes) + " classes, noise " +
                                     std::to_string(o.noise),
                                 "counts are at least 1 and noise lies between 0 and 1"));
    auto images = torch::empty({o.samples, o.channels, o.height, o.width}, torch::kByte);
    auto labels = torch::empty({o.samples}, torch::kLong);
    auto* pixel = images.mutable_data_ptr<std::uint8_t>();
    auto* label = labels.mutable_data_ptr<std::int64_t>();
    auto const patterns = brightness(o);
    std::vector<std::size_t> patch(static_cast<std::size_t>(o.width));  // of a column: 0, 1, 1, 0
    for (std::size_t x = 0; x < patch.size(); ++x) patch[x] = 4 * std::min(x, patch.size() - 1 - x) / patch.size();
    auto const scale = static_cast<int>(o.noise * 256.0);
    auto const purpose = o.split == Split::train ? 1U : 2U;
    for (std::int64_t i = 0; i < o.samples; ++i) {
      label[i] = i % o.classes;
      std::uint32_t block = 0;
      std::size_t half = 8;
      std::array<std::uint32_t, 4> random{};
      for (std::int64_t c = 0; c < o.channels; ++c)
        for (std::int64_t y = 0; y < o.height; ++y) {
          auto const* row =
              &patterns[static_cast<std::size_t>(((label[i] * o.channels + c) * 4 + 4 * y / o.height) * 2)];
          for (std::size_t x = 0; x < patch.size(); ++x) {
            if (half == 8) random = bits(o.seed, i, purpose, block++), half = 0;
            auto const two = random[half / 2] >> (16 * (half % 2));
            ++half;
            int const noise = static_cast<int>((two & 255) + ((two >> 8) & 255)) - 255;  // -255 … 255, triangular
            *pixel++ = static_cast<std::uint8_t>(std::clamp(row[patch[x]] + noise * scale / 256, 0, 255));
          }
        }
    }
    auto [mean, stddev] = channel_statistics(images);
    for (double& s : stddev) s = std::max(s, 1.0 / 255.0);  // a constant image, too, can be normalised
    return {std::move(images),
            std::move(labels),
            {o.split == Split::train ? "synthetic train" : "synthetic test", o.classes, std::move(mean),
             std::move(stddev)}};
  }

  static std::array<std::uint32_t, 4> bits(std::uint64_t seed, std::int64_t number, std::uint32_t purpose,
                                           std::uint32_t block) {
    auto const n = static_cast<std::uint64_t>(number);
    return philox4x32({static_cast<std::uint32_t>(n), static_cast<std::uint32_t>(n >> 32), purpose, block},
                      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  }
  /// 64 … 191 for every class, channel, row of patches, and outer or inner column of patches.
  static std::vector<int> brightness(SyntheticOptions const& o) {
    std::vector<int> all;
    for (std::int64_t label = 0; label < o.classes; ++label)
      for (std::int64_t channel = 0; channel < o.channels; ++channel) {
        auto const words = bits(o.seed, label, 0, static_cast<std::uint32_t>(channel));
        for (std::uint32_t patch = 0; patch < 8; ++patch)
          all.push_back(64 + static_cast<int>((words[patch / 4] >> (8 * (patch % 4))) & 255) / 2);
      }
    return all;
  }
};

static_assert(resident_dataset<Synthetic>);

}  // namespace pardl::inline PARDL_ABI::data
