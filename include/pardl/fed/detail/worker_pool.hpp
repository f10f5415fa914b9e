// SPDX-License-Identifier: MIT
/// \file   Processes that wait for commands: forked, told, watched, and replaced when one dies.
/// \layer  fed, private.
///
/// What they work on lies in shared memory; here travel only the words "do this" and "done". A worker is forked from
/// the process that holds the pool, so it has the data set and the model as they are, without a copy. It dies with that
/// process, however that one ends.
#pragma once

#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "pardl/io/posix.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::detail {

/// This process's ends of the lines to the workers of all its pools. A worker that kept another's open would keep that
/// one from seeing its line close, so it closes them all.
class OpenLines {
 public:
  static void add(int line) {
    std::lock_guard const lock(mutex());
    lines().push_back(line);
  }
  static void remove(int line) {
    std::lock_guard const lock(mutex());
    std::erase(lines(), line);
  }
  [[nodiscard]] static std::vector<int> all() {
    std::lock_guard const lock(mutex());
    return lines();
  }

 private:
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  static std::vector<int>& lines() {
    static std::vector<int> all;
    return all;
  }
};

class WorkerPool {
 public:
  using Command = std::uint64_t;
  /// Runs in the worker, once for each command. An exception ends the worker, and its words are how it died.
  using Serve = std::function<void(int worker, Command)>;

  /// What a worker has to say.
  struct Event {
    int worker = -1;
    std::string death;  ///< empty: the command is done; else how the process ended
  };

  /// Without a process of its own, the caller's does the work: `inside`, for one worker.
  WorkerPool(int count, bool inside, Serve serve) : serve_(std::move(serve)), inside_(inside) {
    workers_.resize(static_cast<std::size_t>(count));
    if (!inside_)
      for (int w = 0; w < count; ++w) start(w);
  }
  WorkerPool(WorkerPool&&) = delete;

  /// Ends the workers: those that wait leave by themselves, the others are killed.
  ~WorkerPool() {
    for (auto& worker : workers_) hang_up(worker);
    for (auto& worker : workers_) {
      if (worker.pid <= 0) continue;
      if (worker.busy) ::kill(worker.pid, SIGKILL);
      reap(worker.pid);
    }
  }

  [[nodiscard]] int size() const noexcept { return static_cast<int>(workers_.size()); }

