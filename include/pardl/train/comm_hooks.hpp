// SPDX-License-Identifier: MIT
/// \file   Communication hooks: how a bucket of gradients becomes the bucket that every rank steps with.
/// \layer  train.
///
/// A hook takes over the reduction of a bucket: it receives the ranks and the bucket and returns a future of the tensor
/// that replaces it. It says whether that tensor is the mean already (`divides`); if not, DistributedDataParallel
/// divides it by the number of ranks. Hooks run inside backward, on each bucket as soon as it is full, in the same
/// order on every rank; backward waits for the futures at its end.
/// ```
/// model.register_comm_hook(pardl::comm_hooks::bf16_compress());
/// model.register_comm_hook(pardl::comm_hooks::returning_sum([](pardl::ProcessGroup const& world, c10d::GradBucket& b)
/// {
///   return pardl::all_reduce(world, b.getBufferRef()).future();
/// }));
/// ```
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/types.h>

#include <concepts>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <type_traits>
#include <utility>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// A future of one tensor, or of a list of one tensor, as c10d's own works return it.
using TensorFuture = c10::intrusive_ptr<c10::ivalue::Future>;

template <class H>
concept takes_bucket = requires(H& hook, ProcessGroup const& world, c10d::GradBucket& bucket) {
  { hook(world, bucket) } -> std::convertible_to<TensorFuture>;
};

template <class H>
concept states_division = requires {
  { std::bool_constant<H::divides>{} };
};

/// bucket → future of the tensor that replaces it, and `static constexpr bool divides`: true where that tensor is the
/// mean over ranks, false where it is their sum. A hook keeps nothing of the bucket but tensors: the bucket itself is
/// gone when the hook returns. Models: everything that comm_hooks:: makes.
template <class H>
concept comm_hook = std::move_constructible<H> && takes_bucket<H> && states_division<H>;

namespace detail {

inline torch::Tensor hook_result(c10::ivalue::Future& done) {
  return c10d::detail::parseCppCommHookResult(done.value());  // value() rethrows what went wrong
}

/// `next` on the tensor of a future, when it is there.
template <class F>
TensorFuture after(TensorFuture const& future, F next) {
  return future->then(
      [next = std::move(next)](c10::ivalue::Future& done) { return c10::IValue(next(hook_result(done))); },
      c10::TensorType::get());
}

}  // namespace detail

namespace comm_hooks {

/// A future that is complete already, for a hook that does not communicate. It knows the tensor's device, without
/// which streams would not be kept in order.
inline TensorFuture completed(torch::Tensor tensor) {
  auto future = c10::make_intrusive<c10::ivalue::Future>(c10::TensorType::get(), detail::devices_of({tensor}));
  future->markCompleted(std::move(tensor));
  return future;
}

/// The mean over ranks: divide, then sum, in this order, as PyTorch's `allreduce_hook`, so that no sum overflows.
struct AllReduce {
  static constexpr bool divides = true;
  TensorFuture operator()(ProcessGroup const& world, c10d::GradBucket& bucket) const {
    auto const buffer = bucket.getBuffer().div_(world.size());
    return pardl::all_reduce(world, buffer).future();
  }
};

/// Casts the bucket to a narrower type, hands it to another hook, and casts what that returns back into the bucket.
/// \cost half the bytes of float32; one copy of the bucket in the narrow type.
template <torch::ScalarType Narrow, comm_hook Inner>
class Compress {
 public:
  static constexpr bool divides = Inner::divides;
  explicit Compress(Inner inner) : inner_(std::move(inner)) {}

  TensorFuture operator()(ProcessGroup const& world, c10d::GradBucket& bucket) {
    torch::Tensor const wide = bucket.getBuffer();
    torch::Tensor narrow = wide.to(Narrow);
    bucket.setBuffer(narrow);
    return detail::after(inner_(world, bucket), [wide](torch::Tensor const& result) {
      wide.copy_(result);
      return wide;
    });
  }

 private:
  Inner inner_;
};

/// A function that states whether it divides; made by returning_mean() and returning_sum().
template <bool Divides, class F>
class Stated {
 public:
  static constexpr bool divides = Divides;
  explicit Stated(F function) : function_(std::move(function)) {}
  TensorFuture operator()(ProcessGroup const& world, c10d::GradBucket& bucket) { return function_(world, bucket); }

