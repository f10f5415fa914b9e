// SPDX-License-Identifier: MIT
/// \file   The first statement of main: runs a program as the ranks of a group, whoever starts them.
/// \layer  comm.
///
///   int main(int argc, char** argv) {
///     return pardl::launch(argc, argv, [](pardl::ProcessGroup world) { … });
///   }
///
/// Started by torchrun, srun or mpirun, or with RANK and WORLD_SIZE set, the process is one of their ranks. Started by
/// nobody it is a world of one; with `--nproc N` it becomes a launcher itself, and starts N ranks on this host.
///
/// Options that launch takes from the command line, as `--option value` or `--option=value`, up to a bare `--`:
///   --nproc N|gpu|cpu   start N ranks, or one for each visible GPU, or for each usable core
///   --max-restarts K    with --nproc: after a failure start all ranks again, up to K times
///   --backend B         shm, gloo, nccl, …     --device D   cpu, cuda, or cuda:1
///   --timeout SECONDS   of one operation of the group, and of the ranks' first meeting
///
/// Each rank finds torchrun's variables, and an equal share of the cores in OMP_NUM_THREADS unless the user set it.
/// With more than one rank every line they print stands behind `[rank] `; rank 0 reads our input, the others /dev/null.
/// A MASTER_PORT that is set is the store's port, on 127.0.0.1 as always.
///
/// As a launcher it ends with the code of the rank that failed first, 128 plus the signal if one was killed, and names
/// it as the root cause. No rank, store or file is left behind, even if it is killed itself.
#pragma once

#include <fcntl.h>
#include <torch/cuda.h>
#include <torch/types.h>
#include <unistd.h>

#include <chrono>
#include <concepts>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <type_traits>
#include <utility>

#include "pardl/comm/detail/launch_arguments.hpp"
#include "pardl/comm/detail/supervisor.hpp"
#include "pardl/comm/detail/worker.hpp"
#include "pardl/comm/on_rank_failure.hpp"  // IWYU pragma: export
#include "pardl/comm/process_group.hpp"
#include "pardl/io/memory.hpp"
#include "pardl/policy/environment.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/whole_number.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// The options above, for the end of a program's own --help.
inline constexpr std::string_view launch_help =
    "Taken by pardl::launch:\n"
    "  --nproc N|gpu|cpu           start so many ranks on this host\n"
    "  --max-restarts K            start all of them again, up to K times, if one fails\n"
    "  --backend shm|gloo|nccl|self  instead of what fits device and hosts\n"
    "  --device cpu|cuda           instead of a GPU where there is one\n"
    "  --timeout SECONDS           of one operation of the group [600]";

