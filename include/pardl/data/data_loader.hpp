// SPDX-License-Identifier: MIT
/// \file   Batches for one rank, epoch by epoch: gathered ahead by threads, transformed, delivered on the device.
/// \layer  data.
///
/// On a CPU the loader's threads gather and transform. For CUDA they gather into page-locked memory; the copy (bytes, a
/// quarter of the floats) and the transforms are queued on the consumer's current stream, so the host never waits and
/// no stream has to be synchronised: the caching host allocator keeps a staging block until its copy has run. With
/// `resident` the whole dataset is on the device and only index lists travel.
///
/// Same dataset, sampler, transforms and seed: same batches, bit for bit, whatever the number of threads.
#pragma once

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <dlfcn.h>
#include <torch/types.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <memory>
#include <optional>
#include <ranges>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/data/dataset.hpp"
#include "pardl/data/detail/pixels.hpp"
#include "pardl/data/detail/prefetcher.hpp"
#include "pardl/data/distributed_sampler.hpp"
#include "pardl/data/sample_stream.hpp"
#include "pardl/data/transforms.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct DataLoaderOptions {
  std::int64_t batch_size = 1;         ///< samples per batch on this rank, not over all ranks
  bool drop_last = false;              ///< leave out the last batch of an epoch if it is not full
  int workers = 1;                     ///< threads that make batches ahead; 0: the caller's thread makes them
  int prefetch = 2;                    ///< batches that each worker may be ahead
  torch::Device device = torch::kCPU;  ///< where batches are delivered
  bool pin_memory = true;              ///< stage copies to CUDA in page-locked memory; no effect on a CPU
  bool resident = false;               ///< keep the whole dataset on `device`; on CUDA no workers are needed then
  torch::MemoryFormat memory_format = torch::MemoryFormat::Contiguous;  ///< of image batches: or ChannelsLast
  std::uint64_t seed = 0;  ///< of the transforms' random numbers; give every rank the same
};

/// No transform at all.
struct NoTransform {
  [[nodiscard]] torch::Tensor operator()(torch::Tensor batch, SampleStream const&) const { return batch; }
};
static_assert(batch_transform<NoTransform>);

namespace detail {

/// For a loader thread: its tensor operations stay in it. at::set_num_threads would do this to every thread that starts
/// later, too (autograd's among them); OpenMP's own setting is per thread. It is looked up at run time, since which
/// OpenMP LibTorch brought is LibTorch's business; a LibTorch without OpenMP has one shared pool and nothing to set.
inline void keep_to_one_thread() {
  (void)at::get_num_threads();  // LibTorch sets up a new thread at its first use; after that it leaves it alone
  if (auto* const symbol = ::dlsym(RTLD_DEFAULT, "omp_set_num_threads")) reinterpret_cast<void (*)(int)>(symbol)(1);
}

[[noreturn]] inline void fail_batch(std::int64_t epoch, std::int64_t number, std::string const& what) {
  std::throw_with_nested(DataError(
      sentence("data", "batch " + std::to_string(number) + " of epoch " + std::to_string(epoch) + " failed: " + what,
               "the dataset or a transform threw this")));
}

/// Runs a step of the loader and says which batch it was, where the exception does not explain itself.
template <class F>
[[nodiscard]] Batch explained(std::int64_t epoch, std::int64_t number, F&& step) {
  try {
    return std::forward<F>(step)();
  } catch (Error const&) {
    throw;
  } catch (c10::Error const& error) {
    fail_batch(epoch, number, error.what_without_backtrace());
  } catch (std::exception const& error) {
    fail_batch(epoch, number, error.what());
  }
}

/// Images in the wanted layout, dense; anything that is not [B, C, H, W] as it is.
[[nodiscard]] inline torch::Tensor laid_out(torch::Tensor const& inputs, torch::MemoryFormat format) {
  if (inputs.dim() != 4 || inputs.is_contiguous(format)) return inputs;
  bool const bytes = inputs.is_cpu() && inputs.scalar_type() == torch::kByte && inputs.is_contiguous();
  return bytes && format == torch::MemoryFormat::ChannelsLast ? interleave(inputs) : inputs.contiguous(format);
}

template <class D>
struct resident_form {
  using type = D;
};
template <resident_dataset D>
struct resident_form<D> {
  using type = decltype(std::declval<D const&>().resident_on(torch::kCPU));
};

/// What a loader and its epochs share and nobody changes.
template <class D, class T>
struct LoaderParts {
  D dataset;
  std::optional<typename resident_form<D>::type> resident;
  T transform;
  DataLoaderOptions options;

