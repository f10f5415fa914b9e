// SPDX-License-Identifier: MIT
/// \file   The simulator: rounds of a federation on one machine, trained by workers that each hold one model.
/// \layer  fed.
///
/// The process that makes a Runner is the coordinator: it samples, schedules and watches. Its workers, forked from it,
/// share the data set without a copy and everything that changes through shared memory: the global weights, an
/// accumulator each, and what clients keep. A worker takes clients one after the other, longest first, trains each in
/// its own resident model and adds the result to its accumulator; at the end of a round each worker reduces a slice of
/// the model over all accumulators and applies the server's optimizer to it. Memory is one model and one accumulator a
/// worker, however many clients there are (plus what clients keep, if they keep anything).
///
/// The result is bit for bit the same for any number of workers and any schedule: draws are keyed by (seed, round,
/// client), sums are exact (fixed_point_sum.hpp), and a client's numbers depend on its own task alone. On a GPU that
/// holds as far as LibTorch's kernels repeat themselves: workers let cuDNN take only such.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/data/data_loader.hpp"
#include "pardl/data/dataset.hpp"
#include "pardl/fed/checkpoint.hpp"
#include "pardl/fed/client_sampler.hpp"
#include "pardl/fed/clients.hpp"
#include "pardl/fed/detail/coordinator.hpp"
#include "pardl/fed/detail/round_memory.hpp"
#include "pardl/fed/detail/round_worker.hpp"
#include "pardl/fed/flat_model.hpp"
#include "pardl/fed/local_training.hpp"
#include "pardl/fed/round.hpp"
#include "pardl/fed/server_optimizer.hpp"
#include "pardl/io/memory.hpp"
#include "pardl/io/safetensors.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/module_like.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// Rounds of one strategy over one population.
/// \tparam Net        the initial model, on the CPU: a module, or a handle of one, which is then this Runner's to use
/// \tparam Data       a dataset of all clients' samples; \tparam Transform  batches on their way into the model
/// \tparam Local      LocalTraining, or another local_update; \tparam Server  a server_optimizer
template <class Net, class Data, class Local, class Server = Average, class Transform = NoTransform,
          class EvaluationTransform = Transform>
class Runner {
  static_assert(module_like<Net>,
                "pardl::fed::Runner needs a model first: a torch::nn::Module, a shared_ptr or a holder of one.");
  static_assert(dataset<Data>,
                "pardl::fed::Runner needs the dataset of all clients' samples second: a copyable type with size() and "
                "batch(std::span<std::int64_t const>) -> pardl::Batch, such as pardl::data::TensorDataset.");
  static_assert(server_optimizer<Server>,
                "pardl::fed::Runner's server is a server optimizer: states(), check() and apply(weights, mean, state, "
                "step); take pardl::fed::Average, ServerSGD, ServerAdagrad, ServerAdam or ServerYogi.");
  static_assert(batch_transform<Transform> && batch_transform<EvaluationTransform>,
                "pardl::fed::Runner's transforms are callable on const as (torch::Tensor, pardl::SampleStream const&) "
                "-> torch::Tensor; join several with |, or leave them out.");
  static_assert(
      local_update<Local, Net> &&
          std::is_invocable_r_v<LocalResult, Local const&, ClientTask<Net, detail::ClientSamples<Transform>> const&>,
      "pardl::fed::Runner trains clients with a local update: processed(samples) -> int64, loss(), and "
      "operator()(ClientTask) -> LocalResult; take pardl::fed::LocalTraining, or write one like it.");

