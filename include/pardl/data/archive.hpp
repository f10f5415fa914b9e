// SPDX-License-Identifier: MIT
/// \file   Unpacks a .tar.gz from the net without trusting it.
/// \layer  data (policy, io). Needs the CMake target pardl::data (zlib); no LibTorch.
///
/// Reads ustar, GNU long names and pax names and sizes (POSIX.1-2017, pax, "ustar Interchange Format"): what tar and
/// Python write for plain files. An archive of a data set has folders and files; anything else in it (links, devices,
/// sparse files), and any name that would leave the folder, is refused. It is unpacked into a hidden folder first, so
/// that a damaged archive leaves nothing; each file then appears under its name whole.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/io/posix.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

#ifdef PARDL_WITH_ZLIB
#include <zlib.h>
#endif

namespace pardl::inline PARDL_ABI::data {

struct ExtractOptions {
  std::uint64_t max_bytes = std::uint64_t{1} << 34;  ///< 16 GiB; more, unpacked, is refused
  std::size_t max_files = 1'000'000;                 ///< files and folders; more are refused
};

#ifdef PARDL_WITH_ZLIB

namespace detail {

/// A tar header, as far as plain files need it.
struct TarEntry {
  std::string name;
  std::uint64_t size = 0;
  char type = '0';
};

/// Decompresses and walks the entries of one archive. \throws DataError for whatever is wrong with it.
class TarReader {
 public:
  explicit TarReader(std::filesystem::path archive) : archive_(std::move(archive)) {
    io::FileDescriptor const probe = io::open_file(archive_, O_RDONLY);
    if (!probe) io::throw_errno<DataError>("data", "read", archive_, errno);
    file_.reset(gzopen(archive_.c_str(), "rb"));
    if (!file_) io::throw_errno<DataError>("data", "read", archive_, errno);
    gzbuffer(file_.get(), 1 << 17);
  }

  /// The next file or folder, with long names resolved; nullopt at the end, which has been read and checked too.
  std::optional<TarEntry> next() {
    skip(unread_ + padding_);
    std::string long_name;
    std::optional<std::uint64_t> long_size;
    for (;;) {
      std::array<char, block_size> header{};
      read(header);
      if (gzdirect(file_.get()) == 1) refuse("it is not compressed with gzip");
      if (std::ranges::all_of(header, [](char c) { return c == 0; })) {
        read_to_end();
        return std::nullopt;
      }
      check_sum(header);
      TarEntry entry = parse(header);
      if (entry.type == 'L') {
        long_name = text(entry.size);
        long_name.resize(std::min(long_name.size(), long_name.find('\0')));
      } else if (entry.type == 'x') {
        read_pax(text(entry.size), long_name, long_size);
      } else if (entry.type == 'g') {
        text(entry.size);  // defaults for all entries: comments and the like, never a name
      } else {
        if (!long_name.empty()) entry.name = long_name;
        if (long_size) entry.size = *long_size;
        unread_ = entry.size;
        padding_ = (block_size - entry.size % block_size) % block_size;
        return entry;
      }
    }
  }

  /// Reads up to `buffer.size()` bytes of the current file; 0 at its end.
  std::size_t contents(std::span<char> buffer) {
    std::size_t const size = static_cast<std::size_t>(std::min<std::uint64_t>(unread_, buffer.size()));
    read(buffer.first(size));
    unread_ -= size;
    return size;
  }

  [[noreturn]] void refuse(std::string const& why) const {
    throw DataError(sentence("data", archive_.string() + ": " + why,
                             "the archive is damaged or not what it should be: fetch it again"));
  }

 private:
  static constexpr std::size_t block_size = 512;

  void read(std::span<char> buffer) {
    if (buffer.empty()) return;
    int const got = gzread(file_.get(), buffer.data(), static_cast<unsigned>(buffer.size()));
    if (got == static_cast<int>(buffer.size())) return;
    int code = Z_OK;
    std::string const words = gzerror(file_.get(), &code);
    refuse(code == Z_OK || code == Z_BUF_ERROR ? "it is cut short" : "it cannot be decompressed (" + words + ")");
  }

  void skip(std::uint64_t size) {
    std::array<char, 4096> sink{};
    for (unread_ = padding_ = 0; size > 0;) {
      auto const part = static_cast<std::size_t>(std::min<std::uint64_t>(size, sink.size()));
      read(std::span(sink).first(part));
      size -= part;
    }
  }

