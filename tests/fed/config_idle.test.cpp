// SPDX-License-Identifier: MIT
#include "pardl/fed/detail/config_idle.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/fed/config_keys.hpp"
#include "pardl/fed/config_rules.hpp"
#include "support/temporary_folder.hpp"

using pardl::fed::apply_overrides;
using pardl::fed::Config;
using pardl::fed::resolve;
using Words = std::vector<std::string>;
namespace table = pardl::fed::config_detail;

namespace {

Config with(Words const& words, Words const& more = {}) {
  Config config;
  config.federate.client_num = 100;
  config.federate.sample_client_rate = 0.2;
  apply_overrides(config, words);
  apply_overrides(config, more);
  return config;
}
Words warnings_of(Words const& words, Words const& more = {}) {
  return resolve(with(words, more), {.gpus = 3, .cores = 4}).warnings;
}

struct Case {
  Words words;     // settings of which some change nothing
  Words warnings;  // all of them
  Words mended;    // what, set beside them, leaves no warning; nothing: they never change anything
};

Words const many_steps{"train.local_update_steps", "2"};
std::string const watched = "eval.best_res_update_round_wise_key";

// The base is FederatedScope's default: toy data, the model lr, one batch a round.
std::vector<Case> const cases{
    {{"device", "2"}, {"device has no effect while use_gpu is False"}, {"use_gpu", "True"}},
    // federate
    {{"federate.online_aggr", "True"},
     {"federate.online_aggr changes nothing: updates are added as they arrive wherever the rule allows it"},
     {}},
    {{"federate.merge_test_data", "True", watched, "test_loss", "eval.split", "['test']"},
     {"federate.merge_test_data lets the server evaluate, as if federate.make_global_eval were True"},
     {"federate.make_global_eval", "True"}},
    {{"federate.merge_val_data", "True"},
     {"federate.merge_val_data has no effect while federate.merge_test_data is False"},
     {"federate.merge_test_data", "True", "federate.make_global_eval", "True"}},
    {{"federate.method", "FedProx"},
     {"federate.method is FedProx with a fedprox.mu of 0, which is FedAvg"},
     {"fedprox.mu", "0.1", "train.local_update_steps", "2"}},
    {{"federate.method", "FedBN"},
     {"federate.method is FedBN for a model.type without batch norm, which is FedAvg"},
     {"model.type", "convnet2"}},
    {{"federate.ignore_weight", "True", "aggregator.robust_rule", "median"},
     {"federate.ignore_weight has no effect while aggregator.robust_rule is 'median'"},
     {"aggregator.robust_rule", "geometric_median"}},
    {{"federate.ignore_weight", "True", "aggregator.robust_rule", "krum"},
     {"federate.ignore_weight has no effect while aggregator.robust_rule is 'krum'"},
     {"aggregator.BFT_args.krum_agg_num", "3"}},
    {{"federate.ignore_weight", "True", "aggregator.robust_rule", "bulyan"},
     {"federate.ignore_weight has no effect while aggregator.robust_rule is 'bulyan'"},
     {"federate.method", "FedNova"}},
    // data
    {{"data.root", "elsewhere"}, {"data.root has no effect while data.type is 'toy'"}, {"data.type", "femnist"}},
    {{"data.type", "synthetic_femnist", "data.root", "elsewhere", "data.subsample", "0.5"},
     {"data.root has no effect while data.type is 'synthetic_femnist'",
      "data.subsample has no effect while data.type is 'synthetic_femnist'"},
     {"data.type", "FashionMNIST@torchvision"}},
    {{"data.subsample", "0.5", "data.splits", "[0.6, 0.2, 0.2]", "data.transform", "[['ToTensor']]"},
     {"data.subsample has no effect while data.type is 'toy'", "data.splits has no effect while data.type is 'toy'",
      "data.transform has no effect while data.type is 'toy'"},
     {"data.type", "femnist"}},
    {{"data.type", "femnist", "data.splitter", "lda"},
     {"data.splitter has no effect while data.type is 'femnist'"},
     {"data.type", "FashionMNIST@torchvision"}},
    {{"data.splitter_args", "[{'alpha': 0.5}]"},
     {"data.splitter_args has no effect while data.splitter is ''"},
     {"data.splitter", "lda", "data.type", "FashionMNIST@torchvision"}},
    {{"data.splitter", "lda", "data.splitter_args", "[{'alpha': 0.5}]"},
     {"data.splitter has no effect while data.type is 'toy'",
      "data.splitter_args has no effect while data.type is 'toy'"},
     {"data.type", "FashionMNIST@torchvision"}},
    // model
    {{"model.hidden", "64", "model.dropout", "0.0"},
     {"model.hidden has no effect while model.type is 'lr'", "model.dropout has no effect while model.type is 'lr'"},
     {"model.type", "convnet2"}},
    {{"model.type", "convnet2", "model.use_bias", "False"},
     {"model.use_bias has no effect while model.type is 'convnet2'"},
     {"model.type", "lr"}},
    // train
    {{"federate.method", "FedRep", "train.local_update_steps", "3", "train.batch_or_epoch", "epoch",
      "train.optimizer.lr", "0.2", "train.optimizer.weight_decay", "0.1"},
     {"train.local_update_steps has no effect while federate.method is 'FedRep'",
      "train.batch_or_epoch has no effect while federate.method is 'FedRep'",
      "train.optimizer.lr has no effect while federate.method is 'FedRep'",
      "train.optimizer.weight_decay has no effect while federate.method is 'FedRep'"},
     {"federate.method", "FedAvg"}},
    {{"train.optimizer.momentum", "0.9"},
     {"train.optimizer.momentum has no effect while train.local_update_steps is 1"},
     many_steps},
    {{"train.optimizer.momentum", "0.9"},
     {"train.optimizer.momentum has no effect while train.local_update_steps is 1"},
     {"train.optimizer.nesterov", "True"}},
    {{"federate.method", "Ditto", "train.optimizer.momentum", "0.9"},
     {"train.optimizer.momentum has no effect while train.local_update_steps is 1"},
     {"personalization.local_update_steps", "5"}},
    {{"train.optimizer.dampening", "0.1"},
     {"train.optimizer.dampening has no effect while train.optimizer.momentum is 0.0"},
     {"train.optimizer.momentum", "0.9", "train.local_update_steps", "2"}},
    {{"train.optimizer.dampening", "0.1", "train.optimizer.momentum", "0.9"},
     {"train.optimizer.momentum has no effect while train.local_update_steps is 1",
      "train.optimizer.dampening has no effect while train.local_update_steps is 1"},
     {"train.batch_or_epoch", "epoch"}},
    {{"train.scheduler.type", "ExponentialLR", "train.scheduler.gamma", "0.5"},
     {"train.scheduler has no effect while train.local_update_steps is 1"},
     many_steps},
    {{"train.scheduler.type", "MultiStepLR", "train.scheduler.milestones", "[1]"},
     {"train.scheduler has no effect while train.local_update_steps is 1"},
     {"train.scheduler.milestones", "[0]"}},
    // eval, early_stop
    {{"eval.freq", "51"},
     {"eval.freq is above federate.total_round_num: the only evaluation is the one after the last round"},
     {"federate.total_round_num", "51"}},
    {{"eval.metrics", "['acc', 'loss']"},
     {"eval.metrics has no effect while criterion.type is 'MSELoss'"},
     {"criterion.type", "CrossEntropyLoss"}},
    {{"eval.report", "['avg']", "federate.make_global_eval", "True"},
     {"eval.report has no effect: the server evaluates, and tells one form, Results_raw"},
     {"federate.make_global_eval", "False"}},
    {{"early_stop.patience", "3", "eval.freq", "20", "federate.total_round_num", "60"},
     {"early_stop.patience is not below the number of evaluations: nothing stops this job early"},
     {"federate.total_round_num", "61"}},
    {{"early_stop.patience", "0", "early_stop.delta", "0.1", "early_stop.improve_indicator_mode", "mean"},
     {"early_stop.delta has no effect while early_stop.patience is 0",
      "early_stop.improve_indicator_mode has no effect while early_stop.patience is 0"},
     {"early_stop.patience", "1"}},
    {{"early_stop.delta", "0.1", "early_stop.improve_indicator_mode", "mean", "eval.freq", "10"},
     {"early_stop.delta has no effect: early_stop.patience is not below the number of evaluations",
      "early_stop.improve_indicator_mode has no effect: early_stop.patience is not below the number of evaluations"},
     {"eval.freq", "9"}},
    // algorithms
    {{"personalization.share_non_trainable_para", "True"},
     {"personalization.share_non_trainable_para has no effect while model.type is 'lr'"},
     {"model.type", "convnet2"}},
    {{"fedopt.optimizer.lr", "1.0", "fedopt.optimizer.momentum", "0.9"},
     {"fedopt.optimizer has no effect while fedopt.use is False"},
     {"federate.method", "FedOpt"}},
    {{"fedprox.use", "True"},
     {"fedprox.use has no effect while fedprox.mu is 0.0"},
     {"fedprox.mu", "0.1", "train.local_update_steps", "2"}},
    {{"fedprox.mu", "0.1", "train.local_update_steps", "2"},
     {"fedprox.mu has no effect while fedprox.use is False"},
     {"fedprox.use", "True"}},
    {{"fedprox.mu", "0.1", "fedprox.use", "True"},
     {"fedprox.mu has no effect while train.local_update_steps is 1"},
     {"train.batch_or_epoch", "epoch"}},
    {{"aggregator.byzantine_node_num", "2"},
     {"aggregator.byzantine_node_num has no effect while aggregator.robust_rule is 'fedavg'"},
     {"aggregator.robust_rule", "median"}},
    {{"aggregator.BFT_args.krum_agg_num", "3"},
     {"aggregator.BFT_args.krum_agg_num has no effect while aggregator.robust_rule is 'fedavg'"},
     {"aggregator.robust_rule", "krum"}},
    {{"aggregator.BFT_args.trimmedmean_excluded_ratio", "0.1"},
     {"aggregator.BFT_args.trimmedmean_excluded_ratio has no effect while aggregator.robust_rule is 'fedavg'"},
     {"aggregator.robust_rule", "trimmedmean"}},
    {{"aggregator.BFT_args.normbounding_norm_bound", "5"},
     {"aggregator.BFT_args.normbounding_norm_bound has no effect while aggregator.robust_rule is 'fedavg'"},
     {"aggregator.robust_rule", "normbounding"}},
};

}  // namespace

