// SPDX-License-Identifier: MIT
/// \file   Augmentation and normalisation as operations on a whole batch, on the batch's own device; `a | b` composes.
/// \layer  data.
///
/// Every transform takes [B, C, H, W] in any layout and leaves its argument untouched; the memory format is kept.
/// Cropping, mirroring and cutting move pixels of any type, so place them before Normalize: bytes are a quarter of the
/// traffic. Random transforms draw from a SampleStream, on the CPU, for every device, and only a few bytes per image
/// travel: a CPU and a GPU give the same pixels. On a CPU everything runs in the caller's thread.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "pardl/data/dataset.hpp"
#include "pardl/data/detail/pixels.hpp"
#include "pardl/data/sample_stream.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Batch in, batch out: `transform(batch, stream)` on the batch's device, with as many rows as before. It is called
/// from several threads at once, so it is const, and its random numbers come from the stream. A lambda is one, too.
template <class T>
concept batch_transform =
    std::copy_constructible<T> && requires(T const& transform, torch::Tensor batch, SampleStream const& stream) {
      { transform(batch, stream) } -> std::convertible_to<torch::Tensor>;
    };

static_assert(!batch_transform<int>);

namespace detail {

/// The batch, dense in the layout it has. \throws DataError unless it is [B, C, H, W] with a row per sample of the
/// stream.
[[nodiscard]] inline std::pair<torch::Tensor, torch::MemoryFormat> dense_images(torch::Tensor const& batch,
                                                                                SampleStream const& stream,
                                                                                std::string_view who) {
  if (!batch.defined() || batch.dim() != 4)
    throw DataError(sentence("data",
                             std::string(who) + " got a batch " + (batch.defined() ? shape_of(batch) : "undefined"),
                             "it takes images [B, C, H, W]"));
  if (batch.size(0) != stream.rows())
    throw DataError(sentence("data",
                             std::string(who) + " got " + std::to_string(batch.size(0)) + " images and " +
                                 std::to_string(stream.rows()) + " sample numbers",
                             "give SampleStream::indices one number per image"));
  auto const format = batch.suggest_memory_format();
  return {batch.contiguous(format), format};
}

[[nodiscard]] inline torch::Tensor empty_images(torch::Tensor const& like, std::int64_t height, std::int64_t width,
                                                torch::MemoryFormat format) {
  return torch::empty({like.size(0), like.size(1), height, width}, like.options().memory_format(format));
}

/// As shift_images, with tensor operations: what runs on a GPU. `border` bounds how far a window leaves the image.
[[nodiscard]] inline torch::Tensor shift_on_device(torch::Tensor const& images, torch::MemoryFormat format,
                                                   std::int64_t border, std::int64_t height, std::int64_t width,
                                                   std::span<std::int64_t const> top,
                                                   std::span<std::int64_t const> left) {
  std::vector<std::int64_t> draws(top.begin(), top.end());
  draws.insert(draws.end(), left.begin(), left.end());
  for (auto& draw : draws) draw += border;
  auto const at = on_device(std::span<std::int64_t const>(draws), images.device()).view({2, -1});
  auto const windows =
      at::constant_pad_nd(images, {border, border, border, border}, 0).unfold(2, height, 1).unfold(3, width, 1);
  auto const rows = torch::arange(images.size(0), at.options());
  return windows.permute({0, 2, 3, 1, 4, 5}).index({rows, at[0], at[1]}).contiguous(format);
}

[[nodiscard]] inline torch::Tensor mirror_on_device(torch::Tensor const& images, torch::MemoryFormat format,
                                                    std::span<std::uint8_t const> flags) {
  auto const mirrored = on_device(flags, images.device()).to(torch::kBool).view({-1, 1, 1, 1});
  return torch::where(mirrored, images.flip(3), images).contiguous(format);
}

[[nodiscard]] inline torch::Tensor blacken_on_device(torch::Tensor const& images, torch::MemoryFormat format,
                                                     std::span<Box const> boxes) {
  std::vector<std::int64_t> edges;
  for (auto const& box : boxes) edges.insert(edges.end(), {box.top, box.left, box.bottom, box.right});
  auto const edge = on_device(std::span<std::int64_t const>(edges), images.device()).view({-1, 4}).unbind(1);
  auto const rows = torch::arange(images.size(2), edge[0].options()),
             columns = torch::arange(images.size(3), edge[0].options());
  auto const inside_rows = (rows >= edge[0].unsqueeze(1)).logical_and(rows < edge[2].unsqueeze(1));
  auto const inside_columns = (columns >= edge[1].unsqueeze(1)).logical_and(columns < edge[3].unsqueeze(1));
  return images
      .masked_fill(
          inside_rows.view({-1, 1, images.size(2), 1}).logical_and(inside_columns.view({-1, 1, 1, images.size(3)})), 0)
      .contiguous(format);
}

/// (x / 255 - mean) / deviation in float, one exactly rounded operation after the other, as torchvision's ToTensor and
/// Normalize do. Division by a tensor, since a division by a scalar is a multiplication on CUDA and rounds differently.
[[nodiscard]] inline torch::Tensor scale_on_device(torch::Tensor const& images) {
  return images.to(torch::kFloat).div_(torch::full({1}, 255.0F, torch::dtype(torch::kFloat).device(images.device())));
}

inline constexpr auto unit_scale = [] {
  std::array<float, 256> table{};
  for (std::size_t v = 0; v < table.size(); ++v) table[v] = static_cast<float>(v) / 255.0F;
  return table;
}();

/// Bytes 0 … 255 as floats 0 … 1.
[[nodiscard]] inline torch::Tensor scale_bytes(torch::Tensor const& images) {
  if (!images.is_cpu()) return scale_on_device(images);
  auto const format = images.suggest_memory_format();
  auto const dense = images.contiguous(format);
  auto out = torch::empty(dense.sizes(), dense.options().dtype(torch::kFloat).memory_format(format));
  std::vector<float> table;
  for (std::int64_t c = 0; c < dense.size(1); ++c) table.insert(table.end(), unit_scale.begin(), unit_scale.end());
  look_up(dense, format, table, out.mutable_data_ptr<float>());
  return out;
}

}  // namespace detail