  /// gzip's own checksum stands at the very end, so even the padding after the last entry is read.
  void read_to_end() {
    std::array<char, 4096> sink{};
    std::size_t padding = 0;
    for (;;) {
      int const got = gzread(file_.get(), sink.data(), static_cast<unsigned>(sink.size()));
      int code = Z_OK;
      std::string const words = gzerror(file_.get(), &code);
      if (got < 0 || (code != Z_OK && code != Z_STREAM_END)) refuse("its end is damaged (" + words + ")");
      if (got == 0) return;
      if ((padding += static_cast<std::size_t>(got)) > (std::size_t{16} << 20)) refuse("it goes on after its end");
    }
  }

  /// The contents of an entry that describes the next one.
  std::string text(std::uint64_t size) {
    if (size > (1 << 20)) refuse("a name in it is longer than a mebibyte");
    std::string bytes(static_cast<std::size_t>(size), '\0');
    read(bytes);
    skip((block_size - size % block_size) % block_size);
    return bytes;
  }

  void check_sum(std::span<char const> header) const {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < header.size(); ++i)  // the sum's own field counts as blanks
      sum += i >= 148 && i < 156 ? ' ' : static_cast<unsigned char>(header[i]);
    char const* const words = "it is no tar archive, or a header in it is damaged";
    if (number(header.subspan(148, 8), words) != sum) refuse(words);
  }

  /// Octal digits, or base 256 where the first bit is set (GNU, for sizes from 8 GiB).
  [[nodiscard]] std::uint64_t number(std::span<char const> field,
                                     char const* otherwise = "a number in it is damaged") const {
    std::uint64_t value = 0;
    if ((field[0] & 0x80) != 0) {
      for (std::size_t i = 0; i < field.size(); ++i) {
        if (value >> 55 != 0) refuse(otherwise);
        value = value << 8 | (static_cast<unsigned char>(field[i]) & (i == 0 ? 0x7fu : 0xffu));
      }
      return value;
    }
    bool begun = false;
    for (char const c : field) {
      if (c == ' ' && !begun) continue;
      if (c == ' ' || c == '\0') break;
      if (c < '0' || c > '7') refuse(otherwise);
      begun = true;
      value = value << 3 | static_cast<std::uint64_t>(c - '0');
    }
    return value;
  }

  [[nodiscard]] TarEntry parse(std::span<char const> header) const {
    auto const field = [&](std::size_t at, std::size_t size) {
      std::string_view const view(header.data() + at, size);
      return std::string(view.substr(0, view.find('\0')));
    };
    TarEntry entry{.name = field(0, 100), .size = number(header.subspan(124, 12)), .type = header[156]};
    bool const posix = std::string_view(header.data() + 257, 6) == std::string_view("ustar\0", 6);
    if (std::string const prefix = field(345, 155); posix && !prefix.empty()) entry.name = prefix + "/" + entry.name;
    if (entry.type == '\0' || entry.type == '7') entry.type = '0';
    if (entry.type == '0' && entry.name.ends_with('/')) entry.type = '5';  // as tar before POSIX wrote folders
    if (entry.type == '5') entry.size = 0;
    return entry;
  }

  /// Records "LENGTH KEY=VALUE\n".
  void read_pax(std::string_view records, std::string& name, std::optional<std::uint64_t>& size) const {
    while (!records.empty()) {
      std::size_t const blank = records.find(' ');
      std::size_t const length = std::strtoull(std::string(records.substr(0, blank)).c_str(), nullptr, 10);
      if (blank == records.npos || length <= blank + 1 || length > records.size()) refuse("a header in it is damaged");
      std::string_view const record = records.substr(blank + 1, length - blank - 2);
      std::size_t const equals = record.find('=');
      if (record.starts_with("GNU.sparse")) refuse("it holds a sparse file, which is not read here");
      if (record.substr(0, equals) == "path") name = record.substr(equals + 1);
      if (record.substr(0, equals) == "size")
        size = std::strtoull(std::string(record.substr(equals + 1)).c_str(), nullptr, 10);
      records.remove_prefix(length);
    }
  }

