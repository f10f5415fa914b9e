// SPDX-License-Identifier: MIT
/// \file   The launcher's parent process: starts the ranks and their store, relays what they print, and ends them all.
/// \layer  comm (std and POSIX only).
///
/// It has one thread and waits in one poll(): for what ranks print, for room to print it, for signals, for ends. So it
/// may fork again, for a restart, at any time. The store lives in a process of its own: no rank's death takes it along.
#pragma once

#include <poll.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/comm/detail/failures.hpp"
#include "pardl/comm/detail/line_relay.hpp"
#include "pardl/comm/detail/processes.hpp"
#include "pardl/comm/detail/rank_variables.hpp"
#include "pardl/comm/detail/signal_pipe.hpp"
#include "pardl/comm/detail/spawner.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::launching {

/// What to supervise.
struct SupervisorPlan {
  int ranks = 1;
  int max_restarts = 0;
  int master_port = 0;                                     ///< 0: any free one
  bool keep_going = false;                                 ///< losing a rank other than 0 does not stop the others
  std::chrono::milliseconds grace{};                       ///< from SIGTERM to SIGKILL after a failure
  std::chrono::milliseconds signal_grace{};                ///< the same after a signal to the launcher
  std::vector<std::string> arguments;                      ///< argv of a rank that starts by exec
  std::function<void(int listener, int port)> host_store;  ///< what the store's process does; does not return
};

/// One run of all ranks, with its restarts.
class Supervisor {
 public:
  explicit Supervisor(SupervisorPlan plan)
      : plan_(std::move(plan)),
        spawner_(plan_.arguments),
        run_id_("pardl-" + std::to_string(::getpid()) + "-" + std::to_string(unix_now_ns())) {}

  /// The exit code, in the launcher. Nothing in a forked rank, whose variables now say which one it is.
  /// \throws ConfigError, Error if the ranks cannot be started; none is left then.
  std::optional<int> run() {
    signals_.emplace();
    for (int restart = 0;; ++restart) {
      try {
        if (!start_all(restart)) return std::nullopt;
        watch();
      } catch (...) {
        kill_all();
        signals_.reset();
        throw;
      }
      end_store();
      auto const failures = collect_failures();
      bool const again = !failures.empty() && signal_ == 0 && restart < plan_.max_restarts &&
                         exit_code(failures.front().status) != config_error_code && exit_code_of(failures) != 0;
      report(failures, again ? restart + 1 : 0);
      if (!again) {
        signals_.reset();  // from here on a signal ends this process too, should nobody read what is left to print
        auto* const on_pipe = ::signal(SIGPIPE, SIG_IGN);
        screens_.flush();
        ::signal(SIGPIPE, on_pipe);
        return exit_code_of(failures);
      }
    }
  }

  /// What a rank returns for an option that can not be right: a restart would not mend it.
  static constexpr int config_error_code = 2;

 private:
  using Clock = std::chrono::steady_clock;

  struct Rank {
    pid_t pid = 0;
    int status = 0;
    bool running = false;
    bool stopped_before = false;  // was in state T when the end began
    std::int64_t ended_ns = 0;
    bool ended_late = false;  // after the launcher had told the ranks to end
    bool reported = false;
    io::FileDescriptor words;
    std::array<io::FileDescriptor, 2> streams;  // stdout and stderr, or none
    std::vector<LineRelay> relays;
  };

  /// False in a forked rank.
  bool start_all(int restart) {
    int port = plan_.master_port;
    auto const listener = listen_on_loopback(port);
    ranks_.clear();
    ranks_.resize(static_cast<std::size_t>(plan_.ranks));
    sent_.clear();
    deadline_.reset();
    store_status_.reset();
    start_store(listener, port);
    for (int r = 0; r < plan_.ranks; ++r)
      if (!start_rank(r, port, restart)) return false;
    return true;
  }

  void start_store(io::FileDescriptor const& listener, int port) {
    ChildPlan child;
    child.quiet_input = true;
    child.keep = listener.get();
    child.variables = {{"PARDL_ROLE", "store:" + std::to_string(listener.get()) + ":" + std::to_string(port)}};
    store_ = spawner_.start(child, &*signals_);
    if (store_ == 0) {
      plan_.host_store(listener.get(), port);
      ::_exit(1);
    }
  }

