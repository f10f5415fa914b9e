// SPDX-License-Identifier: MIT
/// \file   Which worker trains which client, and when: costs learned per worker, longest client first.
/// \layer  fed (std only).
///
/// A round lasts as long as its last worker. Clients differ in size and workers in speed, so a split that is fixed
/// beforehand leaves most workers waiting: with 100 clients of equal size, 40 of them sampled and 7 workers that each
/// own a contiguous share, the fullest worker has 8.3 clients on average where 5.7 would do. Here every client may go
/// to every worker; the longest are given out first, each to the worker that would have it done first.
///
/// A schedule decides when a client is trained and never what comes out: draws are keyed by client and updates are
/// summed independently of order, so the costs may be learned from clocks.
/// \paper Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17(2), 1969; Gonzalez, Ibarra,
/// Sahni, "Bounds for LPT schedules on uniform processors", SIAM J. Comput. 6(1), 1977.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// What a client costs on a worker: base + per sample.
struct CostLine {
  double base_seconds = 0;        ///< per client, whatever its size (loading the weights, first batches)
  double seconds_per_sample = 1;  ///< counting a sample once per epoch

  [[nodiscard]] constexpr double seconds(double samples) const noexcept {
    return base_seconds + seconds_per_sample * samples;
  }
};

struct CostModelOptions {
  double memory =
      0.98;  ///< weight of an observation once the same worker has made the next one, in (0, 1]; 1 = never forget
};

/// Learns a CostLine per worker from what it was seen to take: least squares over its observations, each weighted by
/// `memory` to the power of how many came after it. Neither coefficient goes below zero; while all clients seen had one
/// size, cost is taken as proportional to size. A worker that was not seen is taken as the average of those that were;
/// before anything was seen all are equal and a sample costs 1, so that the first round is balanced by samples.
/// One thread at a time. \cost five doubles per worker; no allocation after construction.
class CostModel {
 public:
  /// \throws ConfigError for no workers, or a memory outside (0, 1].
  explicit CostModel(std::size_t workers, CostModelOptions options = {}) : options_(options), sums_(workers) {
    if (workers == 0) throw ConfigError(sentence("fed", "a cost model for no workers", "give at least 1 worker"));
    if (!(options.memory > 0 && options.memory <= 1))
      throw ConfigError(sentence("fed", "a cost model with memory " + std::to_string(options.memory),
                                 "memory lies above 0 and at most at 1, where nothing is forgotten"));
  }

  [[nodiscard]] std::size_t workers() const noexcept { return sums_.size(); }

  /// `worker` took `seconds` for a client of `samples`.
  /// \throws ConfigError for a worker that does not exist and for numbers below zero or not finite.
  void observe(std::size_t worker, double samples, double seconds) {
    check_worker(worker);
    if (!(samples >= 0 && seconds >= 0) || !std::isfinite(samples) || !std::isfinite(seconds))
      throw ConfigError(sentence("fed",
                                 "a client of " + std::to_string(samples) + " samples that took " +
                                     std::to_string(seconds) + " s on worker " + std::to_string(worker),
                                 "observe finite numbers that are not negative"));
    Sums& sums = sums_[worker];
    for (double& sum : sums) sum *= options_.memory;
    sums[count] += 1;
    sums[x] += samples;
    sums[xx] += samples * samples;
    sums[y] += seconds;
    sums[xy] += samples * seconds;
  }

  /// What is believed of a worker. \throws ConfigError for a worker that does not exist.
  [[nodiscard]] CostLine line(std::size_t worker) const {
    check_worker(worker);
    if (seen(sums_[worker])) return fit(sums_[worker]);
    Sums all{};
    for (Sums const& sums : sums_)
      for (std::size_t i = 0; i < all.size(); ++i) all[i] += sums[i];
    return seen(all) ? fit(all) : CostLine{};
  }

