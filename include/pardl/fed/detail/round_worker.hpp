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
#include "pardl/fed/clients.hpp"
#include "pardl/fed/detail/round_memory.hpp"
#include "pardl/fed/draws.hpp"
#include "pardl/fed/fixed_point_sum.hpp"
#include "pardl/fed/flat_model.hpp"
#include "pardl/fed/local_training.hpp"
#include "pardl/fed/round.hpp"
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

/// The samples of one client, gathered once and transformed batch by batch.
template <class Data, class Transform>
class ClientSamples {
 public:
  ClientSamples(Data const& data, std::vector<std::int64_t> const& indices, Transform const& transform,
                torch::Device device, std::uint64_t seed, std::int64_t round)
      : indices_(indices), transform_(transform), seed_(seed), round_(round) {
    auto [inputs, targets] = data.batch(indices);
    samples_ = {inputs.to(device, /*non_blocking=*/true), targets.to(device, /*non_blocking=*/true)};
  }

  /// Rows of the client's samples, in the `pass`-th pass over them.
  [[nodiscard]] Batch operator()(std::span<std::int64_t const> rows, std::int64_t pass) const {
    numbers_.resize(rows.size());
    std::ranges::transform(rows, numbers_.begin(),
                           [this](std::int64_t row) { return indices_[static_cast<std::size_t>(row)]; });
    SampleStream const stream{seed_, round_ * passes_in_round + pass, numbers_};
    return {transform_(pardl::detail::gather_rows(samples_.inputs, rows), stream),
            pardl::detail::gather_rows(samples_.targets, rows)};
  }

 private:
  static constexpr std::int64_t passes_in_round = 4096;  // a stream's epoch has 32 bits

  std::vector<std::int64_t> const& indices_;
  Transform const& transform_;
  std::uint64_t seed_;
  std::int64_t round_;
  Batch samples_;
  mutable std::vector<std::int64_t> numbers_;
};

template <class Net, class Data, class Local, class Server, class Transform>
class RoundWorker {
 public:
  RoundWorker(Net& net, FlatModel model, Data data, Transform transform, Local local, Server server,
              ClientShares const& shares, RoundMemory& memory, RunnerOptions const& options)
      : net_(net),
        model_(std::move(model)),
        data_(std::move(data)),
        transform_(std::move(transform)),
        local_(std::move(local)),
        server_(std::move(server)),
        shares_(shares),
        memory_(memory),
        options_(options) {}

