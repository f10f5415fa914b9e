// SPDX-License-Identifier: MIT
// What launch promises when all goes well; tests/comm/launch_faults.test.cpp has the rest.
#include "pardl/comm/detail/launch_arguments.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "pardl/comm/detail/error_file.hpp"
#include "pardl/comm/detail/failures.hpp"
#include "pardl/comm/detail/line_relay.hpp"
#include "support/process.hpp"
#include "support/temporary_folder.hpp"

namespace {

namespace launching = pardl::detail::launching;
using namespace pardl::testing;

std::string const worker = PARDL_LAUNCH_WORKER;

launching::LaunchArguments parse(std::vector<std::string> arguments) {
  static std::vector<std::string> kept;  // the result points into it
  kept = std::move(arguments);
  std::vector<char*> argv;
  for (auto& argument : kept) argv.push_back(argument.data());
  return launching::parse_launch_arguments(argv);
}

std::vector<std::string> rest_of(launching::LaunchArguments const& arguments) {
  std::vector<std::string> rest;
  for (auto const* each : arguments.rest)
    if (each != nullptr) rest.emplace_back(each);
  return rest;
}

using Strings = std::vector<std::string>;

}  // namespace

TEST_CASE("the launcher's options are taken out, and everything else is handed on in order") {
  auto const found = parse({"train", "--lr", "0.1", "--nproc", "4", "data", "--backend=gloo", "--max-restarts=2",
                            "--device", "cuda", "--timeout", "2.5", "--nprocs=9", "-"});
  CHECK(found.nproc == "4");
  CHECK(found.max_restarts == 2);
  CHECK(found.backend == "gloo");
  CHECK(found.device == "cuda");
  CHECK(found.timeout == std::chrono::milliseconds(2500));
  CHECK(rest_of(found) == Strings{"train", "--lr", "0.1", "data", "--nprocs=9", "-"});
  CHECK(found.rest.back() == nullptr);
  CHECK(found.worker ==
        Strings{"train", "--lr", "0.1", "data", "--backend=gloo", "--device=cuda", "--timeout=2.5", "--nprocs=9", "-"});
}

TEST_CASE("after a bare -- nothing is touched, and the program's name never is") {
  auto const found = parse({"--nproc", "--", "--nproc", "x", "--", "--timeout"});
  CHECK_FALSE(found.nproc);
  CHECK(rest_of(found) == Strings{"--nproc", "--", "--nproc", "x", "--", "--timeout"});
}

TEST_CASE("the last of two equal options counts, and gpu and cpu are numbers of ranks") {
  CHECK(parse({"p", "--nproc=2", "--nproc=gpu"}).nproc == "gpu");
  CHECK(parse({"p", "--nproc", "cpu"}).nproc == "cpu");
}

TEST_CASE("options that lack a value, or have an impossible one, are refused by name") {
  for (Strings const& arguments :
       {Strings{"p", "--nproc"}, Strings{"p", "--nproc="}, Strings{"p", "--nproc", "--"}, Strings{"p", "--nproc", "0"},
        Strings{"p", "--nproc", "-2"}, Strings{"p", "--nproc", "two"}, Strings{"p", "--nproc=2", "--max-restarts=-1"},
        Strings{"p", "--max-restarts", "1"}, Strings{"p", "--timeout", "0"}, Strings{"p", "--timeout", "10s"},
        Strings{"p", "--timeout=nan"}, Strings{"p", "--timeout=inf"}}) {
    CAPTURE(arguments);
    auto const said = what_of<pardl::ConfigError>([&] { parse(arguments); });
    auto const option = arguments[arguments[1].starts_with("--nproc=2") ? 2 : 1];
    CHECK(said.starts_with("[launch] "));
    CHECK(said.find(option.substr(0, option.find('='))) != std::string::npos);
  }
}

TEST_CASE("lines that come in pieces go out whole, each behind its rank") {
  launching::Screen screen(-1);
  launching::LineRelay zero(screen, "[0] ", true);
  launching::LineRelay one(screen, "[1] ", false);
  zero.feed("hel");
  one.feed("x\ny");
  zero.feed("lo\n\nlast");
  one.feed("z\n");
  zero.finish();
  one.finish();
  CHECK(screen.queue() == "[1] x\n[0] hello\n[0] \n[1] yz\n[0] last\n");
}

