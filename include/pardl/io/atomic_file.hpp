// SPDX-License-Identifier: MIT
/// \file   A file that appears under its name whole or not at all.
/// \layer  io (std and POSIX only).
///
/// The bytes go to a hidden file in the same folder (rename(2) is atomic only within one file system), are synced to
/// the disk, and take the final name in one step. A reader sees the old contents or the new, never half of them;
/// a program that dies leaves the old file, and at worst a hidden `.NAME.*.tmp` beside it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

#include "pardl/io/posix.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct AtomicFileOptions {
  bool sync = true;  ///< fsync before the rename: survives a power cut, costs a disk flush; false survives a crash only
};

/// Collects the bytes of a file and, at commit(), gives them its name. Without a commit nothing happened.
/// One thread at a time; several writers of one name may race: the last commit wins, whole.
/// \throws Error (constructor, write, commit) with the path, the reason and the remedy.
class AtomicFile {
 public:
  /// \param target  the final name; if it is a symbolic link, the file it points to is replaced, not the link.
  ///                An existing file keeps its permission bits, a new one gets the umask's.
  explicit AtomicFile(std::filesystem::path const& target, AtomicFileOptions options = {}) : options_(options) {
    std::error_code ignored;
    // Errors are reported with the name the caller used; the work is done on the resolved one.
    target_ = std::filesystem::is_symlink(target, ignored) ? std::filesystem::weakly_canonical(target) : target;
    if (std::filesystem::is_directory(target_, ignored)) io::throw_errno("io", "write", target, EISDIR);
    for (int attempt = 0; attempt < 100 && !file_; ++attempt) {
      temporary_ = target_.parent_path() / temporary_name();
      file_ = io::open_file(temporary_, O_WRONLY | O_CREAT | O_EXCL);
      if (!file_ && errno != EEXIST) io::throw_errno("io", "write", target, errno);
    }
    if (!file_) io::throw_errno("io", "write", target, EEXIST);
    struct stat existing {};
    if (::stat(target_.c_str(), &existing) == 0 && ::fchmod(file_.get(), existing.st_mode & 07777) != 0) {
      int const error = errno;
      discard();
      io::throw_errno("io", "keep the permissions of", target, error);
    }
  }
  AtomicFile(AtomicFile const&) = delete;
  AtomicFile& operator=(AtomicFile const&) = delete;
  ~AtomicFile() { discard(); }

  /// Appends. Each call is a write(2): hand over blocks, not bytes.
  void write(std::span<std::byte const> bytes) {
    if (!file_) throw Error(sentence("io", "write after commit of " + target_.string(), "make a new AtomicFile"));
    if (int const error = io::write_all(file_.get(), bytes.data(), bytes.size()); error != 0) fail(error);
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }

  /// Syncs and renames. Once only; after an exception the file under the final name is what it was before.
  void commit() {
    if (!file_) throw Error(sentence("io", "second commit of " + target_.string(), "make a new AtomicFile"));
    if (options_.sync && ::fsync(file_.get()) != 0) fail(errno);
    if (int const error = file_.close(); error != 0) fail(error);
    if (std::rename(temporary_.c_str(), target_.c_str()) != 0) fail(errno);
    temporary_.clear();
    if (options_.sync) io::sync_folder(target_.parent_path());
  }

 private:
  [[nodiscard]] std::string temporary_name() const {
    // Unique among threads (counter), processes (pid) and hosts on a shared disk (random), and short enough for any
    // file system whatever the length of the target's name.
    static std::atomic<unsigned> counter{0};
    std::string const salt =
        std::to_string(::getpid()) + "-" + std::to_string(counter++) + "-" + std::to_string(std::random_device{}());
    return "." + target_.filename().string().substr(0, 180) + "." + salt + ".tmp";
  }

  void discard() noexcept {
    file_.close();
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
    temporary_.clear();
  }

  [[noreturn]] void fail(int error) {
    discard();
    io::throw_errno("io", "write", target_, error);
  }

  AtomicFileOptions options_;
  std::filesystem::path target_;
  std::filesystem::path temporary_;  // empty once it is renamed or removed
  io::FileDescriptor file_;
};

/// Replaces `target` by `contents` in one step. \throws Error as AtomicFile does.
inline void write_file_atomically(std::filesystem::path const& target, std::string_view contents,
                                  AtomicFileOptions options = {}) {
  AtomicFile file(target, options);
  file.write(contents);
  file.commit();
}

}  // namespace pardl::inline PARDL_ABI
