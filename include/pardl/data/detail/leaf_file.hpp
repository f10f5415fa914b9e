// SPDX-License-Identifier: MIT
/// \file   One JSON file of LEAF, read event by event: no tree of it is ever in memory.
/// \layer  data (private; std and nlohmann/json). Empty unless the CMake target pardl::json is linked.
#pragma once

#ifdef PARDL_WITH_JSON

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "pardl/data/detail/data_file.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data::detail {

/// What one file holds. A writer's samples lie one after the other, the writers in the order of "user_data".
template <class Pixel>
struct LeafFile {
  std::vector<Pixel> pixels;                                  ///< rows of `area`
  std::vector<std::int64_t> labels;                           ///< one per row
  std::vector<std::pair<std::string, std::int64_t>> writers;  ///< name and number of samples
};

/// The parser's listener. Follows where in the document it stands, keeps what belongs to samples, skips unknown keys.
/// Pixel = std::uint8_t: stops at the first value that is no k/255. Pixel = float: takes any value of 0 … 1.
template <class Pixel>
class LeafEvents {
 public:
  LeafEvents(pardl::detail::DataFile const& file, std::size_t area, std::int64_t classes)
      : file_(&file), area_(area), classes_(classes) {}

  [[nodiscard]] bool between_bytes() const noexcept { return between_bytes_; }

  /// Compares what the file lists with what it holds. \throws DataError
  [[nodiscard]] LeafFile<Pixel> take() {
    if (!saw_users_ || !saw_counts_ || !saw_data_)
      refuse("lacks \"users\", \"num_samples\" or \"user_data\"", "give a file that LEAF's preprocessing made");
    if (users_.size() != counts_.size())
      refuse("lists " + std::to_string(users_.size()) + " users and " + std::to_string(counts_.size()) +
                 " numbers of samples",
             damaged);
    std::unordered_map<std::string, std::int64_t> listed;
    for (std::size_t i = 0; i < users_.size(); ++i) {
      user_ = users_[i];
      if (!listed.emplace(users_[i], counts_[i]).second) refuse("is listed twice in \"users\"", damaged);
    }
    std::vector<std::pair<std::string, std::int64_t>> kept;
    for (auto& [name, samples] : result_.writers) {
      user_ = name;
      auto const entry = listed.find(name);
      if (entry == listed.end()) {
        // LEAF's split by sample leaves users with a single sample behind like this: without data, not in the list.
        if (samples > 0) refuse("has samples and is not in \"users\"", damaged);
        continue;
      }
      if (entry->second != samples)
        refuse("has " + std::to_string(samples) + " samples, and \"num_samples\" says " + std::to_string(entry->second),
               damaged);
      listed.erase(entry);
      kept.emplace_back(std::move(name), samples);
    }
    if (!listed.empty()) {
      user_ = listed.begin()->first;
      refuse("is in \"users\" and has no entry in \"user_data\"", damaged);
    }
    result_.writers = std::move(kept);
    return std::move(result_);
  }

  // The names below are nlohmann's.
  bool null() { return other("null"); }
  bool boolean(bool) { return other("a truth value"); }
  bool number_integer(std::int64_t value) { return whole(value, static_cast<double>(value)); }
  bool number_unsigned(std::uint64_t value) {
    auto const most = std::uint64_t{1} << 62;
    return whole(value < most ? static_cast<std::int64_t>(value) : -1, static_cast<double>(value));
  }
  bool number_float(double value, std::string const& text) {
    if (skipping_ == 0 && (where_ == Where::labels || where_ == Where::counts))
      refuse((where_ == Where::labels ? "has the label " : "lists the number of samples ") + text,
             "both are whole numbers; " + std::string(damaged));
    return skipping_ == 0 && where_ == Where::image ? pixel(value) : other("a number");
  }
  bool string(std::string& value) {
    if (skipping_ > 0 || where_ != Where::users) return other("a string");
    users_.push_back(std::move(value));
    return true;
  }
  bool binary(nlohmann::json::binary_t&) { return other("binary data"); }

  bool start_object(std::size_t) {
    if (skipping_ > 0) return ++skipping_, true;
    if (where_ == Where::start) return enter(Where::root);
    if (where_ == Where::root && key_ == "user_data") return saw_data_ = true, enter(Where::data);
    if (where_ == Where::data) return begin_user();
    return skip("an object");
  }
  bool key(std::string& name) {
    if (skipping_ == 0) key_ = name;
    return true;
  }
  bool end_object() {
    if (skipping_ > 0) return --skipping_, true;
    if (where_ == Where::user) return end_user();
    return enter(where_ == Where::data ? Where::root : Where::end);
  }
  bool start_array(std::size_t) {
    if (skipping_ > 0) return ++skipping_, true;
    if (where_ == Where::root && key_ == "users") return saw_users_ = true, enter(Where::users);
    if (where_ == Where::root && key_ == "num_samples") return saw_counts_ = true, enter(Where::counts);
    if (where_ == Where::user && key_ == "x") return enter(Where::images);
    if (where_ == Where::user && key_ == "y") return enter(Where::labels);
    if (where_ == Where::images) return row_begin_ = result_.pixels.size(), enter(Where::image);
    return skip("an array");
  }
  bool end_array() {
    if (skipping_ > 0) return --skipping_, true;
    if (where_ == Where::image) return end_image();
    return enter(where_ == Where::images || where_ == Where::labels ? Where::user : Where::root);
  }
  bool parse_error(std::size_t position, std::string const& token, nlohmann::json::exception const& error) {
    user_.clear();
    if (position > file_->size())
      refuse("ends in the middle of its JSON, after " + std::to_string(file_->size()) + " bytes",
             "it is half-written or cut short; make or fetch it again");
    std::string const place = " at byte " + std::to_string(position);
    if (error.id == 406) refuse("holds a number" + place + " that is too large for any pixel or label", damaged);
    if (token.ends_with('N') || token.ends_with('I'))  // where the parser stops in NaN and Infinity
      refuse("holds a NaN or an infinity" + place, "JSON has neither, and no pixel is one; make it again");
    refuse("is not JSON" + place, damaged);
    return false;
  }

