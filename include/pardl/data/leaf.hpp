// SPDX-License-Identifier: MIT
/// \file   LEAF's FEMNIST: handwritten characters with their writers, from the JSON files of its preprocessing.
/// \layer  data. Needs the CMake target pardl::json (nlohmann/json); without it every call is a compile error that says
/// so. No door includes this header.
///
/// Each file is {"users": [name…], "num_samples": [count…], "user_data": {name: {"x": [[784 numbers of 0 … 1]…],
/// "y": [class…]}}}. Files are read event by event, so memory is that of the result (and of one file's samples), never
/// of a JSON tree: a real file of 100 MB holds 20 MB of pixels.
///
/// LEAF divides bytes by 255. Where every pixel is such a quotient the bytes are taken back, exactly, and the result is
/// an ImageDataset; otherwise it stays float. (FederatedScope casts the quotients to bytes, which leaves 0 and 1.)
/// \paper Caldas et al., "LEAF: A benchmark for federated settings", 2018. \source data/femnist and data/utils of
/// LEAF's repository (folders and file names); federatedscope/cv/dataset/leaf_cv.py (root/femnist/raw/all_data).
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "pardl/data/dataset.hpp"
#include "pardl/data/detail/leaf_file.hpp"
#include "pardl/data/image_dataset.hpp"
#include "pardl/data/writers.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data {

/// Which of LEAF's own parts to read, where its preprocessing made train/ and test/.
enum class LeafPart {
  all,    ///< both, a writer's samples together: for a split of one's own
  train,  ///< train/ only
  test    ///< test/ only
};

struct LeafOptions {
  double subsample = 1.0;         ///< part of the files of each folder, rounded up, the first ones by number
  LeafPart part = LeafPart::all;  ///< see there
  std::int64_t classes = 62;      ///< labels are 0 … classes-1: digits, capital letters, small letters
  std::int64_t side = 28;         ///< images are side × side
  std::function<void(std::size_t done, std::size_t all)> on_file{};  ///< called after each file, for a progress bar
};

/// All samples of all writers. Copies share the storage.
struct Leaf {
  std::variant<ImageDataset, TensorDataset> samples;  ///< uint8 [N, 1, 28, 28] with facts, or float [N, 1, 28, 28]
  Writers writers;                                    ///< in the order found; some may have no sample
  std::size_t files = 0;                              ///< that were read

  /// Samples of all writers together.
  [[nodiscard]] std::int64_t size() const {
    return std::visit([](auto const& set) { return set.size(); }, samples);
  }
  /// int64 [N]
  [[nodiscard]] torch::Tensor labels() const {
    if (auto const* images = std::get_if<ImageDataset>(&samples)) return images->labels();
    return std::get<TensorDataset>(samples).targets();
  }
};

namespace detail {

/// Folders of JSON files that belong together, in the order they are read.
struct LeafFolders {
  std::vector<std::vector<std::filesystem::path>> folders;
  bool split = false;  ///< they are train/ and test/
};

/// Digits count as one number: all_data_2 before all_data_10.
[[nodiscard]] inline bool before_by_number(std::string_view a, std::string_view b) {
  auto const digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  auto const number = [&](std::string_view& text) {
    std::size_t length = 0;
    while (length < text.size() && digit(text[length])) ++length;
    auto taken = text.substr(0, length);
    text.remove_prefix(length);
    while (taken.size() > 1 && taken.front() == '0') taken.remove_prefix(1);
    return taken;
  };
  auto x = a, y = b;
  while (!x.empty() && !y.empty()) {
    if (digit(x.front()) && digit(y.front())) {
      auto const m = number(x), n = number(y);
      if (m.size() != n.size()) return m.size() < n.size();
      if (m != n) return m < n;
    } else {
      if (x.front() != y.front()) return x.front() < y.front();
      x.remove_prefix(1);
      y.remove_prefix(1);
    }
  }
  return x.size() != y.size() ? x.size() < y.size() : a < b;
}

/// The *.json files of a folder in that order; none if there is no such folder. \throws DataError if it is not
/// readable.
[[nodiscard]] inline std::vector<std::filesystem::path> json_files(std::filesystem::path const& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) return files;
  std::filesystem::directory_iterator entry(folder, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error))
    if (entry->path().extension() == ".json") files.push_back(entry->path());
  if (error)
    throw DataError(
        sentence("data", folder.string() + " cannot be listed: " + error.message(), "check its permissions"));
  std::ranges::sort(files, [](auto const& a, auto const& b) {
    return before_by_number(a.filename().string(), b.filename().string());
  });
  return files;
}

