// SPDX-License-Identifier: MIT
// Ranks that fail, hang, are killed or told to end; launchers that are; and what cannot be started.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "pardl/comm/detail/error_file.hpp"
#include "pardl/comm/detail/processes.hpp"
#include "support/process.hpp"
#include "support/sentences.hpp"
#include "support/temporary_folder.hpp"

namespace {

namespace launching = pardl::detail::launching;
using namespace pardl::testing;

std::string const worker = PARDL_LAUNCH_WORKER;

/// A port that is free now, for the few cases in which the program must be told one.
std::string free_port() {
  int port = 0;
  auto const found = launching::listen_on_loopback(port);
  return std::to_string(port);
}

/// A pid that a rank printed as "[r] pid N".
pid_t printed_pid(std::string const& out, int rank) {
  std::string const mark = "[" + std::to_string(rank) + "] pid ";
  return static_cast<pid_t>(std::stol(out.substr(out.find(mark) + mark.size())));
}

}  // namespace

TEST_CASE("an exception in one rank ends all, with its code and one line that names it") {
  for (auto const* way : {"", "1"}) {  // by fork, by exec
    CAPTURE(way);
    auto const ended = run({worker, "--nproc", "2", "throw", "1"}, {{"LAUNCH_WORKER_THREAD", way}});
    CHECK(ended.code == 1);
    CHECK(ended.err.starts_with("[launch] rank 1/2 failed first (pid "));
    CHECK(has(ended.err, ", exit code 1): std::runtime_error: the \"reason\" in two lines\n"));
    CHECK(Process::count(ended.err, "reason") == 1);
    CHECK(Process::count(ended.err, "failed first") == 1);
  }
}

TEST_CASE("a code that main returns is the launcher's code") {
  auto const ended = run({worker, "--nproc", "2", "exit", "1", "7"});
  CHECK(ended.code == 7);
  CHECK(has(ended.err, "rank 1/2 failed first"));
  CHECK(has(ended.err, "exit code 7"));
  CHECK(Process::count(ended.err, "\n") == 1);  // the other rank was only told to end
}

TEST_CASE("a killed rank is named with its signal, even by ranks that noticed before the launcher did") {
  for (int const signal : {SIGKILL, SIGSEGV, SIGTERM}) {
    CAPTURE(signal);
    for (auto const& [mode, backend] :
         {std::pair("kill", "shm"), std::pair("kill-then-sum", "shm"), std::pair("kill-then-sum", "gloo")}) {
      CAPTURE(mode);
      CAPTURE(backend);
      auto const ended = run({worker, "--nproc", "2", "--backend", backend, mode, "0", std::to_string(signal)});
      CHECK(ended.code == 128 + signal);
      CHECK(has(ended.err, "[launch] rank 0/2 failed first (pid "));
      CHECK(has(ended.err, "killed by " + launching::signal_name(signal)));
    }
  }
}

TEST_CASE("what all ranks refuse is said once, with code 2") {
  auto const ended = run({worker, "--nproc", "3", "--max-restarts", "2", "config"});
  CHECK(ended.code == 2);
  CHECK(Process::count(ended.err, "[data] batch size 1 is below 2 ranks; raise --batch-size.") == 1);
  CHECK_FALSE(has(ended.err, "again"));  // a wrong option stays wrong
}

TEST_CASE("alone, the sentence stands by itself") {
  auto const ended = run({worker, "config"});
  CHECK(ended.code == 2);
  CHECK(ended.err == "[data] batch size 1 is below 2 ranks; raise --batch-size.\n");
  CHECK(run({worker, "throw", "0"}).err == "[launch] std::runtime_error: the \"reason\" in two lines\n");
  CHECK(run({worker, "throw", "0"}).code == 1);
}

