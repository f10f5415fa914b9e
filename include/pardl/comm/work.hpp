// SPDX-License-Identifier: MIT
/// \file   An operation under way: what every collective hands back, and what must be waited for.
/// \layer  comm.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string_view>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/detail/translate.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// How ranks' values are combined. `avg` is defined bit for bit: the sum, rounded to the tensors' dtype, divided once
/// by the number of ranks (floating point only; sums of float16 overflow above 65504, and their average with them).
/// `band`, `bor`, `bxor` are bitwise and ask for integers.
enum class ReduceOp { sum, avg, min, max, product, band, bor, bxor };

/// A collective under way. It keeps the tensors alive; they may be read, or written again, only after wait().
///
/// Dropping one unseen is a compiler warning: an operation that nobody waits for is one whose failure nobody hears of.
class [[nodiscard("call wait(), or keep the Work until the tensors are needed")]] Work {
 public:
  Work() = default;

  /// \param work     what c10d handed back; null where the operation was over at once.
  /// \param tensors  kept alive until this object ends or wait() returns.
  /// \param after    run once, on completion, before anybody sees the result (the division of `avg`).
  explicit Work(c10::intrusive_ptr<c10d::Work> work, std::vector<torch::Tensor> tensors = {},
                std::function<void()> after = nullptr)
      : work_(std::move(work)),
        tensors_(std::move(tensors)),
        after_(after ? std::make_shared<detail::Once>(std::move(after)) : nullptr) {}

  Work(Work&&) noexcept = default;
  Work& operator=(Work&&) noexcept = default;
  Work(Work const&) = delete;
  Work& operator=(Work const&) = delete;
  ~Work() = default;

  /// Blocks until the result may be used. On CUDA with NCCL it does not block the host: it makes the current stream
  /// wait, as c10d does. Calling it twice is harmless.
  /// \throws CommTimeout  when ranks did not come in time; CommError when the transport or a peer failed.
  void wait() {
    if (work_) {
      detail::translated([&] { work_->wait(); });
      work_.reset();
    }
    if (after_) after_->run();
    after_.reset();
    tensors_.clear();
  }

  /// True once wait() would not block. Never blocks itself.
  [[nodiscard]] bool done() const { return !work_ || work_->isCompleted(); }

  /// The rank a message of recv_any() came from; -1 for every other operation. Valid before wait() is called only with
  /// the handle that recv_any() returned, so recv_any() waits for you and hands back the rank instead.
  [[nodiscard]] int source() const { return work_ ? work_->sourceRank() : -1; }

  /// The operation as a future, for code that chains on it: communication hooks, `then`. Its value is the list of
  /// result tensors. Only for collectives: c10d's send and recv have none.
  [[nodiscard]] c10::intrusive_ptr<c10::ivalue::Future> future() const {
    if (!work_) {
      auto ready = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()),
                                                            detail::devices_of(tensors_));
      ready->markCompleted(c10::IValue(tensors_));
      return ready;
    }
    auto future = work_->getFuture();
    if (!after_) return future;
    return future->then(
        [after = after_](c10::ivalue::Future& done) {
          auto value = done.value();  // rethrows what went wrong
          after->run();
          return value;
        },
        future->elementType());
  }

  /// The handle underneath, for code that speaks c10d.
  [[nodiscard]] c10::intrusive_ptr<c10d::Work> const& c10d() const noexcept { return work_; }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  std::vector<torch::Tensor> tensors_;
  std::shared_ptr<detail::Once> after_;
};

}  // namespace pardl::inline PARDL_ABI
