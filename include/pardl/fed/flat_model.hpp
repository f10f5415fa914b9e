// SPDX-License-Identifier: MIT
/// \file   A model laid out as one row of numbers: first what a federation shares, then what a client keeps.
/// \layer  fed.
///
/// A worker holds one model and trains one client after the other in it. Giving the model the global weights, taking a
/// client's result and keeping a client's own part are then one copy of one block each, and a server that adds updates
/// up needs to know no tensors, only numbers.
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/train/module_like.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// What becomes of buffers that training changes, above all the running statistics of batch norm.
enum class BufferPolicy {
  average,       ///< averaged as weights are, integers take the largest: one global model, whole by itself
  client_local,  ///< each client keeps its own (FedBN, FederatedScope); one that never trained has the first ones
  recalibrate    ///< averaged, then batch norm's statistics are measured anew with the new weights, on
                 ///< RunnerOptions::calibration: averaged ones suit no single model
};

/// Which tensors travel. Parameters that do not require gradients never change, so they never travel.
struct Sharing {
  std::function<bool(std::string_view)> keep_local{};  ///< parameters that a client keeps (FedBN, FedRep), by name
  BufferPolicy buffers = BufferPolicy::average;        ///< of all buffers
  std::int64_t alignment = 1;  ///< of each tensor in its row, in numbers; a Runner with GPUs takes 4 (16 bytes)
};

/// keep_local for names that contain one of `words`, as FederatedScope's personalization.local_param.
[[nodiscard]] inline std::function<bool(std::string_view)> containing(std::vector<std::string> words) {
  if (words.empty()) return {};
  return [words = std::move(words)](std::string_view name) {
    return std::ranges::any_of(words, [&](std::string const& word) { return name.find(word) != name.npos; });
  };
}

/// A module's trainable parameters and floating-point buffers as views of one float32 row, and its integer buffers as
/// views of an int64 row. The module then lives in these rows: writing them changes it. Move the module to its device
/// and memory format before; gradients it has are dropped. Aligned, as cuDNN asks of batch norm's statistics, tensors
/// leave numbers between them that are 0 and belong to none.
class FlatModel {
 public:
  /// A tensor's place in its row.
  struct Place {
    std::string name;
    std::int64_t begin, size;
    std::vector<std::int64_t> shape;  ///< of the tensor; of one row where its memory has another order than its indices
  };

  /// \throws ConfigError for a floating-point tensor that is not float32 or not dense, an integer buffer that is not
  /// int64, tensors on several devices, or nothing to share.
  template <module_like M>
  explicit FlatModel(M& module, Sharing const& sharing = {});

  /// What travels, [S].
  [[nodiscard]] torch::Tensor shared() const { return values_.narrow(0, 0, shared_); }
  /// What stays with a client, [L]; may be empty.
  [[nodiscard]] torch::Tensor local() const { return values_.narrow(0, local_, values_.numel() - local_); }
  /// Integer buffers, int64 [I]; they follow the buffers' policy.
  [[nodiscard]] torch::Tensor const& integers() const noexcept { return integers_; }
  [[nodiscard]] bool shares_integers() const noexcept { return buffers_ != BufferPolicy::client_local; }

  /// The parameters to train, shared ones first.
  [[nodiscard]] std::vector<torch::Tensor> const& parameters() const noexcept { return parameters_; }
  /// Parameters among the shared numbers: the first so many; averaged buffers follow.
  [[nodiscard]] std::int64_t shared_parameters() const noexcept { return shared_parameters_; }
  [[nodiscard]] bool is_shared_parameter(std::size_t p) const { return places_[place_of_[p]].begin < shared_; }
  /// Parameter p as it lies in another row of the shared numbers, or of the shared parameters alone.
  [[nodiscard]] torch::Tensor parameter_in(torch::Tensor const& row, std::size_t p) const {
    auto const& parameter = parameters_[p];
    return row.as_strided(parameter.sizes(), parameter.strides(), row.storage_offset() + places_[place_of_[p]].begin);
  }
  /// visit(parameter, gradient, p) for each shared parameter that has a gradient, outside autograd.
  template <class Visit>
  void each_shared_gradient(Visit&& visit) const {
    torch::NoGradGuard const no_grad;
    for (std::size_t p = 0; p < parameters_.size(); ++p) {
      torch::Tensor parameter = parameters_[p];
      if (is_shared_parameter(p) && parameter.grad().defined()) visit(parameter, parameter.mutable_grad(), p);
    }
  }
  [[nodiscard]] torch::Device device() const { return values_.device(); }

  /// All floating-point tensors in order, and all integer ones: names and places for messages and checkpoints.
  [[nodiscard]] std::vector<Place> const& places() const noexcept { return places_; }
  [[nodiscard]] std::vector<Place> const& integer_places() const noexcept { return integer_places_; }
  /// "fc1.weight[17]", for number `at` of the whole row.
  [[nodiscard]] std::string name_of(std::int64_t at) const {
    auto const after = std::ranges::upper_bound(places_, at, {}, &Place::begin);
    auto const& place = *std::prev(after);
    return place.name + "[" + std::to_string(at - place.begin) + "]";
  }

