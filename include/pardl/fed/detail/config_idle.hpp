// SPDX-License-Identifier: MIT
/// \file   The table of what a key needs for its value to matter; one sentence for each that lacks it.
/// \layer  fed (std only).
///
/// So that nothing which was asked for is passed over in silence. A row counts where the key, or any key of the
/// section, has another value than the default. Values that contradict each other are errors, not rows:
/// config_relations.hpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "pardl/fed/config.hpp"
#include "pardl/fed/config_keys.hpp"
#include "pardl/fed/detail/config_convert.hpp"
#include "pardl/fed/detail/config_key.hpp"
#include "pardl/fed/detail/config_server.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::config_detail {

/// \returns the value as it is written in a file.
[[nodiscard]] inline std::string value_text(Key const& key, Config& config) {
  return std::visit([](auto const* value) { return yaml_text(*value); }, key.field(config));
}

/// What one key needs.
struct Need {
  std::string_view key;  ///< or a section
  /// The key that switches it off ("… has no effect while model.type is 'lr'"), or the rest of the sentence.
  std::string_view otherwise;
  bool (*met)(Config const&);
};

// ---- words of the table --------------------------------------------------------------------------------------------

/// Data that is read from data.root. The others are made.
[[nodiscard]] inline bool is_read(Config const& c) {
  return c.data.type == "femnist" || c.data.type == "FashionMNIST@torchvision";
}
[[nodiscard]] inline bool is_proximal(Config const& c) { return c.fedprox.use || c.federate.method == "FedProx"; }
/// Whether a local training is one step of an optimizer that was just made: the weights have not moved before it, it
/// has no momentum yet, and a schedule is at its start.
[[nodiscard]] inline bool is_one_step(Config const& c) {
  std::int64_t const own = c.personalization.local_update_steps;
  return c.federate.method != "FedRep" && c.train.batch_or_epoch == "batch" && c.train.local_update_steps == 1 &&
         (c.federate.method != "Ditto" || own <= 1);
}
[[nodiscard]] inline bool weighs_clients(Config const& c) {
  std::string const& rule = c.aggregator.robust_rule;
  return rule == "fedavg" || rule == "normbounding" || rule == "geometric_median" ||
         (rule == "krum" && c.aggregator.BFT_args.krum_agg_num > 1) || c.federate.method == "FedNova";
}
/// Early stopping needs one evaluation more than its patience.
[[nodiscard]] inline bool can_stop_early(Config const& c) {
  std::int64_t const rounds = c.federate.total_round_num, freq = std::min(c.eval.freq, rounds);
  return c.early_stop.patience < rounds / freq + (rounds % freq > 0 ? 1 : 0);
}
[[nodiscard]] inline bool counts_answers(Config const& c) {
  return std::any_of(c.eval.metrics.begin(), c.eval.metrics.end(),
                     [](std::string const& metric) { return metric == "acc" || metric == "correct"; });
}

// ---- the table -----------------------------------------------------------------------------------------------------

inline constexpr std::string_view few_evaluations =
    "has no effect: early_stop.patience is not below the number of evaluations";

