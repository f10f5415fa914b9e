// SPDX-License-Identifier: MIT
/// \file   LibTorch's own c10d::Reducer, made and questioned: the one place that knows how its versions differ.
/// \layer  train, private.
///
/// The reducer copies gradients into buckets, divides them by the number of ranks, reduces each bucket as soon as its
/// gradients are there, and copies the result back (Li et al., "PyTorch Distributed", VLDB 13(12), 2020).
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pardl/comm/process_group.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// What a reducer is built from, whatever the version.
struct ReducerPlan {
  std::vector<torch::Tensor> parameters;  ///< those with requires_grad, each once, in registration order
  std::vector<std::string> names;         ///< theirs
  std::vector<bool> sparse;               ///< true where the gradient will be sparse
  std::int64_t bucket_cap_bytes = c10d::kDefaultBucketBytesCap;          ///< of every bucket but the first
  std::int64_t first_bucket_cap_bytes = c10d::kDefaultFirstBucketBytes;  ///< of the first to be ready
  std::vector<std::int64_t> bucket_caps_bytes;                           ///< bucket by bucket; empty: the two above
  bool find_unused_parameters = false;
  bool gradient_as_bucket_view = false;
  bool static_graph = false;
  bool skip_all_reduce_unused_params = false;
  bool batched_grad_copy = false;
  bool lazy_bucket_allocation = false;
};

/// Asked of the constructor itself, since every release may move it: 12 arguments in LibTorch 2.11, 14 in 2.15.
template <class R, class... Extra>
inline constexpr bool reducer_takes =
    std::is_constructible_v<R, std::vector<at::Tensor>, std::vector<std::vector<std::size_t>>,
                            c10::intrusive_ptr<c10d::ProcessGroup>, std::vector<bool>, std::int64_t, bool, bool,
                            std::unordered_map<std::size_t, std::string>, std::int64_t, bool, bool,
                            std::vector<std::int64_t>, Extra...>;
inline constexpr bool has_batched_grad_copy = reducer_takes<c10d::Reducer, bool>;
inline constexpr bool has_lazy_bucket_allocation = reducer_takes<c10d::Reducer, bool, bool>;

/// How the last backward ended, where it did not end well.
struct Unfinished {
  std::vector<std::size_t> without_gradient;  ///< indices of the parameters that were never marked ready
  std::exception_ptr cause;                   ///< of a reduction that failed; null where none did
};

/// A Reducer that can say how its last backward ended. It adds no state: it reads what the base class keeps for
/// its heirs.
class OpenReducer : public c10d::Reducer {
 public:
  using c10d::Reducer::Reducer;

  /// Before a backward: forget which parameters the last one marked.
  void forget_marks() {
    std::lock_guard lock(mutex_);
    std::fill(backward_stats_.begin(), backward_stats_.end(), never);
  }

  /// Nothing where the last backward was reduced to its end, or none was begun.
  [[nodiscard]] std::optional<Unfinished> unfinished() const {
    std::lock_guard lock(mutex_);
    std::exception_ptr cause;
    for (auto const& bucket : buckets_)
      if (!cause && bucket.future_work && bucket.future_work->completed() && bucket.future_work->hasError())
        cause = bucket.future_work->exception_ptr();
    if (!require_finalize_ && !cause) return std::nullopt;
    Unfinished state{.without_gradient = {}, .cause = cause};
    for (std::size_t i = 0; i < backward_stats_.size(); ++i)
      if (backward_stats_[i] == never) state.without_gradient.push_back(i);
    return state;
  }

  /// The parameters of each bucket, in the order of reduction.
  [[nodiscard]] std::vector<std::vector<std::size_t>> bucket_indices() const {
    std::lock_guard lock(mutex_);
    std::vector<std::vector<std::size_t>> indices;
    for (auto const& bucket : buckets_) indices.push_back(bucket.variable_indices);
    return indices;
  }

 private:
  static constexpr std::int64_t never = std::numeric_limits<std::int64_t>::min();
};

/// The reducer and the logger that it looks up when it meets a changed graph or an error.
struct ReducerPair {
  std::shared_ptr<OpenReducer> reducer;
  std::shared_ptr<c10d::Logger> logger;
};

template <class R>
std::shared_ptr<R> construct_reducer(ReducerPlan const& plan, std::vector<std::vector<std::size_t>> buckets,
                                     c10::intrusive_ptr<c10d::ProcessGroup> const& group) {
  std::unordered_map<std::size_t, std::string> names;
  for (std::size_t i = 0; i < plan.names.size(); ++i) names[i] = plan.names[i];
  auto const make = [&](auto... extra) {
    return std::make_shared<R>(plan.parameters, std::move(buckets), group, plan.sparse, plan.bucket_cap_bytes,
                               plan.find_unused_parameters, plan.gradient_as_bucket_view, std::move(names),
                               plan.first_bucket_cap_bytes, plan.skip_all_reduce_unused_params,
                               /*use_python_reducer=*/false, plan.bucket_caps_bytes, extra...);
  };
  if constexpr (reducer_takes<R, bool, bool>)
    return make(plan.batched_grad_copy, plan.lazy_bucket_allocation);
  else if constexpr (reducer_takes<R, bool>)
    return make(plan.batched_grad_copy);
  else
    return make();
}

/// The reducer for a plan. Every rank must call it with an equal plan; it communicates nothing itself.
inline ReducerPair make_reducer(ReducerPlan const& plan, ProcessGroup const& world) {
  // Before the first backward nobody knows in which order gradients arrive. Unless unused parameters are searched for,
  // everything goes into one bucket then, and the buckets are rebuilt once, in the order seen.
  std::vector<std::size_t> limits;
  if (!plan.bucket_caps_bytes.empty())
    limits.assign(plan.bucket_caps_bytes.begin(), plan.bucket_caps_bytes.end());
  else if (plan.static_graph || !plan.find_unused_parameters)
    limits = {static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max())};
  else if (plan.first_bucket_cap_bytes < plan.bucket_cap_bytes)
    limits = {static_cast<std::size_t>(plan.first_bucket_cap_bytes), static_cast<std::size_t>(plan.bucket_cap_bytes)};
  else
    limits = {static_cast<std::size_t>(plan.bucket_cap_bytes)};

  auto [buckets, sizes] = c10d::compute_bucket_assignment_by_size(plan.parameters, limits, plan.sparse);
  std::reverse(buckets.begin(), buckets.end());  // gradients come roughly in the reverse order of registration

  ReducerPair made;
  made.reducer = construct_reducer<OpenReducer>(plan, std::move(buckets), world.c10d());
  made.logger = std::make_shared<c10d::Logger>(made.reducer);
  made.reducer->set_logger(made.logger);
  if (plan.static_graph) {
    made.reducer->set_static_graph();
    made.logger->set_static_graph();
  }
  return made;
}

}  // namespace pardl::inline PARDL_ABI::detail