/// Where LEAF, FederatedScope or a user puts the files: the last step of LEAF's preprocessing that left some.
[[nodiscard]] inline LeafFolders leaf_folders(std::filesystem::path const& root) {
  std::vector<std::filesystem::path> const bases{root,         root / "femnist",          root / "femnist" / "raw",
                                                 root / "raw", root / "femnist" / "data", root / "data"};
  for (auto const& base : bases) {
    auto train = json_files(base / "train"), test = json_files(base / "test");
    if (!train.empty() || !test.empty()) return {{std::move(train), std::move(test)}, true};
    for (auto const* step : {"rem_user_data", "sampled_data", "all_data"})
      if (auto files = json_files(base / step); !files.empty()) return {{std::move(files)}, false};
  }
  for (auto const& base : bases)
    if (auto files = json_files(base); !files.empty()) return {{std::move(files)}, false};
  return {};
}

}  // namespace detail

/// Are there LEAF files under `root`? (Not: are they right.) Looked for in root, root/femnist, root/femnist/raw,
/// root/raw, root/femnist/data and root/data: as train/ and test/, or in rem_user_data/, sampled_data/ or all_data/;
/// else as *.json in the folder itself.
[[nodiscard]] inline bool leaf_found(std::filesystem::path const& root) {
  return !detail::leaf_folders(root).folders.empty();
}

#ifdef PARDL_WITH_JSON

namespace detail {

/// The files to read, chosen by part and subsample; one list per folder.
[[nodiscard]] inline std::vector<std::vector<std::filesystem::path>> chosen_leaf_files(
    std::filesystem::path const& root, LeafOptions const& options) {
  if (!(options.subsample > 0 && options.subsample <= 1))
    throw ConfigError(sentence("data", "a subsample of " + std::to_string(options.subsample) + " of the LEAF files",
                               "give a fraction above 0 and up to 1"));
  if (options.classes < 1 || options.side < 1)
    throw ConfigError(sentence(
        "data",
        "LEAF images of side " + std::to_string(options.side) + " in " + std::to_string(options.classes) + " classes",
        "both are at least 1"));
  auto [folders, split] = leaf_folders(root);
  if (folders.empty()) {
    std::string remedy =
        "run LEAF's data/femnist/preprocess.sh (for example with -s niid --sf 1.0 -k 0), and give its folder "
        "data/femnist or the folder that holds the all_data_*.json files";
    std::error_code error;
    for (auto const& zip : {root / "femnist" / "raw" / "femnist_all_data.zip", root / "femnist_all_data.zip"})
      if (std::filesystem::exists(zip, error)) remedy = "unpack " + zip.string() + " where it lies";
    throw DataError(sentence("data", "FEMNIST: no LEAF files (*.json) in or under " + root.string(), remedy));
  }
  if (options.part != LeafPart::all) {
    if (!split)
      throw DataError(sentence("data",
                               "FEMNIST: the files under " + root.string() + " are not split into train/ and test/",
                               "read all of them, or run LEAF's preprocess.sh with -t sample or -t user"));
    folders.erase(folders.begin() + (options.part == LeafPart::train ? 1 : 0));
    if (folders.front().empty())
      throw DataError(sentence(
          "data",
          "FEMNIST: no *.json under " + root.string() + " in " + (options.part == LeafPart::train ? "train/" : "test/"),
          "run LEAF's preprocess.sh again with -t sample or -t user"));
  }
  for (auto& files : folders) {
    auto const part = std::ceil(options.subsample * static_cast<double>(files.size()) - 1e-9);
    files.resize(static_cast<std::size_t>(part));
  }
  return std::move(folders);
}

/// Collects the files' samples; false if Pixel is a byte and a pixel is none.
template <class Pixel>
[[nodiscard]] bool collect_leaf(std::vector<std::vector<std::filesystem::path>> const& folders,
                                LeafOptions const& options, Leaf& leaf, torch::Tensor& images, torch::Tensor& labels) {
  auto const area = static_cast<std::size_t>(options.side * options.side);
  std::size_t all = 0, done = 0;
  for (auto const& files : folders) all += files.size();
  struct Place {
    std::size_t writer, folder;
    std::filesystem::path const* file;
  };
  std::unordered_map<std::string, Place> places;
  std::vector<LeafFile<Pixel>> chunks;
  leaf.writers = {};
  for (std::size_t folder = 0; folder < folders.size(); ++folder)
    for (auto const& path : folders[folder]) {
      if (!read_leaf_file(path, area, options.classes, chunks.emplace_back())) return false;
      for (auto const& [name, samples] : chunks.back().writers) {
        auto [entry, fresh] = places.try_emplace(name, Place{leaf.writers.size(), folder, &path});
        auto& place = entry->second;
        // A split by sample has each writer once in train/ and once in test/; anything else counts samples twice.
        if (!fresh && place.folder == folder)
          throw DataError(sentence("data", path.string() + ": user " + name + " is also in " + place.file->string(),
                                   "keep the files of one run of LEAF's preprocessing only"));
        place.folder = folder;
        place.file = &path;
        if (fresh) leaf.writers.names.push_back(name);
        leaf.writers.owners.insert(leaf.writers.owners.end(), static_cast<std::size_t>(samples),
                                   static_cast<std::int64_t>(place.writer));
      }
      if (options.on_file) options.on_file(++done, all);
    }
  leaf.files = all;
  auto const total = static_cast<std::int64_t>(leaf.writers.owners.size());
  if (total == 0)
    throw DataError(sentence("data", "FEMNIST: the " + std::to_string(all) + " files hold no sample",
                             "run LEAF's preprocessing again"));
  images =
      torch::empty({total, 1, options.side, options.side}, std::is_same_v<Pixel, float> ? torch::kFloat : torch::kByte);
  labels = torch::empty({total}, torch::kLong);
  auto* pixel = images.mutable_data_ptr<Pixel>();
  auto* label = labels.mutable_data_ptr<std::int64_t>();
  for (auto& chunk : chunks) {  // the tensor's pages come into use as those of the chunks go
    pixel = std::ranges::copy(chunk.pixels, pixel).out;
    label = std::ranges::copy(chunk.labels, label).out;
    chunk = {};
  }
  return true;
}

}  // namespace detail