 private:
  F function_;
};

/// What happens without a hook, as a hook. Its bits equal those without one where the number of ranks is a power of
/// two; elsewhere they may differ, since without a hook the gradient is multiplied by 1/N and here divided by N.
[[nodiscard]] inline AllReduce all_reduce() { return {}; }

/// Sums in float16: cast, divide by the number of ranks, sum, cast back.
[[nodiscard]] inline auto fp16_compress() { return Compress<torch::kHalf, AllReduce>{AllReduce{}}; }
/// Sums in bfloat16: cast, divide by the number of ranks, sum, cast back.
[[nodiscard]] inline auto bf16_compress() { return Compress<torch::kBFloat16, AllReduce>{AllReduce{}}; }

/// Any hook, fed with float16.
template <class Inner>
[[nodiscard]] auto fp16_compress(Inner inner) {
  static_assert(comm_hook<Inner>,
                "pardl::comm_hooks::fp16_compress wraps a communication hook; say what a function returns by "
                "pardl::comm_hooks::returning_mean(f) or returning_sum(f).");
  return Compress<torch::kHalf, Inner>{std::move(inner)};
}
/// Any hook, fed with bfloat16.
template <class Inner>
[[nodiscard]] auto bf16_compress(Inner inner) {
  static_assert(comm_hook<Inner>,
                "pardl::comm_hooks::bf16_compress wraps a communication hook; say what a function returns by "
                "pardl::comm_hooks::returning_mean(f) or returning_sum(f).");
  return Compress<torch::kBFloat16, Inner>{std::move(inner)};
}

/// A user's function `(ProcessGroup const&, c10d::GradBucket&) -> future` whose tensor is the mean over ranks, or
/// whatever else the optimizer shall see: it is used as it is.
template <class F>
[[nodiscard]] auto returning_mean(F function) {
  static_assert(takes_bucket<F>,
                "pardl: a communication hook is called as hook(pardl::ProcessGroup const&, c10d::GradBucket&) and "
                "returns a c10 future of a tensor.");
  return Stated<true, F>{std::move(function)};
}
/// A user's function whose tensor is the sum over ranks; it is then divided by their number.
template <class F>
[[nodiscard]] auto returning_sum(F function) {
  static_assert(takes_bucket<F>,
                "pardl: a communication hook is called as hook(pardl::ProcessGroup const&, c10d::GradBucket&) and "
                "returns a c10 future of a tensor.");
  return Stated<false, F>{std::move(function)};
}

static_assert(comm_hook<AllReduce>);
static_assert(comm_hook<Compress<torch::kHalf, Compress<torch::kBFloat16, AllReduce>>>);
static_assert(!comm_hook<int>);
static_assert(!comm_hook<TensorFuture (*)(ProcessGroup const&, c10d::GradBucket&)>, "it does not say if it divides");

}  // namespace comm_hooks

namespace detail {

/// The first thing that went wrong inside a hook; kept, since afterwards the reducer can only say that it is stuck.
class FailureNote {
 public:
  void keep(std::exception_ptr error) {
    std::lock_guard lock(mutex_);
    if (!first_) first_ = std::move(error);
  }
  [[nodiscard]] std::exception_ptr first() const {
    std::lock_guard lock(mutex_);
    return first_;
  }

 private:
  mutable std::mutex mutex_;
  std::exception_ptr first_;
};

/// A hook as the reducer knows it.
template <comm_hook H>
class HookAdapter final : public c10d::CommHookInterface {
 public:
  HookAdapter(H hook, ProcessGroup world, std::shared_ptr<FailureNote> note)
      : hook_(std::move(hook)), world_(std::move(world)), note_(std::move(note)) {}

  TensorFuture runHook(c10d::GradBucket& bucket) override try {
    auto const index = bucket.getIndex();
    auto const elements = bucket.getBuffer().numel();
    TensorFuture const future = hook_(world_, bucket);
    if (!future)
      throw ConfigError(sentence("ddp", world_.rank(), world_.size(), "the communication hook returned a null future",
                                 "return comm_hooks::completed(tensor) where there is nothing to wait for"));
    return after(future, [index, elements, world = world_](torch::Tensor result) {
      if (!result.defined() || result.numel() != elements)
        throw ConfigError(sentence("ddp", world.rank(), world.size(),
                                   "the communication hook made " +
                                       std::to_string(result.defined() ? result.numel() : 0) + " elements of the " +
                                       std::to_string(elements) + " of bucket " + std::to_string(index),
                                   "return a tensor of the bucket's own size"));
      return H::divides ? result : result.div(world.size());
    });
  } catch (...) {
    note_->keep(std::current_exception());
    throw;
  }

  torch::Tensor parseHookResult(c10::IValue const& result) override {
    return c10d::detail::parseCppCommHookResult(result);
  }

 private:
  H hook_;
  ProcessGroup world_;
  std::shared_ptr<FailureNote> note_;
};

}  // namespace detail
}  // namespace pardl::inline PARDL_ABI
