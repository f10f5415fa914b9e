// SPDX-License-Identifier: MIT
/// \file   Ranks with unequal numbers of batches: who has finished answers for the collectives of those who have not.
/// \layer  train, private.
///
/// The protocol is PyTorch's (torch/distributed/algorithms/join.py). Each forward of a rank that still trains begins
/// with a sum of ones; a rank that has finished puts in zeros, until the sum is zero. Between two such sums it takes
/// part, with zeros, in whatever the others do: bucket rebuild, buffers, gradients, the map of used parameters.
#pragma once

#include <torch/types.h>

#include <exception>
#include <memory>
#include <utility>

#include "pardl/comm/collectives.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/detail/ddp_engine.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Open while a rank trains on uneven batches. finish(), or the destructor where no exception is under way, returns
/// when all ranks have finished; every rank then has the model of the last of them.
class [[nodiscard("join() lasts as long as the guard it returns")]] JoinGuard {
 public:
  JoinGuard(std::shared_ptr<DdpEngine> engine, JoinOptions options) : engine_(std::move(engine)) {
    engine_->check_alive();
    auto const refuse = [this](std::string const& what, std::string const& remedy) {
      throw ConfigError(sentence("ddp", engine_->world_.rank(), engine_->world_.size(), what, remedy));
    };
    if (engine_->joining_) refuse("join() within join()", "open one at a time");
    if (engine_->options_.skip_all_reduce_unused_params && options.enable)
      refuse("join() cannot know which buckets the others skip", "leave skip_all_reduce_unused_params out");
    if (!options.enable) return;
    open_ = engine_->joining_ = true;
    engine_->join_options_ = options;
    engine_->pair_.logger->set_uneven_input_join();
  }
  JoinGuard(JoinGuard const&) = delete;
  JoinGuard& operator=(JoinGuard const&) = delete;

  /// An exception under way passes alone: the other ranks learn of it from the launcher.
  ~JoinGuard() noexcept(false) {
    if (std::uncaught_exceptions() > exceptions_)
      close();
    else
      finish();
  }

  /// Takes part in the others' steps until all ranks have finished. Every rank must call it, or leave the scope.
  /// \throws DataError  with throw_on_early_termination, where this rank finished before another.
  void finish() {
    if (!open_) return;
    try {
      engine_->wait_for_notices();
      bool last = true;
      while (others_still_train()) {
        last = false;
        if (engine_->join_options_.throw_on_early_termination) {
          all_reduce(engine_->world_, engine_->flag_tensor(true)).wait();
          throw DataError(sentence("ddp", engine_->world_.rank(), engine_->world_.size(),
                                   "this rank has no batch left and others have",
                                   "give every rank the same number, or join without throw_on_early_termination"));
        }
        shadow_one_step();
      }
      engine_->broadcast_model(engine_->common_rank(last), engine_->options_.forward_sync_buffers);
    } catch (...) {
      close();
      throw;
    }
    close();
  }

 private:
  void close() noexcept {
    if (open_) open_ = engine_->joining_ = false;
  }

  [[nodiscard]] bool others_still_train() {
    auto count = engine_->flag_tensor(false);
    all_reduce(engine_->world_, count).wait();
    return count.item<float>() != 0;
  }

  /// One forward and backward of the others, seen from here. The order of collectives is theirs.
  void shadow_one_step() {
    auto& reducer = *engine_->pair_.reducer;
    translated([&] { reducer.rebuild_buckets(); });
    if (engine_->will_sync_buffers()) engine_->sync_buffers(engine_->common_rank(false));
    auto sync = engine_->flag_tensor(false);
    all_reduce(engine_->world_, sync).wait();
    engine_->forward_sync_ = sync.item<float>() != 0;
    if (!engine_->forward_sync_) return;

    // A static graph asks for used parameters once, in its first step, and before the buckets; it notes the order of
    // gradients, after which buckets are rebuilt, only in its second.
    bool const first_of_static_graph = engine_->options_.static_graph && ++engine_->synced_forwards_ == 1;
    if (first_of_static_graph) nothing_used_here(reducer);
    auto buckets = reducer.get_grad_buckets(/*return_zero_tensors=*/true);
    std::vector<TensorFuture> under_way;
    for (auto& bucket : buckets) under_way.push_back(reducer.run_comm_hook(bucket));
    for (auto const& future : under_way) translated([&] { future->waitAndThrow(); });
    if (engine_->searches_graph()) nothing_used_here(reducer);
    if (!first_of_static_graph) reducer.push_rebuilt_params_for_all_indices();
  }

  /// The map still holds the last step's sum: zeroed, so that what was used once does not count as used forever.
  void nothing_used_here(OpenReducer& reducer) {
    auto map = reducer.get_local_used_map_on_device();
    map.zero_();
    all_reduce(engine_->world_, map).wait();
  }

  std::shared_ptr<DdpEngine> engine_;
  int exceptions_ = std::uncaught_exceptions();
  bool open_ = false;
};

}  // namespace pardl::inline PARDL_ABI::detail