struct LaunchOptions {
  OnRankFailure on_rank_failure = stop_all;        ///< keep_going: goes on without a rank, unless it is rank 0
  std::chrono::milliseconds grace{5'000};          ///< from SIGTERM to SIGKILL when the launcher ends the ranks
  std::chrono::milliseconds signal_grace{30'000};  ///< the same after a signal to the launcher: time to save the state
  std::chrono::milliseconds shutdown_limit{30'000};  ///< for the group to end after a rank's work is done
  bool keep_memory = true;  ///< freed memory stays with the process, since the next step takes it again (glibc)
  InitOptions init{};       ///< of the group; --backend, --device and --timeout override it
};

namespace detail {

template <class R>
concept exit_result = std::is_void_v<R> || std::convertible_to<R, int>;

template <class F, class... A>
concept main_of = std::invocable<F&, A...> && exit_result<std::invoke_result_t<F&, A...>>;

}  // namespace detail

/// What launch() can run.
template <class F>
concept launchable = detail::main_of<F, ProcessGroup> || detail::main_of<F, ProcessGroup, std::span<char* const>> ||
                     detail::main_of<F, ProcessGroup, int, char**>;

static_assert(launchable<void (*)(ProcessGroup)> && launchable<int (*)(ProcessGroup, int, char**)>);
static_assert(!launchable<void (*)()> && !launchable<std::string (*)(ProcessGroup)>);

namespace detail::launching {

/// Calls the user's main in the form it has.
template <launchable F>
int call_main(F& main, ProcessGroup const& world, std::vector<char*>& arguments) {
  auto const call = [&](auto&&... rest) -> int {
    if constexpr (std::is_void_v<std::invoke_result_t<F&, ProcessGroup, decltype(rest)...>>) {
      std::invoke(main, world, std::forward<decltype(rest)>(rest)...);
      return 0;
    } else {
      return static_cast<int>(std::invoke(main, world, std::forward<decltype(rest)>(rest)...));
    }
  };
  std::size_t const count = arguments.size() - 1;  // without the null at the end
  if constexpr (main_of<F, ProcessGroup, int, char**>)
    return call(static_cast<int>(count), arguments.data());
  else if constexpr (main_of<F, ProcessGroup, std::span<char* const>>)
    return call(std::span<char* const>(arguments.data(), count));
  else
    return call();
}

/// The store's process: serves on a socket that is bound already, until it is killed with its parent.
[[noreturn]] inline void host_store(int listener, int port) {
  sigset_t all;
  ::sigfillset(&all);  // a key pressed at the terminal is for the ranks; the store outlives them
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
  try {
    c10d::TCPStoreOptions options;
    options.port = static_cast<std::uint16_t>(port);
    options.isServer = true;
    options.waitWorkers = false;
    options.masterListenFd = listener;
    c10d::TCPStore const store("127.0.0.1", options);
    while (true) ::pause();
  } catch (...) {
    report_cause(current_cause(), Environment{});
  }
  ::_exit(1);
}

/// Counts GPUs in a child: a process that has asked CUDA once can no longer fork ranks.
[[noreturn]] inline void answer_gpu_count(int descriptor) {
  int count = 0;
  try {
    count = static_cast<int>(torch::cuda::device_count());
  } catch (...) {  // a broken driver counts as no GPU
  }
  ::_exit(io::write_all(descriptor, &count, sizeof count) == 0 ? 0 : 1);
}

[[nodiscard]] inline int count_gpus(std::vector<std::string> const& arguments) {
  auto answer = make_pipe();
  Spawner spawner(arguments);
  ChildPlan child;
  child.quiet_input = true;
  child.keep = answer.write.get();
  child.variables = {{"PARDL_ROLE", "gpus:" + std::to_string(answer.write.get())}};
  pid_t const pid = spawner.start(child);
  if (pid == 0) answer_gpu_count(answer.write.get());
  answer.write.close();
  int count = 0;
  bool const told = ::read(answer.read.get(), &count, sizeof count) == static_cast<ssize_t>(sizeof count);
  ::waitpid(pid, nullptr, 0);
  if (!told || count < 1)
    throw ConfigError(sentence("launch", "--nproc gpu, but no GPU is visible here",
                               "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --nproc cpu or a number"));
  return count;
}

/// A child of the launcher that started by exec and is no rank does its duty here.
inline void do_duty() {
  char const* const role = std::getenv("PARDL_ROLE");
  if (role == nullptr) return;
  std::string_view const text = role;
  auto const field = [&](std::size_t from) {
    return whole_number(text.substr(from, text.find(':', from) - from)).value_or(-1);
  };
  if (text.starts_with("gpus:")) answer_gpu_count(field(5));
  if (text.starts_with("store:")) host_store(field(6), field(text.find(':', 6) + 1));
}

/// Starts and watches the ranks. The exit code, or nothing in a process that is now one of them.
[[nodiscard]] inline std::optional<int> supervise(LaunchArguments const& arguments, Environment const& env,
                                                  LaunchOptions const& options) {
  // srun or mpirun with one task is a common way to get a machine, and leaves room for ranks of our own.
  bool const free_standing = env.launcher == Launcher::none ||
                             (env.size == 1 && (env.launcher == Launcher::slurm || env.launcher == Launcher::open_mpi ||
                                                env.launcher == Launcher::pmi));
  if (!free_standing)
    throw ConfigError(
        sentence("launch", env.rank, env.size,
                 "--nproc asks for ranks, but " + std::string(name(env.launcher)) + " has started this one",
                 "leave out --nproc, or start the program without " + std::string(name(env.launcher))));
  for (int const standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})  // else a pipe of ours would take its place
    if (::fcntl(standard, F_GETFD) < 0) (void)!::open("/dev/null", O_RDWR);
  SupervisorPlan plan;
  plan.ranks = *arguments.nproc == "gpu"   ? count_gpus(arguments.worker)
               : *arguments.nproc == "cpu" ? usable_cores()
                                           : whole_number(*arguments.nproc).value_or(1);
  plan.max_restarts = arguments.max_restarts;
  plan.keep_going = options.on_rank_failure == keep_going;
  plan.grace = options.grace;
  plan.signal_grace = options.signal_grace;
  plan.arguments = arguments.worker;
  plan.host_store = host_store;
  if (char const* const port = std::getenv("MASTER_PORT"); port != nullptr && *port != '\0') {
    auto const number = whole_number(port);
    if (!number || *number < 0 || *number > most_port)
      throw bad_option("MASTER_PORT", port, "set it to a free port, or unset it to have one chosen");
    plan.master_port = *number;
  }
  return Supervisor(std::move(plan)).run();
}

/// What the command line says of the group, over what the program says.
[[nodiscard]] inline InitOptions group_options(LaunchArguments const& arguments, InitOptions options) {
  if (arguments.backend) options.backend = *arguments.backend;
  if (arguments.timeout) options.timeout = *arguments.timeout;
  if (arguments.device) {
    try {
      options.device = torch::Device(*arguments.device);
    } catch (c10::Error const&) {
      throw bad_option("--device", *arguments.device, "use cpu, cuda, or cuda:1 and so on");
    }
  }
  return options;
}

}  // namespace detail::launching

/// Runs `main` as a rank of the world, or, with --nproc, starts the ranks that do and watches over them. Call it as the
/// first statement of main(): ranks are forked from here where nothing else runs yet, and start afresh otherwise.
///
/// \param main     takes (ProcessGroup), (ProcessGroup, std::span<char* const>) or (ProcessGroup, int, char**): the
///                 arguments without launch's own, the program's name first. Returns the exit code, or void for 0.
/// \returns what main() should return: that code, 1 after an exception, 2 after a ConfigError; in a launcher, the code
///          of the rank that failed first. Never throws. Each exception becomes one line on stderr with room and rank,
///          and, under torchrun, its error file. A rank of several that fails ends the process at once instead of
///          returning, so that it cannot hang on its peers: destructors of static objects do not run then.
/// \collective yes: every rank's process calls it.
template <class F>
int launch(int argc, char** argv, F&& main, LaunchOptions options = {}) {
  using Main = std::remove_reference_t<F>;
  static_assert(launchable<Main>,
                "pardl::launch runs a function of (pardl::ProcessGroup), (pardl::ProcessGroup, std::span<char* const>) "
                "or (pardl::ProcessGroup, int, char**) that returns void or int; wrap anything else in a lambda.");
  if constexpr (launchable<Main>) {
    detail::launching::do_duty();
    Environment env;
    detail::launching::LaunchArguments arguments;
    InitOptions group;
    try {
      env = read_environment();
      arguments = detail::launching::parse_launch_arguments({argv, static_cast<std::size_t>(argc)});
      group = detail::launching::group_options(arguments, options.init);
      if (arguments.nproc) {
        if (auto const code = detail::launching::supervise(arguments, env, options)) return *code;
        env = read_environment();
      }
    } catch (...) {
      auto const cause = detail::launching::current_cause();
      detail::launching::report_cause(cause, env);
      return cause.code;
    }
    if (options.keep_memory) io::keep_memory();
    return detail::launching::run_rank(env, std::move(group), options.shutdown_limit, [&](ProcessGroup const& world) {
      return detail::launching::call_main(main, world, arguments.rest);
    });
  } else {
    return 1;
  }
}

}  // namespace pardl::inline PARDL_ABI
