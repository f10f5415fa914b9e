// SPDX-License-Identifier: MIT
/// \file   A module's parameters and buffers by name, without any wrapper's prefix, and their way back.
/// \layer  train.
#pragma once

#include <torch/ordered_dict.h>
#include <torch/types.h>

#include <string>
#include <utility>

#include "pardl/policy/error.hpp"
#include "pardl/train/detail/model_state.hpp"
#include "pardl/train/module_like.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Names as Python's `module.state_dict()` gives them, in its order.
using StateDict = torch::OrderedDict<std::string, torch::Tensor>;

/// Parameters and buffers by name. The tensors share memory with the module's, as in Python: clone() what shall stay
/// as it is. Local. \cost no copy.
template <class M>
[[nodiscard]] StateDict state_dict(M& module) {
  static_assert(module_like<M>,
                "pardl::state_dict needs a module: a torch::nn::Module, or a shared_ptr or holder of one.");
  StateDict state("name");
  for (auto const& item : detail::all_state(detail::contained(module))) state.insert(item.name, item.tensor.detach());
  return state;
}

/// Copies `state` into the module, values cast to the module's types. A dictionary saved by Python's
/// DistributedDataParallel, whose names all begin with "module.", is read as if they did not. Nothing is written
/// unless everything fits. Local: give every rank the same state.
/// \throws CheckpointError that names the first key that is missing, not known, or of another shape.
template <class M>
void load_state_dict(M& module, StateDict const& state) {
  static_assert(module_like<M>,
                "pardl::load_state_dict needs a module: a torch::nn::Module, or a shared_ptr or holder of one.");
  auto const own = detail::all_state(detail::contained(module));
  std::string const wrapped = "module.";
  bool strip = !state.is_empty();
  for (auto const& item : state) strip = strip && item.key().starts_with(wrapped);
  for (auto const& item : own) strip = strip && !item.name.starts_with(wrapped);
  std::string const prefix = strip ? wrapped : "";

  auto const refuse = [](std::string const& what, std::string const& remedy) {
    throw CheckpointError(sentence("train", what, remedy));
  };
  StateDict known("name");
  for (auto const& [name, tensor, sparse] : own) {
    auto const* value = state.find(prefix + name);
    if (!value) refuse("the state has no '" + name + "'", "load a state of the same model");
    if (!value->defined() || value->sizes() != tensor.sizes())
      refuse("'" + name + "' has shape " + (value->defined() ? c10::str(value->sizes()) : "none") +
                 " in the state and " + c10::str(tensor.sizes()) + " in the model",
             "load a state of the same model");
    known.insert(prefix + name, tensor);
  }
  for (auto const& item : state)
    if (!known.contains(item.key()))
      refuse("the state has '" + item.key() + "', which the model does not", "load a state of the same model");

  torch::NoGradGuard no_grad;
  for (auto const& item : known) torch::Tensor(item.value()).copy_(state[item.key()]);
}

}  // namespace pardl::inline PARDL_ABI
