// SPDX-License-Identifier: MIT
/// \file   IDX files, plain or gzip: MNIST and Fashion-MNIST.
/// \layer  data. Reading gzip needs the CMake target pardl::data (zlib); without it a .gz file is refused with that
/// sentence.
///
/// \source The IDX format of http://yann.lecun.com/exdb/mnist: two zero bytes, a type, the number of dimensions, the
/// dimensions as big-endian uint32, the elements, big-endian. What the header promises is held against the file's size
/// before anything is allocated. A gzip file also carries a CRC-32 and its length, which zlib checks.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "pardl/data/detail/data_file.hpp"
#include "pardl/data/image_dataset.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

#ifdef PARDL_WITH_ZLIB
#include <zlib.h>
#endif

namespace pardl::inline PARDL_ABI::data {

// With and without zlib the functions below have different bodies, so they have different names for the linker.
#ifdef PARDL_WITH_ZLIB
inline namespace with_zlib {
#else
inline namespace without_zlib {
#endif

namespace idx_detail {

using pardl::detail::DataFile;

#ifdef PARDL_WITH_ZLIB
/// The contents of a gzip file, in order.
class GzipFile {
 public:
  explicit GzipFile(DataFile const& file) : file_(&file), handle_(gzopen(file.path().c_str(), "rb")) {
    if (!handle_) file_->refuse("cannot be opened as gzip", "check its permissions");
    gzbuffer(handle_, 1U << 18);
  }
  GzipFile(GzipFile&&) = delete;
  ~GzipFile() { gzclose(handle_); }

  /// Reads up to target.size() bytes and returns how many there were. \throws DataError for damage or a cut.
  std::size_t read(std::span<std::byte> target) {
    std::size_t done = 0;
    while (done < target.size()) {
      auto const part = static_cast<unsigned>(std::min<std::size_t>(target.size() - done, 1U << 30));
      int const got = gzread(handle_, target.data() + done, part);
      if (got > 0) done += static_cast<std::size_t>(got);
      if (got == static_cast<int>(part)) continue;
      int error = Z_OK;
      gzerror(handle_, &error);
      if (error == Z_BUF_ERROR) file_->refuse("is cut short: the gzip stream has no end", "fetch it again");
      if (got < 0 || (error != Z_OK && error != Z_STREAM_END))
        file_->refuse("is damaged: its gzip data or checksum is wrong", "fetch it again");
      if (got == 0) break;
    }
    return done;
  }

 private:
  DataFile const* file_;
  gzFile handle_;
};
#endif

/// An IDX file's bytes, from a plain or a gzip file.
class IdxSource {
 public:
  explicit IdxSource(std::filesystem::path const& path) : file_(path) {
    std::array<std::byte, 2> first{};
    if (file_.size() >= 2) file_.read(first);
    gzip_ = first == std::array{std::byte{0x1f}, std::byte{0x8b}};
    if (!gzip_) {
      file_ = DataFile(path);  // from the start
      return;
    }
#ifdef PARDL_WITH_ZLIB
    unpacked_.emplace(file_);
#else
    file_.refuse("is a gzip file, and this program was built without zlib",
                 "link the CMake target pardl::data, or unpack the file with gunzip");
#endif
  }
  IdxSource(IdxSource&&) = delete;

  [[nodiscard]] DataFile const& file() const noexcept { return file_; }

  /// At most this many bytes can come. Deflate cannot pack better than 1032 to 1.
  [[nodiscard]] std::uint64_t most() const noexcept { return gzip_ ? 1032 * file_.size() : file_.size(); }

  void read(std::span<std::byte> target) {
    if (take(target) != target.size())
      file_.refuse("is cut short: it has less than its header promises", "fetch it again");
  }
  [[nodiscard]] bool at_end() {
    std::array<std::byte, 1> more{};
    return take(more) == 0;  // for gzip, this is what reads and checks the trailing sum
  }

 private:
  std::size_t take(std::span<std::byte> target) {
#ifdef PARDL_WITH_ZLIB
    if (gzip_) return unpacked_->read(target);
#endif
    auto const part =
        target.first(static_cast<std::size_t>(std::min<std::uint64_t>(target.size(), file_.size() - taken_)));
    file_.read(part);
    taken_ += part.size();
    return part.size();
  }

  DataFile file_;
  bool gzip_ = false;
  std::uint64_t taken_ = 0;
#ifdef PARDL_WITH_ZLIB
  std::optional<GzipFile> unpacked_;
#endif
};

struct IdxType {
  torch::ScalarType type;
  std::size_t bytes;
};

[[nodiscard]] inline std::optional<IdxType> idx_type(std::byte code) {
  switch (std::to_integer<int>(code)) {
    case 0x08:
      return IdxType{torch::kByte, 1};
    case 0x09:
      return IdxType{torch::kChar, 1};
    case 0x0B:
      return IdxType{torch::kShort, 2};
    case 0x0C:
      return IdxType{torch::kInt, 4};
    case 0x0D:
      return IdxType{torch::kFloat, 4};
    case 0x0E:
      return IdxType{torch::kDouble, 8};
    default:
      return std::nullopt;
  }
}

}  // namespace idx_detail

/// The tensor in an IDX file, of any type and shape that the format has; gzip is recognised by its first bytes.
/// \throws DataError for a missing file, a wrong magic number, and for less or more data than the header says.
[[nodiscard]] inline torch::Tensor read_idx(std::filesystem::path const& path) {
  idx_detail::IdxSource source(path);
  auto const& file = source.file();
  std::array<std::byte, 4> magic{};
  source.read(magic);
  auto const type = idx_detail::idx_type(magic[2]);
  auto const dimensions = std::to_integer<std::size_t>(magic[3]);
  if (magic[0] != std::byte{} || magic[1] != std::byte{} || !type || dimensions == 0)
    file.refuse("is not an IDX file: its first four bytes are wrong", "give an IDX file, plain or gzip");

  std::vector<std::byte> header(4 * dimensions);
  source.read(header);
  std::vector<std::int64_t> sizes;
  for (std::size_t d = 0; d < dimensions; ++d) {
    std::int64_t size = 0;
    for (std::size_t b = 0; b < 4; ++b) size = (size << 8) | std::to_integer<std::int64_t>(header[4 * d + b]);
    sizes.push_back(size);
  }
  bool const empty = std::ranges::count(sizes, 0) > 0;
  std::uint64_t const most =
      empty ? std::uint64_t{1} << 40 : source.most();  // no data, but LibTorch multiplies strides
  std::uint64_t bytes = type->bytes;
  bool fits = true;
  for (auto const size : sizes) {
    auto const factor = static_cast<std::uint64_t>(std::max<std::int64_t>(size, 1));
    fits = fits && bytes <= most / factor;  // so that the product cannot overflow
    if (fits) bytes *= factor;
  }
  if (empty) bytes = 0;
  if (!fits) {
    std::string shape;
    for (auto const size : sizes) shape += (shape.empty() ? "" : " x ") + std::to_string(size);
    file.refuse(
        "promises " + shape + " elements, more than a file of " + std::to_string(file.size()) + " bytes can hold",
        "it is damaged or cut short; fetch it again");
  }

  auto tensor = torch::empty(sizes, type->type);
  std::span<std::byte> const data{static_cast<std::byte*>(tensor.mutable_data_ptr()), static_cast<std::size_t>(bytes)};
  source.read(data);
  if (!source.at_end())
    file.refuse("has more data than its header promises", "it is damaged or another format; fetch it again");
  if constexpr (std::endian::native == std::endian::little)
    for (std::size_t i = 0; type->bytes > 1 && i < data.size(); i += type->bytes)
      std::ranges::reverse(data.subspan(i, type->bytes));
  return tensor;
}

/// Grey images from two IDX files: uint8 [N, H, W] and uint8 [N].
/// \throws DataError as read_idx, for another type or shape, for different counts, and for a label beyond
/// facts.classes.
class IdxImages : public ImageDataset {
 public:
  IdxImages(std::filesystem::path const& images, std::filesystem::path const& labels, ImageFacts facts)
      : ImageDataset(read(images, labels, std::move(facts))) {}

 private:
  static ImageDataset read(std::filesystem::path const& image_file, std::filesystem::path const& label_file,
                           ImageFacts facts) {
    auto const images = read_idx(image_file), labels = read_idx(label_file);
    if (images.dim() != 3 || images.scalar_type() != torch::kByte)
      throw DataError(sentence("data",
                               image_file.string() + " holds " + pardl::detail::shape_of(images) + " of " +
                                   c10::toString(images.scalar_type()),
                               "images are uint8 [N, H, W]"));
    if (labels.dim() != 1 || labels.scalar_type() != torch::kByte || labels.size(0) != images.size(0))
      throw DataError(sentence("data",
                               label_file.string() + " holds " + pardl::detail::shape_of(labels) + " of " +
                                   c10::toString(labels.scalar_type()) + " for " + std::to_string(images.size(0)) +
                                   " images",
                               "labels are uint8, one per image, from the same publication"));
    return {images.unsqueeze(1), labels.to(torch::kLong), std::move(facts)};
  }
};

struct MnistOptions {
  std::int64_t pad_to = 0;  ///< side of the images after black borders, e.g. 32; 0: 28 as they are
};

namespace idx_detail {

/// Reads {train,t10k}-{images-idx3,labels-idx1}-ubyte, each plain or with .gz, from the first folder that holds any of
/// the four: a file that is missing there is an error, and never comes from another set in the next folder.
[[nodiscard]] inline ImageDataset read_mnist(std::vector<std::filesystem::path> const& folders, Split split,
                                             MnistOptions const& options, ImageFacts facts, std::string const& remedy) {
  std::string const stem = split == Split::train ? "train" : "t10k";
  auto const here = [](std::filesystem::path const& folder, std::string const& name) -> std::filesystem::path {
    std::error_code error;
    if (std::filesystem::exists(folder / name, error)) return folder / name;
    if (std::filesystem::exists(folder / (name + ".gz"), error)) return folder / (name + ".gz");
    return {};
  };
  auto const begun = std::ranges::find_if(folders, [&](auto const& folder) {
    for (auto const* part : {"train", "t10k"})
      for (auto const* kind : {"-images-idx3-ubyte", "-labels-idx1-ubyte"})
        if (!here(folder, std::string(part) + kind).empty()) return true;
    return false;
  });
  auto const file = [&](std::string const& name) -> std::filesystem::path {
    if (begun != folders.end())
      if (auto const path = here(*begun, name); !path.empty()) return path;
    std::string places;
    for (auto const& folder : folders)
      if (begun == folders.end() || folder == *begun) places += (places.empty() ? "" : " or ") + folder.string();
    throw DataError(sentence("data", facts.name + ": no " + name + " (or .gz) in " + places, remedy));
  };
  auto const images = file(stem + "-images-idx3-ubyte"), labels = file(stem + "-labels-idx1-ubyte");
  facts.name += split == Split::train ? " train" : " test";
  IdxImages const set{images, labels, std::move(facts)};
  return options.pad_to == 0 ? ImageDataset(set) : set.padded(options.pad_to);
}

[[nodiscard]] inline bool has_mnist(std::vector<std::filesystem::path> const& folders, Split split) {
  std::string const name = split == Split::train ? "train-images-idx3-ubyte" : "t10k-images-idx3-ubyte";
  std::error_code error;
  return std::ranges::any_of(folders, [&](auto const& folder) {
    return std::filesystem::exists(folder / name, error) || std::filesystem::exists(folder / (name + ".gz"), error);
  });
}

}  // namespace idx_detail

/// 60,000 and 10,000 grey images [1, 28, 28] of handwritten digits, in `root`, `root`/mnist or `root`/MNIST/raw.
class Mnist : public ImageDataset {
 public:
  Mnist(std::filesystem::path const& root, Split split, MnistOptions const& options = {})
      : ImageDataset(idx_detail::read_mnist(folders(root), split, options, {"MNIST", 10, {0.1307}, {0.3081}},
                                            "put the four files there, plain or gzip")) {}
  /// Are the split's images there? (Not: are they right.)
  [[nodiscard]] static bool found(std::filesystem::path const& root, Split split = Split::train) {
    return idx_detail::has_mnist(folders(root), split);
  }

 private:
  static std::vector<std::filesystem::path> folders(std::filesystem::path const& root) {
    return {root, root / "mnist", root / "MNIST" / "raw"};
  }
};

/// 60,000 and 10,000 grey images [1, 28, 28] of 10 kinds of clothing, in `root`, `root`/fashion-mnist,
/// `root`/FashionMNIST/raw, or where Debian's package dataset-fashion-mnist puts them. \paper Xiao, Rasul, Vollgraf,
/// "Fashion-MNIST", 2017.
class FashionMnist : public ImageDataset {
 public:
  FashionMnist(std::filesystem::path const& root, Split split, MnistOptions const& options = {})
      : ImageDataset(idx_detail::read_mnist(
            folders(root), split, options, {"Fashion-MNIST", 10, {0.2860}, {0.3530}},
            "install Debian's package dataset-fashion-mnist, or put the four files there, plain or gzip")) {}
  /// Are the split's images there? (Not: are they right.)
  [[nodiscard]] static bool found(std::filesystem::path const& root, Split split = Split::train) {
    return idx_detail::has_mnist(folders(root), split);
  }

 private:
  static std::vector<std::filesystem::path> folders(std::filesystem::path const& root) {
    return {root, root / "fashion-mnist", root / "FashionMNIST" / "raw", "/usr/share/datasets/fashion-mnist"};
  }
};

static_assert(resident_dataset<FashionMnist> && resident_dataset<Mnist>);

}  // inline namespace
}  // namespace pardl::inline PARDL_ABI::data
