// SPDX-License-Identifier: MIT
/// \file   Random numbers that belong to a sample, not to a thread: in any batch the same sample draws the same ones.
/// \layer  data (std only).
///
/// A draw is a pure function of (seed, epoch, sample index, position in the chain of transforms, draw number). Nothing
/// is consumed and nothing is shared, so augmentation does not depend on the number of ranks, the batch size, the
/// number of loader threads or the device.
/// \paper Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011: the counter-based
/// generator Philox4x32 with 10 rounds, which passes BigCrush.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Philox4x32-10: 128 random bits for a 128-bit counter under a 64-bit key. Integers only: the same on every machine.
[[nodiscard]] constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                                std::array<std::uint32_t, 2> key) noexcept {
  for (int round = 0; round < 10; ++round) {
    std::uint64_t const a = std::uint64_t{0xD2511F53U} * counter[0];
    std::uint64_t const b = std::uint64_t{0xCD9E8D57U} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return counter;
}

/// The random stream that a transform gets with a batch: row b of the batch is sample `indices[b]` of the dataset.
/// A view: it must not outlive the indices. All draws are made on the CPU, whatever the batch's device, so that a CPU
/// and a GPU augment alike; what a kernel needs of them is a few bytes per sample.
struct SampleStream {
  std::uint64_t seed = 0;                      ///< of the run; give every rank the same
  std::int64_t epoch = 0;                      ///< counted modulo 2^32
  std::span<std::int64_t const> indices = {};  ///< the sample of each row
  std::uint32_t position = 0;  ///< of the transform in its chain (below 2^16): two crops in a chain differ

  /// Rows in the batch.
  [[nodiscard]] constexpr std::int64_t rows() const noexcept { return static_cast<std::int64_t>(indices.size()); }

  /// The same samples, for the transform at another position.
  [[nodiscard]] constexpr SampleStream at(std::uint32_t other) const noexcept { return {seed, epoch, indices, other}; }

  /// 32 random bits: number `draw` (0 ≤ draw < 2^18) of the sample in row `row`.
  [[nodiscard]] constexpr std::uint32_t bits(std::int64_t row, std::uint32_t draw) const noexcept {
    auto const sample = static_cast<std::uint64_t>(indices[static_cast<std::size_t>(row)]);
    auto const block = philox4x32({static_cast<std::uint32_t>(sample), static_cast<std::uint32_t>(sample >> 32),
                                   static_cast<std::uint32_t>(epoch), (position << 16) | (draw / 4)},
                                  {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
    return block[draw % 4];
  }

  /// Uniform in 0 … bound-1 for 0 < bound < 2^32, by multiply and shift; off uniform by at most bound / 2^32.
  [[nodiscard]] constexpr std::int64_t below(std::int64_t row, std::uint32_t draw, std::int64_t bound) const noexcept {
    return static_cast<std::int64_t>((std::uint64_t{bits(row, draw)} * static_cast<std::uint64_t>(bound)) >> 32);
  }

  /// Uniform in [0, 1), a multiple of 2^-32.
  [[nodiscard]] constexpr double uniform(std::int64_t row, std::uint32_t draw) const noexcept {
    return static_cast<double>(bits(row, draw)) * 0x1p-32;
  }
};

}  // namespace pardl::inline PARDL_ABI
