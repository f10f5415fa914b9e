// SPDX-License-Identifier: MIT
/// \file   From a configuration's names to the parts of a federation: model, loss, local training, server.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "data.hpp"
#include "models/convnet2.hpp"
#include "models/logistic_regression.hpp"
#include "pardl/fed/any_robust_aggregator.hpp"
#include "pardl/fed/any_server_optimizer.hpp"
#include "pardl/fed/batch_plan.hpp"
#include "pardl/fed/config.hpp"
#include "pardl/fed/config_rules.hpp"
#include "pardl/fed/local_training.hpp"
#include "pardl/fed/one_of.hpp"
#include "pardl/fed/personal.hpp"
#include "pardl/policy/any_lr_schedule.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/lr_schedule.hpp"
#include "pardl/train/any_module.hpp"
#include "pardl/train/flop_counter.hpp"
#include "system_metrics.hpp"

namespace federated {

using Loss = std::function<torch::Tensor(torch::Tensor const&, torch::Tensor const&)>;
template <class Term>
using Training = fed::LocalTraining<Loss, fed::MakeSGD, Term>;
using Usual = Training<fed::Proximal>;
/// FedAvg, FedProx, FedOpt and FedBN; FedNova; SCAFFOLD; Ditto; FedRep.
using Local = fed::one_of<Usual, Training<fed::Normalised>, Training<fed::ControlVariates>, fed::Ditto<Usual, Usual>,
                          fed::FedRep<Usual>>;

/// Settings of one strategy under another, and what a strategy does not go together with. \throws pardl::ConfigError.
inline void check_strategy(fed::Config const& config) {
  auto const need = [](bool fine, std::string const& what, char const* remedy) {
    if (!fine) throw pardl::ConfigError(pardl::sentence("config", what, remedy));
  };
  fed::PersonalizationConfig const usual;
  auto const& method = config.federate.method;
  auto const& personal = config.personalization;
  auto const belongs = [&](bool differs, char const* of, char const* key) {
    need(!differs || method == of, std::string("personalization.") + key + " is set, but federate.method is " + method,
         (std::string("it is a setting of ") + of + ": leave it out").c_str());
  };
  belongs(personal.local_update_steps != usual.local_update_steps, "Ditto", "local_update_steps");
  belongs(personal.regular_weight != usual.regular_weight, "Ditto", "regular_weight");
  belongs(personal.lr != usual.lr, "Ditto", "lr");
  belongs(personal.lr_feature != usual.lr_feature, "FedRep", "lr_feature");
  belongs(personal.lr_linear != usual.lr_linear, "FedRep", "lr_linear");
  belongs(personal.epoch_feature != usual.epoch_feature, "FedRep", "epoch_feature");
  belongs(personal.epoch_linear != usual.epoch_linear, "FedRep", "epoch_linear");
  belongs(personal.weight_decay != usual.weight_decay, "FedRep", "weight_decay");
  need(method != "FedRep" || !personal.local_param.empty(), "federate.method is FedRep, and no parameter is a head",
       "name the head's layers in personalization.local_param, such as ['fc2']");
  bool const scaffold = method == "SCAFFOLD";
  need(!scaffold || config.train.optimizer.momentum == 0, "federate.method is SCAFFOLD, and the optimizer has momentum",
       "set train.optimizer.momentum 0");
  need(!scaffold || !config.fedprox.use, "federate.method is SCAFFOLD, and fedprox.use is True", "choose one of them");
  need(!scaffold || config.aggregator.robust_rule == "fedavg",
       "federate.method is SCAFFOLD, and aggregator.robust_rule is not fedavg",
       "a liar could set the server's control variate as it likes: choose one of them");
}

/// A word that is in no parameter's name keeps nothing with the clients. \throws pardl::ConfigError with the names.
inline void check_local_param(fed::Config const& config, pardl::any_module const& net) {
  for (auto const& word : config.personalization.local_param) {
    std::string names;
    bool found = false;
    for (auto const& parameter : net.named_parameters()) {
      found = found || parameter.key().find(word) != std::string::npos;
      names += (names.empty() ? "" : ", ") + parameter.key();
    }
    if (!found)
      throw pardl::ConfigError(pardl::sentence(
          "config", "personalization.local_param has '" + word + "', which no parameter's name contains",
          "the parameters are " + names));
  }
}

inline pardl::any_module model(fed::Config const& config, Problem const& problem) {
  auto const& m = config.model;
  auto const refuse = [](std::string const& what, std::string const& remedy) {
    throw pardl::ConfigError(pardl::sentence("config", what, remedy));
  };
  {  // not torch::manual_seed(), which takes the GPUs into use: workers that are forked later could not use them
    auto generator = at::globalContext().defaultGenerator(torch::kCPU);
    std::lock_guard const lock(generator.mutex());
    generator.set_current_seed(static_cast<std::uint64_t>(config.seed));
  }
  if (problem.classes > m.out_channels && config.criterion.type == "CrossEntropyLoss")
    refuse("model.out_channels is " + std::to_string(m.out_channels) + ", but the data has " +
               std::to_string(problem.classes) + " classes",
           "give model.out_channels " + std::to_string(problem.classes));
  if (m.type == "convnet2") {
    if (problem.shape.size() != 3) refuse("model.type convnet2 takes images, and the data has none", "take lr");
    if (m.in_channels != 0 && m.in_channels != problem.shape[0])
      refuse("model.in_channels is " + std::to_string(m.in_channels) + ", but images have " +
                 std::to_string(problem.shape[0]) + " channels",
             "leave it at 0");
    return models::ConvNet2{models::ConvNet2Options{.in_channels = problem.shape[0],
                                                    .height = problem.shape[1],
                                                    .width = problem.shape[2],
                                                    .hidden = m.hidden,
                                                    .classes = m.out_channels,
                                                    .dropout = m.dropout}};
  }
  std::int64_t features = 1;
  for (auto const side : problem.shape) features *= side;
  if (m.in_channels != 0 && m.in_channels != features)
    refuse("model.in_channels is " + std::to_string(m.in_channels) + ", but samples have " + std::to_string(features) +
               " features",
           "leave it at 0");
  return models::LogisticRegression{
      models::LogisticRegressionOptions{.in_features = features, .outputs = m.out_channels, .bias = m.use_bias}};
}

/// What one sample's forward costs. \cost  one forward on the CPU, in evaluation: nothing is drawn, nothing changes.
inline ModelCost cost_of(fed::Config const& config, Problem const& problem, pardl::any_module net) {
  ModelCost cost;
  for (auto const& parameter : net.parameters()) cost.parameters += parameter.numel();
  if (!config.eval.count_flops) return cost;
  torch::NoGradGuard const no_grad;
  auto shape = problem.shape;
  shape.insert(shape.begin(), 1);
  bool const training = net.is_training();
  net.eval();
  pardl::FlopCounter const counter;
  (void)net.forward(torch::zeros(shape));
  cost.flops = counter.flops();
  net.train(training);
  return cost;
}

inline Loss loss(fed::Config const& config, Problem const& problem) {
  bool const classes = config.criterion.type == "CrossEntropyLoss";
  if (classes != (problem.classes > 0))
    throw pardl::ConfigError(pardl::sentence("config",
                                             "criterion.type is " + config.criterion.type +
                                                 ", but the data's targets are " +
                                                 (problem.classes > 0 ? "classes" : "numbers"),
                                             problem.classes > 0 ? "give CrossEntropyLoss" : "give MSELoss"));
  if (classes) return fed::CrossEntropy{};
  return fed::MeanSquaredError{};
}

/// train.scheduler, as a factor on the rate for each step of one local training.
inline std::optional<pardl::any_lr_schedule> schedule(fed::Config const& config) {
  auto const& s = config.train.scheduler;
  double const gamma = s.gamma;
  if (s.type.empty()) return std::nullopt;
  if (s.type == "ExponentialLR")
    return [gamma](std::int64_t step) { return std::pow(gamma, static_cast<double>(step)); };
  if (s.type == "StepLR")
    return
        [gamma, every = s.step_size](std::int64_t step) { return std::pow(gamma, static_cast<double>(step / every)); };
  if (s.type == "MultiStepLR")
    return [gamma, at = s.milestones](std::int64_t step) {
      return std::pow(gamma, static_cast<double>(std::ranges::count_if(at, [&](auto m) { return m <= step; })));
    };
  if (s.type == "CosineAnnealingLR")
    return [low = s.eta_min / config.train.optimizer.lr, period = static_cast<double>(s.T_max)](std::int64_t step) {
      return low + (1 - low) * (1 + std::cos(3.14159265358979323846 * static_cast<double>(step) / period)) / 2;
    };
  throw pardl::ConfigError(pardl::sentence("config", "train.scheduler.type is " + s.type, "it is not built"));
}

/// Batches of one local training, of the model that travels.
inline fed::BatchRules batches(fed::Config const& config) {
  return {.batch_size = config.dataloader.batch_size,
          .steps = config.train.local_update_steps,
          .unit = config.train.batch_or_epoch == "epoch" ? fed::StepUnit::epoch : fed::StepUnit::batch,
          .drop_last = config.dataloader.drop_last,
          .accumulate = config.grad.grad_accum_count};
}

/// Samples that go through the model in one local training of a client with so many: Ditto's own model is a second one,
/// and FedRep trains its head before its body.
inline std::int64_t forwarded(fed::Config const& config, fed::Resolved const& resolved, std::int64_t samples) {
  auto rules = batches(config);
  if (config.federate.method == "FedRep") {
    rules.unit = fed::StepUnit::epoch;
    rules.steps = config.personalization.epoch_linear;
    auto const head = fed::plan_batches(rules, samples).samples;
    rules.steps = config.personalization.epoch_feature;
    return head + fed::plan_batches(rules, samples).samples;
  }
  auto const first = fed::plan_batches(rules, samples).samples;
  if (config.federate.method != "Ditto") return first;
  rules.steps = resolved.personal_steps;
  return first + fed::plan_batches(rules, samples).samples;
}

inline Local local(fed::Config const& config, fed::Resolved const& resolved, Problem const& problem) {
  auto const& o = config.train.optimizer;
  auto const& method = config.federate.method;
  auto const& personal = config.personalization;
  auto const mu = resolved.proximal_mu;
  auto const the_loss = loss(config, problem);
  fed::LocalTrainingOptions options;
  options.batches = batches(config);
  options.shuffle = config.dataloader.shuffle;
  options.max_grad_norm = std::max(0.0, config.grad.grad_clip);
  options.schedule = schedule(config);
  fed::MakeSGD const sgd{.options = {.lr = o.lr,
                                     .momentum = o.momentum,
                                     .dampening = o.dampening,
                                     .weight_decay = o.weight_decay,
                                     .nesterov = o.nesterov}};
  if (method == "FedNova") return Training<fed::Normalised>(options, sgd, the_loss, fed::Normalised{.mu = mu});
  if (method == "SCAFFOLD") return Training<fed::ControlVariates>(options, sgd, the_loss);
  if (method == "Ditto") {
    auto own = options;
    own.batches.steps = resolved.personal_steps;
    auto own_sgd = sgd;
    own_sgd.options.lr = resolved.personal_lr;
    return fed::Ditto(Usual(options, sgd, the_loss, {mu}), Usual(own, own_sgd, the_loss, {personal.regular_weight}));
  }
  if (method == "FedRep") {
    auto const part = [&](fed::Trained trained, std::int64_t epochs, double rate) {
      auto its = options;
      its.trained = trained;
      its.batches.steps = epochs;
      its.batches.unit = fed::StepUnit::epoch;
      auto its_sgd = sgd;
      its_sgd.options.lr = rate;
      its_sgd.options.weight_decay = personal.weight_decay;
      return Usual(its, its_sgd, the_loss, {mu});
    };
    return fed::FedRep(part(fed::Trained::kept, personal.epoch_linear, personal.lr_linear),
                       part(fed::Trained::shared, personal.epoch_feature, personal.lr_feature));
  }
  return Usual(options, sgd, the_loss, {mu});
}

/// aggregator.robust_rule; none for the mean.
inline std::optional<fed::any_robust_aggregator> robust_rule(fed::Config const& config) {
  auto const& a = config.aggregator;
  if (a.robust_rule == "fedavg") return std::nullopt;
  return fed::make_robust_aggregator(a.robust_rule, {.byzantine = a.byzantine_node_num,
                                                     .krum_agg_num = a.BFT_args.krum_agg_num,
                                                     .excluded_ratio = a.BFT_args.trimmedmean_excluded_ratio,
                                                     .norm_bound = a.BFT_args.normbounding_norm_bound});
}

inline fed::any_server_optimizer server(fed::Config const& config, fed::Resolved const& resolved) {
  if (!resolved.use_fedopt) return {};
  auto const& o = config.fedopt.optimizer;
  if (o.type == "SGD") return {fed::ServerSGD{.lr = o.lr, .momentum = o.momentum}};
  if (o.type == "Adagrad") return {fed::ServerAdagrad{.lr = o.lr, .tau = o.eps}};
  if (o.type == "Adam")
    return {fed::ServerAdam{
        .lr = o.lr, .beta1 = o.betas.at(0), .beta2 = o.betas.at(1), .tau = o.eps, .bias_correction = true}};
  return {fed::ServerYogi{.lr = o.lr, .beta1 = o.betas.at(0), .beta2 = o.betas.at(1), .tau = o.eps}};
}

}  // namespace federated