  std::filesystem::path archive_;
  std::unique_ptr<gzFile_s, int (*)(gzFile)> file_{nullptr, &gzclose};
  std::uint64_t unread_ = 0;
  std::uint64_t padding_ = 0;
};

/// A hidden folder that is gone when its owner is.
struct StagingFolder {
  std::filesystem::path path;
  explicit StagingFolder(std::filesystem::path const& parent) {
    std::string name = (parent / ".unpack.XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) io::throw_errno<DataError>("data", "make a folder in", parent, errno);
    path = name;
  }
  StagingFolder(StagingFolder const&) = delete;
  StagingFolder& operator=(StagingFolder const&) = delete;
  ~StagingFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

/// A name of an entry as a relative path without "." and "..", or nullopt if it points outside.
inline std::optional<std::filesystem::path> safe_relative(std::string const& name) {
  if (name.empty() || name.front() == '/' || name.find('\0') != name.npos) return std::nullopt;
  std::filesystem::path safe;
  for (std::filesystem::path const& part : std::filesystem::path(name)) {
    if (part == "..") return std::nullopt;
    if (!part.empty() && part != ".") safe /= part;
  }
  return safe;
}

inline void unpack_file(TarReader& tar, std::filesystem::path const& path, std::vector<char>& buffer) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (error) io::throw_errno<DataError>("data", "make", path.parent_path(), error.value());
  io::FileDescriptor file = io::open_file(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
  if (!file) io::throw_errno<DataError>("data", "write", path, errno);
  while (std::size_t const size = tar.contents(buffer))
    if (int const code = io::write_all(file.get(), buffer.data(), size); code != 0)
      io::throw_errno<DataError>("data", "write", path, code);
  int const code = ::fsync(file.get()) == 0 ? file.close() : errno;
  if (code != 0) io::throw_errno<DataError>("data", "write", path, code);
}

}  // namespace detail

/// Unpacks `archive` into `folder` (made if need be) and returns the files' paths relative to it, in archive order.
/// Existing files of the same names are replaced, one by one, each in one step. Permission bits and owners in the
/// archive are ignored. Blocks; not collective: let one rank per file system call it and the others wait in a barrier.
/// \throws DataError if the archive is damaged, cut short, larger than `options` allow, holds anything but files and
///         folders or a name outside the folder, or if the disk is full; then nothing was unpacked.
inline std::vector<std::filesystem::path> extract_tar_gz(std::filesystem::path const& archive,
                                                         std::filesystem::path const& folder,
                                                         ExtractOptions const& options = {}) {
  namespace fs = std::filesystem;
  detail::TarReader tar(archive);
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) io::throw_errno<DataError>("data", "make", folder, error.value());
  detail::StagingFolder const staging(folder);
  std::vector<fs::path> files;
  std::vector<char> buffer(1 << 18);
  std::uint64_t bytes = 0;
  for (std::size_t count = 0; std::optional<detail::TarEntry> const entry = tar.next();) {
    std::string const shown = "\"" + entry->name + "\"";
    std::optional<fs::path> const name = detail::safe_relative(entry->name);
    if (!name) tar.refuse("the name " + shown + " in it leads outside the folder");
    if (entry->type != '0' && entry->type != '5')
      tar.refuse(shown + " in it is neither a file nor a folder (type '" + std::string(1, entry->type) + "')");
    if (++count > options.max_files) tar.refuse("it holds more than " + std::to_string(options.max_files) + " files");
    if (entry->size > options.max_bytes - bytes)
      tar.refuse("it unpacks to more than " + std::to_string(options.max_bytes) + " bytes");
    bytes += entry->size;
    if (entry->type == '5') {
      fs::create_directories(staging.path / *name, error);
      if (error) io::throw_errno<DataError>("data", "make", staging.path / *name, error.value());
    } else {
      if (name->empty()) tar.refuse("the name " + shown + " in it is no file name");
      detail::unpack_file(tar, staging.path / *name, buffer);
      files.push_back(*name);
    }
  }
  // All of it is here and sound. A folder that is new moves in one step; one that exists takes file after file.
  for (fs::directory_entry const& top : fs::directory_iterator(staging.path)) {
    fs::rename(top.path(), folder / top.path().filename(), error);
    if (!error) continue;
    for (fs::path const& file : files) {
      if (*file.begin() != top.path().filename()) continue;
      fs::create_directories((folder / file).parent_path(), error);
      fs::rename(staging.path / file, folder / file, error);
      if (error && fs::exists(staging.path / file))
        io::throw_errno<DataError>("data", "write", folder / file, error.value());
    }
  }
  io::sync_folder(folder);
  return files;
}

#else

/// Without the CMake target pardl::data every call is a compile error that says so.
template <class Never = void>
std::vector<std::filesystem::path> extract_tar_gz(std::filesystem::path const&, std::filesystem::path const&,
                                                  ExtractOptions const& = {}) {
  static_assert(!std::is_void_v<Never>,
                "pardl::data::extract_tar_gz needs zlib: link the CMake target pardl::data "
                "(target_link_libraries(app pardl::data)).");
  return {};
}

#endif  // PARDL_WITH_ZLIB

}  // namespace pardl::inline PARDL_ABI::data
