// SPDX-License-Identifier: MIT
#include "pardl/io/terminal.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

using namespace std::chrono_literals;
using pardl::ProgressBar;
using pardl::ProgressBarOptions;
using pardl::Terminal;

namespace {

// A stream that keeps what it was given, and a clock that moves when told.
struct Screen {
  std::string all;
  std::vector<std::string> writes;
  std::chrono::steady_clock::time_point time{};

  ProgressBarOptions options(Terminal terminal, std::string label = "work") {
    ProgressBarOptions options;
    options.label = std::move(label);
    options.terminal = terminal;
    options.write = [this](std::string_view text) {
      all += text;
      writes.emplace_back(text);
    };
    options.now = [this] { return time; };
    return options;
  }
  // What stands in the line that was drawn last.
  std::string line() const {
    std::string text = writes.back() == "\n" ? writes[writes.size() - 2] : writes.back();
    if (text.starts_with("\r")) text.erase(0, 1);
    if (text.ends_with("\x1b[K")) text.resize(text.size() - 3);
    return text;
  }
  bool has_control_codes() const { return all.find_first_of("\r\x1b\b") != all.npos; }
};

struct Environment {
  std::map<std::string, std::string> variables;
  char const* operator()(char const* name) const {
    auto const found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  }
};

struct Pipe {
  int ends[2];
  Pipe() { REQUIRE(::pipe(ends) == 0); }
  ~Pipe() {
    ::close(ends[0]);
    ::close(ends[1]);
  }
};

constexpr Terminal ascii{.interactive = true, .utf8 = false, .columns = 80};
constexpr Terminal unicode{.interactive = true, .utf8 = true, .columns = 80};
constexpr Terminal plain{};

}  // namespace

TEST_CASE("a pipe is a terminal only if the launcher says so, and then has the launcher's width") {
  Pipe pipe;
  CHECK_FALSE(pardl::detect_terminal(pipe.ends[1], Environment{{{"TERM", "xterm"}}}).interactive);
  CHECK_FALSE(pardl::detect_terminal(pipe.ends[1], Environment{{{"PARDL_TTY", "0"}}}).interactive);
  Terminal const told = pardl::detect_terminal(pipe.ends[1], Environment{{{"PARDL_TTY", "1"}, {"COLUMNS", "132"}}});
  CHECK(told.interactive);
  CHECK(told.columns == 132);
  CHECK(pardl::detect_terminal(pipe.ends[1], Environment{{{"PARDL_TTY", "1"}, {"COLUMNS", "none"}}}).columns == 80);
}

TEST_CASE("a file is never a terminal, whatever the environment says") {
  int const file = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  CHECK_FALSE(pardl::detect_terminal(file, Environment{{{"PARDL_TTY", "1"}, {"TERM", "xterm"}}}).interactive);
  ::close(file);
}

TEST_CASE("a pseudo-terminal is live unless TERM or PARDL_TTY object") {
  int const controller = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  REQUIRE(controller >= 0);
  REQUIRE(::grantpt(controller) == 0);
  REQUIRE(::unlockpt(controller) == 0);
  int const terminal = ::open(::ptsname(controller), O_RDWR | O_NOCTTY | O_CLOEXEC);
  REQUIRE(terminal >= 0);
  winsize const size{.ws_row = 24, .ws_col = 97, .ws_xpixel = 0, .ws_ypixel = 0};
  REQUIRE(::ioctl(terminal, TIOCSWINSZ, &size) == 0);
  Terminal const seen = pardl::detect_terminal(terminal, Environment{{{"TERM", "xterm"}, {"COLUMNS", "20"}}});
  CHECK(seen.interactive);
  CHECK(seen.columns == 97);
  CHECK_FALSE(pardl::detect_terminal(terminal, Environment{{{"TERM", "dumb"}}}).interactive);
  CHECK_FALSE(pardl::detect_terminal(terminal, Environment{}).interactive);
  CHECK_FALSE(pardl::detect_terminal(terminal, Environment{{{"TERM", "xterm"}, {"PARDL_TTY", "0"}}}).interactive);
  ::close(terminal);
  ::close(controller);
}

TEST_CASE("the first locale variable that is set decides about UTF-8") {
  auto const utf8 = [](std::map<std::string, std::string> variables) {
    return pardl::detect_terminal(0, Environment{std::move(variables)}).utf8;
  };
  CHECK(utf8({{"LANG", "de_DE.UTF-8"}}));
  CHECK(utf8({{"LANG", "C"}, {"LC_ALL", "C.utf8"}}));
  CHECK(utf8({{"LANG", "C.UTF-8"}, {"LC_ALL", ""}}));
  CHECK_FALSE(utf8({{"LANG", "C.UTF-8"}, {"LC_CTYPE", "C"}}));
  CHECK_FALSE(utf8({}));
}

