// SPDX-License-Identifier: MIT
/// \file   Arguments split over devices along their first dimension, and results put together again.
/// \layer  train, private.
///
/// As torch/nn/parallel/scatter_gather.py does it, by operations that autograd knows.
#pragma once

#include <c10/core/GradMode.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/StringUtil.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <ranges>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/train/for_each_tensor.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

// ---------------------------------------------------------------------------------------------------------------------
// Tensors
// ---------------------------------------------------------------------------------------------------------------------

/// How many rows each device gets, as torch.chunk counts them: equal shares, rounded up, the last one smaller; fewer
/// than `devices` of them where that uses up the rows; of no rows, `devices` times none.
inline std::vector<std::int64_t> chunk_sizes(std::int64_t rows, std::size_t devices) {
  if (rows == 0) return std::vector<std::int64_t>(devices, 0);
  auto const n = static_cast<std::int64_t>(devices);
  auto const share = (rows + n - 1) / n;
  std::vector<std::int64_t> sizes;
  for (std::int64_t row = 0; row < rows; row += share) sizes.push_back(std::min(share, rows - row));
  return sizes;
}

/// How a call is spread: over how many devices, and with how many rows for each. No rows: nothing is split.
struct Spread {
  std::size_t devices;
  std::vector<std::int64_t> rows;
};

/// \throws DataError where two tensors differ in their number of rows.
inline Spread spread_over(std::vector<torch::Tensor*> const& tensors, std::size_t devices, bool has_arguments) {
  std::optional<std::int64_t> rows;
  for (auto const* const tensor : tensors) {
    if (!tensor->defined() || tensor->dim() == 0) continue;
    if (rows && *rows != tensor->size(0))
      throw DataError(sentence("train",
                               "DataParallel was given tensors of " + std::to_string(*rows) + " and of " +
                                   std::to_string(tensor->size(0)) + " rows, and splits all along their rows",
                               "give them one batch size, and repeat a tensor that every row needs for each row"));
    rows = tensor->size(0);
  }
  if (!rows) return {has_arguments ? devices : 1, {}};
  auto sizes = chunk_sizes(*rows, devices);
  auto const used = sizes.size();
  return {used, std::move(sizes)};
}

/// One piece for each device of the spread; a tensor without rows goes to all.
///
/// A piece that backward will ask for is a copy and no view: several threads may not work in place on views of one
/// tensor, as each would rewrite the graph of that one. Others are seen in place where they lie on the device already.
inline std::vector<torch::Tensor> scatter(torch::Tensor const& whole, Spread const& spread,
                                          std::vector<torch::Device> const& devices) {
  auto const put = [&](torch::Tensor const& piece, std::size_t i, bool copy) {
    auto const& device = devices[i];
    return piece.to(device, piece.scalar_type(), /*non_blocking=*/piece.is_cpu() && !device.is_cpu(), copy);
  };
  std::vector<torch::Tensor> pieces;
  if (!whole.defined() || whole.dim() == 0 || spread.devices == 1) {
    for (std::size_t i = 0; i < spread.devices; ++i) pieces.push_back(whole.defined() ? put(whole, i, false) : whole);
  } else if (c10::GradMode::is_enabled() && whole.requires_grad()) {
    auto const views = whole.split_with_sizes(spread.rows);
    for (std::size_t i = 0; i < spread.devices; ++i) pieces.push_back(put(views[i], i, true));
  } else {
    torch::NoGradGuard const no_grad;
    std::int64_t row = 0;
    for (std::size_t i = 0; i < spread.devices; row += spread.rows[i++])
      pieces.push_back(put(whole.narrow(0, row, spread.rows[i]).detach(), i, false));
  }
  return pieces;
}

