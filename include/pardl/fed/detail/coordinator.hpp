// SPDX-License-Identifier: MIT
/// \file   The coordinator's side of a round: queue the clients, watch the workers, mend or give up, finish.
/// \layer  fed, private.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "pardl/fed/clients.hpp"
#include "pardl/fed/detail/robust_round.hpp"
#include "pardl/fed/detail/round_memory.hpp"
#include "pardl/fed/detail/worker_pool.hpp"
#include "pardl/fed/fixed_point_sum.hpp"
#include "pardl/fed/round.hpp"
#include "pardl/fed/schedule.hpp"
#include "pardl/fed/screening.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// Whether this process has opened a GPU of NVIDIA's; \returns false also where /proc cannot be read.
inline bool uses_gpus() {
  std::error_code error;
  for (auto const& file : std::filesystem::directory_iterator("/proc/self/fd", error)) {
    auto const target = std::filesystem::read_symlink(file.path(), error);
    if (!error && target.native().starts_with("/dev/nvidia")) return true;
  }
  return false;
}

/// \throws ConfigError for options that cannot be right.
inline void check(RunnerOptions const& options) {
  auto const require = [](bool fine, std::string const& what, char const* remedy) {
    if (!fine) throw ConfigError(sentence("fed", what, remedy));
  };
  require(options.workers >= 1, std::to_string(options.workers) + " workers", "give 1 or more");
  require(options.processes || options.workers == 1,
          std::to_string(options.workers) + " workers without processes of their own",
          "LibTorch has one default generator a process, so threads would draw each other's numbers; let processes be "
          "true");
  require(options.threads_per_worker >= 1, std::to_string(options.threads_per_worker) + " threads per worker",
          "give 1 or more");
  require(!options.devices.empty(), "no device to compute on", "give torch::kCPU, or a GPU each worker may use");
  bool const on_gpu = std::ranges::any_of(options.devices, [](torch::Device device) { return !device.is_cpu(); });
  require(!options.processes || !on_gpu || !uses_gpus(), "workers on a GPU that this process uses already",
          "CUDA does not survive the fork that makes a worker: make the runner before anything touches a GPU "
          "(torch::manual_seed and torch::cuda::is_available do), or let processes be false");
  require(options.evaluation_batch_size >= 1,
          "an evaluation batch size of " + std::to_string(options.evaluation_batch_size), "give 1 or more");
  require(options.worker_timeout.count() >= 0, "a negative worker timeout", "0 waits for ever");
  options.screening.check();
  require(std::isinf(options.screening.most_medians) || options.robust,
          "updates screened for medians of a round's norms, which are known when all updates are there, over a mean "
          "that takes them one at a time",
          "choose a robust rule too: NormBounding without a bound is the mean");
  bool const calibrates = options.sharing.buffers == BufferPolicy::recalibrate;
  require(calibrates != options.calibration.empty(),
          calibrates ? "buffers to be recalibrated on no samples" : "samples for a calibration that nothing asks for",
          "BufferPolicy::recalibrate and RunnerOptions::calibration go together");
}

/// \throws ConfigError for no clients; DataError for one without training samples, or with a sample that is not there.
inline void check(ClientShares const& shares, std::int64_t samples) {
  if (shares.empty()) throw ConfigError(sentence("fed", "a federation of no clients", "give at least one"));
  for (std::size_t client = 0; client < shares.size(); ++client) {
    auto const& [train, val, test] = shares[client];
    if (train.empty())
      throw DataError(sentence("fed", "client " + std::to_string(client) + " has no training samples",
                               "leave it out, or give it samples"));
    for (auto const* part : {&train, &val, &test})
      for (std::int64_t const index : *part)
        if (index < 0 || index >= samples)
          throw DataError(sentence("fed",
                                   "client " + std::to_string(client) + " has sample " + std::to_string(index) +
                                       " of a dataset of " + std::to_string(samples),
                                   "make the partition from this dataset"));
  }
}

/// Sorts the ids of a round. \throws ConfigError for ids that stand twice or are not there.
inline void check(std::vector<std::int64_t>& clients, std::size_t all) {
  std::ranges::sort(clients);
  if (!clients.empty() && (clients.front() < 0 || clients.back() >= static_cast<std::int64_t>(all)))
    throw ConfigError(sentence("fed",
                               "client " + std::to_string(clients.front() < 0 ? clients.front() : clients.back()) +
                                   " of a federation of " + std::to_string(all),
                               "clients are numbered from 0"));
  if (auto const twice = std::ranges::adjacent_find(clients); twice != clients.end())
    throw ConfigError(
        sentence("fed", "client " + std::to_string(*twice) + " stands twice in a round", "name each client once"));
}