  /// What a client of `samples` will take on `worker`, in seconds (in samples before anything was seen).
  [[nodiscard]] double seconds(std::size_t worker, double samples) const { return line(worker).seconds(samples); }

  /// Appends the whole state as numbers, for a checkpoint.
  void save(std::vector<double>& into) const {
    into.push_back(static_cast<double>(workers()));
    for (Sums const& sums : sums_) into.insert(into.end(), sums.begin(), sums.end());
  }

  /// Takes back what save() appended and moves `from` behind it. A job that goes on with another number of workers
  /// keeps what was learned of those that still exist; new ones start as the average. \throws CheckpointError if `from`
  /// does not begin with a saved cost model; then nothing changes.
  void restore(std::span<double const>& from) {
    auto const broken = [] {
      return CheckpointError(sentence("fed", "the numbers to restore are not those of a cost model",
                                      "restore in the order of saving, from a checkpoint of this version"));
    };
    if (from.empty() || !(from[0] >= 1 && from[0] <= 1e9) || from[0] != std::floor(from[0])) throw broken();
    auto const saved = static_cast<std::size_t>(from[0]);
    if (from.size() - 1 < saved * Sums{}.size()) throw broken();
    auto const numbers = from.subspan(1, saved * Sums{}.size());
    for (double const number : numbers)
      if (!(number >= 0) || !std::isfinite(number)) throw broken();
    for (std::size_t worker = 0; worker < workers(); ++worker) {
      sums_[worker] = {};
      if (worker < saved) std::copy_n(numbers.data() + worker * Sums{}.size(), Sums{}.size(), sums_[worker].begin());
    }
    from = from.subspan(1 + numbers.size());
  }

 private:
  enum : std::size_t { count, x, xx, y, xy };
  using Sums = std::array<double, 5>;  // weighted sums of 1, samples, samples², seconds, samples * seconds

  static bool seen(Sums const& sums) noexcept { return sums[count] > 0; }

  static CostLine fit(Sums const& sums) noexcept {
    double const spread = sums[count] * sums[xx] - sums[x] * sums[x];
    if (spread <= 1e-9 * sums[count] * sums[xx])  // one size only, up to rounding
      return sums[x] > 0 ? CostLine{0, sums[y] / sums[x]} : CostLine{sums[y] / sums[count], 0};
    double const slope = (sums[count] * sums[xy] - sums[x] * sums[y]) / spread;
    double const base = (sums[y] - slope * sums[x]) / sums[count];
    if (slope < 0) return {sums[y] / sums[count], 0};
    if (base < 0) return {0, sums[xy] / sums[xx]};
    return {base, slope};
  }

  void check_worker(std::size_t worker) const {
    if (worker >= workers())
      throw ConfigError(sentence(
          "fed", "worker " + std::to_string(worker) + " of " + std::to_string(workers()) + " in the cost model",
          "workers are numbered from 0"));
  }

  CostModelOptions options_;
  std::vector<Sums> sums_;
};

/// What each client of a round costs on each worker.
struct Costs {
  std::vector<std::int64_t> clients;  ///< their ids, each once, in any order
  std::size_t workers = 1;            ///< how many
  std::vector<double> seconds;        ///< [workers x clients], the clients of one worker side by side

  [[nodiscard]] double operator()(std::size_t worker, std::size_t position) const {
    return seconds[worker * clients.size() + position];
  }
};

/// The costs that a model predicts for clients of these sizes. \throws ConfigError unless there is one size per client.
[[nodiscard]] inline Costs predict(CostModel const& model, std::span<std::int64_t const> clients,
                                   std::span<std::int64_t const> samples) {
  if (clients.size() != samples.size())
    throw ConfigError(sentence("fed",
                               std::to_string(clients.size()) + " clients with " + std::to_string(samples.size()) +
                                   " sample counts to schedule",
                               "give one count per client"));
  Costs costs{{clients.begin(), clients.end()}, model.workers(), {}};
  costs.seconds.reserve(model.workers() * clients.size());
  for (std::size_t worker = 0; worker < model.workers(); ++worker) {
    CostLine const line = model.line(worker);
    for (std::int64_t const n : samples) costs.seconds.push_back(line.seconds(static_cast<double>(n)));
  }
  return costs;
}