  bool start_rank(int r, int port, int restart) {
    Rank& rank = ranks_[static_cast<std::size_t>(r)];
    rank.words = make_nameless_file("pardl-error-file");
    ChildPlan child;
    child.quiet_input = r != 0;
    std::array<Pipe, 2> pipes;
    if (plan_.ranks > 1) {
      for (std::size_t s = 0; s < 2; ++s) {
        pipes[s] = make_pipe();
        ::fcntl(pipes[s].read.get(), F_SETFL, O_NONBLOCK);
        rank.relays.emplace_back(screens_.of(s), "[" + std::to_string(r) + "] ", r == 0);
      }
      child.out = pipes[0].write.get();
      child.err = pipes[1].write.get();
    }
    RankVariables const told{.rank = r,
                             .ranks = plan_.ranks,
                             .port = port,
                             .restart = restart,
                             .max_restarts = plan_.max_restarts,
                             .words = rank.words.get(),
                             .columns = plan_.ranks > 1 ? screens_.columns() : 0,
                             .run_id = run_id_};
    child.variables = told.list();
    rank.pid = spawner_.start(child, &*signals_);
    if (rank.pid == 0) return false;
    rank.running = true;
    for (std::size_t s = 0; s < 2; ++s) rank.streams[s] = std::move(pipes[s].read);
    return true;
  }

  /// Until every rank has ended and everything that it printed is passed on.
  void watch() {
    while (std::any_of(ranks_.begin(), ranks_.end(), [](Rank const& rank) { return rank.running; })) {
      std::vector<pollfd> polled = {{signals_->descriptor(), POLLIN, 0}};
      std::vector<std::pair<std::size_t, std::size_t>> sources;  // rank and stream of polled[1 + i]
      for (std::size_t r = 0; r < ranks_.size(); ++r)
        for (std::size_t s = 0; s < 2; ++s)
          if (ranks_[r].streams[s] && !screens_.of(s).full()) {
            polled.push_back({ranks_[r].streams[s].get(), POLLIN, 0});
            sources.emplace_back(r, s);
          }
      for (auto const& s : screens_.all())
        if (s.pending()) polled.push_back({s.descriptor(), POLLOUT, 0});
      if (::poll(polled.data(), polled.size(), wait_ms()) < 0 && errno != EINTR) throw system_error("cannot wait");
      for (std::size_t i = 0; i < sources.size(); ++i)
        if (polled[1 + i].revents != 0) relay(ranks_[sources[i].first], sources[i].second);
      for (std::size_t i = 1 + sources.size(); i < polled.size(); ++i)
        if (polled[i].revents != 0) print(polled[i].fd);
      if (polled[0].revents != 0) read_signals();
      reap();
      if (deadline_ && Clock::now() >= *deadline_) {
        next_step_of_the_end();
      }
    }
    // A process that a rank left behind may hold a pipe open, and write to it, for ever: take what a pipe can hold.
    constexpr int most_pieces = 64;
    for (auto& rank : ranks_)
      for (std::size_t s = 0; s < rank.relays.size(); ++s) {
        for (int piece = 0; piece < most_pieces && relay(rank, s); ++piece) {
        }
        rank.relays[s].finish();
        rank.streams[s].close();
      }
  }

  [[nodiscard]] int wait_ms() const {
    if (!deadline_) return -1;
    using std::chrono::ceil, std::chrono::milliseconds;
    return static_cast<int>(std::max<std::int64_t>(0, ceil<milliseconds>(*deadline_ - Clock::now()).count()));
  }

