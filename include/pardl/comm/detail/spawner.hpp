// SPDX-License-Identifier: MIT
/// \file   Children that never outlive their parent: forked, or started by exec where a fork alone would not be safe.
/// \layer  comm (std and POSIX only).
#pragma once

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/comm/detail/processes.hpp"
#include "pardl/comm/detail/signal_pipe.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::launching {

/// What a child is to find.
struct ChildPlan {
  std::vector<std::pair<std::string, std::string>> variables;  ///< to set; an empty value unsets
  int out = -1, err = -1;                                      ///< become its stdout and stderr; -1: the parent's
  bool quiet_input = false;                                    ///< stdin is /dev/null
  int keep = -1;                                               ///< a descriptor that lives through exec
};

/// Starts children, one way or the other.
class Spawner {
 public:
  /// \param arguments  argv of a child that starts by exec.
  explicit Spawner(std::vector<std::string> arguments)
      : arguments_(std::move(arguments)), parent_(::getpid()), by_exec_(has_threads()) {}

  /// Returns the child's pid; in a forked child 0, set up as planned. A child started by exec does not come back here
  /// but to the start of main. Either way the kernel kills it when the parent's thread ends, however that ends.
  /// \param signals  what catches them in the parent; in the child they do what they did before.
  pid_t start(ChildPlan const& plan, SignalPipe* signals = nullptr) {
    std::vector<char*> argv;
    std::vector<char*> envp;
    std::vector<std::string> variables;
    if (by_exec_) {  // after a fork among threads even malloc may hang: everything must be ready before
      variables = merged(plan);
      for (auto& argument : arguments_) argv.push_back(argument.data());
      for (auto& variable : variables) envp.push_back(variable.data());
      argv.push_back(nullptr);
      envp.push_back(nullptr);
    } else {
      std::fflush(nullptr);  // or both would print what is buffered
    }
    sigset_t all;
    sigset_t before;
    ::sigfillset(&all);  // a child must not catch a signal with its parent's handler
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t const pid = ::fork();
    if (pid != 0) {
      int const error = errno;
      ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
      if (pid < 0) throw system_error("cannot start another process", error);
      return pid;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent_) ::_exit(1);  // the parent went before the line above
    if (plan.out >= 0) ::dup2(plan.out, STDOUT_FILENO);
    if (plan.err >= 0) ::dup2(plan.err, STDERR_FILENO);
    if (plan.quiet_input) {
      int const null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
      if (null >= 0) ::dup2(null, STDIN_FILENO);
      if (null > STDERR_FILENO) ::close(null);
    }
    if (signals != nullptr) signals->release();
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (by_exec_) {
      if (plan.keep >= 0) ::fcntl(plan.keep, F_SETFD, 0);
      ::execve("/proc/self/exe", argv.data(), envp.data());
      constexpr std::string_view failed = "[launch] cannot start this program again through /proc/self/exe.\n";
      (void)!::write(STDERR_FILENO, failed.data(), failed.size());
      ::_exit(127);
    }
    for (auto const& [name, value] : plan.variables)
      value.empty() ? ::unsetenv(name.c_str()) : ::setenv(name.c_str(), value.c_str(), 1);
    return 0;
  }

 private:
  [[nodiscard]] static std::vector<std::string> merged(ChildPlan const& plan) {
    std::vector<std::string> all;
    for (char** variable = environ; *variable != nullptr; ++variable) {
      std::string_view const text = *variable;
      auto const name = text.substr(0, text.find('='));
      bool const replaced =
          std::any_of(plan.variables.begin(), plan.variables.end(), [&](auto const& set) { return set.first == name; });
      if (!replaced) all.emplace_back(text);
    }
    for (auto const& [name, value] : plan.variables)
      if (!value.empty()) all.push_back(name + "=" + value);
    return all;
  }

  std::vector<std::string> arguments_;
  pid_t parent_;
  bool by_exec_;
};

}  // namespace pardl::inline PARDL_ABI::detail::launching
