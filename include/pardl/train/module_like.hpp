// SPDX-License-Identifier: MIT
/// \file   What counts as a module: parameters, buffers, training and evaluation mode, and a forward.
/// \layer  train.
///
/// A module reaches this library as LibTorch's users hold it: a plain object, a `std::shared_ptr`, or a holder made
/// by `TORCH_MODULE`. The concepts look through the handle at what it contains.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/types.h>

#include <concepts>
#include <memory>
#include <utility>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

namespace detail {

template <class M>
struct Contained {
  using type = M;
};
template <class T>
struct Contained<std::shared_ptr<T>> {
  using type = T;
};
template <class M>
  requires requires { typename M::ContainedType; }
struct Contained<M> {
  using type = typename M::ContainedType;
};

/// The class with `forward`, behind whatever handle.
template <class M>
using contained_t = typename Contained<std::remove_cv_t<M>>::type;

/// True for a holder or a shared_ptr: copying it copies a reference, not the module.
template <class M>
inline constexpr bool is_module_handle = !std::same_as<contained_t<M>, std::remove_cv_t<M>>;

/// The module behind the handle, or the module itself.
template <class M>
[[nodiscard]] contained_t<M>& contained(M& module) {
  if constexpr (is_module_handle<M>)
    return const_cast<contained_t<M>&>(*module);  // a const holder still holds a module that trains
  else
    return module;
}

}  // namespace detail

template <class T>
concept has_parameters = requires(T& module) {
  { module.parameters() } -> std::convertible_to<std::vector<torch::Tensor>>;
  { module.named_parameters().begin()->key() };
  { module.named_parameters().begin()->value() } -> std::convertible_to<torch::Tensor>;
};

template <class T>
concept has_buffers = requires(T& module) {
  { module.buffers() } -> std::convertible_to<std::vector<torch::Tensor>>;
  { module.named_buffers().begin()->value() } -> std::convertible_to<torch::Tensor>;
};

template <class T>
concept switches_mode = requires(T& module) {
  module.train();
  module.eval();
  { module.is_training() } -> std::convertible_to<bool>;
};

/// Something that can be trained: parameters() and named_parameters(), buffers() and named_buffers(), train() and
/// eval(). Models: any torch::nn::Module, a shared_ptr or a holder of one, Sequential, DistributedDataParallel.
template <class M>
concept module_like = has_parameters<detail::contained_t<M>> && has_buffers<detail::contained_t<M>> &&
                      switches_mode<detail::contained_t<M>>;

/// A module whose forward takes these arguments. Its return type may be anything.
template <class M, class... Args>
concept forwards = module_like<M> && requires(detail::contained_t<M>& module, Args&&... args) {
  module.forward(std::forward<Args>(args)...);
};

static_assert(module_like<torch::nn::Module>);
static_assert(module_like<std::shared_ptr<torch::nn::Module>>);
static_assert(module_like<torch::nn::Sequential>);
static_assert(forwards<torch::nn::Sequential, torch::Tensor>);
static_assert(!forwards<torch::nn::Module, torch::Tensor>);
static_assert(!module_like<int>);
static_assert(!module_like<torch::Tensor>);

}  // namespace pardl::inline PARDL_ABI
