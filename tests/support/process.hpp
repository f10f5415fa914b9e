// SPDX-License-Identifier: MIT
// A program run as a real process: its arguments, variables and terminal are ours, and what it prints and how it ends
// comes back. Nothing here sleeps: it waits for output, for an end, or for a deadline that means failure.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pardl::testing {

using Variables = std::map<std::string, std::string>;  // an empty value unsets

/// Ends test runs that hang: ten times what the slowest of these programs promises.
inline constexpr std::chrono::seconds process_deadline{150};

struct Ended {
  int code = -1;  // as a shell says it: 128 plus a signal
  bool in_time = true;
  std::string out, err;  // of a terminal, all is out
};

class Process {
 public:
  struct Options {
    Variables variables{};
    bool terminal = false;  // a terminal of 100 columns of its own, which it controls
    std::string input{};    // for stdin
  };

  explicit Process(std::vector<std::string> arguments) : Process(std::move(arguments), Options{}) {}
  Process(std::vector<std::string> arguments, Options const& options) {
    auto const environment = environment_with(options.variables);
    std::vector<char*> argv;
    std::vector<char*> envp;
    for (auto& argument : arguments) argv.push_back(argument.data());
    for (auto const& variable : environment) envp.push_back(const_cast<char*>(variable.c_str()));
    argv.push_back(nullptr);
    envp.push_back(nullptr);
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};
    if (options.terminal) {
      winsize size{};
      size.ws_col = 100;
      size.ws_row = 24;
      pid_ = ::forkpty(&out[0], nullptr, nullptr, &size);
    } else {
      if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0)
        throw std::runtime_error("no pipe");
      pid_ = ::fork();
    }
    if (pid_ < 0) throw std::runtime_error("no process");
    if (pid_ == 0) {
      if (!options.terminal) {
        ::dup2(in[0], STDIN_FILENO);
        ::dup2(out[1], STDOUT_FILENO);
        ::dup2(err[1], STDERR_FILENO);
      }
      ::execvpe(argv[0], argv.data(), envp.data());
      ::_exit(127);
    }
    if (!options.terminal) {
      (void)!::write(in[1], options.input.data(), options.input.size());
      for (int const fd : {in[0], in[1], out[1], err[1]}) ::close(fd);
    }
    streams_ = {out[0], err[0]};
    watch_ = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
  }
  Process(Process const&) = delete;
  Process& operator=(Process const&) = delete;
  ~Process() {
    if (!ended_) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    for (int const fd : {streams_[0], streams_[1], watch_})
      if (fd >= 0) ::close(fd);
  }

  [[nodiscard]] pid_t pid() const { return pid_; }
  void send(int signal) const { ::kill(pid_, signal); }
  void type(std::string_view keys) const { (void)!::write(streams_[0], keys.data(), keys.size()); }
  /// Nobody reads its stdout any more.
  void close_output() { ::close(std::exchange(streams_[0], -1)); }

  /// Reads until its stdout holds `text` `times` times. False at the deadline or its end.
  bool wait_for(std::string_view text, int times = 1) {
    auto const until = std::chrono::steady_clock::now() + process_deadline;
    while (count(result_.out, text) < times)
      if (!read_some(until)) return false;
    return true;
  }

  /// Until it has ended and its output is read. After the deadline it is killed.
  Ended wait() {
    auto const until = std::chrono::steady_clock::now() + process_deadline;
    while ((streams_[0] >= 0 || streams_[1] >= 0) && read_some(until)) {
    }
    pollfd ended{watch_, POLLIN, 0};
    if (::poll(&ended, 1, milliseconds_to(until)) == 0) {
      result_.in_time = false;
      send(SIGKILL);
    }
    int status = 0;
    ::waitpid(pid_, &status, 0);
    ended_ = true;
    result_.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return result_;
  }

  [[nodiscard]] std::string const& out() const { return result_.out; }

  static int count(std::string_view text, std::string_view part) {
    int n = 0;
    for (auto at = text.find(part); at != std::string_view::npos; at = text.find(part, at + part.size())) ++n;
    return n;
  }

 private:
  static int milliseconds_to(std::chrono::steady_clock::time_point until) {
    auto const left = std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    return static_cast<int>(std::max<long>(0, left));
  }
  static std::vector<std::string> environment_with(Variables const& variables) {
    std::vector<std::string> all;
    for (char** each = environ; *each != nullptr; ++each) {
      std::string const text = *each;
      if (!variables.contains(text.substr(0, text.find('=')))) all.push_back(text);
    }
    for (auto const& [name, value] : variables)
      if (!value.empty()) all.push_back(name + "=" + value);
    return all;
  }
  /// False when nothing more comes, or not in time.
  bool read_some(std::chrono::steady_clock::time_point until) {
    std::array<pollfd, 2> polled{{{streams_[0], POLLIN, 0}, {streams_[1], POLLIN, 0}}};
    if (streams_[0] < 0 && streams_[1] < 0) return false;
    if (::poll(polled.data(), polled.size(), milliseconds_to(until)) <= 0) return false;
    std::array<char, 65536> piece;
    for (std::size_t s = 0; s < 2; ++s) {
      if (streams_[s] < 0 || polled[s].revents == 0) continue;
      auto const got = ::read(streams_[s], piece.data(), piece.size());
      if (got > 0)
        (s == 0 ? result_.out : result_.err).append(piece.data(), static_cast<std::size_t>(got));
      else if (got == 0 || errno != EINTR)  // a terminal whose programs have ended answers EIO
        ::close(std::exchange(streams_[s], -1));
    }
    return true;
  }

  pid_t pid_ = -1;
  int watch_ = -1;
  std::array<int, 2> streams_{-1, -1};
  Ended result_;
  bool ended_ = false;
};