/// A window of size × size at a random place of the image with `padding` black pixels around it, each place equally
/// likely. \throws ConfigError if the window is larger than the padded image.
struct RandomCrop {
  std::int64_t size = 0;     ///< height and width of the result; must be given
  std::int64_t padding = 0;  ///< black pixels on each side

  [[nodiscard]] torch::Tensor operator()(torch::Tensor const& batch, SampleStream const& stream) const {
    auto const [images, format] = detail::dense_images(batch, stream, "RandomCrop");
    auto const rows = images.size(2) + 2 * padding - size + 1, columns = images.size(3) + 2 * padding - size + 1;
    if (size < 1 || padding < 0 || rows < 1 || columns < 1)
      throw ConfigError(sentence("data",
                                 "RandomCrop{.size = " + std::to_string(size) + ", .padding = " +
                                     std::to_string(padding) + "} on images " + detail::shape_of(images),
                                 "the window must be at least 1 and fit in the padded image"));
    std::vector<std::int64_t> top, left;
    for (std::int64_t b = 0; b < images.size(0); ++b) {
      top.push_back(stream.below(b, 0, rows) - padding);
      left.push_back(stream.below(b, 1, columns) - padding);
    }
    if (!images.is_cpu()) return detail::shift_on_device(images, format, padding, size, size, top, left);
    auto out = detail::empty_images(images, size, size, format);
    detail::shift_images(detail::pixel_rows(images, format), detail::bytes_of(images), detail::pixel_rows(out, format),
                         detail::bytes_of_mutable(out), top, left);
    return out;
  }
};

/// The middle window of size × size; where the image is smaller, with black around it. The place is torchvision's:
/// half the excess, a half rounded to even. \throws ConfigError if size < 1.
struct CenterCrop {
  std::int64_t size = 0;  ///< height and width of the result; must be given

  [[nodiscard]] torch::Tensor operator()(torch::Tensor const& batch, SampleStream const& stream) const {
    auto const [images, format] = detail::dense_images(batch, stream, "CenterCrop");
    if (size < 1)
      throw ConfigError(
          sentence("data", "CenterCrop{.size = " + std::to_string(size) + "}", "the window has 1 pixel or more"));
    auto const start = [this](std::int64_t length) {
      auto const excess = length - size;
      return excess < 0 ? -(-excess / 2) : excess / 2 + (excess % 4 == 3 ? 1 : 0);
    };
    auto const count = static_cast<std::size_t>(images.size(0));
    std::vector<std::int64_t> const top(count, start(images.size(2))), left(count, start(images.size(3)));
    auto const border = (std::max<std::int64_t>(0, size - std::min(images.size(2), images.size(3))) + 1) / 2;
    if (!images.is_cpu()) return detail::shift_on_device(images, format, border, size, size, top, left);
    auto out = detail::empty_images(images, size, size, format);
    detail::shift_images(detail::pixel_rows(images, format), detail::bytes_of(images), detail::pixel_rows(out, format),
                         detail::bytes_of_mutable(out), top, left);
    return out;
  }
};

