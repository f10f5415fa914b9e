// SPDX-License-Identifier: MIT
/// \file   What a rank calls, as numbers for the others to read, and as words again.
/// \layer  comm, private.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "pardl/comm/detail/shm/board.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

/// Operations by their place here, which is what ranks tell each other.
inline constexpr char const* names[] = {"all_reduce",
                                        "all_reduce_coalesced",
                                        "reduce",
                                        "broadcast",
                                        "all_gather",
                                        "all_gather_into",
                                        "gather",
                                        "scatter",
                                        "reduce_scatter",
                                        "reduce_scatter_into",
                                        "all_to_all",
                                        "all_to_all_single",
                                        "barrier",
                                        "all_gather_coalesced",
                                        "all_gather_into_coalesced",
                                        "reduce_scatter_into_coalesced",
                                        "ring_all_reduce"};
inline std::uint8_t place_of(char const* name) {
  for (std::uint8_t i = 0; i < std::size(names); ++i)
    if (std::strcmp(names[i], name) == 0) return i;
  return 255;
}

/// "sum", by what c10d calls RedOpType, from 1 on.
inline char const* operation_name(Call const& call) {
  constexpr char const* words[] = {"no operation", "sum", "average", "product", "minimum",
                                   "maximum",      "and", "or",      "xor"};
  return call.operation < std::size(words) ? words[call.operation] : "another operation";
}

/// The words for a call that another rank has put down.
inline Stamp stamp_of(Call const& call) {
  Stamp stamp(call.name < std::size(names) ? names[call.name] : "an operation");
  stamp.number = call.number;
  stamp.peer = call.root;
  stamp.tensors = call.tensors;
  stamp.same_shapes = call.same_shapes != 0;
  stamp.dtype = static_cast<c10::ScalarType>(call.dtype);
  if (call.dimensions <= std::size(call.shape)) stamp.shape.assign(call.shape, call.shape + call.dimensions);
  return stamp;
}
inline Call call_of(Stamp const& stamp, std::uint64_t bytes, std::uint8_t operation) {
  Call call{};
  call.bytes = bytes;
  call.tensors = static_cast<std::uint32_t>(stamp.tensors);
  call.root = stamp.peer;
  call.name = place_of(stamp.name);
  call.operation = operation;
  call.dtype = static_cast<std::uint8_t>(stamp.dtype);
  call.same_shapes = stamp.same_shapes ? 1 : 0;
  bool const fits = stamp.shape.size() <= std::size(call.shape);
  call.dimensions = fits ? static_cast<std::uint8_t>(stamp.shape.size()) : 255;
  if (fits) std::copy(stamp.shape.begin(), stamp.shape.end(), call.shape);
  return call;
}

}  // namespace pardl::inline PARDL_ABI::detail::shm
