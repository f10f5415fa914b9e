// SPDX-License-Identifier: MIT
/// \file   What several ranks print, made into whole lines of one output, each with the rank's prefix.
/// \layer  comm (std and POSIX only).
///
/// A file or a pipe gets every byte, line by line. On a terminal, rank 0's unfinished line, a progress bar say, is
/// shown as it stands, taken away while another rank's line is printed, and drawn again below it.
#pragma once

#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <deque>
#include <string>
#include <string_view>
#include <utility>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::launching {

/// Columns that a text takes on a terminal: control sequences take none, a UTF-8 character one.
[[nodiscard]] inline std::size_t columns_of_text(std::string_view text) {
  std::size_t columns = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto const c = static_cast<unsigned char>(text[i]);
    if (c == 0x1b && i + 1 < text.size() && text[i + 1] == '[') {
      for (i += 2; i < text.size() && (text[i] < '@' || text[i] > '~');) ++i;
    } else if (c >= 0x20 && (c & 0xc0) != 0x80) {
      ++columns;
    }
  }
  return columns;
}

/// One output, with what waits to be written to it. Never blocks on its own: the owner calls write_some() when the
/// descriptor is ready, and stops reading from the ranks while full().
class Screen {
 public:
  /// \param columns  width of the terminal behind `descriptor`; 0 if there is none.
  explicit Screen(int descriptor, int columns = 0) : descriptor_(descriptor), columns_(columns) {}

  [[nodiscard]] int descriptor() const noexcept { return descriptor_; }
  [[nodiscard]] bool live() const noexcept { return columns_ > 0; }
  [[nodiscard]] int columns() const noexcept { return columns_; }
  [[nodiscard]] bool pending() const noexcept { return start_ < queue_.size(); }
  [[nodiscard]] bool full() const noexcept { return queue_.size() - start_ > std::size_t{1} << 20; }
  [[nodiscard]] std::string_view queue() const noexcept { return std::string_view(queue_).substr(start_); }

  /// A whole line, without its end.
  void line(std::string_view prefix, std::string_view text) {
    erase_sketch();
    queue_.append(prefix).append(text).append("\n");
    draw_sketch();
  }

  /// The unfinished line at the bottom of a terminal; empty text takes it away. One that would not fit in a row is not
  /// shown until it is whole, since only one row can be taken back.
  void sketch(std::string_view prefix, std::string_view text) {
    if (!live()) return;
    erase_sketch();
    sketch_.assign(prefix).append(text);
    if (text.empty() || columns_of_text(sketch_) >= static_cast<std::size_t>(columns_)) sketch_.clear();
    draw_sketch();
  }

  /// Writes what the descriptor takes at once. Returns 0, or the errno if nobody reads any more.
  int write_some() {
    constexpr std::size_t piece = 4096;  // what a pipe that polls as ready takes without blocking
    auto const wrote = ::write(descriptor_, queue_.data() + start_, std::min(queue_.size() - start_, piece));
    if (wrote < 0) return errno == EINTR || errno == EAGAIN ? 0 : errno;
    start_ += static_cast<std::size_t>(wrote);
    if (start_ == queue_.size() || start_ > std::size_t{1} << 20) {
      queue_.erase(0, start_);
      start_ = 0;
    }
    return 0;
  }

  /// Forgets what nobody will read.
  void discard() {
    queue_.clear();
    start_ = 0;
  }

 private:
  void erase_sketch() {
    if (!sketch_.empty()) queue_.append("\r\x1b[K");
  }
  void draw_sketch() { queue_.append(sketch_); }

  int descriptor_;
  int columns_;
  std::string queue_;
  std::size_t start_ = 0;  // of what is not written yet
  std::string sketch_;
};

/// True if both write to one place, so that their lines must not be mixed.
[[nodiscard]] inline bool same_output(int one, int other) {
  struct stat a {};
  struct stat b {};
  return ::fstat(one, &a) == 0 && ::fstat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/// Columns of the terminal behind a descriptor; 0 if there is none.
[[nodiscard]] inline int terminal_columns(int descriptor) {
  winsize size{};
  if (::isatty(descriptor) != 1) return 0;
  constexpr int usual = 80;
  return ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : usual;
}

/// This process's stdout and stderr. Two streams of one terminal share its one row, and two of one file must not cut
/// each other's lines: they are one screen then.
class Screens {
 public:
  Screens() {
    screens_.emplace_back(STDOUT_FILENO, terminal_columns(STDOUT_FILENO));
    if (!same_output(STDOUT_FILENO, STDERR_FILENO))
      screens_.emplace_back(STDERR_FILENO, terminal_columns(STDERR_FILENO));
  }

  /// \param stream  0: stdout's, 1: stderr's.
  [[nodiscard]] Screen& of(std::size_t stream) { return screens_[std::min(stream, screens_.size() - 1)]; }
  [[nodiscard]] std::deque<Screen>& all() { return screens_; }
  /// Of the terminal that stdout is; 0 if it is none.
  [[nodiscard]] int columns() const { return screens_.front().columns(); }

  /// Writes all that waits, however long that takes.
  void flush() {
    for (auto& screen : screens_)
      while (screen.pending())
        if (screen.write_some() != 0) screen.discard();
  }

 private:
  std::deque<Screen> screens_;  // relays point to them
};

/// One stream of one rank on its way to a screen.
class LineRelay {
 public:
  /// \param sketches  show the unfinished line where the screen is a terminal.
  LineRelay(Screen& screen, std::string prefix, bool sketches)
      : screen_(&screen), prefix_(std::move(prefix)), sketches_(sketches && screen.live()) {}

  void feed(std::string_view bytes) {
    while (!bytes.empty()) {
      auto const end = bytes.find('\n');
      rest_.append(bytes.substr(0, end));
      if (end == std::string_view::npos) break;
      bytes.remove_prefix(end + 1);
      complete();
    }
    constexpr std::size_t longest_line = std::size_t{1} << 20;  // a stream without line ends must not fill the memory
    if (rest_.size() > longest_line) complete();
    if (sketches_ && (sketched_ || !rest_.empty())) {
      screen_->sketch(prefix_, visible());
      sketched_ = !rest_.empty();
    }
  }

  /// The stream has ended: what is left is a line too.
  void finish() {
    if (!rest_.empty()) complete();
  }

 private:
  /// What a terminal would still show: the text after the last carriage return that something follows.
  [[nodiscard]] std::string_view visible() const {
    std::string_view text = rest_;
    while (!text.empty() && text.back() == '\r') text.remove_suffix(1);
    auto const back = text.rfind('\r');
    return back == std::string_view::npos ? text : text.substr(back + 1);
  }
  void complete() {
    if (std::exchange(sketched_, false)) screen_->sketch(prefix_, {});
    screen_->line(prefix_, sketches_ ? visible() : std::string_view(rest_));
    rest_.clear();
  }

  Screen* screen_;
  std::string prefix_;
  std::string rest_;  // the unfinished line
  bool sketches_;
  bool sketched_ = false;  // the screen shows it
};

}  // namespace pardl::inline PARDL_ABI::detail::launching