  [[nodiscard]] std::int64_t batches_in(std::int64_t samples) const {
    return (options.drop_last ? samples : samples + options.batch_size - 1) / options.batch_size;
  }
  /// The whole set is on the device: a batch is one kernel away, and threads would use another stream than the
  /// consumer.
  [[nodiscard]] bool in_place() const { return resident.has_value() && !options.device.is_cpu(); }

  /// First half, in a loader thread: from the dataset's memory to a batch; on a CPU all of it.
  [[nodiscard]] Batch gather(SampleStream const& stream) const {
    at::NoGradGuard no_grad;
    auto batch = resident ? resident->batch(stream.indices) : dataset.batch(stream.indices);
    if (!batch.inputs.defined() || batch.inputs.dim() < 1 || batch.inputs.size(0) != stream.rows())
      throw DataError(sentence("data",
                               "the dataset returned inputs " +
                                   (batch.inputs.defined() ? shape_of(batch.inputs) : "undefined") + " for " +
                                   std::to_string(stream.rows()) + " indices",
                               "batch(indices) returns one row per index"));
    if (options.device.is_cpu()) return finish(std::move(batch), stream);
    if (!batch.inputs.is_cpu() && !in_place() && options.workers > 0)
      throw ConfigError(sentence("data",
                                 "the dataset is on " + batch.inputs.device().str() +
                                     ", and a loader thread's stream there is not the one that uses the batch",
                                 "use .workers = 0, or keep the data on the host and use .resident = true"));
    if (options.device.is_cuda() && options.pin_memory) {
      if (batch.inputs.is_cpu()) batch.inputs = batch.inputs.pin_memory();
      if (batch.targets.defined() && batch.targets.is_cpu()) batch.targets = batch.targets.pin_memory();
    }
    return batch;
  }

  /// Second half, where the batch is used: copy, layout, transforms, floats.
  [[nodiscard]] Batch finish(Batch batch, SampleStream const& stream) const {
    at::NoGradGuard no_grad;
    auto inputs = laid_out(batch.inputs.to(options.device, /*non_blocking=*/options.pin_memory), options.memory_format);
    inputs = transform(std::move(inputs), stream);
    if (!inputs.defined() || inputs.dim() < 1 || inputs.size(0) != stream.rows())
      throw DataError(sentence("data",
                               "the transform returned " +
                                   (inputs.defined() ? shape_of(inputs) : "an undefined tensor") + " for " +
                                   std::to_string(stream.rows()) + " samples",
                               "a transform returns as many rows as it gets"));
    if (inputs.dim() == 4 && inputs.scalar_type() == torch::kByte) inputs = scale_bytes(inputs);
    if (batch.targets.defined()) batch.targets = batch.targets.to(options.device, /*non_blocking=*/options.pin_memory);
    return {laid_out(inputs, options.memory_format), std::move(batch.targets)};
  }
};

}  // namespace detail

/// One epoch's batches, an input range: `for (auto [images, labels] : loader.epoch(e))`. It owns its order and its
/// threads and shares the data, so it may outlive its loader and the call for the next epoch, and leaving it early is
/// safe: its destructor waits for the batches that threads are making at that moment. Use it from one thread.
template <class D, class T>
class LoaderEpoch {
 public:
  class Iterator {
   public:
    using value_type = Batch;
    using difference_type = std::ptrdiff_t;

    explicit Iterator(LoaderEpoch* epoch) : epoch_(epoch) {}
    [[nodiscard]] Batch const& operator*() const { return *epoch_->state_->current; }
    [[nodiscard]] Batch const* operator->() const { return &**this; }
    Iterator& operator++() {
      epoch_->advance();
      return *this;
    }
    void operator++(int) { ++*this; }
    [[nodiscard]] bool operator==(std::default_sentinel_t) const { return !epoch_->state_->current; }

