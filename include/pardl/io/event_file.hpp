// SPDX-License-Identifier: MIT
/// \file   The files that TensorBoard reads: events in TensorFlow's record format, written without either.
/// \layer  io (std and POSIX only; pardl::SummaryWriter speaks of tensors and ranks).
/// \source tensorboard/compat/proto/{event,summary,tensor}.proto for the messages; TensorFlow's "TFRecord" for records.
///
/// A record is its length, a checksum of that, the bytes, and a checksum of those. Each one is appended by one
/// write(2), so a run that is killed leaves a file that is whole up to its last event.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "pardl/io/crc32c.hpp"
#include "pardl/io/detail/protobuf.hpp"
#include "pardl/io/detail/utf8.hpp"
#include "pardl/io/histogram.hpp"
#include "pardl/io/posix.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::io {

/// What this machine calls itself, as a part of a file name.
[[nodiscard]] inline std::string host_name() {
  char name[256] = {};
  if (::gethostname(name, sizeof name - 1) != 0 || name[0] == '\0') return "localhost";
  std::string host = name;
  std::ranges::replace(host, '/', '_');
  return host;
}

namespace detail {

/// The record that holds `data`: its checksums are "masked" so that a record within a record has other ones.
[[nodiscard]] inline std::string tf_record(std::string_view data) {
  auto const masked = [](std::string_view bytes) {
    std::uint32_t const sum = crc32c(bytes);
    return (sum >> 15 | sum << 17) + 0xa282ead8u;
  };
  std::string record;
  record.reserve(data.size() + 16);
  append_little_endian(record, std::uint64_t{data.size()});
  append_little_endian(record, masked(record));
  record += data;
  append_little_endian(record, masked(data));
  return record;
}

/// Width and height out of a PNG's first chunk.  \throws DataError if it is none.
[[nodiscard]] inline std::pair<std::int64_t, std::int64_t> png_extent(std::string_view png, std::string_view tag) {
  using namespace std::string_view_literals;
  if (png.size() < 24 || !png.starts_with("\x89PNG\r\n\x1a\n"sv) || png.substr(12, 4) != "IHDR")
    throw DataError(sentence("io", "the image '" + std::string(tag) + "' is no PNG", "give the bytes of a PNG file"));
  auto const number = [&](std::size_t at) {
    std::int64_t value = 0;
    for (std::size_t i = at; i < at + 4; ++i) value = value << 8 | static_cast<unsigned char>(png[i]);
    return value;
  };
  return {number(16), number(20)};
}

}  // namespace detail

/// What one event shows: any number of values, each under its tag. Tags and texts that are not UTF-8 are mended.
class Summary {
 public:
  /// A point of a curve. In the older of TensorBoard's two forms (`simple_value`): TensorBoard reads both alike, and
  /// what else reads these files (pandas converters, EventAccumulator.Scalars) often this one only. Single precision,
  /// as both forms are drawn.
  Summary& scalar(std::string_view tag, double value) {
    constexpr float most = std::numeric_limits<float>::max(), infinite = std::numeric_limits<float>::infinity();
    // What is beyond a float becomes infinite, as in Python; C++ leaves that conversion open.
    float const narrow = value > most ? infinite : value < -most ? -infinite : static_cast<float>(value);
    return add(tagged(tag).chosen_float(2, narrow));
  }

  /// Markdown, shown by the text plugin.
  Summary& text(std::string_view tag, std::string_view markdown) {
    constexpr int type_string = 7;
    detail::ProtoMessage extent, shape, tensor;
    extent.integer(1, 1);
    shape.message(2, extent);
    tensor.integer(1, type_string).message(2, shape).chosen_text(8, detail::to_utf8(markdown));
    return add(tagged(tag).message(8, tensor).message(9, plugin("text")));
  }

  Summary& histogram(std::string_view tag, Histogram const& histogram) {
    detail::ProtoMessage buckets;
    buckets.real(1, histogram.min).real(2, histogram.max).real(3, histogram.count).real(4, histogram.sum);
    buckets.real(5, histogram.sum_squares).reals(6, histogram.limits).reals(7, histogram.counts);
    return add(tagged(tag).message(5, buckets));
  }

  /// \param png  a whole PNG file.  \param channels  1 grey, 3 RGB, 4 RGBA.  \throws DataError if it is none.
  Summary& image(std::string_view tag, std::string_view png, int channels = 3) {
    auto const [width, height] = detail::png_extent(png, tag);
    detail::ProtoMessage picture;
    picture.integer(1, height).integer(2, width).integer(3, channels).text(4, png);
    return add(tagged(tag).message(4, picture));
  }

