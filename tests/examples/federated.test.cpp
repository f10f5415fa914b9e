// SPDX-License-Identifier: MIT
// The program as its user runs it: real processes, real files.
#include <doctest/doctest.h>

#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "federated_job.hpp"

using nlohmann::json;
using namespace pardl::testing;

TEST_CASE("federated learns, for any number of workers alike, and writes what it says") {
  TemporaryFolder const one, two;
  write_job(one);
  write_job(two);
  auto const json_file = (one / "s.json").string();
  auto const first = run(one, small(one, {"--summary", json_file}));
  CHECK_MESSAGE(first.code == 0, first.output);
  auto const second = run(two, small(two, {"federate.process_num", "2"}));
  CHECK_MESSAGE(second.code == 0, second.output);
  CHECK(bytes(one / "exp/run/latest.safetensors") == bytes(two / "exp/run/latest.safetensors"));
  CHECK(bytes(one / "exp/run/eval_results.log") == bytes(two / "exp/run/eval_results.log"));
  auto const log = bytes(one / "exp/run/eval_results.log");
  CHECK(log.find("{'Role': 'Server #', 'Round': 3, 'Results_weighted_avg': {'test_loss': ") != std::string::npos);
  CHECK(log.find("'Results_fairness': {") != std::string::npos);
  CHECK(log.find("'Round': 'Final', 'Results_raw': {'client_best_individual': {'test_loss': ") != std::string::npos);
  CHECK(log.find("'client_summarized_weighted_avg': {'test_loss': ") != std::string::npos);
  auto const summary = json::parse(bytes(json_file));
  CHECK(summary.at("rounds").size() == 4);
  CHECK(summary.at("rounds")[3].at("test_acc").get<double>() > summary.at("rounds")[0].at("test_acc").get<double>());
  CHECK(summary.at("stop_reason") == "all rounds are done");
}

TEST_CASE("a federated job that is killed goes on from its checkpoint and ends alike") {
  TemporaryFolder const whole, cut;
  write_job(whole);
  write_job(cut);
  auto const checkpoint = (cut / "c.safetensors").string();
  CHECK(run(whole, small(whole, {"federate.total_round_num", "40"})).code == 0);
  {
    auto process = start(cut, small(cut, {"federate.total_round_num", "40", "--checkpoint", checkpoint}));
    CHECK(process.wait_for("'Round': 3, 'Results_weighted_avg'"));
    process.send(SIGKILL);
    CHECK(process.wait().code == 128 + SIGKILL);
  }
  auto const resumed =
      run(cut, small(cut, {"federate.total_round_num", "40", "--checkpoint", checkpoint, "federate.process_num", "2"}));
  CHECK_MESSAGE(resumed.code == 0, resumed.output);
  CHECK(resumed.output.find("Going on from " + checkpoint + " after round ") != std::string::npos);
  CHECK(bytes(whole / "exp/run/latest.safetensors") == bytes(cut / "exp/run/latest.safetensors"));
  CHECK(bytes(whole / "exp/run/eval_results.log") == bytes(cut / "exp/run/eval_results.log"));
}

TEST_CASE("random transforms are drawn for training and leave evaluations alone") {
  auto const results = [](std::vector<std::string> more) {
    TemporaryFolder const folder;
    write_job(folder);
    more.insert(more.end(), {"federate.total_round_num", "2"});
    auto const result = run(folder, small(folder, std::move(more)));
    CHECK_MESSAGE(result.code == 0, result.output);
    return std::pair{bytes(folder / "exp/run/eval_results.log"), bytes(folder / "exp/run/latest.safetensors")};
  };
  std::string const random =
      "[['RandomCrop', {'size': 28, 'padding': 4}], ['RandomHorizontalFlip'], ['ToTensor'], ['Normalize', {'mean': "
      "[0.5], 'std': [0.5]}]]";
  // At a rate of 0 the model stays the first one, and all that could differ is what evaluations see.
  auto const still = results({"data.transform", random, "train.optimizer.lr", "0"});
  CHECK(still == results({"train.optimizer.lr", "0"}));
  auto const moved = results({"data.transform", random});
  CHECK(moved.second != results({}).second);
  CHECK(moved == results({"data.transform", random, "federate.process_num", "2"}));
  results({"data.transform", "[['RandomCrop', {'size': 20}], ['ToTensor']]", "model.type", "convnet2", "model.hidden",
           "16", "federate.client_num", "2", "federate.sample_client_rate", "1"});
}

