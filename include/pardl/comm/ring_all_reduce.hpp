// SPDX-License-Identifier: MIT
/// \file   All-reduce in a ring, from sends and receives only: over any process group that can pass messages.
/// \layer  comm.
///
/// The same algorithm that NCCL and Gloo use inside, here in the open, with the order of its sums stated: see
/// ring_schedule.hpp. all_reduce() is what the backend does best; this is for backends that only pass messages, for
/// sums that must not depend on the transport, and for who wants to see.
/// ```
/// pardl::ring_all_reduce(world, tensor).wait();
/// pardl::ring_all_reduce(world, tensor, pardl::ReduceOp::avg, {.segment_bytes = 0}).wait();  // not pipelined
/// ```
#pragma once

#include <torch/types.h>

#include <cstdint>

#include "pardl/comm/detail/ring.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/comm/work.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// The same on every rank.
struct RingOptions {
  std::int64_t segment_bytes = 1 << 20;  ///< pieces of a chunk that are received while others are added; 0: one piece
  int tag = 2009;                        ///< of its messages, and of no others between neighbours meanwhile
};

/// Combines `tensor` over all ranks, in place, in a ring. Every rank must call it, with the same shape, dtype, op and
/// options, and not twice at once with one tag. Any dense layout, if it is the same on all ranks; any dtype that
/// LibTorch can combine, also those that a backend's own all_reduce refuses (bool, complex, unsigned).
///
/// Order: element e of the flat tensor lies in chunk c (RingSchedule::chunk), and its value is
/// ((x[c] op x[c+1]) op x[c+2]) … op x[c+n-1], ranks mod n. Every intermediate result is rounded to the tensor's dtype:
/// float16 and bfloat16 round n-1 times (LibTorch adds two of them in float32). So the bits are fixed by the number of
/// ranks and the length alone; neither segments nor transport nor time change them (the product of complex numbers
/// aside: LibTorch rounds it in other ways at the end of a piece), and they are the same on every rank, since a
/// complete chunk is copied and not computed again. `avg` divides each complete chunk once, where it is complete.
/// Another length moves chunk boundaries, and with them the order for some elements.
///
/// \returns a Work, so that it stands where all_reduce() stands. Gloo and other host transports know no message that
/// follows another by itself, so there it returns when all is over, and the Work is done. Over NCCL everything has been
/// put on streams, as one group a move (c10d's startCoalescing and endCoalescing), and the Work does not block either:
/// the current stream has the result. future() is complete, and knows the device. The hook of ring_hook.hpp runs it
/// beside backward.
/// \cost 2(n-1) k messages to one neighbour, of together 2(n-1)/n of the tensor: as many bytes as any all-reduce needs,
/// and 2(n-1) times the latency of one message. k is the number of segments. Memory: one chunk, pipelined two segments.
/// Tensors on a GPU that the transport cannot reach pass through the host: a copy each way.
/// \throws ConfigError for arguments that cannot be right, before anything is sent. \throws CommError, CommTimeout with
/// the operation, the step and the neighbour; the tensor then holds nothing of use.
/// \source Patarasuk and Yuan, JPDC 69(2), 2009: bandwidth optimality; Thakur, Rabenseifner and Gropp, IJHPCA 19(1),
/// 2005: for short tensors, trees need fewer messages.
inline Work ring_all_reduce(ProcessGroup const& world, torch::Tensor const& tensor, ReduceOp op = ReduceOp::sum,
                            RingOptions options = {}) {
  detail::RingOperation(world, tensor, op, options.segment_bytes, options.tag).run();
  return Work(nullptr, {tensor.detach()});
}

}  // namespace pardl::inline PARDL_ABI