inline constexpr Need needs[] = {
    {"device", "use_gpu", [](Config const& c) { return c.use_gpu; }},

    {"federate.online_aggr", "changes nothing: updates are added as they arrive wherever the rule allows it",
     [](Config const&) { return false; }},
    {"federate.merge_test_data", "lets the server evaluate, as if federate.make_global_eval were True",
     [](Config const& c) { return c.federate.make_global_eval; }},
    {"federate.merge_val_data", "federate.merge_test_data", [](Config const& c) { return c.federate.merge_test_data; }},
    {"federate.method", "is FedProx with a fedprox.mu of 0, which is FedAvg",
     [](Config const& c) { return c.federate.method != "FedProx" || c.fedprox.mu != 0.0; }},
    {"federate.method", "is FedBN for a model.type without batch norm, which is FedAvg",
     [](Config const& c) { return c.federate.method != "FedBN" || c.model.type == "convnet2"; }},
    {"federate.ignore_weight", "aggregator.robust_rule", weighs_clients},

    {"data.root", "data.type", is_read},
    {"data.splitter", "data.type", [](Config const& c) { return c.data.type == "FashionMNIST@torchvision"; }},
    {"data.splitter_args", "data.splitter", [](Config const& c) { return !c.data.splitter.empty(); }},
    {"data.splitter_args", "data.type",
     [](Config const& c) { return c.data.splitter.empty() || c.data.type == "FashionMNIST@torchvision"; }},
    {"data.subsample", "data.type", is_read},
    {"data.splits", "data.type", [](Config const& c) { return c.data.type != "toy"; }},
    {"data.transform", "data.type", [](Config const& c) { return c.data.type != "toy"; }},

    {"model.use_bias", "model.type", [](Config const& c) { return c.model.type == "lr"; }},
    {"model.hidden", "model.type", [](Config const& c) { return c.model.type == "convnet2"; }},
    {"model.dropout", "model.type", [](Config const& c) { return c.model.type == "convnet2"; }},

    {"train.local_update_steps", "federate.method", [](Config const& c) { return c.federate.method != "FedRep"; }},
    {"train.batch_or_epoch", "federate.method", [](Config const& c) { return c.federate.method != "FedRep"; }},
    {"train.optimizer.lr", "federate.method",  // the cosine's lowest rate is a share of it
     [](Config const& c) { return c.federate.method != "FedRep" || c.train.scheduler.eta_min > 0.0; }},
    {"train.optimizer.weight_decay", "federate.method", [](Config const& c) { return c.federate.method != "FedRep"; }},
    {"train.optimizer.momentum", "train.local_update_steps",
     [](Config const& c) { return !is_one_step(c) || c.train.optimizer.nesterov; }},
    {"train.optimizer.dampening", "train.optimizer.momentum",
     [](Config const& c) { return c.train.optimizer.momentum != 0.0; }},
    {"train.optimizer.dampening", "train.local_update_steps",
     [](Config const& c) { return c.train.optimizer.momentum == 0.0 || !is_one_step(c); }},
    {"train.scheduler", "train.local_update_steps",
     [](Config const& c) {
       auto const& at = c.train.scheduler.milestones;
       return !is_one_step(c) || std::find(at.begin(), at.end(), 0) != at.end();
     }},

    {"eval.freq", "is above federate.total_round_num: the only evaluation is the one after the last round",
     [](Config const& c) { return c.eval.freq <= c.federate.total_round_num; }},
    {"eval.metrics", "criterion.type",
     [](Config const& c) { return c.criterion.type == "CrossEntropyLoss" || !counts_answers(c); }},
    {"eval.report", "has no effect: the server evaluates, and tells one form, Results_raw",
     [](Config const& c) { return !server_evaluates(c); }},
    {"early_stop.patience", "is not below the number of evaluations: nothing stops this job early",
     [](Config const& c) { return c.early_stop.patience == 0 || can_stop_early(c); }},
    {"early_stop.delta", "early_stop.patience", [](Config const& c) { return c.early_stop.patience > 0; }},
    {"early_stop.delta", few_evaluations,
     [](Config const& c) { return c.early_stop.patience == 0 || can_stop_early(c); }},
    {"early_stop.improve_indicator_mode", "early_stop.patience",
     [](Config const& c) { return c.early_stop.patience > 0; }},
    {"early_stop.improve_indicator_mode", few_evaluations,
     [](Config const& c) { return c.early_stop.patience == 0 || can_stop_early(c); }},

    {"personalization.share_non_trainable_para", "model.type",
     [](Config const& c) { return c.model.type == "convnet2"; }},
    {"fedopt.optimizer", "fedopt.use", [](Config const& c) { return c.fedopt.use || c.federate.method == "FedOpt"; }},
    {"fedprox.use", "fedprox.mu", [](Config const& c) { return c.fedprox.mu != 0.0; }},
    {"fedprox.mu", "fedprox.use", is_proximal},
    {"fedprox.mu", "train.local_update_steps", [](Config const& c) { return !is_proximal(c) || !is_one_step(c); }},

    {"aggregator.byzantine_node_num", "aggregator.robust_rule",
     [](Config const& c) {
       return c.aggregator.robust_rule != "fedavg" && c.aggregator.robust_rule != "normbounding";
     }},
    {"aggregator.BFT_args.krum_agg_num", "aggregator.robust_rule",
     [](Config const& c) { return c.aggregator.robust_rule == "krum"; }},
    {"aggregator.BFT_args.trimmedmean_excluded_ratio", "aggregator.robust_rule",
     [](Config const& c) { return c.aggregator.robust_rule == "trimmedmean"; }},
    {"aggregator.BFT_args.normbounding_norm_bound", "aggregator.robust_rule",
     [](Config const& c) { return c.aggregator.robust_rule == "normbounding"; }},
};

// ---- what it says --------------------------------------------------------------------------------------------------

/// Whether a key, or any key of a section, has another value than the default.
[[nodiscard]] inline bool differs_from_default(std::string_view name, Config& config, Config& standard) {
  for (Key const& key : all_keys()) {
    bool const meant =
        key.name == name || (key.name.starts_with(name) && key.name.substr(name.size()).starts_with('.'));
    if (meant && key.field != nullptr && value_text(key, config) != value_text(key, standard)) return true;
  }
  return false;
}

/// One sentence, without a full stop, for each setting that changes nothing. Each begins with the key's name.
[[nodiscard]] inline std::vector<std::string> idle_settings(Config const& config) {
  Config copy = config, standard;
  std::vector<std::string> sentences;
  for (Need const& need : needs) {
    if (need.met(config) || !differs_from_default(need.key, copy, standard)) continue;
    std::string text(need.key);
    if (Key const* const other = find_key(need.otherwise))
      text.append(" has no effect while ").append(need.otherwise).append(" is ").append(value_text(*other, copy));
    else
      text.append(" ").append(need.otherwise);
    sentences.push_back(std::move(text));
  }
  return sentences;
}

}  // namespace pardl::inline PARDL_ABI::fed::config_detail
