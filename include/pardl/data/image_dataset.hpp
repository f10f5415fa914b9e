// SPDX-License-Identifier: MIT
/// \file   Labelled images as one block of bytes: what every image reader makes.
/// \layer  data.
///
/// Images stay bytes, [N, C, H, W], until a batch is normalised: a quarter of the memory and of the traffic to a GPU.
/// Cifar100, FashionMnist, Synthetic and the others derive from ImageDataset and add a constructor only, no state: a
/// program that chooses its data at run time holds an ImageDataset, and slicing is harmless.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/data/dataset.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data {

/// Which part of a published dataset.
enum class Split { train, test };

/// What is known of an image set beside its pixels.
struct ImageFacts {
  std::string name;            ///< for messages: "CIFAR-100 train"
  std::int64_t classes = 0;    ///< labels are 0 … classes-1
  std::vector<double> mean;    ///< per channel, of pixels scaled to [0, 1]
  std::vector<double> stddev;  ///< per channel
};

/// Images uint8 [N, C, H, W] and labels int64 [N], a model of `dataset`. Copies share the storage.
class ImageDataset {
 public:
  /// \throws DataError for another type or shape, or for a label outside 0 … classes-1 (names the first one).
  ImageDataset(torch::Tensor images, torch::Tensor labels, ImageFacts facts)
      : samples_(std::move(images), std::move(labels)), facts_(std::move(facts)) {
    auto const& pixels = samples_.inputs();
    if (pixels.dim() != 4 || pixels.scalar_type() != torch::kByte || samples_.targets().dim() != 1 ||
        samples_.targets().scalar_type() != torch::kLong)
      throw DataError(sentence("data",
                               facts_.name + ": images " + pardl::detail::shape_of(pixels) + " of " +
                                   c10::toString(pixels.scalar_type()) + " with labels " +
                                   pardl::detail::shape_of(samples_.targets()) + " of " +
                                   c10::toString(samples_.targets().scalar_type()),
                               "give images as uint8 [N, C, H, W] and labels as int64 [N]"));
    auto const channels = static_cast<std::size_t>(pixels.size(1));
    if (facts_.mean.size() != channels || facts_.stddev.size() != channels)
      throw DataError(sentence("data", facts_.name + ": mean and deviation are not per channel",
                               "give one of each for every one of the " + std::to_string(channels) + " channels"));
    check_labels();
  }

  [[nodiscard]] std::int64_t size() const { return samples_.size(); }
  [[nodiscard]] Batch batch(std::span<std::int64_t const> indices) const { return samples_.batch(indices); }
  [[nodiscard]] ImageDataset resident_on(torch::Device device) const { return {samples_.resident_on(device), facts_}; }

  [[nodiscard]] torch::Tensor const& images() const noexcept { return samples_.inputs(); }
  [[nodiscard]] torch::Tensor const& labels() const noexcept { return samples_.targets(); }
  [[nodiscard]] std::int64_t channels() const { return images().size(1); }
  [[nodiscard]] std::int64_t height() const { return images().size(2); }
  [[nodiscard]] std::int64_t width() const { return images().size(3); }
  [[nodiscard]] std::int64_t classes() const noexcept { return facts_.classes; }
  [[nodiscard]] std::string const& name() const noexcept { return facts_.name; }
  [[nodiscard]] std::vector<double> const& mean() const noexcept { return facts_.mean; }
  [[nodiscard]] std::vector<double> const& stddev() const noexcept { return facts_.stddev; }

  /// The first `count` samples (all where there are fewer), without a copy. \throws ConfigError if count < 1.
  [[nodiscard]] ImageDataset first(std::int64_t count) const {
    if (count < 1)
      throw ConfigError(
          sentence("data", facts_.name + " limited to " + std::to_string(count) + " samples", "ask for at least one"));
    auto const kept = std::min(count, size());
    return {TensorDataset{images().narrow(0, 0, kept), labels().narrow(0, 0, kept)}, facts_};
  }

  /// Black borders on all sides up to side × side, the extra row and column below and right; mean and deviation stay
  /// those of the images. \throws ConfigError if the images are larger.
  [[nodiscard]] ImageDataset padded(std::int64_t side) const {
    auto const h = height(), w = width();
    if (h > side || w > side)
      throw ConfigError(sentence("data",
                                 facts_.name + " has images of " + std::to_string(h) + "x" + std::to_string(w) +
                                     ", more than " + std::to_string(side),
                                 "pad to at least their size"));
    if (h == side && w == side) return *this;
    auto wide = torch::zeros({size(), channels(), side, side}, images().options());
    wide.narrow(2, (side - h) / 2, h).narrow(3, (side - w) / 2, w).copy_(images());
    return {TensorDataset{std::move(wide), labels()}, facts_};
  }

 private:
  ImageDataset(TensorDataset samples, ImageFacts facts) : samples_(std::move(samples)), facts_(std::move(facts)) {}

  void check_labels() const {
    auto const host = labels().cpu();
    std::span<std::int64_t const> const all{host.const_data_ptr<std::int64_t>(), static_cast<std::size_t>(size())};
    for (std::size_t i = 0; i < all.size(); ++i)
      if (all[i] < 0 || all[i] >= facts_.classes)
        throw DataError(sentence("data",
                                 facts_.name + ": sample " + std::to_string(i) + " has label " +
                                     std::to_string(all[i]) + " of " + std::to_string(facts_.classes) + " classes",
                                 "the file is damaged or of another dataset; fetch it again"));
  }

  TensorDataset samples_;
  ImageFacts facts_;
};

static_assert(resident_dataset<ImageDataset>);

/// Mean and (population) deviation per channel of uint8 [N, C, H, W] on the CPU, scaled to [0, 1]; sums are integers,
/// so the result is the same on every machine. One pass over the pixels.
[[nodiscard]] inline std::array<std::vector<double>, 2> channel_statistics(torch::Tensor const& images) {
  auto const pixels = images.contiguous();
  auto const channels = pixels.size(1), area = pixels.size(2) * pixels.size(3);
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(channels)), squares(sums.size());
  auto const* value = pixels.const_data_ptr<std::uint8_t>();
  for (std::int64_t plane = 0; plane < pixels.size(0) * channels; ++plane, value += area) {
    std::uint64_t sum = 0, square = 0;
    for (std::int64_t i = 0; i < area; ++i) {
      sum += value[i];
      square += std::uint64_t{value[i]} * value[i];
    }
    sums[static_cast<std::size_t>(plane % channels)] += sum;
    squares[static_cast<std::size_t>(plane % channels)] += square;
  }
  auto const count = static_cast<double>(std::max<std::int64_t>(pixels.size(0) * area, 1));
  std::array<std::vector<double>, 2> statistics;
  for (std::size_t c = 0; c < sums.size(); ++c) {
    double const mean = static_cast<double>(sums[c]) / count;
    double const variance = static_cast<double>(squares[c]) / count - mean * mean;
    statistics[0].push_back(mean / 255.0);
    statistics[1].push_back(std::sqrt(std::max(variance, 0.0)) / 255.0);
  }
  return statistics;
}

}  // namespace pardl::inline PARDL_ABI::data
