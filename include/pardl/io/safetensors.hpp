// SPDX-License-Identifier: MIT
/// \file   Named tensors in one file that any language reads: the safetensors format, without a library behind it.
/// \layer  io (std and POSIX only; pardl::save_tensors and pardl::load_tensors speak of LibTorch's tensors).
/// \source https://github.com/huggingface/safetensors (the format; nothing of its code).
///
/// A file is a length of 8 bytes, a JSON header of that length, and the elements, little-endian and row by row. It
/// holds no code, so reading one that a stranger wrote is safe. Laid out as the format's own library does it (types by
/// falling alignment, then names byte by byte), so equal contents make equal bytes, whoever writes them; only of the
/// metadata that library writes several entries in an order drawn by chance, and this one by key.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/io/atomic_file.hpp"
#include "pardl/io/detail/safetensors_header.hpp"
#include "pardl/io/detail/utf8.hpp"
#include "pardl/io/posix.hpp"
#include "pardl/io/tensor_info.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::io {

/// The format's own limit: a header is at most this long.
inline constexpr std::uint64_t most_header_bytes = 100'000'000;

/// Writes a file tensor by tensor, so that no more than one needs to be in memory: name them all, hand over the bytes
/// of each in the order of tensors(), commit. The file appears at the commit, whole, or never (AtomicFile).
/// One thread at a time.
class SafetensorsWriter {
 public:
  /// \param tensors  name, type and shape of each, in any order; offset and bytes are set here.
  /// \throws CheckpointError  for names that are not UTF-8, not unique or "__metadata__", and for impossible shapes;
  ///                          Error where the file cannot be made.
  SafetensorsWriter(std::filesystem::path const& path, std::vector<TensorInfo> tensors, Metadata const& metadata = {},
                    AtomicFileOptions options = {})
      : path_(path), tensors_(laid_out(path, std::move(tensors))), file_(path, options) {
    for (auto const& [key, value] : metadata)
      if (!detail::is_utf8(key) || !detail::is_utf8(value))
        refuse(path, "the metadata " + detail::in_quotes(key) + " are not UTF-8", "give UTF-8 texts");
    std::string const header = detail::format_safetensors_header(metadata, tensors_);
    if (header.size() - 8 > most_header_bytes)
      refuse(path, "the header would take " + std::to_string(header.size()) + " bytes, more than the format allows",
             "write several files");
    file_.write(header);
  }

  /// In the order of the file, which is the order of write().
  [[nodiscard]] std::span<TensorInfo const> tensors() const { return tensors_; }

  /// The bytes of the next tensor, little-endian and row by row; empty for an empty one, which takes its turn too.
  void write(std::span<std::byte const> bytes) {
    if (next_ == tensors_.size()) refuse(path_, "there is a tensor more than were named", "name it first");
    auto const& tensor = tensors_[next_];
    if (bytes.size() != tensor.bytes)
      refuse(path_,
             "tensor " + detail::in_quotes(tensor.name) + " takes " + std::to_string(tensor.bytes) +
                 " bytes by its shape, and was given " + std::to_string(bytes.size()),
             "give its elements without gaps");
    if (!bytes.empty()) file_.write(bytes);
    ++next_;
  }

  /// Gives the file its name. Once only, after the last tensor. \throws Error as AtomicFile does.
  void commit() {
    if (next_ != tensors_.size())
      refuse(path_, "tensor " + detail::in_quotes(tensors_[next_].name) + " was named, but not written",
             "write it first");
    file_.commit();
  }

 private:
  [[noreturn]] static void refuse(std::filesystem::path const& path, std::string const& what, std::string const& how) {
    throw CheckpointError(sentence("io", "cannot write " + path.string() + ": " + what, how));
  }

  [[nodiscard]] static std::vector<TensorInfo> laid_out(std::filesystem::path const& path,
                                                        std::vector<TensorInfo> tensors) {
    std::ranges::sort(tensors, [](TensorInfo const& a, TensorInfo const& b) {
      return a.type != b.type ? a.type > b.type : a.name < b.name;
    });
    std::uint64_t end = 0;
    std::vector<std::string_view> names;
    for (auto& tensor : tensors) {
      names.push_back(tensor.name);
      if (!detail::is_utf8(tensor.name) || tensor.name == detail::metadata_key)
        refuse(path, detail::in_quotes(tensor.name) + " cannot be a tensor's name", "give it another, in UTF-8");
      auto const bytes = byte_count(tensor.type, tensor.shape);
      if (!bytes || *bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) - end)
        refuse(path, "tensor " + detail::in_quotes(tensor.name) + " has an impossible shape", "give it another");
      tensor.offset = end;
      tensor.bytes = *bytes;
      end += *bytes;
    }
    std::ranges::sort(names);
    if (auto const twice = std::ranges::adjacent_find(names); twice != names.end())
      refuse(path, "two tensors are named " + detail::in_quotes(*twice), "give each its own name");
    return tensors;
  }

  std::filesystem::path path_;
  std::vector<TensorInfo> tensors_;
  std::size_t next_ = 0;
  AtomicFile file_;
};

/// A tensor to be written, its elements in memory.
struct TensorBytes {
  std::string name{};
  TensorType type = TensorType::f32;
  std::vector<std::int64_t> shape{};
  std::span<std::byte const> bytes{};  ///< little-endian, row by row
};