   private:
    LoaderEpoch* epoch_;
  };

  LoaderEpoch(std::shared_ptr<detail::LoaderParts<D, T> const> parts, std::int64_t epoch,
              std::vector<std::int64_t> order)
      : state_(std::make_unique<State>(std::move(parts), epoch, std::move(order))) {}

  /// Makes the first batch; call it once. \throws from here and from ++ what a dataset or transform threw.
  [[nodiscard]] Iterator begin() {
    if (!std::exchange(state_->begun, true)) advance();
    return Iterator{this};
  }
  [[nodiscard]] std::default_sentinel_t end() const noexcept { return {}; }
  /// Batches in the whole epoch (after skip), taken ones included.
  [[nodiscard]] std::size_t size() const noexcept { return static_cast<std::size_t>(state_->count); }

 private:
  struct State {
    State(std::shared_ptr<detail::LoaderParts<D, T> const> shared, std::int64_t number,
          std::vector<std::int64_t> samples)
        : parts(std::move(shared)), epoch(number), order(std::move(samples)) {
      auto const& options = parts->options;
      count = parts->batches_in(static_cast<std::int64_t>(order.size()));
      batches.emplace(
          count, parts->in_place() ? 0 : options.workers, std::int64_t{options.workers} * options.prefetch,
          typename detail::Prefetcher<Batch>::Work{
              [this](std::int64_t i) { return detail::explained(epoch, i, [&] { return parts->gather(stream(i)); }); },
              detail::keep_to_one_thread});
    }
    [[nodiscard]] SampleStream stream(std::int64_t i) const {
      auto const size = static_cast<std::size_t>(parts->options.batch_size), first = static_cast<std::size_t>(i) * size;
      return {parts->options.seed, epoch, std::span(order).subspan(first, std::min(size, order.size() - first))};
    }

    std::shared_ptr<detail::LoaderParts<D, T> const> parts;
    std::int64_t epoch;
    std::vector<std::int64_t> order;
    std::int64_t count = 0, taken = 0;
    bool begun = false;
    std::optional<Batch> current;
    std::optional<detail::Prefetcher<Batch>> batches;  // last, so that its threads end before what they read
  };

  void advance() {
    auto& s = *state_;
    s.current.reset();  // the caller's copy aside, a batch is given back before the next one is made
    auto batch = s.batches->next();
    if (!batch) return;
    auto const number = s.taken++;
    if (!s.parts->options.device.is_cpu())
      batch = detail::explained(s.epoch, number, [&] { return s.parts->finish(std::move(*batch), s.stream(number)); });
    s.current = std::move(batch);
  }

  std::unique_ptr<State> state_;  // threads hold its address; the range itself can be moved
};

/// `DataLoader loader{train, sampler, RandomCrop{32, 4} | RandomHorizontalFlip{} | Normalize{mean, stddev},
/// {.batch_size = 128}};` The transform may be left out. The loader keeps its own copies of dataset (a handle), sampler
/// and transform, so nothing can dangle; it knows nothing of other ranks: the sampler does. Images that are still bytes
/// after the transforms become floats in [0, 1]. \throws ConfigError for options that cannot be right.
template <class D, class S, class T = NoTransform>
class DataLoader {
  static_assert(
      dataset<D>,
      "pardl::DataLoader needs a dataset first: a copyable type with size() and batch(std::span<std::int64_t const>) "
      "-> pardl::Batch; wrap two tensors as pardl::data::TensorDataset{inputs, targets}.");
  static_assert(
      sampler<S>,
      "pardl::DataLoader needs a sampler second: indices(epoch) as a sized random-access range of std::int64_t; "
      "pardl::DistributedSampler{dataset.size(), world} is one.");
  static_assert(
      batch_transform<T>,
      "pardl::DataLoader needs a batch transform third: callable on const as (torch::Tensor, pardl::SampleStream "
      "const&) -> torch::Tensor; join several with |, or leave it out.");

