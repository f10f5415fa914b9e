// SPDX-License-Identifier: MIT
/// \file   What a collective asks of its arguments, said before anything is sent.
/// \layer  comm, private. Local checks of a few nanoseconds; what differs between ranks only a timeout can show.
#pragma once

#include <c10/core/ScalarType.h>
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/comm/detail/stamp.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/comm/work.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

[[noreturn]] inline void refuse_argument(ProcessGroup const& world, char const* op, std::string const& what,
                                         std::string const& remedy) {
  throw ConfigError(sentence("comm", world.rank(), world.size(), std::string(op) + ": " + what, remedy));
}

/// Elementwise operations take any dense layout (channels_last, say), if it is the same on all ranks; the others cut
/// and join memory, so the elements must lie in order.
enum class Layout { dense, contiguous };

inline void check_tensor(ProcessGroup const& world, char const* op, torch::Tensor const& tensor, Layout layout,
                         char const* name = "the tensor") {
  if (!tensor.defined()) refuse_argument(world, op, std::string(name) + " is undefined", "pass one with memory");
  if (tensor.layout() != torch::kStrided)
    refuse_argument(world, op, std::string(name) + " is sparse", "densify it, or use c10d()->getBackend() directly");
  bool const fits = layout == Layout::dense ? tensor.is_non_overlapping_and_dense() : tensor.is_contiguous();
  if (!fits)
    refuse_argument(
        world, op,
        std::string(name) + (layout == Layout::dense ? " has gaps or overlaps in memory" : " is not contiguous"),
        "pass tensor.contiguous(), and copy the result back");
  if (world.backend() == "nccl" && tensor.device() != world.device())
    refuse_argument(
        world, op,
        std::string(name) + " is on " + tensor.device().str() + ", NCCL moves tensors on " + world.device().str(),
        "move it there with tensor.to(world.device())");
  if (!world.serves(tensor.device().type()))
    refuse_argument(world, op,
                    std::string(name) + " is on " + tensor.device().str() + ", which the backend " +
                        std::string(world.backend()) + " cannot read",
                    "move it to " + world.device().str());
}

inline void check_rank(ProcessGroup const& world, char const* op, int rank, char const* role) {
  if (rank >= 0 && rank < world.size()) return;
  refuse_argument(world, op,
                  std::string(role) + " is rank " + std::to_string(rank) + " of " + std::to_string(world.size()),
                  "ranks count from 0");
}

inline void check_op(ProcessGroup const& world, char const* op, torch::Tensor const& tensor, ReduceOp reduce) {
  bool const bitwise = reduce == ReduceOp::band || reduce == ReduceOp::bor || reduce == ReduceOp::bxor;
  bool const whole = c10::isIntegralType(tensor.scalar_type(), /*includeBool=*/true);
  if (bitwise && !whole)
    refuse_argument(
        world, op,
        "bitwise operations are for integers, not " + std::string(c10::getDtypeNames(tensor.scalar_type()).first),
        "use sum, min or max");
  if (reduce == ReduceOp::avg && whole)
    refuse_argument(
        world, op,
        "an average of " + std::string(c10::getDtypeNames(tensor.scalar_type()).first) + " would have to be rounded",
        "sum, and divide as you mean it");
}

inline void check_same_dtype(ProcessGroup const& world, char const* op, torch::Tensor const& a,
                             torch::Tensor const& b) {
  if (a.scalar_type() == b.scalar_type()) return;
  refuse_argument(world, op,
                  "input and output have different dtypes, " + std::string(c10::getDtypeNames(a.scalar_type()).first) +
                      " and " + std::string(c10::getDtypeNames(b.scalar_type()).first),
                  "give both one dtype");
}

inline void check_elements(ProcessGroup const& world, char const* op, char const* name, std::int64_t have,
                           std::int64_t need) {
  if (have == need) return;
  refuse_argument(world, op,
                  std::string(name) + " has " + std::to_string(have) + " elements, not " + std::to_string(need),
                  "see the shapes in the function's description");
}

/// One tensor per rank, each as large as `like`.
inline void check_list(ProcessGroup const& world, char const* op, std::vector<torch::Tensor> const& list,
                       torch::Tensor const& like, char const* name) {
  if (list.size() != static_cast<std::size_t>(world.size()))
    refuse_argument(world, op,
                    std::string(name) + " has " + std::to_string(list.size()) + " tensors for " +
                        std::to_string(world.size()) + " ranks",
                    "pass one for each rank");
  for (auto const& tensor : list) {
    check_tensor(world, op, tensor, Layout::contiguous, name);
    check_same_dtype(world, op, tensor, like);
    check_elements(world, op, name, tensor.numel(), like.numel());
  }
}

inline void check_split(ProcessGroup const& world, char const* op, torch::Tensor const& tensor,
                        std::vector<std::int64_t> const& sizes, char const* name) {
  if (tensor.dim() == 0)
    refuse_argument(world, op, std::string(name) + " has no dimension to divide",
                    "pass a tensor of one dimension or more");
  if (sizes.empty()) {
    if (tensor.size(0) % world.size() != 0)
      refuse_argument(world, op,
                      std::string(name) + " has " + std::to_string(tensor.size(0)) + " rows for " +
                          std::to_string(world.size()) + " ranks",
                      "make it divisible, or say how many go to each");
    return;
  }
  std::int64_t sum = 0;
  for (auto const n : sizes) {
    if (n < 0) refuse_argument(world, op, "a negative number of rows", "rows count from 0");
    sum += n;
  }
  if (sizes.size() != static_cast<std::size_t>(world.size()) || sum != tensor.size(0))
    refuse_argument(world, op,
                    std::to_string(sizes.size()) + " shares of " + std::to_string(sum) + " rows do not divide " + name +
                        " of " + std::to_string(tensor.size(0)) + " rows",
                    "give one share per rank that add up to the first dimension");
}

}  // namespace pardl::inline PARDL_ABI::detail