  /// Starts a worker anew, as this process is now. \throws Error if there is no process to be had.
  void start(int which) {
    auto& worker = workers_[static_cast<std::size_t>(which)];
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) refuse("no socket", errno);
    io::FileDescriptor here(ends[0]), there(ends[1]);
    auto const others = OpenLines::all();
    std::fflush(nullptr);  // or the child would print what this process still has in its buffers
    auto const parent = ::getpid();
    pid_t const pid = ::fork();
    if (pid < 0) refuse("no process", errno);
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) std::_Exit(1);
      ::prctl(PR_SET_NAME, ("worker " + std::to_string(which)).c_str());
      here.close();
      for (int const other : others) ::close(other);
      serve_until_closed(which, there.get());
    }
    OpenLines::add(here.get());
    worker = {pid, std::move(here), false, {}};
  }

  /// Starts those anew that have died while they waited. What they did before is in shared memory.
  void revive() {
    for (int which = 0; which < size() && !inside_; ++which) {
      auto& worker = workers_[static_cast<std::size_t>(which)];
      char word = 0;
      if (worker.busy) continue;
      if (worker.line.get() >= 0) {
        ssize_t const got = ::recv(worker.line.get(), &word, 1, MSG_DONTWAIT | MSG_PEEK);
        if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR))) continue;
      }
      if (worker.pid > 0) (void)bury(which);
      start(which);
    }
  }

  /// Kills those that work, and starts them anew.
  void interrupt() {
    if (inside_) return;
    for (int which = 0; which < size(); ++which) kill(which, "was interrupted");
    for (int which = 0; which < size(); ++which)
      if (workers_[static_cast<std::size_t>(which)].busy) (void)bury(which);
    revive();
  }

  /// Tells a worker that waits.
  void send(int which, Command command) {
    auto& worker = workers_[static_cast<std::size_t>(which)];
    if (!inside_ && worker.line.get() < 0)
      throw Error(sentence("fed", "worker " + std::to_string(which) + " has died and could not be replaced",
                           "go on from the last checkpoint"));
    worker.busy = true;
    if (inside_) {
      serve_(which, command);
      return;
    }
    // A worker that has died is reported by wait().
    (void)::send(worker.line.get(), &command, sizeof command, MSG_NOSIGNAL);
  }

  /// The next worker that is done or dead. A dead one is gone; start() replaces it.
  /// \param look  called some times a second meanwhile, if it is not empty; it may kill().
  [[nodiscard]] Event wait(std::function<void()> const& look) {
    if (inside_) {
      workers_.front().busy = false;
      return {0, {}};
    }
    std::vector<pollfd> lines;
    std::vector<int> whose;
    for (int w = 0; w < size(); ++w)
      if (auto const& worker = workers_[static_cast<std::size_t>(w)]; worker.busy) {
        lines.push_back({worker.line.get(), POLLIN, 0});
        whose.push_back(w);
      }
    for (;;) {
      int const ready = ::poll(lines.data(), lines.size(), look ? between_looks_ms : -1);
      if (look) look();
      if (ready <= 0) continue;  // a signal, or time to look
      for (std::size_t i = 0; i < lines.size(); ++i) {
        if (lines[i].revents == 0) continue;
        char words[most_words];
        ssize_t const got = ::recv(lines[i].fd, words, sizeof words, MSG_DONTWAIT);
        if (got > 1) workers_[static_cast<std::size_t>(whose[i])].reason = {words, static_cast<std::size_t>(got)};
        if (got != 1) return bury(whose[i]);
        workers_[static_cast<std::size_t>(whose[i])].busy = false;
        return {whose[i], {}};
      }
    }
  }

  /// Ends a worker that works; wait() then reports it dead, for this reason.
  void kill(int which, std::string reason) {
    auto& worker = workers_[static_cast<std::size_t>(which)];
    if (!worker.busy || worker.pid <= 0) return;
    worker.reason = std::move(reason);
    ::kill(worker.pid, SIGKILL);
  }
  [[nodiscard]] bool busy(int which) const { return workers_[static_cast<std::size_t>(which)].busy; }

 private:
  static constexpr int between_looks_ms = 200;
  static constexpr std::size_t most_words = 400;  // of a worker's last message

  struct Worker {
    pid_t pid = 0;
    io::FileDescriptor line;
    bool busy = false;
    std::string reason{};  // why it was killed, if it was
  };

  [[noreturn]] static void refuse(std::string const& what, int error) {
    throw Error(sentence("fed", what + " for a worker: " + io::reason_of(error), io::remedy_of(error)));
  }

  /// In the worker: commands one by one. Never returns, so that nothing of the parent's is unwound here.
  [[noreturn]] void serve_until_closed(int which, int line) {
    for (Command command = 0;;) {
      ssize_t const got = ::recv(line, &command, sizeof command, 0);
      if (got < 0 && errno == EINTR) continue;
      if (got != sizeof command) break;
      auto const last_words = attempt(which, command);
      if (!last_words.empty()) {
        (void)!::send(line, last_words.data(), std::min(last_words.size(), most_words), MSG_NOSIGNAL);
        std::fflush(nullptr);
        std::_Exit(1);
      }
      char const done = 1;
      if (::send(line, &done, 1, MSG_NOSIGNAL) != 1) break;
    }
    std::fflush(nullptr);
    std::_Exit(0);
  }

  /// Does it; returns why it could not, in at least two letters.
  std::string attempt(int which, Command command) {
    try {
      serve_(which, command);
      return {};
    } catch (std::exception const& error) {
      return std::string("failed: ") + error.what();
    } catch (...) {
      return "failed with an exception of unknown type";
    }
  }

  static void hang_up(Worker& worker) {
    if (worker.line.get() < 0) return;
    OpenLines::remove(worker.line.get());
    worker.line.close();
  }

  static int reap(pid_t pid) {
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
  }

  Event bury(int which) {
    auto& worker = workers_[static_cast<std::size_t>(which)];
    hang_up(worker);
    int const status = reap(worker.pid);
    auto const reason = std::exchange(worker, {}).reason;
    if (!reason.empty()) return {which, reason};
    if (WIFSIGNALED(status)) return {which, std::string("was killed by ") + ::strsignal(WTERMSIG(status))};
    return {which, "ended with code " + std::to_string(WEXITSTATUS(status))};
  }

  Serve serve_;
  bool inside_;
  std::vector<Worker> workers_;
};

}  // namespace pardl::inline PARDL_ABI::fed::detail
