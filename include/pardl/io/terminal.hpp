// SPDX-License-Identifier: MIT
/// \file   A progress bar on a terminal, plain lines anywhere else, and how to tell the two apart.
/// \layer  io (std and POSIX only).
///
/// On a terminal one line is redrawn in place, at most ten times a second, and fits the width. A file, a pipe or a
/// batch log gets whole lines, one each ten percent or half a minute, without a single control code. Whichever it is,
/// no half line is left behind when an exception passes.
#pragma once

#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "pardl/io/text.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// What can be shown on a stream.
struct Terminal {
  bool interactive = false;  ///< a line can be redrawn in place
  bool utf8 = false;         ///< the locale can show block characters
  int columns = 80;          ///< width of a line
};

namespace detail {

inline int columns_of(int descriptor) noexcept {
  winsize window{};
  return ::ioctl(descriptor, TIOCGWINSZ, &window) == 0 ? window.ws_col : 0;
}

/// The rule of POSIX: the first of LC_ALL, LC_CTYPE, LANG that is set and not empty names the encoding.
template <class Getter>
bool locale_is_utf8(Getter&& variable) {
  for (char const* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    char const* const value = variable(name);
    if (value == nullptr || *value == '\0') continue;
    std::string text(value);
    std::ranges::transform(text, text.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c; });
    return text.find("utf-8") != text.npos || text.find("utf8") != text.npos;
  }
  return false;
}

}  // namespace detail

/// Looks at a descriptor and the environment. A terminal is interactive unless TERM is "dumb" or unset. Ranks started
/// by pardl's launcher write into a pipe whose other end the launcher shows: it sets PARDL_TTY=1 and COLUMNS where that
/// end is a terminal. A rank whose output went into a file all the same gets no control codes: only a pipe is believed.
/// PARDL_TTY=0 asks for plain lines everywhere. \param variable  how to read the environment; tests hand in a table.
template <class Getter = char* (*)(char const*)>
[[nodiscard]] Terminal detect_terminal(int descriptor = STDOUT_FILENO, Getter variable = std::getenv) {
  auto const text = [&](char const* name) {
    char const* const value = variable(name);
    return std::string_view(value == nullptr ? "" : value);
  };
  struct stat file {};
  bool const is_pipe = ::fstat(descriptor, &file) == 0 && (S_ISFIFO(file.st_mode) || S_ISSOCK(file.st_mode));
  std::string_view const told = text("PARDL_TTY");
  std::string_view const kind = text("TERM");
  Terminal terminal;
  terminal.utf8 = detail::locale_is_utf8(variable);
  terminal.interactive =
      (told == "1" && is_pipe) || (::isatty(descriptor) == 1 && told != "0" && !kind.empty() && kind != "dumb");
  int columns = detail::columns_of(descriptor);
  if (columns <= 0) columns = std::atoi(std::string(text("COLUMNS")).c_str());
  if (columns > 0) terminal.columns = columns;
  return terminal;
}

struct ProgressBarOptions {
  std::string label{};                                  ///< stands before the percentage, e.g. "epoch 3/100"
  std::string unit{};                                   ///< of the rate, e.g. "images"; empty: the steps themselves
  bool bytes = false;                                   ///< counts are bytes and shown as KiB, MiB, GiB
  std::chrono::milliseconds redraw_interval{100};       ///< on a terminal: least time between two drawings
  std::chrono::milliseconds line_interval{30'000};      ///< elsewhere: a line after this long, and each ten percent,
  std::chrono::milliseconds least_line_interval{1000};  ///< but never two within this time
  std::optional<Terminal> terminal{};                   ///< default: what standard output is, its width followed live
  std::function<void(std::string_view)> write{};        ///< default: standard output, flushed
  std::function<std::chrono::steady_clock::time_point()> now{};  ///< default: the steady clock; tests hand in their own
};

/// Progress of one piece of work. Draws from the thread that calls it, and only inside its calls: no thread of its own.
/// One thread at a time. A failing stream is ignored: showing progress must not end the work.
class ProgressBar {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  /// \param total  steps that finish the work; nullopt where nobody knows (no percentage, no ETA).
  explicit ProgressBar(std::optional<std::int64_t> total, ProgressBarOptions options = {})
      : options_(std::move(options)),
        terminal_(options_.terminal ? *options_.terminal : detect_terminal()),
        follow_width_(!options_.terminal && terminal_.interactive),
        total_(total),
        started_(now()),
        shown_(started_),
        rated_(started_) {
    options_.label = io::printable(options_.label, terminal_.utf8);
    options_.unit = io::printable(options_.unit, terminal_.utf8);
    if (terminal_.interactive) draw();
  }
  ProgressBar(ProgressBar const&) = delete;
  ProgressBar& operator=(ProgressBar const&) = delete;

