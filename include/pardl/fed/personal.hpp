// SPDX-License-Identifier: MIT
/// \file   Clients with models of their own: Ditto beside the global model, FedRep with a head of each client.
/// \layer  fed.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <utility>

#include "pardl/fed/client_task.hpp"
#include "pardl/fed/flat_model.hpp"
#include "pardl/fed/local_terms.hpp"
#include "pardl/fed/local_training.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// Ditto: a client trains the global model as `global` does, and then, beside it, a model of its own that is pulled
/// towards the global weights the round began with (Proximal in `personal`, mu being Ditto's lambda). Evaluation is of
/// the client's own model; one that was never trained has the global one. Models local_update.
/// \cost  twice the training, and a whole model per client that was ever trained.
/// \paper Li et al., "Ditto: fair and robust federated learning through personalization", ICML 2021.
template <class Global = LocalTraining<>, class Personal = LocalTraining<CrossEntropy, MakeSGD, Proximal>>
class Ditto {
 public:
  Ditto(Global global, Personal personal) : global_(std::move(global)), personal_(std::move(personal)) {}

  [[nodiscard]] std::int64_t processed(std::int64_t samples) const { return global_.processed(samples); }
  [[nodiscard]] auto const& loss() const noexcept { return global_.loss(); }
  /// A whole model, and behind it what the global training keeps.
  [[nodiscard]] std::int64_t client_numbers(FlatModel const& model) const {
    return whole(model) + detail::client_numbers(global_, model);
  }
  [[nodiscard]] std::int64_t server_numbers(FlatModel const& model) const {
    return detail::server_numbers(global_, model);
  }

  template <class Net, class Batches>
  LocalResult operator()(ClientTask<Net, Batches> const& task) const {
    auto const& model = task.model;
    auto own = task.kept.narrow(0, 0, whole(model));
    auto first = task;
    first.kept = task.kept.narrow(0, whole(model), task.kept.numel() - whole(model));
    torch::Tensor const local = model.local().clone();  // before the global training moves what the client keeps of it
    auto const result = global_(first);

    torch::NoGradGuard no_grad;
    torch::Tensor const shared_after = model.shared().clone(), local_after = model.local().clone(),
                        integers_after = model.integers().clone();
    if (task.first) {
      model.shared().copy_(task.global);
      model.local().copy_(local);
    } else {
      load_personal(model, task.kept);
    }
    {
      torch::AutoGradMode const grad(true);
      auto second = task;
      second.kept = second.change = second.server = torch::Tensor();
      second.seed = fold(task.seed, 0, 0, purpose::personal);
      (void)personal_(second);
    }
    own.narrow(0, 0, model.shared().numel()).copy_(model.shared());
    own.narrow(0, model.shared().numel(), model.local().numel()).copy_(model.local());
    model.shared().copy_(shared_after);
    model.local().copy_(local_after);
    torch::Tensor(model.integers()).copy_(integers_after);
    return result;
  }

  void load_personal(FlatModel const& model, torch::Tensor const& kept) const {
    torch::NoGradGuard const no_grad;
    model.shared().copy_(kept.narrow(0, 0, model.shared().numel()));
    model.local().copy_(kept.narrow(0, model.shared().numel(), model.local().numel()));
  }

 private:
  static std::int64_t whole(FlatModel const& model) { return model.shared().numel() + model.local().numel(); }

  Global global_;
  Personal personal_;
};

/// FedRep: a client first trains its own head (the parameters in Sharing::keep_local) over the body it was given, then
/// the shared body under that head; only the body travels. Models local_update; weights and figures are the body's.
/// \paper Collins et al., "Exploiting shared representations for personalized federated learning", ICML 2021.
template <class Training = LocalTraining<>>
class FedRep {
 public:
  /// \throws ConfigError unless the head trains the kept parameters and the body the shared ones.
  FedRep(Training head, Training body) : head_(std::move(head)), body_(std::move(body)) {
    if (head_.options().trained != Trained::kept || body_.options().trained != Trained::shared)
      throw ConfigError(sentence("fed", "FedRep whose two trainings train the same parameters",
                                 "give the head Trained::kept and the body Trained::shared"));
  }

  [[nodiscard]] std::int64_t processed(std::int64_t samples) const { return body_.processed(samples); }
  [[nodiscard]] auto const& loss() const noexcept { return body_.loss(); }

  template <class Net, class Batches>
  LocalResult operator()(ClientTask<Net, Batches> const& task) const {
    auto head = task;
    head.seed = fold(task.seed, 0, 0, purpose::personal);
    (void)head_(head);
    return body_(task);
  }

 private:
  Training head_, body_;
};

}  // namespace pardl::inline PARDL_ABI::fed