 public:
  DataLoader(D samples, S order, T transform, DataLoaderOptions options = {})
      : parts_(make_parts(std::move(samples), std::move(transform), options)), sampler_(std::move(order)) {}
  DataLoader(D samples, S order, DataLoaderOptions options = {})
    requires std::same_as<T, NoTransform>
      : DataLoader(std::move(samples), std::move(order), NoTransform{}, options) {}

  /// This rank's batches of one epoch. Threads start with this call. \cost one permutation.
  [[nodiscard]] LoaderEpoch<D, T> epoch(std::int64_t number) const {
    return batches_of(number, sampler_.indices(number));
  }

  /// The rest of an epoch of which all ranks together have taken `skip` samples. The samples that remain get the pixels
  /// that they would have got.
  [[nodiscard]] LoaderEpoch<D, T> epoch(std::int64_t number, std::int64_t skip) const {
    static_assert(
        resumable_sampler<S>,
        "pardl::DataLoader::epoch(number, skip) needs a sampler with skip(samples); pardl::DistributedSampler has it.");
    return batches_of(number, sampler_.skip(skip).indices(number));
  }

  /// Batches of an epoch on this rank. \cost of a sampler without size(), one permutation.
  [[nodiscard]] std::int64_t batches() const { return parts_->batches_in(samples()); }
  /// Samples that this rank sees in an epoch; with drop_last, whole batches only.
  [[nodiscard]] std::int64_t samples() const {
    std::int64_t share = 0;
    if constexpr (has_size<S>)
      share = static_cast<std::int64_t>(sampler_.size());
    else
      share = static_cast<std::int64_t>(std::ranges::size(sampler_.indices(0)));
    return options().drop_last ? share / batch_size() * batch_size() : share;
  }
  [[nodiscard]] std::int64_t batch_size() const noexcept { return options().batch_size; }
  [[nodiscard]] DataLoaderOptions const& options() const noexcept { return parts_->options; }

 private:
  using Parts = detail::LoaderParts<D, T>;

  static std::shared_ptr<Parts const> make_parts(D samples, T transform, DataLoaderOptions options) {
    auto const refuse = [](std::string const& what, std::string const& remedy) -> void {
      throw ConfigError(sentence("data", "DataLoader: " + what, remedy));
    };
    if (options.batch_size < 1)
      refuse("batch size " + std::to_string(options.batch_size) + " on this rank",
             "a batch has at least one sample per rank: raise the global batch size or use fewer ranks");
    if (options.workers < 0 || options.prefetch < 1)
      refuse(std::to_string(options.workers) + " workers with prefetch " + std::to_string(options.prefetch),
             "workers is 0 or more, prefetch 1 or more");
    if (options.device.is_cuda() && !at::hasCUDA())
      refuse("device " + options.device.str() + ", but LibTorch sees no CUDA device", "use .device = torch::kCPU");
    if (options.memory_format != torch::MemoryFormat::Contiguous &&
        options.memory_format != torch::MemoryFormat::ChannelsLast)
      refuse("a memory format that image batches cannot have", "use Contiguous or ChannelsLast");
    std::optional<typename detail::resident_form<D>::type> resident;
    if (options.resident) {
      if constexpr (resident_dataset<D>)
        resident = samples.resident_on(options.device);
      else
        refuse("resident, but the dataset cannot be moved",
               "give it resident_on(torch::Device) -> a dataset, or leave .resident out");
    }
    return std::make_shared<Parts const>(Parts{std::move(samples), std::move(resident), std::move(transform), options});
  }

  template <class Indices>
  [[nodiscard]] LoaderEpoch<D, T> batches_of(std::int64_t number, Indices&& indices) const {
    std::vector<std::int64_t> order;
    order.reserve(static_cast<std::size_t>(std::ranges::size(indices)));
    for (std::int64_t const index : indices) order.push_back(index);
    return {parts_, number, std::move(order)};
  }

  std::shared_ptr<Parts const> parts_;
  S sampler_;
};

}  // namespace pardl::inline PARDL_ABI
