// SPDX-License-Identifier: MIT
/// \file   What the values of a configuration must be to each other.
/// \layer  fed (std only).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/fed/config.hpp"
#include "pardl/fed/detail/config_key.hpp"
#include "pardl/fed/detail/config_server.hpp"
#include "pardl/fed/detail/config_value.hpp"
#include "pardl/policy/evaluation_patience.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::config_detail {

inline void relate(bool good, std::string const& what, std::string const& remedy) {
  if (!good) refuse("", what, remedy);
}

/// FederatedScope hands every key of the section to the optimizer's constructor, which refuses what it does not know.
inline void check_optimizer(std::string const& section, OptimizerConfig const& given) {
  OptimizerConfig const usual;
  bool const sgd = given.type == "SGD";
  bool const two_means = given.type == "Adam" || given.type == "AdamW" || given.type == "Yogi";
  auto const belongs = [&](bool differs, bool has, char const* key) {
    relate(!differs || has, section + "." + key + " is set, but " + given.type + " has no such setting",
           "leave it out, or choose another " + section + ".type");
  };
  belongs(given.momentum != usual.momentum, sgd, "momentum");
  belongs(given.dampening != usual.dampening, sgd, "dampening");
  belongs(given.nesterov != usual.nesterov, sgd, "nesterov");
  belongs(given.betas != usual.betas, two_means, "betas");
  belongs(given.eps != usual.eps, !sgd, "eps");
  belongs(given.amsgrad != usual.amsgrad, given.type == "Adam" || given.type == "AdamW", "amsgrad");
  relate(given.betas.size() == 2, section + ".betas has " + std::to_string(given.betas.size()) + " numbers",
         "give two, such as [0.9, 0.999]");
  relate(!given.nesterov || (given.momentum > 0.0 && given.dampening == 0.0),
         section + ".nesterov is True without a momentum, or with a dampening",
         "give a momentum above 0 and leave dampening out");
}

inline void check_scheduler(SchedulerConfig const& given) {
  SchedulerConfig const usual;
  std::string const section = "train.scheduler.";
  std::string const type = given.type.empty() ? "no scheduler" : given.type;
  bool const step = given.type == "StepLR", multi = given.type == "MultiStepLR";
  bool const cosine = given.type == "CosineAnnealingLR";
  auto const belongs = [&](bool differs, bool has, char const* key) {
    relate(!differs || has, section + key + " is set, but " + type + " has no such setting",
           "leave it out, or choose another " + section + "type");
  };
  belongs(given.step_size != usual.step_size, step, "step_size");
  belongs(given.gamma != usual.gamma, step || multi || given.type == "ExponentialLR", "gamma");
  belongs(given.milestones != usual.milestones, multi, "milestones");
  belongs(given.T_max != usual.T_max, cosine, "T_max");
  belongs(given.eta_min != usual.eta_min, cosine, "eta_min");
  relate(!step || given.step_size > 0, "StepLR without train.scheduler.step_size", "give the steps between two decays");
  relate(!multi || !given.milestones.empty(), "MultiStepLR without train.scheduler.milestones",
         "give the steps of the decays, such as [10, 20]");
  relate(!cosine || given.T_max > 0, "CosineAnnealingLR without train.scheduler.T_max",
         "give the steps to the lowest rate");
}

inline void check_splits(std::vector<double> const& splits) {
  relate(splits.size() == 3, "data.splits has " + std::to_string(splits.size()) + " numbers",
         "give three: train, validation and test, such as [0.8, 0.1, 0.1]");
  double const sum = splits[0] + splits[1] + splits[2];
  relate(std::abs(sum - 1.0) <= 1e-6, "data.splits adds up to " + real_text(sum),
         "give shares that add up to 1, such as [0.8, 0.1, 0.1]");
  relate(splits[0] > 0.0, "data.splits leaves nothing to train on", "give a first share above 0");
}

inline void check_transform(Calls const& calls) {
  for (Call const& call : calls) {
    std::string const owner = "data.transform's " + call.name;
    if (call.name == "ToTensor") {
      require_known_arguments(call.args, owner, {});
    } else if (call.name == "Normalize") {
      require_known_arguments(call.args, owner, {"mean", "std"});
      auto const mean = numbers_argument(call.args, owner, "mean"), std = numbers_argument(call.args, owner, "std");
      relate(!mean.empty() && mean.size() == std.size(), owner + " needs as many numbers in mean as in std",
             "write it as ['Normalize', {'mean': [0.1307], 'std': [0.3081]}]");
      relate(std::all_of(std.begin(), std.end(), [](double x) { return x > 0.0 && std::isfinite(x); }) &&
                 std::all_of(mean.begin(), mean.end(), [](double x) { return std::isfinite(x); }),
             owner + " divides by a std that is not above 0, or has numbers that are not finite", "mend them");
    } else if (call.name == "RandomCrop") {
      require_known_arguments(call.args, owner, {"size", "padding"});
      relate(number_argument(call.args, owner, "size", 0.0) >= 1.0, owner + " has no size of at least 1",
             "write it as ['RandomCrop', {'size': 28, 'padding': 4}]");
      relate(number_argument(call.args, owner, "padding", 0.0) >= 0.0, owner + " has a negative padding",
             "give 0 or more");
    } else if (call.name == "RandomHorizontalFlip") {
      require_known_arguments(call.args, owner, {"p"});
      double const p = number_argument(call.args, owner, "p", 0.5);
      relate(p >= 0.0 && p <= 1.0, owner + " has a probability of " + real_text(p), "give one from 0 to 1");
    }
  }
}

