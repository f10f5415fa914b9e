// SPDX-License-Identifier: MIT
/// \file   What a client does with the global model: some steps or epochs of SGD on its own samples.
/// \layer  fed.
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/data/dataset.hpp"
#include "pardl/fed/batch_plan.hpp"
#include "pardl/fed/draws.hpp"
#include "pardl/fed/flat_model.hpp"
#include "pardl/fed/tally.hpp"
#include "pardl/policy/any_lr_schedule.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/autocast.hpp"
#include "pardl/train/clipped_step.hpp"
#include "pardl/train/optim.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

namespace purpose {
inline constexpr std::uint32_t batches = 30;   ///< the order of a client's samples
inline constexpr std::uint32_t training = 31;  ///< LibTorch's generators: dropout, and what else a module draws
}  // namespace purpose

/// One client of one round, on the model of the worker that trains it. The model holds the global weights and, where
/// clients keep something, the client's own; what it holds afterwards is the client's update.
template <class Net, class Batches>
struct ClientTask {
  Net& net;                ///< in training mode, without gradients; LibTorch's generators are seeded for this task
  FlatModel const& model;  ///< the same numbers as one row
  torch::Tensor global;    ///< the shared numbers as the round began with them, [S], on the CPU; not to be written
  Batches const& batch;    ///< batch(rows) -> Batch: some of the client's samples, transformed, on the worker's device
  std::int64_t samples;    ///< how many the client has
  std::int64_t client = 0, round = 0;
  std::uint64_t seed = 0;

  [[nodiscard]] Draws draws(std::uint32_t purpose) const {
    return Draws(seed, static_cast<std::uint64_t>(round), static_cast<std::uint64_t>(client), purpose);
  }
};

/// What came of it.
struct LocalResult {
  std::int64_t samples = 0;  ///< processed, a sample once for each epoch: what FederatedScope weights by
  std::int64_t batches = 0;
  Tally tally;  ///< losses and right answers over those samples
};

/// How a client is trained: `processed(samples)` says beforehand how many samples that will process (its weight in the
/// mean and its cost in the schedule), `loss()` is the loss for evaluation, and calling it with a ClientTask trains. It
/// is copied into each worker, so what must outlive a task belongs to the client's model. Models: LocalTraining.
template <class L, class Net>
concept local_update =
    std::copy_constructible<L> && requires(L const& local, std::int64_t samples, torch::Tensor const& t) {
      { local.processed(samples) } -> std::convertible_to<std::int64_t>;
      { local.loss()(t, t) } -> std::convertible_to<torch::Tensor>;
    };

/// The mean over a batch. The default of LocalTraining.
struct CrossEntropy {
  torch::Tensor operator()(torch::Tensor const& outputs, torch::Tensor const& targets) const {
    return at::cross_entropy_loss(outputs, targets);
  }
};
struct MeanSquaredError {
  torch::Tensor operator()(torch::Tensor const& outputs, torch::Tensor const& targets) const {
    return at::mse_loss(outputs, targets.to(outputs.scalar_type()).view_as(outputs));
  }
};

/// How a client makes its optimizer, anew in each round. The default of LocalTraining.
struct MakeSGD {
  optim::SGDOptions options{.lr = 0.1};
  [[nodiscard]] optim::SGD operator()(std::vector<torch::Tensor> parameters) const {
    return optim::SGD(std::move(parameters), options);
  }
};

/// What is added to the gradients of each optimizer step, before clipping. `term(task)` writes into the gradients of
/// task.model.parameters(). The default of LocalTraining adds nothing.
struct NoTerm {
  template <class Task>
  void operator()(Task const&) const {}
};

/// FedProx: the gradient of mu/2 · ‖w - w_global‖² over the shared parameters; mu 0 adds nothing, bit for bit.
/// \paper Li et al., "Federated optimization in heterogeneous networks", MLSys 2020.
struct Proximal {
  double mu = 0;

  template <class Task>
  void operator()(Task const& task) const {
    if (mu == 0) return;
    torch::NoGradGuard const no_grad;
    for (std::size_t p = 0; p < task.model.parameters().size(); ++p) {
      auto const& place = task.model.places()[p];
      if (place.begin >= task.model.shared_parameters()) break;
      torch::Tensor parameter = task.model.parameters()[p];
      auto& gradient = parameter.mutable_grad();
      if (!gradient.defined()) continue;
      auto const start = task.global.narrow(0, place.begin, place.size).to(parameter.device());
      gradient.add_(
          parameter.detach() - start.as_strided(parameter.sizes(), parameter.strides(), start.storage_offset()), mu);
    }
  }
};

