// SPDX-License-Identifier: MIT
// What a job of the program leaves in its folder beside the weights: its costs, and the server's own evaluation.
#include <doctest/doctest.h>

#include <csignal>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "federated/system_metrics.hpp"
#include "federated_job.hpp"

using nlohmann::json;
using namespace pardl::testing;
using Words = std::vector<std::string>;

namespace {

/// The lines of system_metrics.log, without the times.
std::vector<json> costs(std::string const& text) {
  std::vector<json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    lines.push_back(json::parse(line));
    for (std::string const form : {"", "sys_avg/", "sys_std/"})
      for (std::string const time : {"fl_end_time_minutes", "global_convergence_time_minutes"})
        lines.back().erase(form + time);
  }
  return lines;
}
std::vector<json> costs_in(TemporaryFolder const& folder) {
  return costs(bytes(folder / "exp/run/system_metrics.log"));
}

/// The number behind `name` in the last line of text.
std::string number(std::string const& text, std::string const& name) {
  auto const at = text.rfind("'" + name + "': ");
  if (at == std::string::npos) return "none";
  auto const begin = at + name.size() + 4;
  return text.substr(begin, text.find_first_of(",}", begin) - begin);
}

/// A finished job's folder and what it printed.
struct Done {
  TemporaryFolder folder;
  Result result{};
  std::string log;
  explicit Done(Words words) {
    write_job(folder);
    result = run(folder, small(folder, std::move(words)));
    CHECK_MESSAGE(result.code == 0, result.output);
    log = bytes(folder / "exp/run/eval_results.log");
  }
};

