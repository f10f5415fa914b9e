// SPDX-License-Identifier: MIT
/// \file   Finding and reading data files, with errors that name the file and say what to do.
/// \layer  data (private; std only).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "pardl/data/detail/expected_sum.hpp"
#include "pardl/io/sha256.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// A file opened for reading, with its size.
class DataFile {
 public:
  /// \throws DataError if it is missing, not a file or not readable.
  explicit DataFile(std::filesystem::path path) : path_(std::move(path)) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path_, error))
      refuse("is not there or not a file", "check the path and its permissions");
    size_ = std::filesystem::file_size(path_, error);
    stream_.open(path_, std::ios::binary);
    if (error || !stream_) refuse("cannot be read", "check its permissions");
  }

  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  [[nodiscard]] std::filesystem::path const& path() const noexcept { return path_; }

  /// Fills all of `target`. \throws DataError if the file ends before.
  void read(std::span<std::byte> target) {
    stream_.read(reinterpret_cast<char*>(target.data()), static_cast<std::streamsize>(target.size()));
    if (static_cast<std::size_t>(stream_.gcount()) != target.size())
      refuse("ended in the middle, or could not be read to its end", "check the disk, or fetch the file again");
  }

  /// \throws DataError "[data] FILE what; remedy."
  [[noreturn]] void refuse(std::string const& what, std::string const& remedy) const {
    throw DataError(sentence("data", path_.string() + " " + what, remedy));
  }

 private:
  std::filesystem::path path_;
  std::ifstream stream_;
  std::uint64_t size_ = 0;
};

/// The first of the folders root, root/sub1, root/sub2, … that holds `file`, or nothing.
[[nodiscard]] inline std::optional<std::filesystem::path> find_folder(
    std::filesystem::path const& root, std::initializer_list<std::string_view> subfolders, std::string_view file) {
  std::error_code error;
  if (std::filesystem::exists(root / file, error)) return root;
  for (auto const& sub : subfolders)
    if (std::filesystem::exists(root / sub / file, error)) return root / sub;
  return std::nullopt;
}

/// Compares the file's SHA-256 with the one `given` (any case). \throws DataError if they differ; ConfigError if
/// `given` is no sum.
inline void check_sha256(std::filesystem::path const& path, std::string given) {
  auto const expected = data::detail::expected_sum("SHA-256", std::move(given), 64).hex;
  DataFile file(path);
  io::Sha256 sum;
  std::vector<std::byte> block(std::size_t{1} << 20);
  for (std::uint64_t left = file.size(); left > 0;) {
    auto const part = std::span(block).first(static_cast<std::size_t>(std::min<std::uint64_t>(left, block.size())));
    file.read(part);
    sum.update(part);
    left -= part.size();
  }
  if (auto const found = sum.hex(); found != expected)
    file.refuse("has the SHA-256 " + found + " and should have " + expected,
                "it is damaged or another file; fetch it again");
}

}  // namespace pardl::inline PARDL_ABI::detail
