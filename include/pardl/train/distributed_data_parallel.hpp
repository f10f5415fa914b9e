// SPDX-License-Identifier: MIT
/// \file   Data-parallel training: a replica on every rank, gradients averaged bucket by bucket while backward runs.
/// \layer  train.
///
/// The engine is LibTorch's own c10d::Reducer, so buckets, overlap, unused parameters, static graphs and hooks mean
/// what PyTorch documents for torch.nn.parallel.DistributedDataParallel (Li et al., "PyTorch Distributed: Experiences
/// on Accelerating Data Parallel Training", VLDB 13(12), 2020).
/// ```
/// pardl::DistributedDataParallel model{net, world, {.gradient_as_bucket_view = true}};
/// torch::optim::SGD sgd{model.parameters(), 0.1};
/// for (auto& [images, labels] : loader.epoch(0)) {
///   sgd.zero_grad();
///   cross_entropy(model(images), labels).backward();  // every rank's gradients are now the mean over ranks
///   sgd.step();
/// }
/// ```
/// Construction, forward and backward are points where ranks meet: every rank must reach them equally often, in the
/// same order. Parameters must not be added, removed, replaced or moved afterwards; gradients come by backward(), not
/// by torch::autograd::grad(). Not thread-safe.
///
/// Of Python's options these are not here. device_ids, output_device, dim, device_mesh: a rank has one device,
/// `world.device()`. check_reduction, broadcast_buffers: deprecated. mixed_precision, experimental there: Autocast and
/// comm_hooks::fp16_compress() do its two halves. delay_all_reduce_named_params: its sum is never waited for there;
/// name the parameters in params_to_ignore and all_reduce() their gradients after backward.
#pragma once

#include <torch/types.h>

#include <concepts>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/comm/process_group.hpp"
#include "pardl/train/comm_hooks.hpp"
#include "pardl/train/detail/ddp_engine.hpp"
#include "pardl/train/detail/join.hpp"
#include "pardl/train/detail/wrapped_module.hpp"
#include "pardl/train/distributed_data_parallel_options.hpp"
#include "pardl/train/for_each_tensor.hpp"
#include "pardl/train/module_like.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

namespace detail {

/// While it lives, backward keeps each rank's gradients to itself.
class [[nodiscard("no_sync() lasts as long as the guard it returns")]] NoSync {
 public:
  explicit NoSync(std::shared_ptr<DdpEngine> engine)
      : engine_(std::move(engine)), before_(engine_->exchange_backward_sync(false)) {}
  NoSync(NoSync const&) = delete;
  NoSync& operator=(NoSync const&) = delete;
  ~NoSync() { engine_->exchange_backward_sync(before_); }

 private:
  std::shared_ptr<DdpEngine> engine_;
  bool before_;
};

}  // namespace detail

/// A module whose gradients are averaged over ranks. `M` is what it was given: a holder or a shared_ptr, of which it
/// keeps a copy, or a plain module, which it refers to and which must outlive it. What it shows of the module is in its
/// base: module(), ->, parameters(), train(), zero_grad(), state_dict() and the like.
///
/// \cost construction: two small all-gathers and a broadcast of the model. Forward: a broadcast of the buffers, where
/// there are any. Backward: one all-reduce of every gradient, in buckets, overlapped with the computation.
template <class M>
class DistributedDataParallel : public detail::WrappedModule<M> {
  static_assert(module_like<M>,
                "pardl::DistributedDataParallel needs a module: a torch::nn::Module, a shared_ptr or a holder of one, "
                "or a class with parameters(), named_parameters(), buffers(), named_buffers(), train(), eval() and "
                "is_training().");
  using Wrapped = detail::WrappedModule<M>;

 public:
  using typename Wrapped::Module;
  using Wrapped::module;

  /// Every rank must call it, with the same model and options; afterwards all hold rank 0's parameters and buffers.
  /// Put the module on `world.device()`, and into channels_last, before.
  /// \throws ConfigError, on all ranks together, where models or options differ or cannot be trained.
  template <class U>
    requires std::same_as<std::remove_cvref_t<U>, M>
  explicit DistributedDataParallel(U&& net, ProcessGroup world, DistributedDataParallelOptions options = {})
      : Wrapped(std::in_place, std::forward<U>(net)) {
    static_assert(Wrapped::template outlives<U>,
                  "pardl::DistributedDataParallel would outlive this temporary module; keep the module in a variable, "
                  "or pass a shared_ptr or a holder.");
    Module* const contained = &module();
    detail::ModuleView view{.parameters = detail::all_parameters(*contained),
                            .buffers = [contained] { return detail::all_buffers(*contained); }};
    engine_ = std::make_shared<detail::DdpEngine>(std::move(view), std::move(world), std::move(options));
  }