TEST_CASE("each setting that changes nothing is one sentence, until what it needs is there") {
  for (auto const& [words, warnings, mended] : cases) {
    INFO(words[0] << " " << words[1]);
    CHECK(warnings_of(words) == warnings);
    if (!mended.empty()) CHECK(warnings_of(words, mended).empty());
  }
  CHECK(warnings_of({}).empty());
}

TEST_CASE("every row of the table is seen at work") {
  for (auto const& need : table::needs) {
    std::string const key(need.key);
    INFO(key << ": " << std::string(need.otherwise));
    auto const told = [&](Case const& one) {
      Config config = with(one.words), standard;
      return !need.met(config) && table::differs_from_default(need.key, config, standard) &&
             std::ranges::any_of(one.warnings, [&](std::string const& text) {
               return text.starts_with(key + " ") && text.find(need.otherwise) != std::string::npos;
             });
    };
    CHECK(std::ranges::any_of(cases, told));
    CHECK((need.otherwise.find(' ') != std::string_view::npos || table::find_key(need.otherwise) != nullptr));
    CHECK((table::find_key(need.key) != nullptr || table::is_section(need.key)));
  }
}

TEST_CASE("each key that is built needs something, or matters always, or is refused where it does not") {
  std::set<std::string_view> const always{
      "use_gpu", "backend", "seed", "outdir", "expname", "expname_tag", "federate.client_num",
      "federate.sample_client_num", "federate.sample_client_rate", "federate.unseen_clients_rate",
      "federate.total_round_num", "federate.mode", "federate.share_local_model", "federate.make_global_eval",
      "federate.restore_from", "federate.save_to", "federate.sampler", "federate.process_num", "data.type",
      "dataloader.type", "dataloader.batch_size", "dataloader.shuffle", "dataloader.drop_last", "model.type",
      "model.in_channels", "model.out_channels", "grad.grad_clip", "grad.grad_accum_count", "criterion.type",
      "regularizer.type", "trainer.type", "eval.split", "eval.best_res_update_round_wise_key", "eval.count_flops",
      "personalization.local_param", "fedopt.use", "aggregator.robust_rule", "quantization.method",
      // refused: settings of another optimizer, or of Ditto or FedRep under another method
      "train.optimizer.type", "train.optimizer.nesterov", "train.optimizer.betas", "train.optimizer.eps",
      "train.optimizer.amsgrad", "personalization.local_update_steps", "personalization.regular_weight",
      "personalization.lr", "personalization.lr_feature", "personalization.lr_linear", "personalization.epoch_feature",
      "personalization.epoch_linear", "personalization.weight_decay"};
  for (auto const& key : table::all_keys()) {
    if (key.field == nullptr || key.status == table::Status::known) continue;
    INFO(std::string(key.name));
    bool const needs = std::ranges::any_of(table::needs, [&](table::Need const& need) {
      return key.name == need.key || key.name.starts_with(std::string(need.key) + ".");
    });
    CHECK(needs != always.contains(key.name));
  }
}