/// Mirrors each image, left to right, with probability p. \throws ConfigError unless 0 ≤ p ≤ 1.
struct RandomHorizontalFlip {
  double p = 0.5;

  [[nodiscard]] torch::Tensor operator()(torch::Tensor const& batch, SampleStream const& stream) const {
    auto const [images, format] = detail::dense_images(batch, stream, "RandomHorizontalFlip");
    if (!(p >= 0 && p <= 1))
      throw ConfigError(
          sentence("data", "RandomHorizontalFlip{.p = " + std::to_string(p) + "}", "give a probability, 0 to 1"));
    std::vector<std::uint8_t> flags;
    for (std::int64_t b = 0; b < images.size(0); ++b) flags.push_back(stream.uniform(b, 0) < p);
    if (!images.is_cpu()) return detail::mirror_on_device(images, format, flags);
    auto out = detail::empty_images(images, images.size(2), images.size(3), format);
    detail::mirror_images(detail::pixel_rows(images, format), detail::bytes_of(images), detail::bytes_of_mutable(out),
                          flags);
    return out;
  }
};

/// Zeroes a square of size × size around a random pixel, cut off at the border. After Normalize, zero is the mean
/// colour, as in the paper. \paper DeVries, Taylor, "Improved regularization of convolutional neural networks with
/// Cutout", 2017.
struct Cutout {
  std::int64_t size = 0;  ///< side of the square; must be given (the paper: 16 for CIFAR-10, 8 for CIFAR-100)

  [[nodiscard]] torch::Tensor operator()(torch::Tensor const& batch, SampleStream const& stream) const {
    auto const [images, format] = detail::dense_images(batch, stream, "Cutout");
    if (size < 1)
      throw ConfigError(sentence("data", "Cutout{.size = " + std::to_string(size) + "}", "cut at least one pixel"));
    auto const height = images.size(2), width = images.size(3);
    std::vector<detail::Box> boxes;
    for (std::int64_t b = 0; b < images.size(0); ++b) {
      auto const top = stream.below(b, 0, height) - size / 2, left = stream.below(b, 1, width) - size / 2;
      boxes.push_back({std::max<std::int64_t>(top, 0), std::max<std::int64_t>(left, 0), std::min(top + size, height),
                       std::min(left + size, width)});
    }
    if (!images.is_cpu()) return detail::blacken_on_device(images, format, boxes);
    auto out = images.clone();
    detail::blacken(detail::pixel_rows(out, format), detail::bytes_of_mutable(out), boxes);
    return out;
  }
};

/// Black pixels on all four sides. \throws ConfigError if size < 0.
struct Pad {
  std::int64_t size = 0;  ///< pixels on each side

  [[nodiscard]] torch::Tensor operator()(torch::Tensor const& batch, SampleStream const& stream) const {
    auto const [images, format] = detail::dense_images(batch, stream, "Pad");
    if (size < 0)
      throw ConfigError(sentence("data", "Pad{.size = " + std::to_string(size) + "}", "a border has 0 pixels or more"));
    auto const height = images.size(2) + 2 * size, width = images.size(3) + 2 * size;
    std::vector<std::int64_t> const shift(static_cast<std::size_t>(images.size(0)), -size);
    if (!images.is_cpu()) return detail::shift_on_device(images, format, size, height, width, shift, shift);
    auto out = detail::empty_images(images, height, width, format);
    detail::shift_images(detail::pixel_rows(images, format), detail::bytes_of(images), detail::pixel_rows(out, format),
                         detail::bytes_of_mutable(out), shift, shift);
    return out;
  }
};

/// Bytes to floats in [0, 1]; floats pass unchanged. The DataLoader does this to images that are still bytes at the
/// end.
struct ToFloat {
  [[nodiscard]] torch::Tensor operator()(torch::Tensor const& batch, SampleStream const& stream) const {
    auto const [images, format] = detail::dense_images(batch, stream, "ToFloat");
    return images.scalar_type() == torch::kByte ? detail::scale_bytes(images) : images;
  }
};