  /// Ends an open line where it stands, so that what an exception prints begins on a line of its own.
  ~ProgressBar() {
    if (!open_) return;
    try {
      draw();
      put("\n");
    } catch (...) {  // a full string or a user's writer; a destructor has nobody to tell
    }
  }

  /// `steps` more are done; `work` of them in the unit of the rate (a batch is one step, and 128 images of work).
  void advance(std::int64_t steps = 1) { advance(steps, steps); }
  void advance(std::int64_t steps, std::int64_t work) {
    done_ += steps;
    work_ += work;
    show();
  }

  /// Some of what is to be done was there before: it counts as done, never as speed.
  void skip(std::int64_t steps) {
    done_ += steps;
    skipped_ += steps;
    last_tenth_ = tenth();
  }

  /// Starts over from nothing (a server that cannot resume), or learns the total late.
  void restart(std::optional<std::int64_t> total) {
    total_ = total;
    done_ = skipped_ = work_ = rated_work_ = 0;
    recent_work_ = recent_seconds_ = 0;
    last_tenth_ = 0;
    started_ = rated_ = now();
  }
  void set_total(std::optional<std::int64_t> total) {
    total_ = total;
    last_tenth_ = tenth();
  }

  /// A short text at the end of the line, e.g. "loss 0.42"; the first thing to go where the line is too narrow.
  void note(std::string_view text) { note_ = io::printable(text, terminal_.utf8); }

  /// Prints a whole line above the bar.
  void print(std::string_view line) {
    std::string const text = io::printable(line, terminal_.utf8);
    put((open_ ? "\r" + text + "\x1b[K\n" : text + "\n"));
    if (open_) draw();
  }

  /// The work is done: shows its end, with the time it took and the mean rate. Later calls do nothing.
  void finish() {
    if (finished_) return;
    finished_ = true;
    if (terminal_.interactive) {
      draw();
      open_ = false;
      put("\n");
    } else {
      put(line(0) + "\n");
    }
  }

 private:
  [[nodiscard]] TimePoint now() const { return options_.now ? options_.now() : std::chrono::steady_clock::now(); }

