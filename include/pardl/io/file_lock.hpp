// SPDX-License-Identifier: MIT
/// \file   One process, or thread, at a time: a lock that the kernel lets go when its holder dies.
/// \layer  io (std and POSIX only).
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>

#include "pardl/io/posix.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::io {

/// Holds flock(2) on a file of this name, which exists only while somebody holds or awaits it. Between hosts it works
/// as far as their shared file system carries flock (NFS since Linux 2.6.12).
class FileLock {
 public:
  /// Blocks until the lock is ours. \param on_wait called once if somebody else holds it.
  /// \throws Error if the file cannot be made, or if the holder keeps it longer than `timeout`.
  template <class OnWait>
  FileLock(std::filesystem::path path, std::chrono::milliseconds timeout, OnWait&& on_wait) : path_(std::move(path)) {
    using namespace std::chrono_literals;
    auto const give_up = std::chrono::steady_clock::now() + timeout;
    auto pause = 10ms;
    for (bool told = false;;) {
      if (!file_) file_ = open_file(path_, O_RDWR | O_CREAT | O_NOFOLLOW);
      if (!file_) throw_errno("io", "lock", path_, errno);
      if (::flock(file_.get(), LOCK_EX | LOCK_NB) == 0) {
        if (is_still_the_file()) return;
        file_.close();  // its holder removed it while we waited: that one guards nothing any more
        continue;
      }
      if (errno != EWOULDBLOCK && errno != EINTR) throw_errno("io", "lock", path_, errno);
      if (!std::exchange(told, true)) on_wait();
      if (std::chrono::steady_clock::now() >= give_up)
        throw Error(sentence("io",
                             "another process holds " + path_.string() + " for more than " +
                                 std::to_string(timeout.count() / 1000) + " s",
                             "end it, or wait longer"));
      // flock knows no timeout; a process that is stopped while it holds the lock must not stop all others for good.
      std::this_thread::sleep_for(pause);
      pause = std::min(pause * 2, std::chrono::milliseconds(500));
    }
  }
  FileLock(std::filesystem::path path, std::chrono::milliseconds timeout) : FileLock(std::move(path), timeout, [] {}) {}
  FileLock(FileLock const&) = delete;
  FileLock& operator=(FileLock const&) = delete;
  ~FileLock() { ::unlink(path_.c_str()); }  // removed while still held: see is_still_the_file()

 private:
  [[nodiscard]] bool is_still_the_file() const {
    struct stat ours {
    }, named{};
    return ::fstat(file_.get(), &ours) == 0 && ::stat(path_.c_str(), &named) == 0 && ours.st_ino == named.st_ino &&
           ours.st_dev == named.st_dev;
  }

  std::filesystem::path path_;
  FileDescriptor file_;
};

}  // namespace pardl::inline PARDL_ABI::io
