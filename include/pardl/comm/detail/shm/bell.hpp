// SPDX-License-Identifier: MIT
/// \file   How ranks wait for each other: they look for a while, then sleep until somebody rings.
/// \layer  comm, private.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <ctime>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

static_assert(std::atomic<std::uint32_t>::is_always_lock_free && std::atomic<std::uint64_t>::is_always_lock_free,
              "shared memory needs atomics that are plain memory");

/// One bell for a group, in shared memory. Whoever changes something that another rank may wait for stores it with
/// sequential consistency, then calls ring(); who waits counts itself a sleeper before it looks for the last time. So
/// one of the two sees the other, and ring() costs a load where nobody sleeps.
class Bell {
 public:
  void ring() noexcept {
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    strokes_.fetch_add(1, std::memory_order_seq_cst);
    ::syscall(SYS_futex, &strokes_, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }

  /// Sleeps until the bell rings or `limit` is over, unless ready() says that there is nothing to wait for. A process
  /// killed in here stays counted, which costs the others a system call a ring and nothing else.
  template <class Ready>
  void sleep(std::chrono::nanoseconds limit, Ready&& ready) {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    auto const heard = strokes_.load(std::memory_order_seq_cst);
    if (!ready()) {
      std::timespec const time{limit.count() / 1'000'000'000, limit.count() % 1'000'000'000};
      ::syscall(SYS_futex, &strokes_, FUTEX_WAIT, heard, &time, nullptr, 0);
    }
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  }

 private:
  std::atomic<std::uint32_t> strokes_;
  std::atomic<std::uint32_t> sleepers_;
};

/// A moment for a processor that looks again and again, so that its sibling gets on.
inline void relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace pardl::inline PARDL_ABI::detail::shm
