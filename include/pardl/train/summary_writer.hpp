// SPDX-License-Identifier: MIT
/// \file   What TensorBoard shows: scalars, texts, histograms and images of a run, written by rank 0.
/// \layer  train.
///
///     pardl::SummaryWriter writer{world, "runs/wrn-28-10"};
///     writer.add_scalar("train/loss", loss, step);
/// or as an observer, told by pardl::observe(event, progress, writer). Then: tensorboard --logdir runs
/// Names, tags and bytes are those of torch.utils.tensorboard.SummaryWriter.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "pardl/io/event_file.hpp"
#include "pardl/io/histogram.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/ranked.hpp"
#include "pardl/train/observer.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct SummaryWriterOptions {
  bool enabled = true;                       ///< false: silent on every rank
  std::string comment{};                     ///< at the end of the default folder's name
  std::optional<std::int64_t> purge_step{};  ///< a resumed run: what the folder has from this step on is forgotten
  std::string filename_suffix{};             ///< at the end of every file's name
  std::function<double()> now{};             ///< seconds since 1970; default: the system's clock
};

/// Writes events that TensorBoard draws. Every rank may call everything (no communication happens); only rank 0 writes,
/// and on the others a tensor is not even read. Each event is in the file when the call returns, so a run that is
/// killed keeps them all. One thread at a time. A full disk is an Error with the path: catch it to go on without.
class SummaryWriter {
 public:
  /// \param world    anything ranked: a ProcessGroup, or {rank, size}.
  /// \param log_dir  a folder for each run; default: runs/MONTHdd_hh-mm-ss_HOST and the options' comment.
  /// \throws Error on rank 0 if the file cannot be made.
  explicit SummaryWriter(Ranks world, std::filesystem::path log_dir = {}, SummaryWriterOptions options = {})
      : options_(std::move(options)), writes_(options_.enabled && world.rank() == 0), log_dir_(std::move(log_dir)) {
    if (!writes_) return;
    if (log_dir_.empty()) log_dir_ = std::filesystem::path("runs") / default_name();
    main_file();
  }

  /// The folder of the files; on ranks that do not write, what was given.
  [[nodiscard]] std::filesystem::path const& log_dir() const noexcept { return log_dir_; }

  /// A point of the curve `tag`; "a/b" stands in group a. \param walltime  seconds since 1970; default: now.
  void add_scalar(std::string_view tag, double value, std::int64_t step, std::optional<double> walltime = {}) {
    if (writes_) add(main_file(), io::Summary().scalar(tag, value), step, walltime);
  }
  /// Of a tensor of one element. Waits for its device, on rank 0. \throws ConfigError for more or fewer elements.
  void add_scalar(std::string_view tag, at::Tensor const& value, std::int64_t step,
                  std::optional<double> walltime = {}) {
    if (!writes_) return;
    if (!value.defined() || value.numel() != 1)
      throw ConfigError(sentence("train",
                                 "add_scalar(\"" + std::string(tag) + "\") was given a tensor of " +
                                     (value.defined() ? std::to_string(value.numel()) : "no") + " elements",
                                 "give one element, or call add_histogram"));
    add_scalar(tag, value.item<double>(), step, walltime);
  }

  /// Several curves in one picture: each is a run of its own in a folder below, named by both tags, as in Python.
  void add_scalars(std::string_view main_tag, std::map<std::string, double> const& values, std::int64_t step,
                   std::optional<double> walltime = {}) {
    if (!writes_) return;
    double const when = walltime ? *walltime : main_file().now();
    for (auto const& [tag, value] : values) {
      std::string folder = std::string(main_tag) + "_" + tag;
      std::ranges::replace(folder, '/', '_');  // a tag names no folder outside
      add(file_of(log_dir_ / folder), io::Summary().scalar(main_tag, value), step, when);
    }
  }

  /// Markdown.
  void add_text(std::string_view tag, std::string_view text, std::int64_t step = 0,
                std::optional<double> walltime = {}) {
    if (writes_) add(main_file(), io::Summary().text(std::string(tag) + "/text_summary", text), step, walltime);
  }