 public:
  /// Forks the workers. Make it before this process computes anything with several threads, or uses a GPU, and in a
  /// thread that outlives it: workers end with the thread that forked them.
  /// \throws ConfigError for options that cannot be right; DataError for a client without training samples or with
  /// numbers of samples that `data` does not have.
  Runner(Net net, Data data, ClientShares shares, Local local, Server server, RunnerOptions options,
         Transform transform = {})
    requires std::same_as<Transform, EvaluationTransform>
      : Runner(std::move(net), std::move(data), std::move(shares), std::move(local), std::move(server),
               std::move(options), transform, transform) {}
  /// With a transform of its own for samples that are only looked at: without what is random.
  Runner(Net net, Data data, ClientShares shares, Local local, Server server, RunnerOptions options,
         Transform transform, EvaluationTransform evaluation_transform)
      : options_(std::move(options)), net_(std::move(net)), shares_(std::move(shares)), local_(std::move(local)) {
    detail::check(options_);
    detail::check(shares_, data.size());
    server.check();
    if (server.states() > detail::most_server_states)
      throw ConfigError(
          sentence("fed", "a server optimizer that keeps " + std::to_string(server.states()) + " numbers a weight",
                   "4 are the most"));
    for (std::int64_t const index : options_.calibration)
      if (index < 0 || index >= data.size())
        throw ConfigError(sentence(
            "fed",
            "a calibration on sample " + std::to_string(index) + " of a dataset of " + std::to_string(data.size()),
            "samples are numbered from 0"));
    if (!options_.calibration.empty() && !detail::Recalibration(net_).any())
      throw ConfigError(sentence("fed", "a calibration of a model without batch norm", "average its buffers"));
    io::keep_memory();
    if (std::ranges::any_of(options_.devices, [](torch::Device device) { return !device.is_cpu(); }))
      options_.sharing.alignment = 4;
    FlatModel model(net_, options_.sharing);
    if (options_.robust && detail::server_numbers(local_, model) > 0)
      throw ConfigError(sentence("fed", "a robust rule over a local update whose server keeps numbers (SCAFFOLD)",
                                 "take the mean: a liar could set those numbers as it likes"));
    memory_.emplace(
        detail::RoundMemory::Sizes{.workers = static_cast<std::size_t>(options_.workers),
                                   .clients = shares_.size(),
                                   .shared = static_cast<std::size_t>(model.shared().numel()),
                                   .local = static_cast<std::size_t>(model.local().numel()),
                                   .integers = static_cast<std::size_t>(model.integers().numel()),
                                   .integers_shared = model.shares_integers(),
                                   .server_states = server.states(),
                                   .client_numbers = static_cast<std::size_t>(detail::client_numbers(local_, model)),
                                   .server_numbers = static_cast<std::size_t>(detail::server_numbers(local_, model)),
                                   .partials = options_.robust
                                                   ? Blocks(static_cast<std::size_t>(model.shared().numel())).count() *
                                                         options_.robust->sums(shares_.size())
                                                   : 0,
                                   .rows = options_.robust.has_value()},
        model);
    worker_.emplace(net_, std::move(model), std::move(data), std::move(transform), std::move(evaluation_transform),
                    local_, std::move(server), shares_, *memory_, options_);
    coordinator_.emplace(*memory_, options_, [this](int which, detail::Phase phase) { worker_->serve(which, phase); });
  }
  Runner(Runner&&) = delete;

  [[nodiscard]] std::size_t clients() const noexcept { return shares_.size(); }
  /// A client in words, as messages name it.
  [[nodiscard]] std::string name_of(std::int64_t client) const { return options_.name_of(client); }
  /// That a client is sent in a round, and sends back: the tensors that travel (Sharing), and what the server keeps
  /// beside them for the local update (SCAFFOLD's control variate). Nothing is sent here: this is what it would take.
  [[nodiscard]] std::int64_t bytes_of_update() const noexcept {
    auto const& sizes = memory_->sizes();
    return static_cast<std::int64_t>((sizes.shared + sizes.server_numbers) * sizeof(float) +
                                     (sizes.integers_shared ? sizes.integers * sizeof(std::int64_t) : 0));
  }
  /// Whether the global model is a part of the model only: clients keep the rest (Sharing).
  [[nodiscard]] bool global_is_partial() const noexcept {
    auto const& sizes = memory_->sizes();
    return sizes.local > 0 || (sizes.integers > 0 && !sizes.integers_shared);
  }
  /// Rounds done; the next one's number.
  [[nodiscard]] std::int64_t round() const noexcept { return round_; }

  /// Trains these clients (ids from 0, each once) and makes the next global model.
  /// \throws Error for a client that failed or a worker that died, unless the options leave them out; the global model
  /// and what clients keep are then those before the round. ConfigError for ids that are not there. A round without
  /// clients (Poisson sampling has them) changes nothing and counts.
  RoundReport train(std::vector<std::int64_t> clients) {
    std::vector<std::int64_t> samples = sizes(clients, [this](Shares const& shares) {
      return local_.processed(static_cast<std::int64_t>(shares.train.size()));
    });
    auto report = coordinator_->train(round_, std::move(clients), std::move(samples));
    ++round_;
    return report;
  }
  /// Trains the clients that `sampler` draws for this round.
  template <client_sampler Sampler>
  RoundReport train(Sampler const& sampler) {
    return train(sample_clients(sampler, round_, clients(), options_.seed));
  }

