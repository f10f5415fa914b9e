// SPDX-License-Identifier: MIT
/// \file   Arithmetic on a narrow tile of all updates: loading, sorting each column, distances, weighted sums.
/// \layer  fed, private (std only).
///
/// A tile holds a few coordinates of every update, one row an update, so that it stays in a near cache however long
/// the updates are. Loops run along rows. The exchange of two rows, on which all sorting rests, goes in steps of 32
/// through an array of its own: so g++ vectorises it at -O2 and -O3 (a step of 16 it unrolls at -O3 instead, and
/// without the array it does not at all: six times slower).
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <span>
#include <vector>

#include "pardl/fed/robust.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

inline constexpr std::size_t tile_step = 32;

/// n rows of a few coordinates, with zeros behind those up to a whole step. Number is float or double. Holds
/// 8192 numbers, or 32 a row where there are more than 256 rows.
template <class Number>
class Tile {
 public:
  explicit Tile(std::size_t rows)
      : rows_(rows),
        stride_(std::clamp<std::size_t>(8192 / rows / tile_step * tile_step, tile_step, 512)),
        numbers_(rows_ * stride_) {}

  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t most() const noexcept { return stride_; }  ///< coordinates that fit
  [[nodiscard]] std::size_t width() const noexcept { return width_; }  ///< coordinates in it, in whole steps
  [[nodiscard]] Number* row(std::size_t i) noexcept { return numbers_.data() + i * stride_; }
  [[nodiscard]] Number const* row(std::size_t i) const noexcept { return numbers_.data() + i * stride_; }

  /// Row i becomes coordinates [begin, begin + size) of `from`.
  void load(std::size_t i, std::span<float const> from, std::size_t begin, std::size_t size) {
    width_ = (size + tile_step - 1) / tile_step * tile_step;
    auto* const to = row(i);
    auto const* const source = from.data() + begin;
    for (std::size_t k = 0; k < size; ++k) to[k] = source[k];
    std::fill(to + size, to + width_, Number{0});
  }

 private:
  std::size_t rows_, stride_, width_ = 0;
  std::vector<Number> numbers_;
};

/// Goes through coordinates [begin, end) with a tile of all updates: use(place, size).
template <class Number, class Use>
void through_tiles(Updates const& updates, Tile<Number>& tile, std::size_t begin, std::size_t end, Use&& use) {
  for (std::size_t at = begin; at < end; at += tile.most()) {
    std::size_t const size = std::min(tile.most(), end - at);
    for (std::size_t i = 0; i < tile.rows(); ++i) tile.load(i, updates.row(i), at, size);
    use(at, size);
  }
}

/// The smaller of each pair goes to `low`, the larger to `high`.
inline void exchange(float* __restrict low, float* __restrict high, std::size_t width) {
  for (std::size_t k = 0; k < width; k += tile_step) {
    float less[tile_step], more[tile_step];
    for (std::size_t l = 0; l < tile_step; ++l) {
      float const a = low[k + l], b = high[k + l];
      less[l] = b < a ? b : a;
      more[l] = b < a ? a : b;
    }
    std::copy_n(less, tile_step, low + k);
    std::copy_n(more, tile_step, high + k);
  }
}

/// Sorts every column of a tile, smallest in row 0, by a network of exchanges between rows: about n log²n / 4 of them.
/// \paper Batcher, "Sorting networks and their applications", AFIPS 1968 (merge exchange; Knuth, TAOCP 3, 5.2.2 M).
inline void sort_columns(Tile<float>& tile) {
  std::size_t const n = tile.rows(), width = tile.width();
  if (n < 2) return;
  std::size_t const top = std::bit_ceil(n) / 2;
  for (std::size_t p = top; p > 0; p /= 2) {
    std::size_t q = top, r = 0, d = p;
    for (;;) {
      for (std::size_t i = 0; i + d < n; ++i)
        if ((i & p) == r) exchange(tile.row(i), tile.row(i + d), width);
      if (q == p) break;
      d = q - p;
      q /= 2;
      r = p;
    }
  }
}