 private:
  struct Item {
    std::string name;
    torch::Tensor tensor;
    bool is_parameter;
  };
  void lay_out(std::vector<Item> shared, std::vector<Item> local, std::vector<Item> integers, std::int64_t alignment);

  BufferPolicy buffers_;
  std::int64_t shared_ = 0, local_ = 0, shared_parameters_ = 0;  // local_: where local ones begin
  torch::Tensor values_, integers_;
  std::vector<torch::Tensor> parameters_;
  std::vector<Place> places_, integer_places_;
  std::vector<std::size_t> place_of_;  // of each parameter, among places_
};

template <module_like M>
FlatModel::FlatModel(M& module, Sharing const& sharing) : buffers_(sharing.buffers) {
  std::vector<Item> shared, local, integers;
  std::vector<c10::TensorImpl*> seen;
  auto& net = pardl::detail::contained(module);
  auto const is_new = [&](torch::Tensor const& tensor) {  // tied weights have two names and one place
    if (!tensor.defined() || std::ranges::count(seen, tensor.unsafeGetTensorImpl()) > 0) return false;
    seen.push_back(tensor.unsafeGetTensorImpl());
    return true;
  };
  for (auto const& item : net.named_parameters()) {
    if (!is_new(item.value()) || !item.value().requires_grad()) continue;
    bool const keep = sharing.keep_local && sharing.keep_local(item.key());
    (keep ? local : shared).push_back({item.key(), item.value(), true});
  }
  auto& buffers = sharing.buffers == BufferPolicy::client_local ? local : shared;
  for (auto const& item : net.named_buffers()) {
    if (!is_new(item.value())) continue;
    bool const number = at::isFloatingType(item.value().scalar_type());
    (number ? buffers : integers).push_back({item.key(), item.value(), false});
  }
  lay_out(std::move(shared), std::move(local), std::move(integers), sharing.alignment);
}

inline void FlatModel::lay_out(std::vector<Item> shared, std::vector<Item> local, std::vector<Item> integers,
                               std::int64_t alignment) {
  if (shared.empty() || !shared.front().is_parameter)
    throw ConfigError(sentence("fed", "no trainable parameter of this model is shared",
                               "share at least one, or train without a federation"));
  torch::NoGradGuard const no_grad;
  auto const device = shared.front().tensor.device();
  auto const aligned = [=](std::int64_t begin) { return (begin + alignment - 1) / alignment * alignment; };
  auto const rows = [&](std::vector<Item> const& items, torch::ScalarType type, std::vector<Place>& places,
                        std::int64_t begin) {
    for (auto const& [name, tensor, is_parameter] : items) {
      if (tensor.scalar_type() != type || !tensor.is_non_overlapping_and_dense())
        throw ConfigError(sentence("fed",
                                   name + " is " + c10::toString(tensor.scalar_type()) +
                                       (tensor.is_non_overlapping_and_dense() ? "" : " and not dense"),
                                   std::string("a federation works on dense tensors of ") + c10::toString(type) +
                                       ": call net->to(torch::kFloat)"));
      if (tensor.device() != device)
        throw ConfigError(sentence("fed", name + " is on " + tensor.device().str() + ", others on " + device.str(),
                                   "put the whole model on one device"));
      if (type == torch::kFloat) begin = aligned(begin);
      places.push_back({name, begin, tensor.numel(),
                        tensor.is_contiguous() ? tensor.sizes().vec() : std::vector<std::int64_t>{tensor.numel()}});
      begin += tensor.numel();
    }
    return begin;
  };
  shared_ = rows(shared, torch::kFloat, places_, 0);
  local_ = local.empty() ? shared_ : aligned(shared_);
  auto const all = rows(local, torch::kFloat, places_, local_);
  auto const counts = rows(integers, torch::kLong, integer_places_, 0);

  values_ = torch::zeros({all}, torch::dtype(torch::kFloat).device(device));
  integers_ = torch::zeros({counts}, torch::dtype(torch::kLong).device(device));
  auto const move_in = [&](Item& item, torch::Tensor const& row, std::vector<Place> const& places, std::size_t at) {
    auto const& place = places[at];
    auto view = row.narrow(0, place.begin, place.size)
                    .as_strided(item.tensor.sizes(), item.tensor.strides(), row.storage_offset() + place.begin);
    view.copy_(item.tensor);
    item.tensor.set_data(view);
    if (!item.is_parameter) return;
    item.tensor.mutable_grad().reset();
    parameters_.push_back(item.tensor);
    place_of_.push_back(at);
  };
  std::size_t place = 0;
  for (auto& item : shared) {
    if (item.is_parameter) shared_parameters_ = places_[place].begin + places_[place].size;
    move_in(item, values_, places_, place++);
  }
  for (auto& item : local) move_in(item, values_, places_, place++);
  for (std::size_t i = 0; i < integers.size(); ++i) move_in(integers[i], integers_, integer_places_, i);
}

}  // namespace pardl::inline PARDL_ABI::fed
