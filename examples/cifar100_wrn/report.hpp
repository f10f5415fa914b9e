// SPDX-License-Identifier: MIT
/// \file   What cifar100_wrn tells: the guide's lines on rank 0, and the same as JSON.
#pragma once

#include <torch/version.h>

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "options.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/io/atomic_file.hpp"
#include "pardl/version.hpp"

namespace cifar100_wrn {

struct EpochRecord {
  double train_loss = 0;          ///< mean over the images of all ranks
  double loss = 0, accuracy = 0;  ///< of the test set, whole
  double seconds = 0;             ///< of training, all ranks together
  std::int64_t images = 0;        ///< trained, by all ranks, really
  std::int64_t test_images = 0;   ///< looked at for loss and accuracy, by all ranks
};

class Report {
 public:
  Report(pardl::ProcessGroup world, Options options) : world_(std::move(world)), options_(std::move(options)) {}

  template <class... Arguments>
  void say(char const* format, Arguments... arguments) const {
    if (world_.rank() != 0) return;
    std::printf(format, arguments...);
    std::fflush(stdout);
  }

  void started(std::string const& data, std::int64_t train, std::int64_t test, std::string const& hint,
               std::int64_t batch_per_rank) {
    data_ = data;
    train_images_ = train;
    test_images_ = test;
    batch_per_rank_ = batch_per_rank;
    say("Data: %s, %lld training and %lld test images%s\n", data.c_str(), static_cast<long long>(train),
        static_cast<long long>(test), hint.c_str());
    say("Training started with %d process%s across %d node%s.\n", world_.size(), world_.size() == 1 ? "" : "es",
        world_.nodes(), world_.nodes() == 1 ? "" : "s");
    say("Using %d %s per node, backend %s; model %s, %s, batches of %lld (%lld on each rank).\n", world_.local_size(),
        devices().c_str(), std::string(world_.backend()).c_str(), options_.model.c_str(), options_.precision.c_str(),
        static_cast<long long>(batch_per_rank * world_.size()), static_cast<long long>(batch_per_rank));
  }

  void epoch(EpochRecord const& record) {
    epochs_.push_back(record);
    say("Epoch %zu/%d completed in %.3f seconds\n", epochs_.size(), options_.epochs, record.seconds);
    say("Validation Loss: %.4f, Validation Accuracy: %.4f\n", record.loss, record.accuracy);
    say("Epoch Throughput: %.3f images/second\n", static_cast<double>(record.images) / record.seconds);
  }

  void target_reached() { say("Target accuracy reached. Early stopping after epoch %zu.\n", epochs_.size()); }

  /// Prints the summary, and writes it where --summary says. Every rank may call it; rank 0 acts.
  void finished(std::string const& stop_reason) const {
    double seconds = 0;
    std::int64_t images = 0;
    for (auto const& record : epochs_) {
      seconds += record.seconds;
      images += record.images;
    }
    say("\nTraining Summary:\n");
    say("Total training time: %.3f seconds\n", seconds);
    say("Throughput: %.3f images/second\n", static_cast<double>(images) / seconds);
    say("Number of nodes: %d\n", world_.nodes());
    say("Number of %s per node: %d\n", devices().c_str(), world_.local_size());
    say("Total %s used: %d\n", devices().c_str(), world_.size());
    say("Training completed successfully.\n");
    if (world_.rank() == 0 && !options_.summary.empty()) write_json(stop_reason, seconds, images);
  }

 private:
  [[nodiscard]] std::string devices() const { return world_.device().is_cuda() ? "GPUs" : "CPU ranks"; }

  void write_json(std::string const& stop_reason, double seconds, std::int64_t images) const {
    using nlohmann::json;
    json epochs = json::array();
    for (auto const& record : epochs_)
      epochs.push_back({{"train_loss", record.train_loss},
                        {"loss", record.loss},
                        {"accuracy", record.accuracy},
                        {"seconds", record.seconds},
                        {"images", record.images},
                        {"test_images", record.test_images},
                        {"images_per_second", static_cast<double>(record.images) / record.seconds}});
    json const summary = {
        {"data", {{"name", data_}, {"train_images", train_images_}, {"test_images", test_images_}}},
        {"epochs", epochs},
        {"stop_reason", stop_reason},
        {"totals",
         {{"seconds", seconds}, {"images", images}, {"images_per_second", static_cast<double>(images) / seconds}}},
        {"world",
         {{"nodes", world_.nodes()},
          {"ranks", world_.size()},
          {"ranks_per_node", world_.local_size()},
          {"batch_per_rank", batch_per_rank_},
          {"device", world_.device().str()},
          {"backend", std::string(world_.backend())}}},
        {"versions",
         {{"pardl", std::to_string(pardl::version.major) + "." + std::to_string(pardl::version.minor) + "." +
                        std::to_string(pardl::version.patch)},
          {"libtorch", TORCH_VERSION}}},
        {"options",
         {{"data", options_.data},
          {"data_dir", options_.data_dir},
          {"download", options_.download},
          {"model", options_.model},
          {"batch_size", options_.batch_size},
          {"epochs", options_.epochs},
          {"base_lr", options_.base_lr},
          {"schedule", options_.schedule},
          {"target_accuracy", options_.target_accuracy},
          {"patience", options_.patience},
          {"precision", options_.precision},
          {"memory_format", options_.memory_format},
          {"seed", options_.seed},
          {"deterministic", options_.deterministic},
          {"limit_train", options_.limit_train},
          {"workers", options_.workers},
          {"progress", options_.progress},
          {"summary", options_.summary},
          {"timeout_s", std::chrono::duration<double>(world_.timeout()).count()}}}};
    pardl::write_file_atomically(options_.summary, summary.dump(2) + "\n");
  }

  pardl::ProcessGroup world_;
  Options options_;
  std::string data_;
  std::int64_t train_images_ = 0, test_images_ = 0, batch_per_rank_ = 0;
  std::vector<EpochRecord> epochs_;
};

}  // namespace cifar100_wrn