/// Writes a whole file in one step. \throws as SafetensorsWriter does.
inline void write_safetensors(std::filesystem::path const& path, std::span<TensorBytes const> tensors,
                              Metadata const& metadata = {}, AtomicFileOptions options = {}) {
  std::vector<TensorInfo> infos;
  std::map<std::string_view, std::span<std::byte const>> bytes;
  for (auto const& tensor : tensors) {
    infos.push_back({.name = tensor.name, .type = tensor.type, .shape = tensor.shape});
    bytes[tensor.name] = tensor.bytes;
  }
  SafetensorsWriter writer(path, std::move(infos), metadata, options);
  for (auto const& tensor : writer.tensors()) writer.write(bytes[tensor.name]);
  writer.commit();
}

/// An open file, its header read and found sound; the tensors' bytes are read when asked for, each by itself.
///
/// With pread(2) and not mmap(2): a file that somebody cuts off meanwhile, or a network disk that fails, is then an
/// exception and not a SIGBUS; and the bytes go straight to where they shall lie, where a map would be copied from.
/// Several threads may read at a time. Movable.
class SafetensorsReader {
 public:
  /// \cost reads the header only.
  /// \throws CheckpointError  with the file's name, the tensor's where it has one, and what is wrong.
  explicit SafetensorsReader(std::filesystem::path const& path)
      : path_(path), file_(open_file(path, O_RDONLY | O_NONBLOCK)) {  // not to wait for the writer of a pipe
    struct stat status {};
    if (!file_ || ::fstat(file_.get(), &status) != 0) throw_errno<CheckpointError>("io", "read", path_, errno);
    if (S_ISDIR(status.st_mode)) throw_errno<CheckpointError>("io", "read", path_, EISDIR);
    if (!S_ISREG(status.st_mode)) detail::damaged(path_.string(), "it is not a regular file");
    auto const size = static_cast<std::uint64_t>(status.st_size);
    if (size < 8) detail::damaged(path_.string(), "it has " + std::to_string(size) + " bytes, and a length takes 8");
    std::byte length[8];
    read_at(0, length, "its header");
    std::uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | std::to_integer<std::uint64_t>(length[i]);
    if (header_bytes > most_header_bytes || header_bytes > size - 8)
      detail::damaged(path_.string(), "its header claims " + std::to_string(header_bytes) + " bytes, the file has " +
                                          std::to_string(size) + ", and the format's limit is " +
                                          std::to_string(most_header_bytes));
    data_begin_ = 8 + header_bytes;
    data_bytes_ = size - data_begin_;
    std::string text(header_bytes, '\0');
    read_at(8, std::as_writable_bytes(std::span(text)), "its header");
    header_ = detail::parse_safetensors_header(text, data_bytes_, path_.string());
    by_name_.reserve(header_.tensors.size());
    for (std::size_t i = 0; i < header_.tensors.size(); ++i) by_name_.push_back(i);
    std::ranges::sort(by_name_, {}, [&](std::size_t i) -> std::string_view { return header_.tensors[i].name; });
  }

  [[nodiscard]] std::filesystem::path const& path() const noexcept { return path_; }
  [[nodiscard]] Metadata const& metadata() const noexcept { return header_.metadata; }
  /// In the order of their bytes.
  [[nodiscard]] std::span<TensorInfo const> tensors() const noexcept { return header_.tensors; }

  /// nullptr where there is none of that name.
  [[nodiscard]] TensorInfo const* find(std::string_view name) const {
    auto const at = std::ranges::lower_bound(
        by_name_, name, {}, [&](std::size_t i) -> std::string_view { return header_.tensors[i].name; });
    return at != by_name_.end() && header_.tensors[*at].name == name ? &header_.tensors[*at] : nullptr;
  }
  /// \throws CheckpointError where there is none of that name.
  [[nodiscard]] TensorInfo const& at(std::string_view name) const {
    if (auto const* tensor = find(name)) return *tensor;
    throw CheckpointError(
        sentence("io", path_.string() + " has no tensor " + detail::in_quotes(name), "load a file of the same model"));
  }

  /// All bytes of a tensor of this file. \param into  of exactly tensor.bytes.
  void read(TensorInfo const& tensor, std::span<std::byte> into) const {
    if (into.size() != tensor.bytes || tensor.offset > data_bytes_ || tensor.bytes > data_bytes_ - tensor.offset)
      throw CheckpointError(sentence("io",
                                     "tensor " + detail::in_quotes(tensor.name) + " of " + path_.string() + " has " +
                                         std::to_string(tensor.bytes) + " bytes, and " + std::to_string(into.size()) +
                                         " were asked for",
                                     "ask for all bytes of a tensor of this file"));
    read_at(data_begin_ + tensor.offset, into, "tensor " + detail::in_quotes(tensor.name));
  }

 private:
  void read_at(std::uint64_t offset, std::span<std::byte> into, std::string const& what) const {
    while (!into.empty()) {
      ssize_t const got = ::pread(file_.get(), into.data(), into.size(), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw_errno<CheckpointError>("io", "read", path_, errno);
      if (got == 0) detail::damaged(path_.string(), "it ends inside " + what);
      into = into.subspan(static_cast<std::size_t>(got));
      offset += static_cast<std::uint64_t>(got);
    }
  }

  std::filesystem::path path_;
  FileDescriptor file_;
  std::uint64_t data_begin_ = 0, data_bytes_ = 0;
  detail::SafetensorsHeader header_;
  std::vector<std::size_t> by_name_;  // places in header_.tensors
};

}  // namespace pardl::inline PARDL_ABI::io
