// SPDX-License-Identifier: MIT
/// \file   A parameter server: one rank keeps parameters and optimizer, the others train on their share of the data.
/// \layer  train.
///
/// Li et al., "Scaling Distributed Machine Learning with the Parameter Server", OSDI 2014, with one server rank. Each
/// worker sends its gradients and gets parameters back; the optimizer and its state live on the server.
/// ```
/// pardl::ParameterServer ps{net, world, [](auto params) { return pardl::optim::SGD(params, {.lr = 0.1}); }};
/// if (ps.is_server()) {
///   ps.serve();
/// } else {
///   pardl::DistributedSampler sampler{data.size(), ps.workers()};  // N - 1 shares
///   pardl::DataLoader loader{data, sampler, …};
///   for (auto& [images, labels] : loader.epoch(0)) {
///     ps.zero_grad();
///     cross_entropy(net(images), labels).backward();
///     ps.step();                                                   // in place of the optimizer's
///   }
///   ps.finish();
/// }                                                                // here every rank holds the same model
/// ```
/// **Steps.** The server's step number c averages the gradient number c of every worker that still trains: sum in the
/// order of ranks, then division by their number. So results are the same bits in whatever order workers come, and of
/// one worker they are the bits of training alone. A parameter that no worker used has no gradient, as in a process
/// alone; one that some did not use counts as zero there, as in DistributedDataParallel.
///
/// **Staleness.** With .staleness = s a worker may begin its step c with any version of the parameters from c - s on,
/// so it is at most s steps ahead of the slowest (Ho et al., "More Effective Distributed ML via a Stale Synchronous
/// Parallel Parameter Server", NIPS 2013). step() returns with the newest version there is. 0 is synchronous training,
/// by the same code. Unlike there, the server does not add each gradient as it comes but takes one step of the
/// optimizer per clock, so that momentum and schedules mean what they always do; a worker that runs ahead does not see
/// its own last gradients until the others have come.
///
/// **Buffers**, such as the statistics of batch norm, are each worker's own while it trains. With each step the server
/// takes those of the lowest rank among the workers that made it, and finish() gives them to all: what
/// DistributedDataParallel, which goes by its first rank, has in the end. So the server's module can be evaluated and
/// saved between any two steps.
///
/// **Uneven data.** A worker with no batch left calls finish(); the others go on, and are averaged without it.
///
/// **Death.** By default the death of any rank ends all, with the cause. With .on_rank_failure = keep_going a dead
/// worker, or one that is silent for world.timeout(), is named on stderr or to an observer, and training goes on
/// without it; what it gave completely counts. That works because each worker shares a group of two with the server,
/// and nothing else is used: a dead rank spoils every group it is in, so after a loss the world can do no collective
/// any more. Under pardl::launch set LaunchOptions::on_rank_failure to keep_going too, or the launcher ends all; it
/// cannot lose rank 0, so let that be the server. Works alike over Gloo and shm. The server's death always ends the
/// workers, and each names it. A worker that ends without finish() is lost.
#pragma once

#include <torch/types.h>

#include <concepts>
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/ranked.hpp"
#include "pardl/train/detail/model_state.hpp"
#include "pardl/train/detail/ps_link.hpp"
#include "pardl/train/detail/ps_server.hpp"
#include "pardl/train/detail/ps_start.hpp"
#include "pardl/train/detail/ps_worker.hpp"
#include "pardl/train/detail/wrapped_module.hpp"
#include "pardl/train/module_like.hpp"
#include "pardl/train/optimizer.hpp"
#include "pardl/train/parameter_server_options.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

namespace detail {

/// What a function of the parameters returns; void where there is no such function.
template <class Make>
struct MadeOptimizer {
  using type = void;
};
template <class Make>
  requires std::invocable<Make&, std::vector<torch::Tensor>>
struct MadeOptimizer<Make> {
  using type = std::invoke_result_t<Make&, std::vector<torch::Tensor>>;
};

}  // namespace detail

