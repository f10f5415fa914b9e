// SPDX-License-Identifier: MIT
/// \file   What a training loop tells those who watch it: three events, and a concept found by shape.
/// \layer  train (std only).
///
/// An observer has at least one of on_batch, on_epoch, on_checkpoint, each taking the event of its name. It derives
/// from nothing and is asked for nothing else; hooks that it lacks cost nothing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// A batch of training is done.
struct BatchEvent {
  std::int64_t epoch = 0;                                  ///< from 0
  std::int64_t epochs = 0;                                 ///< planned; 0: nobody knows
  std::int64_t batch = 0;                                  ///< from 0, within the epoch
  std::int64_t batches = 0;                                ///< of this rank in the epoch; 0: nobody knows
  std::int64_t samples = 0;                                ///< in this batch, of all ranks together
  double loss = std::numeric_limits<double>::quiet_NaN();  ///< NaN: not read (reading one from a GPU waits for it)
};

/// An epoch is done, its validation too. Numbers are those of all ranks together; NaN: not measured.
struct EpochEvent {
  std::int64_t epoch = 0;    ///< from 0
  std::int64_t epochs = 0;   ///< planned; 0: nobody knows
  std::int64_t samples = 0;  ///< trained on in this epoch
  double seconds = 0;        ///< of training, without the validation
  double training_loss = std::numeric_limits<double>::quiet_NaN();
  double loss = std::numeric_limits<double>::quiet_NaN();      ///< in validation
  double accuracy = std::numeric_limits<double>::quiet_NaN();  ///< in validation, 0 to 1
};

/// A checkpoint is complete on disk.
struct CheckpointEvent {
  std::int64_t epoch = 0;        ///< from 0
  std::filesystem::path path{};  ///< of the file or folder
};

template <class O>
concept observes_batches = requires(O& observer, BatchEvent const& event) { observer.on_batch(event); };
template <class O>
concept observes_epochs = requires(O& observer, EpochEvent const& event) { observer.on_epoch(event); };
template <class O>
concept observes_checkpoints = requires(O& observer, CheckpointEvent const& event) { observer.on_checkpoint(event); };

/// Watches a training run. Models: Progress, and whatever has one of the three hooks.
template <class O>
concept observer = observes_batches<O> || observes_epochs<O> || observes_checkpoints<O>;

namespace detail {

template <class O>
constexpr void require_observer() {
  static_assert(observer<O>,
                "pardl: an observer needs at least one of on_batch(pardl::BatchEvent const&), "
                "on_epoch(pardl::EpochEvent const&), on_checkpoint(pardl::CheckpointEvent const&); this type has none "
                "that can be called.");
}

}  // namespace detail

/// Tells an event to those of `observers` that have the hook for it, in their order. What one throws ends the call and
/// goes to the caller. Local: call it on every rank that trains; each observer knows for itself which ranks it serves.
template <class... Observers>
void observe(BatchEvent const& event, Observers&... observers) {
  (detail::require_observer<Observers>(), ...);
  (
      [&] {
        if constexpr (observes_batches<Observers>) observers.on_batch(event);
      }(),
      ...);
}
template <class... Observers>
void observe(EpochEvent const& event, Observers&... observers) {
  (detail::require_observer<Observers>(), ...);
  (
      [&] {
        if constexpr (observes_epochs<Observers>) observers.on_epoch(event);
      }(),
      ...);
}
template <class... Observers>
void observe(CheckpointEvent const& event, Observers&... observers) {
  (detail::require_observer<Observers>(), ...);
  (
      [&] {
        if constexpr (observes_checkpoints<Observers>) observers.on_checkpoint(event);
      }(),
      ...);
}

static_assert(!observer<int>);

}  // namespace pardl::inline PARDL_ABI
