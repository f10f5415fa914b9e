// SPDX-License-Identifier: MIT
/// \file   What a dataset is (a size, and whole batches in one gather), and the datasets made of tensors.
/// \layer  data.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// `auto [images, labels] = batch;`
struct Batch {
  torch::Tensor inputs;   ///< [B, ...]
  torch::Tensor targets;  ///< [B, ...], for classes int64 [B]
};

template <class D>
concept has_size = requires(D const& set) {
  { set.size() } -> std::convertible_to<std::int64_t>;
};
template <class D>
concept gathers_batches = requires(D const& set, std::span<std::int64_t const> indices) {
  { set.batch(indices) } -> std::same_as<Batch>;
};

/// A cheap-to-copy handle on samples 0 … size()-1. `batch(indices)` returns row b = sample indices[b], made in one
/// gather, on the dataset's device; it is called from several threads at once. Models: data::TensorDataset,
/// data::ImageDataset (CIFAR, IDX, synthetic), data::Subset.
template <class D>
concept dataset = std::copy_constructible<D> && has_size<D> && gathers_batches<D>;

/// A dataset that can be moved to a device as a whole: `resident_on(device)` is again a dataset.
template <class D>
concept resident_dataset = dataset<D> && requires(D const& set, torch::Device device) {
  { set.resident_on(device) } -> dataset;
};

static_assert(!dataset<int>);
static_assert(!dataset<std::vector<Batch>>);

namespace detail {

[[nodiscard]] inline std::string shape_of(torch::Tensor const& tensor) {
  std::string text = "[";
  for (std::int64_t d = 0; d < tensor.dim(); ++d) text += (d ? ", " : "") + std::to_string(tensor.size(d));
  return text + "]";
}

/// Host numbers as a tensor on `device`. For CUDA they pass through page-locked memory, so that the copy is queued on
/// the current stream and the host goes on; the caching host allocator keeps the block until the copy has run.
template <class Number>
[[nodiscard]] torch::Tensor on_device(std::span<Number const> numbers, torch::Device device) {
  auto host = torch::empty({static_cast<std::int64_t>(numbers.size())},
                           torch::dtype(c10::CppTypeToScalarType<Number>::value).pinned_memory(device.is_cuda()));
  std::ranges::copy(numbers, host.template mutable_data_ptr<Number>());
  return device.is_cpu() ? host : host.to(device, /*non_blocking=*/true);
}

/// \throws DataError unless every index lies in 0 … size-1.
inline void check_indices(std::span<std::int64_t const> indices, std::int64_t size) {
  for (std::int64_t const index : indices)
    if (index < 0 || index >= size)
      throw DataError(sentence("data", "sample " + std::to_string(index) + " of a dataset of " + std::to_string(size),
                               "make the sampler with the size of the dataset that the loader gets"));
}

/// Rows of a CPU tensor, one memcpy each, in the caller's thread alone: ATen's index_select would start an OpenMP team
/// per loader thread. On other devices, or with rows that are not one block, index_select.
[[nodiscard]] inline torch::Tensor gather_rows(torch::Tensor const& source, std::span<std::int64_t const> indices) {
  auto const format = source.suggest_memory_format();
  if (!source.is_cpu() || !source.is_contiguous(format))
    return source.index_select(0, on_device(indices, source.device()));
  auto sizes = source.sizes().vec();
  sizes[0] = static_cast<std::int64_t>(indices.size());
  auto rows = torch::empty(sizes, source.options().memory_format(format));
  auto const bytes =
      static_cast<std::size_t>(source.nbytes() / static_cast<std::size_t>(std::max<std::int64_t>(source.size(0), 1)));
  auto const* from = static_cast<std::byte const*>(source.const_data_ptr());
  auto* to = static_cast<std::byte*>(rows.mutable_data_ptr());
  for (std::int64_t const index : indices) {
    std::memcpy(to, from + static_cast<std::size_t>(index) * bytes, bytes);
    to += bytes;
  }
  return rows;
}

}  // namespace detail
}  // namespace pardl::inline PARDL_ABI