class Coordinator {
 public:
  Coordinator(RoundMemory& memory, RunnerOptions const& options, std::function<void(int, Phase)> serve)
      : memory_(memory),
        options_(options),
        training_costs_(static_cast<std::size_t>(options.workers)),
        evaluation_costs_(static_cast<std::size_t>(options.workers)),
        pool_(options.workers, !options.processes, [serve = std::move(serve)](int which, WorkerPool::Command command) {
          serve(which, static_cast<Phase>(command));
        }) {}

  /// A round that ends early, for whatever reason, leaves nothing in the sums: no worker is at work any more then.
  /// \param clients  ascending; \param samples  that each will process
  RoundReport train(std::int64_t round, std::vector<std::int64_t> clients, std::vector<std::int64_t> samples) try {
    check_whole();
    if (clients.empty()) return {.round = round, .clients = {}, .seconds = 0, .idle_share = 0, .warnings = {}};
    auto const start = std::chrono::steady_clock::now();
    auto& desk = memory_.desk();
    desk.round = round;
    double most = 0;
    for (std::int64_t const n : samples)
      most += options_.weighting == Weighting::uniform ? 1.0 : static_cast<double>(n);
    desk.most_weight = most;
    RoundReport report;
    report.round = round;
    desk.number_units = memory_.number_scale(static_cast<std::int64_t>(clients.size())).units(1);
    run_tasks(Phase::train, clients, samples, training_costs_, report.warnings);
    auto const trained = std::chrono::steady_clock::now();
    screen_together();
    read(report, std::chrono::duration<double>(trained - start).count());
    double stretch = 0, weight = 0;
    desk.total_units = 0;
    for (std::size_t task = 0; task < clients.size(); ++task)  // by client: one order, whatever the workers' was
      if (auto const& outcome = memory_.outcomes[task]; outcome.state == TaskState::done) {
        desk.total_units += outcome.units;
        stretch += outcome.weight * (outcome.stretch - 1);
        weight += outcome.weight;
      }
    desk.stretch = stretch == 0 ? 1 : 1 + stretch / weight;
    auto const failed = std::ranges::find_if(report.clients, [&](auto const& client) {
      return !client.failure.empty() &&
             !memory_.outcomes[static_cast<std::size_t>(&client - report.clients.data())].left_out;
    });
    bool const nobody = !(desk.total_units > 0);
    if (failed == report.clients.end() && nobody)
      throw Error(sentence("fed", "round " + std::to_string(round) + ": no client of this round is left",
                           "look at why they were left out"));
    if (failed != report.clients.end() && (nobody || options_.on_client_failure == OnFailure::stop))
      throw Error(sentence(
          "fed",
          "round " + std::to_string(round) + ": " + options_.name_of(failed->client) + " failed: " + failed->failure,
          nobody ? "no client of this round is left" : "mend it, or choose that clients which fail are left out"));
    survey();
    finish(Phase::finish);
    if (options_.sharing.buffers == BufferPolicy::recalibrate) finish(Phase::recalibrate);
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report;
  } catch (...) {
    forget_sums();
    throw;
  }

  std::vector<ClientEvaluation> evaluate(Phase phase, View view, std::int64_t round, std::vector<std::int64_t> clients,
                                         std::vector<std::int64_t> samples) {
    check_whole();
    std::vector<ClientEvaluation> found;
    if (clients.empty()) return found;
    memory_.desk().round = round;
    memory_.desk().personal = view == View::personal;
    std::vector<std::string> warnings;
    run_tasks(phase, clients, samples, evaluation_costs_, warnings);
    for (std::size_t task = 0; task < clients.size(); ++task) {
      auto const& outcome = memory_.outcomes[task];
      if (outcome.state != TaskState::done)
        throw Error(sentence("fed",
                             "evaluation after " + std::to_string(round) +
                                 " rounds: " + options_.name_of(outcome.client) + " failed: " + outcome.message,
                             "mend its samples, or leave it out"));
      found.push_back({outcome.client, outcome.samples, outcome.correct, outcome.answers, outcome.loss});
    }
    return found;
  }

  /// \throws Error where a round was cut short while it made the global model.
  void check_whole() const {
    if (broken_)
      throw Error(sentence("fed", "the global model is half made: a round was cut short while it made it",
                           "load a checkpoint, or make the Runner anew"));
  }
  /// After a checkpoint was loaded.
  void mended() {
    pool_.revive();
    broken_ = false;
  }

  /// What training costs each worker, as numbers for a checkpoint.
  [[nodiscard]] CostModel& training_costs() noexcept { return training_costs_; }
  [[nodiscard]] CostModel const& training_costs() const noexcept { return training_costs_; }

 private:
  using Deaths = std::vector<WorkerPool::Event>;

