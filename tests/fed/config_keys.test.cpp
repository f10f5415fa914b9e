// SPDX-License-Identifier: MIT
#include "pardl/fed/config_keys.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "pardl/fed/config.hpp"
#include "support/temporary_folder.hpp"

using pardl::fed::apply_overrides;
using pardl::fed::Argument;
using pardl::fed::Arguments;
using pardl::fed::ArgumentValue;
using pardl::fed::Calls;
using pardl::fed::check_config;
using pardl::fed::Config;
using pardl::testing::what_of;
using Words = std::vector<std::string>;
namespace table = pardl::fed::config_detail;

namespace {

bool says(std::string const& text, std::string_view part) { return text.find(part) != std::string::npos; }

Config with(Words const& words) {
  Config config;
  apply_overrides(config, words);
  return config;
}

std::string refusal_of(Words const& words) {
  return what_of<pardl::ConfigError>([&] { (void)with(words); });
}

}  // namespace

// ---- the command line ----------------------------------------------------------------------------------------------

TEST_CASE("the command line overrides what there is, and later words earlier ones") {
  Config config;  // as a file may have left it
  config.seed = 12345;
  config.use_gpu = true;
  config.federate.total_round_num = 10;
  config.federate.client_num = 100;
  apply_overrides(config, Words{"federate.client_num",
                                "7",
                                "data.splits",
                                "[0.5,0.25,0.25]",
                                "seed",
                                "1",
                                "seed",
                                "2",
                                "use_gpu",
                                "False",
                                "outdir",
                                "runs/a b",
                                "eval.metrics",
                                "[acc]",
                                "train.optimizer.lr",
                                "1e-4",
                                "data.transform",
                                "[['ToTensor']]",
                                "expname",
                                ""});
  CHECK(config.federate.client_num == 7);
  CHECK(config.data.splits == std::vector<double>{0.5, 0.25, 0.25});
  CHECK(config.seed == 2);
  CHECK_FALSE(config.use_gpu);
  CHECK(config.outdir == "runs/a b");
  CHECK(config.eval.metrics == Words{"acc"});
  CHECK(config.train.optimizer.lr == 1e-4);
  CHECK(config.data.transform == Calls{{"ToTensor"}});
  CHECK(config.expname.empty());
  CHECK(config.federate.total_round_num == 10);  // what is not named stays
}

TEST_CASE("a command line that cannot be right is refused as a whole") {
  Config config;
  auto const text = what_of<pardl::ConfigError>([&] {
    apply_overrides(config, Words{"seed", "7", "federate.client_num"});
  });
  CHECK(text == "[config] command line: federate.client_num has no value; give pairs: a key, a value, a key, a value.");
  CHECK(config == Config{});
  CHECK(refusal_of({"federate.client_nums", "5"}) ==
        "[config] command line: there is no key federate.client_nums; did you mean federate.client_num.");
  CHECK(says(refusal_of({"train.optimizer", "5"}), "train.optimizer is a section, not a key"));
  CHECK(says(refusal_of({"--seed", "5"}), "there is no key --seed; did you mean seed."));
}