  void put(std::string_view text) const {
    if (options_.write) return options_.write(text);
    // stdio and not write(2): the program's own printf and std::cout lines keep their place among ours.
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  [[nodiscard]] double fraction() const {
    if (!total_) return 0;
    return *total_ <= 0 ? 1.0 : std::clamp(static_cast<double>(done_) / static_cast<double>(*total_), 0.0, 1.0);
  }
  [[nodiscard]] int tenth() const { return static_cast<int>(fraction() * 10); }

  void show() {
    if (finished_) return;
    TimePoint const time = now();
    if (terminal_.interactive) {
      if (time - shown_ >= options_.redraw_interval) draw();
      return;
    }
    if (time - shown_ < options_.least_line_interval) return;
    bool const due = (tenth() > last_tenth_ && fraction() < 1) || time - shown_ >= options_.line_interval;
    if (!due) return;
    last_tenth_ = tenth();
    shown_ = time;
    put(line(0) + "\n");
  }

  void draw() {
    if (follow_width_)
      if (int const columns = detail::columns_of(STDOUT_FILENO); columns > 0) terminal_.columns = columns;
    shown_ = now();
    open_ = true;
    // The last column stays free: writing there wraps on some terminals, and a wrapped line cannot be redrawn.
    put("\r" + line(std::max(terminal_.columns - 1, 1)) + "\x1b[K");
  }

  /// Work per second: the mean once finished; before, a mean that forgets with a time constant of 15 s, so that a slow
  /// first batch does not spoil the ETA of the rest.
  [[nodiscard]] double rate() {
    using seconds = std::chrono::duration<double>;
    TimePoint const time = now();
    if (finished_) {
      double const whole = seconds(time - started_).count();
      return whole > 0 ? static_cast<double>(work_) / whole : 0;
    }
    if (double const passed = seconds(time - rated_).count(); passed > 0) {
      double const keep = std::exp(-passed / 15.0);
      recent_work_ = recent_work_ * keep + static_cast<double>(work_ - rated_work_);
      recent_seconds_ = recent_seconds_ * keep + passed;
      rated_ = time;
      rated_work_ = work_;
    }
    return recent_seconds_ > 0 ? recent_work_ / recent_seconds_ : 0;
  }

  [[nodiscard]] std::string amount(double count) const {
    return options_.bytes ? io::binary_size(count) : io::decimal_size(count);
  }

  /// The richest of several forms that fits `width`; 0 is a plain line, which has no bar and no limit.
  [[nodiscard]] std::string line(int width) {
    double const speed = rate();
    double const elapsed = std::chrono::duration<double>(now() - started_).count();
    std::string head = options_.label;
    if (total_) {
      std::string percent = std::to_string(static_cast<int>(fraction() * 100)) + "%";
      percent.insert(0, 4 - std::min<std::size_t>(percent.size(), 4), ' ');
      head += (head.empty() ? "" : " ") + percent;
    }
    auto const count = [&](std::int64_t n) { return options_.bytes ? io::binary_size(double(n)) : std::to_string(n); };
    std::string const counts = count(done_) + (total_ ? "/" + count(*total_) : "");
    std::string const unit = options_.unit.empty() ? "" : " " + options_.unit;
    std::string const pace = speed > 0 ? "  " + amount(speed) + unit + "/s" : "";
    std::string time = "  " + io::clock_time(elapsed);
    if (total_ && !finished_) {
      // The rate is in units of work, what remains in steps; the steps so far say how much work one is.
      double const steps = static_cast<double>(done_ - skipped_);
      double const rest = static_cast<double>(std::max<std::int64_t>(*total_ - done_, 0));
      bool const known = speed > 0 && steps > 0;
      time = "  ETA " + (known ? io::clock_time(rest * static_cast<double>(work_) / steps / speed) : "?");
    }
    std::string const note = note_.empty() ? "" : "  " + note_;
    if (width <= 0) return head + (head.empty() ? "" : "  ") + counts + pace + time + note;
    for (std::string const& tail : {counts + pace + time + note, counts + pace + time, counts + time, time.substr(2)}) {
      int const room = width - io::text_width(head) - io::text_width(tail) - 4;  // two spaces and two edges
      if (!total_ && room >= -2) return head + (head.empty() ? "" : "  ") + tail;
      if (total_ && room >= 8) return head + " " + bar(std::min(room, 40)) + " " + tail;
    }
    return io::clip(head + time, width);
  }

  [[nodiscard]] std::string bar(int cells) const {
    if (!terminal_.utf8) {
      int const full = static_cast<int>(fraction() * cells);
      std::string text(static_cast<std::size_t>(full), '#');
      text.resize(static_cast<std::size_t>(cells), '.');
      return "[" + text + "]";
    }
    static constexpr std::string_view eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    int const parts = static_cast<int>(fraction() * cells * 8);
    std::string text;
    for (int i = 0; i < parts / 8; ++i) text += "█";
    text += eighths[parts % 8];
    text.append(static_cast<std::size_t>(cells - parts / 8 - (parts % 8 != 0 ? 1 : 0)), ' ');
    return "│" + text + "│";
  }

  ProgressBarOptions options_;
  Terminal terminal_;
  bool follow_width_;
  std::optional<std::int64_t> total_;
  std::int64_t done_ = 0, skipped_ = 0, work_ = 0, rated_work_ = 0;
  double recent_work_ = 0, recent_seconds_ = 0;
  int last_tenth_ = 0;
  bool open_ = false;  // the cursor stands behind an unfinished line
  bool finished_ = false;
  std::string note_;
  TimePoint started_, shown_, rated_;
};

}  // namespace pardl::inline PARDL_ABI
