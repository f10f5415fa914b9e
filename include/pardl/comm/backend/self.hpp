// SPDX-License-Identifier: MIT
/// \file   The backend of a world of one: every collective of c10d, over at once, on any device.
/// \layer  comm.
///
/// It is what makes a program run without a launcher and without an optional part. A rank may also send to itself:
/// messages wait, by tag, until they are received.
#pragma once

#include <c10/core/StreamGuard.h>
#include <torch/types.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/detail/translate.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {
namespace detail {

/// A c10d::Work that was over before it began.
class DoneWork final : public c10d::Work {
 public:
  DoneWork(c10d::OpType type, std::vector<at::Tensor> result) : Work(0, type), result_(std::move(result)) {
    future_ =
        c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()), devices_of(result_));
    future_->markCompleted(c10::IValue(result_));
    completed_ = true;
  }
  bool isCompleted() override { return true; }
  bool isSuccess() const override { return true; }
  bool wait(std::chrono::milliseconds) override { return true; }
  void synchronize() override {}
  int sourceRank() const override { return 0; }
  std::vector<at::Tensor> result() override { return result_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  std::vector<at::Tensor> result_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

/// One rank alone. Reductions of one value are that value; gathers and scatters are copies.
class SelfBackend final : public c10d::Backend {
  using Tensors = std::vector<at::Tensor>;
  using Lists = std::vector<std::vector<at::Tensor>>;
  using Done = c10::intrusive_ptr<c10d::Work>;
  using Op = c10d::OpType;

 public:
  SelfBackend() : Backend(0, 1) {}

  const std::string getBackendName() const override { return "self"; }
  bool supportsCoalescing() const override { return true; }
  void startCoalescing() override {}
  Done endCoalescing() override { return done(Op::COALESCED, {}); }
  void setTimeout(std::chrono::milliseconds) override {}
  void setSequenceNumberForGroup() override {}
  std::uint64_t getSequenceNumberForGroup() override { return 0; }

  Done broadcast(Tensors& t, c10d::BroadcastOptions const&) override { return done(Op::BROADCAST, t); }
  Done allreduce(Tensors& t, c10d::AllreduceOptions const&) override { return done(Op::ALLREDUCE, t); }
  Done allreduce_sparse(Tensors& t, c10d::AllreduceOptions const&) override { return done(Op::_ALLREDUCE_SPARSE, t); }
  Done allreduce_coalesced(Tensors& t, c10d::AllreduceCoalescedOptions const&) override {
    return done(Op::ALLREDUCE_COALESCED, t);
  }
  Done reduce(Tensors& t, c10d::ReduceOptions const&) override { return done(Op::REDUCE, t); }
  Done allgather(Lists& out, Tensors& in, c10d::AllgatherOptions const&) override {
    return copied(Op::ALLGATHER, out, in);
  }
  Done _allgather_base(at::Tensor& out, at::Tensor& in, c10d::AllgatherOptions const&) override {
    return copied(Op::_ALLGATHER_BASE, out, in);
  }
  Done allgather_coalesced(Lists& out, Tensors& in, c10d::AllgatherOptions const&) override {
    Tensors all;
    for (auto& list : out) all.insert(all.end(), list.begin(), list.end());
    return copied(Op::ALLGATHER_COALESCED, all, in);
  }
  Done allgather_into_tensor_coalesced(Tensors& out, Tensors& in, c10d::AllgatherOptions const&) override {
    return copied(Op::COALESCED, out, in);
  }
  Done gather(Lists& out, Tensors& in, c10d::GatherOptions const&) override { return copied(Op::GATHER, out, in); }
  Done scatter(Tensors& out, Lists& in, c10d::ScatterOptions const&) override { return copied(Op::SCATTER, out, in); }
  Done reduce_scatter(Tensors& out, Lists& in, c10d::ReduceScatterOptions const&) override {
    return copied(Op::REDUCE_SCATTER, out, in);
  }
  Done _reduce_scatter_base(at::Tensor& out, at::Tensor& in, c10d::ReduceScatterOptions const&) override {
    return copied(Op::_REDUCE_SCATTER_BASE, out, in);
  }
  Done reduce_scatter_tensor_coalesced(Tensors& out, Tensors& in, c10d::ReduceScatterOptions const&) override {
    return copied(Op::COALESCED, out, in);
  }
  Done alltoall_base(at::Tensor& out, at::Tensor& in, std::vector<std::int64_t>&, std::vector<std::int64_t>&,
                     c10d::AllToAllOptions const&) override {
    return copied(Op::ALLTOALL_BASE, out, in);
  }
  Done alltoall(Tensors& out, Tensors& in, c10d::AllToAllOptions const&) override {
    return copied(Op::ALLTOALL, out, in);
  }
  Done barrier(c10d::BarrierOptions const&) override { return done(Op::BARRIER, {}); }
  void monitoredBarrier(c10d::BarrierOptions const&, bool) override {}

  Done send(Tensors& t, int, int tag) override {
    std::lock_guard lock(mutex_);
    for (auto& tensor : t) mail_[tag].push_back(tensor.detach().clone());
    return done(Op::SEND, t);
  }
  Done recv(Tensors& t, int, int tag) override {
    std::lock_guard lock(mutex_);
    auto& box = mail_[tag];
    if (box.size() < t.size())
      throw CommError(sentence("comm", 0, 1, "recv() from itself found no message with tag " + std::to_string(tag),
                               "a world of one must send before it receives"));
    for (auto& tensor : t) {
      tensor.copy_(box.front().view_as(tensor));
      box.pop_front();
    }
    return done(Op::RECV, t);
  }
  Done recvAnysource(Tensors& t, int tag) override { return recv(t, 0, tag); }

 private:
  static Done done(Op type, Tensors result) { return c10::make_intrusive<DoneWork>(type, std::move(result)); }
  static Done copied(Op type, at::Tensor& out, at::Tensor& in) {
    copy(out, in);
    return done(type, {out});
  }
  static Done copied(Op type, Tensors& out, Tensors& in) {
    for (std::size_t i = 0; i < out.size(); ++i) copy(out[i], in.at(i));
    return done(type, out);
  }
  static Done copied(Op type, Lists& out, Tensors& in) {
    for (std::size_t i = 0; i < out.size(); ++i) copy(out[i].at(0), in.at(i));
    return done(type, out.empty() ? Tensors{} : out[0]);
  }
  static Done copied(Op type, Tensors& out, Lists& in) {
    for (std::size_t i = 0; i < out.size(); ++i) copy(out[i], in.at(i).at(0));
    return done(type, out);
  }
  /// No autograd node, and nothing to do where both are the same memory (a view of the bucket).
  static void copy(at::Tensor out, at::Tensor const& in) {
    if (out.is_alias_of(in) && out.data_ptr() == in.data_ptr()) return;
    out.detach().view(-1).copy_(in.detach().reshape(-1));
  }

  std::mutex mutex_;
  std::map<int, std::deque<at::Tensor>> mail_;
};

}  // namespace detail

namespace backend {

/// The backend of a world of one, for whoever builds a c10d::ProcessGroup by hand.
inline c10::intrusive_ptr<c10d::Backend> self() { return c10::make_intrusive<detail::SelfBackend>(); }

}  // namespace backend
}  // namespace pardl::inline PARDL_ABI
