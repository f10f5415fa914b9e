// SPDX-License-Identifier: MIT
// A program as a user would write one, for tests that start it as real processes. What it does is its first argument.
#include <malloc.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/launch.hpp"

namespace {

// For the way by exec: a second thread that exists before main makes a fork unusable.
struct SecondThread {
  SecondThread() {
    if (std::getenv("LAUNCH_WORKER_THREAD") != nullptr) std::thread([] { ::pause(); }).detach();
  }
} const second_thread;

std::string variable(char const* name) {
  char const* const value = std::getenv(name);
  return value == nullptr ? "-" : value;
}

[[noreturn]] void wait_for_ever() {
  while (true) ::pause();
}

int run(pardl::ProcessGroup const& world, std::span<char* const> arguments) {
  auto const word = [&](std::size_t i) { return i < arguments.size() ? std::string(arguments[i]) : std::string(); };
  auto const number = [&](std::size_t i, int otherwise) {
    auto const text = word(i);
    return text.empty() || text.find_first_not_of("0123456789") != std::string::npos ? otherwise : std::stoi(text);
  };
  std::string const what = word(1);
  int const chosen = number(2, 0);  // the rank that misbehaves
  bool const mine = world.rank() == chosen;

  if (what == "ranks") {
    double const sum = pardl::all_sum(world, static_cast<double>(world.rank() + 1));
    std::printf("rank %d/%d local %d/%d nodes=%d backend=%s sum %g\n", world.rank(), world.size(), world.local_rank(),
                world.local_size(), world.nodes(), std::string(world.backend()).c_str(), sum);
  } else if (what == "arguments") {
    for (std::size_t i = 1; i < arguments.size(); ++i) std::printf("<%s>", arguments[i]);
    std::printf(" null=%d timeout=%lld device=%s\n", arguments.data()[arguments.size()] == nullptr,
                static_cast<long long>(world.timeout().count()), world.device().str().c_str());
  } else if (what == "variables") {
    for (char const* const name :
         {"RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
          "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS",
          "TORCHELASTIC_USE_AGENT_STORE", "OMP_NUM_THREADS", "PARDL_TTY", "COLUMNS"})
      std::printf("%s=%s ", name, variable(name).c_str());
    std::printf("threads=%d\n", at::get_num_threads());
  } else if (what == "mapped") {  // bytes that malloc has from mmap while it holds a large block
    std::vector<char> const block(64 << 20, 'x');
    std::printf("mapped %d of %d\n", ::mallinfo2().hblkhd >= block.size(), block.back() == 'x');
  } else if (what == "exit") {  // returns a code
    if (mine) return number(3, 1);
    wait_for_ever();
  } else if (what == "throw") {
    if (mine) throw std::runtime_error("the \"reason\"\nin two lines");
    (void)pardl::all_sum(world, 1.0);  // waits for the rank that never comes
  } else if (what == "config") {
    throw pardl::ConfigError(pardl::sentence("data", "batch size 1 is below 2 ranks", "raise --batch-size"));
  } else if (what == "kill") {
    if (mine) ::kill(::getpid(), number(3, SIGKILL));
    wait_for_ever();
  } else if (what == "kill-then-sum") {
    if (mine) ::kill(::getpid(), number(3, SIGKILL));
    (void)pardl::all_sum(world, 1.0);
  } else if (what == "stop-then-sum") {
    if (mine) ::kill(::getpid(), SIGSTOP);
    (void)pardl::all_sum(world, 1.0);
  } else if (what == "lose") {  // one rank is lost, the others finish
    if (mine) ::kill(::getpid(), SIGKILL);
    std::printf("rank %d done\n", world.rank());
  } else if (what == "restart") {  // fails until it has been restarted often enough
    (void)pardl::all_sum(world, 1.0);
    if (mine && std::stoi(variable("TORCHELASTIC_RESTART_COUNT")) < number(3, 1)) return 5;
    (void)pardl::all_sum(world, 1.0);
    std::printf("restart %s\n", variable("TORCHELASTIC_RESTART_COUNT").c_str());
  } else if (what == "input") {
    std::string line;
    std::getline(std::cin, line);
    std::printf("rank %d read <%s>\n", world.rank(), line.c_str());
  } else if (what == "wait") {
    std::printf("pid %d\n", static_cast<int>(::getpid()));
    wait_for_ever();
  } else if (what == "defiant") {  // ends by nothing but SIGKILL
    for (int const signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) std::signal(signal, SIG_IGN);
    std::printf("pid %d\n", static_cast<int>(::getpid()));
    wait_for_ever();
  } else if (what == "polite") {  // saves its state on SIGTERM and ends well
    static int pipe[2];           // the handler may run in a transport's thread, where a flag alone would wake nobody
    if (::pipe(pipe) != 0) return 1;
    struct sigaction action {};
    action.sa_handler = [](int) { (void)!::write(pipe[1], "", 1); };
    ::sigaction(SIGTERM, &action, nullptr);
    std::printf("pid %d\n", static_cast<int>(::getpid()));
    char told = 0;
    while (::read(pipe[0], &told, 1) != 1) {
    }
    std::printf("saved\n");
  } else if (what == "print") {  // many lines, in pieces
    for (int i = 0; i < chosen; ++i) {
      std::string const line = "rank " + std::to_string(world.rank()) + " line " + std::to_string(i) + " end\n";
      (void)!::write(STDOUT_FILENO, line.data(), line.size() / 2);
      (void)!::write(STDOUT_FILENO, line.data() + line.size() / 2, line.size() - line.size() / 2);
    }
    std::cerr << "tail without an end";
  } else {
    throw pardl::ConfigError(pardl::sentence("launch_worker", "unknown mode \"" + what + "\"", "read the source"));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  pardl::LaunchOptions options;
  if (std::getenv("LAUNCH_WORKER_KEEP_GOING") != nullptr) options.on_rank_failure = pardl::keep_going;
  if (std::getenv("LAUNCH_WORKER_SHORT_GRACE") != nullptr)
    options.grace = options.signal_grace = std::chrono::milliseconds(200);
  return pardl::launch(argc, argv, run, options);
}
