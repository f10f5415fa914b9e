// SPDX-License-Identifier: MIT
/// \file   One training by one strategy. All take the same batches in the same order, where the images are a multiple
/// of the batch and the batch one of the workers: only the way differs.
#pragma once

#include <torch/torch.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "models/lenet.hpp"
#include "options.hpp"
#include "pardl/data/idx.hpp"
#include "pardl/data/synthetic.hpp"
#include "pardl/ddp.hpp"
#include "pardl/io/atomic_file.hpp"

namespace parallel_from_scratch {

struct EpochRecord {
  double seconds = 0;             ///< of training alone
  double loss = 0, accuracy = 0;  ///< of the test set
};

struct Images {
  pardl::data::ImageDataset train, test;
};

/// \throws pardl::DataError where files are missing or not what they should be.
inline Images load(Options const& options) {
  using namespace pardl::data;
  bool const found = FashionMnist::found(options.data_dir);
  if (options.data == "fashion-mnist" || (options.data == "auto" && found))
    return {FashionMnist{options.data_dir, Split::train}, FashionMnist{options.data_dir, Split::test}};
  SyntheticOptions const made{.samples = 10'000, .seed = 1};
  auto unseen = made;
  unseen.samples = 2'000;
  unseen.split = Split::test;
  return {Synthetic{made}, Synthetic{unseen}};
}

class Trial {
 public:
  Trial(Options options, pardl::ProcessGroup world)
      : options_(std::move(options)), world_(std::move(world)), images_(load(options_)) {
    if (options_.limit_train > 0) images_.train = images_.train.first(options_.limit_train);
    if (is_dp() && world_.size() > 1)
      refuse("dp in a world of " + std::to_string(world_.size()) + " ranks", "start one process: it uses all devices");
    if (options_.strategy == "param_server" && world_.size() < 2)
      refuse("param_server in a world of one rank", "start two ranks or more: one of them serves");
    each_ = options_.batch_size / workers();
    if (each_ < 1 || each_ * workers() > images_.train.size())
      refuse("--batch-size " + std::to_string(options_.batch_size) + " for " + std::to_string(workers()) +
                 " workers and " + std::to_string(images_.train.size()) + " training images",
             "give each worker an image or more, and no more than there are");
    torch::manual_seed(options_.seed);  // the same weights on every rank and for every strategy
    net_ = models::LeNet{models::LeNetOptions{.channels = images_.train.channels(),
                                              .height = images_.train.height(),
                                              .width = images_.train.width(),
                                              .classes = images_.train.classes()}};
    net_->to(device());
    introduce();
  }

  void run() {
    if (options_.strategy == "param_server") {
      serve_or_work();
    } else if (options_.strategy == "dp") {
      pardl::DataParallel model{net_, devices()};
      learn(model);
    } else {
      pardl::DistributedDataParallel model{net_, world_, {.gradient_as_bucket_view = true}};
      if (options_.strategy == "ring_all_reduce") model.register_comm_hook(pardl::comm_hooks::ring_all_reduce{});
      learn(model);
    }
    if (world_.rank() == 0 && !options_.summary.empty()) write_summary();
  }

 private:
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] bool is_dp() const { return options_.strategy == "dp"; }
  [[nodiscard]] int workers() const {
    return is_dp() ? 1 : options_.strategy == "param_server" ? world_.size() - 1 : world_.size();
  }
  [[nodiscard]] torch::Device device() const { return is_dp() ? devices().front() : world_.device(); }
  [[nodiscard]] std::vector<torch::Device> devices() const {
    std::vector<torch::Device> all;
    for (int i = 0; i < options_.ranks; ++i)
      all.emplace_back(options_.device == "cuda" ? torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(i))
                                                 : torch::Device(torch::kCPU));
    return all;
  }

  void introduce() const {
    if (world_.rank() != 0) return;
    std::printf("Data: %s, %lld training and %lld test images\n", images_.train.name().c_str(),
                static_cast<long long>(images_.train.size()), static_cast<long long>(images_.test.size()));
    std::printf("Strategy: %s on %d %s, batches of %lld%s, seed %llu\n", options_.strategy.c_str(),
                is_dp() ? options_.ranks : world_.size(),
                is_dp() ? "devices of one process" : (std::string(world_.backend()) + " ranks").c_str(),
                static_cast<long long>(each_ * workers()),
                each_ * workers() == options_.batch_size ? "" : " (rounded down to a multiple of the workers)",
                static_cast<unsigned long long>(options_.seed));
    std::fflush(stdout);
  }

  [[nodiscard]] auto training_batches(pardl::Ranks ranks) const {
    return pardl::DataLoader{images_.train,
                             pardl::DistributedSampler{images_.train.size(), ranks, {.seed = options_.seed}},
                             pardl::Normalize{images_.train.mean(), images_.train.stddev()},
                             {.batch_size = each_, .drop_last = true, .device = device(), .seed = options_.seed}};
  }
  [[nodiscard]] auto test_batches(pardl::Ranks ranks) const {
    return pardl::DataLoader{images_.test,
                             pardl::DistributedSampler{images_.test.size(), ranks, {.shuffle = false, .exact = true}},
                             pardl::Normalize{images_.train.mean(), images_.train.stddev()},
                             {.batch_size = 500, .device = device()}};
  }
  [[nodiscard]] auto optimizer(std::vector<torch::Tensor> parameters) const {
    return pardl::optim::SGD{std::move(parameters), {.lr = options_.lr, .momentum = 0.9}};
  }

