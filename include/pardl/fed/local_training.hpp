// SPDX-License-Identifier: MIT
/// \file   What a client does with the global model: some steps or epochs of SGD on its own samples.
/// \layer  fed.
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/fed/batch_plan.hpp"
#include "pardl/fed/client_task.hpp"  // IWYU pragma: export
#include "pardl/fed/flat_model.hpp"
#include "pardl/fed/local_terms.hpp"  // IWYU pragma: export
#include "pardl/fed/tally.hpp"
#include "pardl/policy/any_lr_schedule.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/autocast.hpp"
#include "pardl/train/clipped_step.hpp"
#include "pardl/train/low_rank.hpp"
#include "pardl/train/optim.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

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

/// What of the model learns.
enum class Trained {
  all,
  shared,  ///< the parameters that travel; those that a client keeps stay as they are (a FedRep body)
  kept     ///< the other way round (a FedRep head)
};

struct LocalTrainingOptions {
  BatchRules batches{};                         ///< batch size, steps or epochs, accumulation
  bool shuffle = true;                          ///< a new order for each pass over the client's samples
  double max_grad_norm = 0;                     ///< gradients are clipped to this norm; 0: not at all
  std::optional<any_lr_schedule> schedule{};    ///< factor on the rate for each optimizer step of a round
  std::optional<torch::ScalarType> autocast{};  ///< kBFloat16 computes in mixed precision
  Trained trained = Trained::all;               ///< the parameters that learn
  bool low_rank = true;  ///< weight gradients of pardl::linear stay factors where the step can use them so
};

/// Local training as FederatedScope's trainer does it. Models local_update. What a strategy adds is its Term: NoTerm is
/// FedAvg, Proximal FedProx, ControlVariates SCAFFOLD, Normalised FedNova.
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
    if (options_.autocast == torch::kHalf)
      throw ConfigError(sentence("fed", "local training in float16, whose small gradients vanish without a scaler",
                                 "take kBFloat16: a client's few steps do not find a scale"));
  }

  [[nodiscard]] LocalTrainingOptions const& options() const noexcept { return options_; }
  /// Of a client with so many samples, how many it will process: its weight in the mean and its cost in the schedule.
  [[nodiscard]] std::int64_t processed(std::int64_t samples) const {
    return plan_batches(options_.batches, samples).samples;
  }
  /// The same loss, for evaluation.
  [[nodiscard]] Loss const& loss() const noexcept { return loss_; }

  [[nodiscard]] std::int64_t client_numbers(FlatModel const& model) const {
    return detail::client_numbers(term_, model);
  }
  [[nodiscard]] std::int64_t server_numbers(FlatModel const& model) const {
    return detail::server_numbers(term_, model);
  }

  /// \throws ConfigError where nothing is left to train, or the term does not suit the optimizer.
  template <class Net, class Batches>
  LocalResult operator()(ClientTask<Net, Batches> const& task) const {
    static_assert(local_term<Term, ClientTask<Net, Batches>>,
                  "pardl::fed::LocalTraining's term is begun with each task and returns something with active(), "
                  "gradients() and finish(trace, result); take NoTerm, Proximal, ControlVariates or Normalised, or "
                  "write one like them.");
    auto const plan = plan_batches(options_.batches, task.samples);
    Learning const learning(task.model, options_.trained);
    auto optimizer = make_(learning.parameters());
    auto term = term_.begin(task);
    auto trace = trace_of(optimizer);
    LocalResult result;
    result.tally = Tally(task.model.device());
    LowRankGradients low_rank;
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
        if (!options_.low_rank || term.active()) low_rank.materialize();
        if (!steps) continue;
        if (options_.schedule)
          set_learning_rate(optimizer, trace.rate * (*options_.schedule)((done + 1) / options_.batches.accumulate - 1));
        trace.rates.push_back(learning_rate(optimizer));
        term.gradients();
        clip_and_step(optimizer, options_.max_grad_norm, low_rank);
        optimizer.zero_grad();
      }
    }
    low_rank.clear();
    result.batches = done;
    result.samples = result.tally.samples();
    term.finish(trace, result);
    return result;
  }

 private:
  /// The parameters that learn; the others need no gradients until it goes.
  class Learning {
   public:
    Learning(FlatModel const& model, Trained trained) {
      for (std::size_t p = 0; p < model.parameters().size(); ++p) {
        bool const shared = model.is_shared_parameter(p);
        bool const learns = trained == Trained::all || (trained == Trained::shared) == shared;
        (learns ? learning_ : resting_).push_back(model.parameters()[p]);
      }
      if (learning_.empty())
        throw ConfigError(sentence("fed", "a training of the parameters that clients keep, and they keep none",
                                   "name some in Sharing::keep_local"));
      for (auto& parameter : resting_) parameter.requires_grad_(false);
    }
    Learning(Learning&&) = delete;
    ~Learning() {
      for (auto& parameter : resting_) parameter.requires_grad_(true);
    }
    [[nodiscard]] std::vector<torch::Tensor> const& parameters() const noexcept { return learning_; }

   private:
    std::vector<torch::Tensor> learning_, resting_;
  };

  template <class Optimizer>
  static LocalTrace trace_of(Optimizer& optimizer) {
    LocalTrace trace;
    trace.rate = learning_rate(optimizer);
    if constexpr (requires { optimizer.options().momentum; }) {
      auto const& options = optimizer.options();
      trace.momentum = options.momentum;
      trace.dampening = options.dampening;
      trace.weight_decay = options.weight_decay;
      trace.nesterov = options.nesterov;
    }
    return trace;
  }

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
