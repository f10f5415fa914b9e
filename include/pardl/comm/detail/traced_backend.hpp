// SPDX-License-Identifier: MIT
/// \file   A c10d::Backend around another: it stamps every operation and turns a failure into a sentence with names.
/// \layer  comm, private.
///
/// It stands below c10d::ProcessGroup, so it sees what everybody asks of the group: our collectives, the Reducer's
/// all-reduces, a user's own calls. Cost: a few microseconds an operation, one thread a group.
/// Code that asks for ProcessGroupGloo or ProcessGroupNCCL by its type must look through inner(): c10d's symmetric
/// memory does so, its Reducer and Logger go by getBackendName(), which is the inner backend's.
#pragma once

#include <c10/util/FunctionRef.h>
#include <torch/types.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/detail/bounded.hpp"
#include "pardl/comm/detail/roll_call.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/comm/detail/traced_work.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

class TracedBackend final : public c10d::Backend {
  using Tensors = std::vector<at::Tensor>;
  using Lists = std::vector<std::vector<at::Tensor>>;
  using Sizes = std::vector<std::int64_t>;
  using Started = c10::intrusive_ptr<c10d::Work>;
  using Inner = c10::intrusive_ptr<c10d::Backend>;
  using Start = c10::function_ref<Started()>;  // no template for each operation: every user's unit would compile them

 public:
  /// How long the end of a group may take while operations are under way.
  static constexpr std::chrono::seconds farewell{10};

  TracedBackend(Inner inner, std::shared_ptr<RollCall> roll, Order order)
      : Backend(inner->getRank(), inner->getSize()), inner_(std::move(inner)), roll_(std::move(roll)), order_(order) {}
  TracedBackend(TracedBackend const&) = delete;
  TracedBackend& operator=(TracedBackend const&) = delete;
  ~TracedBackend() override { end(); }

  [[nodiscard]] Inner const& inner() const noexcept { return inner_; }
  [[nodiscard]] RollCall& roll() const noexcept { return *roll_; }

  // ---- collectives ----

  Started broadcast(Tensors& t, c10d::BroadcastOptions const& o) override {
    return run(Stamp("broadcast", t).from(o.rootRank).alike().within(o.timeout),
               [&] { return live().broadcast(t, o); });
  }
  Started allreduce(Tensors& t, c10d::AllreduceOptions const& o) override {
    return run(Stamp("all_reduce", t).alike().within(o.timeout), [&] { return live().allreduce(t, o); });
  }
  Started allreduce_sparse(Tensors& t, c10d::AllreduceOptions const& o) override {
    return run(Stamp("all_reduce_sparse", t).within(o.timeout), [&] { return live().allreduce_sparse(t, o); });
  }
  Started allreduce_coalesced(Tensors& t, c10d::AllreduceCoalescedOptions const& o) override {
    return run(Stamp("all_reduce_coalesced", t).alike().within(o.timeout),
               [&] { return live().allreduce_coalesced(t, o); });
  }
  Started reduce(Tensors& t, c10d::ReduceOptions const& o) override {
    return run(Stamp("reduce", t).from(o.rootRank).alike().within(o.timeout), [&] { return live().reduce(t, o); });
  }
  Started allgather(Lists& out, Tensors& in, c10d::AllgatherOptions const& o) override {
    return run(Stamp("all_gather", in).within(o.timeout), [&] { return live().allgather(out, in, o); });
  }
  Started _allgather_base(at::Tensor& out, at::Tensor& in, c10d::AllgatherOptions const& o) override {
    return run(Stamp("all_gather_into", in).alike().within(o.timeout),
               [&] { return live()._allgather_base(out, in, o); });
  }
  Started allgather_coalesced(Lists& out, Tensors& in, c10d::AllgatherOptions const& o) override {
    return run(Stamp("all_gather_coalesced", in).within(o.timeout),
               [&] { return live().allgather_coalesced(out, in, o); });
  }
  Started allgather_into_tensor_coalesced(Tensors& out, Tensors& in, c10d::AllgatherOptions const& o) override {
    return run(Stamp("all_gather_into_coalesced", in).alike().within(o.timeout),
               [&] { return live().allgather_into_tensor_coalesced(out, in, o); });
  }
  Started gather(Lists& out, Tensors& in, c10d::GatherOptions const& o) override {
    return run(Stamp("gather", in).from(o.rootRank).within(o.timeout), [&] { return live().gather(out, in, o); });
  }
  Started scatter(Tensors& out, Lists& in, c10d::ScatterOptions const& o) override {
    return run(Stamp("scatter", out).from(o.rootRank).within(o.timeout), [&] { return live().scatter(out, in, o); });
  }
  Started reduce_scatter(Tensors& out, Lists& in, c10d::ReduceScatterOptions const& o) override {
    return run(Stamp("reduce_scatter", out).within(o.timeout), [&] { return live().reduce_scatter(out, in, o); });
  }
  Started _reduce_scatter_base(at::Tensor& out, at::Tensor& in, c10d::ReduceScatterOptions const& o) override {
    return run(Stamp("reduce_scatter_into", in).alike().within(o.timeout),
               [&] { return live()._reduce_scatter_base(out, in, o); });
  }
  Started reduce_scatter_tensor_coalesced(Tensors& out, Tensors& in, c10d::ReduceScatterOptions const& o) override {
    return run(Stamp("reduce_scatter_into_coalesced", in).alike().within(o.timeout),
               [&] { return live().reduce_scatter_tensor_coalesced(out, in, o); });
  }
  Started alltoall_base(at::Tensor& out, at::Tensor& in, Sizes& takes, Sizes& gives,
                        c10d::AllToAllOptions const& o) override {
    return run(Stamp("all_to_all_single", in).within(o.timeout),
               [&] { return live().alltoall_base(out, in, takes, gives, o); });
  }
  Started alltoall(Tensors& out, Tensors& in, c10d::AllToAllOptions const& o) override {
    return run(Stamp("all_to_all", in).within(o.timeout), [&] { return live().alltoall(out, in, o); });
  }
  Started barrier(c10d::BarrierOptions const& o) override {
    return run(Stamp("barrier").within(o.timeout), [&] { return live().barrier(o); });
  }
  void monitoredBarrier(c10d::BarrierOptions const& o, bool wait_all) override {
    Stamp stamp("monitored_barrier");
    stamp.within(o.timeout);
    auto const entry = roll_->enter(stamp, {});
    try {
      live().monitoredBarrier(o, wait_all);
    } catch (Error const&) {
      throw;
    } catch (...) {
      std::rethrow_exception(roll_->explain(stamp, std::current_exception()));
    }
    roll_->take(entry);
  }

