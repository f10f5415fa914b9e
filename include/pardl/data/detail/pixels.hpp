// SPDX-License-Identifier: MIT
/// \file   Loops over the pixels of a batch in CPU memory, in the caller's thread: what the transforms run on a CPU.
/// \layer  data (private).
///
/// A batch in either layout is rows of pixels: NCHW is B·C planes of H rows of W pixels of one element each, NHWC
/// (channels_last) is B planes of H rows of W pixels of C elements each. Moving pixels needs no more, so every kernel
/// here serves both layouts and every element type. One thread, because loader threads already run side by side.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// How the bytes of a dense [B, C, H, W] batch lie.
struct PixelRows {
  std::int64_t images, planes, height, width;
  std::size_t pixel;  ///< bytes

  [[nodiscard]] std::size_t row() const noexcept { return static_cast<std::size_t>(width) * pixel; }
  [[nodiscard]] std::size_t plane() const noexcept { return static_cast<std::size_t>(height) * row(); }
  [[nodiscard]] std::size_t image() const noexcept { return static_cast<std::size_t>(planes) * plane(); }
};

[[nodiscard]] inline PixelRows pixel_rows(torch::Tensor const& dense, torch::MemoryFormat format) {
  auto const element = static_cast<std::size_t>(dense.element_size());
  auto const channels = dense.size(1);
  bool const last = format == torch::MemoryFormat::ChannelsLast;
  return {dense.size(0), last ? 1 : channels, dense.size(2), dense.size(3),
          last ? static_cast<std::size_t>(channels) * element : element};
}

[[nodiscard]] inline std::byte const* bytes_of(torch::Tensor const& dense) {
  return static_cast<std::byte const*>(dense.const_data_ptr());
}
[[nodiscard]] inline std::byte* bytes_of_mutable(torch::Tensor const& dense) {
  return static_cast<std::byte*>(dense.mutable_data_ptr());
}

/// Output row y, column x of image b is input (y + top[b], x + left[b]), black where that lies outside.
inline void shift_images(PixelRows const& from, std::byte const* source, PixelRows const& to, std::byte* target,
                         std::span<std::int64_t const> top, std::span<std::int64_t const> left) {
  for (std::int64_t b = 0; b < to.images; ++b) {
    auto const dy = top[static_cast<std::size_t>(b)], dx = left[static_cast<std::size_t>(b)];
    auto const begin = std::clamp<std::int64_t>(-dx, 0, to.width);                // first column that has a source
    auto const end = std::clamp<std::int64_t>(from.width - dx, begin, to.width);  // first one after them
    auto const before = static_cast<std::size_t>(begin) * to.pixel;
    auto const inside = static_cast<std::size_t>(end - begin) * to.pixel;
    auto const after = to.row() - before - inside;
    for (std::int64_t p = 0; p < to.planes; ++p, source += from.plane())
      for (std::int64_t y = 0; y < to.height; ++y, target += to.row()) {
        auto const sy = y + dy;
        if (sy < 0 || sy >= from.height || inside == 0) {
          std::memset(target, 0, to.row());
          continue;
        }
        std::memset(target, 0, before);
        std::memcpy(
            target + before,
            source + static_cast<std::size_t>(sy) * from.row() + static_cast<std::size_t>(begin + dx) * from.pixel,
            inside);
        std::memset(target + before + inside, 0, after);
      }
  }
}

template <std::size_t Pixel>
void mirror_rows(std::byte const* source, std::byte* target, std::size_t rows, std::size_t width) {
  for (std::size_t r = 0; r < rows; ++r, source += width * Pixel, target += width * Pixel)
    for (std::size_t x = 0; x < width; ++x) std::memcpy(target + x * Pixel, source + (width - 1 - x) * Pixel, Pixel);
}

/// One-byte pixels eight at a time: reversing the bytes of a word mirrors them, whatever the machine's byte order.
template <>
inline void mirror_rows<1>(std::byte const* source, std::byte* target, std::size_t rows, std::size_t width) {
  for (std::size_t r = 0; r < rows; ++r, source += width, target += width) {
    std::size_t x = 0;
    for (; x + 8 <= width; x += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, source + width - 8 - x, 8);
      word = __builtin_bswap64(word);
      std::memcpy(target + x, &word, 8);
    }
    for (; x < width; ++x) target[x] = source[width - 1 - x];
  }
}

