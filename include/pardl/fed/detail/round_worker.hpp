// SPDX-License-Identifier: MIT
/// \file   What a worker does when told: train or evaluate clients in its one model, or finish a slice of a round.
/// \layer  fed, private.
#pragma once

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/data/dataset.hpp"
#include "pardl/data/sample_stream.hpp"
#include "pardl/fed/client_task.hpp"
#include "pardl/fed/clients.hpp"
#include "pardl/fed/detail/client_samples.hpp"
#include "pardl/fed/detail/recalibration.hpp"
#include "pardl/fed/detail/robust_round.hpp"
#include "pardl/fed/detail/round_finish.hpp"
#include "pardl/fed/detail/round_memory.hpp"
#include "pardl/fed/draws.hpp"
#include "pardl/fed/fixed_point_sum.hpp"
#include "pardl/fed/flat_model.hpp"
#include "pardl/fed/round.hpp"
#include "pardl/fed/screening.hpp"
#include "pardl/fed/server_optimizer.hpp"
#include "pardl/fed/tally.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// Everything that a client's modules draw depends on this seed.
inline void seed_generators(torch::Device device, std::uint64_t seed) {
  auto const plant = [seed](at::Generator generator) {
    std::lock_guard const lock(generator.mutex());
    generator.set_current_seed(seed);
  };
  plant(at::globalContext().defaultGenerator(torch::kCPU));
  if (!device.is_cpu()) plant(at::globalContext().defaultGenerator(device));
}

template <class Net, class Data, class Local, class Server, class Transform, class EvaluationTransform>
class RoundWorker {
 public:
  RoundWorker(Net& net, FlatModel model, Data data, Transform transform, EvaluationTransform evaluation_transform,
              Local local, Server server, ClientShares const& shares, RoundMemory& memory, RunnerOptions const& options)
      : net_(net),
        model_(std::move(model)),
        data_(std::move(data)),
        transform_(std::move(transform)),
        evaluation_transform_(std::move(evaluation_transform)),
        local_(std::move(local)),
        server_(std::move(server)),
        shares_(shares),
        memory_(memory),
        options_(options),
        gatherer_(data_) {}

  void serve(int which, Phase phase) {
    auto const worker = static_cast<std::size_t>(which);
    Guest const guest(!options_.processes ? device(worker) : std::optional<torch::Device>{});
    if (at::get_num_threads() != options_.threads_per_worker) at::set_num_threads(options_.threads_per_worker);
    if (phase == Phase::survey) return survey(worker);
    if (phase == Phase::finish) return finish(worker);
    if (phase == Phase::recalibrate) return recalibrate(worker);
    bool const training = phase == Phase::train;
    if (auto const broken = begin(worker, training)) {  // every task of this worker fails alike
      for (std::optional<std::uint32_t> task; (task = memory_.queues.take(worker));)
        memory_.outcomes[*task].fail(*broken);
      return;
    }
    while (auto const task = memory_.queues.take(worker)) {
      auto& outcome = memory_.outcomes[*task];
      memory_.current[worker] = outcome.client + 1;
      outcome.worker = which;
      auto const start = std::chrono::steady_clock::now();
      try {
        if (training)
          train(worker, *task);
        else
          evaluate(part_of(phase, static_cast<std::size_t>(outcome.client)), outcome);
      } catch (c10::Error const& error) {
        outcome.fail(error.what_without_backtrace());
      } catch (std::exception const& error) {
        outcome.fail(error.what());
      } catch (...) {
        outcome.fail("an exception of unknown type");
      }
      outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (outcome.state == TaskState::open) outcome.state = TaskState::done;
      memory_.current[worker] = 0;
    }
    if (training && device_sum_) store_device_sum(worker);
  }

  /// Samples of a client for a phase of evaluation.
  [[nodiscard]] std::vector<std::int64_t> const& part_of(Phase phase, std::size_t client) const {
    auto const& shares = shares_[client];
    return phase == Phase::evaluate_train ? shares.train : phase == Phase::evaluate_val ? shares.val : shares.test;
  }

 private:
  /// While a worker works in the caller's own process, its draws and threads are not the caller's.
  class Guest {
   public:
    explicit Guest(std::optional<torch::Device> device) : device_(device) {
      if (!device_) return;
      threads_ = at::get_num_threads();
      states_[0] = state(torch::kCPU);
      if (!device_->is_cpu()) states_[1] = state(*device_);
    }
    Guest(Guest&&) = delete;
    ~Guest() {
      if (!device_) return;
      if (at::get_num_threads() != threads_) at::set_num_threads(threads_);
      restore(torch::kCPU, states_[0]);
      if (!device_->is_cpu()) restore(*device_, states_[1]);
    }