  // ---- messages ----

  Started send(Tensors& t, int to, int tag) override {
    return pass(Stamp("send", t).message(to, tag), [&] { return live().send(t, to, tag); });
  }
  Started recv(Tensors& t, int from, int tag) override {
    return pass(Stamp("recv", t).message(from, tag), [&] { return live().recv(t, from, tag); });
  }
  Started recvAnysource(Tensors& t, int tag) override {
    return pass(Stamp("recv_any", t).message(-1, tag), [&] { return live().recvAnysource(t, tag); });
  }

  // ---- what the inner backend is ----

  const std::string getBackendName() const override { return inner_ ? inner_->getBackendName() : "ended"; }
  c10::intrusive_ptr<Options> getBackendOptions() override { return live().getBackendOptions(); }
  // Splitting and shrinking stay unsupported: they would make groups behind our back. ProcessGroup::split is ours.
  bool supportsCoalescing() const override { return inner_ && inner_->supportsCoalescing(); }
  bool supportsTensorAlloc(c10::DeviceIndex index) override { return live().supportsTensorAlloc(index); }
  at::Tensor allocateTensor(long size, at::TensorOptions options) override {
    return live().allocateTensor(size, options);
  }
  std::shared_ptr<c10::Allocator> getMemAllocator() override { return live().getMemAllocator(); }
  void setTimeout(std::chrono::milliseconds timeout) override {
    live().setTimeout(timeout);
    roll_->set_timeout(timeout);
  }
  void startCoalescing() override { live().startCoalescing(); }
  Started endCoalescing() override {
    return run(Stamp("coalesced operations"), [&] { return live().endCoalescing(); });
  }
  void setSequenceNumberForGroup() override { live().setSequenceNumberForGroup(); }
  std::uint64_t getSequenceNumberForGroup() override { return live().getSequenceNumberForGroup(); }
  void registerOnCompletionHook(std::function<void(std::shared_ptr<c10d::WorkInfo>)>&& hook) override {
    live().registerOnCompletionHook(std::move(hook));
  }
  void waitForPendingWorks() override { live().waitForPendingWorks(); }
  void enableCollectivesTiming() override { live().enableCollectivesTiming(); }
  void eagerConnectSingleDevice(at::Device device) override { live().eagerConnectSingleDevice(device); }
  void setGroupUid(std::string const& uid) override {
    Backend::setGroupUid(uid);
    if (inner_) inner_->setGroupUid(uid);
  }
  c10d::ErrorType getError() override {
    if (roll_->failed()) return c10d::ErrorType::COMM_ERROR;
    return order_ == Order::host ? c10d::ErrorType::SUCCESS : live().getError();
  }

