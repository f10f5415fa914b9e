// SPDX-License-Identifier: MIT
/// \file   The progress of each epoch, on rank 0: a bar on a terminal, plain lines otherwise.
/// \layer  train (policy, io; no LibTorch).
///
/// In a loop of one's own:
///     pardl::Progress progress{world, {.unit = "images"}};
///     progress.begin_epoch(epoch, loader.batches(), epochs);
///     for (...) progress.on_batch(images_of_all_ranks);
///     progress.end_epoch();
/// or as an observer, told by pardl::observe(event, progress, ...).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>

#include "pardl/io/terminal.hpp"
#include "pardl/policy/ranked.hpp"
#include "pardl/train/observer.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct ProgressOptions {
  bool enabled = true;           ///< false: silent on every rank
  std::string unit = "samples";  ///< of the rate: what BatchEvent::samples counts
  ProgressBarOptions bar{};      ///< how it looks; label and unit are set from here
};

/// Shows how far each epoch has come, its rate over all ranks and the time to go. Every rank may call every hook (no
/// communication happens); only rank 0 shows anything. One thread at a time. An epoch that ends early leaves a whole
/// line; so does an exception.
class Progress {
 public:
  /// \param world  anything ranked: a ProcessGroup, or {rank, size}.
  explicit Progress(Ranks world, ProgressOptions options = {})
      : options_(std::move(options)), shows_(options_.enabled && world.rank() == 0) {
    options_.bar.unit = options_.unit;
  }

  /// Opens the bar of an epoch (from 0), and with it the clock of its rate. \param batches  of this rank; 0: unknown.
  /// \param epochs  planned; 0: unknown.
  void begin_epoch(std::int64_t epoch, std::int64_t batches, std::int64_t epochs = 0) {
    if (!shows_) return;
    end_epoch();
    epoch_ = epoch;
    ProgressBarOptions look = options_.bar;
    look.label = "epoch " + std::to_string(epoch + 1) + (epochs > 0 ? "/" + std::to_string(epochs) : "");
    bar_.emplace(batches > 0 ? std::optional(batches) : std::nullopt, std::move(look));
  }

  /// One more batch, of so many samples on all ranks together. Needs begin_epoch() before.
  void on_batch(std::int64_t samples) {
    if (bar_) bar_->advance(1, samples);
  }

  /// A batch is done. Without begin_epoch() the first one opens the bar: when it began is not known, so it counts as
  /// done but not as speed.
  void on_batch(BatchEvent const& event) {
    if (!shows_) return;
    bool const opens = !bar_ || event.epoch != epoch_;
    if (opens) begin_epoch(event.epoch, event.batches, event.epochs);
    if (!std::isnan(event.loss)) {
      char text[64];
      std::snprintf(text, sizeof text, "loss %.4f", event.loss);
      bar_->note(text);
    }
    if (opens)
      bar_->skip(event.batch + 1);  // in a run that was resumed within the epoch this is not the first
    else
      on_batch(event.samples);
  }

  /// The epoch is over, however many batches it had: its line is closed, with the time and the mean rate.
  void end_epoch() {
    if (bar_) bar_->finish();
    bar_.reset();
  }
  void on_epoch(EpochEvent const&) { end_epoch(); }

 private:
  ProgressOptions options_;
  bool shows_;
  std::int64_t epoch_ = -1;
  std::optional<ProgressBar> bar_;
};

static_assert(observer<Progress>);

}  // namespace pardl::inline PARDL_ABI