TEST_CASE("a line shows percentage, counts, rate and time to go") {
  Screen screen;
  ProgressBar bar(200, screen.options(ascii, "epoch 1/3"));
  CHECK(screen.line() == "epoch 1/3   0% [........................................] 0/200  ETA ?");
  screen.time += 10s;
  bar.advance(50);
  CHECK(screen.line() == "epoch 1/3  25% [#########............................] 50/200  5.00/s  ETA 0:30");
  bar.note("loss 0.42");
  screen.time += 30s;
  bar.advance(150);
  bar.finish();
  CHECK(screen.line() == "epoch 1/3 100% [#############################] 200/200  5.00/s  0:40  loss 0.42");
  CHECK(screen.all.ends_with("\n"));
}

TEST_CASE("the rate counts work and the bar counts steps") {
  Screen screen;
  auto options = screen.options(ascii);
  options.unit = "images";
  ProgressBar bar(10, std::move(options));
  screen.time += 2s;
  bar.advance(1, 256);
  CHECK(screen.line().find("1/10  128 images/s  ETA 0:18") != std::string::npos);
}

TEST_CASE("what was there before counts as done but not as speed") {
  Screen screen;
  auto options = screen.options(ascii);
  options.bytes = true;
  ProgressBar bar(4096, std::move(options));
  bar.skip(2048);
  screen.time += 1s;
  bar.advance(1024);
  CHECK(screen.line().find(" 75% ") != std::string::npos);
  CHECK(screen.line().find("3.00 KiB/4.00 KiB  1.00 KiB/s  ETA 0:01") != std::string::npos);
}

TEST_CASE("the ETA follows a change of speed, the last line has the mean") {
  Screen screen;
  ProgressBar bar(1000, screen.options(ascii));
  screen.time += 100s;
  bar.advance(1);  // a slow start
  for (int i = 0; i < 99; ++i) {
    screen.time += 1s;
    bar.advance(1);
  }
  CHECK(screen.line().find("ETA 15:") != std::string::npos);  // 900 steps of a second, not of two
  bar.finish();
  CHECK(screen.line().find("100/1000  0.50/s  3:19") != std::string::npos);
}

TEST_CASE("a terminal is redrawn at most ten times a second, and at the end") {
  Screen screen;
  {
    ProgressBar bar(1000, screen.options(ascii));
    for (int i = 0; i < 1000; ++i) {
      screen.time += 1ms;
      bar.advance();
    }
    CHECK(screen.writes.size() == 11);  // the first, and one each 100 ms
    bar.finish();
    bar.finish();
    bar.advance();
  }
  CHECK(screen.writes.size() == 13);  // the last drawing, the newline, and nothing after
  CHECK(screen.line().find("1000/1000") != std::string::npos);
}

