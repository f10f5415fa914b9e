// SPDX-License-Identifier: MIT
/// \file   CIFAR-10 and CIFAR-100 from their binary files.
/// \layer  data.
///
/// \source Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the "binary version" of
/// https://www.cs.toronto.edu/~kriz/cifar.html. A record is one label byte (CIFAR-10) or a coarse and a fine one
/// (CIFAR-100), then 3072 bytes: 32 rows of 32 pixels of red, of green, of blue. The files carry no header, so what can
/// be checked is the exact size, the range of every label, and a SHA-256 of yours. Reading 50,000 images takes about
/// 0.1 s from the page cache.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/data/detail/data_file.hpp"
#include "pardl/data/image_dataset.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data {

struct Cifar10Options {
  std::int64_t records_per_file = 10'000;  ///< as published; a file of another size is refused
  std::vector<std::string> sha256 = {};    ///< of the split's files, in their order; empty: not checked
};

struct Cifar100Options {
  bool coarse_labels = false;            ///< the 20 superclasses instead of the 100 classes
  std::int64_t records = 0;              ///< in the split's file; 0: as published, 50,000 or 10,000
  std::vector<std::string> sha256 = {};  ///< of the split's one file; empty: not checked
};

namespace detail {

struct CifarLayout {
  std::string name;                ///< "CIFAR-10 train"
  std::string folder;              ///< inside the archive
  std::vector<std::string> files;  ///< of the split, in order
  std::string archive, md5;        ///< as published; for messages
  std::size_t label_bytes, label;  ///< per record, and which of them
  std::int64_t classes, records_per_file;
  std::vector<double> mean, stddev;
  std::vector<std::string> sha256;
};

[[nodiscard]] inline ImageDataset read_cifar(std::filesystem::path const& root, CifarLayout layout) {
  using pardl::detail::DataFile;
  constexpr std::size_t pixels = 3 * 32 * 32;
  std::string const fetch = "fetch https://www.cs.toronto.edu/~kriz/" + layout.archive + " (MD5 " + layout.md5 +
                            ") and unpack it there, or let data/cifar_download.hpp do it";
  auto const folder = pardl::detail::find_folder(root, {layout.folder}, layout.files.front());
  if (!folder)
    throw DataError(sentence("data",
                             layout.name + ": no " + layout.files.front() + " in " + root.string() + " or " +
                                 (root / layout.folder).string(),
                             fetch));
  if (!layout.sha256.empty() && layout.sha256.size() != layout.files.size())
    throw ConfigError(sentence("data",
                               layout.name + " has " + std::to_string(layout.files.size()) + " files and " +
                                   std::to_string(layout.sha256.size()) + " SHA-256 sums were given",
                               "give one per file, or none"));
  if (layout.records_per_file < 1)
    throw ConfigError(sentence("data",
                               layout.name + " with " + std::to_string(layout.records_per_file) + " records in a file",
                               "a file holds at least one"));

  auto const record = layout.label_bytes + pixels;
  auto const bytes = static_cast<std::uint64_t>(layout.records_per_file) * record;
  for (auto const& name : layout.files)  // all sizes first: nothing is allocated for files that are not right
    if (DataFile const file(*folder / name); file.size() != bytes)
      file.refuse("has " + std::to_string(file.size()) + " bytes; " + std::to_string(layout.records_per_file) +
                      " records of " + std::to_string(record) + " bytes are " + std::to_string(bytes),
                  fetch);
  for (std::size_t i = 0; i < layout.sha256.size(); ++i)
    pardl::detail::check_sha256(*folder / layout.files[i], layout.sha256[i]);

  auto const total = layout.records_per_file * static_cast<std::int64_t>(layout.files.size());
  auto images = torch::empty({total, 3, 32, 32}, torch::kByte);
  auto labels = torch::empty({total}, torch::kLong);
  auto* image = images.mutable_data_ptr<std::uint8_t>();
  auto* label = labels.mutable_data_ptr<std::int64_t>();
  std::vector<std::byte> block(256 * record);
  for (auto const& name : layout.files) {
    DataFile file(*folder / name);
    for (std::int64_t done = 0; done < layout.records_per_file;) {
      auto const count = std::min<std::int64_t>(256, layout.records_per_file - done);
      file.read(std::span(block).first(static_cast<std::size_t>(count) * record));
      for (std::int64_t r = 0; r < count; ++r, ++done, image += pixels) {
        auto const* from = block.data() + static_cast<std::size_t>(r) * record;
        *label = std::to_integer<std::int64_t>(from[layout.label]);
        if (*label >= layout.classes)
          file.refuse("has label " + std::to_string(*label) + " in record " + std::to_string(done) + "; " +
                          layout.name + " has " + std::to_string(layout.classes) + " classes",
                      "it is damaged or of another dataset: " + fetch);
        ++label;
        std::memcpy(image, from + layout.label_bytes, pixels);
      }
    }
  }
  return {std::move(images),
          std::move(labels),
          {std::move(layout.name), layout.classes, std::move(layout.mean), std::move(layout.stddev)}};
}

}  // namespace detail