TEST_CASE("a stopped rank ends the others by timeout, is named, and is not left behind") {
  for (auto const& [rank, backend] : {std::pair<std::string, std::string>("0", "gloo"), {"1", "gloo"}, {"1", "shm"}}) {
    CAPTURE(rank);
    CAPTURE(backend);
    auto const ended = run({worker, "--nproc", "2", "--backend", backend, "--timeout", "2", "stop-then-sum", rank});
    CHECK(ended.in_time);
    CHECK(ended.code == 1);
    CHECK(has(ended.err, rank == "0" ? "rank 1/2 failed first" : "rank 0/2 failed first"));
    CHECK(has(ended.err, "rank " + rank + "/2 (pid "));
    CHECK(has(ended.err, "had been stopped"));
  }
}

TEST_CASE("a rank that ignores every signal is killed when its grace is over") {
  Process process({worker, "--nproc", "2", "defiant"}, {.variables = {{"LAUNCH_WORKER_SHORT_GRACE", "1"}}});
  REQUIRE(process.wait_for("] pid ", 2));
  Watch const watch(descendants(process.pid()));
  process.send(SIGTERM);
  auto const ended = process.wait();
  CHECK(ended.in_time);
  CHECK(ended.code == 128 + SIGTERM);
  CHECK(watch.all_end());
}

TEST_CASE("a second signal does not wait for anybody") {
  Process process({worker, "--nproc", "2", "defiant"});
  REQUIRE(process.wait_for("] pid ", 2));
  Watch const watch(descendants(process.pid()));
  process.send(SIGTERM);
  process.send(SIGINT);
  auto const ended = process.wait();
  CHECK(ended.in_time);
  CHECK(ended.code > 128);
  CHECK(watch.all_end());
}

TEST_CASE("signals are forwarded, and the launcher ends as by that signal") {
  // By exec too: a second thread in the launcher may be the one that the kernel hands the signal to.
  for (auto const& [signal, way] :
       {std::pair{SIGINT, ""}, {SIGTERM, ""}, {SIGHUP, ""}, {SIGQUIT, ""}, {SIGTERM, "1"}}) {
    CAPTURE(signal);
    Process process({worker, "--nproc", "2", "wait"}, {.variables = {{"LAUNCH_WORKER_THREAD", way}}});
    REQUIRE(process.wait_for("] pid ", 2));
    Watch const watch(descendants(process.pid()));
    process.send(signal);
    auto const ended = process.wait();
    CHECK(ended.code == 128 + signal);
    CHECK(ended.err == "[launch] stopped by " + launching::signal_name(signal) + ".\n");
    CHECK(watch.all_end());
  }
}

TEST_CASE("ranks that save their state when told to end may end well") {
  Process process({worker, "--nproc", "2", "polite"});
  REQUIRE(process.wait_for("] pid ", 2));
  process.send(SIGTERM);
  auto const ended = process.wait();
  CHECK(ended.code == 0);
  CHECK(Process::count(ended.out, "] saved\n") == 2);
}

TEST_CASE("the interrupt key at a terminal ends all ranks") {
  Process process({worker, "--nproc", "2", "wait"}, {.variables = {{"TERM", "xterm"}}, .terminal = true});
  REQUIRE(process.wait_for("] pid ", 2));
  Watch const watch(descendants(process.pid()));
  process.type("\x03");
  CHECK(process.wait().code == 128 + SIGINT);
  CHECK(watch.all_end());
}

TEST_CASE("kill -9 of the launcher leaves no rank and no store, even if one rank is stopped") {
  for (auto const* way : {"", "1"}) {  // by fork, by exec
    CAPTURE(way);
    Process process({worker, "--nproc", "2", "defiant"}, {.variables = {{"LAUNCH_WORKER_THREAD", way}}});
    REQUIRE(process.wait_for("] pid ", 2));
    auto const pids = descendants(process.pid());
    CHECK(pids.size() == 3);
    Watch const watch(pids);
    ::kill(printed_pid(process.out(), 1), SIGSTOP);
    process.send(SIGKILL);
    CHECK(process.wait().code == 128 + SIGKILL);
    CHECK(watch.all_end());
  }
}