/// For each worker the ids of its clients, in the order in which it trains them.
using Queues = std::vector<std::vector<std::int64_t>>;

struct Schedule {
  Queues queues;                       ///< one per worker
  std::vector<double> finish_seconds;  ///< predicted, one per worker

  /// When the last worker is done.
  [[nodiscard]] double makespan() const { return *std::max_element(finish_seconds.begin(), finish_seconds.end()); }
};

namespace detail {

/// \throws ConfigError for a table that cannot be one.
inline void check_costs(Costs const& costs) {
  if (costs.workers == 0) throw ConfigError(sentence("fed", "a schedule for no workers", "give at least 1 worker"));
  if (costs.seconds.size() != costs.workers * costs.clients.size())
    throw ConfigError(sentence("fed",
                               "a cost table of " + std::to_string(costs.seconds.size()) + " numbers for " +
                                   std::to_string(costs.workers) + " workers and " +
                                   std::to_string(costs.clients.size()) + " clients",
                               "give one number per worker and client"));
  for (double const seconds : costs.seconds)
    if (!(seconds >= 0) || !std::isfinite(seconds))
      throw ConfigError(sentence("fed", "a client that costs " + std::to_string(seconds) + " seconds",
                                 "costs are finite and not negative"));
}

/// Positions in `clients`, by ascending id. \throws ConfigError where an id stands twice.
[[nodiscard]] inline std::vector<std::size_t> positions_by_id(std::span<std::int64_t const> clients) {
  std::vector<std::size_t> order(clients.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return clients[a] < clients[b]; });
  for (std::size_t i = 1; i < order.size(); ++i)
    if (clients[order[i]] == clients[order[i - 1]])
      throw ConfigError(sentence("fed", "client " + std::to_string(clients[order[i]]) + " twice in one round",
                                 "a client trains once per round"));
  return order;
}

/// How long each worker is busy with its queue. \throws ConfigError for queues that do not belong to the costs.
[[nodiscard]] inline std::vector<double> busy_seconds(Queues const& queues, Costs const& costs) {
  check_costs(costs);
  if (queues.size() != costs.workers)
    throw ConfigError(sentence(
        "fed", std::to_string(queues.size()) + " queues beside costs for " + std::to_string(costs.workers) + " workers",
        "give one queue per worker, empty where it idles"));
  auto const by_id = positions_by_id(costs.clients);
  std::vector<double> busy(queues.size());
  for (std::size_t worker = 0; worker < queues.size(); ++worker)
    for (std::int64_t const client : queues[worker]) {
      auto const at = std::lower_bound(by_id.begin(), by_id.end(), client, [&](std::size_t position, std::int64_t id) {
        return costs.clients[position] < id;
      });
      if (at == by_id.end() || costs.clients[*at] != client)
        throw ConfigError(sentence("fed", "client " + std::to_string(client) + " is queued but has no cost",
                                   "schedule the clients of the cost table"));
      busy[worker] += costs(worker, *at);
    }
  return busy;
}

}  // namespace detail