  void record(double seconds, pardl::Evaluation const& seen) {
    epochs_.push_back({seconds, seen.loss, seen.accuracy});
    if (world_.rank() != 0) return;
    std::printf("Epoch %zu/%d: %.3f s, test loss %.4f, test accuracy %.4f\n", epochs_.size(), options_.epochs, seconds,
                seen.loss, seen.accuracy);
    std::fflush(stdout);
  }

  /// Strategies without a server: every rank steps by itself, on gradients that are the same everywhere.
  template <class Model>
  void learn(Model& model) {
    auto const training = training_batches(world_), test = test_batches(world_);
    auto sgd = optimizer(model.parameters());
    for (int epoch = 0; epoch < options_.epochs; ++epoch) {
      pardl::barrier(world_);
      auto const start = Clock::now();
      for (auto& [inputs, labels] : training.epoch(epoch)) {
        sgd.zero_grad();
        torch::nn::functional::cross_entropy(model(inputs), labels).backward();
        sgd.step();
      }
      if (device().is_cuda()) torch::cuda::synchronize();  // the host is ahead of a GPU
      pardl::barrier(world_);
      double const seconds = std::chrono::duration<double>(Clock::now() - start).count();
      record(seconds, pardl::evaluate(net_, test, world_));
    }
  }

  /// The server looks at its model whenever it has taken the last step of an epoch. Every worker has the same number of
  /// batches, so as long as one comes to its end all steps are taken, whoever is lost on the way.
  void serve_or_work() {
    auto const alone = *world_.split(world_.rank());
    pardl::ParameterServer server{
        net_,
        world_,
        [this](std::vector<torch::Tensor> parameters) { return optimizer(std::move(parameters)); },
        {.staleness = options_.staleness,
         .on_rank_failure = options_.keep_going ? pardl::keep_going : pardl::stop_all}};
    if (!server.is_server()) {
      auto const training = training_batches(server.workers());
      for (int epoch = 0; epoch < options_.epochs; ++epoch)
        for (auto& [inputs, labels] : training.epoch(epoch)) {
          server.zero_grad();
          torch::nn::functional::cross_entropy(net_(inputs), labels).backward();
          server.step();
        }
      server.finish();
      return;
    }
    struct Watch {
      Trial& trial;
      pardl::ProcessGroup alone;
      std::int64_t steps;  // of an epoch
      Clock::time_point start = Clock::now();

      /// The workers wait for this step's parameters while the server evaluates, so no epoch's time has that in it.
      /// With staleness they run ahead meanwhile, by as many steps at most, and the next epoch seems so much shorter.
      void on_step(pardl::ClockEvent const& event) {
        if ((event.clock + 1) % steps != 0) return;
        if (trial.device().is_cuda()) torch::cuda::synchronize();  // the host is ahead of a GPU
        double const seconds = std::chrono::duration<double>(Clock::now() - start).count();
        trial.record(seconds, pardl::evaluate(trial.net_, trial.test_batches(pardl::Ranks{0, 1}), alone));
        start = Clock::now();
      }
      void on_worker_lost(pardl::WorkerLostEvent const& event) {
        trial.lost_workers_.push_back(event.rank);
        std::cerr << event.sentence + "\n" << std::flush;
      }
    };
    Watch watch{*this, alone, training_batches(pardl::Ranks{0, workers()}).batches()};
    server.serve(watch);
  }

  void write_summary() const {
    auto epochs = nlohmann::json::array();
    for (auto const& epoch : epochs_)
      epochs.push_back({{"seconds", epoch.seconds}, {"loss", epoch.loss}, {"accuracy", epoch.accuracy}});
    nlohmann::json summary = {{"strategy", options_.strategy},
                              {"data", images_.train.name()},
                              {"train_images", images_.train.size()},
                              {"ranks", is_dp() ? options_.ranks : world_.size()},
                              {"device", options_.device},
                              {"backend", is_dp() ? "none" : std::string(world_.backend())},
                              {"batch_size", each_ * workers()},
                              {"lr", options_.lr},
                              {"seed", options_.seed},
                              {"staleness", options_.staleness},
                              {"epochs", epochs}};
    if (options_.strategy == "param_server") summary["lost_workers"] = lost_workers_;
    pardl::write_file_atomically(options_.summary, summary.dump(2) + "\n");
  }

  Options options_;
  pardl::ProcessGroup world_;
  Images images_;
  std::int64_t each_ = 0;  ///< images of a step on each worker
  models::LeNet net_{nullptr};
  std::vector<EpochRecord> epochs_;
  std::vector<int> lost_workers_;  ///< of the parameter server: their ranks, in the order of their deaths
};

}  // namespace parallel_from_scratch