  /// Passes on one piece. False when there is none.
  bool relay(Rank& rank, std::size_t stream) {
    if (!rank.streams[stream]) return false;
    std::array<char, 65536> piece;
    auto const got = ::read(rank.streams[stream].get(), piece.data(), piece.size());
    if (got > 0) {
      rank.relays[stream].feed(std::string_view(piece.data(), static_cast<std::size_t>(got)));
      return true;
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    rank.relays[stream].finish();
    rank.streams[stream].close();
    return false;
  }

  void print(int descriptor) {
    for (auto& s : screens_.all()) {
      if (s.descriptor() != descriptor || s.write_some() == 0) continue;
      s.discard();
      // Whoever read our output is gone, as after `| head`: end as any program would.
      if (signal_ == 0 && descriptor == STDOUT_FILENO) begin_end_by(SIGPIPE, SIGTERM);
    }
  }
  void read_signals() {
    while (auto const signal = signals_->next()) {
      if (signal->number == SIGCHLD) continue;                       // reap() looks anyway
      if (signal->number == SIGUSR1 || signal->number == SIGUSR2) {  // a scheduler's word to the program, not an end
        for (auto const& rank : ranks_)
          if (rank.running) ::kill(rank.pid, signal->number);
        continue;
      }
      if (signal_ != 0) {  // asked twice
        send_all(SIGKILL);
        continue;
      }
      // A key pressed at the terminal has reached the whole group of processes, ranks included.
      begin_end_by(signal->number, signal->by_kernel ? 0 : signal->number);
    }
  }
  void begin_end_by(int signal, int forwarded) {
    signal_ = signal;
    if (sent_.empty()) {
      deadline_ = Clock::now() + plan_.signal_grace;
      note_stopped();
    }
    sent_.push_back(signal);
    if (forwarded != 0) send_all(forwarded);
    send_all(SIGCONT);
  }
  void begin_end() {
    if (!sent_.empty()) return;
    deadline_ = Clock::now() + plan_.grace;
    note_stopped();
    send_all(SIGTERM);
    send_all(SIGCONT);  // a stopped rank can only end by SIGTERM once it runs again
  }
  /// What is due when a deadline has passed: to ask, to kill, and to give up on a rank that a driver or a network file
  /// system holds inside the kernel, where no signal reaches it.
  void next_step_of_the_end() {
    deadline_.reset();
    if (sent_.empty()) return begin_end();
    if (sent_.back() != SIGKILL) return send_all(SIGKILL);
    for (auto& rank : ranks_) {
      if (!std::exchange(rank.running, false)) continue;
      rank.status = SIGKILL;
      rank.ended_late = true;
      say("[launch] rank " + std::to_string(&rank - ranks_.data()) + "/" + std::to_string(plan_.ranks) + " (pid " +
          std::to_string(rank.pid) + ") does not end even by SIGKILL; see what it waits for, and end it by hand.");
    }
  }
  void note_stopped() {
    for (auto& rank : ranks_) rank.stopped_before = rank.running && is_stopped(rank.pid);
  }
  void send_all(int signal) {
    sent_.push_back(signal);
    for (auto const& rank : ranks_)
      if (rank.running) ::kill(rank.pid, signal);
    constexpr std::chrono::seconds kernel_time{30};
    if (signal == SIGKILL) deadline_ = Clock::now() + kernel_time;
  }

  void reap() {
    bool failed = false;
    for (auto& rank : ranks_) {
      int status = 0;
      if (!rank.running || ::waitpid(rank.pid, &status, WNOHANG) != rank.pid) continue;
      rank.running = false;
      rank.status = status;
      rank.ended_ns = unix_now_ns();
      rank.ended_late = !sent_.empty();
      if (status == 0) continue;
      if (plan_.keep_going && &rank != &ranks_.front() && sent_.empty())
        report_loss(rank);
      else
        failed = true;
    }
    int status = 0;
    if (store_ > 0 && ::waitpid(store_, &status, WNOHANG) == store_) {
      store_ = -1;
      store_status_ = status;
      failed = true;
    }
    if (failed) begin_end();
    // After a loss nobody can wait for all any more: once rank 0 is done, the rest has had its time.
    bool const lost = std::any_of(ranks_.begin(), ranks_.end(), [](Rank const& rank) { return rank.reported; });
    if (lost && !ranks_.front().running && !deadline_ && sent_.empty()) deadline_ = Clock::now() + plan_.grace;
  }

  [[nodiscard]] Failure failure_of(Rank const& rank) const {
    Failure failure{.rank = static_cast<int>(&rank - ranks_.data()),
                    .size = plan_.ranks,
                    .pid = rank.pid,
                    .status = rank.status,
                    .unix_ns = rank.ended_ns,
                    .late = rank.ended_late,
                    .words = parse_error_file(contents(rank.words))};
    if (failure.words && failure.words->unix_ns > 0) failure.unix_ns = failure.words->unix_ns;
    return failure;
  }
  void report_loss(Rank& rank) {
    rank.reported = true;
    auto const left = std::count_if(ranks_.begin(), ranks_.end(), [](Rank const& other) { return other.running; });
    say("[launch] " + describe(failure_of(rank), "was lost"));
    say("[launch] " + std::to_string(left) + (left == 1 ? " rank goes on." : " ranks go on."));
  }

  /// Ranks that failed by themselves, the root cause first: not those that ended because they were told to.
  [[nodiscard]] std::vector<Failure> collect_failures() const {
    std::vector<Failure> failures;
    for (auto const& rank : ranks_) {
      if (rank.status == 0 || rank.reported) continue;
      auto failure = failure_of(rank);
      bool const told =
          rank.ended_late &&
          (!WIFSIGNALED(rank.status) || std::find(sent_.begin(), sent_.end(), WTERMSIG(rank.status)) != sent_.end());
      if (!told || failure.words) failures.push_back(std::move(failure));
    }
    sort_by_cause(failures);
    return failures;
  }

  [[nodiscard]] int exit_code_of(std::vector<Failure> const& failures) const {
    bool const clean = std::all_of(ranks_.begin(), ranks_.end(), [](Rank const& rank) { return rank.status == 0; });
    if (signal_ == SIGPIPE || (signal_ != 0 && !clean)) return 128 + signal_;
    if (store_status_) return 1;
    if (plan_.keep_going) return exit_code(ranks_.front().status);
    return failures.empty() ? 0 : exit_code(failures.front().status);
  }

  void report(std::vector<Failure> const& failures, int next_restart) {
    if (signal_ != 0 && signal_ != SIGPIPE) say("[launch] stopped by " + signal_name(signal_) + ".");
    if (store_status_)
      say("[launch] the process that served the store ended (" +
          (WIFSIGNALED(*store_status_) ? "killed by " + signal_name(WTERMSIG(*store_status_))
                                       : "exit code " + std::to_string(WEXITSTATUS(*store_status_))) +
          "); all ranks were stopped.");
    auto told = failures;  // after a signal, what ranks say of each other's ends is noise
    if (signal_ != 0) std::erase_if(told, [](Failure const& failure) { return failure.late; });
    for (auto const& line : account(told)) say(line);
    for (std::size_t r = 0; r < ranks_.size(); ++r)
      if (ranks_[r].stopped_before)
        say("[launch] rank " + std::to_string(r) + "/" + std::to_string(plan_.ranks) + " (pid " +
            std::to_string(ranks_[r].pid) + ") had been stopped, as by SIGSTOP; the others may have waited for it.");
    if (next_restart > 0)
      say("[launch] starting all ranks again, restart " + std::to_string(next_restart) + " of " +
          std::to_string(plan_.max_restarts) + ".");
  }
  void say(std::string_view line) { screens_.of(1).line("", line); }

  void end_store() {
    if (store_ <= 0) return;
    ::kill(store_, SIGKILL);
    ::waitpid(store_, nullptr, 0);
    store_ = -1;
  }
  void kill_all() {
    send_all(SIGKILL);
    for (auto& rank : ranks_)
      if (rank.running) ::waitpid(rank.pid, nullptr, 0);
    end_store();
  }

  SupervisorPlan plan_;
  Spawner spawner_;
  std::string run_id_;
  Screens screens_;
  std::vector<Rank> ranks_;
  std::vector<int> sent_;                      // signals that the ranks were sent: ending by one of them is no failure
  std::optional<Clock::time_point> deadline_;  // when SIGKILL is due
  int signal_ = 0;                             // what the launcher was told to end by
  pid_t store_ = -1;
  std::optional<int> store_status_;  // if it ended by itself
  std::optional<SignalPipe> signals_;
};

}  // namespace pardl::inline PARDL_ABI::detail::launching
