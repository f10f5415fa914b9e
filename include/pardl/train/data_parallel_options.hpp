// SPDX-License-Identifier: MIT
/// \file   The settings of DataParallel.
/// \layer  train.
#pragma once

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct DataParallelOptions {
  bool parallel = true;  ///< false: the replicas run one after the other, in the calling thread, in device order
};

}  // namespace pardl::inline PARDL_ABI
