// SPDX-License-Identifier: MIT
/// \file   The settings of DistributedDataParallel and of its join().
/// \layer  train.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Must be equal on all ranks; what could make ranks wait for each other is checked.
struct DistributedDataParallelOptions {
  std::optional<double> bucket_cap_mib{};       ///< default: 25, and 1 for the first bucket; larger = fewer, later sums
  std::vector<double> bucket_cap_mib_list{};    ///< bucket by bucket, in the order of reduction; instead of the above
  bool init_sync = true;                        ///< check that models agree and copy rank 0's; false: you vouch for it
  bool forward_sync_buffers = true;             ///< copy rank 0's buffers before forwards too, not only at the start
  bool find_unused_parameters = false;          ///< walk the graph on each forward for parameters out of its reach
  bool gradient_as_bucket_view = false;         ///< gradients live in the buckets: saves their size, and a copy
  bool static_graph = false;                    ///< the graph never changes: reentrant and repeated checkpoints work
  bool skip_all_reduce_unused_params = false;   ///< reduce no bucket of unused parameters; same ones on all ranks
  bool batched_grad_copy = false;               ///< one copy and one division per bucket (LibTorch 2.15)
  bool lazy_bucket_allocation = false;          ///< buckets exist during backward only (LibTorch 2.15)
  std::vector<std::string> params_to_ignore{};  ///< names of parameters and buffers that stay this rank's own
};

struct JoinOptions {
  bool divide_by_initial_world_size = true;  ///< false: by the number of ranks that still have batches
  bool enable = true;                        ///< false: do nothing, for batches known to be even
  bool throw_on_early_termination = false;   ///< true: all ranks throw DataError as soon as one has no batch left
};

}  // namespace pardl::inline PARDL_ABI
