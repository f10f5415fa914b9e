// SPDX-License-Identifier: MIT
/// \file   One client of one round: what a worker hands to a local update, and what it gets back.
/// \layer  fed.
#pragma once

#include <torch/types.h>

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "pardl/fed/draws.hpp"
#include "pardl/fed/flat_model.hpp"
#include "pardl/fed/tally.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

namespace purpose {
inline constexpr std::uint32_t batches = 30;   ///< the order of a client's samples
inline constexpr std::uint32_t training = 31;  ///< LibTorch's generators: dropout, and what else a module draws
inline constexpr std::uint32_t personal = 32;  ///< a second training of the same task
}  // namespace purpose

/// One client of one round, on the model of the worker that trains it. The model holds the global weights and, where
/// clients keep something, the client's own; what it holds afterwards is the client's update.
template <class Net, class Batches>
struct ClientTask {
  Net& net;                ///< in training mode, without gradients; LibTorch's generators are seeded for this task
  FlatModel const& model;  ///< the same numbers as one row
  torch::Tensor global;    ///< the shared numbers as the round began with them, [S], on the CPU; not to be written
  Batches const& batch;    ///< batch(rows, pass) -> Batch: some of the client's samples, on the worker's device
  std::int64_t samples;    ///< how many the client has
  std::int64_t client = 0, round = 0;
  std::uint64_t seed = 0;
  torch::Tensor kept{};    ///< [client_numbers()] on the CPU, this client's since its last round; what is here goes on
  bool first = true;       ///< this client has never been trained, and `kept` is zero
  torch::Tensor server{};  ///< [server_numbers()] on the CPU, the same for all clients of a round; not to be written
  torch::Tensor change{};  ///< [server_numbers()] on the CPU, zeros; the server adds all clients' sum over their number

  [[nodiscard]] Draws draws(std::uint32_t purpose) const {
    return Draws(seed, static_cast<std::uint64_t>(round), static_cast<std::uint64_t>(client), purpose);
  }
};

/// What came of it.
struct LocalResult {
  std::int64_t samples = 0;  ///< processed, a sample once for each epoch: what FederatedScope weights by
  std::int64_t batches = 0;
  Tally tally;         ///< losses and right answers over those samples
  double stretch = 1;  ///< what the change of the shared parameters was divided by; the server multiplies the mean
                       ///< change by the mean of these (FedNova)
};

/// How a client is trained: `processed(samples)` says beforehand how many samples that will process (its weight in the
/// mean and its cost in the schedule), `loss()` is the loss for evaluation, and calling it with a ClientTask trains. It
/// is copied into each worker. What must outlive a task is the client's: parameters that stay with it
/// (Sharing::keep_local), or numbers, by the optional members
///   client_numbers(model) -> int64   how many numbers every client keeps beside its model (ClientTask::kept);
///   server_numbers(model) -> int64   how many the server keeps for all (ClientTask::server and change);
///   load_personal(model, kept)       makes `model` the client's own for evaluation, out of what it keeps.
/// Models: LocalTraining, Ditto, FedRep, one_of.
template <class L, class Net>
concept local_update =
    std::copy_constructible<L> && requires(L const& local, std::int64_t samples, torch::Tensor const& t) {
      { local.processed(samples) } -> std::convertible_to<std::int64_t>;
      { local.loss()(t, t) } -> std::convertible_to<torch::Tensor>;
    };
static_assert(!local_update<int, int>);

namespace detail {

template <class L>
[[nodiscard]] std::int64_t client_numbers(L const& local, FlatModel const& model) {
  if constexpr (requires { local.client_numbers(model); }) return local.client_numbers(model);
  return 0;
}
template <class L>
[[nodiscard]] std::int64_t server_numbers(L const& local, FlatModel const& model) {
  if constexpr (requires { local.server_numbers(model); }) return local.server_numbers(model);
  return 0;
}
template <class L>
void load_personal(L const& local, FlatModel const& model, torch::Tensor const& kept) {
  if constexpr (requires { local.load_personal(model, kept); }) local.load_personal(model, kept);
}

}  // namespace detail
}  // namespace pardl::inline PARDL_ABI::fed