  /// The second look (screening.hpp), at all norms of a round.
  void screen_together() {
    if (std::isinf(options_.screening.most_medians)) return;
    std::vector<double> norms;
    std::vector<std::size_t> tasks;
    for (std::size_t task = 0; task < static_cast<std::size_t>(memory_.desk().tasks); ++task)
      if (memory_.outcomes[task].state == TaskState::done) {
        norms.push_back(memory_.outcomes[task].norm);
        tasks.push_back(task);
      }
    auto const reasons = screen_norms(norms, options_.screening);
    for (std::size_t i = 0; i < tasks.size(); ++i)
      if (reasons[i]) memory_.outcomes[tasks[i]].fail("its update is screened out: " + *reasons[i]);
  }

  /// All passes of a robust rule.
  void survey() {
    memory_.desk().passes = 0;
    if (!options_.robust) return;
    RobustRound round(*options_.robust, memory_);
    while (!round.ready()) {
      finish(Phase::survey);
      round.decide();
      memory_.desk().passes = round.passes();
    }
  }

  /// A phase that makes the global model. One that is cut short leaves it half made: from then on nothing is done with
  /// it until a checkpoint is loaded. \throws Error where a worker dies over it.
  void finish(Phase phase) {
    if (phase != Phase::recalibrate) pool_.revive();  // what those that died waiting had summed up is there
    broken_ = phase != Phase::survey;
    auto const deaths = run(phase);
    if (deaths.empty()) {
      broken_ = false;
      return;
    }
    throw Error(sentence("fed",
                         "round " + std::to_string(memory_.desk().round) + ": worker " +
                             std::to_string(deaths.front().worker) + " " + deaths.front().death +
                             " while it made the global model",
                         "go on from the last checkpoint"));
  }

  /// Lets all workers do it; returns those that died over it. Where that is cut short (on_clients throws, or there is
  /// no process for a new worker), none of them works on.
  Deaths run(Phase phase) {
    try {
      return run_all(phase);
    } catch (...) {
      pool_.interrupt();
      throw;
    }
  }
  Deaths run_all(Phase phase) {
    if (phase < Phase::survey) pool_.revive();
    for (int worker = 0; worker < pool_.size(); ++worker) pool_.send(worker, static_cast<WorkerPool::Command>(phase));
    struct Sign {
      std::int64_t at;
      std::chrono::steady_clock::time_point since;
    };
    std::vector<Sign> signs(static_cast<std::size_t>(pool_.size()), Sign{-1, std::chrono::steady_clock::now()});
    auto const look = [&] {
      if (options_.on_clients && phase < Phase::survey) options_.on_clients(done(), memory_.desk().tasks);
      if (options_.worker_timeout.count() == 0 || phase >= Phase::survey) return;
      auto const now = std::chrono::steady_clock::now();
      for (int worker = 0; worker < pool_.size(); ++worker) {
        auto& sign = signs[static_cast<std::size_t>(worker)];
        auto const at = memory_.current[static_cast<std::size_t>(worker)].load();
        if (at != sign.at || !pool_.busy(worker)) sign = {at, now};
        if (now - sign.since > options_.worker_timeout)
          pool_.kill(worker, "gave no sign for " + std::to_string(options_.worker_timeout.count()) + " ms");
      }
    };
    bool const looks = options_.on_clients || options_.worker_timeout.count() > 0;
    Deaths deaths;
    for (int pending = pool_.size(); pending > 0; --pending)
      if (auto event = pool_.wait(looks ? std::function<void()>(look) : nullptr); !event.death.empty())
        deaths.push_back(std::move(event));
    for (auto const& event : deaths) pool_.start(event.worker);
    return deaths;
  }

