// SPDX-License-Identifier: MIT
/// \file   What a simulated round is told and what it tells: options of the runner, reports of rounds and clients.
/// \layer  fed.
#pragma once

#include <torch/types.h>

#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "pardl/fed/any_robust_aggregator.hpp"
#include "pardl/fed/clients.hpp"
#include "pardl/fed/flat_model.hpp"
#include "pardl/fed/screening.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// What to do about a client that cannot be trained (a loss or weights that are not finite), and about clients whose
/// worker has died a second time on them.
enum class OnFailure {
  stop,      ///< the round throws; the global weights stay those of the round before
  leave_out  ///< the round goes on without them, and its report names them
};

/// How the mean weights clients.
enum class Weighting { samples, uniform };

struct RunnerOptions {
  int workers = 1;  ///< how many clients are trained at a time
  int threads_per_worker =
      1;  ///< of LibTorch, in each worker; the numbers depend on it, so it does not follow the cores
  std::vector<torch::Device> devices{torch::kCPU};  ///< worker w computes on devices[w mod their number]
  bool processes = true;   ///< false: one worker, in this process, which then cannot survive what a client does
  std::uint64_t seed = 0;  ///< of everything that is drawn
  Sharing sharing{};       ///< which tensors travel
  Weighting weighting = Weighting::samples;
  OnFailure on_client_failure = OnFailure::stop;
  OnFailure on_worker_death = OnFailure::stop;    ///< after its clients were tried once more
  Screening screening{};                          ///< updates that fail it fail as clients
  std::optional<any_robust_aggregator> robust{};  ///< in place of the mean; all updates of a round are then held
  std::vector<std::int64_t> calibration{};        ///< samples of the data, for BufferPolicy::recalibrate
  std::vector<std::string>
      client_names{};            ///< for messages, beside the numbers; fewer than clients: the others have none
  std::size_t first_number = 0;  ///< of clients in messages: they are counted from 0 everywhere else
  std::chrono::milliseconds worker_timeout{0};  ///< a worker that is at one client for longer is killed; 0: never
  std::int64_t evaluation_batch_size = 250;     ///< samples of one client per forward
  std::function<void(std::int64_t done, std::int64_t all)>
      on_clients{};  ///< told of clients done, a few times a second

  /// "client 3", or "client 3 (its name)".
  [[nodiscard]] std::string name_of(std::int64_t client) const {
    return detail::client_text(static_cast<std::size_t>(client), client_names, first_number);
  }
  /// Whether each update is looked at before it counts, beyond what a mean itself refuses.
  [[nodiscard]] bool looks_at_norms() const {
    return robust || std::isfinite(screening.most_norm) || std::isfinite(screening.most_medians);
  }
};

/// One client in one round.
struct ClientReport {
  std::int64_t client = 0;
  int worker = 0;
  std::int64_t samples = 0, batches = 0;  ///< processed
  std::int64_t correct = 0, answers = 0;  ///< right answers while it trained, of so many
  double loss = 0;                        ///< sum over samples while it trained
  double seconds = 0;
  std::optional<double> norm{};  ///< of its change, where updates are screened or a robust rule sees them
  std::string failure;           ///< why it was left out; empty: it counts
};

/// One round.
struct RoundReport {
  std::int64_t round = 0;             ///< from 0
  std::vector<ClientReport> clients;  ///< by ascending id
  double seconds = 0;                 ///< all of it
  double idle_share = 0;              ///< of the workers' time while clients trained
  std::vector<std::string> warnings;  ///< what was mended on the way, a sentence each
};

/// What one client's samples say of a model.
struct ClientEvaluation {
  std::int64_t client = 0;
  std::int64_t samples = 0, correct = 0, answers = 0;
  double loss = 0;  ///< sum over samples
};

/// Which of a client's samples.
enum class Part { train, val, test };

/// Which model is evaluated on a client's samples.
enum class View {
  personal,  ///< the global one with what the client keeps: its own parameters and buffers, Ditto's own model
  global     ///< the global one as a client gets it that was never trained
};

}  // namespace pardl::inline PARDL_ABI::fed
