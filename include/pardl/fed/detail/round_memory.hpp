// SPDX-License-Identifier: MIT
/// \file   All that the coordinator and its workers share: the global model, sums, kept states, tasks and outcomes.
/// \layer  fed, private.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "pardl/fed/detail/shared_array.hpp"
#include "pardl/fed/detail/task_queues.hpp"
#include "pardl/fed/fixed_point_sum.hpp"
#include "pardl/fed/flat_model.hpp"
#include "pardl/train/module_like.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// What the workers are told to do.
enum class Phase : std::uint8_t {
  train,           ///< the queued clients, each into the own accumulator
  evaluate_train,  ///< the queued clients' samples of that part
  evaluate_val,
  evaluate_test,
  survey,      ///< the own part of a robust rule's pass
  finish,      ///< the own slice of the mean, the server's step, and what clients keep
  recalibrate  ///< the first worker: batch norm's statistics of the new global model
};

enum class TaskState : std::uint8_t { open, done, failed };

/// What became of one task. Written by one worker at a time, read when it is done or dead.
struct Outcome {
  std::atomic<TaskState> state;
  std::int32_t worker;
  std::int64_t client, samples, batches, correct, answers;
  double weight, units, loss, seconds;
  double stretch;     ///< LocalResult::stretch
  double norm;        ///< of the change of the shared numbers, where somebody asks for it
  bool left_out;      ///< failed because workers died at it, and by policy that ends no round
  char message[320];  ///< why it failed

  void fail(std::string_view why) {
    auto const size = std::min(why.size(), sizeof message - 1);
    std::copy_n(why.data(), size, message);
    message[size] = 0;
    state = TaskState::failed;
  }
};

/// The one word of a round that is the same for all.
struct Desk {
  std::int64_t round;  ///< from 0
  std::int64_t tasks;
  double most_weight;   ///< bounds the sum of the weights
  double total_units;   ///< of the accepted clients, once they are known
  double stretch;       ///< their mean stretch
  double number_units;  ///< of one client's change of the server's numbers
  int passes;           ///< of a robust rule, done in this round
  bool personal;        ///< whether clients are evaluated with what they keep
};

class RoundMemory {
 public:
  struct Sizes {
    std::size_t workers, clients;
    std::size_t shared, local, integers;  ///< numbers of the model
    bool integers_shared;
    std::size_t server_states;
    std::size_t client_numbers, server_numbers;  ///< of the local update
    std::size_t partials;                        ///< of a robust rule, per pass
    bool rows;                                   ///< whether updates are kept whole until the round ends
    /// What a client keeps: its part of the model, then the local update's numbers.
    [[nodiscard]] std::size_t kept() const noexcept { return local + client_numbers; }
  };

  /// The model as it is becomes the first global one, and its local part what every client starts with.
  RoundMemory(Sizes const& sizes, FlatModel const& model)
      : global(sizes.shared),
        global_integers(sizes.integers),
        server_state(sizes.shared * sizes.server_states),
        sums(sizes.shared * sizes.workers),
        most_integers(sizes.integers * sizes.workers),
        server_numbers(sizes.server_numbers),
        number_sums(sizes.server_numbers * sizes.workers),
        largest_number(sizes.workers),
        rows(sizes.rows ? sizes.shared * sizes.clients : 0),
        partials(2 * sizes.partials),
        kept(sizes.kept() * sizes.clients),
        staged(sizes.kept() * sizes.clients),
        kept_integers(sizes.integers_shared ? 0 : sizes.integers * sizes.clients),
        staged_integers(sizes.integers_shared && !sizes.rows ? 0 : sizes.integers * sizes.clients),
        has_kept(sizes.clients),
        outcomes(sizes.clients),
        current(sizes.workers),
        largest(sizes.workers),
        queues(sizes.workers, sizes.clients),
        desk_(1),
        sizes_(sizes),
        places_(model.places()),
        integer_places_(model.integer_places()) {
    auto const copy = [](torch::Tensor const& from, auto* to) {
      using Number = std::remove_pointer_t<decltype(to)>;
      std::copy_n(from.const_data_ptr<Number>(), from.numel(), to);
    };
    first_local.resize(sizes.local);
    first_integers.resize(sizes.integers);
    copy(model.shared(), global.data());
    copy(model.local(), first_local.data());
    copy(model.integers(), global_integers.data());
    copy(model.integers(), first_integers.data());
    std::ranges::fill(most_integers.span(), nothing);
    look_for_largest();
  }

  [[nodiscard]] Sizes const& sizes() const noexcept { return sizes_; }
  [[nodiscard]] Desk& desk() const noexcept { return desk_[0]; }
  [[nodiscard]] bool keeps() const noexcept { return sizes_.kept() > 0 || kept_integers.size() > 0; }