TEST_CASE("a file gets every byte of a progress bar") {
  launching::Screen screen(-1);
  launching::LineRelay zero(screen, "[0] ", true);
  zero.feed("\r10%\r");
  zero.feed("20%\n");
  CHECK(screen.queue() == "[0] \r10%\r20%\n");
}

TEST_CASE("a terminal shows rank 0's unfinished line, below what others print, until it is whole") {
  launching::Screen screen(-1, 80);
  launching::LineRelay zero(screen, "[0] ", true);
  launching::LineRelay one(screen, "[1] ", false);
  auto const printed = [&] {
    std::string text(screen.queue());
    screen.discard();
    return text;
  };
  std::string const erase = "\r\x1b[K";
  zero.feed("\r10%");
  CHECK(printed() == "[0] 10%");
  zero.feed("\r20%");
  CHECK(printed() == erase + "[0] 20%");
  one.feed("hello\nhalf");
  CHECK(printed() == erase + "[1] hello\n[0] 20%");
  zero.feed("\r99%\ndone\n");
  CHECK(printed() == erase + "[0] 99%\n[0] done\n");
  one.finish();
  CHECK(printed() == "[1] half\n");
}

TEST_CASE("a line too long for the terminal's row is not shown before it is whole") {
  launching::Screen screen(-1, 10);
  launching::LineRelay zero(screen, "[0] ", true);
  zero.feed("123456");
  CHECK(screen.queue().empty());
  zero.feed("\r\x1b[1mäöü\x1b[0m");  // five columns behind the prefix's four are few enough, whatever the bytes
  CHECK(screen.queue() == "[0] \x1b[1mäöü\x1b[0m");
}

TEST_CASE("an endless line does not fill the memory") {
  launching::Screen screen(-1);
  launching::LineRelay one(screen, "", false);
  std::string const piece(1 << 16, 'x');
  for (int i = 0; i < 100; ++i) {
    one.feed(piece);
    screen.discard();
  }
  one.finish();
  CHECK(screen.queue().size() < std::size_t{3} << 20);
}

TEST_CASE("last words survive their file, whatever bytes they hold") {
  launching::LastWords const words{
      .message = "E: \"a\\b\"\n\tü \x01", .unix_ns = 1'700'000'000'123'456'789, .symptom = true};
  auto const text = launching::error_file_text(words);
  std::string const message = R"("E: \"a\\b\"\u000a\u0009ü \u0001")";
  CHECK(text == R"({"message":{"message":)" + message + R"(,"extraInfo":{"py_callstack":)" + message +
                    R"(,"timestamp":"1700000001","timestamp_ns":"1700000000123456789","symptom":"1"}}})");
  auto const read = launching::parse_error_file(text).value();
  CHECK(read.message == words.message);
  CHECK(read.unix_ns == words.unix_ns);
  CHECK(read.symptom);
  CHECK(launching::json_string("\xff\xc3(\xe2\x82") == R"("?)"
                                                       R"(?(?)"
                                                       R"(?")");
  CHECK_FALSE(launching::parse_error_file("").has_value());
  CHECK_FALSE(launching::parse_error_file("{\"message\":{\"mess").has_value());
}

TEST_CASE("the root cause is the earliest failure that is not an echo of another") {
  using launching::Failure, launching::LastWords;
  std::vector<Failure> failures = {
      {.rank = 0, .unix_ns = 10, .words = LastWords{.message = "peer closed", .unix_ns = 10, .symptom = true}},
      {.rank = 1, .unix_ns = 30},
      {.rank = 2, .unix_ns = 20, .words = LastWords{.message = "bad file", .unix_ns = 20}},
      {.rank = 3, .unix_ns = 5, .words = LastWords{.message = "timeout", .unix_ns = 5, .symptom = true}}};
  launching::sort_by_cause(failures);
  CHECK(failures[0].rank == 2);
  CHECK(failures[1].rank == 1);
  CHECK(failures[2].rank == 3);
  CHECK(failures[3].rank == 0);
}

