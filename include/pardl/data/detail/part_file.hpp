// SPDX-License-Identifier: MIT
/// \file   The unfinished file of a download: NAME.part, and where its bytes came from.
/// \layer  data, private (policy, io).
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "pardl/io/atomic_file.hpp"
#include "pardl/io/posix.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data::detail {

/// Survives its process, so that the next one can go on. Its companion NAME.part.from holds the URL and the validator
/// (ETag or date) of the server: bytes of two versions of a file must not be glued together.
class PartFile {
 public:
  /// Opens what an earlier run left, or an empty file. \throws DataError if that cannot be written.
  explicit PartFile(std::filesystem::path final_name) : final_name_(std::move(final_name)) {
    path_ = final_name_;
    path_ += ".part";
    origin_ = path_;
    origin_ += ".from";
    // A link planted under this name must not lead the bytes elsewhere, hence O_NOFOLLOW.
    file_ = io::open_file(path_, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW);
    struct stat status {};
    if (!file_ || ::fstat(file_.get(), &status) != 0) io::throw_errno<DataError>("data", "write", path_, errno);
    if (!S_ISREG(status.st_mode))
      throw DataError(sentence("data", path_.string() + " is no regular file", "remove it"));
    size_ = static_cast<std::uint64_t>(status.st_size);
    std::ifstream in(origin_);
    std::getline(in, url_);
    std::getline(in, validator_);
  }

  [[nodiscard]] std::filesystem::path const& path() const noexcept { return path_; }
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  /// What the server called the version that the bytes belong to, if they came from this URL; else empty.
  [[nodiscard]] std::string validator(std::string const& url) const { return url == url_ ? validator_ : ""; }

  /// Empties it, and notes where the bytes to come are from.
  void restart(std::string const& url, std::string const& validator) {
    if (::ftruncate(file_.get(), 0) != 0) io::throw_errno<DataError>("data", "write", path_, errno);
    size_ = 0;
    url_ = url;
    validator_ = validator;
    if (validator.empty()) {
      ::unlink(origin_.c_str());
      return;
    }
    try {
      write_file_atomically(origin_, url + "\n" + validator + "\n", {.sync = false});
    } catch (Error const& error) {
      throw DataError(error.what());
    }
  }

  void append(void const* bytes, std::size_t size) {
    // Whatever part of the block arrived counts: the next attempt goes on from the real end of the file.
    int const error = io::write_all(file_.get(), bytes, size);
    struct stat status {};
    if (error != 0 && ::fstat(file_.get(), &status) == 0)
      size_ = static_cast<std::uint64_t>(status.st_size);
    else
      size_ += size;
    if (error != 0) io::throw_errno<DataError>("data", "write", path_, error);
  }

  /// Syncs and gives it the final name, in one step.
  void publish() {
    if (::fsync(file_.get()) != 0) io::throw_errno<DataError>("data", "write", path_, errno);
    if (int const error = file_.close(); error != 0) io::throw_errno<DataError>("data", "write", path_, error);
    if (std::rename(path_.c_str(), final_name_.c_str()) != 0)
      io::throw_errno<DataError>("data", "write", final_name_, errno);
    ::unlink(origin_.c_str());
    io::sync_folder(final_name_.parent_path());
  }

  void discard() noexcept {
    file_.close();
    ::unlink(path_.c_str());
    ::unlink(origin_.c_str());
  }

  /// Empty leftovers help nobody.
  ~PartFile() {
    if (file_ && size_ == 0) discard();
  }
  PartFile(PartFile const&) = delete;
  PartFile& operator=(PartFile const&) = delete;

 private:
  std::filesystem::path final_name_, path_, origin_;
  io::FileDescriptor file_;
  std::uint64_t size_ = 0;
  std::string url_, validator_;
};

}  // namespace pardl::inline PARDL_ABI::data::detail
