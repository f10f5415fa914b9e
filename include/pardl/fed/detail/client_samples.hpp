// SPDX-License-Identifier: MIT
/// \file   One client's samples on a worker's device, and the next client's on their way.
/// \layer  fed, private.
#pragma once

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "pardl/data/dataset.hpp"
#include "pardl/data/sample_stream.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// The samples of one client, gathered once and transformed batch by batch.
template <class Transform>
class ClientSamples {
 public:
  ClientSamples(Batch const& samples, std::vector<std::int64_t> const& indices, Transform const& transform,
                torch::Device device, std::uint64_t seed, std::int64_t round)
      : indices_(indices),
        transform_(transform),
        seed_(seed),
        round_(round),
        samples_{samples.inputs.to(device, /*non_blocking=*/true), samples.targets.to(device, /*non_blocking=*/true)} {}

  /// Rows of the client's samples, in the `pass`-th pass over them.
  [[nodiscard]] Batch operator()(std::span<std::int64_t const> rows, std::int64_t pass) const {
    numbers_.resize(rows.size());
    std::ranges::transform(rows, numbers_.begin(),
                           [this](std::int64_t row) { return indices_[static_cast<std::size_t>(row)]; });
    SampleStream const stream{seed_, round_ * passes_in_round + pass, numbers_};
    return {transform_(pardl::detail::gather_rows(samples_.inputs, rows), stream),
            pardl::detail::gather_rows(samples_.targets, rows)};
  }

 private:
  static constexpr std::int64_t passes_in_round = 4096;  // a stream's epoch has 32 bits

  std::vector<std::int64_t> const& indices_;
  Transform const& transform_;
  std::uint64_t seed_;
  std::int64_t round_;
  Batch samples_;
  mutable std::vector<std::int64_t> numbers_;
};

/// Gathers clients' samples; the next client's in a thread while this one is trained, where gathering takes longer than
/// such a thread costs (large clients, data sets that read or decode). What is gathered does not depend on that.
template <class Data>
class Gatherer {
 public:
  explicit Gatherer(Data const& data) : data_(data) {}

  [[nodiscard]] Batch gather(std::int64_t client, std::vector<std::int64_t> const& indices) {
    if (next_ && next_->first == client) {
      auto future = std::move(next_->second);
      next_.reset();
      return future.get();
    }
    next_.reset();  // stolen by another worker, or failed: what is on its way is waited for
    auto const start = std::chrono::steady_clock::now();
    auto samples = data_.batch(indices);
    took_ = std::chrono::steady_clock::now() - start;
    return samples;
  }

  /// A guess at the client after this one.
  void expect(std::int64_t client, std::vector<std::int64_t> const& indices) {
    if (took_ < worth_a_thread) return;
    next_.emplace(client, std::async(std::launch::async, [this, &indices, threads = at::get_num_threads()] {
                    at::set_num_threads(threads);
                    return data_.batch(indices);
                  }));
  }

 private:
  static constexpr std::chrono::microseconds worth_a_thread{200};

  Data const& data_;
  std::chrono::steady_clock::duration took_{};
  std::optional<std::pair<std::int64_t, std::future<Batch>>> next_;
};

}  // namespace pardl::inline PARDL_ABI::fed::detail