   private:
    static torch::Tensor state(torch::Device device) {
      auto generator = at::globalContext().defaultGenerator(device);
      std::lock_guard const lock(generator.mutex());
      return generator.get_state();
    }
    static void restore(torch::Device device, torch::Tensor const& state) {
      auto generator = at::globalContext().defaultGenerator(device);
      std::lock_guard const lock(generator.mutex());
      generator.set_state(state);
    }
    std::optional<torch::Device> device_;
    int threads_ = 0;
    std::array<torch::Tensor, 2> states_;
  };

  [[nodiscard]] torch::Device device(std::size_t worker) const {
    return options_.devices[worker % options_.devices.size()];
  }

  /// Before the first task of a phase. Returns what went wrong.
  std::optional<std::string> begin(std::size_t worker, bool training) {
    try {
      if (model_.device() != device(worker)) {
        // The fastest of cuDNN's kernels add in no fixed order: the result would depend on the run.
        at::globalContext().setDeterministicCuDNN(true);
        pardl::detail::contained(net_).to(device(worker));
        model_ = FlatModel(net_, options_.sharing);
      }
      if (training && !model_.device().is_cpu()) {
        auto sums = device_sum_
                        ? device_sum_->tensor()
                        : torch::empty({model_.shared().numel()}, torch::dtype(torch::kLong).device(model_.device()));
        device_sum_.emplace(sums.zero_(), memory_.scale());
      }
      if (!training) {
        torch::NoGradGuard const no_grad;
        model_.shared().copy_(global_row());
        pardl::detail::contained(net_).eval();
      }
      return std::nullopt;
    } catch (c10::Error const& error) {
      return error.what_without_backtrace();
    } catch (std::exception const& error) {
      return error.what();
    }
  }

  template <class Number>
  static void copy_in(torch::Tensor to, std::span<Number const> from) {
    if (from.empty()) return;
    to.copy_(torch::from_blob(const_cast<Number*>(from.data()), {static_cast<std::int64_t>(from.size())},
                              torch::dtype(c10::CppTypeToScalarType<Number>::value)));
  }
  template <class Number>
  static void copy_out(torch::Tensor const& from, std::span<Number> to) {
    if (to.empty()) return;
    torch::from_blob(to.data(), {static_cast<std::int64_t>(to.size())},
                     torch::dtype(c10::CppTypeToScalarType<Number>::value))
        .copy_(from);
  }

  [[nodiscard]] torch::Tensor global_row() const {
    return torch::from_blob(memory_.global.data(), {static_cast<std::int64_t>(memory_.sizes().shared)}, torch::kFloat);
  }

  template <class Number>
  static torch::Tensor as_tensor(std::span<Number> numbers) {
    return torch::from_blob(numbers.data(), {static_cast<std::int64_t>(numbers.size())},
                            torch::dtype(c10::CppTypeToScalarType<Number>::value));
  }

  void train(std::size_t worker, std::uint32_t task) {
    auto& outcome = memory_.outcomes[task];
    auto const client = static_cast<std::size_t>(outcome.client);
    auto const& indices = shares_[client].train;
    auto const round = memory_.desk().round;
    ClientSamples<Transform> const samples(gatherer_.gather(outcome.client, indices), indices, transform_,
                                           model_.device(), options_.seed, round);
    if (auto const next = memory_.queues.peek(worker)) {
      auto const coming = memory_.outcomes[*next].client;
      gatherer_.expect(coming, shares_[static_cast<std::size_t>(coming)].train);
    }
    bool const first = memory_.has_kept[client] == 0;
    auto const numbers = memory_.staged_numbers(task);
    {
      torch::NoGradGuard const no_grad;
      model_.shared().copy_(global_row());
      copy_in(model_.local(), memory_.local_of(client));
      copy_in(model_.integers(), memory_.integers_of(client));
      for (auto const& parameter : model_.parameters()) parameter.mutable_grad().reset();
      if (first)
        std::ranges::fill(numbers, 0.0F);
      else
        std::ranges::copy(memory_.numbers_of(client), numbers.begin());
      if (memory_.sizes().server_numbers > 0 && !change_.defined())
        change_ = torch::zeros({static_cast<std::int64_t>(memory_.sizes().server_numbers)});
      else if (change_.defined())
        change_.zero_();
    }
    seed_generators(model_.device(), fold(options_.seed, static_cast<std::uint64_t>(round), client, purpose::training));
    pardl::detail::contained(net_).train();
    auto const result =
        local_(ClientTask<Net, ClientSamples<Transform>>{.net = net_,
                                                         .model = model_,
                                                         .global = global_row(),
                                                         .batch = samples,
                                                         .samples = static_cast<std::int64_t>(indices.size()),
                                                         .client = outcome.client,
                                                         .round = round,
                                                         .seed = options_.seed,
                                                         .kept = as_tensor(numbers),
                                                         .first = first,
                                                         .server = as_tensor(memory_.server_numbers.span()),
                                                         .change = change_});
    outcome.samples = result.samples;
    outcome.batches = result.batches;
    outcome.correct = result.tally.correct();
    outcome.answers = result.tally.answers();
    outcome.loss = result.tally.loss();
    outcome.stretch = result.stretch;
    outcome.weight = options_.weighting == Weighting::uniform ? 1.0 : static_cast<double>(result.samples);
    if (!std::isfinite(outcome.loss)) return outcome.fail("its training loss is " + std::to_string(outcome.loss));
    if (!(outcome.weight > 0))
      return outcome.fail("it says that it processed " + std::to_string(result.samples) +
                          " samples, which weigh nothing");
    if (auto const bad = std::ranges::find_if_not(numbers, [](float x) { return std::isfinite(x); });
        bad != numbers.end())
      return outcome.fail("number " + std::to_string(bad - numbers.begin()) + " of what it keeps is " +
                          std::to_string(*bad));
    hand_in(worker, task, outcome);
  }

