// SPDX-License-Identifier: MIT
/// \file   The replicas of a module on other devices: cloned once, then kept equal to it.
/// \layer  train, private.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <torch/nn/module.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/train/detail/gradient_tie.hpp"
#include "pardl/train/detail/model_state.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Tensors of this size and more travel alone: packing them would cost more than it saves.
inline constexpr std::size_t coalesce_below = std::size_t{1} << 20;  // bytes

/// Copies values from one device to another: all small tensors of a dtype packed into one copy (PyTorch:
/// torch/nn/parallel/comm.py, broadcast_coalesced). On one and the same device each is copied where it lies.
inline void copy_coalesced(std::vector<torch::Tensor> const& from, std::vector<torch::Tensor> const& to,
                           bool across_devices) {
  if (from.empty()) return;
  torch::NoGradGuard const no_grad;
  std::map<torch::ScalarType, std::vector<std::size_t>> packs;
  std::vector<torch::Tensor> sources, targets;
  for (std::size_t i = 0; i < from.size(); ++i)
    if (across_devices && from[i].nbytes() < coalesce_below) {
      packs[from[i].scalar_type()].push_back(i);
    } else {
      sources.push_back(from[i]);
      targets.push_back(to[i]);
    }
  for (auto const& [dtype, members] : packs) {
    std::vector<torch::Tensor> flat;
    std::vector<std::int64_t> sizes;
    for (auto const i : members) {
      flat.push_back(from[i].reshape(-1));
      sizes.push_back(from[i].numel());
    }
    auto const device = to[members.front()].device();
    auto const pieces = at::cat(flat).to(device, /*non_blocking=*/!device.is_cpu()).split_with_sizes(sizes);
    for (std::size_t k = 0; k < members.size(); ++k) {
      sources.push_back(pieces[k].view(from[members[k]].sizes()));
      targets.push_back(to[members[k]]);
    }
  }
  at::_foreach_copy_(targets, sources);
}

/// Clones draw initial weights that nobody needs; the random numbers of the program stay as they were.
class KeepRandomState {
 public:
  KeepRandomState() {
    std::lock_guard const lock(generator_.mutex());
    state_ = generator_.get_state();
  }
  KeepRandomState(KeepRandomState const&) = delete;
  KeepRandomState& operator=(KeepRandomState const&) = delete;
  ~KeepRandomState() {
    std::lock_guard const lock(generator_.mutex());
    generator_.set_state(state_);
  }

 private:
  at::Generator generator_ = at::detail::getDefaultCPUGenerator();
  torch::Tensor state_{};
};

/// The module is replica 0. The others follow its values, modes and requires_grad from forward to forward.
///
/// A replica's tensor counts a change (its version, by which backward knows that it is too late) exactly where the
/// module's tensor counts one. Graphs of earlier forwards therefore do on all replicas what they do on the module: go
/// on where nothing that they need has changed, and otherwise say so.
class Replicas {
 public:
  Replicas(torch::nn::Module& module, std::vector<torch::Device> devices)
      : module_(&module), devices_(std::move(devices)) {
    replicate();
  }

  /// Clones the module to every device but the first. \throws ConfigError where it cannot be cloned.
  void replicate() {
    complete_ = false;  // until the end: after an exception the next forward tries again
    sources_ = named_tensors(*module_, parameters_);
    parts_ = module_->modules(/*include_self=*/false);
    check_devices();
    replicas_.clear();
    shared_.clear();
    std::unordered_map<c10::TensorImpl*, std::size_t> position;
    for (auto const& source : sources_) {
      bool const added = position.emplace(source.tensor.unsafeGetTensorImpl(), shared_.size()).second;
      if (added) shared_.push_back({source.tensor, {}, {}});
    }
    for (std::size_t r = 1; r < devices_.size(); ++r) {
      replicas_.push_back({clone_to(devices_[r]), {}});
      adopt(r, position);
    }
    complete_ = true;
  }

  [[nodiscard]] torch::nn::Module& operator[](std::size_t replica) const {
    return replica == 0 ? *module_ : *replicas_[replica - 1].module;
  }
  [[nodiscard]] std::vector<torch::Device> const& devices() const noexcept { return devices_; }

  /// Brings the first `count` replicas to where the module is.
  /// \throws ConfigError where the module is not on the first device, or cannot be cloned after it was rebuilt.
  /// \cost a copy of buffers and parameters to each device but the first.
  void follow(std::size_t count) {
    auto const now = named_tensors(*module_, parameters_);
    auto const parts = module_->modules(/*include_self=*/false);
    bool const same =
        parts == parts_ && std::equal(now.begin(), now.end(), sources_.begin(), sources_.end(),
                                      [](auto const& a, auto const& b) { return a.tensor.is_same(b.tensor); });
    if (!complete_ || !same) replicate();
    check_devices();
    if (count < 2) return;
    c10::InferenceMode const normal_tensors(false);
    torch::NoGradGuard const no_grad;
    for (std::size_t r = 1; r < count; ++r) {
      auto& replica = *replicas_[r - 1].module;
      auto const copies = replica.modules(/*include_self=*/false);
      // Parents come before their children: a parent's call sets all of them, and then each child its own.
      follow_mode(*module_, replica);
      for (std::size_t i = 0; i < parts.size(); ++i) follow_mode(*parts[i], *copies[i]);
      follow_values(r);
    }
  }

  /// Ties the first `count` replicas to the module's gradients, for forwards while what it returns lives.
  Redirection tie(std::size_t count) {
    Redirection redirection;
    if (count < 2) return redirection;
    for (auto& [original, copies, gradient] : shared_) {
      if (original.requires_grad()) {
        gradient.connect(original, copies, redirection);
      } else {
        for (auto const& copy : copies) copy.tensor.set_requires_grad(false);
      }
    }
    return redirection;
  }

