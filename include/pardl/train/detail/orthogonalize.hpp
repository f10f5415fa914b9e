// SPDX-License-Identifier: MIT
/// \file   Orthonormal columns for PowerSGD, and the seeds of its random start, as PyTorch makes both.
/// \layer  train, private.
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <cstdint>
#include <random>
#include <tuple>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// numpy.random.RandomState(seed).randint(1'000'000'000), draw for draw: the Mersenne Twister's 32 bits cut to 30, and
/// drawn again where they are too many. PyTorch seeds each bucket's start with it.
class RandomStateSeeds {
 public:
  explicit RandomStateSeeds(std::uint32_t seed) : engine_(seed) {}

  std::uint64_t next() {
    for (;;) {
      ++draws_;
      if (auto const value = engine_() & 0x3fff'ffffU; value < 1'000'000'000U) return value;
    }
  }

  /// How often the twister turned: with the seed, all of the state.
  [[nodiscard]] std::int64_t draws() const noexcept { return draws_; }
  void skip(std::int64_t draws) {
    engine_.discard(static_cast<unsigned long long>(draws));
    draws_ += draws;
  }

 private:
  std::mt19937 engine_;
  std::int64_t draws_ = 0;
};

/// Makes the columns of each matrix orthonormal, in place: Gram-Schmidt for up to two columns and for 16-bit types,
/// else QR. torch: powerSGD_hook._orthogonalize, bit for bit, except that a column of zeros stays one; there it is
/// divided by its norm, and the NaN spreads over the model.
/// \param matrices  [batch, rows, columns], no more columns than rows.
/// \param epsilon   added to each norm before Gram-Schmidt divides by it.
inline void orthogonalize(torch::Tensor const& matrices, double epsilon) {
  auto const columns = matrices.size(2);
  if (columns > 2 && !at::isReducedFloatingType(matrices.scalar_type())) {
    matrices.copy_(std::get<0>(at::linalg_qr(matrices, "reduced")));
    return;
  }
  for (std::int64_t i = 0; i < columns; ++i) {
    auto column = matrices.narrow(2, i, 1);
    auto norm = at::linalg_vector_norm(column, 2, {1}, /*keepdim=*/true);
    if (epsilon == 0)
      norm.masked_fill_(norm.eq(0), 1);
    else
      norm.add_(epsilon);
    column.div_(norm);
    if (i + 1 < columns) {
      auto rest = matrices.narrow(2, i + 1, columns - i - 1);
      rest.sub_((column * rest).sum({1}, /*keepdim=*/true) * column);
    }
  }
}

}  // namespace pardl::inline PARDL_ABI::detail