  void serve(int which, Phase phase) {
    auto const worker = static_cast<std::size_t>(which);
    Guest const guest(!options_.processes ? device(worker) : std::optional<torch::Device>{});
    if (at::get_num_threads() != options_.threads_per_worker) at::set_num_threads(options_.threads_per_worker);
    if (phase == Phase::finish) return finish(worker);
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
          train(worker, outcome);
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
        pardl::detail::contained(net_).to(device(worker));
        model_ = FlatModel(net_, options_.sharing);
      }
      if (training && !model_.device().is_cpu()) {
        if (!device_sum_)
          device_sum_.emplace(model_.shared().numel(), memory_.scale(), model_.device());
        else
          device_sum_.emplace(device_sum_->tensor().zero_(), memory_.scale());
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

  void load_client(std::size_t client) {
    copy_in(model_.local(), memory_.local_of(client));
    copy_in(model_.integers(), memory_.integers_of(client));
  }

  void train(std::size_t worker, Outcome& outcome) {
    auto const client = static_cast<std::size_t>(outcome.client);
    auto const& indices = shares_[client].train;
    auto const round = memory_.desk().round;
    ClientSamples<Data, Transform> const samples(data_, indices, transform_, model_.device(), options_.seed, round);
    {
      torch::NoGradGuard const no_grad;
      model_.shared().copy_(global_row());
      load_client(client);
      for (auto const& parameter : model_.parameters()) parameter.mutable_grad().reset();
    }
    seed_generators(model_.device(), fold(options_.seed, static_cast<std::uint64_t>(round), client, purpose::training));
    pardl::detail::contained(net_).train();
    auto const result =
        local_(ClientTask<Net, ClientSamples<Data, Transform>>{.net = net_,
                                                               .model = model_,
                                                               .global = global_row(),
                                                               .batch = samples,
                                                               .samples = static_cast<std::int64_t>(indices.size()),
                                                               .client = outcome.client,
                                                               .round = round,
                                                               .seed = options_.seed});
    outcome.samples = result.samples;
    outcome.batches = result.batches;
    outcome.correct = result.tally.correct();
    outcome.answers = result.tally.answers();
    outcome.loss = result.tally.loss();
    if (!std::isfinite(outcome.loss)) return outcome.fail("its training loss is " + std::to_string(outcome.loss));

    double const weight = options_.weighting == Weighting::uniform ? 1.0 : static_cast<double>(result.samples);
    auto const scale = memory_.scale();
    FixedPointSum host(torch::from_blob(memory_.sums.data() + worker * memory_.sizes().shared,
                                        {static_cast<std::int64_t>(memory_.sizes().shared)}, torch::kLong),
                       scale);
    auto& sum = device_sum_ ? *device_sum_ : host;
    if (auto const bad = sum.accumulate(model_.shared(), weight))
      return outcome.fail("its update cannot be added: " + model_.name_of(*bad) + " is " +
                          std::to_string(model_.shared()[*bad].item<float>()));
    outcome.units = scale.units(weight);
    auto const& sizes = memory_.sizes();
    copy_out(model_.local(), memory_.staged.span(client * sizes.local, sizes.local));
    if (!sizes.integers_shared)
      copy_out(model_.integers(), memory_.staged_integers.span(client * sizes.integers, sizes.integers));
    else if (sizes.integers > 0) {
      auto const here = model_.integers().cpu();
      auto const most = memory_.most_integers.span(worker * sizes.integers, sizes.integers);
      for (std::size_t i = 0; i < sizes.integers; ++i)
        most[i] = std::max(most[i], here.const_data_ptr<std::int64_t>()[i]);
    }
  }

  void evaluate(std::vector<std::int64_t> const& indices, Outcome& outcome) {
    torch::NoGradGuard const no_grad;
    if (memory_.keeps()) load_client(static_cast<std::size_t>(outcome.client));
    Tally tally(model_.device());
    auto const size = static_cast<std::size_t>(options_.evaluation_batch_size);
    for (std::size_t begin = 0; begin < indices.size(); begin += size) {
      auto const part = std::span(indices).subspan(begin, std::min(size, indices.size() - begin));
      auto const [inputs, raw_targets] = data_.batch(part);
      auto const targets = raw_targets.to(model_.device(), /*non_blocking=*/true);
      auto const outputs = pardl::detail::contained(net_).forward(
          transform_(inputs.to(model_.device(), /*non_blocking=*/true), SampleStream{options_.seed, 0, part}));
      tally.add(local_.loss()(outputs, targets), outputs, targets);
    }
    outcome.samples = tally.samples();
    outcome.correct = tally.correct();
    outcome.answers = tally.answers();
    outcome.loss = tally.loss();
  }

  void store_device_sum(std::size_t worker) {
    torch::NoGradGuard const no_grad;
    copy_out(device_sum_->tensor(), memory_.sums.span(worker * memory_.sizes().shared, memory_.sizes().shared));
  }

  /// This worker's slice of the model: the mean over all accumulators, the server's step, accumulators back to zero.
  void finish(std::size_t worker) {
    auto const& sizes = memory_.sizes();
    auto const parameters = static_cast<std::size_t>(model_.shared_parameters());
    auto const total = memory_.desk().total_units;
    memory_.largest[worker] = 0;
    constexpr std::size_t block = 4096;
    std::array<std::int64_t, block> sum;
    std::array<double, block> mean;
    auto const blocks = (sizes.shared + block - 1) / block;
    auto const end = std::min(sizes.shared, blocks * (worker + 1) / sizes.workers * block);
    for (std::size_t at = blocks * worker / sizes.workers * block; at < end;) {
      // Averaged buffers lie behind the parameters; the optimizer is for parameters.
      auto const stop = at < parameters ? std::min(parameters, end) : end;
      auto const size = std::min(block, stop - at);
      std::fill_n(sum.begin(), size, 0);
      for (std::size_t other = 0; other < sizes.workers; ++other) {
        auto const part = memory_.sums.span(other * sizes.shared + at, size);
        for (std::size_t i = 0; i < size; ++i) sum[i] += part[i];
        std::ranges::fill(part, 0);
      }
      for (std::size_t i = 0; i < size; ++i) mean[i] = static_cast<double>(sum[i]) / total;
      auto const weights = memory_.global.span(at, size);
      std::span<double const> const means(mean.data(), size);
      if (at < parameters) {
        std::array<std::span<float>, most_server_states> state;
        for (std::size_t s = 0; s < sizes.server_states; ++s)
          state[s] = memory_.server_state.span(s * sizes.shared + at, size);
        server_.apply(weights, means, std::span(state).first(sizes.server_states), memory_.desk().round + 1);
      } else {
        Average{}.apply(weights, means, {}, 0);
      }
      memory_.note_largest(worker, weights);
      at += size;
    }
    for (auto task = worker; task < static_cast<std::size_t>(memory_.desk().tasks); task += sizes.workers)
      if (auto const& outcome = memory_.outcomes[task]; outcome.state == TaskState::done)
        keep(static_cast<std::size_t>(outcome.client));
    if (worker == 0 && sizes.integers_shared)
      for (std::size_t i = 0; i < sizes.integers; ++i)
        for (std::size_t other = 0; other < sizes.workers; ++other) {
          auto& most = memory_.most_integers[other * sizes.integers + i];
          memory_.global_integers[i] = std::max(memory_.global_integers[i], most);
          most = RoundMemory::nothing;
        }
  }

  void keep(std::size_t client) {
    if (!memory_.keeps()) return;
    auto const& sizes = memory_.sizes();
    std::ranges::copy(memory_.staged.span(client * sizes.local, sizes.local),
                      memory_.kept.data() + client * sizes.local);
    if (!sizes.integers_shared)
      std::ranges::copy(memory_.staged_integers.span(client * sizes.integers, sizes.integers),
                        memory_.kept_integers.data() + client * sizes.integers);
    memory_.has_kept[client] = 1;
  }

  Net& net_;
  FlatModel model_;
  Data data_;
  Transform transform_;
  Local local_;
  Server server_;
  ClientShares const& shares_;
  RoundMemory& memory_;
  RunnerOptions const& options_;
  std::optional<FixedPointSum> device_sum_;  // on a GPU the accumulator is there, and comes to memory_ once a round
};

}  // namespace pardl::inline PARDL_ABI::fed::detail