// ---- what is evaluated ---------------------------------------------------------------------------------------------

TEST_CASE("a part of eval.split that has no samples is named, and not evaluated") {
  auto const resolved = [](Words const& words) { return resolve(with(words), {}); };
  CHECK(resolved({}).evaluated == Words{"test", "val"});
  CHECK_FALSE(resolved({}).server_evaluates);
  auto const few = resolved({"data.type", "femnist", "data.splits", "[0.8, 0.0, 0.2]", watched, "test_loss"});
  CHECK(few.evaluated == Words{"test"});
  CHECK(few.warnings == Words{"eval.split has 'val', but data.splits leaves no such samples: it is not evaluated"});

  auto const own = resolved({"federate.make_global_eval", "True", "eval.split", "['train', 'test', 'val']"});
  CHECK(own.server_evaluates);
  CHECK(own.evaluated == Words{"test", "val"});
  CHECK(own.warnings == Words{"eval.split has 'train', but the server has no such samples: it is not evaluated"});

  Words const merged{"data.type", "femnist", "federate.make_global_eval", "True", "federate.merge_test_data", "True"};
  Words tests = merged;
  tests.insert(tests.end(), {watched, "test_loss"});
  CHECK(resolved(tests).evaluated == Words{"test"});
  CHECK(resolved(tests).warnings ==
        Words{"eval.split has 'val', but the server has no such samples without federate.merge_val_data: it is not "
              "evaluated"});
  Words both = merged;
  both.insert(both.end(), {"federate.merge_val_data", "True"});
  CHECK(resolved(both).evaluated == Words{"test", "val"});
  CHECK(resolved(both).warnings.empty());
  CHECK(resolved({"data.type", "FashionMNIST@torchvision", "federate.make_global_eval", "True", "eval.split",
                  "['train', 'val']"})
            .evaluated == Words{"train", "val"});
}

TEST_CASE("a server that cannot evaluate, or not what is watched, is one sentence") {
  auto const refusal = [](Words const& words) {
    return pardl::testing::what_of<pardl::ConfigError>([&] { (void)resolve(with(words), {}); });
  };
  CHECK(refusal({"data.type", "femnist", "federate.make_global_eval", "True"}) ==
        "[config] federate.make_global_eval is True, but data.type femnist gives the server no data; let it take the "
        "clients' with federate.merge_test_data True.");
  CHECK(refusal({"federate.merge_test_data", "True"}) ==
        "[config] eval.best_res_update_round_wise_key is val_loss, but the server, which evaluates, has no such "
        "samples; set federate.merge_val_data True, or watch a test_ key.");
  CHECK(refusal({"federate.make_global_eval", "True", "eval.split", "['train', 'test']", watched, "train_loss"}) ==
        "[config] eval.best_res_update_round_wise_key is train_loss, but the server, which evaluates, has no such "
        "samples; watch a test_ key.");
}