  [[nodiscard]] bool empty() const noexcept { return message_.bytes().empty(); }
  /// As EventFile puts it into an event.
  [[nodiscard]] detail::ProtoMessage const& message() const noexcept { return message_; }

 private:
  [[nodiscard]] static detail::ProtoMessage tagged(std::string_view tag) {
    detail::ProtoMessage value;
    value.text(1, detail::to_utf8(tag));
    return value;
  }
  [[nodiscard]] static detail::ProtoMessage plugin(std::string_view name) {
    detail::ProtoMessage data, metadata;
    data.text(1, name);
    metadata.message(1, data);
    return metadata;
  }
  Summary& add(detail::ProtoMessage const& value) {
    message_.message(1, value);
    return *this;
  }

  detail::ProtoMessage message_;
};

struct EventFileOptions {
  std::string suffix{};           ///< at the end of the file's name
  std::function<double()> now{};  ///< seconds since 1970; default: the system's clock
};

/// An event file of its own name in `folder`, which is made if need be: events.out.tfevents.SECONDS.HOST.PID.N.
/// TensorBoard reads all such files of a folder as one run, in the order of their names.
/// One thread at a time. \cost of an event: one write(2), about 2 µs on a local disk.
class EventFile {
 public:
  /// \throws Error with the path and the reason if folder or file cannot be made.
  explicit EventFile(std::filesystem::path const& folder, EventFileOptions options = {})
      : options_(std::move(options)) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) throw_errno("io", "make the folder", folder, error.value());
    static std::atomic<unsigned> counter{0};  // of this process, in which two files may begin in one second
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%010lld", static_cast<long long>(now()));
    do
      path_ = folder / ("events.out.tfevents." + std::string(seconds) + "." + host_name() + "." +
                        std::to_string(::getpid()) + "." + std::to_string(counter++) + options_.suffix);
    while (!(file_ = open_file(path_, O_WRONLY | O_CREAT | O_EXCL | O_APPEND)) && errno == EEXIST);
    if (!file_) throw_errno("io", "write", path_, errno);
    detail::ProtoMessage event;
    append(event.real(1, now()).text(3, "brain.Event:2"));
  }
  EventFile(EventFile const&) = delete;
  EventFile& operator=(EventFile const&) = delete;

  [[nodiscard]] std::filesystem::path const& path() const noexcept { return path_; }
  /// Seconds since 1970, by the options' clock.
  [[nodiscard]] double now() const {
    if (options_.now) return options_.now();
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  }

  /// \throws Error if it cannot be written; what was written before stays readable.
  void add(Summary const& summary, std::int64_t step) { add(summary, step, now()); }
  void add(Summary const& summary, std::int64_t step, double seconds_since_1970) {
    detail::ProtoMessage event;
    append(event.real(1, seconds_since_1970).integer(2, step).message(5, summary.message()));
  }

  /// A run starts over at `step`: TensorBoard forgets what earlier files of the folder have from there on.
  void restart(std::int64_t step) {
    constexpr int status_start = 1;
    detail::ProtoMessage log, version, start;
    log.integer(1, status_start);
    append(version.real(1, now()).integer(2, step).text(3, "brain.Event:2"));
    append(start.real(1, now()).integer(2, step).message(7, log));
  }

  /// To the disk itself. A program that dies loses nothing without it, a power cut does.
  void flush() {
    if (file_ && ::fsync(file_.get()) != 0 && errno != EINVAL) throw_errno("io", "write", path_, errno);
  }
  /// Later events are an error.
  void close() {
    if (int const error = file_.close(); error != 0) throw_errno("io", "write", path_, error);
  }

 private:
  void append(detail::ProtoMessage const& event) {
    if (!file_) throw Error(sentence("io", "write after close of " + path_.string(), "make a new EventFile"));
    std::string const record = detail::tf_record(event.bytes());
    if (int const error = write_all(file_.get(), record.data(), record.size()); error != 0) {
      // Half a record would hide all that follows it: take it back. Where that fails too, nothing more can be done.
      if (::ftruncate(file_.get(), size_) != 0) file_.close();
      throw_errno("io", "write", path_, error);
    }
    size_ += static_cast<off_t>(record.size());
  }

  EventFileOptions options_;
  std::filesystem::path path_;
  FileDescriptor file_;
  off_t size_ = 0;
};

}  // namespace pardl::inline PARDL_ABI::io
