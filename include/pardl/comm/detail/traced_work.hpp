// SPDX-License-Identifier: MIT
/// \file   The Works that a traced backend hands out: the inner one's, whose failure names the operation and the ranks.
/// \layer  comm, private.
#pragma once

#include <ATen/core/ivalue.h>
#include <torch/types.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/detail/roll_call.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Who keeps operations in order: the host, which waits for them (Gloo), or a CUDA stream (NCCL).
enum class Order { host, stream };

/// A collective on a host transport. Its future is its own, so that it can end with our error, and before the
/// transport does when another rank has failed.
class HostWork final : public c10d::Work {
 public:
  HostWork(std::shared_ptr<RollCall> roll, Stamp stamp)
      : Work(-1, c10d::OpType::UNKNOWN), roll_(std::move(roll)), stamp_(std::move(stamp)) {}

  [[nodiscard]] Stamp& stamp() noexcept { return stamp_; }

  /// Ties this to the transport's work and its future.
  void follow(c10::intrusive_ptr<c10d::Work> inner, c10::intrusive_ptr<c10::ivalue::Future> const& source,
              std::uint64_t entry) {
    {
      std::lock_guard lock(mutex_);
      inner_ = std::move(inner);
      future_ = source->createInstance(source->elementType());
      if (completed_ && exception_) future_->setErrorIfNeeded(exception_);  // another rank failed meanwhile
    }
    auto self = c10::intrusive_ptr<HostWork>::reclaim_copy(this);
    source->addCallback([self, entry](c10::ivalue::Future& done) {
      if (!self->roll_->take(entry, done.hasError())) return;  // ended with an error already
      if (!done.hasError()) return self->succeed(done.value());
      self->fail(self->roll_->explain(self->stamp_, done.exception_ptr()));
    });
  }

  void fail(std::exception_ptr const& error) {
    {
      std::lock_guard lock(mutex_);
      if (completed_) return;
    }
    finish(error);  // first: whichever of this and follow() comes second sees what the other did
    if (auto future = this->future()) future->setErrorIfNeeded(error);
  }