/// 50,000 and 10,000 images [3, 32, 32] of 10 classes, from data_batch_1.bin … data_batch_5.bin or test_batch.bin in
/// `root` or `root`/cifar-10-batches-bin. \throws DataError for a missing file, a wrong size or sum, a label above 9.
class Cifar10 : public ImageDataset {
 public:
  Cifar10(std::filesystem::path const& root, Split split, Cifar10Options const& options = {})
      : ImageDataset(detail::read_cifar(root, layout(split, options))) {}

  /// Are the split's files there? (Not: are they right.)
  [[nodiscard]] static bool found(std::filesystem::path const& root, Split split = Split::train) {
    return pardl::detail::find_folder(root, {"cifar-10-batches-bin"}, layout(split, {}).files.front()).has_value();
  }

 private:
  static detail::CifarLayout layout(Split split, Cifar10Options const& options) {
    std::vector<std::string> files{"test_batch.bin"};
    if (split == Split::train)
      files = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"};
    return {split == Split::train ? "CIFAR-10 train" : "CIFAR-10 test",
            "cifar-10-batches-bin",
            std::move(files),
            "cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            1,
            0,
            10,
            options.records_per_file,
            {0.4914, 0.4822, 0.4465},
            {0.2470, 0.2435, 0.2616},
            options.sha256};
  }
};

/// 50,000 and 10,000 images [3, 32, 32] of 100 classes, from train.bin or test.bin in `root` or
/// `root`/cifar-100-binary. \throws DataError for a missing file, a wrong size or sum, a label above 99 (19 for the
/// superclasses).
class Cifar100 : public ImageDataset {
 public:
  Cifar100(std::filesystem::path const& root, Split split, Cifar100Options const& options = {})
      : ImageDataset(detail::read_cifar(root, layout(split, options))) {}

  /// Is the split's file there? (Not: is it right.)
  [[nodiscard]] static bool found(std::filesystem::path const& root, Split split = Split::train) {
    return pardl::detail::find_folder(root, {"cifar-100-binary"}, layout(split, {}).files.front()).has_value();
  }

 private:
  static detail::CifarLayout layout(Split split, Cifar100Options const& options) {
    bool const train = split == Split::train;
    return {train ? "CIFAR-100 train" : "CIFAR-100 test",
            "cifar-100-binary",
            {train ? "train.bin" : "test.bin"},
            "cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
            2,
            options.coarse_labels ? 0U : 1U,
            options.coarse_labels ? 20 : 100,
            options.records != 0 ? options.records
            : train              ? 50'000
                                 : 10'000,
            {0.5071, 0.4867, 0.4408},
            {0.2675, 0.2565, 0.2761},
            options.sha256};
  }
};

static_assert(resident_dataset<Cifar10> && resident_dataset<Cifar100>);

}  // namespace pardl::inline PARDL_ABI::data