/// Reads the files under `root` (see leaf_found for the places). Files come in the order of their numbers, writers and
/// samples in the order found; all of a writer's samples of train/ come before those of test/.
///
/// `subsample` is FederatedScope's data.subsample: a part of the files, not of the writers, rounded up. It draws which
/// files; here they are the first ones.
/// \cost of 100 MB of JSON about 2 s, in the caller's thread. Mean and deviation of an ImageDataset are those
/// published with FederatedScope's FEMNIST runs, 0.9637 and 0.1592 (white paper is 1).
/// \throws ConfigError for a subsample outside (0, 1]; DataError that names the file, the user and what to do: no
/// files, no JSON, a file cut short, counts that disagree, images of the wrong length, pixels outside 0 … 1 or NaN,
/// labels out of range, a user twice.
[[nodiscard]] inline Leaf read_leaf(std::filesystem::path const& root, LeafOptions const& options = {}) {
  auto const folders = detail::chosen_leaf_files(root, options);
  Leaf leaf{TensorDataset{torch::empty({0}), torch::empty({0})}, {}, 0};
  torch::Tensor images, labels;
  if (detail::collect_leaf<std::uint8_t>(folders, options, leaf, images, labels))
    leaf.samples = ImageDataset{std::move(images), std::move(labels), {"FEMNIST", options.classes, {0.9637}, {0.1592}}};
  else if (detail::collect_leaf<float>(folders, options, leaf, images, labels))
    leaf.samples = TensorDataset{std::move(images), std::move(labels)};
  return leaf;
}

#else

/// Without the CMake target pardl::json every call is a compile error that says so.
template <class Never = void>
Leaf read_leaf(std::filesystem::path const&, LeafOptions const& = {}) {
  static_assert(!std::is_void_v<Never>,
                "pardl::data::read_leaf needs nlohmann/json: link the CMake target pardl::json "
                "(target_link_libraries(app pardl::json)).");
  return {TensorDataset{torch::Tensor{}, torch::Tensor{}}, {}, 0};
}

#endif  // PARDL_WITH_JSON

}  // namespace pardl::inline PARDL_ABI::data