  /// The present global model, with what each client keeps or without it, on a part of each client's samples; clients
  /// that have none there are left out. By ascending id. \throws Error for a client that fails, or a worker that dies
  /// twice.
  [[nodiscard]] std::vector<ClientEvaluation> evaluate(Part part, View view = View::personal) {
    std::vector<std::int64_t> all(clients());
    std::iota(all.begin(), all.end(), std::int64_t{0});
    return evaluate(part, std::move(all), view);
  }
  [[nodiscard]] std::vector<ClientEvaluation> evaluate(Part part, std::vector<std::int64_t> clients,
                                                       View view = View::personal) {
    auto const phase = part == Part::train ? detail::Phase::evaluate_train
                       : part == Part::val ? detail::Phase::evaluate_val
                                           : detail::Phase::evaluate_test;
    std::erase_if(clients, [&](std::int64_t client) {
      return client >= 0 && client < static_cast<std::int64_t>(shares_.size()) &&
             worker_->part_of(phase, static_cast<std::size_t>(client)).empty();
    });
    auto samples = sizes(clients, [&](Shares const& shares) {
      return static_cast<std::int64_t>((part == Part::train ? shares.train
                                        : part == Part::val ? shares.val
                                                            : shares.test)
                                           .size());
    });
    return coordinator_->evaluate(phase, view, round_, std::move(clients), std::move(samples));
  }

  /// The federation between two rounds, whole, with the caller's own words beside it; appears at once or not at all.
  /// \throws Error where the file cannot be written.
  void save(std::filesystem::path const& path, Remarks const& remarks = {}) const {
    coordinator_->check_whole();
    detail::save_checkpoint(path, *memory_, round_, options_.seed, coordinator_->training_costs(), remarks);
  }
  /// Goes on where save() was called, with any number of workers; returns the caller's words. \throws CheckpointError
  /// for a file that is damaged, or of another model, seed or population; nothing changes then.
  Remarks load(std::filesystem::path const& path) {
    auto [round, remarks] = detail::load_checkpoint(path, *memory_, options_.seed, coordinator_->training_costs());
    round_ = round;
    coordinator_->mended();
    return std::move(remarks);
  }
  /// The global model alone, tensors under their names, for other programs. \throws Error where it cannot be written.
  void save_model(std::filesystem::path const& path) const {
    coordinator_->check_whole();
    io::write_safetensors(path, detail::checkpoint_tensors(*memory_, {}, "", false));
  }

  /// Takes the global weights from a file of save_model(), or of save(); everything else stays as it is.
  /// \throws CheckpointError for a file that is damaged or of another model; nothing changes then.
  void load_model(std::filesystem::path const& path) { detail::load_weights(path, *memory_); }

  /// Writes the global weights into a model like the initial one; what clients keep stays as it is there.
  void load_global(Net& net) const {
    coordinator_->check_whole();
    memory_->give_global(net);
  }

 private:
  template <class F>
  std::vector<std::int64_t> sizes(std::vector<std::int64_t>& clients, F&& size) const {
    detail::check(clients, shares_.size());
    std::vector<std::int64_t> all;
    for (std::int64_t const client : clients) try {
        all.push_back(size(shares_[static_cast<std::size_t>(client)]));
      } catch (DataError const& error) {
        throw DataError(sentence("fed", "client " + std::to_string(client) + " cannot take part: " + error.what()));
      }
    return all;
  }

  RunnerOptions options_;
  Net net_;
  ClientShares shares_;
  Local local_;
  std::int64_t round_ = 0;
  std::optional<detail::RoundMemory> memory_;
  std::optional<detail::RoundWorker<Net, Data, Local, Server, Transform, EvaluationTransform>> worker_;
  std::optional<detail::Coordinator> coordinator_;  // last: its workers see all of the above
};

}  // namespace pardl::inline PARDL_ABI::fed