/// The medians of the columns of a sorted tile; between the two middle ones where the rows are even in number.
inline void middle(Tile<float> const& sorted, double* to) {
  float const* const low = sorted.row((sorted.rows() - 1) / 2);
  float const* const high = sorted.row(sorted.rows() / 2);
  for (std::size_t k = 0; k < sorted.width(); ++k)  // + 0.0: the sign of a zero is not to follow the rows' order
    to[k] = 0.5 * (static_cast<double>(low[k]) + static_cast<double>(high[k])) + 0.0;
}

/// The mean of rows [first, last) of each column, added from the smallest up.
inline void mean_of_rows(Tile<float> const& sorted, std::size_t first, std::size_t last, std::span<double> result) {
  std::ranges::fill(result, 0.0);
  for (std::size_t i = first; i < last; ++i) {
    float const* const row = sorted.row(i);
    for (std::size_t k = 0; k < result.size(); ++k) result[k] += static_cast<double>(row[k]);
  }
  auto const count = static_cast<double>(last - first);
  for (double& sum : result) sum /= count;
}

/// Σ (a - b)² over `width` numbers, whole steps, in eight sums that are then added in pairs.
[[nodiscard]] inline double square_distance(double const* a, double const* b, std::size_t width) {
  constexpr std::size_t lanes = 8;
  double sums[lanes] = {};
  for (std::size_t k = 0; k < width; k += lanes)
    for (std::size_t l = 0; l < lanes; ++l) {
      double const difference = a[k + l] - b[k + l];
      sums[l] += difference * difference;
    }
  for (std::size_t half = lanes / 2; half > 0; half /= 2)
    for (std::size_t l = 0; l < half; ++l) sums[l] += sums[l + half];
  return sums[0];
}

/// Σ factor × row over `terms`, in their order; there is at least one.
inline void weighted_sum(Tile<double> const& tile, std::span<Plan::Term const> terms, double* __restrict to) {
  for (std::size_t t = 0; t < terms.size(); ++t) {
    double const* __restrict const from = tile.row(terms[t].row);
    double const factor = terms[t].factor;
    for (std::size_t k = 0; k < tile.width(); ++k) to[k] = t == 0 ? factor * from[k] : to[k] + factor * from[k];
  }
}

/// The same for coordinates [begin, begin + result.size()) of the updates, with the plan's share of the start.
inline void weighted_sum(Updates const& updates, Plan const& plan, std::size_t begin, std::span<double> result) {
  constexpr std::size_t piece = 2048;  // of the result stays in the nearest cache while all terms are added
  for (std::size_t done = 0; done < result.size(); done += piece) {
    auto const to = result.subspan(done, std::min(piece, result.size() - done));
    auto add = [&, first = true](std::span<float const> row, double factor) mutable {
      float const* const from = row.data() + begin + done;
      for (std::size_t k = 0; k < to.size(); ++k) {
        double const x = factor * static_cast<double>(from[k]);
        to[k] = first ? x : to[k] + x;
      }
      first = false;
    };
    for (auto const& term : plan.terms) add(updates.row(term.row), term.factor);
    if (plan.of_start != 0) add(updates.start(), plan.of_start);
  }
}

/// Whether update a comes before update b: by key, then weight, then by what they hold. Updates that this cannot tell
/// apart may be exchanged without changing any result.
[[nodiscard]] inline bool comes_before(Updates const& updates, std::span<double const> keys, std::size_t a,
                                       std::size_t b) {
  if (keys[a] != keys[b]) return keys[a] < keys[b];
  if (updates.weight(a) != updates.weight(b)) return updates.weight(a) < updates.weight(b);
  return std::ranges::lexicographical_compare(updates.row(a), updates.row(b));
}

/// All updates, by ascending key.
[[nodiscard]] inline std::vector<std::size_t> in_order(Updates const& updates, std::span<double const> keys) {
  std::vector<std::size_t> order(updates.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::sort(order, [&](std::size_t a, std::size_t b) { return comes_before(updates, keys, a, b); });
  return order;
}

/// The updates in `order` as terms whose factors are their weights' shares.
[[nodiscard]] inline std::vector<Plan::Term> mean_of(Updates const& updates, std::span<std::size_t const> order) {
  double total = 0;
  for (std::size_t const row : order) total += updates.weight(row);
  std::vector<Plan::Term> terms;
  for (std::size_t const row : order) terms.push_back({row, updates.weight(row) / total});
  return terms;
}

}  // namespace pardl::inline PARDL_ABI::fed::detail
