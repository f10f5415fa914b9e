// SPDX-License-Identifier: MIT
/// \file   What PowerSGD can be told, and what it counts.
/// \layer  train.
#pragma once

#include <cstdint>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::comm_hooks {

/// Equal on all ranks. PyTorch: PowerSGDState.
struct PowerSgdOptions {
  std::int64_t matrix_approximation_rank = 1;  ///< r, columns of P and Q; 1 to 4 are usual, more err less
  std::int64_t start_powerSGD_iter = 1000;     ///< steps of plain all-reduce before; a tenth of all is usual
  double min_compression_rate = 2;             ///< a gradient is sent whole unless (n + m) r times this is below n m
  bool use_error_feedback = true;              ///< what was left out is added to the next step's gradient
  bool warm_start = true;                      ///< Q starts from the step before, not from random numbers
  double orthogonalization_epsilon = 0;        ///< added to norms before Gram-Schmidt divides by them
  std::uint32_t random_seed = 0;               ///< of the first Q
  bool batch_tensors_with_same_shape = false;  ///< one product for all gradients of a shape; copies them
};

struct CompressionStats {
  double compress_rate = 0;                   ///< the one below over the other; 0 before compression has begun
  std::int64_t numel_before_compression = 0;  ///< elements that all-reduce would have sent since then
  std::int64_t numel_after_compression = 0;   ///< elements that were sent
};

}  // namespace pardl::inline PARDL_ABI::comm_hooks
