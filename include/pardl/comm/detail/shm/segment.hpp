// SPDX-License-Identifier: MIT
/// \file   Memory that the ranks of one host share and that has no name, so nothing is left of it however they end.
/// \layer  comm, private.
#pragma once

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "pardl/io/posix.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

/// A mapping of a memfd. Ranks that are threads of one process share the mapping, and so its addresses.
class Segment {
 public:
  /// Zeroed; a page costs memory once somebody writes it, on the NUMA node of who writes it first.
  static std::shared_ptr<Segment> create(std::size_t size) {
    io::FileDescriptor file(::memfd_create("pardl", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!file || ::ftruncate(file.get(), static_cast<off_t>(size)) != 0) refuse(size, errno);
    // No peer can cut the file short: reading beyond its end would kill the reader.
    ::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    return map(std::move(file), size);
  }

  /// A memfd that another rank has created. \throws CommError for one of another size.
  static std::shared_ptr<Segment> map(io::FileDescriptor file, std::size_t size) {
    struct ::stat about {};
    if (::fstat(file.get(), &about) != 0 || static_cast<std::size_t>(about.st_size) != size)
      throw CommError(sentence("comm", "the shared memory is not of the size that this rank expects",
                               "run one version of the program on all ranks"));
    static std::mutex mutex;
    static std::map<std::pair<dev_t, ino_t>, std::weak_ptr<Segment>> known;
    std::lock_guard const lock(mutex);
    std::erase_if(known, [](auto const& item) { return item.second.expired(); });
    auto& place = known[{about.st_dev, about.st_ino}];
    if (auto segment = place.lock()) return segment;
    void* const memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file.get(), 0);
    if (memory == MAP_FAILED) refuse(size, errno);
    std::shared_ptr<Segment> segment(new Segment(std::move(file), static_cast<std::byte*>(memory), size));
    place = segment;
    return segment;
  }

  Segment(Segment const&) = delete;
  Segment& operator=(Segment const&) = delete;
  ~Segment() { ::munmap(static_cast<void*>(data_), size_); }

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] int descriptor() const noexcept { return file_.get(); }

 private:
  Segment(io::FileDescriptor file, std::byte* data, std::size_t size)
      : file_(std::move(file)), data_(data), size_(size) {}

  [[noreturn]] static void refuse(std::size_t size, int error) {
    throw CommError(sentence("comm",
                             "no " + std::to_string(size >> 20) + " MiB of shared memory: " + io::reason_of(error),
                             "use fewer ranks on a host, or name the backend gloo"));
  }

  io::FileDescriptor file_;
  std::byte* data_;
  std::size_t size_;
};

}  // namespace pardl::inline PARDL_ABI::detail::shm
