// SPDX-License-Identifier: MIT
/// \file   What the benchmarks share: images that both languages make alike, a clock, the CSV line.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <pardl/ddp.hpp>
#include <string>
#include <utility>
#include <vector>

namespace benchmarks {

/// CIFAR-shaped bytes and labels, byte for byte those of images() in common.py.
inline pardl::data::ImageDataset synthetic_images(std::int64_t count) {
  auto pixels = torch::empty({count, 3, 32, 32}, torch::kByte);
  auto* pixel = pixels.mutable_data_ptr<std::uint8_t>();
  for (std::int64_t i = 0; i < pixels.numel(); ++i) {
    std::uint32_t word = static_cast<std::uint32_t>(i) * 2654435761U;
    word ^= word >> 15;
    word *= 2246822519U;
    pixel[i] = static_cast<std::uint8_t>(word >> 24);
  }
  return {pixels,
          torch::arange(count, torch::kLong) * 7 % 10,
          {.name = "synthetic", .classes = 10, .mean = {0.5071, 0.4867, 0.4408}, .stddev = {0.2675, 0.2565, 0.2761}}};
}

/// The guide's augmentation, in the order that moves bytes instead of floats.
inline auto augmentation(pardl::data::ImageDataset const& images) {
  return pardl::RandomCrop{.size = 32, .padding = 4} | pardl::RandomHorizontalFlip{} |
         pardl::Normalize{images.mean(), images.stddev()};
}

/// Batches of epoch 0, 1, … without an end; `loader` outlives it.
template <class Loader>
class Forever {
 public:
  explicit Forever(Loader const& loader) : loader_(loader), epoch_(loader.epoch(0)), at_(epoch_.begin()) {}

  pardl::Batch next() {
    if (at_ == epoch_.end()) {
      epoch_ = loader_.epoch(++number_);
      at_ = epoch_.begin();
    }
    auto batch = *at_;
    ++at_;
    return batch;
  }

 private:
  Loader const& loader_;
  std::int64_t number_ = 0;
  decltype(std::declval<Loader const&>().epoch(0)) epoch_;
  decltype(epoch_.begin()) at_;
};

template <class Action>
double seconds(Action&& action) {
  auto const start = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double median(std::vector<double> values) {
  std::ranges::sort(values);
  auto const middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

inline void report(char const* benchmark, std::string const& variant, int ranks, double value, char const* unit,
                   int repeat) {
  std::printf("%s,cpp,%s,%d,%.6g,%s,%d\n", benchmark, variant.c_str(), ranks, value, unit, repeat);
  std::fflush(stdout);
}

}  // namespace benchmarks
