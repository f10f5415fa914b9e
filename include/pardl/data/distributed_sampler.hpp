// SPDX-License-Identifier: MIT
/// \file   Which samples this rank sees in an epoch, and in which order: PyTorch's DistributedSampler, index for index.
/// \layer  data (LibTorch for its permutation; policy/shard for the arithmetic).
///
/// A sampler is a small value without a current epoch: `indices(epoch)` is a pure function, so forgetting set_epoch is
/// not possible, and what it returns owns its permutation: threads that prefetch from one epoch are not disturbed when
/// the next begins, nor when the sampler is gone. No call is collective; the ranks agree because they compute the same.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randperm.h>

#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <ranges>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/policy/ranked.hpp"
#include "pardl/policy/shard.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

// ---- the seam ------------------------------------------------------------------------------------------------------

/// Sample indices by position, with a count.
template <class R>
concept index_range = std::ranges::random_access_range<R> && std::ranges::sized_range<R> &&
                      std::same_as<std::ranges::range_value_t<R>, std::int64_t>;

/// It lives as long as it is held: a value, and no view of numbers that somebody else keeps (a span).
template <class R>
concept owns_its_elements = !std::is_reference_v<R> && (!std::ranges::borrowed_range<R> ||
                                                        !std::is_reference_v<std::ranges::range_reference_t<R>>);

/// indices(epoch): this rank's samples of that epoch. Models: DistributedSampler, RandomSampler, SequentialSampler.
template <class S>
concept sampler = std::copy_constructible<S> && requires(S const& s, std::int64_t epoch) {
  { s.indices(epoch) } -> index_range;
  { s.indices(epoch) } -> owns_its_elements;
};

/// A sampler that can go on in the middle of an epoch: skip(n) is the same sampler, its epochs begun n samples later.
template <class S>
concept resumable_sampler = sampler<S> && requires(S const& s, std::int64_t samples) {
  { s.skip(samples) } -> sampler;
};

// ---- what a sampler returns ----------------------------------------------------------------------------------------

/// A rank's share of an ordered epoch: a random-access range of sample indices that shares ownership of the
/// permutation. A view in the sense of C++20: copies are cheap, and a pipeline built on one keeps the permutation
/// alive. An iterator is valid as long as any copy of its range is.  \cost one int64 per sample of the data set, none
/// without shuffling.
class SampleIndices : public std::ranges::view_interface<SampleIndices> {
 public:
  class Iterator {
   public:
    using value_type = std::int64_t;
    using difference_type = std::ptrdiff_t;
    using reference = std::int64_t;
    using pointer = void;
    using iterator_category = std::input_iterator_tag;  // C++17 wants references of anything stronger
    using iterator_concept = std::random_access_iterator_tag;

    Iterator() noexcept : shard_(0, {0, 1}) {}
    Iterator(std::int64_t const* order, Shard const& shard, std::ptrdiff_t at) noexcept
        : order_(order), shard_(shard), at_(at) {}

    [[nodiscard]] std::int64_t operator*() const noexcept { return (*this)[0]; }
    [[nodiscard]] std::int64_t operator[](std::ptrdiff_t n) const noexcept {
      std::int64_t const position = shard_[at_ + n];
      return order_ == nullptr ? position : order_[position];
    }
    Iterator& operator+=(std::ptrdiff_t n) noexcept {
      at_ += n;
      return *this;
    }
    Iterator& operator-=(std::ptrdiff_t n) noexcept { return *this += -n; }
    Iterator& operator++() noexcept { return *this += 1; }
    Iterator& operator--() noexcept { return *this -= 1; }
    Iterator operator++(int) noexcept {
      auto const before = *this;
      ++*this;
      return before;
    }
    Iterator operator--(int) noexcept {
      auto const before = *this;
      --*this;
      return before;
    }
    friend Iterator operator+(Iterator i, std::ptrdiff_t n) noexcept { return i += n; }
    friend Iterator operator+(std::ptrdiff_t n, Iterator i) noexcept { return i += n; }
    friend Iterator operator-(Iterator i, std::ptrdiff_t n) noexcept { return i -= n; }
    friend std::ptrdiff_t operator-(Iterator const& a, Iterator const& b) noexcept { return a.at_ - b.at_; }
    friend bool operator==(Iterator const& a, Iterator const& b) noexcept { return a.at_ == b.at_; }
    friend std::strong_ordering operator<=>(Iterator const& a, Iterator const& b) noexcept { return a.at_ <=> b.at_; }

