// SPDX-License-Identifier: MIT
/// \file   The command line of federated: options of our own begin with dashes, everything else is FederatedScope's
///         `key value` pairs.
#pragma once

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pardl/fed/config.hpp"
#include "pardl/fed/config_keys.hpp"
#include "pardl/fed/config_rules.hpp"
#include "pardl/fed/config_yaml.hpp"
#include "pardl/fed/screening.hpp"
#include "pardl/policy/error.hpp"

namespace federated {

struct Options {
  pardl::fed::Config config;
  bool stand_in = false;
  std::filesystem::path summary, checkpoint, tensorboard, partition;
  int threads_per_worker = 1;
  bool keep_going = false;
  bool progress = true;
  bool evaluate_global = false;
  std::int64_t recalibrate = 0;
  pardl::fed::Screening screening{};
};

/// Options, and settings beside options, that change nothing: a sentence for each, as resolve() has for settings alone.
inline void warn_of_idle(Options const& options, pardl::fed::Resolved& resolved) {
  auto const& config = options.config;
  auto const idle = [&](bool given, bool used, std::string const& what) {
    if (given && !used) resolved.warnings.push_back(what);
  };
  idle(options.stand_in, config.data.type == "femnist",
       "--stand-in has no effect while data.type is '" + config.data.type + "'");
  idle(options.stand_in && config.data.type == "femnist" && config.data.subsample != 1.0, false,
       "data.subsample has no effect with --stand-in, which has no LEAF files to leave out");
  idle(options.evaluate_global, !resolved.server_evaluates,
       "--evaluate-global has no effect: the server evaluates the global model");
  idle(options.recalibrate > 0 && config.personalization.share_non_trainable_para, false,
       "personalization.share_non_trainable_para has no effect with --recalibrate, which averages buffers too");
}

/// The seed's second configuration, as FederatedScope documents it for its multi-GPU runner, but without
/// data.subsample: the stand-in has no LEAF files to leave out.
inline constexpr char const* default_job = R"yaml(
use_gpu: True
device: 0
early_stop:
  patience: 5
seed: 12345
federate:
  mode: standalone
  client_num: 100
  total_round_num: 10
  sample_client_rate: 0.4
  share_local_model: False
  process_num: 8
data:
  root: data/
  type: femnist
  splits: [0.6,0.2,0.2]
  batch_size: 10
  num_workers: 0
  transform: [['ToTensor'], ['Normalize', {'mean': [0.1307], 'std': [0.3081]}]]
model:
  type: convnet2
  hidden: 2048
  out_channels: 62
train:
  local_update_steps: 1
  batch_or_epoch: epoch
  optimizer:
    lr: 0.01
    weight_decay: 0.0
grad:
  grad_clip: 5.0
criterion:
  type: CrossEntropyLoss
trainer:
  type: cvtrainer
eval:
  freq: 10
  metrics: ['acc', 'correct']
)yaml";

/// Empty where only help was asked for. \throws pardl::ConfigError in one sentence.
inline std::optional<Options> parse(int argc, char** argv) {
  Options options;
  std::string cfg, keys;
  bool help_keys = false;
  CLI::App app{
      "Federated learning, simulated on this machine, from FederatedScope's configuration files:\n"
      "  federated [--cfg FILE.yaml] [options] [key value ...]\n"
      "Without --cfg: 100 clients, 10 rounds of FedAvg with a ConvNet2 on Fashion-MNIST, split unevenly.",
      "federated"};
  app.add_option("--cfg", cfg, "FederatedScope's YAML file; pairs of key and value behind it win over it");
  app.add_flag("--stand-in", options.stand_in, "where data.type is femnist: Fashion-MNIST split among the clients");
  app.add_option("--checkpoint", options.checkpoint, "saved after each round; if it is there, the job goes on from it");
  app.add_option("--summary", options.summary, "results, settings and times as JSON");
  app.add_option("--tensorboard", options.tensorboard, "folder for TensorBoard's event files");
  app.add_option("--partition", options.partition, "picture (SVG) of which client has how many samples of which class");
  app.add_option("--threads-per-worker", options.threads_per_worker, "of LibTorch in each worker")
      ->capture_default_str();
  app.add_flag("--keep-going", options.keep_going, "leave clients out that fail, instead of ending");
  app.add_option("--most-norm", options.screening.most_norm, "an update that changes the weights by more fails");
  app.add_option("--most-medians", options.screening.most_medians,
                 "likewise, in medians of its round; needs an aggregator.robust_rule");
  app.add_option("--recalibrate", options.recalibrate,
                 "batch norm's statistics are averaged, then measured anew on so many training samples");
  app.add_flag("--evaluate-global", options.evaluate_global,
               "beside what clients keep, evaluate the global model without it (in summary and TensorBoard)");
  app.add_flag("!--no-progress", options.progress, "no progress bar");
  app.add_flag("--keys", help_keys, "list every key of the configuration with its default");
  std::vector<std::string> ours, pairs;  // a value may begin with a dash (-1), so CLI11 must not see it
  for (int i = 1; i < argc; ++i) {
    std::string const word = argv[i];
    if (!word.starts_with("--") && word != "-h") {
      pairs.push_back(word);
      continue;
    }
    ours.push_back(word);
    auto const* option = app.get_option_no_throw(word.substr(0, word.find('=')));
    if (option != nullptr && option->get_items_expected_max() > 0 && word.find('=') == word.npos && i + 1 < argc)
      ours.emplace_back(argv[++i]);
  }
  try {
    std::reverse(ours.begin(), ours.end());  // as CLI11 takes a vector
    app.parse(ours);
  } catch (CLI::CallForHelp const&) {
    std::printf("%s", app.help().c_str());
    return std::nullopt;
  } catch (CLI::ParseError const& error) {
    throw pardl::ConfigError(pardl::sentence("federated", error.what(), "federated --help lists the options"));
  }
  auto const need = [](bool fine, std::string const& what, std::string const& remedy) {
    if (!fine) throw pardl::ConfigError(pardl::sentence("federated", what, remedy));
  };
  need(options.threads_per_worker >= 1, "--threads-per-worker is " + std::to_string(options.threads_per_worker),
       "give 1 or more");
  need(options.recalibrate >= 0, "--recalibrate is " + std::to_string(options.recalibrate), "give 0 or more");
  for (auto const& [name, path] : std::initializer_list<std::pair<char const*, std::string>>{
           {"--summary", options.summary},
           {"--checkpoint", options.checkpoint},
           {"--partition", options.partition}}) {  // before hours of work, not after
    if (path.empty()) continue;
    auto const folder = std::filesystem::absolute(path).parent_path();
    bool const fine = ::access(folder.c_str(), W_OK | X_OK) == 0;
    need(fine, std::string(name) + " " + path + " cannot be written: " + std::strerror(errno),
         "name a folder that is there");
  }
  if (help_keys) {
    std::printf("%s", pardl::fed::config_help().c_str());
    return std::nullopt;
  }
  if (cfg.empty()) {
    options.config = pardl::fed::parse_config(default_job, "the built-in configuration");
    options.stand_in = true;
  } else {
    options.config = pardl::fed::read_config(cfg);
  }
  pardl::fed::apply_overrides(options.config, pairs);
  return options;
}

}  // namespace federated
