// SPDX-License-Identifier: MIT
/// \file   Who is how far under a parameter server: whose gradients make a step, and who may run ahead of whom.
/// \layer  policy (std only).
///
/// A worker's clock is the number of gradients it has given. The server takes its step number v, which leads from
/// version v of the parameters to v + 1, once it has the gradient number v of every worker that still trains. A worker
/// may begin its step number c with any version from c - staleness on. So
///   - staleness 0 is synchronous training: each step waits for all, and uses the version just made;
///   - a worker is never more than `staleness` steps ahead of the slowest that still trains;
///   - the order in which gradients come decides which version a worker reads, and nothing else.
/// Workers that finish, or are lost, are waited for no longer; what they gave is used.
/// \source Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server", NIPS 2013: its
/// bound. There the server adds an update as it comes, so that a worker always reads its own; here all updates of a
/// clock are one step of the optimizer, so momentum and schedules mean what they mean in synchronous training.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

class WorkerClocks {
 public:
  /// \throws ConfigError unless workers >= 1 and staleness >= 0.
  constexpr WorkerClocks(int workers, int staleness) : staleness_(staleness) {
    if (workers < 1)
      throw ConfigError(sentence("policy", std::to_string(workers) + " workers", "a parameter server needs one"));
    if (staleness < 0)
      throw ConfigError(sentence("policy", "staleness " + std::to_string(staleness),
                                 "give the steps that a worker may be ahead, from 0"));
    workers_.resize(static_cast<std::size_t>(workers));
  }

  /// The worker's next gradient has come. \returns the clock that it belongs to.
  constexpr std::int64_t give(int worker) { return at(worker).given++; }
  /// The worker has no more data. Harmless if it was lost.
  constexpr void finish(int worker) { at(worker).trains = false; }
  /// The worker has died.
  constexpr void lose(int worker) { at(worker).trains = false; }

  /// Steps that the server has taken.
  [[nodiscard]] constexpr std::int64_t version() const noexcept { return version_; }
  /// Gradients that this worker has given.
  [[nodiscard]] constexpr std::int64_t given(int worker) const { return workers_.at(index(worker)).given; }
  /// Workers that still train.
  [[nodiscard]] constexpr int training() const {
    return static_cast<int>(std::count_if(workers_.begin(), workers_.end(), [](Worker const& w) { return w.trains; }));
  }

  /// Whether the server can take its next step.
  [[nodiscard]] constexpr bool ready() const {
    bool some = false;
    for (auto const& worker : workers_) {
      if (worker.trains && worker.given <= version_) return false;
      some = some || worker.given > version_;
    }
    return some;
  }
  /// The workers whose gradients make the next step, in ascending order.
  [[nodiscard]] constexpr std::vector<int> contributors() const {
    std::vector<int> found;
    for (std::size_t w = 0; w < workers_.size(); ++w)
      if (workers_[w].given > version_) found.push_back(static_cast<int>(w));
    return found;
  }
  /// The server has taken that step.
  constexpr void step() noexcept { ++version_; }

  /// Whether the worker may begin its next step with the present version.
  [[nodiscard]] constexpr bool may_go_on(int worker) const { return version_ >= given(worker) - staleness_; }
  /// Whether nobody trains any more and all that was given is used.
  [[nodiscard]] constexpr bool over() const { return training() == 0 && contributors().empty(); }

 private:
  struct Worker {
    std::int64_t given = 0;
    bool trains = true;
  };
  static constexpr std::size_t index(int worker) { return static_cast<std::size_t>(worker); }
  constexpr Worker& at(int worker) { return workers_.at(index(worker)); }

  std::vector<Worker> workers_;
  std::int64_t version_ = 0;
  int staleness_;
};

static_assert([] {
  WorkerClocks clocks(2, 1);
  clocks.give(0);
  bool const ahead = clocks.may_go_on(0) && !clocks.ready();
  clocks.give(0);
  bool const stopped = !clocks.may_go_on(0);
  clocks.give(1);
  bool const ready = clocks.ready() && clocks.contributors().size() == 2;
  clocks.step();
  return ahead && stopped && ready && clocks.may_go_on(0);
}());

}  // namespace pardl::inline PARDL_ABI
