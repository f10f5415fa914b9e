// SPDX-License-Identifier: MIT
/// \file   Bytes that lie in several places (the tensors of one operation), read and written as one row.
/// \layer  comm, private.
#pragma once

#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

class Row {
 public:
  Row() = default;
  Row(void* data, std::size_t size) { add(data, size); }

  void add(void* data, std::size_t size) {
    if (size == 0) return;
    runs_.push_back({static_cast<std::byte*>(data), size});
    size_ += size;
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  /// f(place, offset, bytes) for each run of the bytes [begin, begin + count) of the row, which may reach beyond its
  /// end.
  template <class F>
  void each(std::size_t begin, std::size_t count, F&& f) const {
    if (begin >= size_) return;
    count = std::min(count, size_ - begin);
    std::size_t at = 0, done = 0;  // at: where the run begins in the row
    for (auto const& run : runs_) {
      if (done == count) return;
      if (begin + done < at + run.size) {
        std::size_t const inside = begin + done - at, bytes = std::min(run.size - inside, count - done);
        f(run.data + inside, done, bytes);
        done += bytes;
      }
      at += run.size;
    }
  }
  void read(std::size_t begin, std::size_t count, std::byte* to) const {
    each(begin, count,
         [to](std::byte const* from, std::size_t offset, std::size_t bytes) { std::memcpy(to + offset, from, bytes); });
  }
  void write(std::size_t begin, std::size_t count, std::byte const* from) const {
    each(begin, count, [from](std::byte* to, std::size_t offset, std::size_t bytes) {
      if (to != from + offset) std::memcpy(to, from + offset, bytes);
    });
  }

 private:
  struct Run {
    std::byte* data;
    std::size_t size;
  };
  c10::SmallVector<Run, 2> runs_;
  std::size_t size_ = 0;
};

}  // namespace pardl::inline PARDL_ABI::detail::shm