TEST_CASE("a drawing fits the terminal whatever its width, and leaves the last column free") {
  for (bool const utf8 : {false, true})
    for (int columns = 1; columns < 140; ++columns) {
      CAPTURE(columns);
      Screen screen;
      ProgressBar bar(30'000, screen.options({.interactive = true, .utf8 = utf8, .columns = columns}, "Prüfung 数据"));
      bar.note("Verlust 0.123456");
      screen.time += 3s;
      bar.advance(12'345);
      CHECK(pardl::io::text_width(screen.line()) <= std::max(columns - 1, 1));
      if (columns > 40) CHECK(screen.line().find("41%") != std::string::npos);
    }
}

TEST_CASE("blocks of an eighth where the locale is UTF-8, ASCII where it is not") {
  Screen screen;
  ProgressBar bar(320, screen.options(unicode, ""));
  screen.time += 1s;
  bar.advance(101);
  CHECK(screen.line().find("│████████████▋                           │") != std::string::npos);
  Screen old;
  ProgressBar dull(320, old.options(ascii, "größe"));
  old.time += 1s;
  dull.advance(101);
  for (char const c : old.all) CHECK(static_cast<unsigned char>(c) < 0x80);
  CHECK(old.line().starts_with("gr??e  31% [#"));
}

TEST_CASE("a stream that is no terminal gets a line each ten percent and not one control code") {
  Screen screen;
  {
    ProgressBar bar(100, screen.options(plain));
    for (int i = 0; i < 100; ++i) {
      screen.time += 1s;
      bar.advance();
    }
    bar.finish();
  }
  CHECK(screen.writes.size() == 10);
  CHECK(screen.writes.front() == "work  10%  10/100  1.00/s  ETA 1:30\n");
  CHECK(screen.writes.back() == "work 100%  100/100  1.00/s  1:40\n");
  CHECK_FALSE(screen.has_control_codes());
}

TEST_CASE("slow work shows a line each half minute, quick work only its end") {
  Screen slow;
  ProgressBar crawl(100'000, slow.options(plain));
  for (int i = 0; i < 90; ++i) {
    slow.time += 1s;
    crawl.advance();
  }
  CHECK(slow.writes.size() == 3);
  Screen quick;
  ProgressBar dash(100, quick.options(plain));
  for (int i = 0; i < 100; ++i) {
    quick.time += 5ms;
    dash.advance();
  }
  dash.finish();
  CHECK(quick.writes.size() == 1);
}

TEST_CASE("an exception leaves no half line on a terminal and nothing on a file") {
  Screen screen;
  try {
    ProgressBar bar(10, screen.options(ascii));
    bar.advance(3);
    throw std::runtime_error("out of data");
  } catch (std::runtime_error const&) {
  }
  CHECK(screen.all.ends_with("\n"));
  CHECK(screen.line().find("3/10") != std::string::npos);
  Screen file;
  try {
    ProgressBar bar(10, file.options(plain));
    bar.advance(3);
    throw std::runtime_error("out of data");
  } catch (std::runtime_error const&) {
  }
  CHECK(file.all.empty());
}

TEST_CASE("a line printed above an open bar does not mix with it") {
  Screen screen;
  ProgressBar bar(10, screen.options(ascii));
  bar.print("learning rate halved");
  CHECK(screen.all.find("\rlearning rate halved\x1b[K\n\rwork") != std::string::npos);
  Screen file;
  ProgressBar lines(10, file.options(plain));
  lines.print("learning rate halved");
  CHECK(file.all == "learning rate halved\n");
}

TEST_CASE("a label cannot smuggle control codes to the terminal") {
  Screen screen;
  ProgressBar bar(10, screen.options(plain, "a\x1b[2Jb\rc\xc2\x9b"));
  bar.note(
      "\x07"
      "bell");
  bar.finish();
  CHECK(screen.all.starts_with("a?[2Jb?c?"));
  CHECK(screen.all.find("?bell") != std::string::npos);
  CHECK_FALSE(screen.has_control_codes());
}

TEST_CASE("an unknown total shows what was done, and no percentage") {
  Screen screen;
  auto options = screen.options(ascii, "fetch");
  options.bytes = true;
  ProgressBar bar(std::nullopt, std::move(options));
  screen.time += 2s;
  bar.advance(3 << 20);
  CHECK(screen.line() == "fetch  3.00 MiB  1.50 MiB/s  0:02");
  bar.finish();
  CHECK(screen.all.ends_with("\n"));
}

TEST_CASE("nothing to do is done, and more than announced is not more than all") {
  Screen screen;
  ProgressBar none(0, screen.options(plain));
  none.finish();
  CHECK(screen.all == "work 100%  0/0  0:00\n");
  ProgressBar more(10, screen.options(ascii));
  screen.time += 1s;
  more.advance(15);
  CHECK(screen.line().find("100% [") != std::string::npos);
}

TEST_CASE("without settings the bar writes to standard output, and a file there gets whole lines") {
  auto const path = std::filesystem::temp_directory_path() / ("pardl-terminal-" + std::to_string(::getpid()));
  std::fflush(stdout);
  int const saved = ::dup(STDOUT_FILENO);
  int const file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  REQUIRE(file >= 0);
  ::dup2(file, STDOUT_FILENO);
  {
    ProgressBar bar(3);
    bar.advance(3);
    bar.finish();
  }
  std::fflush(stdout);
  ::dup2(saved, STDOUT_FILENO);
  ::close(saved);
  ::close(file);
  std::ifstream in(path);
  std::string const text{std::istreambuf_iterator<char>(in), {}};
  std::filesystem::remove(path);
  CHECK(text.starts_with("100%  3/3"));
  CHECK(text.ends_with("\n"));
  CHECK(text.find('\r') == std::string::npos);
}

TEST_CASE("numbers are readable at every size") {
  CHECK(pardl::io::decimal_size(0) == "0.00");
  CHECK(pardl::io::decimal_size(999.4) == "999");
  CHECK(pardl::io::decimal_size(999.6) == "1.00k");
  CHECK(pardl::io::decimal_size(36'577'311) == "36.6M");
  CHECK(pardl::io::binary_size(1023) == "1023 B");
  CHECK(pardl::io::binary_size(169'001'437) == "161 MiB");
  CHECK(pardl::io::clock_time(59.9) == "0:59");
  CHECK(pardl::io::clock_time(3723) == "1:02:03");
  CHECK(pardl::io::clock_time(std::nan("")) == "?");
  CHECK(pardl::io::clip("数据x", 3) == "数");
}