struct LocalTrainingOptions {
  BatchRules batches{};                         ///< batch size, steps or epochs, accumulation
  bool shuffle = true;                          ///< a new order for each pass over the client's samples
  double max_grad_norm = 0;                     ///< gradients are clipped to this norm; 0: not at all
  std::optional<any_lr_schedule> schedule{};    ///< factor on the rate for each optimizer step of a round
  std::optional<torch::ScalarType> autocast{};  ///< kBFloat16 computes in mixed precision
};

/// Local training as FederatedScope's trainer does it. Models local_update.
/// \paper McMahan et al., AISTATS 2017 (FedAvg's ClientUpdate).
template <class Loss = CrossEntropy, class MakeOptimizer = MakeSGD, class Term = NoTerm>
class LocalTraining {
 public:
  explicit LocalTraining(LocalTrainingOptions options = {}, MakeOptimizer make = {}, Loss loss = {}, Term term = {})
      : options_(std::move(options)), make_(std::move(make)), loss_(std::move(loss)), term_(std::move(term)) {
    check(options_.batches);
    if (!(options_.max_grad_norm >= 0))
      throw ConfigError(sentence("fed", "gradients clipped to a norm of " + std::to_string(options_.max_grad_norm),
                                 "it is above 0, or 0 for no clipping"));
  }

  [[nodiscard]] LocalTrainingOptions const& options() const noexcept { return options_; }
  /// Of a client with so many samples, how many it will process: its weight in the mean and its cost in the schedule.
  [[nodiscard]] std::int64_t processed(std::int64_t samples) const {
    return plan_batches(options_.batches, samples).samples;
  }
  /// The same loss, for evaluation.
  [[nodiscard]] Loss const& loss() const noexcept { return loss_; }

  /// \throws Error for a loss that is not finite.
  template <class Net, class Batches>
  LocalResult operator()(ClientTask<Net, Batches> const& task) const {
    auto const plan = plan_batches(options_.batches, task.samples);
    auto optimizer = make_(task.model.parameters());
    double const rate = learning_rate(optimizer);
    LocalResult result;
    result.tally = Tally(task.model.device());
    auto order = task.draws(purpose::batches);
    std::vector<std::int64_t> rows(static_cast<std::size_t>(task.samples));
    std::int64_t done = 0;
    for (std::int64_t pass = 0; done < plan.batches; ++pass) {
      std::iota(rows.begin(), rows.end(), std::int64_t{0});
      if (options_.shuffle) order.shuffle(rows);
      for (std::int64_t b = 0; b < plan.batches_per_epoch && done < plan.batches; ++b, ++done) {
        auto const begin = static_cast<std::size_t>(b * options_.batches.batch_size);
        auto const size = std::min(rows.size() - begin, static_cast<std::size_t>(options_.batches.batch_size));
        auto const [inputs, targets] = task.batch(std::span<std::int64_t const>(rows).subspan(begin, size), pass);
        auto const [outputs, loss] = forward(task, inputs, targets);
        result.tally.add(loss.detach(), outputs.detach(), targets);
        bool const steps = (done + 1) % options_.batches.accumulate == 0;
        (options_.batches.accumulate > 1 ? loss / options_.batches.accumulate : loss).backward();
        if (!steps) continue;
        if (options_.schedule)
          set_learning_rate(optimizer, rate * (*options_.schedule)((done + 1) / options_.batches.accumulate - 1));
        term_(task);
        clip_and_step(optimizer, options_.max_grad_norm);
        optimizer.zero_grad();
      }
    }
    result.batches = done;
    result.samples = result.tally.samples();
    return result;
  }

 private:
  template <class Task>
  std::pair<torch::Tensor, torch::Tensor> forward(Task const& task, torch::Tensor const& inputs,
                                                  torch::Tensor const& targets) const {
    std::optional<Autocast> amp;
    if (options_.autocast) amp.emplace(task.model.device(), *options_.autocast);
    auto outputs = pardl::detail::contained(task.net).forward(inputs);
    auto loss = loss_(outputs, targets);
    return {std::move(outputs), std::move(loss)};
  }

  LocalTrainingOptions options_;
  MakeOptimizer make_;
  Loss loss_;
  Term term_;
};

}  // namespace pardl::inline PARDL_ABI::fed