namespace pardl::inline PARDL_ABI::data {

/// Two tensors with a common first dimension. Copies share the storage.
class TensorDataset {
 public:
  /// \throws DataError unless both have a first dimension of the same size and the same device.
  TensorDataset(torch::Tensor inputs, torch::Tensor targets)
      : inputs_(std::move(inputs)), targets_(std::move(targets)) {
    if (!inputs_.defined() || !targets_.defined() || inputs_.dim() < 1 || targets_.dim() < 1 ||
        inputs_.size(0) != targets_.size(0))
      throw DataError(sentence("data",
                               "inputs " + (inputs_.defined() ? pardl::detail::shape_of(inputs_) : "undefined") +
                                   " and targets " +
                                   (targets_.defined() ? pardl::detail::shape_of(targets_) : "undefined") +
                                   " are not the same number of samples",
                               "give one row of each per sample"));
    if (inputs_.device() != targets_.device())
      throw DataError(sentence("data",
                               "inputs are on " + inputs_.device().str() + ", targets on " + targets_.device().str(),
                               "put both on one device"));
    inputs_ = inputs_.contiguous(inputs_.suggest_memory_format());
    targets_ = targets_.contiguous();
  }

  [[nodiscard]] std::int64_t size() const { return inputs_.size(0); }
  /// \throws DataError for an index outside the dataset.
  [[nodiscard]] Batch batch(std::span<std::int64_t const> indices) const {
    pardl::detail::check_indices(indices, size());
    return {pardl::detail::gather_rows(inputs_, indices), pardl::detail::gather_rows(targets_, indices)};
  }
  /// All samples on `device`; no copy if they are there.
  [[nodiscard]] TensorDataset resident_on(torch::Device device) const {
    return {inputs_.to(device), targets_.to(device)};
  }

  [[nodiscard]] torch::Tensor const& inputs() const noexcept { return inputs_; }
  [[nodiscard]] torch::Tensor const& targets() const noexcept { return targets_; }

 private:
  torch::Tensor inputs_;
  torch::Tensor targets_;
};

/// Some samples of a dataset, renumbered from 0. A random stream sees the new numbers.
template <dataset D>
class Subset {
 public:
  /// Sample i of the subset is sample indices[i] of `whole`. \throws DataError for an index outside it.
  Subset(D whole, std::vector<std::int64_t> indices)
      : whole_(std::move(whole)), indices_(std::make_shared<std::vector<std::int64_t> const>(std::move(indices))) {
    pardl::detail::check_indices(*indices_, static_cast<std::int64_t>(whole_.size()));
  }

  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(indices_->size()); }
  [[nodiscard]] Batch batch(std::span<std::int64_t const> indices) const {
    pardl::detail::check_indices(indices, size());
    std::vector<std::int64_t> mapped(indices.size());
    std::ranges::transform(indices, mapped.begin(),
                           [this](std::int64_t i) { return (*indices_)[static_cast<std::size_t>(i)]; });
    return whole_.batch(mapped);
  }
  [[nodiscard]] auto resident_on(torch::Device device) const
    requires resident_dataset<D>
  {
    return Subset<decltype(whole_.resident_on(device))>{whole_.resident_on(device), *indices_};
  }

 private:
  D whole_;
  std::shared_ptr<std::vector<std::int64_t> const> indices_;
};

/// The first `count` samples, or all where there are fewer. \throws ConfigError if count < 1.
template <dataset D>
[[nodiscard]] Subset<D> limit(D whole, std::int64_t count) {
  if (count < 1)
    throw ConfigError(sentence("data", "a limit of " + std::to_string(count) + " samples", "ask for at least one"));
  std::vector<std::int64_t> first(static_cast<std::size_t>(std::min<std::int64_t>(count, whole.size())));
  std::iota(first.begin(), first.end(), std::int64_t{0});
  return {std::move(whole), std::move(first)};
}

static_assert(resident_dataset<TensorDataset>);
static_assert(resident_dataset<Subset<TensorDataset>>);

}  // namespace pardl::inline PARDL_ABI::data