TEST_CASE("a rank's death does not take the store along, and the store's death ends the ranks") {
  Process process({worker, "--nproc", "2", "wait"});
  REQUIRE(process.wait_for("] pid ", 2));
  auto const pids = descendants(process.pid());
  Watch const watch(pids);
  for (pid_t const pid : pids)
    if (pid != printed_pid(process.out(), 0) && pid != printed_pid(process.out(), 1)) ::kill(pid, SIGKILL);
  auto const ended = process.wait();
  CHECK(ended.code == 1);
  CHECK(has(ended.err, "the process that served the store ended (killed by SIGKILL)"));
  CHECK(watch.all_end());
}

TEST_CASE("when nobody reads the output any more, everything ends as other programs do") {
  Process process({worker, "--nproc", "2", "print", "100000000"});
  REQUIRE(process.wait_for("line 10 "));
  Watch const watch(descendants(process.pid()));
  process.close_output();
  auto const ended = process.wait();
  CHECK(ended.in_time);
  CHECK(ended.code == 128 + SIGPIPE);
  CHECK(watch.all_end());
}

TEST_CASE("--max-restarts starts all ranks anew with a fresh store, as often as it says") {
  auto const mended = run({worker, "--nproc", "2", "--max-restarts", "2", "restart", "1", "2"});
  CHECK(mended.code == 0);
  CHECK(Process::count(mended.out, "] restart 2\n") == 2);
  CHECK(has(mended.err, "starting all ranks again, restart 1 of 2."));
  CHECK(has(mended.err, "starting all ranks again, restart 2 of 2."));
  auto const port = free_port();
  auto const failed = run({worker, "--nproc", "2", "--max-restarts=1", "restart", "1", "2"}, {{"MASTER_PORT", port}});
  CHECK(failed.code == 5);
  CHECK(Process::count(failed.err, "failed first") == 2);
  CHECK(Process::count(failed.err, "again") == 1);
}

TEST_CASE("a program that tolerates loss goes on without a rank, but not without rank 0") {
  Variables const tolerant = {{"LAUNCH_WORKER_KEEP_GOING", "1"}};
  auto const lost = run({worker, "--nproc", "3", "lose", "2"}, tolerant);
  CHECK(lost.code == 0);
  CHECK(has(lost.out, "[0] rank 0 done\n"));
  CHECK(has(lost.out, "[1] rank 1 done\n"));
  CHECK(has(lost.err, "[launch] rank 2/3 was lost (pid "));
  auto const first = run({worker, "--nproc", "3", "kill", "0"}, tolerant);
  CHECK(first.code == 128 + SIGKILL);
}

TEST_CASE("a port in use is one sentence") {
  int port = 0;
  auto const taken = launching::listen_on_loopback(port);
  auto const ended = run({worker, "--nproc", "2", "ranks"}, {{"MASTER_PORT", std::to_string(port)}});
  CHECK(ended.code == 2);
  CHECK(ended.err == "[launch] port " + std::to_string(port) +
                         " is in use; set MASTER_PORT to a free port, or unset it to have one chosen.\n");
}