/// Mirrors the images whose flag is set, left to right, and copies the others.
inline void mirror_images(PixelRows const& rows, std::byte const* source, std::byte* target,
                          std::span<std::uint8_t const> flags) {
  auto const count = static_cast<std::size_t>(rows.planes * rows.height), width = static_cast<std::size_t>(rows.width);
  for (std::int64_t b = 0; b < rows.images; ++b, source += rows.image(), target += rows.image()) {
    if (!flags[static_cast<std::size_t>(b)]) {
      std::memcpy(target, source, rows.image());
      continue;
    }
    switch (rows.pixel) {
      case 1:
        mirror_rows<1>(source, target, count, width);
        break;
      case 3:
        mirror_rows<3>(source, target, count, width);
        break;
      case 4:
        mirror_rows<4>(source, target, count, width);
        break;
      case 12:
        mirror_rows<12>(source, target, count, width);
        break;
      default:
        for (std::size_t r = 0; r < count; ++r)
          for (std::size_t x = 0; x < width; ++x)
            std::memcpy(target + r * rows.row() + x * rows.pixel,
                        source + r * rows.row() + (width - 1 - x) * rows.pixel, rows.pixel);
    }
  }
}

/// A rectangle of pixels, bottom and right excluded.
struct Box {
  std::int64_t top, left, bottom, right;
};

/// Blackens one box per image.
inline void blacken(PixelRows const& rows, std::byte* target, std::span<Box const> boxes) {
  for (auto const& box : boxes) {
    auto const skip = static_cast<std::size_t>(box.left) * rows.pixel;
    auto const bytes = static_cast<std::size_t>(box.right - box.left) * rows.pixel;
    for (std::int64_t p = 0; p < rows.planes; ++p, target += rows.plane())
      for (auto y = box.top; y < box.bottom; ++y)
        std::memset(target + static_cast<std::size_t>(y) * rows.row() + skip, 0, bytes);
  }
}

/// target = table[channel][byte] for a dense batch of bytes; table holds 256 floats per channel. A look-up is bound by
/// the writing of its result, as any formula would be, and gives that formula's exact value.
inline void look_up(torch::Tensor const& bytes, torch::MemoryFormat format, std::span<float const> table,
                    float* target) {
  auto const* source = bytes.const_data_ptr<std::uint8_t>();
  auto const channels = bytes.size(1), area = bytes.size(2) * bytes.size(3);
  if (format != torch::MemoryFormat::ChannelsLast || channels == 1) {
    for (std::int64_t plane = 0; plane < bytes.size(0) * channels; ++plane) {
      auto const* values = table.data() + 256 * (plane % channels);
      for (std::int64_t i = 0; i < area; ++i) target[i] = values[source[i]];
      source += area;
      target += area;
    }
  } else {
    for (std::int64_t pixel = 0; pixel < bytes.size(0) * area; ++pixel) {
      auto const* values = table.data();
      for (std::int64_t c = 0; c < channels; ++c, values += 256) *target++ = values[*source++];
    }
  }
}

/// Planes to pixels: a dense NCHW batch of bytes as channels_last, without a second thread.
[[nodiscard]] inline torch::Tensor interleave(torch::Tensor const& bytes) {
  auto out = torch::empty(bytes.sizes(), bytes.options().memory_format(torch::MemoryFormat::ChannelsLast));
  auto const* source = bytes.const_data_ptr<std::uint8_t>();
  auto* target = out.mutable_data_ptr<std::uint8_t>();
  auto const channels = bytes.size(1), area = bytes.size(2) * bytes.size(3);
  for (std::int64_t b = 0; b < bytes.size(0); ++b, source += channels * area, target += channels * area) {
    if (channels == 3)  // known trip count: twice as fast
      for (std::int64_t i = 0; i < area; ++i)
        for (std::int64_t c = 0; c < 3; ++c) target[3 * i + c] = source[c * area + i];
    else
      for (std::int64_t i = 0; i < area; ++i)
        for (std::int64_t c = 0; c < channels; ++c) target[channels * i + c] = source[c * area + i];
  }
  return out;
}

}  // namespace pardl::inline PARDL_ABI::detail