TEST_CASE("the account has a line for each failure, and none twice") {
  using launching::Failure, launching::LastWords;
  LastWords const same{.message = "[data] no file."};
  auto const lines = launching::account({{.rank = 2, .size = 4, .pid = 7, .status = 1 << 8, .words = same},
                                         {.rank = 0, .size = 4, .pid = 5, .status = 1 << 8, .words = same},
                                         {.rank = 1, .size = 4, .pid = 6, .status = SIGKILL},
                                         {.rank = 3, .size = 4, .pid = 8, .status = 1 << 8, .words = same}});
  REQUIRE(lines.size() == 3);
  CHECK(lines[0] == "[launch] rank 2/4 failed first (pid 7, exit code 1): [data] no file.");
  CHECK(lines[1].starts_with("[launch] rank 1/4 failed then (pid 6, killed by SIGKILL)"));
  CHECK(lines[2] == "[launch] 2 other ranks said the same.");
}

TEST_CASE("without a launcher the program is a world of one in its own process") {
  auto const ended = run({worker, "ranks"});
  CHECK(ended.code == 0);
  CHECK(ended.out == "rank 0/1 local 0/1 nodes=1 backend=self sum 1\n");
  CHECK(ended.err.empty());
}

TEST_CASE("large blocks stay with a rank, unless the user has told malloc otherwise") {
  for (auto const* ranks : {"--nproc=1", "--nproc=2"}) {
    CHECK(run({worker, ranks, "mapped"}).out.find("mapped 0 of 1") != std::string::npos);
    CHECK(run({worker, ranks, "mapped"}, {{"MALLOC_TRIM_THRESHOLD_", "131072"}}).out.find("mapped 1 of 1") !=
          std::string::npos);
  }
}

TEST_CASE("--nproc starts ranks that find each other, and puts each line behind its rank") {
  for (auto const* way : {"", "1"}) {  // by fork; by exec, because of a second thread
    CAPTURE(way);
    auto const ended = run({worker, "--nproc", "3", "ranks"}, {{"LAUNCH_WORKER_THREAD", way}});
    CHECK(ended.code == 0);
    CHECK(ended.err.empty());
    for (std::string const r : {"0", "1", "2"})
      CHECK(Process::count(ended.out, "[" + r + "] rank " + r + "/3 local " + r + "/3 nodes=1 backend=shm sum 6\n") ==
            1);
    CHECK(Process::count(ended.out, "\n") == 3);
  }
}

TEST_CASE("one rank under --nproc 1 writes straight to our output") {
  auto const ended = run({worker, "--nproc=1", "ranks"});
  CHECK(ended.code == 0);
  CHECK(ended.out.starts_with("rank 0/1 "));
}

TEST_CASE("ranks find torchrun's variables, and a fair share of the cores") {
  auto const ended = run({worker, "--nproc", "2", "variables"}, {{"OMP_NUM_THREADS", ""}, {"MKL_NUM_THREADS", ""}});
  CHECK(ended.code == 0);
  for (std::string const r : {"0", "1"})
    CHECK(ended.out.find("[" + r + "] RANK=" + r + " LOCAL_RANK=" + r + " GROUP_RANK=0 ROLE_RANK=" + r +
                         " WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 GROUP_WORLD_SIZE=1 ROLE_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 "
                         "MASTER_PORT=") != std::string::npos);
  auto const threads = std::to_string(std::max(1, launching::usable_cores() / 2));
  CHECK(Process::count(ended.out,
                       "TORCHELASTIC_RESTART_COUNT=0 TORCHELASTIC_MAX_RESTARTS=0 "
                       "TORCHELASTIC_USE_AGENT_STORE=True OMP_NUM_THREADS=" +
                           threads + " ") == 2);
  CHECK(Process::count(ended.out, "threads=" + threads + "\n") == 2);
}

TEST_CASE("the user's number of threads is left alone") {
  Variables const user = {{"OMP_NUM_THREADS", "3"}};
  auto const alone = run({worker, "variables"}, user).out;
  auto const ended = run({worker, "--nproc", "2", "variables"}, user);
  CHECK(Process::count(ended.out, " OMP_NUM_THREADS=3 ") == 2);
  CHECK(Process::count(ended.out, alone.substr(alone.find("threads="))) == 2);  // what LibTorch makes of it
}

TEST_CASE("the program gets its own arguments, and the group the launcher's options, alone and in ranks") {
  for (Strings const& launcher : {Strings{}, Strings{"--nproc", "2"}}) {
    Strings command = {worker};
    command.insert(command.end(), launcher.begin(), launcher.end());
    for (auto const* each : {"arguments", "--timeout=4.5", "a", "--device", "cpu", "--x=1", "--", "--nproc", "7"})
      command.emplace_back(each);
    auto const ended = run(command);
    CHECK(ended.code == 0);
    CHECK(Process::count(ended.out, "<arguments><a><--x=1><--><--nproc><7> null=1 timeout=4500 device=cpu\n") ==
          (launcher.empty() ? 1 : 2));
  }
}