 private:
  struct Follower {
    std::size_t source;  ///< in sources_
    torch::Tensor tensor;
    std::uint32_t source_version;  ///< when it was last copied
  };
  struct Replica {
    std::shared_ptr<torch::nn::Module> module;
    std::vector<Follower> followers;
  };
  /// A tensor of the module under whatever names, and its copies.
  struct Shared {
    torch::Tensor original;
    std::vector<ReplicaTensor> copies;
    GradientTie gradient;
  };

  /// Every parameter and then every buffer, under every name.
  static std::vector<NamedTensor> named_tensors(torch::nn::Module& module, std::size_t& parameters) {
    auto all = all_parameters(module);
    parameters = all.size();
    for (auto& buffer : all_buffers(module)) all.push_back(std::move(buffer));
    return all;
  }

  void check_devices() const {
    for (auto const& [name, tensor, sparse] : sources_)
      if (tensor.device() != devices_.front())
        throw ConfigError(sentence("train",
                                   "DataParallel needs the module's parameters and buffers on the first device, " +
                                       devices_.front().str() + ", but '" + name + "' is on " + tensor.device().str(),
                                   "call module->to(device) first"));
  }

  [[noreturn]] void refuse_clone(torch::Device device, std::string const& what) const {
    throw ConfigError(sentence("train", "DataParallel cannot clone the module to " + device.str() + ": " + what,
                               "derive it and each of its parts from torch::nn::Cloneable, and register parameters, "
                               "buffers and submodules in reset()"));
  }

  [[nodiscard]] std::shared_ptr<torch::nn::Module> clone_to(torch::Device device) const {
    KeepRandomState const random;
    c10::InferenceMode const normal_tensors(false);
    torch::NoGradGuard const no_grad;
    try {
      return module_->clone(device);
    } catch (c10::Error const& error) {
      refuse_clone(device, error.what_without_backtrace());
    }
  }

  /// Checks that a clone is as deep and as wide as the module, and finds whose copy each of its tensors is.
  void adopt(std::size_t r, std::unordered_map<c10::TensorImpl*, std::size_t> const& position) {
    auto& [module, followers] = replicas_[r - 1];
    std::size_t parameters = 0;
    auto const copies = named_tensors(*module, parameters);
    bool const alike = parameters == parameters_ &&
                       std::equal(copies.begin(), copies.end(), sources_.begin(), sources_.end(),
                                  [](auto const& a, auto const& b) { return a.name == b.name; }) &&
                       module->modules(/*include_self=*/false).size() == parts_.size();
    if (!alike) refuse_clone(devices_[r], "the clone has other parameters, buffers or parts than the module");
    std::unordered_map<c10::TensorImpl*, std::size_t> seen;
    for (std::size_t i = 0; i < copies.size(); ++i) {
      auto const& [name, tensor, sparse] = copies[i];
      auto const shared = position.at(sources_[i].tensor.unsafeGetTensorImpl());
      if (tensor.is_same(sources_[i].tensor) || tensor.is_alias_of(sources_[i].tensor))
        refuse_clone(devices_[r], "the clone shares '" + name + "' with the module");
      if (!tensor.is_leaf()) refuse_clone(devices_[r], "the clone's '" + name + "' is the result of operations");
      auto const [known, added] = seen.emplace(tensor.unsafeGetTensorImpl(), shared);
      if (known->second != shared)
        refuse_clone(devices_[r], "the clone's '" + name + "' is another of its tensors, too");
      if (!added) continue;
      followers.push_back({i, tensor, version_of(sources_[i].tensor)});
      shared_[shared].copies.push_back({r, tensor});
    }
  }

  static std::uint32_t version_of(torch::Tensor const& tensor) {
    return tensor.is_inference() ? 0 : static_cast<std::uint32_t>(tensor._version());
  }

  static void follow_mode(torch::nn::Module const& part, torch::nn::Module& copy) {
    if (copy.is_training() != part.is_training()) copy.train(part.is_training());
  }

  /// All values, for few changes are counted: torch::optim writes through data(), fused steps and batch norm past the
  /// dispatcher's counting. What the module's tensor did not count is copied past the replica's counter, too.
  void follow_values(std::size_t r) {
    std::vector<torch::Tensor> from, to;
    for (auto& follower : replicas_[r - 1].followers) {
      auto const& source = sources_[follower.source].tensor;
      if (!same_form(source, follower.tensor)) follower.tensor.set_data(at::empty_like(source, devices_[r]));
      auto const version = version_of(source);
      bool const counted = std::exchange(follower.source_version, version) != version;
      from.push_back(source.detach());
      to.push_back(counted ? follower.tensor : follower.tensor.variable_data());
    }
    copy_coalesced(from, to, devices_[r] != devices_.front());
  }

  /// Whether values can be copied from one to the other as they lie: no set_data() came between.
  static bool same_form(torch::Tensor const& a, torch::Tensor const& b) {
    return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.strides() == b.strides();
  }

  torch::nn::Module* module_;
  std::vector<torch::Device> devices_;
  bool complete_ = false;               ///< every device but the first has its replica
  std::size_t parameters_ = 0;          ///< how many of sources_ are parameters; the others are buffers
  std::vector<NamedTensor> sources_{};  ///< of the module, as they were when it was cloned; and so its parts
  std::vector<std::shared_ptr<torch::nn::Module>> parts_{};
  std::vector<Shared> shared_{};
  std::vector<Replica> replicas_{};  ///< from replica 1
};

}  // namespace pardl::inline PARDL_ABI::detail