/// This rank's part in a training with a parameter server. `M` is the module as DistributedDataParallel takes it, `O`
/// the optimizer that the server keeps. Not thread-safe.
///
/// \cost of a step, for W workers and a model of P bytes of trained parameters, B of buffers and T parameters: each
/// worker sends two messages, of 32 and P + B + T bytes, and gets two, of 32 and P. So 2 W P bytes pass the server and
/// 2 P each worker, where a ring all-reduce passes 2 P through each rank: right for few workers, or where some are
/// slow. Memory: a worker needs one row of P + B + T bytes, the server up to W (s + 1) + 3 of them, and one for each
/// version that a slow worker still reads. The server runs a thread for each worker. Messages lie in host memory, so a
/// model on a GPU is copied there and back.
template <class M, class O>
class ParameterServer : detail::WrappedModule<M> {
  static_assert(module_like<M>,
                "pardl::ParameterServer needs a module: a torch::nn::Module, a shared_ptr or a holder of one, or a "
                "class with parameters(), named_parameters(), buffers(), named_buffers(), train(), eval() and "
                "is_training().");
  static_assert(pardl::optimizer<O>,
                "pardl::ParameterServer needs a function that takes std::vector<torch::Tensor>, the parameters, and "
                "returns an optimizer: [](auto params) { return pardl::optim::SGD(params, {.lr = 0.1}); }.");
  using Wrapped = detail::WrappedModule<M>;

 public:
  using typename Wrapped::Module;
  using Wrapped::module;
  using Wrapped::zero_grad;
  /// To resume, load it into the server's module before construction, and the optimizer's state before serve().
  using Wrapped::state_dict;

  /// Every rank must call it, with the same model and options; afterwards all hold the server's parameters and buffers.
  /// A rank that dies in here ends all.
  /// \param make_optimizer  called on the server only, with the parameters that require gradients.
  /// \cost two small all-gathers, a broadcast of the model, then one split of the world for each worker.
  /// \throws ConfigError, on all ranks together, where models or options differ or cannot work.
  template <class U, class Make>
    requires std::same_as<std::remove_cvref_t<U>, M>
  ParameterServer(U&& net, ProcessGroup world, Make&& make_optimizer, ParameterServerOptions options = {})
      : Wrapped(std::in_place, std::forward<U>(net)), world_(std::move(world)), options_(options) {
    static_assert(Wrapped::template outlives<U>,
                  "pardl::ParameterServer would outlive this temporary module; keep the module in a variable, or pass "
                  "a shared_ptr or a holder.");
    Module* const contained = &module();
    auto start = detail::ps::start(world_, options_, detail::all_parameters(*contained),
                                   [contained] { return detail::all_buffers(*contained); });
    if (is_server()) {
      optimizer_ = std::unique_ptr<O>(new O(make_optimizer(start.model.parameters)));
      server_ = std::make_unique<detail::ps::Server>(world_, std::move(start.model), std::move(start.workers),
                                                     std::move(start.links), options_);
    } else {
      worker_ = std::make_unique<detail::ps::Worker>(world_, std::move(start.model), options_.server,
                                                     std::move(start.links.front()));
    }
  }

  [[nodiscard]] bool is_server() const noexcept { return world_.rank() == options_.server; }
  /// This worker among the workers: what a sampler takes, since the server needs no data. Workers only.
  [[nodiscard]] Ranks workers() const {
    (void)as_worker("workers()");
    return {world_.rank() - (world_.rank() > options_.server ? 1 : 0), world_.size() - 1};
  }

  /// Gives the gradients of this worker's parameters to the server and returns with parameters from there, in place.
  /// Gradients stay; zero_grad() before the next backward. Blocks until every worker that still trains has given as
  /// many gradients, less the staleness. Workers only; each calls it as often as it has batches.
  /// \throws CommError, CommTimeout where the server is lost, or has given up because another worker was.
  void step() { as_worker("step()").step(); }

  /// This worker has no batch left: returns when all workers are done, with the model that the server ends with.
  /// Workers only, once. \cost two small messages, and one of P + B bytes.
  /// \throws CommError, CommTimeout as step().
  void finish() { as_worker("finish()").finish(); }

