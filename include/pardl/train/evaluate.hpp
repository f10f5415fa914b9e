// SPDX-License-Identifier: MIT
/// \file   Loss and accuracy of a model over a data set that is split over the ranks.
/// \layer  train (may include comm). Every rank must call evaluate().
#pragma once

#include <torch/nn/functional/loss.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <ranges>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/autocast.hpp"
#include "pardl/train/metrics.hpp"
#include "pardl/train/module_like.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct EvaluateOptions {
  std::int64_t epoch = 0;  ///< handed to loader.epoch(); a test set needs no other order than its first
  std::optional<torch::ScalarType> autocast{};  ///< run the model under Autocast to this type; none: as it is
};

/// The default loss: cross entropy, one number per sample, in float32 whatever the model's type.
struct CrossEntropy {
  [[nodiscard]] torch::Tensor operator()(torch::Tensor const& outputs, torch::Tensor const& targets) const {
    auto const scores = at::isReducedFloatingType(outputs.scalar_type()) ? outputs.to(torch::kFloat32) : outputs;
    return torch::nn::functional::cross_entropy(
        scores, targets, torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone));
  }
};

namespace detail {

/// The module behind a wrapper such as DistributedDataParallel, behind a handle, or the module itself.
template <class M>
[[nodiscard]] auto& unwrapped(M& model) {
  if constexpr (requires { model.module(); }) {
    return contained(model.module());
  } else {
    auto& inside = contained(model);
    if constexpr (requires { inside.module(); })
      return contained(inside.module());
    else
      return inside;
  }
}

/// Evaluation mode, until it goes out of scope; then every submodule is again in the mode that it was in (a frozen
/// batch norm inside a model that trains stays frozen).
template <class M>
class EvaluationMode {
 public:
  explicit EvaluationMode(M& module) : module_(module) {
    each([this](auto& part) { was_training_.push_back(part.is_training()); });
    module_.eval();
  }
  ~EvaluationMode() {
    std::size_t i = 0;
    // Parents come before their children: a parent's call sets all of them, and then each child its own.
    each([&](auto& part) {
      if (bool const was = was_training_[i++]; part.is_training() != was) part.train(was);
    });
  }
  EvaluationMode(EvaluationMode const&) = delete;
  EvaluationMode& operator=(EvaluationMode const&) = delete;

 private:
  template <class F>
  void each(F&& visit) {
    if constexpr (std::derived_from<M, torch::nn::Module>)
      module_.apply(std::function<void(torch::nn::Module&)>(std::forward<F>(visit)));
    else
      visit(module_);
  }

  M& module_;
  std::vector<bool> was_training_;
};

/// The batches of an epoch of a loader, or a plain range of batches.
template <class L>
decltype(auto) batches_of(L& loader, std::int64_t epoch) {
  if constexpr (requires { loader.epoch(epoch); })
    return loader.epoch(epoch);
  else
    return (loader);
}

template <class L>
concept gives_batches = requires(L& loader) {
  { batches_of(loader, std::int64_t{}) } -> std::ranges::input_range;
};

}  // namespace detail

/// Mean loss and accuracy over what the ranks' loaders give together, the same on every rank.
///
/// If the model has sync_buffers() it is called once, first, so that every rank measures the same model. From there on
/// the wrapped module is called, never the wrapper: no rank waits for another until the sums are added up, and one
/// whose share is empty hangs nobody. The model runs in evaluation mode without gradients, and is left in the modes
/// that it was in, also after an exception. Let the sampler neither repeat nor drop (DistributedSampler with .exact),
/// or samples count twice or not at all.
///
/// \param model    a module, a handle of one, or a wrapper with module(); its forward takes a batch's inputs.
/// \param loader   epoch(n) is a range of batches {inputs, targets}, as a DataLoader's; or such a range itself.
/// \param loss_fn  (outputs, targets) → [B, ...], a loss per sample, not their mean: batches differ in size.
/// \throws DataError if no rank had a sample, or the loss is not one per sample; Error on all other ranks if one of
/// them throws. \cost one all-reduce of 8 + ranks doubles at the end, and what sync_buffers() costs.
template <class Model, class Loader, class LossFn = CrossEntropy>
  requires(!std::same_as<std::remove_cvref_t<LossFn>, EvaluateOptions>)
[[nodiscard]] Evaluation evaluate(Model&& model, Loader&& loader, ProcessGroup const& world, LossFn loss_fn = {},
                                  EvaluateOptions const& options = {}) {
  using Module = std::remove_cvref_t<decltype(detail::unwrapped(model))>;
  static_assert(module_like<Module>,
                "pardl::evaluate needs a module (or a wrapper whose module() is one): parameters(), buffers(), "
                "train(), eval() and "
                "forward(); derive from torch::nn::Module.");
  static_assert(detail::gives_batches<std::remove_reference_t<Loader>>,
                "pardl::evaluate needs a loader with epoch(n), or a range, of batches {inputs, targets}; use "
                "pardl::DataLoader.");
  if constexpr (requires { model.sync_buffers(); }) model.sync_buffers();

  auto& module = detail::unwrapped(model);
  auto const device = world.device();
  Meter meter(device);
  std::exception_ptr failure;
  try {
    torch::NoGradGuard const no_grad;
    detail::EvaluationMode<Module> const mode(module);
    // The loader's own operations are not to be cast; but as long as this one lives, the cast weights are kept from
    // batch to batch.
    std::optional<Autocast> around;
    if (options.autocast) around.emplace(device, AutocastOptions{.dtype = options.autocast, .enabled = false});
    for (auto&& batch : detail::batches_of(loader, options.epoch)) {
      auto&& [given, expected] = batch;
      auto const inputs = given.to(device, /*non_blocking=*/true);
      auto const targets = expected.to(device, /*non_blocking=*/true);
      std::optional<Autocast> autocast;
      if (options.autocast) autocast.emplace(device, *options.autocast);
      auto const outputs = module.forward(inputs);
      torch::Tensor const losses = loss_fn(outputs, targets);
      if (losses.dim() < 1 || losses.size(0) != inputs.size(0))
        throw DataError(sentence("train", world.rank(), world.size(), "evaluate's loss is not one per sample",
                                 "let loss_fn return [batch], without a reduction"));
      if constexpr (std::same_as<std::remove_cvref_t<decltype(outputs)>, torch::Tensor>)
        meter.add(losses, outputs, targets);
      else
        meter.add(losses, inputs.size(0));
    }
  } catch (CommError const&) {
    throw;  // the ranks cannot talk any more
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    // The others wait in the sum below: come, and say so.
    try {
      (void)meter.reduce(world, /*healthy=*/false);
    } catch (...) {  // what went wrong first is what is told
    }
    std::rethrow_exception(failure);
  }
  auto const result = meter.reduce(world);
  if (result.samples == 0)
    throw DataError(sentence("train", world.rank(), world.size(), "evaluate was given no sample on any rank",
                             "check the test set and its sampler"));
  return result;
}

/// The same with the default loss.
template <class Model, class Loader>
[[nodiscard]] Evaluation evaluate(Model&& model, Loader&& loader, ProcessGroup const& world,
                                  EvaluateOptions const& options) {
  return evaluate(model, loader, world, CrossEntropy{}, options);
}

}  // namespace pardl::inline PARDL_ABI
