// SPDX-License-Identifier: MIT
/// \file   The names that c10d changed between LibTorch 2.11 and 2.15, asked of the class itself and not of a version.
/// \layer  comm, private.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

/// Templates on purpose: only a dependent expression may name a member that the class at hand does not have.
template <class Group>
WorkPtr all_gather_into(Group& group, torch::Tensor& output, torch::Tensor& input) {
  if constexpr (requires { group.all_gather_single(output, input); })
    return group.all_gather_single(output, input);
  else
    return group._allgather_base(output, input);
}

template <class Group>
WorkPtr reduce_scatter_into(Group& group, torch::Tensor& output, torch::Tensor& input,
                            c10d::ReduceScatterOptions const& options) {
  if constexpr (requires { group.reduce_scatter_single(output, input, options); })
    return group.reduce_scatter_single(output, input, options);
  else
    return group._reduce_scatter_base(output, input, options);
}

template <class Group>
WorkPtr all_to_all_into(Group& group, torch::Tensor& output, torch::Tensor& input, std::vector<std::int64_t>& takes,
                        std::vector<std::int64_t>& gives) {
  if constexpr (requires { group.all_to_all_single(output, input, takes, gives); })
    return group.all_to_all_single(output, input, takes, gives);
  else
    return group.alltoall_base(output, input, takes, gives);
}

}  // namespace pardl::inline PARDL_ABI::detail
