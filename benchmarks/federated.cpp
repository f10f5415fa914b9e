// SPDX-License-Identifier: MIT
// The job of federated_job.py in pardl's simulator; with --scaling what a second worker is worth; with --population
// what a round costs beside the training. CSV lines as of all benchmarks.
//
// The work is that of the Python sides: clients, samples and batches of federated_job.py (counted below), one local
// epoch, SGD with lr 0.01, gradients clipped to 5.0, dropout 0.5, evaluation of all clients at the end in batches of
// 10, one thread for each worker, and wall time from before the workers start. The images are others, which no time
// depends on; so are the clients drawn, all of one size. A step's time here includes all that a worker does for a
// client (weights in, sum out), there the training alone.
#include <torch/torch.h>

#include <CLI/CLI.hpp>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common.hpp"
#include "federated_population.hpp"
#include "memory.hpp"
#include "models/convnet2.hpp"
#include "pardl/data/synthetic_writers.hpp"
#include "pardl/data/transforms.hpp"
#include "pardl/fed/client_sampler.hpp"
#include "pardl/fed/evaluation.hpp"
#include "pardl/fed/runner.hpp"
#include "pardl/fed/schedule.hpp"
#include "pardl/train/memory_format.hpp"

namespace {

namespace fed = pardl::fed;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t batch_size = 10;

struct Options {
  int workers = 1, repeat = 1;
  std::int64_t rounds = 3, clients = 100, samples = 100, sampled = 40;
  double spread = 0;
  bool bf16 = false, inside = false;
};

/// What a side has before its clock runs.
struct Problem {
  explicit Problem(Options const& o)
      : made(pardl::data::make_synthetic_writers(
            {.writers = o.clients, .mean_samples = static_cast<double>(o.samples), .spread = o.spread, .seed = 1})) {
    for (auto const& part : made.writers.partition()) shares.push_back({.train = part, .val = {}, .test = part});
    torch::manual_seed(1);
    net = models::ConvNet2();
    pardl::to_memory_format(*net, torch::MemoryFormat::ChannelsLast);
  }

