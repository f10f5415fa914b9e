// SPDX-License-Identifier: MIT
/// \file   A module inside a class that trains it: how it is kept, and what of it shows through.
/// \layer  train, private.
#pragma once

#include <torch/types.h>

#include <type_traits>
#include <utility>

#include "pardl/train/module_like.hpp"
#include "pardl/train/state_dict.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// The base of such a class. `M` is what it was given: a holder or a shared_ptr, of which it keeps a copy, or a plain
/// module, which it refers to and which must outlive it.
template <class M>
class WrappedModule {
  static constexpr bool handle = is_module_handle<M>;

 public:
  using Module = contained_t<M>;

  /// The module itself: for evaluation, which must not meet other ranks, and for its members.
  [[nodiscard]] Module& module() noexcept {
    if constexpr (handle)
      return contained(module_);
    else
      return *module_;
  }
  [[nodiscard]] Module* operator->() noexcept { return &module(); }

  [[nodiscard]] auto parameters() { return module().parameters(); }
  [[nodiscard]] auto named_parameters() { return module().named_parameters(); }
  [[nodiscard]] auto buffers() { return module().buffers(); }
  [[nodiscard]] auto named_buffers() { return module().named_buffers(); }
  void train(bool on = true) {
    if (on)
      module().train();
    else
      module().eval();
  }
  void eval() { module().eval(); }
  [[nodiscard]] bool is_training() { return module().is_training(); }
  /// Forgets all gradients. Python: zero_grad(set_to_none=True).
  void zero_grad() {
    for (auto& parameter : parameters()) torch::Tensor(parameter).mutable_grad() = torch::Tensor();
  }

  /// Parameters and buffers by name, without a prefix: `load_state_dict` of the bare module reads them.
  [[nodiscard]] StateDict state_dict() { return pardl::state_dict(module()); }
  /// \throws CheckpointError that names the first key that does not fit. Give every rank the same state.
  void load_state_dict(StateDict const& state) { pardl::load_state_dict(module(), state); }

 protected:
  /// Whether a module of this type and value category lives as long as the object that it is given to.
  template <class U>
  static constexpr bool outlives = handle || std::is_lvalue_reference_v<U>;

  template <class U>
  explicit WrappedModule(std::in_place_t, U&& module) : module_(keep(std::forward<U>(module))) {}

 private:
  template <class U>
  static auto keep(U&& module) {
    if constexpr (handle)
      return M(std::forward<U>(module));
    else
      return &module;
  }

  std::conditional_t<handle, M, Module*> module_;
};

}  // namespace pardl::inline PARDL_ABI::detail
