// SPDX-License-Identifier: MIT
/// \file   One queue of tasks per worker in shared memory; who has none left takes from the fullest.
/// \layer  fed, private.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "pardl/fed/detail/shared_array.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// Tasks are numbers. A worker takes its own from the front, in their order, and another's from the back: so the
/// schedule holds where its predictions do, and where they do not nobody waits while there is work.
class TaskQueues {
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);  // or it would not work between processes

 public:
  TaskQueues() = default;
  TaskQueues(std::size_t workers, std::size_t most) : ranges_(workers), tasks_(workers * most), most_(most) {}

  /// Fills one queue; nobody may be taking meanwhile.
  void fill(std::size_t worker, std::span<std::uint32_t const> tasks) {
    for (std::size_t i = 0; i < tasks.size(); ++i) tasks_[worker * most_ + i] = tasks[i];
    ranges_[worker].store(pack(0, static_cast<std::uint32_t>(tasks.size())));
  }

  /// What `worker` takes next unless another takes it first; none where its own queue is empty.
  [[nodiscard]] std::optional<std::uint32_t> peek(std::size_t worker) const {
    auto const range = ranges_[worker].load();
    if (begin(range) == end(range)) return std::nullopt;
    return tasks_[worker * most_ + begin(range)];
  }

  /// The next task of `worker`; none when every queue is empty.
  [[nodiscard]] std::optional<std::uint32_t> take(std::size_t worker) {
    auto& own = ranges_[worker];
    for (auto range = own.load(); begin(range) < end(range);)
      if (own.compare_exchange_weak(range, pack(begin(range) + 1, end(range))))
        return tasks_[worker * most_ + begin(range)];
    for (;;) {
      std::size_t fullest = 0;
      std::uint64_t range = 0;
      for (std::size_t other = 0; other < ranges_.size(); ++other)
        if (auto const there = ranges_[other].load(); end(there) - begin(there) > end(range) - begin(range)) {
          fullest = other;
          range = there;
        }
      if (begin(range) == end(range)) return std::nullopt;
      if (ranges_[fullest].compare_exchange_strong(range, pack(begin(range), end(range) - 1)))
        return tasks_[fullest * most_ + end(range) - 1];
    }
  }

 private:
  static constexpr std::uint64_t pack(std::uint32_t begin, std::uint32_t end) noexcept {
    return std::uint64_t{begin} << 32 | end;
  }
  static constexpr std::uint32_t begin(std::uint64_t range) noexcept { return static_cast<std::uint32_t>(range >> 32); }
  static constexpr std::uint32_t end(std::uint64_t range) noexcept { return static_cast<std::uint32_t>(range); }

  SharedArray<std::atomic<std::uint64_t>> ranges_;  // [begin, end) of each queue in one word
  SharedArray<std::uint32_t> tasks_;
  std::size_t most_ = 0;
};

}  // namespace pardl::inline PARDL_ABI::fed::detail
