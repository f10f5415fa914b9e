// SPDX-License-Identifier: MIT
/// \file   One operation over shared memory: the handle that its caller waits for.
/// \layer  comm, private.
#pragma once

#include <ATen/ThreadLocalState.h>
#include <ATen/core/ivalue.h>
#include <c10/util/SmallVector.h>
#include <torch/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/detail/shm/collective.hpp"
#include "pardl/comm/detail/shm/messages.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

using Clock = std::chrono::steady_clock;
/// So long from now; never, for c10d's kNoTimeout and for what no clock can show.
inline Clock::time_point from_now(std::chrono::milliseconds limit) {
  auto const now = Clock::now();
  auto const room = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::time_point::max() - now);
  return limit.count() <= 0 || limit >= room ? Clock::time_point::max() : now + limit;
}
class Engine;
using Kept = c10::SmallVector<at::Tensor, 2>;

/// An operation under way: the caller's handle, and all that the engine knows of it.
class ShmWork final : public c10d::Work {
 public:
  ShmWork(std::shared_ptr<Engine> engine, c10d::OpType type, Stamp its_stamp, std::vector<at::Tensor> result)
      : Work(-1, type), stamp(std::move(its_stamp)), engine_(std::move(engine)), result_(std::move(result)) {}

  // For the engine alone, under its lock.
  Stamp stamp;
  Clock::time_point deadline{};
  std::optional<Collective> collective;
  std::shared_ptr<Message> message;
  Kept kept;                     ///< what the rows lie in
  std::function<void()> before;  ///< it begins, and no sooner: the operation before it may write what this one reads
  std::function<void()> after;   ///< it, and before the next one begins

  [[nodiscard]] bool over() const noexcept { return over_.load(std::memory_order_seq_cst); }
  /// Once each, without the engine's lock, since callbacks may begin other operations. All that have ended together
  /// are settled before the first is told of: its callbacks may wait() for another (but not for another's future, which
  /// the same thread completes after it).
  void settle(std::exception_ptr error);
  [[nodiscard]] bool has_listener() const noexcept { return untold_.defined(); }
  void tell() noexcept;

  bool isCompleted() override;
  bool isSuccess() const override { return over() && !error_; }
  std::exception_ptr exception() const override { return over() ? error_ : nullptr; }
  bool wait(std::chrono::milliseconds limit) override;
  void synchronize() override { wait(kNoTimeout); }
  void abort() override {}
  int sourceRank() const override { return message ? message->peer : -1; }
  std::vector<at::Tensor> result() override { return result_; }
  std::uint64_t getSequencenumber() const override { return stamp.number; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;

 private:
  std::shared_ptr<Engine> engine_;
  std::vector<at::Tensor> result_;
  std::atomic<bool> over_{false};
  std::exception_ptr error_;
  std::mutex future_mutex_;
  c10::intrusive_ptr<c10::ivalue::Future> future_, untold_;
  std::unique_ptr<at::ThreadLocalState> modes_;  ///< grad mode and the like of who asked for the future
};
using WorkHandle = c10::intrusive_ptr<ShmWork>;

}  // namespace pardl::inline PARDL_ABI::detail::shm