  // ---- the end ----

  void abort() override {
    roll_->announce("the group was aborted");
    if (inner_) inner_->abort();
  }
  void shutdown() override { end(); }

 private:
  /// The inner backend, or a sentence if the group has ended.
  c10d::Backend& live() {
    if (!inner_) throw CommError(sentence("comm", rank_, size_, "the group has been shut down", "make a new one"));
    return *inner_;
  }

  Started run(Stamp& stamp, Start start) {
    if (order_ == Order::stream) {
      auto const entry = roll_->enter(stamp, {});
      auto work = attempt(entry, stamp, start);
      if (!work) return work;
      return c10::make_intrusive<StreamWork>(std::move(work), roll_);
    }
    if (is_without_future(stamp.name)) return waited(stamp, start);
    // The entry must exist before the operation does: it may be over before start() returns.
    auto traced = c10::make_intrusive<HostWork>(roll_, stamp);
    auto const entry = roll_->enter(traced->stamp(), [traced](std::exception_ptr error) { traced->fail(error); });
    auto work = attempt(entry, traced->stamp(), start);
    if (!work) {
      roll_->take(entry);
      return work;
    }
    c10::intrusive_ptr<c10::ivalue::Future> future;
    try {
      future = work->getFuture();
    } catch (c10::Error const&) {  // dear, so asked once: a few operations of Gloo have none
      remember_without_future(stamp.name);
      auto waiting = std::make_shared<Waiting>(traced->stamp());
      roll_->replace(entry, waiting->stamp, [waiting](std::exception_ptr error) { waiting->fail(std::move(error)); });
      waiting->work(work);
      return c10::make_intrusive<WaitedWork>(std::move(work), roll_, entry, std::move(waiting));
    }
    traced->follow(std::move(work), future, entry);
    return traced;
  }
  Started run(Stamp&& stamp, Start start) { return run(stamp, start); }

  Started waited(Stamp& stamp, Start start) {
    auto waiting = std::make_shared<Waiting>(stamp);
    auto const entry =
        roll_->enter(waiting->stamp, [waiting](std::exception_ptr error) { waiting->fail(std::move(error)); });
    auto work = attempt(entry, waiting->stamp, start);
    waiting->work(work);
    return c10::make_intrusive<WaitedWork>(std::move(work), roll_, entry, std::move(waiting));
  }
  Started pass(Stamp& stamp, Start start) {
    stamp.within(c10d::kUnsetTimeout);
    if (order_ == Order::host) return waited(stamp, start);
    auto const entry = roll_->enter(stamp, {});
    auto work = attempt(entry, stamp, start);
    return work ? Started(c10::make_intrusive<StreamWork>(std::move(work), roll_)) : work;
  }

  bool is_without_future(char const* name) {
    if (!some_without_future_) return false;
    std::lock_guard lock(mutex_);
    return std::find(without_future_.begin(), without_future_.end(), name) != without_future_.end();
  }
  void remember_without_future(char const* name) {
    std::lock_guard lock(mutex_);
    without_future_.push_back(name);
    some_without_future_ = true;
  }

  /// Starts the operation; one that c10d refuses (a wrong dtype, a closed connection) never was, and says its name.
  Started attempt(std::uint64_t entry, Stamp const& stamp, Start start) {
    try {
      return start();
    } catch (Error const&) {
      roll_->withdraw(entry, stamp);
      throw;
    } catch (...) {
      roll_->withdraw(entry, stamp);
      throw CommError(sentence("comm", rank_, size_,
                               stamp.text() + " could not be started: " + reason_of(std::current_exception()),
                               "nothing was sent"));
    }
  }

  /// Lets what is under way finish, ends the thread, then the transport; whatever does not end in time is left behind.
  void end() noexcept {
    try {
      auto inner = std::exchange(inner_, nullptr);
      if (!inner) return;
      bool const well = roll_->drain(farewell);
      roll_->stop();
      (void)ends_within(well ? std::chrono::milliseconds(farewell) : std::chrono::milliseconds(2'000),
                        [well, inner = std::exchange(inner, nullptr)] {
                          well ? inner->shutdown() : inner->abort();  // NCCL's shutdown would wait for what cannot come
                        });
    } catch (...) {  // the end of a group has nobody to tell
    }
  }

  Inner inner_;
  std::shared_ptr<RollCall> roll_;
  Order order_;
  std::mutex mutex_;
  std::atomic<bool> some_without_future_{false};
  std::vector<char const*> without_future_;  ///< names of operations, by address
};

}  // namespace pardl::inline PARDL_ABI::detail
