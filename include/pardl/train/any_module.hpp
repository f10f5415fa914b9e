// SPDX-License-Identifier: MIT
/// \file   A module chosen at run time, as a value: one tensor in, one tensor out.
/// \layer  train (torch only).
#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <concepts>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/train/module_like.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Any module that maps a tensor to a tensor; it models module_like itself. Copies share the module, as holders do, and
/// parameters keep their names.  \cost one indirect call per forward.
class any_module {
 public:
  template <class M>
    requires(!std::same_as<std::remove_cvref_t<M>, any_module>) && forwards<M, torch::Tensor> &&
                detail::is_module_handle<M>
  any_module(M module)  // NOLINT(google-explicit-constructor): a module is a module
      : module_(module.ptr()),
        forward_([module](torch::Tensor const& x) mutable { return torch::Tensor(module->forward(x)); }) {}

  [[nodiscard]] torch::Tensor forward(torch::Tensor const& x) { return forward_(x); }
  torch::Tensor operator()(torch::Tensor const& x) { return forward_(x); }

  [[nodiscard]] std::vector<torch::Tensor> parameters() const { return module_->parameters(); }
  [[nodiscard]] std::vector<torch::Tensor> buffers() const { return module_->buffers(); }
  [[nodiscard]] auto named_parameters() const { return module_->named_parameters(); }
  [[nodiscard]] auto named_buffers() const { return module_->named_buffers(); }
  /// All parts, itself among them.
  [[nodiscard]] auto modules() const { return module_->modules(); }
  void train(bool on = true) { module_->train(on); }
  void eval() { module_->eval(); }
  [[nodiscard]] bool is_training() const { return module_->is_training(); }
  void to(torch::Device device) { module_->to(device); }
  [[nodiscard]] std::shared_ptr<torch::nn::Module> const& module() const noexcept { return module_; }

 private:
  std::shared_ptr<torch::nn::Module> module_;
  std::function<torch::Tensor(torch::Tensor const&)> forward_;
};
static_assert(forwards<any_module, torch::Tensor>);

}  // namespace pardl::inline PARDL_ABI
