// SPDX-License-Identifier: MIT
#include "pardl/fed/config_rules.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/fed/any_robust_aggregator.hpp"
#include "pardl/fed/config.hpp"
#include "pardl/fed/config_keys.hpp"
#include "support/golden.hpp"
#include "support/temporary_folder.hpp"

using pardl::fed::apply_overrides;
using pardl::fed::check_config;
using pardl::fed::Config;
using pardl::fed::Machine;
using pardl::fed::resolve;
using pardl::fed::Resolved;
using Words = std::vector<std::string>;

namespace {

Config job(std::int64_t clients, double rate = -1.0, std::int64_t number = -1) {
  Config config;
  config.federate.client_num = clients;
  config.federate.sample_client_rate = rate;
  config.federate.sample_client_num = number;
  return config;
}

Config with(Words const& words) {
  Config config = job(100, 0.2);
  apply_overrides(config, words);
  return config;
}

/// How many of the warnings begin with these words.
std::size_t warned(Resolved const& resolved, std::string_view begin) {
  return static_cast<std::size_t>(
      std::count_if(resolved.warnings.begin(), resolved.warnings.end(),
                    [&](std::string const& text) { return std::string_view(text).starts_with(begin); }));
}

std::string refusal(Words const& words, Machine const& machine = {}) {
  return pardl::testing::what_of<pardl::ConfigError>([&] { (void)resolve(with(words), machine); });
}

bool says(std::string const& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace

// ---- clients -------------------------------------------------------------------------------------------------------

TEST_CASE("a rate gives as many clients as Python's int() does, of those that take part") {
  std::size_t checked = 0;
  for (auto const& record : pardl::testing::golden("client_count.txt")) {
    auto const expected = record.integers();
    for (std::size_t percent = 1; percent <= 100; ++percent) {
      Config config = job(record.integer(0), static_cast<double>(percent) / 100);
      config.federate.unseen_clients_rate = record.real(1);
      Resolved const resolved = resolve(config, {});
      CHECK(resolved.participants == record.integer(2));
      CHECK(resolved.sampled == expected.at(percent - 1));
      ++checked;
    }
  }
  CHECK(checked == 6600);
}

TEST_CASE("the rate goes before the number, with a warning, and neither means all") {
  CHECK(resolve(job(100), {}).sampled == 100);
  CHECK(resolve(job(100, -1.0, 7), {}).sampled == 7);
  CHECK(resolve(job(100, -1.0, 7), {}).warnings.empty());
  Resolved const both = resolve(job(100, 0.5, 7), {});
  CHECK(both.sampled == 50);
  CHECK(both.warnings ==
        Words{"federate.sample_client_rate goes before federate.sample_client_num: 50 clients a round, not 7"});
  CHECK(resolve(job(3, 0.01), {}).sampled == 1);  // at least one
}

TEST_CASE("the data says how many clients there are where the configuration does not, or asks for more") {
  CHECK(resolve(job(0), {}, 37).clients == 37);
  CHECK(resolve(job(20), {}, 37).clients == 20);
  CHECK(resolve(job(20), {}, 37).warnings.empty());
  Resolved const fewer = resolve(job(100, 0.4), {}, 37);
  CHECK(fewer.clients == 37);
  CHECK(fewer.sampled == 14);
  CHECK(fewer.warnings == Words{"federate.client_num is 100, but the data has 37 clients: these take part"});
  CHECK(says(pardl::testing::what_of<pardl::ConfigError>([] { (void)resolve(job(0), {}); }),
             "federate.client_num is 0, and the data does not say"));
}

TEST_CASE("a share that is never trained is named where it leaves no client out") {
  Config one = job(1);
  one.federate.unseen_clients_rate = 0.5;
  CHECK(resolve(one, {}).warnings == Words{"federate.unseen_clients_rate has no effect: it leaves no client out"});
  one.federate.client_num = 2;
  CHECK(resolve(one, {}).participants == 1);
  CHECK(resolve(one, {}).warnings.empty());
}

TEST_CASE("more clients a round than there are is an error, by configuration, by data and by those never trained") {
  auto const text = [](Config const& config, std::int64_t found) {
    return pardl::testing::what_of<pardl::ConfigError>([&] { (void)resolve(config, {}, found); });
  };
  CHECK(text(job(10, -1.0, 11), 0) ==
        "[config] federate.sample_client_num is 11, but there are only 10 clients (federate.client_num); ask for at "
        "most as many.");
  CHECK(says(text(job(10, -1.0, 8), 5), "federate.sample_client_num is 8, but only 5 clients take part"));
  Config unseen = job(10, -1.0, 8);
  unseen.federate.unseen_clients_rate = 0.5;
  CHECK(says(text(unseen, 0), "federate.sample_client_num is 8, but only 5 clients take part"));
  CHECK(text(job(10, -1.0, 10), 0).empty());
}

// ---- workers -------------------------------------------------------------------------------------------------------

TEST_CASE("on GPUs enough for the workers, each has its own and nothing is warned about") {
  Resolved const resolved =
      resolve(with({"use_gpu", "True", "device", "0", "federate.process_num", "4"}), {.gpus = 8, .cores = 16});
  CHECK(resolved.workers == 4);
  CHECK(resolved.gpu_of_worker == std::vector<std::int64_t>{0, 1, 2, 3});
  CHECK(resolved.warnings.empty());
}

TEST_CASE("several workers share a GPU, where FederatedScope lowers their number") {
  Resolved const resolved =
      resolve(with({"use_gpu", "True", "device", "1", "federate.process_num", "5"}), {.gpus = 2, .cores = 16});
  CHECK(resolved.workers == 5);
  CHECK(resolved.gpu_of_worker == std::vector<std::int64_t>{1, 0, 1, 0, 1});
  CHECK(warned(resolved, "federate.process_num is 5, more than the 2 GPUs") == 1);
  CHECK(resolved.warnings.size() == 1);
}

TEST_CASE("without a GPU, or without use_gpu, the workers train on the CPU") {
  Resolved const none = resolve(with({"use_gpu", "True", "federate.process_num", "4"}), {.gpus = 0, .cores = 4});
  CHECK(none.workers == 4);
  CHECK(none.gpu_of_worker.empty());
  CHECK(none.warnings.size() == 2);
  CHECK(warned(none, "use_gpu is True, but there is no GPU here") == 1);
  CHECK(warned(none, "federate.process_num is 4, without a GPU") == 1);
  Resolved const unused = resolve(with({"federate.process_num", "4"}), {.gpus = 8, .cores = 4});
  CHECK(unused.workers == 4);
  CHECK(unused.gpu_of_worker.empty());
  CHECK(unused.warnings.size() == 1);
}

TEST_CASE("one worker needs no words") {
  Resolved const resolved = resolve(with({}), {.gpus = 0, .cores = 1});
  CHECK(resolved.workers == 1);
  CHECK(resolved.warnings.empty());
  CHECK(resolve(with({"use_gpu", "True"}), {.gpus = 3}).gpu_of_worker == std::vector<std::int64_t>{0});
  CHECK(resolve(with({"use_gpu", "True", "device", "2"}), {.gpus = 3}).gpu_of_worker == std::vector<std::int64_t>{2});
}

TEST_CASE("more workers than clients of a round are lowered to these") {
  Resolved const resolved = resolve(with({"federate.process_num", "64"}), {.gpus = 0, .cores = 64});
  CHECK(resolved.workers == 20);
  CHECK(resolved.warnings.size() == 1);
  CHECK(
      warned(resolved,
             "federate.process_num is 64, more than the 20 clients of a round and without a GPU, where FederatedScope "
             "falls back to 1: 20 workers train on the CPU") == 1);
  Resolved const twice = resolve(with({"federate.process_num", "64"}), {.gpus = 0, .cores = 2});
  CHECK(twice.workers == 2);
  CHECK(twice.warnings.size() == 1);  // with the number that is right in the end
  CHECK(warned(twice,
               "federate.process_num is 64, more than the 20 clients of a round and more than the 2 cores: 2 workers "
               "train on the CPU") == 1);
  Resolved const one =
      resolve(with({"federate.process_num", "8", "federate.sample_client_rate", "0.01"}), {.cores = 8});
  CHECK(one.workers == 1);
  CHECK(one.warnings.size() == 1);
}

TEST_CASE("each other lift is one warning that begins with its key") {
  Resolved const cores = resolve(with({"federate.process_num", "4"}), {.gpus = 0, .cores = 2});
  CHECK(cores.workers == 2);
  CHECK(warned(cores, "federate.process_num is 4, more than the 2 cores: 2 workers train on the CPU") == 1);
  Resolved const shared =
      resolve(with({"federate.process_num", "2", "federate.share_local_model", "True"}), {.cores = 2});
  CHECK(warned(shared, "federate.share_local_model is True with several workers") == 1);
  CHECK(resolve(with({"federate.share_local_model", "True"}), {}).warnings.empty());
}

TEST_CASE("a GPU that does not exist is an error, unless none is used") {
  CHECK(refusal({"use_gpu", "True", "device", "2"}, {.gpus = 2}) ==
        "[config] device is 2, but there are 2 GPUs; give a number from 0 to 1, or -1.");
  CHECK(refusal({"use_gpu", "True", "device", "2"}, {.gpus = 0}).empty());
  CHECK(refusal({"device", "2"}, {.gpus = 1}).empty());
}

// ---- derived settings ----------------------------------------------------------------------------------------------

TEST_CASE("the personal model trains as the local one does unless it is told otherwise") {
  Resolved const as_local = resolve(with({"train.local_update_steps", "4", "train.optimizer.lr", "0.25"}), {});
  CHECK(as_local.personal_steps == 4);
  CHECK(as_local.personal_lr == 0.25);
  Resolved const own = resolve(with({"personalization.local_update_steps", "9", "personalization.lr", "0.5"}), {});
  CHECK(own.personal_steps == 9);
  CHECK(own.personal_lr == 0.5);
}

TEST_CASE("FedProx and FedOpt are chosen by their switch or by the method") {
  CHECK(resolve(with({"fedprox.use", "True", "fedprox.mu", "0.1"}), {}).proximal_mu == 0.1);
  CHECK(resolve(with({"federate.method", "FedProx", "fedprox.mu", "0.1"}), {}).proximal_mu == 0.1);
  CHECK(resolve(with({"fedopt.use", "True"}), {}).use_fedopt);
  CHECK(resolve(with({"federate.method", "fedopt"}), {}).use_fedopt);
  CHECK_FALSE(resolve(with({}), {}).use_fedopt);
}

TEST_CASE("robust rules need enough updates for the clients that may lie") {
  auto const robust = [](char const* rule, char const* liars) {
    return refusal({"aggregator.robust_rule", rule, "aggregator.byzantine_node_num", liars,
                    "aggregator.BFT_args.trimmedmean_excluded_ratio", "0.45",
                    "aggregator.BFT_args.normbounding_norm_bound", "1"});  // 20 updates a round
  };
  CHECK(robust("krum", "8").empty());
  CHECK(robust("krum", "9") ==
        "[config] aggregator.robust_rule is krum against 9 clients that may lie, but a round has 20 updates; sample at "
        "least 21, or lower aggregator.byzantine_node_num.");
  CHECK(robust("bulyan", "4").empty());
  CHECK(says(robust("bulyan", "5"), "sample at least 23"));
  for (char const* rule : {"median", "geometric_median", "trimmedmean"}) {
    CHECK(robust(rule, "9").empty());
    CHECK(says(robust(rule, "10"), "sample at least 21"));
    CHECK(says(robust(rule, "9223372036854775807"), "may lie"));
  }
  CHECK(says(robust("krum", "9223372036854775807"), "may lie"));
  CHECK(says(refusal({"aggregator.robust_rule", "krum", "aggregator.byzantine_node_num", "5",
                      "aggregator.BFT_args.krum_agg_num", "16"}),
             "more than the 15 updates"));
  for (char const* rule : {"fedavg", "normbounding"}) CHECK(robust(rule, "21").empty());  // a warning says enough
}

TEST_CASE("a trimmed mean cuts off those that may lie and leaves something") {
  auto const trimmed = [](char const* ratio, char const* liars) {
    return refusal({"aggregator.robust_rule", "trimmedmean", "aggregator.byzantine_node_num", liars,
                    "aggregator.BFT_args.trimmedmean_excluded_ratio", ratio});  // 20 updates a round
  };
  CHECK(trimmed("0", "0").empty());
  CHECK(trimmed("0.25", "5").empty());
  CHECK(trimmed("0.35", "7").empty());  // 0.35 * 20 is below 7 in floating point
  CHECK(trimmed("0.25", "6") ==
        "[config] aggregator.BFT_args.trimmedmean_excluded_ratio is 0.25, which cuts off 5 of a round's 20 updates at "
        "each end, but 6 clients may lie; raise it, sample more, or lower aggregator.byzantine_node_num.");
  CHECK(trimmed("0.4999999999999999", "9").empty());
  CHECK(trimmed("0.5", "0") ==
        "[config] command line: aggregator.BFT_args.trimmedmean_excluded_ratio is 0.5; it must be at least 0 and below "
        "0.5, or -1 for 'not given'.");
  Config config = job(20);
  config.aggregator.robust_rule = "trimmedmean";
  for (double const ratio : {0.5, 0.7, 1.0, std::numeric_limits<double>::quiet_NaN()}) {
    config.aggregator.BFT_args.trimmedmean_excluded_ratio = ratio;
    CHECK(
        says(pardl::testing::what_of<pardl::ConfigError>([&] { (void)resolve(config, {}); }),
             std::isfinite(ratio) ? "it must be at least 0 and below 0.5" : "it must be finite, at least 0 and below"));
  }
}

TEST_CASE("a configuration is refused where the rule itself would refuse the round, and nowhere else") {
  std::size_t refused = 0, taken = 0;
  for (auto const& entry : pardl::fed::robust_aggregators)
    for (std::int64_t updates = 1; updates <= 9; ++updates)
      for (std::int64_t liars = 0; liars <= updates + 1; ++liars)
        for (double const ratio : {0.0, 1.0 / 3, 0.49999999999999994})
          for (std::int64_t const average : {1, 3}) {
            Config config = job(updates);
            config.aggregator = {
                .robust_rule = std::string(entry.name),
                .byzantine_node_num = liars,
                .BFT_args = {
                    .krum_agg_num = average, .trimmedmean_excluded_ratio = ratio, .normbounding_norm_bound = 1.0}};
            auto const rule = pardl::fed::make_robust_aggregator(
                entry.name, {.byzantine = liars, .krum_agg_num = average, .excluded_ratio = ratio, .norm_bound = 1.0});
            auto const throws = [](auto&& call) { return !pardl::testing::what_of<pardl::ConfigError>(call).empty(); };
            bool const by_rule = throws([&] { rule.check(static_cast<std::size_t>(updates)); });
            bool const by_config = throws([&] { (void)resolve(config, {}); });
            if (by_rule != by_config)
              FAIL_CHECK(entry.name << ", " << updates << " updates, " << liars << " liars, ratio " << ratio
                                    << ", average " << average);
            ++(by_rule ? refused : taken);
          }
  CHECK(refused > 500);
  CHECK(taken > 500);
}

TEST_CASE("every robust rule that can be made can be configured") {
  for (auto const& entry : pardl::fed::robust_aggregators) {
    Config config;
    apply_overrides(config, Words{"aggregator.robust_rule", std::string(entry.name)});
    CHECK(config.aggregator.robust_rule == entry.name);
  }
}

// ---- what values must be to each other -----------------------------------------------------------------------------

TEST_CASE("values that contradict each other are one sentence each") {
  struct {
    Words words;
    char const* part;
  } const cases[] = {
      {{"data.splits", "[0.8,0.2]"}, "data.splits has 2 numbers"},
      {{"data.splits", "[0.8,0.2,0.2]"}, "data.splits adds up to 1.2"},
      {{"data.splits", "[0.0,0.5,0.5]"}, "leaves nothing to train on"},
      {{"data.splits", "[0.8,0.0,0.2]"}, "leaves no validation samples"},
      {{"data.splits", "[0.8,0.2,0.0]", "eval.best_res_update_round_wise_key", "test_loss"}, "leaves no test samples"},
      {{"train.optimizer.betas", "[0.8,0.9]"}, "SGD has no such setting"},
      {{"train.optimizer.eps", "1e-3"}, "SGD has no such setting"},
      {{"train.optimizer.nesterov", "True"}, "without a momentum"},
      {{"train.optimizer.nesterov", "True", "train.optimizer.momentum", "0.9", "train.optimizer.dampening", "0.1"},
       "or with a dampening"},
      {{"fedopt.optimizer.type", "Adam", "fedopt.optimizer.momentum", "0.9"}, "Adam has no such setting"},
      {{"fedopt.optimizer.type", "Adagrad", "fedopt.optimizer.betas", "[0.5,0.5]"}, "Adagrad has no such setting"},
      {{"fedopt.optimizer.type", "Yogi", "fedopt.optimizer.betas", "[0.5]"}, "betas has 1 numbers"},
      {{"train.scheduler.step_size", "3"}, "no scheduler has no such setting"},
      {{"train.scheduler.type", "StepLR"}, "StepLR without train.scheduler.step_size"},
      {{"train.scheduler.type", "MultiStepLR"}, "MultiStepLR without"},
      {{"train.scheduler.type", "CosineAnnealingLR"}, "CosineAnnealingLR without"},
      {{"train.scheduler.type", "CosineAnnealingLR", "train.scheduler.T_max", "5", "train.scheduler.gamma", "0.5"},
       "gamma is set"},
      {{"aggregator.robust_rule", "trimmedmean"}, "without aggregator.BFT_args.trimmedmean_excluded_ratio"},
      {{"aggregator.robust_rule", "normbounding"}, "without aggregator.BFT_args.normbounding_norm_bound"},
      {{"eval.best_res_update_round_wise_key", "val_acc"}, "eval.metrics has no 'acc'"},
      {{"eval.best_res_update_round_wise_key", "train_loss"}, "eval.split has no 'train'"},
      {{"eval.best_res_update_round_wise_key", "loss"}, "names no split"},
      {{"eval.best_res_update_round_wise_key", "val_total"}, "whether more or less is better"},
      {{"eval.metrics", "['acc','acc']"}, "has 'acc' twice"},
      {{"eval.metrics", "['acc']", "eval.best_res_update_round_wise_key", "val_acc"},
       "criterion.type MSELoss knows no right answers; watch val_avg_loss"},
      {{"data.splitter", "iid", "data.splitter_args", "[{'alpha': 0.5}]"},
       "data.splitter iid takes no argument 'alpha'; it takes min_samples"},
      {{"data.splitter", "shards", "data.splitter_args", "[{'classes_per_client': 2}]"},
       "it takes shards_per_client, min_samples"},
      {{"data.transform", "[['ToTensor', {'x': 1}]]"}, "takes no argument 'x'"},
      {{"data.transform", "[['Normalize']]"}, "as many numbers in mean as in std"},
      {{"data.transform", "[['Normalize', {'mean': [0.5, 0.5], 'std': [0.5]}]]"}, "as many numbers in mean as in std"},
      {{"data.transform", "[['Normalize', {'mean': [0.5], 'std': [0]}]]"}, "not above 0"},
      {{"data.transform", "[['Normalize', {'mean': 'x', 'std': [1]}]]"}, "is no list of numbers"},
      {{"data.transform", "[['RandomCrop']]"}, "no size"},
      {{"data.transform", "[['RandomHorizontalFlip', {'p': 2}]]"}, "probability of 2"},
  };
  for (auto const& [words, part] : cases) {
    std::string const text = refusal(words);
    INFO(words[0] << " " << words[1] << ": " << text);
    CHECK(says(text, part));
    CHECK(std::count(text.begin(), text.end(), '\n') == 0);
  }
  for (Words const& fine : {Words{"eval.metrics", "['acc']", "eval.best_res_update_round_wise_key", "val_acc",
                                  "criterion.type", "CrossEntropyLoss"},
                            Words{"data.splitter", "log-normal", "data.splitter_args", "[{'sigma': 2}]"},
                            Words{"eval.best_res_update_round_wise_key", "test_avg_loss"},
                            Words{"data.splits", "[1.0,0,0]", "eval.split", "['train']",
                                  "eval.best_res_update_round_wise_key", "train_loss"},
                            Words{"train.scheduler.type", "StepLR", "train.scheduler.step_size", "3"},
                            Words{"train.optimizer.nesterov", "True", "train.optimizer.momentum", "0.9"},
                            Words{"data.transform", "[['RandomCrop', {'size': 28, 'padding': 4}], ['ToTensor']]"}})
    CHECK(refusal(fine) == "");
}

TEST_CASE("a configuration that a program filled in is checked as one that was read") {
  auto const refused = [](auto change) {
    Config config = job(10);
    change(config);
    return pardl::testing::what_of<pardl::ConfigError>([&] { (void)resolve(config, {}); });
  };
  CHECK(refused([](Config&) {}).empty());
  CHECK(says(refused([](Config& c) { c.federate.sample_client_rate = 1.5; }), "federate.sample_client_rate is 1.5"));
  CHECK(says(refused([](Config& c) { c.federate.sample_client_rate = 0.0; }), "federate.sample_client_rate is 0;"));
  CHECK(says(refused([](Config& c) { c.train.optimizer.lr = std::numeric_limits<double>::infinity(); }),
             "train.optimizer.lr is inf"));
  CHECK(
      says(refused([](Config& c) { c.federate.method = "fedavg"; }), "federate.method is 'fedavg'; spell it 'FedAvg'"));
  CHECK(says(refused([](Config& c) { c.asyn.use = true; }), "asyn.use is True, but pardl has not built this key"));
  CHECK(says(refused([](Config& c) { c.data.transform = {{"Blur"}}; }), "data.transform is 'Blur'"));
}