TEST_CASE("values outside of what a key takes are one sentence each") {
  struct {
    char const *key, *value, *expected;
  } const cases[] = {
      {"federate.sample_client_rate", "0", "is 0; it must be above 0 and at most 1, or -1 for 'not given'."},
      {"federate.sample_client_rate", "1.01", "is 1.01; it must be above 0 and at most 1"},
      {"federate.sample_client_rate", "nan", "is nan; it must be"},
      {"federate.sample_client_rate", ".inf", "is inf; it must be"},
      {"federate.sample_client_rate", "-0.5", "is -0.5; it must be"},
      {"federate.sample_client_num", "0", "is 0; it must be at least 1, or -1"},
      {"federate.unseen_clients_rate", "1", "is 1; it must be at least 0 and below 1."},
      {"federate.client_num", "-1", "is -1; it must be at least 0."},
      {"federate.client_num", "2.5", "is 2.5, which is no whole number"},
      {"federate.client_num", "010", "is 010, which is no whole number"},
      {"federate.client_num", "1e30", "is 1e30, which is no whole number"},
      {"federate.client_num", "True", "is True, which is no whole number"},
      {"federate.client_num", "[5]", "is [5], which is no whole number"},
      {"federate.client_num", "None", "has no value"},
      {"federate.process_num", "0", "is 0; it must be at least 1 and at most 4096."},
      {"federate.total_round_num", "0", "is 0; it must be at least 1."},
      {"data.subsample", "0.0", "is 0; it must be above 0 and at most 1."},
      {"data.subsample", "1e999", "is inf; it must be"},
      {"data.splits", "[1.5,-0.25,-0.25]", "is 1.5; it must be at least 0 and at most 1."},
      {"data.splits", "[0.6,0.2,x]", "which is no list of numbers"},
      {"data.splits", "[0.6,0.2", "which is no list of numbers"},
      {"data.splits", "0.6", "which is no list of numbers"},
      {"model.dropout", "1", "is 1; it must be at least 0 and below 1."},
      {"grad.grad_clip", "0", "is 0; it must be above 0, or -1 for 'not given'."},
      {"train.optimizer.lr", "-0.1", "is -0.1; it must be at least 0."},
      {"train.optimizer.dampening", "inf", "is inf; it must be any finite number."},
      {"early_stop.patience", "-1", "is -1; it must be at least 0"},
      {"eval.freq", "0", "is 0; it must be at least 1."},
      {"use_gpu", "1", "is 1, which is no truth value; give True or False."},
      {"outdir", "5", "is 5, which is no text; put it in quotes if it is meant as one."},
      {"outdir", "[a]", "is [a], which is no text"},
      {"eval.metrics", "acc", "is acc, which is no list of texts"},
      {"eval.metrics", "[acc, 5]", "which is no list of texts"},
      {"eval.metrics", "[accuracy]", "is 'accuracy', which is none of its values; it can be acc, correct"},
      {"eval.metrics", "[roc_auc]", "is 'roc_auc', which FederatedScope has and pardl has not built; it can be acc"},
      {"federate.method", "pFedMe", "is 'pFedMe', which FederatedScope has and pardl has not built"},
      {"federate.mode", "distributed", "is 'distributed', which FederatedScope has"},
      {"train.batch_or_epoch", "batches", "is 'batches', which is none of its values; it can be batch, epoch."},
      {"train.batch_or_epoch", "''", "is '', which is none of its values"},
      {"data.transform", "ToTensor", "which is no list of names with arguments"},
      {"data.transform", "[['Normalize', 5]]", "which is no list of names with arguments"},
      {"data.transform", "[['Normalize', {'mean': {}}]]", "which is no list of names with arguments"},
      {"data.transform", "[['Normalize', {'mean': 1, 'mean': 2}]]", "gives the argument 'mean' twice"},
      {"data.transform", "[['Resize', {'size': 5}]]", "is 'Resize', which FederatedScope has"},
      {"data.splitter_args", "[{'alpha': 1}, {'alpha': 2}]", "which is no list of one map"},
      {"asyn.use", "True", "is True, but pardl has not built this key of FederatedScope (asynchronous rounds)"},
      {"quantization.nbits", "16", "is 16, but pardl has not built this key of FederatedScope"},
  };
  for (auto const& [key, value, expected] : cases) {
    std::string const text = refusal_of({key, value});
    INFO(key << " " << value << ": " << text);
    bool const names_it = text.starts_with("[config] command line: " + std::string(key) + " ");
    CHECK(names_it);
    CHECK(says(text, expected));
  }
}

TEST_CASE("values without end are refused, not followed") {
  for (char const bracket : {'[', '{', '(', '\''})
    CHECK(says(refusal_of({"data.splits", std::string(100000, bracket)}), "which is no list of numbers"));
}

