// SPDX-License-Identifier: MIT
/// \file   The identity through which outputs pass on their way to the loss, so that backward announces itself.
/// \layer  train, private.
///
/// Two things need it, as in Python's DDP. With a static graph the first backward must start the reduction when it is
/// over, since nobody knows yet how often each gradient arrives. With a search for unused parameters, an output that
/// takes no part in the loss must pass on an undefined gradient, so that its parameters are reported as unused instead
/// of never being reported; the same holds for a static graph with such an output, on every forward.
#pragma once

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/types.h>

#include <memory>
#include <utility>
#include <vector>

#include "pardl/train/detail/reducer.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// What a backward through the sink needs of the wrapper; the graph may outlive the wrapper, so it holds it weakly.
struct SinkState {
  std::weak_ptr<OpenReducer> reducer;
  bool static_graph = false;
  bool queued = false;   ///< the first reduction of a static graph has been asked for
  bool partial = false;  ///< an output of a static graph took no part in the loss: Python stops here, we do not

  /// Whether a forward of a static graph must pass through the sink.
  [[nodiscard]] bool wanted() const { return static_graph && (!queued || partial); }
};

class Sink : public torch::autograd::Function<Sink> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                std::shared_ptr<SinkState> state, at::TensorList outputs) {
    context->set_materialize_grads(false);
    context->saved_data["state"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(std::move(state)));
    torch::autograd::variable_list copies;
    copies.reserve(outputs.size());
    for (auto const& output : outputs) copies.push_back(output.clone());  // so that a loss may work in place
    return copies;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    auto const capsule = context->saved_data["state"].toCapsule();
    auto const& state = static_cast<Holder*>(capsule.get())->state;
    for (auto const& gradient : gradients) state->partial = state->partial || !gradient.defined();
    if (state->static_graph && !state->queued) {
      state->queued = true;
      torch::autograd::Engine::get_default_engine().queue_callback([weak = state->reducer] {
        if (auto const reducer = weak.lock()) reducer->delay_all_reduce();
      });
    }
    gradients.insert(gradients.begin(), torch::Tensor());  // forward's first argument was not a tensor
    return gradients;
  }

 private:
  struct Holder : torch::CustomClassHolder {
    explicit Holder(std::shared_ptr<SinkState> s) : state(std::move(s)) {}
    std::shared_ptr<SinkState> state;
  };
};

/// Replaces each tensor that has a graph behind it by what comes out of the sink; the others are left alone.
inline void pass_through_sink(std::shared_ptr<SinkState> const& state, std::vector<torch::Tensor*> const& outputs) {
  torch::autograd::variable_list through;
  std::vector<torch::Tensor*> places;
  for (auto* output : outputs)
    if (output->defined() && output->grad_fn()) {
      through.push_back(*output);
      places.push_back(output);
    }
  if (through.empty()) return;
  auto passed = Sink::apply(state, at::TensorList(through));  // as a list: one node for all outputs
  for (std::size_t i = 0; i < places.size(); ++i) *places[i] = std::move(passed[i]);
}

}  // namespace pardl::inline PARDL_ABI::detail