  /// Serves until every worker has called finish() or is lost; then the module holds the result. Server only, once,
  /// within world.timeout() of the first step.
  /// \param observers  told of each step before it is taken: on_clock(ClockEvent const&) may set the learning rate or
  /// clip the averaged gradients. Told once it is taken, before workers get its parameters: on_step(ClockEvent const&)
  /// may evaluate or save; without staleness all workers wait meanwhile. Told of lost workers:
  /// on_worker_lost(WorkerLostEvent const&); where none listens, stderr is.
  /// \throws CommError, CommTimeout that name the worker, where one is lost and the options say stop_all, or the last.
  template <class... Observers>
  void serve(Observers&&... observers) {
    static_assert((server_observer<std::remove_reference_t<Observers>> && ...),
                  "pardl::ParameterServer::serve: an observer has on_clock(pardl::ClockEvent const&), "
                  "on_step(pardl::ClockEvent const&) or on_worker_lost(pardl::WorkerLostEvent const&); this type has "
                  "none that can be called.");
    as_server("serve()").serve({.before_step =
                                    [&](ClockEvent const& event) {
                                      (
                                          [&] {
                                            if constexpr (observes_clocks<std::remove_reference_t<Observers>>)
                                              observers.on_clock(event);
                                          }(),
                                          ...);
                                    },
                                .step = [this] { optimizer_->step(); },
                                .after_step =
                                    [&](ClockEvent const& event) {
                                      (
                                          [&] {
                                            if constexpr (observes_steps<std::remove_reference_t<Observers>>)
                                              observers.on_step(event);
                                          }(),
                                          ...);
                                    },
                                .lost =
                                    [&](WorkerLostEvent const& event) {
                                      if constexpr (!(observes_lost_workers<std::remove_reference_t<Observers>> || ...))
                                        std::cerr << event.sentence + "\n" << std::flush;
                                      (
                                          [&] {
                                            if constexpr (observes_lost_workers<std::remove_reference_t<Observers>>)
                                              observers.on_worker_lost(event);
                                          }(),
                                          ...);
                                    }});
  }

  /// The optimizer, for its learning rate and its state. Server only.
  [[nodiscard]] O& optimizer() {
    (void)as_server("optimizer()");
    return *optimizer_;
  }
  /// Steps behind the parameters that this rank holds: those that the server has taken.
  [[nodiscard]] std::int64_t version() const noexcept { return server_ ? server_->version() : worker_->version(); }
  /// Steps that this worker has made. Workers only.
  [[nodiscard]] std::int64_t clock() const { return as_worker("clock()").clock(); }

  [[nodiscard]] ProcessGroup const& world() const noexcept { return world_; }
  [[nodiscard]] ParameterServerOptions const& options() const noexcept { return options_; }

 private:
  [[noreturn]] void refuse(char const* what, char const* where) const {
    throw ConfigError(sentence(
        detail::ps::room, world_.rank(), world_.size(),
        std::string(what) + " is for " + where + "; rank " + std::to_string(options_.server) + " is the server",
        "ask is_server() first"));
  }
  [[nodiscard]] detail::ps::Server& as_server(char const* what) const {
    if (!server_) refuse(what, "the server");
    return *server_;
  }
  [[nodiscard]] detail::ps::Worker& as_worker(char const* what) const {
    if (!worker_) refuse(what, "workers");
    return *worker_;
  }

  ProcessGroup world_;
  ParameterServerOptions options_;
  std::unique_ptr<O> optimizer_;                ///< on the server
  std::unique_ptr<detail::ps::Server> server_;  ///< on the server
  std::unique_ptr<detail::ps::Worker> worker_;  ///< elsewhere
};

template <class U, class Make>
ParameterServer(U&&, ProcessGroup, Make&&, ParameterServerOptions = {})
    -> ParameterServer<std::remove_cvref_t<U>, typename detail::MadeOptimizer<std::remove_reference_t<Make>>::type>;

}  // namespace pardl::inline PARDL_ABI
