// SPDX-License-Identifier: MIT
/// \file   An array in memory that processes forked later share.
/// \layer  fed, private.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "pardl/io/posix.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// Zeroed; pages cost memory once they are written. It has no name, so nothing stays behind, however a process ends.
template <class T>
class SharedArray {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  SharedArray() = default;
  /// \throws Error if the kernel refuses.
  explicit SharedArray(std::size_t size) : size_(size) {
    if (size == 0) return;
    void* const memory =
        ::mmap(nullptr, size * sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
      throw Error(sentence(
          "fed", "no " + std::to_string(size * sizeof(T) >> 20) + " MiB of shared memory: " + io::reason_of(errno),
          "use fewer workers or clients with a state of their own"));
    data_ = static_cast<T*>(memory);
  }
  SharedArray(SharedArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  SharedArray& operator=(SharedArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~SharedArray() {
    if (data_ != nullptr) ::munmap(static_cast<void*>(data_), size_ * sizeof(T));
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] T* data() const noexcept { return data_; }
  [[nodiscard]] T& operator[](std::size_t i) const noexcept { return data_[i]; }
  [[nodiscard]] std::span<T> span() const noexcept { return {data_, size_}; }
  [[nodiscard]] std::span<T> span(std::size_t begin, std::size_t count) const noexcept {
    return {data_ + begin, count};
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace pardl::inline PARDL_ABI::fed::detail