   private:
    std::int64_t const* order_ = nullptr;  // null: the order is 0, 1, 2, …
    Shard shard_;
    std::ptrdiff_t at_ = 0;
  };

  /// \param order  int64, on the CPU, one entry per position of the shard's epoch; undefined: 0, 1, 2, …
  SampleIndices(at::Tensor order, Shard const& shard) : order_(std::move(order)), shard_(shard) {}

  [[nodiscard]] Iterator begin() const { return {data(), shard_, 0}; }
  [[nodiscard]] Iterator end() const { return {data(), shard_, static_cast<std::ptrdiff_t>(shard_.size())}; }
  [[nodiscard]] std::size_t size() const noexcept { return static_cast<std::size_t>(shard_.size()); }

 private:
  [[nodiscard]] std::int64_t const* data() const {
    return order_.defined() ? order_.const_data_ptr<std::int64_t>() : nullptr;
  }

  at::Tensor order_;  // its storage is counted, and nobody writes to it
  Shard shard_;
};
static_assert(index_range<SampleIndices> && std::ranges::view<SampleIndices>);

namespace detail {

[[nodiscard]] inline at::Generator generator_for(std::uint64_t seed, std::int64_t epoch) {
  return at::make_generator<at::CPUGeneratorImpl>(seed + static_cast<std::uint64_t>(epoch));
}

template <std::integral N>
[[nodiscard]] std::int64_t sample_count(N size) {
  if (!std::in_range<std::int64_t>(size) || std::cmp_less(size, 0))
    throw ConfigError(
        sentence("sampler", "a data set of " + std::to_string(size) + " samples", "give its size(), 0 or more"));
  return static_cast<std::int64_t>(size);
}

}  // namespace detail

// ---- distributed ---------------------------------------------------------------------------------------------------

struct DistributedSamplerOptions {
  bool shuffle = true;     ///< false: in the order of the data set
  bool drop_last = false;  ///< true: leave out the last samples that do not go round, instead of repeating the first
  bool exact = false;      ///< true, to evaluate: every sample on one rank, once; shares differ by at most one sample
  std::uint64_t seed = 0;  ///< the same on every rank; an epoch's permutation comes from seed + epoch
};

/// Deals an epoch's order out to the ranks by turns. Equal shares by default, so that every rank makes as many steps:
/// where the ranks do not divide the samples, the order's head is repeated, or with drop_last its tail left out.
/// `DistributedSampler sampler{train.size(), world, {.seed = 7}};` — the group is anything ranked, or `{rank, ranks}`.
/// \cost every rank makes the whole permutation: about 5 ns and 8 bytes per sample.
/// \source torch.utils.data.DistributedSampler; `exact` is ours.
class DistributedSampler {
 public:
  /// \throws ConfigError for a negative size, or where both drop_last and exact are set.
  template <std::integral N>
  DistributedSampler(N dataset_size, Ranks group, DistributedSamplerOptions options = {})
      : options_(options), shard_(detail::sample_count(dataset_size), group, remainder(options, group)) {}

  template <class N, class G>
    requires(!std::integral<N> || !std::convertible_to<G const&, Ranks>)
  DistributedSampler(N const&, G const&, DistributedSamplerOptions = {}) : shard_(0, {0, 1}) {
    static_assert(
        std::integral<N> && std::convertible_to<G const&, Ranks>,
        "pardl::DistributedSampler needs the number of samples first, such as train.size(), and then the group: a "
        "ProcessGroup, or {rank, ranks}.");
  }

  /// This rank's samples of an epoch; the same for the same seed, epoch, size and group, anywhere.
  [[nodiscard]] SampleIndices indices(std::int64_t epoch) const {
    if (!options_.shuffle) return {at::Tensor(), shard_};
    return {at::randperm(shard_.samples(), detail::generator_for(options_.seed, epoch), at::kLong), shard_};
  }

  /// The rest of an epoch of which all ranks together have taken `n` samples (see Shard::skip). Meant for the one epoch
  /// that is resumed; every epoch of the sampler returned begins there. \throws ConfigError if an epoch has fewer than
  /// n samples.
  [[nodiscard]] DistributedSampler skip(std::int64_t n) const {
    auto rest = *this;
    rest.shard_ = shard_.skip(n);
    return rest;
  }