  bool wait(std::chrono::milliseconds timeout) override {
    {
      std::unique_lock lock(mutex_);
      // The transport keeps its own time; this limit only holds if it does not.
      auto const limit = timeout.count() > 0 ? timeout : stamp_.timeout + RollCall::grace + std::chrono::seconds(5);
      auto moved = roll_->ended();
      while (!cv_.wait_for(lock, limit, [&] { return completed_; })) {
        lock.unlock();
        auto const now = roll_->ended();
        if (timeout.count() > 0 || now == moved) {
          auto const late = std::make_exception_ptr(std::runtime_error("Timed out waiting"));
          roll_->heard();
          std::rethrow_exception(roll_->explain(stamp_, late));
        }
        moved = now;  // others are before this one, and get done
        lock.lock();
      }
      if (exception_) {
        roll_->heard();
        std::rethrow_exception(exception_);
      }
    }
    return inner_->wait(timeout);  // over already; orders the caller's CUDA stream
  }
  void synchronize() override { inner_->synchronize(); }
  void abort() override { inner_->abort(); }
  std::vector<at::Tensor> result() override { return inner_->result(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future(); }
  std::uint64_t getSequencenumber() const override { return stamp_.number; }

 private:
  void succeed(c10::IValue const& value) {
    future()->markCompleted(value);
    finish();
  }
  c10::intrusive_ptr<c10::ivalue::Future> future() {
    std::lock_guard lock(mutex_);
    return future_;
  }

  std::shared_ptr<RollCall> roll_;
  Stamp stamp_;
  c10::intrusive_ptr<c10d::Work> inner_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

/// A collective that a CUDA stream keeps in order: waiting never blocks the host, so failures come to light at the next
/// call that looks, and this is one of them.
class StreamWork final : public c10d::Work {
 public:
  StreamWork(c10::intrusive_ptr<c10d::Work> inner, std::shared_ptr<RollCall> roll)
      : Work(-1, c10d::OpType::UNKNOWN), inner_(std::move(inner)), roll_(std::move(roll)) {}

  bool isCompleted() override { return inner_->isCompleted(); }
  bool isSuccess() const override { return inner_->isSuccess(); }
  std::exception_ptr exception() const override { return inner_->exception(); }
  int sourceRank() const override { return inner_->sourceRank(); }
  std::vector<at::Tensor> result() override { return inner_->result(); }
  void synchronize() override { inner_->synchronize(); }
  bool wait(std::chrono::milliseconds timeout) override {
    roll_->check();
    bool const done = inner_->wait(timeout);
    roll_->check();
    return done;
  }
  void blockCurrentStream() override { inner_->blockCurrentStream(); }
  void abort() override { inner_->abort(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return inner_->getFuture(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override { return inner_->getFutureResult(); }
  float getDuration() const override { return inner_->getDuration(); }
  std::uint64_t getSequencenumber() const override { return inner_->getSequencenumber(); }

 private:
  c10::intrusive_ptr<c10d::Work> inner_;
  std::shared_ptr<RollCall> roll_;
};

/// What the roll call and a waited work share: it wakes whoever waits for what will not come.
class Waiting {
 public:
  explicit Waiting(Stamp its_stamp) : stamp(std::move(its_stamp)) {}

  Stamp stamp;

  void work(c10::intrusive_ptr<c10d::Work> work) {
    std::unique_lock lock(mutex_);
    work_ = std::move(work);
    end(lock);
  }
  void fail(std::exception_ptr error) {
    std::unique_lock lock(mutex_);
    error_ = std::move(error);
    end(lock);
  }
  [[nodiscard]] std::exception_ptr error() {
    std::lock_guard lock(mutex_);
    return error_;
  }

 private:
  void end(std::unique_lock<std::mutex>& lock) {
    if (!error_ || !work_) return;
    auto const ended = work_;
    lock.unlock();
    try {
      ended->abort();
    } catch (...) {  // not every work of Gloo can be ended; its own timeout will
    }
  }

  std::mutex mutex_;
  std::exception_ptr error_;
  c10::intrusive_ptr<c10d::Work> work_;
};

/// A work that c10d gives no future, a message or Gloo's reduce_scatter: its error is made when somebody waits.
class WaitedWork final : public c10d::Work {
 public:
  WaitedWork(c10::intrusive_ptr<c10d::Work> inner, std::shared_ptr<RollCall> roll, std::uint64_t entry,
             std::shared_ptr<Waiting> waiting)
      : Work(-1, c10d::OpType::UNKNOWN),
        inner_(std::move(inner)),
        roll_(std::move(roll)),
        entry_(entry),
        waiting_(std::move(waiting)) {}
  WaitedWork(WaitedWork const&) = delete;
  WaitedWork& operator=(WaitedWork const&) = delete;
  ~WaitedWork() override { roll_->take(entry_); }

  bool isCompleted() override { return inner_->isCompleted(); }
  bool isSuccess() const override { return inner_->isSuccess(); }
  std::exception_ptr exception() const override { return inner_->exception(); }
  int sourceRank() const override { return inner_->sourceRank(); }
  std::vector<at::Tensor> result() override { return inner_->result(); }
  void synchronize() override { inner_->synchronize(); }
  void abort() override { inner_->abort(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    throw CommError(sentence("comm", waiting_->stamp.text() + " has no future over this backend", "wait() for it"));
  }
  std::uint64_t getSequencenumber() const override { return waiting_->stamp.number; }

  bool wait(std::chrono::milliseconds timeout) override {
    bool done = false;
    try {
      // Gloo's messages keep the time of the group's beginning, whatever setTimeout() says later.
      done = inner_->wait(timeout.count() > 0 ? timeout : waiting_->stamp.timeout);
    } catch (...) {
      auto const cause = std::current_exception();
      roll_->heard();
      if (!roll_->take(entry_, true) && waiting_->error()) std::rethrow_exception(waiting_->error());
      std::rethrow_exception(roll_->explain(waiting_->stamp, cause));
    }
    if (!roll_->take(entry_) && !done && waiting_->error()) {
      roll_->heard();
      std::rethrow_exception(waiting_->error());
    }
    return done;
  }

 private:
  c10::intrusive_ptr<c10d::Work> inner_;
  std::shared_ptr<RollCall> roll_;
  std::uint64_t entry_;
  std::shared_ptr<Waiting> waiting_;
};

}  // namespace pardl::inline PARDL_ABI::detail
