// SPDX-License-Identifier: MIT
/// \file   The launcher's parent process: starts the ranks and their store, relays what they print, and ends them all.
/// \layer  comm (std and POSIX only).
///
/// It has one thread and waits in one poll(): for what ranks print, for room to print it, for signals, for ends. So it
/// may fork again, for a restart, at any time. The store lives in a process of its own: no rank's death takes it along.
#pragma once

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
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
        run_id_("pardl-" + std::to_string(::getpid()) + "-" + std::to_string(unix_now_ns())) {
    set_up_screens();
  }

  /// The exit code, in the launcher. Nothing in a forked rank, whose variables now say which one it is.
  /// \throws ConfigError, Error if the ranks cannot be started; none is left then.
  std::optional<int> run() {
    catch_signals();
    for (int restart = 0;; ++restart) {
      try {
        if (!start_all(restart)) return std::nullopt;
        watch();
      } catch (...) {
        kill_all();
        release_signals();
        throw;
      }
      end_store();
      auto const failures = collect_failures();
      bool const again = !failures.empty() && signal_ == 0 && restart < plan_.max_restarts &&
                         exit_code(failures.front().status) != config_error_code && exit_code_of(failures) != 0;
      report(failures, again ? restart + 1 : 0);
      if (!again) {
        flush_screens();
        release_signals();
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

  void set_up_screens() {
    int const columns = terminal_columns(STDOUT_FILENO);
    screens_.emplace_back(STDOUT_FILENO, columns);
    // Two streams of one terminal share its one row; two of one file must not cut each other's lines.
    if (!same_output(STDOUT_FILENO, STDERR_FILENO))
      screens_.emplace_back(STDERR_FILENO, terminal_columns(STDERR_FILENO));
  }
  static int terminal_columns(int descriptor) {
    winsize size{};
    if (::isatty(descriptor) != 1) return 0;
    constexpr int usual = 80;
    return ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : usual;
  }
  [[nodiscard]] Screen& screen(std::size_t stream) { return screens_[std::min(stream, screens_.size() - 1)]; }

  void catch_signals() {
    sigset_t set;
    ::sigemptyset(&set);
    for (int const signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCHLD}) ::sigaddset(&set, signal);
    ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
    struct sigaction action {};
    action.sa_handler = SIG_DFL;
    ::sigaction(SIGCHLD, &action, &old_child_);  // an inherited SIG_IGN would reap the ranks unseen
    action.sa_handler = SIG_IGN;
    ::sigaction(SIGPIPE, &action, &old_pipe_);
    signals_ = io::FileDescriptor(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals_) throw system_error("cannot wait for signals");
  }
  void release_signals() {
    ::sigaction(SIGPIPE, &old_pipe_, nullptr);
    ::sigaction(SIGCHLD, &old_child_, nullptr);
    ::pthread_sigmask(SIG_SETMASK, &spawner_.mask(), nullptr);
  }

  /// False in a forked rank.
  bool start_all(int restart) {
    int port = plan_.master_port;
    auto const listener = listen_on_loopback(port);
    ranks_.clear();
    ranks_.resize(static_cast<std::size_t>(plan_.ranks));
    sent_.clear();
    deadline_.reset();
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
    store_ = spawner_.start(child);
    if (store_ == 0) {
      signals_.close();
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
        rank.relays.emplace_back(screen(s), "[" + std::to_string(r) + "] ", r == 0);
      }
      child.out = pipes[0].write.get();
      child.err = pipes[1].write.get();
    }
    child.variables = variables_of(r, port, restart, rank.words.get());
    rank.pid = spawner_.start(child);
    if (rank.pid == 0) {
      ::sigaction(SIGCHLD, &old_child_, nullptr);
      return false;
    }
    rank.running = true;
    for (std::size_t s = 0; s < 2; ++s) rank.streams[s] = std::move(pipes[s].read);
    return true;
  }

  /// torchrun's variables, and what a rank cannot find out by itself.
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> variables_of(int rank, int port, int restart,
                                                                              int words) const {
    auto const r = std::to_string(rank);
    auto const n = std::to_string(plan_.ranks);
    std::vector<std::pair<std::string, std::string>> set = {
        {"RANK", r},
        {"LOCAL_RANK", r},
        {"GROUP_RANK", "0"},
        {"ROLE_RANK", r},
        {"ROLE_NAME", "default"},
        {"WORLD_SIZE", n},
        {"LOCAL_WORLD_SIZE", n},
        {"GROUP_WORLD_SIZE", "1"},
        {"ROLE_WORLD_SIZE", n},
        {"MASTER_ADDR", "127.0.0.1"},
        {"MASTER_PORT", std::to_string(port)},
        {"TORCHELASTIC_RESTART_COUNT", std::to_string(restart)},
        {"TORCHELASTIC_MAX_RESTARTS", std::to_string(plan_.max_restarts)},
        {"TORCHELASTIC_RUN_ID", run_id_},
        {"TORCHELASTIC_USE_AGENT_STORE", "True"},
        {"TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT"},
        // The launcher's own descriptor, by a path that holds in every child: nothing to remove, whatever happens.
        {"TORCHELASTIC_ERROR_FILE", "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(words)},
        {"PARDL_RUN_ID", run_id_},
        {"PARDL_ROLE", ""},
    };
    // torchrun gives each rank one thread, which leaves most of a machine idle: share out the cores instead.
    if (std::getenv("OMP_NUM_THREADS") == nullptr && std::getenv("MKL_NUM_THREADS") == nullptr)
      set.emplace_back("OMP_NUM_THREADS", std::to_string(std::max(1, usable_cores() / plan_.ranks)));
    if (std::getenv("TORCH_NCCL_ASYNC_ERROR_HANDLING") == nullptr)
      set.emplace_back("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1");
    if (plan_.ranks > 1) {  // what rank 0 draws into its pipe is shown on our terminal, behind its prefix
      char const* const told = std::getenv("PARDL_TTY");
      char const* const kind = std::getenv("TERM");
      bool const refused = told != nullptr && std::string_view(told) == "0";
      bool const dumb = kind == nullptr || std::string_view(kind).empty() || std::string_view(kind) == "dumb";
      if (rank == 0 && !refused && !dumb && screens_[0].live()) {
        constexpr int prefix_columns = 4;
        set.emplace_back("PARDL_TTY", "1");
        set.emplace_back("COLUMNS", std::to_string(std::max(20, screens_[0].columns() - prefix_columns)));
      } else if (!refused) {
        set.emplace_back("PARDL_TTY", "");
      }
    }
    return set;
  }

  /// Until every rank has ended and everything that it printed is passed on.
  void watch() {
    while (std::any_of(ranks_.begin(), ranks_.end(), [](Rank const& rank) { return rank.running; })) {
      std::vector<pollfd> polled = {{signals_.get(), POLLIN, 0}};
      std::vector<std::pair<std::size_t, std::size_t>> sources;  // rank and stream of polled[1 + i]
      for (std::size_t r = 0; r < ranks_.size(); ++r)
        for (std::size_t s = 0; s < 2; ++s)
          if (ranks_[r].streams[s] && !screen(s).full()) {
            polled.push_back({ranks_[r].streams[s].get(), POLLIN, 0});
            sources.emplace_back(r, s);
          }
      for (auto const& s : screens_)
        if (s.pending()) polled.push_back({s.descriptor(), POLLOUT, 0});
      if (::poll(polled.data(), polled.size(), wait_ms()) < 0 && errno != EINTR) throw system_error("cannot wait");
      for (std::size_t i = 0; i < sources.size(); ++i)
        if (polled[1 + i].revents != 0) relay(ranks_[sources[i].first], sources[i].second);
      for (std::size_t i = 1 + sources.size(); i < polled.size(); ++i)
        if (polled[i].revents != 0) print(polled[i].fd);
      if (polled[0].revents != 0) read_signals();
      reap();
      if (deadline_ && Clock::now() >= *deadline_) {
        bool const told = !sent_.empty();
        deadline_.reset();
        told ? send_all(SIGKILL) : begin_end();
      }
    }
    // A process that a rank left behind may hold a pipe open for ever: take what is there, and no more.
    for (auto& rank : ranks_)
      for (std::size_t s = 0; s < rank.relays.size(); ++s) {
        while (relay(rank, s)) {
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
    for (auto& s : screens_) {
      if (s.descriptor() != descriptor || s.write_some() == 0) continue;
      s.discard();
      // Whoever read our output is gone, as after `| head`: end as any program would.
      if (signal_ == 0 && descriptor == STDOUT_FILENO) begin_end_by(SIGPIPE, SIGTERM);
    }
  }
  void flush_screens() {
    for (auto& s : screens_)
      while (s.pending())
        if (s.write_some() != 0) s.discard();
  }

  void read_signals() {
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
      auto const signal = static_cast<int>(info.ssi_signo);
      if (signal == SIGCHLD) continue;  // reap() looks anyway
      if (signal_ != 0) {               // asked twice
        send_all(SIGKILL);
        continue;
      }
      // A key pressed at the terminal has reached the whole group of processes, ranks included.
      begin_end_by(signal, info.ssi_code == SI_KERNEL ? 0 : signal);
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
  void note_stopped() {
    for (auto& rank : ranks_) rank.stopped_before = rank.running && is_stopped(rank.pid);
  }
  void send_all(int signal) {
    sent_.push_back(signal);
    for (auto const& rank : ranks_)
      if (rank.running) ::kill(rank.pid, signal);
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
  void say(std::string_view line) { screen(1).line("", line); }

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
  std::deque<Screen> screens_;  // stdout's, and stderr's unless it is the same place; relays point to them
  std::vector<Rank> ranks_;
  std::vector<int> sent_;                      // signals that the ranks were sent: ending by one of them is no failure
  std::optional<Clock::time_point> deadline_;  // when SIGKILL is due
  int signal_ = 0;                             // what the launcher was told to end by
  pid_t store_ = -1;
  std::optional<int> store_status_;  // if it ended by itself
  io::FileDescriptor signals_;
  struct sigaction old_child_ {};
  struct sigaction old_pipe_ {};
};

}  // namespace pardl::inline PARDL_ABI::detail::launching
