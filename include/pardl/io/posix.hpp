// SPDX-License-Identifier: MIT
/// \file   The few POSIX file calls that need closing, repeating and explaining.
/// \layer  io (std and POSIX only).
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::io {

/// An open descriptor that closes itself. Movable, not copyable; -1 is "none".
class FileDescriptor {
 public:
  FileDescriptor() noexcept = default;
  explicit FileDescriptor(int descriptor) noexcept : descriptor_(descriptor) {}
  FileDescriptor(FileDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    if (this != &other) {
      close();
      descriptor_ = std::exchange(other.descriptor_, -1);
    }
    return *this;
  }
  ~FileDescriptor() { close(); }

  [[nodiscard]] int get() const noexcept { return descriptor_; }
  [[nodiscard]] explicit operator bool() const noexcept { return descriptor_ >= 0; }

  /// Closes now. Returns 0 or the errno of close(2), which on a network file system is where a full disk shows.
  int close() noexcept {
    int const descriptor = std::exchange(descriptor_, -1);
    return descriptor < 0 || ::close(descriptor) == 0 || errno == EINTR ? 0 : errno;
  }

 private:
  int descriptor_ = -1;
};

/// What an errno means, as the end of "cannot write PATH: ...".
[[nodiscard]] inline std::string reason_of(int error) {
  switch (error) {
    case ENOSPC:
      return "the disk is full";
    case EDQUOT:
      return "the disk quota is used up";
    case EFBIG:
      return "the file would grow beyond the size limit of this process or file system";
    case EACCES:
    case EPERM:
      return "no permission";
    case EROFS:
      return "the file system is read-only";
    case ENOENT:
      return "no such file or folder";
    case ENOTDIR:
      return "a part of the path is a file, not a folder";
    case EISDIR:
      return "this is a folder, not a file";
    case EMFILE:
    case ENFILE:
      return "too many open files";
    default:
      return std::generic_category().message(error);
  }
}

/// What to do about an errno: the second half of the sentence.
[[nodiscard]] inline std::string remedy_of(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "free some space or choose a folder on another disk";
    case EFBIG:
      return "raise the limit (ulimit -f) or choose a folder on another disk";
    case EACCES:
    case EPERM:
    case EROFS:
      return "choose a folder that this user may write to";
    case ENOENT:
    case ENOTDIR:
      return "create the folder or mend the path";
    case EISDIR:
      return "give the name of a file inside it";
    case EMFILE:
    case ENFILE:
      return "raise the limit (ulimit -n)";
    default:
      return "see the reason above";
  }
}

/// Throws `E` with "[room] cannot VERB PATH: reason; remedy." for an errno.
template <class E = Error>
[[noreturn]] void throw_errno(std::string_view room, std::string_view verb, std::filesystem::path const& path,
                              int error) {
  throw E(
      sentence(room, "cannot " + std::string(verb) + " " + path.string() + ": " + reason_of(error), remedy_of(error)));
}

/// open(2), repeated when a signal came between, always close-on-exec. An invalid descriptor leaves errno set.
[[nodiscard]] inline FileDescriptor open_file(std::filesystem::path const& path, int flags, mode_t mode = 0666) {
  int descriptor;
  do descriptor = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  while (descriptor < 0 && errno == EINTR);
  return FileDescriptor(descriptor);
}

/// Writes all of it, in as many write(2) as it takes. Returns 0 or the errno that stopped it.
[[nodiscard]] inline int write_all(int descriptor, void const* bytes, std::size_t size) noexcept {
  auto const* at = static_cast<std::byte const*>(bytes);
  while (size > 0) {
    ssize_t const written = ::write(descriptor, at, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    if (written == 0) return ENOSPC;  // a regular file never does this; a loop would be worse than a wrong reason
    at += written;
    size -= static_cast<std::size_t>(written);
  }
  return 0;
}

/// Makes a rename in `folder` survive a power cut. File systems that cannot sync a folder have nothing to do here, so
/// this never fails: the file under its final name is whole either way.
inline void sync_folder(std::filesystem::path const& folder) noexcept {
  int const descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace pardl::inline PARDL_ABI::io
