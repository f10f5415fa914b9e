// SPDX-License-Identifier: MIT
/// \file   The histogram that TensorBoard draws, over the buckets that it and PyTorch use by default.
/// \layer  io (std only).
/// \source torch.utils.tensorboard.summary.make_histogram and SummaryWriter's default bins: the same buckets and
/// counts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::io {

/// Bucket i holds counts[i] values below limits[i] and not below limits[i - 1]; the first one is empty, its limit being
/// where the second begins.
struct Histogram {
  double min = 0, max = 0;
  double count = 0;  ///< of all values, those outside every bucket too
  double sum = 0, sum_squares = 0;
  std::vector<double> limits{}, counts{};
};

namespace detail {

/// Symmetric about 0, ten percent apart from 1e-12 to 1e20.
[[nodiscard]] inline std::vector<double> const& histogram_edges() {
  static std::vector<double> const edges = [] {
    std::vector<double> positive;
    for (double edge = 1e-12; edge < 1e20; edge *= 1.1) positive.push_back(edge);
    std::vector<double> all;
    for (auto edge = positive.rbegin(); edge != positive.rend(); ++edge) all.push_back(-*edge);
    all.push_back(0);
    all.insert(all.end(), positive.begin(), positive.end());
    return all;
  }();
  return edges;
}

}  // namespace detail

/// The histogram of `values`, without the empty buckets at its ends. As in Python, NaN and what lies beyond 1e20 count
/// in `count` and in the sums, but in no bucket.  \cost a search among 1,500 edges for each value.
/// \throws DataError if no value falls into a bucket.
[[nodiscard]] inline Histogram make_histogram(std::span<double const> values) {
  auto const& edges = detail::histogram_edges();
  std::vector<std::int64_t> counts(edges.size() - 1, 0);
  Histogram histogram{.count = static_cast<double>(values.size())};
  std::int64_t counted = 0;
  if (!values.empty()) histogram.min = histogram.max = values.front();
  for (double const value : values) {
    histogram.sum += value;
    histogram.sum_squares += value * value;
    // A NaN goes through to the end, as numpy's min and max have it.
    if (std::isnan(value) || value < histogram.min) histogram.min = value;
    if (std::isnan(value) || value > histogram.max) histogram.max = value;
    if (!(value >= edges.front() && value <= edges.back())) continue;
    auto const above = std::ranges::upper_bound(edges, value);
    auto const bucket = std::min(static_cast<std::size_t>(above - edges.begin()), counts.size()) - 1;  // last: closed
    ++counts[bucket];
    ++counted;
  }
  if (counted == 0)
    throw DataError(sentence("io", "none of " + std::to_string(values.size()) + " values falls into a histogram",
                             "give at least one that is finite and below 1e20"));
  auto const occupied = [](std::int64_t count) { return count > 0; };
  auto const first = static_cast<std::size_t>(std::ranges::find_if(counts, occupied) - counts.begin());
  auto const last = static_cast<std::size_t>(std::find_if(counts.rbegin(), counts.rend(), occupied).base() -
                                             counts.begin());  // one behind
  histogram.limits.assign(edges.begin() + static_cast<std::ptrdiff_t>(first),
                          edges.begin() + static_cast<std::ptrdiff_t>(last + 1));
  histogram.counts.push_back(0);
  for (std::size_t i = first; i < last; ++i) histogram.counts.push_back(static_cast<double>(counts[i]));
  return histogram;
}

}  // namespace pardl::inline PARDL_ABI::io
