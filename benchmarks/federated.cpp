// SPDX-License-Identifier: MIT
// The job of federated_job.py in pardl's simulator; one CSV line in the same columns.
#include <sys/resource.h>
#include <torch/torch.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "models/convnet2.hpp"
#include "pardl/data/synthetic_writers.hpp"
#include "pardl/data/transforms.hpp"
#include "pardl/fed/client_sampler.hpp"
#include "pardl/fed/evaluation.hpp"
#include "pardl/fed/runner.hpp"
#include "pardl/train/memory_format.hpp"

namespace {

namespace fed = pardl::fed;
using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Resident memory of this process and its children, MiB; what they share counts in each, as in `ps`.
double resident_mib() {
  auto const rss = [](std::filesystem::path const& process) {
    std::ifstream rollup(process / "smaps_rollup");
    for (std::string line; std::getline(rollup, line);)
      if (line.starts_with("Rss:")) return std::stod(line.substr(4)) / 1024;
    return 0.0;
  };
  auto const self = std::filesystem::path("/proc") / std::to_string(::getpid());
  double all = rss(self);
  std::ifstream children(self / "task" / std::to_string(::getpid()) / "children");
  for (int child = 0; children >> child;) all += rss(std::filesystem::path("/proc") / std::to_string(child));
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  int workers = 1;
  std::int64_t rounds = 3, clients = 100, samples = 100, sampled = 40;
  bool bf16 = false, profile = false;
  CLI::App app{"The seed's use case in pardl's simulator"};
  app.add_option("--workers", workers);
  app.add_option("--rounds", rounds);
  app.add_option("--clients", clients);
  app.add_option("--samples", samples);
  app.add_option("--sampled", sampled);
  app.add_flag("--bf16", bf16);
  app.add_flag("--inside", profile, "the one worker in this process, for a profiler");
  CLI11_PARSE(app, argc, argv);
  at::set_num_threads(1);

  auto const data = pardl::data::make_synthetic_writers(
      {.writers = clients,
       .samples = std::vector<std::int64_t>(static_cast<std::size_t>(clients), samples),
       .seed = 1});
  fed::ClientShares shares;
  for (auto& part : data.writers.partition()) shares.push_back({.train = part, .val = {}, .test = part});
  torch::manual_seed(1);
  models::ConvNet2 net;
  pardl::to_memory_format(*net, torch::MemoryFormat::ChannelsLast);
  auto const start = Clock::now();
  fed::Runner runner(net, data.samples, std::move(shares),
                     fed::LocalTraining<>({.batches = {.batch_size = 10, .unit = fed::StepUnit::epoch},
                                           .shuffle = true,
                                           .max_grad_norm = 5.0,
                                           .schedule = {},
                                           .autocast = bf16 ? std::optional(torch::kBFloat16) : std::nullopt},
                                          {.options = {.lr = 0.01}}),
                     fed::Average{}, {.workers = workers, .processes = !profile}, pardl::Normalize{{0.1307}, {0.3081}});
  std::vector<double> seconds;
  double busy = 0, peak = 0;
  std::int64_t batches = 0;
  for (std::int64_t round = 0; round < rounds; ++round) {
    auto const report = runner.train(fed::Uniform{.count = sampled});
    seconds.push_back(report.seconds);
    for (auto const& client : report.clients) {
      busy += client.seconds;
      batches += client.batches;
    }
    peak = std::max(peak, resident_mib());
  }
  auto const found = fed::summarize(runner.evaluate(fed::Part::test));
  double const wall = since(start);
  peak = std::max(peak, resident_mib());
  std::fprintf(stderr, "accuracy %.4f\n", found.accuracy);
  double steady = 0;
  auto const first = seconds.size() > 1 ? 1U : 0U;
  for (std::size_t i = first; i < seconds.size(); ++i)
    steady += seconds[i] / static_cast<double>(seconds.size() - first);
  std::printf("%s,%d,%lld,%.3f,%.3f,%.3f,%.0f\n", bf16 ? "pardl-bf16" : "pardl", workers,
              static_cast<long long>(rounds), wall, steady, busy / static_cast<double>(batches) * 1e3, peak);
}
