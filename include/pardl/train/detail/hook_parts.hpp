// SPDX-License-Identifier: MIT
/// \file   What communication hooks that compute between their messages have in common.
/// \layer  train, private.
#pragma once

#include <torch/types.h>

#include <string>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <utility>

#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/comm_hooks.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Calls `work() -> tensor` at once, on a stream of its own where the bucket is on an accelerator: Work::wait() in it
/// then holds up that stream, and neither the host nor backward's own. On the CPU it does block backward. That is the
/// price of an order: callbacks of an unfinished future would start their messages when they please, and each rank's
/// would meet the wrong ones of another.
/// \param buffer  all that work() reads has been written on the current stream by now, as this has.
template <class F>
TensorFuture beside_backward(torch::Tensor const& buffer, F work) {
  return after(comm_hooks::completed(buffer), [work = std::move(work)](torch::Tensor const&) { return work(); });
}

/// \throws ConfigError  for a bucket of sparse gradients.
inline void require_dense(ProcessGroup const& world, c10d::GradBucket const& bucket, char const* hook) {
  if (bucket.getBuffer().layout() != at::kStrided)
    throw ConfigError(sentence("ddp", world.rank(), world.size(),
                               std::string(hook) + " was given a sparse gradient, which it cannot compress",
                               "give the embedding sparse(false), or use comm_hooks::all_reduce()"));
}

}  // namespace pardl::inline PARDL_ABI::detail
