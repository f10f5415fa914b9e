// SPDX-License-Identifier: MIT
/// \file   This program once more, as a child that never outlives it: a signal to the parent alone ends both.
#pragma once

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/policy/error.hpp"

namespace parallel_from_scratch {

/// A signal asked this program to end.
struct Interrupted : pardl::Error {
  Interrupted(std::string const& text, int number) : Error(text), signal(number) {}
  int signal;
};

/// While it lives, what would end this program waits until its child has ended. A thread takes over the mask of the one
/// that makes it, and a signal goes to any thread that lets it: so make this before anything starts threads.
class HeldSignals {
 public:
  struct Ended {
    int status = 0;  ///< of the child, as of waitpid
    int signal = 0;  ///< that asked for the end; 0 if none did
  };

  HeldSignals() {
    ::sigemptyset(&ending_);
    for (int const number : {SIGINT, SIGTERM, SIGHUP}) {
      struct sigaction present {};
      ::sigaction(number, nullptr, &present);
      if (present.sa_handler != SIG_IGN) ::sigaddset(&ending_, number);  // under nohup a hang-up stays ignored
    }
    held_ = ending_;
    ::sigaddset(&held_, SIGCHLD);
    ::signal(SIGCHLD, SIG_DFL);  // where it is ignored it does not come, and no child has a status
    ::pthread_sigmask(SIG_BLOCK, &held_, &before_);
  }
  HeldSignals(HeldSignals const&) = delete;
  HeldSignals& operator=(HeldSignals const&) = delete;
  ~HeldSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  /// Runs this program with these arguments, its name first, to its end. A signal to end is passed on to it.
  [[nodiscard]] Ended run_again(std::vector<std::string> arguments) const {
    std::vector<char*> argv;  // ready before the fork: among threads even malloc may hang after it
    for (auto& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    timespec const now{};
    if (int const number = ::sigtimedwait(&ending_, nullptr, &now); number > 0) return {.signal = number};
    pid_t const parent = ::getpid();
    pid_t const child = ::fork();
    if (child < 0)
      throw pardl::Error(pardl::sentence("parallel_from_scratch",
                                         std::string("cannot start another process: ") + std::strerror(errno),
                                         "see ulimit -u"));
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);     // so that it ends after a SIGKILL of the parent, too
      if (::getppid() != parent) ::_exit(1);  // the parent went before the line above
      ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
      ::execv("/proc/self/exe", argv.data());
      constexpr std::string_view failed = "[parallel_from_scratch] cannot start again through /proc/self/exe.\n";
      (void)!::write(STDERR_FILENO, failed.data(), failed.size());
      ::_exit(127);
    }
    Ended ended;
    for (;;) {
      siginfo_t info{};
      int const number = ::sigwaitinfo(&held_, &info);
      if (number == SIGCHLD) {
        if (::waitpid(child, &ended.status, WNOHANG) == child) return ended;
      } else if (number > 0) {
        if (ended.signal == 0) ended.signal = number;
        // A key pressed at the terminal has reached the child already, and a second signal would not let it clean up.
        if (info.si_code != SI_KERNEL) ::kill(child, number);
      }
    }
  }

 private:
  sigset_t ending_{}, held_{}, before_{};
};

}  // namespace parallel_from_scratch