  /// Lets an update count, if it can: adds it to this worker's sums, or puts it down whole for a robust rule.
  void hand_in(std::size_t worker, std::size_t task, Outcome& outcome) {
    torch::NoGradGuard const no_grad;
    auto const& sizes = memory_.sizes();
    if (options_.looks_at_norms() && !screened(task, outcome)) return;
    if (sizes.server_numbers > 0) {
      FixedPointSum changes(as_tensor(memory_.number_sums.span(worker * sizes.server_numbers, sizes.server_numbers)),
                            memory_.number_scale(memory_.desk().tasks));
      if (auto const bad = changes.accumulate(change_, 1))
        return outcome.fail("its change of the server's number " + std::to_string(*bad) + " is " +
                            std::to_string(change_[*bad].item<float>()));
    }
    auto const scale = memory_.scale();
    if (!sizes.rows) {
      FixedPointSum host(as_tensor(memory_.sums.span(worker * sizes.shared, sizes.shared)), scale);
      auto& sum = device_sum_ ? *device_sum_ : host;
      if (auto const bad = sum.accumulate(model_.shared(), outcome.weight)) {
        take_back_change(worker);
        return outcome.fail("its update cannot be added: " + model_.name_of(*bad) + " is " +
                            std::to_string(model_.shared()[*bad].item<float>()));
      }
    }
    outcome.units = scale.units(outcome.weight);
    copy_out(model_.local(), memory_.staged_local(task));
    if (!sizes.integers_shared || sizes.rows)  // under a robust rule they count once all others are seen
      copy_out(model_.integers(), memory_.staged_integers.span(task * sizes.integers, sizes.integers));
    else if (sizes.integers > 0) {
      auto const here = model_.integers().cpu();
      auto const most = memory_.most_integers.span(worker * sizes.integers, sizes.integers);
      for (std::size_t i = 0; i < sizes.integers; ++i)
        most[i] = std::max(most[i], here.const_data_ptr<std::int64_t>()[i]);
    }
  }

  /// The first look (screening.hpp), at a row on the CPU: the one that a robust rule will see, where there is one.
  bool screened(std::size_t task, Outcome& outcome) {
    auto const& sizes = memory_.sizes();
    torch::Tensor row;
    if (sizes.rows)
      row = as_tensor(memory_.rows.span(task * sizes.shared, sizes.shared)).copy_(model_.shared());
    else
      row = model_.shared().cpu();
    auto const look = screen({row.const_data_ptr<float>(), sizes.shared}, memory_.global.span(), options_.screening,
                             [this](std::size_t at) { return model_.name_of(static_cast<std::int64_t>(at)); });
    outcome.norm = look.norm;
    if (look.reason) outcome.fail("its update is screened out: " + *look.reason);
    return !look.reason;
  }

  void take_back_change(std::size_t worker) {
    auto const& sizes = memory_.sizes();
    if (sizes.server_numbers == 0) return;
    auto const scale = memory_.number_scale(memory_.desk().tasks);
    (void)fixed_point::add(memory_.number_sums.span(worker * sizes.server_numbers, sizes.server_numbers),
                           {change_.const_data_ptr<float>(), sizes.server_numbers}, -scale.units(1), scale.limit());
  }