TEST_CASE("options that cannot be right end in one sentence and code 2") {
  struct Wrong {
    std::vector<std::string> arguments;
    Variables variables;
    std::string said;
  };
  for (auto const& [arguments, variables, said] :
       {Wrong{{"--nproc", "0", "ranks"}, {}, "[launch] --nproc \"0\""},
        Wrong{{"--nproc"}, {}, "[launch] --nproc lacks its value"},
        Wrong{{"--device", "tpu9", "ranks"}, {}, "[launch] --device \"tpu9\""},
        Wrong{{"--nproc", "gpu", "ranks"},
              {{"CUDA_VISIBLE_DEVICES", "-1"}},
              "[launch] --nproc gpu, but no GPU is visible"},
        Wrong{{"--nproc", "gpu", "ranks"},
              {{"CUDA_VISIBLE_DEVICES", "-1"}, {"LAUNCH_WORKER_THREAD", "1"}},
              "[launch] --nproc gpu, but no GPU is visible"},
        Wrong{{"--nproc", "2", "ranks"}, {{"MASTER_PORT", "many"}}, "[launch] MASTER_PORT \"many\""},
        Wrong{{"ranks"}, {{"RANK", "0"}}, "[policy] RANK is set but not WORLD_SIZE"},
        Wrong{{"--nproc", "2", "ranks"},
              {{"RANK", "0"}, {"WORLD_SIZE", "1"}},
              "[launch] rank 0/1: --nproc asks for ranks, but RANK and WORLD_SIZE has started this one"}}) {
    CAPTURE(arguments);
    auto command = arguments;
    command.insert(command.begin(), worker);
    auto const ended = run(command, variables);
    CHECK(ended.code == 2);
    CHECK(ended.err.starts_with(said));
    CHECK(Process::count(ended.err, "\n") == 1);
    CHECK(ended.out.empty());
  }
}

TEST_CASE("one task of srun or mpirun leaves room for ranks of our own") {
  auto const ended = run({worker, "--nproc", "2", "ranks"}, {{"SLURM_JOB_ID", "1"},
                                                             {"SLURM_STEP_ID", "0"},
                                                             {"SLURM_PROCID", "0"},
                                                             {"SLURM_NTASKS", "1"},
                                                             {"SLURM_NNODES", "1"}});
  CHECK(ended.code == 0);
  CHECK(Process::count(ended.out, "/2 ") == 4);
}

TEST_CASE("ranks started by hand meet at MASTER_ADDR, and the one that fails names itself and waits for nobody") {
  auto const port = free_port();
  auto const rank = [&](std::string const& r, Variables more = {}) {
    more.merge(Variables{{"RANK", r}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", port}});
    return more;
  };
  {
    Process zero({worker, "ranks"}, {.variables = rank("0")});
    Process one({worker, "ranks"}, {.variables = rank("1")});
    CHECK(zero.wait().code == 0);
    CHECK(one.wait().code == 0);
    CHECK(one.out() == "rank 1/2 local 1/2 nodes=1 backend=shm sum 3\n");
  }
  TemporaryFolder const folder;
  auto const error_file = (folder / "error.json").string();
  Process zero({worker, "--timeout", "20", "throw", "1"}, {.variables = rank("0")});
  Process one({worker, "--timeout", "20", "throw", "1"},
              {.variables = rank("1", {{"TORCHELASTIC_ERROR_FILE", error_file}})});
  auto const failed = one.wait();
  CHECK(failed.code == 1);
  CHECK(has(failed.err, "[launch] rank 1/2: std::runtime_error: the \"reason\" in two lines\n"));
  auto const words = launching::parse_error_file(read_text(error_file)).value();
  CHECK(words.message == "std::runtime_error: the \"reason\" in two lines");
  CHECK_FALSE(words.symptom);
  auto const left = zero.wait();
  CHECK(left.code == 1);
  CHECK(has(left.err, "rank 1 says it failed: std::runtime_error: the \"reason\" in two lines"));
  // The other way round the store goes with the rank that fails, and yet its reason is heard, in one line.
  auto const again = free_port();
  auto const at = [&](std::string const& r) {
    return Variables{{"RANK", r}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", again}};
  };
  Process first({worker, "--timeout", "20", "throw", "0"}, {.variables = at("0")});
  Process second({worker, "--timeout", "20", "throw", "0"}, {.variables = at("1")});
  CHECK(first.wait().code == 1);
  auto const heard = second.wait();
  CHECK(heard.code == 1);
  CHECK(has(heard.err, "rank 0 says it failed: std::runtime_error: the \"reason\" in two lines"));
  CHECK(Process::count(heard.err, "\n") == 1);
}