/// (x - mean) / deviation per channel, as float. Bytes are scaled to [0, 1] first; floats are taken as they are.
/// The bits are those of float(x) / 255, minus the mean, over the deviation, each step rounded, on every device.
class Normalize {
 public:
  /// One mean and one deviation per channel. \throws ConfigError if the counts differ or a deviation is not positive.
  Normalize(std::span<double const> mean, std::span<double const> stddev) {
    if (mean.empty() || mean.size() != stddev.size() || !std::ranges::all_of(stddev, [](double s) { return s > 0; }))
      throw ConfigError(sentence("data",
                                 "Normalize got " + std::to_string(mean.size()) + " means and " +
                                     std::to_string(stddev.size()) + " deviations, or a deviation that is not positive",
                                 "give one mean and one positive deviation per channel"));
    for (std::size_t c = 0; c < mean.size(); ++c) {
      mean_.push_back(static_cast<float>(mean[c]));
      stddev_.push_back(static_cast<float>(stddev[c]));
      for (float const unit : detail::unit_scale) table_.push_back((unit - mean_[c]) / stddev_[c]);
    }
  }
  Normalize(std::initializer_list<double> mean, std::initializer_list<double> stddev)
      : Normalize(std::span(mean.begin(), mean.size()), std::span(stddev.begin(), stddev.size())) {}

  /// \throws DataError if the batch has another number of channels.
  [[nodiscard]] torch::Tensor operator()(torch::Tensor const& batch, SampleStream const& stream) const {
    auto const [images, format] = detail::dense_images(batch, stream, "Normalize");
    if (images.size(1) != static_cast<std::int64_t>(mean_.size()))
      throw DataError(sentence(
          "data",
          "Normalize has " + std::to_string(mean_.size()) + " channels, the batch is " + detail::shape_of(images),
          "use the mean and deviation of this dataset"));
    bool const bytes = images.scalar_type() == torch::kByte;
    if (!images.is_cpu() || !bytes)
      return with_tensors(bytes ? detail::scale_on_device(images) : images.to(torch::kFloat));
    auto out = torch::empty(images.sizes(), images.options().dtype(torch::kFloat).memory_format(format));
    detail::look_up(images, format, table_, out.mutable_data_ptr<float>());
    return out;
  }

 private:
  [[nodiscard]] torch::Tensor with_tensors(torch::Tensor const& images) const {
    auto const per_channel = [&](std::vector<float> const& values) {
      return detail::on_device(std::span<float const>(values), images.device()).view({1, -1, 1, 1});
    };
    return images.sub(per_channel(mean_)).div_(per_channel(stddev_));
  }

  std::vector<float> mean_, stddev_;
  std::vector<float> table_;  ///< the result for each of the 256 bytes, per channel
};

/// What `a | b | c` makes: one after the other, each drawing from its own position of the stream. A chain is flat: the
/// draws do not depend on how it was bracketed.
template <batch_transform... Transforms>
class Chain {
 public:
  constexpr explicit Chain(std::tuple<Transforms...> parts) : parts_(std::move(parts)) {}

  [[nodiscard]] torch::Tensor operator()(torch::Tensor batch, SampleStream const& stream) const {
    auto position = stream.position;
    std::apply([&](auto const&... transform) { ((batch = transform(std::move(batch), stream.at(position++))), ...); },
               parts_);
    return batch;
  }
  [[nodiscard]] constexpr std::tuple<Transforms...> const& parts() const noexcept { return parts_; }

 private:
  std::tuple<Transforms...> parts_;
};

namespace detail {
template <class T>
[[nodiscard]] std::tuple<T> chain_parts(T const& transform) {
  return {transform};
}
template <class... T>
[[nodiscard]] std::tuple<T...> chain_parts(Chain<T...> const& chain) {
  return chain.parts();
}
}  // namespace detail

/// First `first`, then `second`.
template <batch_transform First, batch_transform Second>
[[nodiscard]] auto operator|(First const& first, Second const& second) {
  return Chain{std::tuple_cat(detail::chain_parts(first), detail::chain_parts(second))};
}

static_assert(batch_transform<RandomCrop> && batch_transform<RandomHorizontalFlip> && batch_transform<Cutout>);
static_assert(batch_transform<CenterCrop> && batch_transform<Pad> && batch_transform<ToFloat> &&
              batch_transform<Normalize>);
static_assert(batch_transform<Chain<RandomCrop, Normalize>>);

}  // namespace pardl::inline PARDL_ABI