  void evaluate(std::vector<std::int64_t> const& indices, Outcome& outcome) {
    torch::NoGradGuard const no_grad;
    load_view(static_cast<std::size_t>(outcome.client));
    Tally tally(model_.device());
    auto const size = static_cast<std::size_t>(options_.evaluation_batch_size);
    for (std::size_t begin = 0; begin < indices.size(); begin += size) {
      auto const part = std::span(indices).subspan(begin, std::min(size, indices.size() - begin));
      auto const [outputs, targets] = forward(part);
      tally.add(local_.loss()(outputs, targets), outputs, targets);
    }
    outcome.samples = tally.samples();
    outcome.correct = tally.correct();
    outcome.answers = tally.answers();
    outcome.loss = tally.loss();
  }

  /// The model that a client is evaluated with; begin() has put the global weights there.
  void load_view(std::size_t client) {
    if (!memory_.keeps()) return;
    bool const personal = memory_.desk().personal;
    if (memory_.sizes().client_numbers > 0) model_.shared().copy_(global_row());  // the client before had its own
    copy_in(model_.local(), personal ? memory_.local_of(client) : std::span<float const>(memory_.first_local));
    copy_in(model_.integers(), personal || memory_.sizes().integers_shared
                                   ? memory_.integers_of(client)
                                   : std::span<std::int64_t const>(memory_.first_integers));
    if (personal && memory_.has_kept[client] != 0) load_personal(local_, model_, as_tensor(memory_.numbers_of(client)));
  }

  /// Samples through the model as it is, not augmented by any round.
  [[nodiscard]] std::pair<torch::Tensor, torch::Tensor> forward(std::span<std::int64_t const> indices) {
    auto const [inputs, targets] = data_.batch(indices);
    return {pardl::detail::contained(net_).forward(evaluation_transform_(
                inputs.to(model_.device(), /*non_blocking=*/true), SampleStream{options_.seed, 0, indices})),
            targets.to(model_.device(), /*non_blocking=*/true)};
  }

  /// Adds what this attempt has summed up to what an attempt before has: a round's clients may come in two.
  void store_device_sum(std::size_t worker) {
    torch::NoGradGuard const no_grad;
    as_tensor(memory_.sums.span(worker * memory_.sizes().shared, memory_.sizes().shared))
        .add_(device_sum_->tensor().cpu());
  }

  /// The coordinator's plan, made here once more: the same numbers, the same plan.
  void survey(std::size_t worker) {
    follow_plan();
    robust_->survey(worker);
  }
  void follow_plan() {
    if (memory_.desk().passes == 0) robust_.emplace(*options_.robust, memory_);
    if (!robust_) throw Error(sentence("fed", "a worker that was started between two passes of a robust rule"));
    if (robust_->passes() < memory_.desk().passes) robust_->decide();
  }

  void finish(std::size_t worker) {
    if (memory_.sizes().rows) follow_plan();
    RoundFinish<Server>(memory_, server_, static_cast<std::size_t>(model_.shared_parameters()),
                        robust_ ? &*robust_ : nullptr, worker)();
    robust_.reset();
  }

  void recalibrate(std::size_t worker) {
    if (worker != 0) return;
    torch::NoGradGuard const no_grad;
    if (auto const broken = begin(worker, false)) throw Error(*broken);
    copy_in(model_.local(), std::span<float const>(memory_.first_local));  // and no client's that was here before
    copy_in(model_.integers(), std::span<std::int64_t const>(memory_.global_integers.span()));
    {
      Recalibration const measuring(net_);
      auto const all = std::span<std::int64_t const>(options_.calibration);
      auto const size = static_cast<std::size_t>(options_.evaluation_batch_size);
      for (std::size_t at = 0; at < all.size(); at += size)
        (void)forward(all.subspan(at, std::min(size, all.size() - at)));
    }
    auto const parameters = model_.shared_parameters();
    auto const buffers = memory_.global.span(static_cast<std::size_t>(parameters),
                                             memory_.sizes().shared - static_cast<std::size_t>(parameters));
    copy_out(model_.shared().narrow(0, parameters, static_cast<std::int64_t>(buffers.size())), buffers);
    copy_out(model_.integers(), memory_.global_integers.span());
    RoundMemory::note_largest(memory_.largest[0], buffers);
  }

  Net& net_;
  FlatModel model_;
  Data data_;
  Transform transform_;
  EvaluationTransform evaluation_transform_;
  Local local_;
  Server server_;
  ClientShares const& shares_;
  RoundMemory& memory_;
  RunnerOptions const& options_;
  Gatherer<Data> gatherer_;
  torch::Tensor change_;                     // of the server's numbers, by the client at hand
  std::optional<RobustRound> robust_;        // of the round at hand
  std::optional<FixedPointSum> device_sum_;  // on a GPU the accumulator is there, and comes to memory_ once a round
};

}  // namespace pardl::inline PARDL_ABI::fed::detail