  /// The distribution of a tensor's elements, in Python's default buckets ("tensorflow"). Any real type, shape, device.
  /// \throws DataError if no element is finite. \cost on rank 0, a copy as float64 and a search for each element.
  void add_histogram(std::string_view tag, at::Tensor const& values, std::int64_t step,
                     std::optional<double> walltime = {}) {
    if (!writes_) return;
    if (!values.defined() || values.is_complex())
      throw ConfigError(sentence("train", "add_histogram(\"" + std::string(tag) + "\") was given no real tensor",
                                 "give real numbers, e.g. an absolute value"));
    c10::NoGradGuard const no_grad;
    at::Tensor const flat = values.to(at::kCPU).to(at::kDouble).contiguous();
    std::span<double const> const elements(flat.const_data_ptr<double>(), static_cast<std::size_t>(flat.numel()));
    add(main_file(), io::Summary().histogram(tag, io::make_histogram(elements)), step, walltime);
  }

  /// \param png  the bytes of a PNG file, RGB.  \throws DataError if it is none.
  void add_image(std::string_view tag, std::string_view png, std::int64_t step, std::optional<double> walltime = {}) {
    if (writes_) add(main_file(), io::Summary().image(tag, png), step, walltime);
  }

  /// To the disk itself; only a power cut makes a difference.
  void flush() {
    if (main_) main_->flush();
    for (auto& [folder, file] : others_) file.flush();
  }
  /// Closes the files. What is added later begins new ones in the same folder, as in Python.
  void close() {
    auto const main = std::exchange(main_, nullptr);
    auto others = std::exchange(others_, {});
    if (main) main->close();
    for (auto& [folder, file] : others) file.close();
  }

  // ---- as an observer -----------------------------------------------------------------------------------------------
  /// train/batch_loss over the batches so far, where the loss was read.
  void on_batch(BatchEvent const& event) {
    std::int64_t const counted = batches_++;
    if (std::isnan(event.loss)) return;
    add_scalar("train/batch_loss", event.loss, event.batches > 0 ? event.epoch * event.batches + event.batch : counted);
  }
  /// train/loss, train/seconds, train/samples_per_second, validation/loss and validation/accuracy over epochs, as far
  /// as they were measured.
  void on_epoch(EpochEvent const& event) {
    if (!writes_) return;
    io::Summary summary;
    auto const measured = [&](std::string_view tag, double value) {
      if (!std::isnan(value)) summary.scalar(tag, value);
    };
    measured("train/loss", event.training_loss);
    if (event.seconds > 0) {
      summary.scalar("train/seconds", event.seconds);
      if (event.samples > 0)
        summary.scalar("train/samples_per_second", static_cast<double>(event.samples) / event.seconds);
    }
    measured("validation/loss", event.loss);
    measured("validation/accuracy", event.accuracy);
    if (!summary.empty()) add(main_file(), summary, event.epoch, {});
  }
  /// The path, as a text over epochs.
  void on_checkpoint(CheckpointEvent const& event) {
    add_text("checkpoint", "`" + event.path.string() + "`", event.epoch);
  }

 private:
  static void add(io::EventFile& file, io::Summary const& summary, std::int64_t step, std::optional<double> walltime) {
    file.add(summary, step, walltime ? *walltime : file.now());
  }

  [[nodiscard]] io::EventFileOptions file_options() const {
    return {.suffix = options_.filename_suffix, .now = options_.now};
  }
  io::EventFile& main_file() {
    if (!main_) {
      main_ = std::make_unique<io::EventFile>(log_dir_, file_options());
      if (auto const step = std::exchange(options_.purge_step, std::nullopt)) main_->restart(*step);
    }
    return *main_;
  }
  io::EventFile& file_of(std::filesystem::path const& folder) {
    auto const at = others_.find(folder);
    return at != others_.end() ? at->second : others_.try_emplace(folder, folder, file_options()).first->second;
  }

  /// E.g. Nov21_14-05-59_host, in local time; English whatever the locale, as a folder should be.
  [[nodiscard]] std::string default_name() const {
    static constexpr std::string_view months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                  "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    std::time_t const now = options_.now ? static_cast<std::time_t>(options_.now()) : std::time(nullptr);
    std::tm local{};
    ::localtime_r(&now, &local);
    char rest[32];
    std::strftime(rest, sizeof rest, "%d_%H-%M-%S_", &local);
    return std::string(months[local.tm_mon]) + rest + io::host_name() + options_.comment;
  }

  SummaryWriterOptions options_;
  bool writes_;
  std::filesystem::path log_dir_;
  std::unique_ptr<io::EventFile> main_;
  std::map<std::filesystem::path, io::EventFile> others_;
  std::int64_t batches_ = 0;
};

static_assert(observer<SummaryWriter>);
static_assert(observes_batches<SummaryWriter> && observes_epochs<SummaryWriter> && observes_checkpoints<SummaryWriter>);

}  // namespace pardl::inline PARDL_ABI