TEST_CASE("MASTER_PORT is honoured") {
  int port = 0;
  { auto const found = launching::listen_on_loopback(port); }  // free again
  auto const ended = run({worker, "--nproc", "2", "variables"}, {{"MASTER_PORT", std::to_string(port)}});
  CHECK(ended.code == 0);
  CHECK(Process::count(ended.out, " MASTER_PORT=" + std::to_string(port) + " ") == 2);
}

TEST_CASE("rank 0 reads our input, the others read nothing") {
  auto const ended = Process({worker, "--nproc", "2", "input"}, {.variables = {}, .input = "hello\n"}).wait();
  CHECK(ended.code == 0);
  CHECK(ended.out.find("[0] rank 0 read <hello>\n") != std::string::npos);
  CHECK(ended.out.find("[1] rank 1 read <>\n") != std::string::npos);
}

TEST_CASE("on a terminal rank 0 is told so, and of the columns that its prefix leaves") {
  Process process({worker, "--nproc", "2", "variables"},
                  {.variables = {{"TERM", "xterm"}, {"PARDL_TTY", ""}}, .terminal = true});
  auto const ended = process.wait();
  CHECK(ended.code == 0);
  CHECK(Process::count(ended.out, "PARDL_TTY=1 COLUMNS=96 ") == 1);
  CHECK(Process::count(ended.out, "PARDL_TTY=- ") == 1);
}

TEST_CASE("much output in pieces arrives complete, in whole lines, in order") {
  int const lines = 5000;
  auto const ended = run({worker, "--nproc", "2", "print", std::to_string(lines)});
  CHECK(ended.code == 0);
  std::istringstream out(ended.out);
  std::vector<int> next(2, 0);
  bool right = true;
  for (std::string line; right && std::getline(out, line);) {
    int prefix = -1, rank = -1, i = -1;
    char end[4] = {};
    right = std::sscanf(line.c_str(), "[%d] rank %d line %d %3s", &prefix, &rank, &i, end) == 4 && prefix == rank &&
            rank >= 0 && rank < 2 && std::string(end) == "end" && i == next[static_cast<std::size_t>(rank)]++;
    CAPTURE(line);
    CHECK(right);
  }
  CHECK(next == std::vector<int>{lines, lines});
  CHECK(ended.err.find("[0] tail without an end\n") != std::string::npos);
  CHECK(ended.err.find("[1] tail without an end\n") != std::string::npos);
}

TEST_CASE("the store and the ranks listen on loopback only, and every process ends with the launcher's") {
  Process process({worker, "--nproc", "2", "wait"});
  REQUIRE(process.wait_for("] pid ", 2));
  auto pids = descendants(process.pid());
  CHECK(pids.size() == 3);  // two ranks and the store
  pids.push_back(process.pid());
  CHECK(listening(pids) == std::set<std::string>{"0100007F"});
  Watch const watch(pids);
  process.send(SIGTERM);
  CHECK(process.wait().code == 128 + SIGTERM);
  CHECK(watch.all_end());
}

TEST_CASE("nothing is left in the temporary folder or in shared memory") {
  TemporaryFolder const folder;
  auto const ours = [] {
    std::set<std::string> names;
    for (auto const* place : {"/tmp", "/dev/shm"}) {
      std::error_code ignored;
      for (auto const& entry : std::filesystem::directory_iterator(place, ignored)) {
        auto const name = entry.path().filename().string();
        bool const of_a_test = name.starts_with("pardl-test-");  // others may run beside us
        if (name.find("pardl") != std::string::npos && !of_a_test) names.insert(entry.path());
      }
    }
    return names;
  };
  for (auto const* mode : {"ranks", "throw", "kill"}) {
    CAPTURE(mode);
    auto const before = ours();
    auto const ended = run({worker, "--nproc", "2", mode}, {{"TMPDIR", folder.path().string()}});
    CHECK(ended.in_time);
    CHECK(std::filesystem::is_empty(folder.path()));
    CHECK(ours() == before);
  }
}
