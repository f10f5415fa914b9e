// SPDX-License-Identifier: MIT
/// \file   The end of a round: the mean or a robust rule, the server's step, and what clients keep, slice by slice.
/// \layer  fed, private.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "pardl/fed/detail/robust_round.hpp"
#include "pardl/fed/detail/round_memory.hpp"
#include "pardl/fed/server_optimizer.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// One worker's part. All workers' parts together leave the next global model, and accumulators at zero.
template <server_optimizer Server>
class RoundFinish {
 public:
  /// \param parameters  of the shared numbers: averaged buffers lie behind them.  \param robust  null: the mean
  RoundFinish(RoundMemory& memory, Server const& server, std::size_t parameters, RobustRound const* robust,
              std::size_t worker)
      : memory_(memory), server_(server), parameters_(parameters), robust_(robust), worker_(worker) {}

  void operator()() {
    global_model();
    server_numbers();
    for (auto task = worker_; task < static_cast<std::size_t>(memory_.desk().tasks); task += memory_.sizes().workers)
      if (auto const& outcome = memory_.outcomes[task]; outcome.state == TaskState::done)
        keep(task, static_cast<std::size_t>(outcome.client));
    if (worker_ == 0 && memory_.sizes().integers_shared) integers();
  }

 private:
  static constexpr std::size_t block = 4096;

  /// The own part of `numbers`, in blocks that do not straddle `border`: visit(begin, size).
  template <class Visit>
  void each_block(std::size_t numbers, std::size_t border, Visit&& visit) const {
    auto const workers = memory_.sizes().workers, blocks = (numbers + block - 1) / block;
    auto const end = std::min(numbers, blocks * (worker_ + 1) / workers * block);
    for (std::size_t at = blocks * worker_ / workers * block; at < end;) {
      auto const stop = at < border ? std::min(border, end) : end;
      auto const size = std::min(block, stop - at);
      visit(at, size);
      at += size;
    }
  }

  /// All accumulators' sum of some numbers, and zero in its place.
  std::span<std::int64_t const> total(SharedArray<std::int64_t> const& sums, std::size_t stride, std::size_t at,
                                      std::size_t size) {
    std::fill_n(sum_.begin(), size, 0);
    for (std::size_t other = 0; other < memory_.sizes().workers; ++other) {
      auto const part = sums.span(other * stride + at, size);
      for (std::size_t i = 0; i < size; ++i) sum_[i] += part[i];
      std::ranges::fill(part, 0);
    }
    return {sum_.data(), size};
  }

  void global_model() {
    auto const& sizes = memory_.sizes();
    auto const& desk = memory_.desk();
    memory_.largest[worker_] = 0;
    each_block(sizes.shared, parameters_, [&](std::size_t at, std::size_t size) {
      if (robust_ != nullptr) {
        robust_->combine(at, {mean_.data(), size});
      } else {
        auto const sum = total(memory_.sums, sizes.shared, at, size);
        for (std::size_t i = 0; i < size; ++i) mean_[i] = static_cast<double>(sum[i]) / desk.total_units;
      }
      auto const weights = memory_.global.span(at, size);
      std::span<double const> const means(mean_.data(), size);
      if (at < parameters_) {
        if (desk.stretch != 1)
          for (std::size_t i = 0; i < size; ++i) {
            auto const start = static_cast<double>(weights[i]);
            mean_[i] = start + desk.stretch * (mean_[i] - start);
          }
        std::array<std::span<float>, most_server_states> state;
        for (std::size_t s = 0; s < sizes.server_states; ++s)
          state[s] = memory_.server_state.span(s * sizes.shared + at, size);
        server_.apply(weights, means, std::span(state).first(sizes.server_states), desk.round + 1);
      } else {
        Average{}.apply(weights, means, {}, 0);
      }
      RoundMemory::note_largest(memory_.largest[worker_], weights);
    });
  }

  void server_numbers() {
    auto const& sizes = memory_.sizes();
    if (sizes.server_numbers == 0) return;
    // The scale is that of the round: it is read before any worker writes what it follows from.
    auto const units = memory_.desk().number_units * static_cast<double>(sizes.clients);
    memory_.largest_number[worker_] = 0;
    each_block(sizes.server_numbers, 0, [&](std::size_t at, std::size_t size) {
      auto const sum = total(memory_.number_sums, sizes.server_numbers, at, size);
      auto const numbers = memory_.server_numbers.span(at, size);
      for (std::size_t i = 0; i < size; ++i)
        numbers[i] = static_cast<float>(static_cast<double>(numbers[i]) + static_cast<double>(sum[i]) / units);
      RoundMemory::note_largest(memory_.largest_number[worker_], numbers);
    });
  }

  void keep(std::size_t task, std::size_t client) {
    if (!memory_.keeps()) return;
    auto const& sizes = memory_.sizes();
    std::ranges::copy(memory_.staged.span(task * sizes.kept(), sizes.kept()),
                      memory_.kept.data() + client * sizes.kept());
    if (!sizes.integers_shared)
      std::ranges::copy(memory_.staged_integers.span(task * sizes.integers, sizes.integers),
                        memory_.kept_integers.data() + client * sizes.integers);
    memory_.has_kept[client] = 1;
  }

  /// The largest of each: of what workers have seen, or of the updates that count.
  void integers() {
    auto const& sizes = memory_.sizes();
    auto const raise = [&](std::span<std::int64_t const> seen) {
      for (std::size_t i = 0; i < sizes.integers; ++i)
        memory_.global_integers[i] = std::max(memory_.global_integers[i], seen[i]);
    };
    if (sizes.rows) {
      for (std::size_t task = 0; task < static_cast<std::size_t>(memory_.desk().tasks); ++task)
        if (memory_.outcomes[task].state == TaskState::done)
          raise(memory_.staged_integers.span(task * sizes.integers, sizes.integers));
      return;
    }
    for (std::size_t other = 0; other < sizes.workers; ++other) {
      auto const most = memory_.most_integers.span(other * sizes.integers, sizes.integers);
      raise(most);
      std::ranges::fill(most, RoundMemory::nothing);
    }
  }

  RoundMemory& memory_;
  Server const& server_;
  std::size_t parameters_;
  RobustRound const* robust_;
  std::size_t worker_;
  std::array<std::int64_t, block> sum_;
  std::array<double, block> mean_;
};

}  // namespace pardl::inline PARDL_ABI::fed::detail
