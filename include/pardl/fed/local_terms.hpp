// SPDX-License-Identifier: MIT
/// \file   What a strategy adds to local training: terms in the gradients, and a word at the end of a client's round.
/// \layer  fed.
#pragma once

#include <torch/types.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "pardl/fed/client_task.hpp"
#include "pardl/fed/flat_model.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// What the optimizer of a local training did, for terms that normalise by it.
struct LocalTrace {
  double rate = 0;              ///< the optimizer's, before any schedule
  std::vector<double> rates{};  ///< of each step taken
  double momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false;
};

/// A term is begun with each task; what begin() returns sees that task through:
///   active()              whether gradients() does anything: if not, gradients need not be written out;
///   gradients()           adds to the gradients of the model's parameters, before each optimizer step and its
///   clipping; finish(trace, result) after the last step; may change the model's shared numbers, kept and change.
/// Optional members client_numbers(model) and server_numbers(model) as in local_update. Models: NoTerm, Proximal,
/// ControlVariates, Normalised.
template <class T, class Task>
concept local_term = std::copy_constructible<T> &&
                     requires(T const& term, Task const& task, LocalTrace const& trace, LocalResult& result) {
                       { term.begin(task).active() } -> std::convertible_to<bool>;
                       term.begin(task).gradients();
                       term.begin(task).finish(trace, result);
                     };
static_assert(!local_term<int, int>);

/// FedAvg: nothing. The default of LocalTraining.
struct NoTerm {
  struct Run {
    static constexpr bool active() noexcept { return false; }
    void gradients() const {}
    void finish(LocalTrace const&, LocalResult&) const {}
  };
  template <class Task>
  [[nodiscard]] Run begin(Task const&) const {
    return {};
  }
};

/// FedProx: the gradient of mu/2 · ‖w - w_global‖² over the shared parameters; mu 0 adds nothing, bit for bit.
/// \paper Li et al., "Federated optimization in heterogeneous networks", MLSys 2020.
struct Proximal {
  double mu = 0;

  class Run {
   public:
    Run(FlatModel const& model, torch::Tensor const& global, double mu) : model_(&model), mu_(mu) {
      if (mu != 0) global_ = global.to(model.device());
    }
    [[nodiscard]] bool active() const noexcept { return mu_ != 0; }
    void gradients() const {
      if (mu_ == 0) return;
      model_->each_shared_gradient([&](torch::Tensor const& parameter, torch::Tensor& gradient, std::size_t p) {
        gradient.add_(parameter - model_->parameter_in(global_, p), mu_);
      });
    }
    void finish(LocalTrace const&, LocalResult&) const {}

   private:
    FlatModel const* model_;
    double mu_;
    torch::Tensor global_;
  };
  template <class Task>
  [[nodiscard]] Run begin(Task const& task) const {
    return {task.model, task.global, mu};
  }
};

/// SCAFFOLD: steps along g - c_i + c, where c_i, a control variate that each client keeps, is its last mean gradient,
/// and c, the server's, is the mean of c_i over all clients, those that were never trained counting zero. After K steps
/// c_i becomes c_i - c + (w_global - w)/(sum of the rates) (the paper's option II). The server's c takes the clients'
/// changes over the number of all clients, so that c = mean c_i also where few clients take part in a round. For plain
/// SGD; the paper weights clients uniformly (Weighting::uniform).
/// \cost  memory of two rows of parameters per client that was ever trained; one pass over them a step.
/// \paper Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020.
struct ControlVariates {
  [[nodiscard]] std::int64_t client_numbers(FlatModel const& model) const { return model.shared_parameters(); }
  [[nodiscard]] std::int64_t server_numbers(FlatModel const& model) const { return model.shared_parameters(); }

  template <class Task>
  class Run {
   public:
    explicit Run(Task const& task) : task_(&task), correction_((task.server - task.kept).to(task.model.device())) {}
    static constexpr bool active() noexcept { return true; }
    void gradients() const {
      task_->model.each_shared_gradient([&](torch::Tensor const&, torch::Tensor& gradient, std::size_t p) {
        gradient.add_(task_->model.parameter_in(correction_, p));
      });
    }
    void finish(LocalTrace const& trace, LocalResult&) const {
      if (trace.momentum != 0)
        throw ConfigError(sentence("fed", "SCAFFOLD over an optimizer with momentum",
                                   "train with plain SGD: its mean gradient is what a control variate is made of"));
      double total = 0;
      for (double const rate : trace.rates) total += rate;
      if (total == 0) return;
      torch::NoGradGuard const no_grad;
      auto const& model = task_->model;
      auto const moved = task_->global.narrow(0, 0, model.shared_parameters()) -
                         model.shared().narrow(0, 0, model.shared_parameters()).cpu();
      torch::Tensor change = task_->change, kept = task_->kept;
      change.copy_(moved.div_(total).sub_(task_->server));
      kept.add_(change);
    }

   private:
    Task const* task_;
    torch::Tensor correction_;
  };
  template <class Task>
  [[nodiscard]] Run<Task> begin(Task const& task) const {
    return Run<Task>(task);
  }
};

/// The sum a of the weights with which a client's gradients stand in its change of SGD, in units of the rate: the
/// number of steps without momentum, more with it; a proximal pull shortens it.
/// \paper Wang et al. (below), section 4; the recursion covers momentum, Nesterov, schedules and the proximal term.
[[nodiscard]] inline double gradient_mass(LocalTrace const& trace, double mu = 0) {
  double mass = 0, velocity = 0;
  bool first = true;
  for (double const rate : trace.rates) {
    double const gradient = 1 - mu * trace.rate * mass;
    velocity = trace.momentum * velocity + (first ? 1 : 1 - trace.dampening) * gradient;
    first = false;
    double const step = trace.momentum == 0 ? gradient
                        : trace.nesterov    ? gradient + trace.momentum * velocity
                                            : velocity;
    mass += trace.rate > 0 ? rate / trace.rate * step : step;
  }
  return mass;
}

/// FedNova: a client's change is divided by its gradient_mass, the mean is multiplied by the mean of those: clients
/// that take more steps no longer pull the global model to an optimum of their own. Over parameters; averaged buffers
/// are averaged. With mu its local solver is FedProx's.
/// \paper Wang et al., "Tackling the objective inconsistency problem in heterogeneous federated optimization",
/// NeurIPS 2020.
struct Normalised {
  double mu = 0;

  class Run {
   public:
    Run(FlatModel const& model, torch::Tensor global, double mu)
        : model_(&model), global_(std::move(global)), mu_(mu), proximal_(model, global_, mu) {}
    [[nodiscard]] bool active() const noexcept { return proximal_.active(); }
    void gradients() const { proximal_.gradients(); }
    void finish(LocalTrace const& trace, LocalResult& result) const {
      result.stretch = gradient_mass(trace, mu_);
      if (result.stretch == 1) return;
      if (!(result.stretch > 0))
        throw ConfigError(sentence("fed", "FedNova over steps that do not add up to a direction",
                                   "lower the rate, mu or the dampening"));
      torch::NoGradGuard const no_grad;
      auto const start = global_.narrow(0, 0, model_->shared_parameters()).to(model_->device());
      auto weights = model_->shared().narrow(0, 0, model_->shared_parameters());
      weights.copy_(start + (weights - start).div_(result.stretch));
    }

   private:
    FlatModel const* model_;
    torch::Tensor global_;
    double mu_;
    Proximal::Run proximal_;
  };
  template <class Task>
  [[nodiscard]] Run begin(Task const& task) const {
    return {task.model, task.global, mu};
  }
};

}  // namespace pardl::inline PARDL_ABI::fed