  /// Copies the shared tensors into a module that has them under the same names.
  template <module_like M>
  void give_global(M& module) const {
    torch::NoGradGuard const no_grad;
    auto const give = [](auto const& named, std::vector<FlatModel::Place> const& places, auto* row, std::size_t size) {
      using Number = std::remove_const_t<std::remove_pointer_t<decltype(row)>>;
      for (auto const& item : named)
        for (auto const& place : places)
          if (place.name == item.key() && place.begin < static_cast<std::int64_t>(size))
            item.value().copy_(torch::from_blob(const_cast<Number*>(row) + place.begin, {place.size},
                                                torch::dtype(c10::CppTypeToScalarType<Number>::value))
                                   .as_strided(item.value().sizes(), item.value().strides()));
    };
    auto& net = pardl::detail::contained(module);
    give(net.named_parameters(), places_, global.data(), sizes_.shared);
    give(net.named_buffers(), places_, global.data(), sizes_.shared);
    if (sizes_.integers_shared) give(net.named_buffers(), integer_places_, global_integers.data(), sizes_.integers);
  }

  /// How this round's updates become integers.
  [[nodiscard]] FixedPoint scale() const { return FixedPoint(desk().most_weight, std::ranges::max(largest.span())); }
  /// Likewise for the changes of the server's numbers, of which each client's counts once.
  [[nodiscard]] FixedPoint number_scale(std::int64_t clients) const {
    return FixedPoint(static_cast<double>(clients), std::ranges::max(largest_number.span()));
  }
  /// \param part  of `global`, or of the server's numbers, that a worker has just written
  static void note_largest(float& largest, std::span<float const> part) {
    for (float const value : part) largest = std::max(largest, std::abs(value));
  }

  /// After all of `global` and the server's numbers were written from outside.
  void look_for_largest() {
    std::ranges::fill(largest.span(), 0.0F);
    note_largest(largest[0], global.span());
    std::ranges::fill(largest_number.span(), 0.0F);
    note_largest(largest_number[0], server_numbers.span());
  }

  /// What a client keeps, or what it starts with.
  [[nodiscard]] std::span<float const> local_of(std::size_t client) const {
    if (has_kept[client] == 0) return first_local;
    return kept.span(client * sizes_.kept(), sizes_.local);
  }
  /// What the local update keeps for a client that was trained.
  [[nodiscard]] std::span<float> numbers_of(std::size_t client) const {
    return kept.span(client * sizes_.kept() + sizes_.local, sizes_.client_numbers);
  }
  /// The same places for the client of a task of this round, until it ends well.
  [[nodiscard]] std::span<float> staged_local(std::size_t task) const {
    return staged.span(task * sizes_.kept(), sizes_.local);
  }
  [[nodiscard]] std::span<float> staged_numbers(std::size_t task) const {
    return staged.span(task * sizes_.kept() + sizes_.local, sizes_.client_numbers);
  }
  [[nodiscard]] std::span<std::int64_t const> integers_of(std::size_t client) const {
    if (sizes_.integers_shared) return global_integers.span();
    if (has_kept[client] == 0) return first_integers;
    return kept_integers.span(client * sizes_.integers, sizes_.integers);
  }

  static constexpr std::int64_t nothing = std::numeric_limits<std::int64_t>::min();  // in most_integers

  /// The shared tensors' places in `global` and `global_integers` (empty where clients keep these).
  [[nodiscard]] std::vector<FlatModel::Place> shared_places() const {
    auto places = places_;
    std::erase_if(places,
                  [this](auto const& place) { return place.begin >= static_cast<std::int64_t>(sizes_.shared); });
    return places;
  }
  [[nodiscard]] std::vector<FlatModel::Place> shared_integer_places() const {
    return sizes_.integers_shared ? integer_places_ : std::vector<FlatModel::Place>{};
  }

  SharedArray<float> global;
  SharedArray<std::int64_t> global_integers;
  SharedArray<float> server_state;          // [states][S]
  SharedArray<std::int64_t> sums;           // [workers][S]
  SharedArray<std::int64_t> most_integers;  // [workers][I]
  SharedArray<float> server_numbers;        // [E], of the local update
  SharedArray<std::int64_t> number_sums;    // [workers][E], of their changes
  SharedArray<float> largest_number;        // magnitude in each worker's slice of server_numbers
  SharedArray<float> rows;                  // [tasks][S], whole updates for a robust rule
  SharedArray<double> partials;             // of its passes: two halves
  SharedArray<float> kept, staged;          // [clients][L + K], [tasks][L + K]: since the last round, and of this one
  SharedArray<std::int64_t> kept_integers, staged_integers;  // [clients][I], [tasks][I]
  SharedArray<std::uint8_t> has_kept;                        // [clients]
  SharedArray<Outcome> outcomes;                             // by position in the round
  SharedArray<std::atomic<std::int64_t>> current;            // the client that each worker is at, plus 1; 0: none
  SharedArray<float> largest;                                // magnitude in each worker's slice of `global`
  std::vector<float> first_local;
  std::vector<std::int64_t> first_integers;

  TaskQueues queues;

 private:
  SharedArray<Desk> desk_;
  Sizes sizes_;
  std::vector<FlatModel::Place> places_, integer_places_;
};

}  // namespace pardl::inline PARDL_ABI::fed::detail