/// Runs a program to its end.
inline Ended run(std::vector<std::string> arguments, Variables variables = {}) {
  return Process(std::move(arguments), {.variables = std::move(variables)}).wait();
}

/// The children of a process, their children, and so on.
inline std::vector<pid_t> descendants(pid_t of) {
  std::multimap<pid_t, pid_t> children;
  std::error_code ignored;
  for (auto const& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    auto const name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry.path() / "stat");
    std::string stat;
    if (!std::getline(file, stat) || stat.rfind(')') == std::string::npos) continue;
    std::istringstream fields(stat.substr(stat.rfind(')') + 2));
    char state = 0;
    pid_t parent = 0;
    if (fields >> state >> parent) children.emplace(parent, static_cast<pid_t>(std::stol(name)));
  }
  std::vector<pid_t> found{of};
  for (std::size_t i = 0; i < found.size(); ++i) {
    auto const [first, last] = children.equal_range(found[i]);
    for (auto each = first; each != last; ++each) found.push_back(each->second);
  }
  found.erase(found.begin());
  return found;
}

/// Holds on to processes, so that their end can be waited for even if they are not ours.
class Watch {
 public:
  explicit Watch(std::vector<pid_t> const& pids) {
    for (pid_t const pid : pids) descriptors_.push_back(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  }
  Watch(Watch const&) = delete;
  Watch& operator=(Watch const&) = delete;
  ~Watch() {
    for (int const fd : descriptors_) ::close(fd);
  }
  /// True once all have ended; false at the deadline.
  [[nodiscard]] bool all_end() const {
    for (int const fd : descriptors_) {
      pollfd ended{fd, POLLIN, 0};
      auto const limit = std::chrono::milliseconds(process_deadline).count();
      if (fd >= 0 && ::poll(&ended, 1, static_cast<int>(limit)) != 1) return false;
    }
    return true;
  }

 private:
  std::vector<int> descriptors_;
};

/// Addresses, as /proc/net/tcp and tcp6 write them, on which these processes listen.
inline std::set<std::string> listening(std::vector<pid_t> const& pids) {
  std::set<std::string> inodes;
  for (pid_t const pid : pids) {
    std::error_code error;
    for (auto const& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd", error)) {
      auto const target = std::filesystem::read_symlink(entry.path(), error).string();
      if (target.starts_with("socket:[")) inodes.insert(target.substr(8, target.size() - 9));
    }
  }
  std::set<std::string> addresses;
  for (auto const* path : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::ifstream file(path);
    std::string line;
    while (std::getline(file, line)) {
      std::istringstream fields(line);
      std::string slot, local, remote, state, skip, inode;
      fields >> slot >> local >> remote >> state >> skip >> skip >> skip >> skip >> skip >> inode;
      if (state == "0A" && inodes.contains(inode)) addresses.insert(local.substr(0, local.find(':')));
    }
  }
  return addresses;
}

}  // namespace pardl::testing
