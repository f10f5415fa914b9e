// SPDX-License-Identifier: MIT
/// \file   How a training process treats memory that it has freed: it keeps it.
/// \layer  io (std and libc only).
#pragma once

#include <malloc.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::io {

/// A training step frees large tensors that the next one allocates again. glibc gives such memory back to the kernel,
/// which then clears each page anew: 9 to 17 % of a WRN-16-1 step on a CPU. What a user has set for malloc by
/// variables is left alone. The price: the process keeps the most that it ever held.
inline void keep_memory() {
#ifdef __GLIBC__
  for (char const* const name : {"MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"})
    if (std::getenv(name) != nullptr) return;
  char const* const tunables = std::getenv("GLIBC_TUNABLES");
  if (tunables != nullptr && std::string_view(tunables).find("malloc") != std::string_view::npos) return;
  ::mallopt(M_MMAP_MAX, 0);  // a threshold would not do: glibc takes none above 32 MiB
  ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  ::mallopt(M_TOP_PAD, 64 << 20);
  // What the heap grows into is asked to be in huge pages before any of it is touched: a step that streams through tens
  // of MiB of weights otherwise waits for page tables.
  constexpr std::size_t room = std::size_t{1} << 30, huge = std::size_t{1} << 21;
  if (void* const memory = std::malloc(room)) {
    auto const begin = (reinterpret_cast<std::uintptr_t>(memory) + huge - 1) / huge * huge;
    ::madvise(reinterpret_cast<void*>(begin), room - huge, MADV_HUGEPAGE);
    std::free(memory);
  }
#endif
}

}  // namespace pardl::inline PARDL_ABI::io