TEST_CASE("every strategy and robust rule runs, and differs from FedAvg by more than its name") {
  using Words = std::vector<std::string>;
  auto const model_of = [](Words more, int workers) {
    TemporaryFolder const folder;
    write_job(folder);
    more.insert(more.end(), {"federate.total_round_num", "2", "federate.process_num", std::to_string(workers),
                             "--evaluate-global", "--summary", folder / "summary.json"});
    auto const result = run(folder, small(folder, std::move(more)));
    CHECK_MESSAGE(result.code == 0, result.output);
    auto const summary = bytes(folder / "summary.json");
    return std::pair{bytes(folder / "exp/run/latest.safetensors"), summary.substr(summary.find("global_"), 60)};
  };
  auto const usual = model_of({}, 1);
  for (Words const& words : {Words{"federate.method", "FedNova", "train.local_update_steps", "2"},
                             Words{"federate.method", "SCAFFOLD", "federate.ignore_weight", "True"},
                             Words{"federate.method", "FedRep", "personalization.local_param", "['bias']"},
                             Words{"aggregator.robust_rule", "median"},
                             Words{"aggregator.robust_rule", "krum", "aggregator.byzantine_node_num", "1"}}) {
    CAPTURE(words[1]);
    auto const model = model_of(words, 1);
    CHECK(model.first != usual.first);
    CHECK(model == model_of(words, 2));
  }
  // Ditto's global model is FedAvg's; what differs is the model that its clients are evaluated with.
  CHECK(model_of({"federate.method", "Ditto"}, 2) == usual);
}

TEST_CASE("bad input of federated ends in one sentence") {
  TemporaryFolder const folder;
  write_job(folder);
  auto const refuses = [&](std::vector<std::string> words, std::string const& part) {
    auto const result = run(folder, std::move(words));
    CHECK(result.code == 1);
    CHECK_MESSAGE(result.output.find(part) != std::string::npos, result.output);
    CHECK_FALSE(std::filesystem::exists(folder / "exp"));
  };
  refuses({"--cfg", "none.yaml"}, "none.yaml cannot be read");
  auto const job = [&](std::vector<std::string> more) { return small(folder, std::move(more)); };
  refuses(job({"federate.client_nums", "3"}), "did you mean federate.client_num");
  refuses(job({"federate.sample_client_rate", "1.5"}), "federate.sample_client_rate is 1.5");
  refuses(job({"federate.sample_client_rate", "-1", "federate.sample_client_num", "21"}), "sample_client_num is 21");
  refuses(job({"data.type", "femnist"}), "--stand-in");
  refuses(job({"model.out_channels", "10"}), "give model.out_channels 62");
  refuses(job({"federate.method", "pFedMe"}), "which FederatedScope has and pardl has not built");
  refuses(job({"federate.method", "SCAFFOLD", "train.optimizer.momentum", "0.9"}), "set train.optimizer.momentum 0");
  refuses(job({"federate.method", "FedRep"}), "name the head's layers");
  refuses(job({"personalization.regular_weight", "0.5"}), "it is a setting of Ditto");
  refuses(job({"--most-norm", "-1"}), "give a positive bound");
  refuses(job({"--most-medians", "2"}), "choose a robust rule");
  refuses(job({"--recalibrate", "10", "model.type", "lr"}), "without batch norm");
  refuses(job({"data.transform", "[['RandomCrop', {'size': 40, 'padding': 2}], ['ToTensor']]"}),
          "take a size that fits");
  refuses(job({"criterion.type", "MSELoss"}), "give CrossEntropyLoss");
  refuses(job({"eval.best_res_update_round_wise_key", "val_f1"}), "val_f1");
  refuses(job({"personalization.local_param", "['bias', 'head']"}),
          "has 'head', which no parameter's name contains; the parameters are fc.weight, fc.bias");
  refuses(job({"federate.make_global_eval", "True"}), "with federate.merge_test_data True");
  refuses(job({"federate.merge_test_data", "True"}), "set federate.merge_val_data True");
  refuses({"--frobnicate"}, "--frobnicate");
}