  DistributedDataParallel(DistributedDataParallel&&) noexcept = default;
  DistributedDataParallel& operator=(DistributedDataParallel&&) noexcept = default;
  DistributedDataParallel(DistributedDataParallel const&) = delete;
  DistributedDataParallel& operator=(DistributedDataParallel const&) = delete;
  ~DistributedDataParallel() = default;

  /// The module's own forward, and what it returns, with whatever arguments it takes. Every rank must call it before
  /// each backward that is to be reduced.
  /// \throws Error  where an earlier backward failed: what() tells why. ConfigError where a search for unused
  /// parameters or a static graph needs to look into an output that it cannot look into.
  template <class... Args>
  auto forward(Args&&... args) {
    static_assert(forwards<M, Args...>,
                  "pardl::DistributedDataParallel: the wrapped module's forward does not take these arguments.");
    using Output = std::remove_cvref_t<decltype(module().forward(std::forward<Args>(args)...))>;
    engine_->before_forward();
    if constexpr (std::is_void_v<Output>) {
      module().forward(std::forward<Args>(args)...);
      engine_->after_forward({});
    } else {
      Output output = module().forward(std::forward<Args>(args)...);
      std::vector<torch::Tensor*> tensors;
      if (engine_->wants_outputs()) {
        if constexpr (tensors_visitable<Output>)
          for_each_tensor(output, [&tensors](torch::Tensor& tensor) { tensors.push_back(&tensor); });
        else
          throw ConfigError(sentence("ddp", world().rank(), world().size(),
                                     "cannot look for tensors in what forward returns, which find_unused_parameters "
                                     "and static_graph need",
                                     "write for_each_tensor(T&, f) beside the type"));
      }
      engine_->after_forward(tensors);
      return output;
    }
  }
  template <class... Args>
  auto operator()(Args&&... args) {
    return forward(std::forward<Args>(args)...);
  }

  [[nodiscard]] ProcessGroup const& world() const noexcept { return engine_->world(); }
  [[nodiscard]] DistributedDataParallelOptions const& options() const noexcept { return engine_->options(); }

  /// Until the guard goes, gradients add up on each rank alone; the first backward of a forward after that reduces the
  /// sum. The forward must be inside: `{ auto alone = model.no_sync(); loss(model(x)).backward(); }`
  [[nodiscard]] detail::NoSync no_sync() { return detail::NoSync(engine_); }

  /// For ranks with unequal numbers of batches: `{ auto uneven = model.join(); for (auto& batch : mine) … }`. A rank
  /// that leaves the scope answers for the others' collectives until all have left it; then every rank has the model
  /// of the last (of several the highest) rank. The scope must hold no collective but this model's own; with others
  /// set throw_on_early_termination. The destructor may throw; finish() does the same by name.
  /// \cost two more all-reduces of one number for each forward.
  [[nodiscard]] detail::JoinGuard join(JoinOptions options = {}) { return detail::JoinGuard(engine_, options); }
  /// The same around a function.
  template <std::invocable F>
  void join(F&& train_loop, JoinOptions options = {}) {
    detail::JoinGuard uneven(engine_, options);
    std::forward<F>(train_loop)();
    uneven.finish();
  }

  /// Gives every rank rank 0's buffers, such as the statistics of batch norm. Every rank must call it.
  void sync_buffers() { engine_->sync_buffers(0); }

  /// Takes over the reduction of buckets. Once, before the first forward, the same on every rank.
  template <class H>
  void register_comm_hook(H hook) {
    static_assert(comm_hook<H>,
                  "pardl::DistributedDataParallel::register_comm_hook needs a communication hook; make one of a "
                  "function by pardl::comm_hooks::returning_mean(f) or returning_sum(f).");
    if constexpr (comm_hook<H>) engine_->register_comm_hook(std::move(hook));
  }

  /// The reducer, for what LibTorch offers beyond this class.
  [[nodiscard]] c10d::Reducer& reducer() noexcept { return engine_->reducer(); }

 private:
  std::shared_ptr<detail::DdpEngine> engine_;
};

template <class U>
DistributedDataParallel(U&&, ProcessGroup, DistributedDataParallelOptions = {})
    -> DistributedDataParallel<std::remove_cvref_t<U>>;

static_assert(module_like<DistributedDataParallel<torch::nn::Sequential>>);

}  // namespace pardl::inline PARDL_ABI
