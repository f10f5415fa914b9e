// SPDX-License-Identifier: MIT
/// \file   Signals as bytes in a pipe, so that one poll() waits for them too, whichever thread gets them.
/// \layer  comm (std and POSIX only).
///
/// signalfd would do for one thread only: a thread that does not block a signal takes it away from the descriptor, and
/// a SIGCHLD that is lost this way leaves its reader waiting for ever.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <optional>

#include "pardl/comm/detail/processes.hpp"
#include "pardl/io/posix.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::launching {

/// Catches what ends a launcher or is meant for its children, and their ends; SIGPIPE it ignores. One at a time in a
/// process.
class SignalPipe {
 public:
  struct Signal {
    int number = 0;
    bool by_kernel = false;  ///< as from a key at the terminal, and not sent by a process
  };

  SignalPipe() : pipe_(make_pipe()) {
    ::fcntl(pipe_.read.get(), F_SETFL, O_NONBLOCK);
    ::fcntl(pipe_.write.get(), F_SETFL, O_NONBLOCK);
    write_end_ = pipe_.write.get();
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      struct sigaction action {};
      ::sigaction(numbers[i], nullptr, &before_[i]);
      // Under nohup a hang-up stays ignored. SIGCHLD must not: ranks would be reaped unseen.
      if (numbers[i] != SIGCHLD && before_[i].sa_handler == SIG_IGN) continue;
      action.sa_flags = SA_SIGINFO | SA_RESTART;
      action.sa_sigaction = note;
      if (numbers[i] == SIGPIPE) {
        action.sa_flags = 0;
        action.sa_handler = SIG_IGN;
      }
      ::sigaction(numbers[i], &action, nullptr);
    }
  }
  SignalPipe(SignalPipe const&) = delete;
  SignalPipe& operator=(SignalPipe const&) = delete;
  ~SignalPipe() { release(); }

  /// Readable when next() has something to say.
  [[nodiscard]] int descriptor() const noexcept { return pipe_.read.get(); }

  [[nodiscard]] std::optional<Signal> next() {
    std::array<unsigned char, 2> bytes{};
    if (::read(pipe_.read.get(), bytes.data(), bytes.size()) != 2) return std::nullopt;
    return Signal{bytes[0], bytes[1] != 0};
  }

  /// Signals do again what they did before. Safe in a child between fork and exec.
  void release() noexcept {
    if (write_end_.exchange(-1) < 0) return;
    for (std::size_t i = 0; i < numbers.size(); ++i) ::sigaction(numbers[i], &before_[i], nullptr);
  }

 private:
  static constexpr std::array<int, 8> numbers{SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCHLD, SIGPIPE};

  static void note(int number, siginfo_t* info, void*) {
    int const error = errno;
    std::array<unsigned char, 2> const bytes{static_cast<unsigned char>(number),
                                             static_cast<unsigned char>(info->si_code == SI_KERNEL)};
    if (int const pipe = write_end_; pipe >= 0) (void)!::write(pipe, bytes.data(), bytes.size());
    errno = error;
  }

  static inline std::atomic<int> write_end_{-1};
  static_assert(std::atomic<int>::is_always_lock_free);  // a signal handler reads it

  Pipe pipe_;
  std::array<struct sigaction, numbers.size()> before_{};
};

}  // namespace pardl::inline PARDL_ABI::detail::launching