/// Longest processing time first: clients by descending cost (the mean over workers; equal ones by ascending id), each
/// to the worker that would finish it first (the lowest of equal ones). The same for any order of `costs.clients`. With
/// equal workers the round takes at most 4/3 - 1/(3 workers) of the shortest possible (Graham), with workers of
/// different speed at most 2 - 2/(workers + 1) (Gonzalez et al.).
/// \throws ConfigError for a table of the wrong size, a cost that is negative or not finite, a client that stands
/// twice. \cost clients * (log clients + workers).
[[nodiscard]] inline Schedule longest_first(Costs const& costs) {
  detail::check_costs(costs);
  std::vector<std::size_t> order = detail::positions_by_id(costs.clients);
  std::vector<double> total(costs.clients.size());
  for (std::size_t worker = 0; worker < costs.workers; ++worker)
    for (std::size_t position = 0; position < total.size(); ++position) total[position] += costs(worker, position);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return total[a] > total[b]; });

  Schedule schedule{Queues(costs.workers), std::vector<double>(costs.workers)};
  for (std::size_t const position : order) {
    std::size_t first = 0;
    for (std::size_t worker = 1; worker < costs.workers; ++worker)
      if (schedule.finish_seconds[worker] + costs(worker, position) <
          schedule.finish_seconds[first] + costs(first, position))
        first = worker;
    schedule.queues[first].push_back(costs.clients[position]);
    schedule.finish_seconds[first] += costs(first, position);
  }
  return schedule;
}

/// Where the server's own work is done in a static split.
enum class ServerPlace {
  alone,  ///< process 0 does nothing else: FederatedScope's multi-GPU runner, whose first GPU idles while clients train
  beside  ///< on a worker: all processes train
};

/// The comparison: every client of the population 0 … population-1 belongs to one process for good, in contiguous
/// blocks, and the sampled ones are trained where they belong. With the server alone the blocks are FederatedScope's
/// (population / (processes - 1) each, the remainder to the last: 100 clients and 8 processes make 14 six times and
/// 16); beside, they are as even as can be (the first take one more). \param sampled  ids of the round; they keep their
/// order \throws ConfigError for no processes, a server alone without another process, or a client outside the
/// population.
[[nodiscard]] inline Queues static_split(std::span<std::int64_t const> sampled, std::int64_t population,
                                         std::size_t processes, ServerPlace server) {
  bool const alone = server == ServerPlace::alone;
  if (processes < (alone ? 2U : 1U))
    throw ConfigError(sentence("fed", "a static split over " + std::to_string(processes) + " processes",
                               alone ? "a server that stands alone needs 2 or more" : "give at least 1"));
  auto const workers = static_cast<std::int64_t>(processes) - (alone ? 1 : 0);
  std::int64_t const share = population / workers;
  std::int64_t const rest = population % workers;
  auto const owner = [&](std::int64_t client) {
    if (alone) return 1 + (share == 0 ? workers - 1 : std::min(client / share, workers - 1));
    std::int64_t const in_larger = rest * (share + 1);  // clients in the blocks that take one more
    return client < in_larger ? client / (share + 1) : rest + (client - in_larger) / share;
  };
  Queues queues(processes);
  for (std::int64_t const client : sampled) {
    if (client < 0 || client >= population)
      throw ConfigError(
          sentence("fed", "client " + std::to_string(client) + " of a population of " + std::to_string(population),
                   "clients are numbered from 0"));
    queues[static_cast<std::size_t>(owner(client))].push_back(client);
  }
  return queues;
}

/// When the last worker is done, in seconds. \throws ConfigError for queues that do not belong to the costs.
[[nodiscard]] inline double makespan(Queues const& queues, Costs const& costs) {
  auto const busy = detail::busy_seconds(queues, costs);
  return *std::max_element(busy.begin(), busy.end());
}

/// The share of all workers' time that is spent waiting for the last: 1 - busy / (workers * makespan), in [0, 1); 0 for
/// a round without work. \throws ConfigError for queues that do not belong to the costs.
[[nodiscard]] inline double idle_share(Queues const& queues, Costs const& costs) {
  auto const busy = detail::busy_seconds(queues, costs);
  double const longest = *std::max_element(busy.begin(), busy.end());
  if (!(longest > 0)) return 0;
  return 1 - std::accumulate(busy.begin(), busy.end(), 0.0) / (static_cast<double>(busy.size()) * longest);
}

}  // namespace pardl::inline PARDL_ABI::fed