Words merged(Words more = {}) {
  Words words{"federate.make_global_eval", "True", "federate.merge_test_data", "True",
              "federate.merge_val_data",   "True"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

}  // namespace

// ---- system_metrics.log --------------------------------------------------------------------------------------------

TEST_CASE("costs are added up for each client, and all clients' are the server's") {
  federated::SystemMetrics metrics(3);
  metrics.add(0, 20, true);
  metrics.add(0, 20, true);
  metrics.add(2, 10, false);
  federated::SystemMetrics restored;
  restored.restore(json::parse(metrics.save().dump()));
  auto const text = restored.lines({.parameters = 7, .flops = 5, .update_bytes = 28}, {.minutes = 1.5, .rounds = 2});
  CHECK(text == metrics.lines({.parameters = 7, .flops = 5, .update_bytes = 28}, {.minutes = 1.5, .rounds = 2}));
  CHECK(text.starts_with(R"({"id":0,"fl_end_time_minutes":1.5,"total_model_size":0,"total_flops":0,)"
                         R"("total_upload_bytes":84,"total_download_bytes":56,"global_convergence_round":0,)"
                         R"("local_convergence_round":0,"global_convergence_time_minutes":0.0,)"
                         R"("local_convergence_time_minutes":0})"));
  auto const lines = costs(text);
  CHECK(lines.size() == 6);
  auto const row = [&](std::size_t id) {
    auto const& line = lines.at(id);
    CHECK(line.at("id") == id);
    return std::vector<std::int64_t>{line.at("total_model_size"), line.at("total_flops"), line.at("total_upload_bytes"),
                                     line.at("total_download_bytes")};
  };
  CHECK(row(1) == std::vector<std::int64_t>{7, 200, 56, 56});
  CHECK(row(2) == std::vector<std::int64_t>{0, 0, 0, 0});
  CHECK(row(3) == std::vector<std::int64_t>{7, 50, 0, 28});
  CHECK(lines[4] == json::parse(R"({"id": "sys_avg", "sys_avg/total_model_size": "3.5", "sys_avg/total_flops": "62.5",
    "sys_avg/total_upload_bytes": "35.0", "sys_avg/total_download_bytes": "35.0", "sys_avg/global_convergence_round": 0.0,
    "sys_avg/local_convergence_round": 0.0, "sys_avg/local_convergence_time_minutes": 0.0})"));
  CHECK(lines[5].at("sys_std/total_flops") == "81.97");
  CHECK(lines[5].at("sys_std/total_model_size") == "3.5");

  auto const early = metrics.lines({}, {.minutes = 3, .rounds = 9, .converged = true});
  auto const stopped = json::parse(early.substr(0, early.find('\n')));
  CHECK(stopped.at("global_convergence_round") == 9);
  CHECK(stopped.at("global_convergence_time_minutes") == 3.0);
}

TEST_CASE("sizes are shortened as FederatedScope shortens them") {
  using federated::SystemMetrics;
  CHECK(SystemMetrics::size_text(0) == "0.0");
  CHECK(SystemMetrics::size_text(1023) == "1023.0");
  CHECK(SystemMetrics::size_text(1024) == "1.0K");
  CHECK(SystemMetrics::size_text(4.0 * 6603902) == "25.19M");
  CHECK(SystemMetrics::size_text(1.5 * 1024 * 1024 * 1024) == "1.5G");
}

TEST_CASE("a job writes its costs, for any number of workers alike") {
  constexpr std::int64_t numbers = 784 * 62 + 62;
  Done const one({}), two({"federate.process_num", "2"}), uncounted({"eval.count_flops", "False"});
  auto const lines = costs_in(one.folder);
  CHECK(lines == costs_in(two.folder));
  CHECK(lines.size() == 1 + 20 + 2);
  std::int64_t rounds = 0, clients = 0;
  for (std::size_t id = 1; id <= 20; ++id) {
    auto const bytes_up = lines[id].at("total_upload_bytes").get<std::int64_t>();
    CHECK(bytes_up % (4 * numbers) == 0);
    CHECK(lines[id].at("total_download_bytes") == bytes_up);
    CHECK(lines[id].at("total_model_size") == (bytes_up > 0 ? numbers : 0));
    auto const flops = lines[id].at("total_flops").get<std::int64_t>();
    CHECK(flops % (784 * 62) == 0);
    CHECK((flops > 0) == (bytes_up > 0));
    rounds += bytes_up / (4 * numbers);
    clients += bytes_up > 0 ? 1 : 0;
  }
  CHECK(rounds == 4 * 6);
  CHECK(clients > 6);
  CHECK(lines[0].at("total_upload_bytes") == rounds * 4 * numbers);
  CHECK(lines[0].at("total_flops") == 0);
  CHECK(lines[21].at("id") == "sys_avg");
  CHECK(lines[22].at("id") == "sys_std");
  for (auto const& line : costs_in(uncounted.folder))
    if (line.at("id").is_number()) CHECK(line.at("total_flops") == 0);
  CHECK(bytes(one.folder / "exp/run/latest.safetensors") == bytes(uncounted.folder / "exp/run/latest.safetensors"));
}

TEST_CASE("what goes through the model is counted, also a client's own one") {
  auto const flops = [](Words words) {
    Done const job(std::move(words));
    std::int64_t all = 0;
    for (auto const& line : costs_in(job.folder))
      if (line.at("id").is_number()) all += line.at("total_flops").get<std::int64_t>();
    return all;
  };
  auto const usual = flops({});
  CHECK(flops({"train.local_update_steps", "3"}) == 3 * usual);
  CHECK(flops({"federate.method", "Ditto", "personalization.local_update_steps", "2"}) == 3 * usual);
  CHECK(flops({"federate.method", "FedRep", "personalization.local_param", "['bias']", "personalization.epoch_linear",
               "1", "personalization.epoch_feature", "3"}) == 4 * usual);
}

TEST_CASE("costs survive a kill, and a job that is over is not counted twice") {
  TemporaryFolder const cut;
  write_job(cut);
  Words const words{"federate.total_round_num", "40", "--checkpoint", cut / "c.safetensors"};
  Done const whole({"federate.total_round_num", "40"});
  {
    auto process = start(cut, small(cut, words));
    CHECK(process.wait_for("'Round': 3, 'Results_weighted_avg'"));
    process.send(SIGKILL);
    CHECK(process.wait().code == 128 + SIGKILL);
  }
  for (int again = 0; again < 2; ++again) {
    auto const resumed = run(cut, small(cut, words));
    CHECK_MESSAGE(resumed.code == 0, resumed.output);
    CHECK(costs_in(cut) == costs_in(whole.folder));
  }
}

// ---- the server's own evaluation -----------------------------------------------------------------------------------

TEST_CASE("the server evaluates the global model on the clients' merged data, for any number of workers alike") {
  Done const clients({}), server(merged()), two(merged({"federate.process_num", "2"}));
  CHECK(server.log == two.log);
  CHECK(bytes(clients.folder / "exp/run/latest.safetensors") == bytes(server.folder / "exp/run/latest.safetensors"));
  CHECK(bytes(clients.folder / "exp/run/best.safetensors") == bytes(server.folder / "exp/run/best.safetensors"));
  CHECK(server.log.starts_with("{'Role': 'Server #', 'Round': 0, 'Results_raw': {'test_loss': "));
  CHECK(server.log.find("Results_avg") == std::string::npos);
  auto const rounds = server.log.substr(0, server.log.find("{'Role': 'Server #', 'Round': 'Final'"));
  CHECK(
      server.log.substr(rounds.size())
          .starts_with("{'Role': 'Server #', 'Round': 'Final', 'Results_raw': {'server_global_eval': {'test_loss': "));
  // Clients keep nothing of this model, so the mean over all their samples is the server's.
  auto const weighted = clients.log.substr(0, clients.log.rfind(", 'Results_avg'"));
  for (std::string const split : {"test", "val"}) {
    CHECK(number(rounds, split + "_acc") == number(weighted, split + "_acc"));
    CHECK(number(rounds, split + "_avg_loss") == number(weighted, split + "_avg_loss"));
    CHECK(std::stod(number(rounds, split + "_total")) ==
          doctest::Approx(20 * std::stod(number(weighted, split + "_total"))));
    CHECK(
        std::stod(number(rounds, split + "_loss")) ==
        doctest::Approx(std::stod(number(rounds, split + "_total")) * std::stod(number(rounds, split + "_avg_loss"))));
  }
  CHECK(bytes(server.folder / "exp/run/eval_results.raw") == rounds);
}

TEST_CASE("without merged validation data the server evaluates on tests alone, and says so") {
  Done const job({"federate.merge_test_data", "True", "eval.best_res_update_round_wise_key", "test_acc"});
  CHECK(job.log.find("'test_acc'") != std::string::npos);
  CHECK(job.log.find("val_") == std::string::npos);
  CHECK(job.result.output.find("Warning: federate.merge_test_data lets the server evaluate") != std::string::npos);
  CHECK(job.result.output.find("Warning: eval.split has 'val', but the server has no such samples") !=
        std::string::npos);
}

TEST_CASE("toy data has a set for the server, and merged it is the same: each sample counts once") {
  Words const toy{"data.type",           "toy", "data.transform", "[]", "criterion.type",     "MSELoss",
                  "model.out_channels",  "1",   "eval.metrics",   "[]", "train.optimizer.lr", "0.001",
                  "federate.client_num", "5"};
  auto const job = [&](Words words) {
    words.insert(words.begin(), toy.begin(), toy.end());
    return Done(std::move(words)).log;
  };
  auto const own = job({"federate.make_global_eval", "True"});
  CHECK(number(own, "test_total") == "1000.0");
  CHECK(number(own, "val_total") == "1000.0");
  CHECK(own == job(merged()));
}

TEST_CASE("the server's figures stop a job early") {
  Done const job(merged({"early_stop.patience", "1", "early_stop.delta", "0.1", "train.optimizer.lr", "0"}));
  CHECK(job.result.output.find("Stopped early: no improvement of val_loss") != std::string::npos);
  auto const lines = costs_in(job.folder);
  CHECK(lines.at(0).at("global_convergence_round") == 2);
}

TEST_CASE("what clients keep is not in the model that the server evaluates") {
  Words const net{"model.type",
                  "convnet2",
                  "model.hidden",
                  "16",
                  "federate.client_num",
                  "2",
                  "federate.sample_client_rate",
                  "1",
                  "federate.total_round_num",
                  "1"};
  auto const job = [&](Words words) {
    words.insert(words.begin(), net.begin(), net.end());
    return Done(merged(std::move(words)));
  };
  std::string const warning = "the server evaluates the global model without what clients keep";
  CHECK(job({}).result.output.find(warning) != std::string::npos);
  Done const shared(merged([&] {
    Words words = net;
    words.insert(words.end(), {"personalization.share_non_trainable_para", "True", "--evaluate-global"});
    return words;
  }()));
  CHECK(shared.result.output.find(warning) == std::string::npos);
  CHECK(shared.result.output.find("Warning: --evaluate-global has no effect") != std::string::npos);
  // 25.2 MiB at FederatedScope's width; here with 16 hidden units, and batch norm's two buffers a channel.
  constexpr std::int64_t numbers = 25 * 32 + 25 * 32 * 64 + 3136 * 16 + 16 * 62 + (32 + 64 + 16 + 62) + 4 * (32 + 64);
  CHECK(costs_in(shared.folder).at(1).at("total_upload_bytes") == 4 * numbers + 2 * 8);
}