 private:
  enum class Where { start, root, users, counts, data, user, images, image, labels, end };
  static constexpr char const* damaged = "the file is damaged or of another kind; make or fetch it again";

  [[noreturn]] void refuse(std::string const& what, std::string const& remedy) const {
    file_->refuse(user_.empty() ? what : "is wrong: user " + user_ + " " + what, remedy);
  }
  bool enter(Where next) {
    where_ = next;
    return true;
  }
  [[nodiscard]] bool known_key() const {
    if (where_ == Where::root) return key_ == "users" || key_ == "num_samples" || key_ == "user_data";
    return where_ != Where::user || key_ == "x" || key_ == "y";
  }
  [[nodiscard]] std::string place() const {
    if (where_ == Where::start) return "at its top";
    return key_.empty() ? "in it" : "under \"" + key_ + "\"";
  }
  bool skip(std::string const& what) {
    if (known_key()) refuse("has " + what + " where LEAF's format has none, " + place(), damaged);
    return skipping_ = 1, true;
  }
  /// A single value that is no sample: right only under a key that is not LEAF's.
  bool other(std::string const& what) {
    if (skipping_ == 0 && known_key()) refuse("has " + what + " where LEAF's format has none, " + place(), damaged);
    return true;
  }

  bool begin_user() {
    user_ = key_;
    key_.clear();
    images_ = 0;
    first_label_ = result_.labels.size();
    if (!seen_.insert(user_).second) refuse("comes twice in \"user_data\"", damaged);
    return enter(Where::user);
  }
  bool end_user() {
    auto const labels = result_.labels.size() - first_label_;
    if (images_ != labels)
      refuse("has " + std::to_string(images_) + " images and " + std::to_string(labels) + " labels", damaged);
    result_.writers.emplace_back(std::exchange(user_, {}), static_cast<std::int64_t>(labels));
    return enter(Where::data);
  }
  bool end_image() {
    auto const found = result_.pixels.size() - row_begin_;
    if (found != area_)
      refuse("has an image (number " + std::to_string(images_) + ") of " + std::to_string(found) + " pixels",
             "LEAF's have " + std::to_string(area_) + "; " + damaged);
    ++images_;
    return enter(Where::images);
  }

  bool whole(std::int64_t value, double same) {
    if (skipping_ > 0) return true;
    if (where_ == Where::image) return pixel(same);
    if (where_ == Where::labels) {
      if (value < 0 || value >= classes_)
        refuse("has the label " + std::to_string(value) + " (sample " +
                   std::to_string(result_.labels.size() - first_label_) + ")",
               "labels are 0 to " + std::to_string(classes_ - 1) + "; " + damaged);
      result_.labels.push_back(value);
      return true;
    }
    if (where_ == Where::counts) {
      counts_.push_back(value);
      return true;
    }
    return other("a number");
  }
  bool pixel(double value) {
    if (!(value >= -tolerance && value <= 1 + tolerance))
      refuse("has a pixel of " + std::to_string(value) + " (image " + std::to_string(images_) + ")",
             "LEAF's pixels lie between 0 and 1: divide them by 255");
    if constexpr (std::is_same_v<Pixel, float>) {
      result_.pixels.push_back(static_cast<float>(value));
    } else {
      double const level = std::round(255 * value);
      if (std::abs(value - level / 255) > tolerance) return between_bytes_ = true, false;  // ends the parse
      result_.pixels.push_back(static_cast<Pixel>(level));
    }
    return true;
  }

  static constexpr double tolerance = 1e-4;

  pardl::detail::DataFile const* file_;
  std::size_t area_;
  std::int64_t classes_;
  LeafFile<Pixel> result_;
  std::vector<std::string> users_;
  std::vector<std::int64_t> counts_;
  std::unordered_set<std::string> seen_;
  Where where_ = Where::start;
  int skipping_ = 0;  ///< depth inside a value that is not LEAF's
  std::string key_, user_;
  std::size_t images_ = 0, row_begin_ = 0, first_label_ = 0;
  bool saw_users_ = false, saw_counts_ = false, saw_data_ = false, between_bytes_ = false;
};

/// Reads one file. \returns false, with nothing in `result`, if Pixel is a byte and a pixel is no k/255.
/// \throws DataError that names the file, the user and what is wrong.
template <class Pixel>
[[nodiscard]] bool read_leaf_file(std::filesystem::path const& path, std::size_t area, std::int64_t classes,
                                  LeafFile<Pixel>& result) {
  pardl::detail::DataFile const file(path);
  std::vector<char> buffer(std::size_t{1} << 18);
  std::ifstream stream;
  stream.rdbuf()->pubsetbuf(buffer.data(), static_cast<std::streamsize>(buffer.size()));
  stream.open(path, std::ios::binary);
  LeafEvents<Pixel> events(file, area, classes);
  nlohmann::json::sax_parse(stream, &events);
  if (events.between_bytes()) return false;
  result = events.take();
  return true;
}

}  // namespace pardl::inline PARDL_ABI::data::detail

#endif  // PARDL_WITH_JSON
