// SPDX-License-Identifier: MIT
/// \file   The edges by which the gradients of a module's replicas reach the module, summed in device order.
/// \layer  train, private.
///
/// PyTorch makes the replicas' parameters outputs of one autograd function (torch/nn/parallel/_functions.py, Broadcast,
/// whose backward is ReduceAddCoalesced), and LibTorch's data_parallel.h gives those of each fresh clone a new grad_fn.
/// Replicas that are kept can have neither: a parameter's grad_fn would change under graphs that still hold the
/// parameter. Here they stay leaves for good. What is put in is the node at which a leaf's graph ends: where autograd
/// would make an AccumulateGrad, it finds ours, which leads on:
/// ```
///   uses in the module     ────────────> input 0 ┐
///   uses in replica 1 ──> entry of 1 ──> input 1 ├ ReduceAdd ──> the parameter's own AccumulateGrad ──> .grad
///   uses in replica 2 ──> entry of 2 ──> input 2 ┘
/// ```
/// ReduceAdd runs when all of them have come and adds them from the first to the last, so the bits do not depend on
/// which device was ready first. Nothing in it belongs to one forward: graphs of several forwards share it as they
/// share an AccumulateGrad, and as that it lives as long as a graph leads to it. As an ordinary part of the graph it is
/// retained, differentiated twice or asked for by torch::autograd::grad like any other. The module's own leaves end in
/// it during the forward only; outside, they are as the user made them.
#pragma once

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// A std::shared_ptr in LibTorch 2.11, an intrusive one in 2.15.
using NodePtr = decltype(torch::autograd::Edge::function);
inline constexpr bool nodes_are_shared_ptr = std::same_as<NodePtr, std::shared_ptr<torch::autograd::Node>>;
using WeakNodePtr = std::conditional_t<nodes_are_shared_ptr, std::weak_ptr<torch::autograd::Node>,
                                       c10::weak_intrusive_ptr<torch::autograd::Node>>;

template <class N, class... Args>
NodePtr make_node(Args&&... args) {
  if constexpr (nodes_are_shared_ptr)
    return std::make_shared<N>(std::forward<Args>(args)...);
  else
    return c10::make_intrusive<N>(std::forward<Args>(args)...);
}

/// As an AccumulateGrad's: to be run as soon as its inputs are there, which frees the replicas' gradients early.
inline constexpr auto soon = std::numeric_limits<std::uint64_t>::max();

/// Where the graph of a replica's parameter ends. It hands the gradient on to the replica's place in the sum.
class ReplicaGradient final : public torch::autograd::Node {
 public:
  ReplicaGradient() : Node(soon) {}
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradient) override {
    return std::move(gradient);
  }
};

/// The sum of what the devices give, from the first to the last, on the device of the first. A device that gives
/// nothing is left out; where none gives anything there is no gradient, as for a parameter that was not used.
/// (Python's DataParallel gives that one zeros, and an optimizer with momentum would go on moving it.)
class ReduceAdd final : public torch::autograd::Node {
 public:
  explicit ReduceAdd(torch::Device first) : Node(soon), first_(first) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    torch::Tensor sum;
    bool ours = false;  // memory that nobody else can see
    for (auto& gradient : gradients) {
      if (!gradient.defined()) continue;
      bool const moves = gradient.device() != first_;
      auto next = moves ? gradient.to(first_) : std::move(gradient);
      if (!sum.defined()) {
        sum = std::move(next);
        ours = moves;
      } else if (c10::GradMode::is_enabled() || sum.layout() != torch::kStrided) {
        // Somebody will differentiate this sum; or it is sparse, and dense + sparse is all that there is.
        sum = next.layout() == torch::kStrided ? next + sum : sum + next;
      } else if (ours) {
        sum.add_(next);
      } else {
        sum = sum + next;
        ours = true;
      }
    }
    return {std::move(sum)};
  }

 private:
  torch::Device first_;
};

