// SPDX-License-Identifier: MIT
/// \file   From a configuration's names to the parts of a federation: model, loss, local training, server.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "data.hpp"
#include "models/convnet2.hpp"
#include "models/logistic_regression.hpp"
#include "pardl/fed/any_server_optimizer.hpp"
#include "pardl/fed/config.hpp"
#include "pardl/fed/config_rules.hpp"
#include "pardl/fed/local_training.hpp"
#include "pardl/policy/any_lr_schedule.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/lr_schedule.hpp"
#include "pardl/train/any_module.hpp"

namespace federated {

using Loss = std::function<torch::Tensor(torch::Tensor const&, torch::Tensor const&)>;
using Local = fed::LocalTraining<Loss, fed::MakeSGD, fed::Proximal>;

/// What the library's configuration knows and this program does not do yet. \throws pardl::ConfigError.
inline void check_built(fed::Config const& config) {
  auto const need = [](bool fine, std::string const& what, char const* remedy) {
    if (!fine) throw pardl::ConfigError(pardl::sentence("config", what + ", which is not built", remedy));
  };
  fed::Config const usual;
  auto const& method = config.federate.method;
  need(method == "FedAvg" || method == "FedProx" || method == "FedOpt" || method == "FedBN",
       "federate.method is " + method, "FedAvg, FedProx, FedOpt and FedBN are");
  need(config.aggregator == usual.aggregator, "aggregator differs from its defaults", "leave its keys out");
  auto personal = config.personalization;
  personal.local_param = usual.personalization.local_param;
  personal.share_non_trainable_para = usual.personalization.share_non_trainable_para;
  need(personal == usual.personalization,
       "personalization differs from its defaults in more than local_param and share_non_trainable_para",
       "leave its other keys out");
}

inline pardl::any_module model(fed::Config const& config, Problem const& problem) {
  auto const& m = config.model;
  auto const refuse = [](std::string const& what, std::string const& remedy) {
    throw pardl::ConfigError(pardl::sentence("config", what, remedy));
  };
  torch::manual_seed(static_cast<std::uint64_t>(config.seed));
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

inline Local local(fed::Config const& config, fed::Resolved const& resolved, Problem const& problem) {
  auto const& o = config.train.optimizer;
  return Local(
      {.batches = {.batch_size = config.dataloader.batch_size,
                   .steps = config.train.local_update_steps,
                   .unit = config.train.batch_or_epoch == "epoch" ? fed::StepUnit::epoch : fed::StepUnit::batch,
                   .drop_last = config.dataloader.drop_last,
                   .accumulate = config.grad.grad_accum_count},
       .shuffle = config.dataloader.shuffle,
       .max_grad_norm = std::max(0.0, config.grad.grad_clip),
       .schedule = schedule(config),
       .autocast = {}},
      {.options = {.lr = o.lr,
                   .momentum = o.momentum,
                   .dampening = o.dampening,
                   .weight_decay = o.weight_decay,
                   .nesterov = o.nesterov}},
      loss(config, problem), fed::Proximal{resolved.proximal_mu});
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