TEST_CASE("the nearest key is found through typing errors, words left out and the wrong section") {
  struct {
    char const *written, *meant;
  } const cases[] = {
      {"federate.client_nmu", "federate.client_num"},
      {"federate.Client_Num", "federate.client_num"},
      {"federate.sample_rate", "federate.sample_client_rate"},
      {"federate.round_num", "federate.total_round_num"},
      {"fedarate.client_num", "federate.client_num"},
      {"client_num", "federate.client_num"},
      {"lr", "train.optimizer.lr"},
      {"train.lr", "train.optimizer.lr"},
      {"train.optimiser.lr", "train.optimizer.lr"},
      {"fedopt.lr", "fedopt.optimizer.lr"},
      {"grad.clip", "grad.grad_clip"},
      {"early_stop.patient", "early_stop.patience"},
      {"usegpu", "use_gpu"},
      {"eval.metric", "eval.metrics"},
      {"model.hiden", "model.hidden"},
  };
  for (auto const& [written, meant] : cases)
    CHECK(refusal_of({written, "1"}) ==
          "[config] command line: there is no key " + std::string(written) + "; did you mean " + meant + ".");
  std::string const far = refusal_of({"early_stop.qwertzuiop", "1"});
  CHECK(says(far, "the keys under early_stop are patience, delta, improve_indicator_mode."));
}

// ---- the table -----------------------------------------------------------------------------------------------------

TEST_CASE("the defaults are FederatedScope's") {
  struct {
    char const *key, *standard;
  } const facts[] = {
      {"federate.client_num", "0"},
      {"federate.sample_client_num", "-1"},
      {"federate.sample_client_rate", "-1.0"},
      {"federate.unseen_clients_rate", "0"},
      {"federate.total_round_num", "50"},
      {"federate.mode", "'standalone'"},
      {"federate.share_local_model", "False"},
      {"federate.online_aggr", "False"},
      {"federate.make_global_eval", "False"},
      {"federate.merge_test_data", "False"},
      {"federate.method", "'FedAvg'"},
      {"federate.ignore_weight", "False"},
      {"federate.use_ss", "False"},
      {"federate.sampler", "'uniform'"},
      {"federate.process_num", "1"},
      {"federate.save_to", "''"},
      {"federate.restore_from", "''"},
      {"train.local_update_steps", "1"},
      {"train.batch_or_epoch", "'batch'"},
      {"train.optimizer.type", "'SGD'"},
      {"train.optimizer.lr", "0.1"},
      {"train.scheduler.type", "''"},
      {"grad.grad_clip", "-1.0"},
      {"grad.grad_accum_count", "1"},
      {"early_stop.patience", "5"},
      {"early_stop.delta", "0.0"},
      {"early_stop.improve_indicator_mode", "'best'"},
      {"data.root", "'data'"},
      {"data.type", "'toy'"},
      {"data.subsample", "1.0"},
      {"data.splits", "[0.8, 0.1, 0.1]"},
      {"data.splitter", "''"},
      {"dataloader.batch_size", "64"},
      {"dataloader.shuffle", "True"},
      {"dataloader.num_workers", "0"},
      {"dataloader.drop_last", "False"},
      {"eval.freq", "1"},
      {"eval.metrics", "[]"},
      {"eval.split", "['test', 'val']"},
      {"eval.report", "['weighted_avg', 'avg', 'fairness', 'raw']"},
      {"eval.best_res_update_round_wise_key", "'val_loss'"},
      {"eval.count_flops", "True"},
      {"model.type", "'lr'"},
      {"model.hidden", "256"},
      {"model.dropout", "0.5"},
      {"model.in_channels", "0"},
      {"model.out_channels", "1"},
      {"model.use_bias", "True"},
      {"criterion.type", "'MSELoss'"},
      {"trainer.type", "'general'"},
      {"use_gpu", "False"},
      {"device", "-1"},
      {"seed", "0"},
      {"backend", "'torch'"},
      {"outdir", "'exp'"},
      {"quantization.method", "'none'"},
      {"quantization.nbits", "8"},
      {"asyn.min_received_num", "2"},
      {"asyn.staleness_toleration", "0"},
      {"asyn.staleness_discount_factor", "1.0"},
      {"asyn.aggregator", "'goal_achieved'"},
      {"asyn.broadcast_manner", "'after_aggregating'"},
      {"asyn.overselection", "False"},
      {"fedopt.use", "False"},
      {"fedopt.optimizer.type", "'SGD'"},
      {"fedopt.optimizer.lr", "0.01"},
      {"fedprox.use", "False"},
      {"fedprox.mu", "0.0"},
      {"personalization.local_param", "[]"},
      {"personalization.share_non_trainable_para", "False"},
      {"personalization.local_update_steps", "-1"},
      {"personalization.regular_weight", "0.1"},
      {"personalization.lr", "0.0"},
      {"aggregator.robust_rule", "'fedavg'"},
      {"aggregator.byzantine_node_num", "0"},
  };
  for (auto const& [key, standard] : facts) {
    INFO(key);
    CHECK(table::find_key(key) != nullptr);
    CHECK(with({key, standard}) == Config{});  // every default can be given, and changes nothing
  }
}

