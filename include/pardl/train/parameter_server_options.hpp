// SPDX-License-Identifier: MIT
/// \file   The settings of ParameterServer, and what its server tells those who watch it.
/// \layer  train.
#pragma once

#include <cstdint>
#include <string>

#include "pardl/comm/on_rank_failure.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Must be equal on all ranks; that is checked.
struct ParameterServerOptions {
  int staleness = 0;                         ///< steps that a worker may be ahead of the slowest; 0: all step together
  OnRankFailure on_rank_failure = stop_all;  ///< keep_going: train on without workers that die
  int server = 0;                            ///< the rank that serves; pardl::launch can lose any but rank 0
};

/// A step of the server. on_clock: all its gradients are there and averaged, and the optimizer is about to take it.
/// on_step: the optimizer has taken it, and the workers are about to get its parameters.
struct ClockEvent {
  std::int64_t clock = 0;  ///< of this step, from 0: so many came before it
  int workers = 0;         ///< whose gradients it averages
};

/// A worker has died, or was silent for the group's timeout, and training goes on.
struct WorkerLostEvent {
  int rank = 0;            ///< in the world
  std::int64_t given = 0;  ///< gradients that it gave; they count
  int left = 0;            ///< workers that still train
  std::string sentence{};  ///< all of this and the cause, for a log
};

template <class O>
concept observes_clocks = requires(O& observer, ClockEvent const& event) { observer.on_clock(event); };
template <class O>
concept observes_steps = requires(O& observer, ClockEvent const& event) { observer.on_step(event); };
template <class O>
concept observes_lost_workers = requires(O& observer, WorkerLostEvent const& event) { observer.on_worker_lost(event); };

/// Watches a parameter server, from within serve(). Models: whatever has any of on_clock(ClockEvent const&),
/// on_step(ClockEvent const&) and on_worker_lost(WorkerLostEvent const&).
template <class O>
concept server_observer = observes_clocks<O> || observes_steps<O> || observes_lost_workers<O>;

static_assert(!server_observer<int>);

}  // namespace pardl::inline PARDL_ABI
