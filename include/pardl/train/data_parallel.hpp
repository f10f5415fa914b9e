// SPDX-License-Identifier: MIT
/// \file   Data parallelism in one process: a replica of the module on each device, one thread for each.
/// \layer  train. One process; no other has to call anything.
///
/// What PyTorch documents for torch.nn.DataParallel: arguments are split along their first dimension, each device
/// works on its part, results are put together on the first device, and backward adds the gradients of all replicas
/// into the module. Between processes, and wherever speed counts, DistributedDataParallel is the better tool.
/// ```
/// torch::nn::Sequential net(…);                    // or any module with clone(); on the first device
/// net->to(torch::Device(torch::kCUDA, 0));
/// pardl::DataParallel model{net, {{torch::kCUDA, 0}, {torch::kCUDA, 1}}};
/// torch::optim::SGD sgd{model.parameters(), 0.1};
/// for (auto& [images, labels] : loader.epoch(0)) {
///   sgd.zero_grad();
///   cross_entropy(model(images), labels.to(torch::kCUDA)).backward();
///   sgd.step();
/// }
/// ```
/// **Replicas are kept.** PyTorch, and LibTorch's torch::nn::parallel::data_parallel, build them anew in each forward.
/// Here the module itself is the first replica; the others are cloned once, and follow it in each forward: values,
/// shapes and dtypes of parameters and buffers, modes, requires_grad. As in PyTorch all values are copied each time:
/// torch::optim, fused steps and much else change tensors without their version counting it, so nobody can tell which
/// have changed. A module that was rebuilt (replace_module(), push_back()) is cloned again. What is neither tensor nor
/// mode, such as a dropout rate or a counter, is as it was when it was cloned; replicate() clones again.
///
/// **Autograd.** One graph leads from the result through all replicas into the module's parameters and into arguments
/// that require gradients. Gradients are added in the order of the devices, so the sums are the same bits whichever
/// device is ready first. Graphs may be retained, differentiated twice and outlive later forwards, as a module's own;
/// a parameter that no replica used has no gradient (Python's DataParallel makes it zeros). The graph of a forward
/// refers to the replicas, so what would spoil it in a module alone (a step before its backward) spoils it here.
///
/// **Buffers** are copied from the module in each forward. What the module's own forward makes of them stays; what the
/// other replicas make of theirs is lost: statistics of batch norm are those of the first part of each batch.
///
/// **Threads.** Each forward runs with the caller's grad mode, autocast and streams. CPU "devices" share the caller's
/// intra-op threads. Backward runs in LibTorch's own threads: one for each GPU, and for the CPU the one that calls it,
/// with all intra-op threads. Random numbers on the CPU come from one generator, which the threads reach in no fixed
/// order: with dropout, replicas draw different masks, and other ones in each run. With `.parallel = false` runs
/// repeat. Each GPU has its own generator, which torch::manual_seed sets.
#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <concepts>
#include <cstddef>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/train/data_parallel_options.hpp"
#include "pardl/train/detail/data_parallel_engine.hpp"
#include "pardl/train/detail/scatter_gather.hpp"
#include "pardl/train/detail/wrapped_module.hpp"
#include "pardl/train/for_each_tensor.hpp"
#include "pardl/train/module_like.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

namespace detail {

/// Whether a class, or one that derives from it, can have a clone() of its own: all but a concrete one that has
/// torch::nn::Module's, which only throws.
template <class T>
inline constexpr bool may_clone = std::derived_from<T, torch::nn::Module> && !requires {
  requires !std::is_abstract_v<T>;
  requires std::same_as<decltype(&T::clone), decltype(&torch::nn::Module::clone)>;
};

}  // namespace detail

/// A module spread over the devices of this process. `M` is what it was given: a holder or a shared_ptr, of which it
/// keeps a copy, or a plain module, which it refers to and which must outlive it.
///
/// Not thread-safe. \cost construction: a clone of the module and a thread for each device. Forward: a copy of the
/// buffers and parameters to each device but the first; small tensors in one copy for each dtype. Backward: one copy
/// and one addition of each gradient for each of these.
template <class M>
class DataParallel : public detail::WrappedModule<M> {
  static_assert(module_like<M>,
                "pardl::DataParallel needs a module: a torch::nn::Module, or a shared_ptr or a holder of one.");
  static_assert(!module_like<M> || detail::may_clone<detail::contained_t<M>>,
                "pardl::DataParallel copies the module to each device by its clone(): derive the class and its parts "
                "from torch::nn::Cloneable, and register parameters, buffers and submodules in reset().");
  using Wrapped = detail::WrappedModule<M>;