TEST_CASE("each key stands in the table once, means something, and has a default that its own rule allows") {
  std::set<std::string_view> names;
  Config config;
  for (auto const& key : table::all_keys()) {
    INFO(std::string(key.name));
    CHECK(names.insert(key.name).second);
    CHECK_FALSE(key.meaning.empty());
    CHECK_FALSE(table::is_section(key.name));
    if (!key.alias.empty()) {
      CHECK(table::find_key(key.alias) != nullptr);
      CHECK(table::find_key(key.alias)->alias.empty());
    } else if (key.field == nullptr) {
      CHECK(table::Literal::parse(key.standard).has_value());
      CHECK(key.status == table::Status::known);
    } else {
      CHECK_NOTHROW(table::check_stored(key, "", key.field(config)));
    }
  }
  CHECK(names.size() > 300);
  CHECK(pardl::fed::config_keys().size() == names.size());
  check_config(Config{});
}

TEST_CASE("a key that nothing is built for takes its default, in a file and on the command line, and nothing else") {
  std::size_t known = 0;
  for (auto const& key : table::all_keys()) {
    if (key.status != table::Status::known || key.field != nullptr) continue;
    ++known;
    std::string const name(key.name), standard(key.standard);
    INFO(name << " " << standard);
    CHECK(with({name, standard}) == Config{});
    CHECK(says(refusal_of({name, "surely-not-this"}), "has not built this key of FederatedScope"));
    CHECK(says(refusal_of({name, "[1, 2, 3, 4, 5]"}), "leave it at " + standard));
  }
  CHECK(known > 180);
  // 1e-4 and 0.0001, False and false are the same.
  CHECK(refusal_of({"trainer.local_entropy.eps", "0.0001", "wandb.use", "false", "sgdmf.R", "5", "vertical.dims",
                    "(5, 10)"}) == "");
}

TEST_CASE("the keys that are kept but not built refuse all but their default") {
  for (auto const& key : table::all_keys()) {
    if (key.status != table::Status::known || key.field == nullptr) continue;
    Config config;
    std::visit(
        [&](auto* value) {
          using Value = std::remove_pointer_t<decltype(value)>;
          if constexpr (std::is_same_v<Value, bool>) *value = !*value;
          if constexpr (std::is_same_v<Value, std::int64_t>) *value += 1;
          if constexpr (std::is_same_v<Value, double>) *value = 0.75;
          if constexpr (std::is_same_v<Value, std::string>)
            *value = key.rule.choices.empty() ? "other" : std::string(table::words_of(key.rule.choices).back());
          if constexpr (std::is_same_v<Value, Calls>) *value = {{"other"}};
          if constexpr (std::is_same_v<Value, Arguments>) *value = {{"other", true}};
        },
        key.field(config));
    std::string const text = what_of<pardl::ConfigError>([&] { check_config(config); });
    INFO(std::string(key.name) << ": " << text);
    CHECK(says(text, std::string(key.name) + " is "));
    CHECK(says(text, "has not built this key of FederatedScope"));
  }
}