/// Each partitioner takes its own arguments.
inline void check_splitter(DataConfig const& data) {
  if (data.splitter.empty()) return;
  constexpr std::array<std::pair<std::string_view, std::string_view>, 7> own{{{"iid", ""},
                                                                              {"lda", "alpha"},
                                                                              {"dirichlet", "alpha"},
                                                                              {"dirichlet-quantity", "alpha"},
                                                                              {"log-normal", "sigma"},
                                                                              {"pathological", "classes_per_client"},
                                                                              {"shards", "shards_per_client"}}};
  std::vector<std::string_view> known{"min_samples"};
  for (auto const& [splitter, argument] : own)
    if (splitter == data.splitter && !argument.empty()) known.insert(known.begin(), argument);
  require_known_arguments(data.splitter_args, "data.splitter " + data.splitter, known);
}

/// The server evaluates on data of its own, or on the clients'.
inline void check_server(Config const& config) {
  relate(!config.federate.make_global_eval || config.federate.merge_test_data || server_has(config, "test"),
         "federate.make_global_eval is True, but data.type " + config.data.type + " gives the server no data",
         "let it take the clients' with federate.merge_test_data True");
}

/// The key that early stopping watches must be among what an evaluation gives. FederatedScope matches it as a part of
/// any key, and where it matches none, never stops.
inline void check_watched(Config const& config) {
  std::string const& key = config.eval.best_res_update_round_wise_key;
  std::string const what = "eval.best_res_update_round_wise_key is " + key;
  relate(find_goal(key).has_value(), what + ", of which it is not known whether more or less is better",
         "watch a metric such as val_loss, val_avg_loss, test_acc or test_correct");
  std::size_t const underscore = key.find('_');
  std::string const split = key.substr(0, underscore);
  std::vector<std::string> const& splits = config.eval.split;
  relate(underscore != std::string::npos && (split == "train" || split == "val" || split == "test"),
         what + ", which names no split", "put train_, val_ or test_ in front of it");
  relate(std::find(splits.begin(), splits.end(), split) != splits.end(),
         what + ", but eval.split has no '" + split + "'", "add it there, or watch another key");
  relate(split != "val" || config.data.splits[1] > 0.0, what + ", but data.splits leaves no validation samples",
         "give the second share a value above 0, or watch a test_ key");
  relate(split != "test" || config.data.splits[2] > 0.0, what + ", but data.splits leaves no test samples",
         "give the third share a value above 0, or watch a val_ key");
  std::string const metric = key.substr(underscore + 1);
  std::vector<std::string> const& metrics = config.eval.metrics;
  relate(metric == "loss" || metric == "avg_loss" || std::find(metrics.begin(), metrics.end(), metric) != metrics.end(),
         what + ", but eval.metrics has no '" + metric + "'", "add it there, or watch another key");
  relate((metric != "acc" && metric != "correct") || config.criterion.type == "CrossEntropyLoss",
         what + ", but criterion.type " + config.criterion.type + " knows no right answers",
         "watch " + split + "_avg_loss");
  relate(!server_evaluates(config) || server_has(config, split),
         what + ", but the server, which evaluates, has no such samples",
         split == "val" && config.federate.merge_test_data ? "set federate.merge_val_data True, or watch a test_ key"
                                                           : "watch a test_ key");
}

inline void check_unique(std::vector<std::string> const& words, char const* name) {
  for (std::size_t i = 0; i < words.size(); ++i)
    relate(std::find(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(i), words[i]) ==
               words.begin() + static_cast<std::ptrdiff_t>(i),
           std::string(name) + " has '" + words[i] + "' twice", "keep one of the two");
}

/// \throws ConfigError
inline void check_relations(Config const& config) {
  check_splits(config.data.splits);
  check_splitter(config.data);
  check_transform(config.data.transform);
  check_optimizer("train.optimizer", config.train.optimizer);
  check_optimizer("fedopt.optimizer", config.fedopt.optimizer);
  check_scheduler(config.train.scheduler);
  check_unique(config.eval.metrics, "eval.metrics");
  check_unique(config.eval.split, "eval.split");
  check_unique(config.eval.report, "eval.report");
  relate(!config.eval.report.empty(), "eval.report is empty", "ask for weighted_avg, avg, fairness or raw");
  check_server(config);
  check_watched(config);
  auto const& federate = config.federate;
  relate(federate.client_num == 0 || federate.sample_client_num <= federate.client_num,
         "federate.sample_client_num is " + std::to_string(federate.sample_client_num) + ", but there are only " +
             std::to_string(federate.client_num) + " clients (federate.client_num)",
         "ask for at most as many");
  auto const& rule = config.aggregator;
  relate(rule.robust_rule != "trimmedmean" || rule.BFT_args.trimmedmean_excluded_ratio >= 0.0,
         "aggregator.robust_rule is trimmedmean without aggregator.BFT_args.trimmedmean_excluded_ratio",
         "give the share to cut off at each end, below 0.5");
  relate(rule.robust_rule != "normbounding" || rule.BFT_args.normbounding_norm_bound > 0.0,
         "aggregator.robust_rule is normbounding without aggregator.BFT_args.normbounding_norm_bound",
         "give the largest norm of an update");
}

}  // namespace pardl::inline PARDL_ABI::fed::config_detail