/// The pieces one below the other, on `device`; numbers become a vector of one for each device.
/// \throws DataError where some are missing or are numbers, and others are not, or where more than their rows differs.
inline torch::Tensor gather(std::vector<torch::Tensor> pieces, torch::Device device) {
  auto const kind = [](torch::Tensor const& piece) { return !piece.defined() ? 0 : piece.dim() == 0 ? 1 : 2; };
  for (auto& piece : pieces) {
    if (kind(piece) != kind(pieces.front()))
      throw DataError(sentence("train",
                               "DataParallel cannot gather what forward returned: a tensor of some replicas is "
                               "undefined, or a number, on others",
                               "let forward return tensors of the same dimensions for every part of a batch"));
    if (piece.defined()) piece = piece.to(device);
  }
  if (!pieces.front().defined()) return {};
  if (pieces.front().dim() == 0)
    for (auto& piece : pieces) piece = piece.unsqueeze(0);
  std::optional<std::size_t> first;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].dim() == 1 && pieces[i].size(0) == 0) continue;  // it fits anything, as in torch.cat
    if (!first) first = i;
    if (pieces[i].sizes().slice(1) != pieces[*first].sizes().slice(1))
      throw DataError(sentence("train",
                               "DataParallel cannot gather what forward returned: a tensor is " +
                                   c10::str(pieces[*first].sizes()) + " on device " + std::to_string(*first) + " and " +
                                   c10::str(pieces[i].sizes()) + " on device " + std::to_string(i),
                               "let forward return tensors that have the batch as their first dimension and are alike "
                               "in the others"));
  }
  return pieces.size() == 1 ? std::move(pieces.front()) : at::cat(pieces, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Whatever holds them
// ---------------------------------------------------------------------------------------------------------------------

template <class T>
inline constexpr bool is_array_ref = false;
template <class T>
inline constexpr bool is_array_ref<c10::ArrayRef<T>> = true;

/// A range that does not own its elements: a copy of it would still be the caller's tensors.
template <class T>
concept borrows_tensors =
    (std::ranges::view<T> || std::ranges::borrowed_range<T> ||
     is_array_ref<T>)&&std::derived_from<std::remove_cv_t<std::ranges::range_value_t<T>>, torch::Tensor>;

/// Looked into for tensors, so each device gets a copy with its own rows.
template <class A>
inline constexpr bool is_split = visit::visitable<std::remove_cvref_t<A>>() && !visit::leaf<std::remove_cvref_t<A>>;

/// An argument as a replica holds it: with tensors or a temporary, a copy; otherwise the caller's own object, which
/// all replicas see, as in Python.
template <class A>
using held_t = std::conditional_t<is_split<A> || !std::is_lvalue_reference_v<A>, std::remove_cvref_t<A>, A>;

template <class A>
inline constexpr bool can_be_held = std::is_lvalue_reference_v<held_t<A>> || std::copy_constructible<held_t<A>>;

/// The tensors inside the arguments that one replica holds, in order.
template <class... Args, class Held>
std::vector<torch::Tensor*> tensors_of_arguments(Held& held) {
  std::vector<torch::Tensor*> tensors;
  auto const look = [&tensors]<class A>(std::type_identity<A>, auto& argument) {
    if constexpr (is_split<A>)
      for_each_tensor(argument, [&tensors](torch::Tensor& tensor) { tensors.push_back(&tensor); });
  };
  std::apply([&](auto&... argument) { (look(std::type_identity<Args>{}, argument), ...); }, held);
  return tensors;
}

/// The arguments of a call, for each device.
template <class... Args>
class ScatteredArguments {
 public:
  ScatteredArguments(std::vector<torch::Device> const& devices, std::remove_reference_t<Args>&... arguments) {
    Held whole(arguments...);
    auto const tensors = tensors_of_arguments<Args...>(whole);
    auto const spread = spread_over(tensors, devices.size(), sizeof...(Args) != 0);
    std::vector<std::vector<torch::Tensor*>> places;
    held_.reserve(spread.devices);
    for (std::size_t i = 0; i < spread.devices; ++i)
      places.push_back(tensors_of_arguments<Args...>(held_.emplace_back(whole)));
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      auto pieces = scatter(*tensors[t], spread, devices);
      for (std::size_t i = 0; i < spread.devices; ++i) *places[i][t] = std::move(pieces[i]);
    }
  }

  /// How many devices are needed.
  [[nodiscard]] std::size_t devices() const noexcept { return held_.size(); }

  /// `module.forward(arguments…)` as that device holds them, each as the caller passed it.
  template <class Module>
  decltype(auto) forward(Module& module, std::size_t device) {
    return [&]<std::size_t... I>(std::index_sequence<I...>) -> decltype(auto) {
      return module.forward(static_cast<Args&&>(std::get<I>(held_[device]))...);
    }(std::index_sequence_for<Args...>{});
  }

 private:
  using Held = std::tuple<held_t<Args>...>;
  std::vector<Held> held_{};
};

/// One result out of one from each device. What is no tensor is the first device's.
/// \throws DataError where they hold different numbers of tensors, or what gather() throws.
template <class Output>
Output gather_outputs(std::vector<std::optional<Output>>& outputs, torch::Device device) {
  std::vector<std::vector<torch::Tensor*>> tensors;
  for (auto& output : outputs)
    for_each_tensor(*output, [&, &found = tensors.emplace_back()](torch::Tensor& t) { found.push_back(&t); });
  for (std::size_t i = 1; i < tensors.size(); ++i)
    if (tensors[i].size() != tensors[0].size())
      throw DataError(sentence("train",
                               "DataParallel cannot gather what forward returned: " +
                                   std::to_string(tensors[0].size()) + " tensors on the first device and " +
                                   std::to_string(tensors[i].size()) + " on device " + std::to_string(i),
                               "let forward return as many for every part of a batch"));
  for (std::size_t t = 0; t < tensors[0].size(); ++t) {
    std::vector<torch::Tensor> pieces;
    for (auto const& found : tensors) pieces.push_back(*found[t]);
    *tensors[0][t] = gather(std::move(pieces), device);
  }
  return std::move(*outputs.front());
}

}  // namespace pardl::inline PARDL_ABI::detail