TEST_CASE("the help has a line for each key, with its default, and can be asked for one section") {
  std::string const help = pardl::fed::config_help();
  CHECK(static_cast<std::size_t>(std::count(help.begin(), help.end(), '\n')) == table::all_keys().size());
  CHECK(says(help, "federate.client_num = 0 (whole number): clients; 0: as many as the data has\n"));
  CHECK(says(help, "train.batch_or_epoch = 'batch' (text): what local_update_steps counts; one of batch, epoch\n"));
  CHECK(says(help, "wandb.use = False: log to Weights & Biases [not built: leave it at its default]\n"));
  CHECK(says(help, "data.batch_size: old name of dataloader.batch_size\n"));
  std::string const section = pardl::fed::config_help("early_stop.");
  CHECK(std::count(section.begin(), section.end(), '\n') == 3);
}

// ---- arguments -----------------------------------------------------------------------------------------------------

TEST_CASE("arguments keep their types, and asking for another one is a sentence") {
  Arguments const args = with({"data.splitter_args",
                               "[{'alpha': 0.5, 'k': 2, 'on': True, 'name': word, 'text': '5', 'list': [1, 2.5], "
                               "'words': ['a', b], 'none': []}]"})
                             .data.splitter_args;
  CHECK(*find_argument(args, "alpha") == ArgumentValue(0.5));
  CHECK(*find_argument(args, "k") == ArgumentValue(std::int64_t{2}));
  CHECK(*find_argument(args, "on") == ArgumentValue(true));
  CHECK(*find_argument(args, "name") == ArgumentValue(std::string("word")));
  CHECK(*find_argument(args, "text") == ArgumentValue(std::string("5")));
  CHECK(*find_argument(args, "list") == ArgumentValue(std::vector<double>{1, 2.5}));
  CHECK(*find_argument(args, "words") == ArgumentValue(Words{"a", "b"}));
  CHECK(*find_argument(args, "none") == ArgumentValue(std::vector<double>{}));
  CHECK(find_argument(args, "beta") == nullptr);
  CHECK(number_argument(args, "lda", "alpha", 1.0) == 0.5);
  CHECK(number_argument(args, "lda", "k", 1.0) == 2.0);
  CHECK(number_argument(args, "lda", "beta", 1.0) == 1.0);
  CHECK(numbers_argument(args, "lda", "list") == std::vector<double>{1, 2.5});
  CHECK(numbers_argument(args, "lda", "k") == std::vector<double>{2});
  CHECK(flag_argument(args, "lda", "on", false));
  CHECK(flag_argument(args, "lda", "off", true));
  CHECK(what_of<pardl::ConfigError>([&] { (void)number_argument(args, "lda", "name", 1.0); }) ==
        "[config] lda's argument 'name' is no number; give a number such as 0.5.");
  CHECK_THROWS_AS((void)numbers_argument(args, "lda", "words"), pardl::ConfigError);
  CHECK_THROWS_AS((void)flag_argument(args, "lda", "k", true), pardl::ConfigError);
  CHECK(what_of<pardl::ConfigError>([&] {
          require_known_arguments(args, "lda", {"alpha", "beta"});
        }) == "[config] lda takes no argument 'k'; it takes alpha, beta.");
  CHECK(what_of<pardl::ConfigError>([&] { require_known_arguments(args, "iid", {}); }) ==
        "[config] iid takes no argument 'alpha'; it takes none.");
  CHECK(with({"data.splitter_args", "{'alpha': 0.5}"}).data.splitter_args == Arguments{{"alpha", 0.5}});
  CHECK(with({"data.splitter_args", "[]"}).data.splitter_args.empty());
}