 public:
  using typename Wrapped::Module;
  using Wrapped::module;

  /// \param devices  the first has the module; the CPU may stand several times, for as many replicas.
  /// \throws ConfigError where the list is empty or names a GPU twice, where a parameter or buffer is not on the first
  /// device, or where clone() does not give a deep copy of the same structure.
  template <class U>
    requires std::same_as<std::remove_cvref_t<U>, M>
  DataParallel(U&& net, std::vector<torch::Device> devices, DataParallelOptions options = {})
      : Wrapped(std::in_place, std::forward<U>(net)) {
    static_assert(Wrapped::template outlives<U>,
                  "pardl::DataParallel would outlive this temporary module; keep the module in a variable, or pass a "
                  "shared_ptr or a holder.");
    engine_ = std::make_unique<detail::DataParallelEngine>(module(), std::move(devices), options);
  }

  /// What the module's own forward returns: its tensors gathered along their first dimension on the first device,
  /// numbers (tensors without dimensions) as a vector of one for each part; what is no tensor is the first replica's.
  ///
  /// \param args  what the module's forward takes. Tensors [rows, …], wherever they lie and also inside tuples,
  /// vectors, maps and structs, are split as torch.chunk splits them: of 5 rows, 4 devices get 2, 2 and 1, and the
  /// last none. Tensors without dimensions go to every device; so does what holds no tensor, the caller's own object
  /// to all of them. Without arguments only the first device works.
  /// \throws DataError where tensors differ in their rows, or replicas' results in more than theirs. Error that names
  /// the device where forward threw, with that exception nested in it (std::rethrow_if_nested); the others have ended
  /// too.
  template <class... Args>
  auto forward(Args&&... args) {
    static_assert(forwards<M, Args...>,
                  "pardl::DataParallel: the wrapped module's forward does not take these arguments.");
    static_assert((!detail::borrows_tensors<std::remove_cvref_t<Args>> && ...),
                  "pardl::DataParallel cannot split a view of tensors such as at::TensorList; pass a std::vector.");
    static_assert((detail::can_be_held<Args> && ...),
                  "pardl::DataParallel gives each device a copy of an argument that holds tensors or is a temporary; "
                  "make it copyable, or pass a variable without tensors, which all devices then share.");
    using Output = std::remove_cvref_t<decltype(module().forward(std::forward<Args>(args)...))>;
    detail::ScatteredArguments<Args...> arguments(devices(), args...);
    auto const count = arguments.devices();
    if constexpr (std::is_void_v<Output>) {
      (void)engine_->apply(count,
                           [&](torch::nn::Module& replica, std::size_t i) { arguments.forward(typed(replica), i); });
    } else {
      static_assert(tensors_visitable<Output>,
                    "pardl::DataParallel cannot look for tensors in what forward returns; write for_each_tensor(T&, f) "
                    "beside the type.");
      std::vector<std::optional<Output>> outputs(count);
      auto const redirection = engine_->apply(count, [&](torch::nn::Module& replica, std::size_t i) {
        outputs[i].emplace(arguments.forward(typed(replica), i));
      });
      if (devices().size() == 1) return Output(std::move(*outputs.front()));
      return detail::gather_outputs(outputs, devices().front());
    }
  }
  template <class... Args>
  auto operator()(Args&&... args) {
    return forward(std::forward<Args>(args)...);
  }

  /// Clones the module to all devices again: after a change to what is neither tensor nor mode.
  /// \throws ConfigError as the constructor.
  void replicate() { engine_->replicate(); }

  [[nodiscard]] std::vector<torch::Device> const& devices() const noexcept { return engine_->devices(); }
  [[nodiscard]] DataParallelOptions const& options() const noexcept { return engine_->options(); }

 private:
  static Module& typed(torch::nn::Module& replica) {
    if (auto* const module = dynamic_cast<Module*>(&replica)) return *module;
    throw ConfigError(
        sentence("train", "the module's clone() gave a module of another class", "let clone() return its own class"));
  }

  std::unique_ptr<detail::DataParallelEngine> engine_{};
};

template <class U>
DataParallel(U&&, std::vector<torch::Device>, DataParallelOptions = {}) -> DataParallel<std::remove_cvref_t<U>>;

static_assert(module_like<DataParallel<torch::nn::Sequential>>);

}  // namespace pardl::inline PARDL_ABI