  /// Trains or evaluates all of `clients`. What a dead worker had done and begun is done once more by the others, since
  /// its sums may be half written; a client at which a worker dies twice fails.
  void run_tasks(Phase phase, std::vector<std::int64_t> const& clients, std::vector<std::int64_t> const& samples,
                 CostModel& costs, std::vector<std::string>& warnings) {
    memory_.desk().tasks = static_cast<std::int64_t>(clients.size());
    std::vector<std::uint32_t> tasks(clients.size());
    std::iota(tasks.begin(), tasks.end(), 0U);
    for (auto const task : tasks) open(task, clients[task]);
    std::vector<std::int64_t> suspects;  // clients at which a worker has died once; -1: at none
    while (!tasks.empty()) {
      queue(tasks, samples, costs);
      auto const deaths = run(phase);
      if (deaths.empty()) break;
      std::string story;
      auto const suspected = suspects;
      for (auto const& [worker, death] : deaths) {
        auto const client = memory_.current[static_cast<std::size_t>(worker)].exchange(0) - 1;
        auto const how = "worker " + std::to_string(worker) + " " + death +
                         (client >= 0 ? " at " + options_.name_of(client) : std::string());
        story += (story.empty() ? "" : ", ") + how;
        clear(worker);
        if (std::ranges::find(suspected, client) == suspected.end()) {
          suspects.push_back(client);
          continue;
        }
        if (phase != Phase::train || client < 0 || options_.on_worker_death == OnFailure::stop)
          throw Error(
              sentence("fed", how + ", for the second time in this round",
                       "look into that client, give workers more memory, or choose that such a client is left out"));
        auto const task = std::ranges::find(clients, client) - clients.begin();
        auto& outcome = memory_.outcomes[static_cast<std::size_t>(task)];
        outcome.fail(how + ", for the second time in this round");
        outcome.left_out = true;
      }
      tasks.clear();
      for (std::uint32_t task = 0; task < clients.size(); ++task) {
        auto const& outcome = memory_.outcomes[task];
        bool const lost =
            std::ranges::any_of(deaths, [&](auto const& event) { return event.worker == outcome.worker; });
        if (outcome.state == TaskState::open || (lost && outcome.state == TaskState::done)) tasks.push_back(task);
      }
      for (auto const task : tasks) open(task, clients[task]);
      if (!tasks.empty())
        warnings.push_back(
            sentence("fed", story, "its " + std::to_string(tasks.size()) + " clients are done once more"));
    }
    for (std::size_t task = 0; task < clients.size(); ++task)
      if (auto const& outcome = memory_.outcomes[task]; outcome.state == TaskState::done)
        costs.observe(static_cast<std::size_t>(outcome.worker), static_cast<double>(samples[task]), outcome.seconds);
  }

  /// Tasks that are over.
  [[nodiscard]] std::int64_t done() const {
    std::int64_t count = 0;
    for (std::int64_t task = 0; task < memory_.desk().tasks; ++task)
      count += memory_.outcomes[static_cast<std::size_t>(task)].state == TaskState::open ? 0 : 1;
    return count;
  }

  void open(std::uint32_t task, std::int64_t client) {
    auto& outcome = memory_.outcomes[task];
    outcome.client = client;
    outcome.worker = -1;
    outcome.samples = outcome.batches = outcome.correct = outcome.answers = 0;
    outcome.weight = outcome.units = outcome.loss = outcome.seconds = outcome.norm = 0;
    outcome.stretch = 1;
    outcome.left_out = false;
    outcome.message[0] = 0;
    outcome.state = TaskState::open;
  }

  /// Longest first, by what the workers were seen to take.
  void queue(std::vector<std::uint32_t> const& tasks, std::vector<std::int64_t> const& samples,
             CostModel const& costs) {
    std::vector<std::int64_t> numbers(tasks.begin(), tasks.end()), sizes;
    for (auto const task : tasks) sizes.push_back(samples[task]);
    auto const schedule = longest_first(predict(costs, numbers, sizes));
    std::vector<std::uint32_t> queue;
    for (std::size_t worker = 0; worker < schedule.queues.size(); ++worker) {
      queue.assign(schedule.queues[worker].begin(), schedule.queues[worker].end());
      memory_.queues.fill(worker, queue);
    }
  }

  void clear(int worker) {
    auto const& sizes = memory_.sizes();
    auto const w = static_cast<std::size_t>(worker);
    std::ranges::fill(memory_.sums.span(w * sizes.shared, sizes.shared), 0);
    std::ranges::fill(memory_.number_sums.span(w * sizes.server_numbers, sizes.server_numbers), 0);
    std::ranges::fill(memory_.most_integers.span(w * sizes.integers, sizes.integers), RoundMemory::nothing);
  }
  void forget_sums() {
    for (int worker = 0; worker < pool_.size(); ++worker) clear(worker);
  }

  void read(RoundReport& report, double seconds) const {
    double busy = 0;
    for (std::int64_t task = 0; task < memory_.desk().tasks; ++task) {
      auto const& outcome = memory_.outcomes[static_cast<std::size_t>(task)];
      busy += outcome.seconds;
      report.clients.push_back({.client = outcome.client,
                                .worker = outcome.worker,
                                .samples = outcome.samples,
                                .batches = outcome.batches,
                                .correct = outcome.correct,
                                .answers = outcome.answers,
                                .loss = outcome.loss,
                                .seconds = outcome.seconds,
                                .norm = options_.looks_at_norms() ? std::optional(outcome.norm) : std::nullopt,
                                .failure = outcome.state == TaskState::done ? "" : outcome.message});
    }
    report.idle_share = std::max(0.0, 1 - busy / (seconds * options_.workers));
  }

  RoundMemory& memory_;
  RunnerOptions const& options_;
  CostModel training_costs_, evaluation_costs_;
  bool broken_ = false;
  WorkerPool pool_;
};

}  // namespace pardl::inline PARDL_ABI::fed::detail