  pardl::data::SyntheticWriters made;
  fed::ClientShares shares;
  models::ConvNet2 net{nullptr};
};

auto start_workers(Options const& o, Problem const& problem) {
  return fed::Runner(problem.net, problem.made.samples, problem.shares,
                     fed::LocalTraining<>({.batches = {.batch_size = batch_size, .unit = fed::StepUnit::epoch},
                                           .shuffle = true,
                                           .max_grad_norm = 5.0,
                                           .schedule = {},
                                           .autocast = o.bf16 ? std::optional(torch::kBFloat16) : std::nullopt},
                                          {.options = {.lr = 0.01}}),
                     fed::Average{},
                     {.workers = o.workers, .processes = !o.inside, .evaluation_batch_size = batch_size},
                     pardl::Normalize{{0.1307}, {0.3081}});
}

/// The median of all but the first, where there are others.
double steady(std::vector<double> values) {
  if (values.size() > 1) values.erase(values.begin());
  return benchmarks::median(std::move(values));
}

void use_case(Options const& o) {
  Problem const problem(o);
  std::vector<double> rounds;
  double busy = 0;
  std::int64_t steps = 0;
  auto const start = Clock::now();
  auto runner = start_workers(o, problem);
  for (std::int64_t round = 0; round < o.rounds; ++round) {
    auto const report = runner.train(fed::Uniform{.count = o.sampled});
    rounds.push_back(report.seconds);
    for (auto const& client : report.clients) {
      busy += client.seconds;
      steps += client.batches;
    }
  }
  auto const found = fed::summarize(runner.evaluate(fed::Part::test));
  double const wall = std::chrono::duration<double>(Clock::now() - start).count();
  double const peak = benchmarks::peak_resident_mib();
  if (o.spread == 0 && (steps != o.rounds * o.sampled * ((o.samples + batch_size - 1) / batch_size) ||
                        found.samples != o.clients * o.samples))
    throw std::logic_error(std::to_string(steps) + " steps and " + std::to_string(found.samples) +
                           " samples evaluated are not the work of the other sides");
  std::string const name = o.bf16 ? "pardl-bf16" : "pardl";
  std::fprintf(stderr, "%s, %d workers: accuracy %.4f\n", name.c_str(), o.workers, found.accuracy);
  auto const line = [&](char const* figure, double value, char const* unit) {
    benchmarks::report("federated", name + figure, o.workers, value, unit, o.repeat);
  };
  line("-step", busy / static_cast<double>(steps) * 1e3, "ms");
  line("-round", steady(rounds), "s");
  line("-wall", wall, "s");
  line("-peak", peak, "MiB");
}

/// GB/s that `threads` copy at once, all together, each from and to memory that no cache holds.
double copied_gb_per_s(int threads) {
  constexpr std::size_t size = 128 << 20;
  constexpr int passes = 8;
  std::vector<std::vector<char>> from(static_cast<std::size_t>(threads), std::vector<char>(size, 1)), to = from;
  double const taken = benchmarks::seconds([&] {
    std::vector<std::jthread> all;
    for (std::size_t t = 0; t < from.size(); ++t)
      all.emplace_back([&, t] {
        for (int pass = 0; pass < passes; ++pass) {
          std::memcpy(to[t].data(), from[t].data(), size);
          std::swap(to[t], from[t]);  // or a compiler might see that all passes are one
        }
      });
  });
  return static_cast<double>(size) * passes * threads / taken / 1e9;
}

/// The share of `processes` that waits, had they trained this round's clients in the seconds seen, by three schedules:
/// longest first; clients belong to processes for good, in contiguous blocks; the same with one process for the server
/// alone, as in FederatedScope's multi-GPU runner.
std::array<double, 3> idle_shares(fed::RoundReport const& report, std::int64_t population, std::size_t processes) {
  fed::Costs costs{{}, processes, {}};
  for (auto const& client : report.clients) costs.clients.push_back(client.client);
  for (std::size_t process = 0; process < processes; ++process)
    for (auto const& client : report.clients) costs.seconds.push_back(client.seconds);
  auto const fixed = [&](fed::ServerPlace server) {
    return fed::idle_share(fed::static_split(costs.clients, population, processes, server), costs);
  };
  return {fed::idle_share(fed::longest_first(costs).queues, costs), fixed(fed::ServerPlace::beside),
          fixed(fed::ServerPlace::alone)};
}

void scaling(Options const& o) {
  Problem const problem(o);
  std::string const name = o.spread > 0 ? "lognormal" : "equal";
  auto const line = [&](std::string const& figure, std::size_t ranks, double value, char const* unit) {
    benchmarks::report("federated_scaling", figure, static_cast<int>(ranks), value, unit, o.repeat);
  };
  auto const workers = static_cast<std::size_t>(o.workers);
  std::vector<fed::RoundReport> reports;
  {
    auto runner = start_workers(o, problem);
    for (std::int64_t round = 0; round < o.rounds; ++round)
      reports.push_back(runner.train(fed::Uniform{.count = o.sampled}));
  }
  auto const over_rounds = [&](auto&& figure) {
    std::vector<double> values;
    for (auto const& report : reports) values.push_back(figure(report));
    return steady(std::move(values));
  };
  line(name + "-round", workers, over_rounds([](auto const& report) { return report.seconds; }), "s");
  if (workers > 1)
    line(name + "-idle", workers, over_rounds([](auto const& report) { return report.idle_share; }), "share");
  // One worker's seconds are those of clients that nothing disturbs: they stand for many processes, each on a GPU.
  for (std::size_t const processes : workers > 1 ? std::vector<std::size_t>{workers} : std::vector<std::size_t>{4, 8}) {
    char const* const schedules[] = {"-idle-longest-first", "-idle-contiguous", "-idle-server-alone"};
    for (std::size_t s = 0; s < std::size(schedules); ++s)
      line(name + schedules[s], processes,
           over_rounds([&](auto const& report) { return idle_shares(report, o.clients, processes)[s]; }), "share");
  }
  if (o.spread == 0) line("copy", workers, copied_gb_per_s(o.workers), "GB/s");
}

}  // namespace

int main(int argc, char** argv) try {
  Options o;
  bool population = false, scales = false;
  std::optional<std::int64_t> rounds, clients, samples, sampled;
  CLI::App app{"The use case of FederatedScope's multi-GPU page in pardl's simulator."};
  auto* const first = app.add_flag("--scaling", scales, "seconds and idle shares of its rounds alone");
  app.add_flag("--population", population, "many small clients: overhead of a round, and memory")->excludes(first);
  app.add_option("--workers", o.workers, "processes of one thread")->capture_default_str();
  app.add_option("--repeat", o.repeat, "number of this repetition, for the CSV line")->capture_default_str();
  app.add_option("--rounds", rounds, "3; 50 and one before with --population");
  app.add_option("--clients", clients, "100; 10000 and a tenth with --population");
  app.add_option("--samples", samples, "of a client: 100; 20 with --population");
  app.add_option("--sampled", sampled, "clients in a round: 40; 1000 with --population");
  app.add_option("--spread", o.spread, "deviation of the logarithm of the clients' sizes; 0: all alike");
  app.add_flag("--bf16", o.bf16, "bfloat16 where autocast has it");
  app.add_flag("--inside", o.inside, "the one worker in this process, for a profiler");
  CLI11_PARSE(app, argc, argv);

  if (population) {
    benchmarks::PopulationOptions many{.workers = o.workers, .repeat = o.repeat};
    many.rounds = rounds.value_or(many.rounds);
    many.clients = clients.value_or(many.clients);
    many.samples = samples.value_or(many.samples);
    many.sampled = sampled.value_or(many.sampled);
    benchmarks::report_population(many);
    return 0;
  }
  o.rounds = rounds.value_or(o.rounds);
  o.clients = clients.value_or(o.clients);
  o.samples = samples.value_or(o.samples);
  o.sampled = sampled.value_or(o.sampled);
  at::set_num_threads(1);
  scales ? scaling(o) : use_case(o);
  return 0;
} catch (std::exception const& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
