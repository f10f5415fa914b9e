// SPDX-License-Identifier: MIT
/// \file   How every C++ side of the all-reduce benchmark measures: buffers in rotation, blocks of calls, quartiles.
///
/// No LibTorch here, since the MPI side has none; all_reduce.py does the same in Python.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace benchmarks {

/// The memory of one rank that its buffers are cut from. Several times the last-level cache, so that a buffer that
/// comes round again has long left it; every page is written once, and in huge pages where the kernel gives them, on
/// all sides alike. Zeros, since sums of zeros stay finite however often they are summed again.
class Arena {
 public:
  explicit Arena(std::size_t bytes)
      : bytes_(bytes),
        data_(static_cast<float*>(
            ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, /*fd=*/-1, /*offset=*/0))) {
    if (data_ == MAP_FAILED) throw std::runtime_error("no memory for " + std::to_string(bytes >> 20) + " MiB");
    (void)::madvise(data_, bytes, MADV_HUGEPAGE);
    std::fill_n(data_, bytes / sizeof(float), 0.0F);
  }
  Arena(Arena const&) = delete;
  Arena& operator=(Arena const&) = delete;
  ~Arena() { ::munmap(data_, bytes_); }

  [[nodiscard]] float* data() const noexcept { return data_; }
  /// Buffers of so many bytes that it holds.
  [[nodiscard]] std::size_t count(std::size_t bytes) const noexcept { return bytes_ / bytes; }

 private:
  std::size_t bytes_;
  float* data_;
};

/// Microseconds of one call, over blocks of calls.
struct Spread {
  double low = 0, median = 0, high = 0;  ///< low, high: the quartiles
};

/// How long to measure.
struct Patience {
  double seconds = 0.4;      ///< of one size, about
  std::size_t fewest = 7;    ///< blocks, however long they take
  std::size_t most = 200;    ///< blocks
  std::size_t calls = 1000;  ///< of a block, at most: what prepare() makes should not fill the caches
};

/// Blocks of calls, each begun by all ranks together. A block counts as long as its slowest rank took. How many calls
/// and blocks there are follows from the first ones, and is the same on all ranks. Every rank must call it.
/// \param ranks    has meet(), a barrier, and most(x), the largest x of all ranks.
/// \param buffers  in rotation; each block goes on where the last one ended.
/// \param prepare  (first, calls): before the clock starts.
/// \param call     (i, buffer): the i-th call of its block, on that buffer.
template <class Ranks, class Prepare, class Call>
Spread measure(Ranks& ranks, Patience const& patience, std::size_t buffers, Prepare&& prepare, Call&& call) {
  std::size_t at = 0;
  auto const block = [&](std::size_t calls) {
    prepare(at, calls);
    ranks.meet();
    auto const start = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < calls; ++i) call(i, (at + i) % buffers);
    std::chrono::duration<double> const taken = std::chrono::steady_clock::now() - start;
    at = (at + calls) % buffers;
    return ranks.most(taken.count());
  };
  auto const whole = [](double number, std::size_t least, std::size_t most) {
    return static_cast<std::size_t>(std::clamp(number, static_cast<double>(least), static_cast<double>(most)));
  };
  (void)block(1);  // connections, the other ranks' pages
  auto const few = static_cast<double>(patience.fewest);
  std::size_t const first = whole(patience.seconds / few / block(1), 1, 16);
  double const call_seconds = block(first) / static_cast<double>(first);
  std::size_t const calls = whole(patience.seconds / few / call_seconds, 1, patience.calls);
  std::size_t const blocks =
      whole(patience.seconds / call_seconds / static_cast<double>(calls), patience.fewest, patience.most);
  std::vector<double> us;
  for (std::size_t i = 0; i < blocks; ++i) us.push_back(block(calls) / static_cast<double>(calls) * 1e6);
  std::sort(us.begin(), us.end());
  auto const at_share = [&](double share) {  // between two neighbours where it falls there
    double const place = share * static_cast<double>(us.size() - 1);
    auto const below = static_cast<std::size_t>(place);
    auto const above = std::min(below + 1, us.size() - 1);
    return us[below] + (us[above] - us[below]) * (place - static_cast<double>(below));
  };
  return {at_share(0.25), at_share(0.5), at_share(0.75)};
}

/// 1 KiB, 4 KiB, … as the CSV names them.
inline std::string size_name(std::size_t bytes) {
  return bytes < (1U << 20) ? std::to_string(bytes >> 10) + "KiB" : std::to_string(bytes >> 20) + "MiB";
}

/// What rank r holds at element i where a sum is checked. Small whole numbers, so that float sums are exact.
inline float checked_value(int rank, std::size_t i) {
  return static_cast<float>(i % 251 + static_cast<std::size_t>(rank));
}
inline float checked_sum(int ranks, std::size_t i) {
  auto const n = static_cast<std::size_t>(ranks);
  return static_cast<float>(i % 251 * n + n * (n - 1) / 2);
}

/// Fills a buffer with this rank's values, runs `all_reduce` on it, looks at every element, and leaves zeros.
/// \throws std::runtime_error  for a wrong sum: nothing that is wrong is timed.
template <class AllReduce>
void check(float* buffer, std::size_t bytes, int rank, int ranks, std::string const& what, AllReduce&& all_reduce) {
  std::size_t const count = bytes / sizeof(float);
  for (std::size_t i = 0; i < count; ++i) buffer[i] = checked_value(rank, i);
  all_reduce();
  for (std::size_t i = 0; i < count; ++i)
    if (buffer[i] != checked_sum(ranks, i))
      throw std::runtime_error(what + " of " + size_name(bytes) + ": rank " + std::to_string(rank) + " has " +
                               std::to_string(buffer[i]) + " at element " + std::to_string(i) + ", and the sum is " +
                               std::to_string(checked_sum(ranks, i)));
  std::fill_n(buffer, count, 0.0F);
}

/// Three CSV lines: the median, and the quartiles as variants of their own.
inline void report_spread(char const* side, std::string const& variant, std::size_t bytes, int ranks, Spread const& us,
                          int repeat) {
  auto const name = variant + "-" + size_name(bytes);
  auto const line = [&](char const* which, double value) {
    std::printf("all_reduce,%s,%s%s,%d,%.6g,us,%d\n", side, name.c_str(), which, ranks, value, repeat);
  };
  line("", us.median);
  line("-q1", us.low);
  line("-q3", us.high);
  std::fflush(stdout);
}

}  // namespace benchmarks