  [[nodiscard]] std::int64_t size() const noexcept { return shard_.size(); }  ///< samples of this rank per epoch
  [[nodiscard]] std::int64_t total() const noexcept {
    return shard_.total();
  }  ///< of all ranks, repeated ones included
  [[nodiscard]] DistributedSamplerOptions const& options() const noexcept { return options_; }

 private:
  static Remainder remainder(DistributedSamplerOptions const& options, Ranks group) {
    if (options.drop_last && options.exact)
      throw ConfigError(sentence("sampler", group.rank(), group.size(),
                                 "DistributedSampler with both drop_last and exact",
                                 "drop_last leaves samples out and exact leaves none out: choose one"));
    return options.exact ? Remainder::keep : options.drop_last ? Remainder::drop : Remainder::repeat;
  }

  DistributedSamplerOptions options_;
  Shard shard_;
};
static_assert(resumable_sampler<DistributedSampler>);

// ---- of one rank ---------------------------------------------------------------------------------------------------

struct RandomSamplerOptions {
  bool replacement = false;       ///< true: each draw is from the whole data set
  std::int64_t num_samples = -1;  ///< per epoch; -1 = as many as the data set has
  std::uint64_t seed = 0;         ///< an epoch's draws come from seed + epoch
};

/// The whole data set in random order, on one rank.
/// \source torch.utils.data.RandomSampler with a generator seeded with seed + epoch: the same indices.
class RandomSampler {
 public:
  /// \throws ConfigError for a negative size, or samples to be drawn from none.
  template <std::integral N>
  explicit RandomSampler(N dataset_size, RandomSamplerOptions options = {})
      : options_(options), of_(detail::sample_count(dataset_size)), shard_(count(of_, options), {0, 1}) {}

  [[nodiscard]] SampleIndices indices(std::int64_t epoch) const {
    auto generator = detail::generator_for(options_.seed, epoch);
    std::int64_t left = shard_.samples();
    if (options_.replacement && left > 0) return {at::randint(of_, {left}, generator, at::kLong), shard_};
    std::vector<at::Tensor> parts{at::empty({0}, at::kLong)};
    for (; left > of_; left -= of_) parts.push_back(at::randperm(of_, generator, at::kLong));
    parts.push_back(at::randperm(of_, generator, at::kLong).slice(0, 0, left));
    return {at::cat(parts), shard_};
  }
  /// The rest of an epoch of which `n` samples have been taken.  \throws ConfigError if an epoch has fewer.
  [[nodiscard]] RandomSampler skip(std::int64_t n) const {
    auto rest = *this;
    rest.shard_ = shard_.skip(n);
    return rest;
  }
  [[nodiscard]] std::int64_t size() const noexcept { return shard_.size(); }

 private:
  static std::int64_t count(std::int64_t of, RandomSamplerOptions const& options) {
    std::int64_t const n = options.num_samples == -1 ? of : options.num_samples;
    if (n < 0 || (n > 0 && of == 0))
      throw ConfigError(sentence("sampler",
                                 "RandomSampler of " + std::to_string(n) + " samples out of " + std::to_string(of),
                                 "give .num_samples = 0 or more, and a data set that is not empty"));
    return n;
  }

  RandomSamplerOptions options_;
  std::int64_t of_;
  Shard shard_;
};
static_assert(resumable_sampler<RandomSampler>);

/// The whole data set in its own order, on one rank.
class SequentialSampler {
 public:
  /// \throws ConfigError for a negative size.
  template <std::integral N>
  explicit SequentialSampler(N dataset_size) : shard_(detail::sample_count(dataset_size), {0, 1}) {}

  [[nodiscard]] SampleIndices indices(std::int64_t) const { return {at::Tensor(), shard_}; }
  /// The rest of an epoch of which `n` samples have been taken.  \throws ConfigError if an epoch has fewer.
  [[nodiscard]] SequentialSampler skip(std::int64_t n) const {
    auto rest = *this;
    rest.shard_ = shard_.skip(n);
    return rest;
  }
  [[nodiscard]] std::int64_t size() const noexcept { return shard_.size(); }

 private:
  Shard shard_;
};
static_assert(resumable_sampler<SequentialSampler>);

static_assert(!sampler<int> && !resumable_sampler<int>);
static_assert(!owns_its_elements<std::vector<std::int64_t> const&>, "the next epoch would overwrite it");

}  // namespace pardl::inline PARDL_ABI