/// What the replicas have of one parameter; several tensors of one replica where clone() did not keep them one.
struct ReplicaTensor {
  std::size_t replica;  ///< from 1; the module itself is replica 0
  torch::Tensor tensor;
};

/// While it lives, what is put in at the ends of graphs lives, and the graphs of the module's own leaves end there,
/// too.
class [[nodiscard]] Redirection {
 public:
  Redirection() = default;
  Redirection(Redirection&&) noexcept = default;
  Redirection& operator=(Redirection&&) = delete;
  Redirection(Redirection const&) = delete;
  Redirection& operator=(Redirection const&) = delete;
  ~Redirection() {
    for (auto const& [leaf, own] : redirected_) torch::autograd::impl::set_grad_accumulator(leaf, WeakNodePtr(own));
  }

  void keep(NodePtr node) { kept_.push_back(std::move(node)); }

  /// A parameter that is itself the result of operations has its own graph; its gradients meet there.
  void add(torch::Tensor const& original, NodePtr const& sum) {
    if (!original.is_leaf()) return;
    redirected_.emplace_back(original, sum->next_edge(0).function);
    torch::autograd::impl::set_grad_accumulator(original, WeakNodePtr(sum));
  }

 private:
  std::vector<std::pair<torch::Tensor, NodePtr>> redirected_{};
  std::vector<NodePtr> kept_{};
};

/// Leads the replicas' gradients of one parameter to it.
class GradientTie {
 public:
  /// Before a forward that records a graph. `copies` holds at least one tensor for each replica, in their order.
  /// \cost three small allocations for each tensor and device; less while an earlier graph lives.
  void connect(torch::Tensor const& original, std::vector<ReplicaTensor> const& copies, Redirection& redirection) {
    namespace impl = torch::autograd::impl;
    auto sum = sum_.lock();
    auto const edge = impl::gradient_edge(original);
    if (!sum || !made_for(original) || !(sum->next_edge(0) == edge)) sum = build(original, edge, copies);
    NodePtr entry;
    std::size_t of = 0;
    for (auto const& [replica, tensor] : copies) {
      tensor.set_requires_grad(true);
      auto const end = impl::try_get_grad_accumulator(tensor);
      if (replica != std::exchange(of, replica)) {  // several tensors of one replica share its entry
        bool const leads_there = end && end->num_outputs() == 1 && end->next_edge(0).function == sum;
        entry = leads_there ? end : make_entry(sum, replica, tensor);
        redirection.keep(entry);
      }
      if (end != entry) impl::set_grad_accumulator(tensor, WeakNodePtr(entry));
    }
    redirection.keep(sum);
    redirection.add(original, sum);
  }

 private:
  [[nodiscard]] bool made_for(torch::Tensor const& original) const {
    return sizes_ == original.sizes() && options_.type_equal(original.options()) &&
           options_.device() == original.device();
  }

  [[nodiscard]] NodePtr build(torch::Tensor const& original, torch::autograd::Edge const& edge,
                              std::vector<ReplicaTensor> const& copies) {
    sizes_ = original.sizes().vec();
    options_ = original.options();
    auto sum = make_node<ReduceAdd>(original.device());
    sum->add_next_edge(edge);
    (void)sum->add_input_metadata(original);
    for (auto const& [replica, tensor] : copies)
      if (replica == sum->num_inputs()) (void)sum->add_input_metadata(tensor);  // once for each replica
    sum_ = WeakNodePtr(sum);
    return sum;
  }

  static NodePtr make_entry(NodePtr const& sum, std::size_t replica, torch::Tensor const& tensor) {
    auto entry = make_node<ReplicaGradient>();
    (void)entry->add_input_metadata(tensor);
    entry->add_next_edge(torch::autograd::Edge(sum, static_cast<std::uint32_t>(replica)));
    return entry;
  }

  WeakNodePtr sum_ = WeakNodePtr(NodePtr());
  std::vector<std::int64_t> sizes_{};
  torch::TensorOptions options_{};
};

}  // namespace pardl::inline PARDL_ABI::detail
