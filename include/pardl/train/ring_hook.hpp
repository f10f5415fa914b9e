// SPDX-License-Identifier: MIT
/// \file   The ring all-reduce as a communication hook: DistributedDataParallel over sends and receives alone.
/// \layer  train.
///
/// ```
/// model.register_comm_hook(pardl::comm_hooks::ring_all_reduce{});
/// using namespace pardl::comm_hooks;
/// model.register_comm_hook(fp16_compress(ring_all_reduce{{.segment_bytes = 0}}));
/// ```
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/types.h>

#include <exception>
#include <memory>
#include <optional>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <utility>

#include "pardl/comm/process_group.hpp"
#include "pardl/comm/ring_all_reduce.hpp"
#include "pardl/comm/work.hpp"
#include "pardl/train/comm_hooks.hpp"
#include "pardl/train/detail/serial_executor.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::comm_hooks {

/// The mean over ranks by ring_all_reduce(): divide, then sum, in this order, as all_reduce(), so that no sum overflows
/// in the narrow types of fp16_compress() and bf16_compress(). Every rank must register it, with the same options.
///
/// The bits are those of ring_all_reduce(), the same on every rank, and differ from all_reduce()'s where the order of
/// the sum does. They depend on the buckets' sizes, which move the chunks' boundaries.
///
/// Over a host transport (Gloo, shm) a thread of the hook's own carries out one bucket after the other, in the order in
/// which backward fills them, while backward goes on; over NCCL the messages go onto streams, without a thread. One
/// rank's failure ends every rank's backward with CommError or CommTimeout. \cost for each bucket that of
/// ring_all_reduce(): 2(n-1) k messages of together 2(n-1)/n of the bucket.
class ring_all_reduce {
 public:
  static constexpr bool divides = true;

  explicit ring_all_reduce(RingOptions options = {}) : options_(options) {}

  TensorFuture operator()(ProcessGroup const& world, c10d::GradBucket& bucket) {
    auto const buffer = bucket.getBuffer().div_(world.size());
    if (world.size() == 1 || detail::coalesces_messages(world, buffer))
      return pardl::ring_all_reduce(world, buffer, ReduceOp::sum, options_).future();
    std::optional<c10::Stream> stream;  // on which the division is: the thread must come after it
    if (!buffer.is_cpu()) stream = c10::impl::VirtualGuardImpl(buffer.device().type()).getStream(buffer.device());
    auto future = c10::make_intrusive<c10::ivalue::Future>(c10::TensorType::get(), detail::devices_of({buffer}));
    if (!thread_) thread_ = std::make_unique<detail::SerialExecutor>();
    // Its number is taken here: on the thread its place among the group's other operations would be left to chance.
    auto const ring =
        std::make_shared<detail::RingOperation>(world, buffer, ReduceOp::sum, options_.segment_bytes, options_.tag);
    thread_->submit([ring = std::move(ring), buffer, future, stream]() mutable {
      try {
        c10::OptionalStreamGuard const guard(stream);
        ring->run();
        ring.reset();  // and its handle of the group, before anybody goes on
        future->markCompleted(buffer);
      } catch (...) {
        future->setErrorIfNeeded(std::current_exception());
      }
    });
    return future;
  }

 private:
  RingOptions options_;
  std::unique_ptr<detail::SerialExecutor> thread_;  ///< started by the first bucket that needs it
};

static_assert(comm_hook<ring_all_reduce>);
static_assert(comm_hook<Compress<torch::kHalf, ring_all_reduce>> && Compress<torch::kHalf, ring_all_reduce>::divides,
              "a wrapped hook divides where the hook inside does");

}  // namespace pardl::inline PARDL_ABI::comm_hooks
