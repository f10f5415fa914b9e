// SPDX-License-Identifier: MIT
// Ranks as processes, one of which is killed at a random moment, again and again. Where training may go on, the others
// must finish it with one model and the loss named; where it may not, they must end with the name of the dead. Ranks
// are forked before this process has started a thread, which is why these tests stand alone.
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/launch.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/train/optim.hpp"
#include "pardl/train/parameter_server.hpp"
#include "support/process.hpp"
#include "support/seed.hpp"
#include "support/sentences.hpp"
#include "support/temporary_folder.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using pardl::testing::has, pardl::testing::TemporaryFolder;

struct Job {
  std::string meeting;
  int size = 3;
  std::string backend = "shm";
  pardl::ParameterServerOptions options{};
  std::chrono::milliseconds timeout{25'000};
};

/// A forked rank, what it says, and what it hears.
struct Rank {
  pid_t pid = -1;
  int says = -1, hears = -1;
};

/// What a rank trains until `enough` says so. \returns a line on the model that it ends with.
template <class Begun, class Enough>
std::string train(pardl::ProcessGroup const& world, pardl::ParameterServerOptions const& options, Begun&& begun,
                  Enough&& enough) {
  torch::manual_seed(1);
  torch::nn::Linear net(40, 30);
  std::string lost;
  struct {
    std::string& text;
    void on_worker_lost(pardl::WorkerLostEvent const& event) { text += event.sentence; }
  } listener{lost};
  auto make = [](auto parameters) { return pardl::optim::SGD(parameters, {.lr = 0.01}); };
  pardl::ParameterServer ps{net, world, make, options};
  begun();
  if (ps.is_server()) {
    ps.serve(listener);
  } else {
    for (int c = 0; c == 0 || !enough(); ++c) {
      ps.zero_grad();
      net(torch::ones({4, 40}) * world.rank()).pow(2).mean().backward();
      ps.step();
    }
    ps.finish();
  }
  return "end " + std::to_string(net->weight.sum().item<double>()) + " of version " + std::to_string(ps.version()) +
         " " + lost;
}

[[noreturn]] void work(Job const& job, int rank, int out, int in) {
  std::string text;
  try {
    pardl::Environment environment;
    environment.rank = environment.local_rank = rank;
    environment.size = environment.local_size = job.size;
    auto const world = pardl::init({.backend = job.backend,
                                    .device = torch::kCPU,
                                    .timeout = job.timeout,
                                    .store = c10::make_intrusive<c10d::FileStore>(job.meeting, job.size),
                                    .environment = environment});
    text = train(
        world, job.options, [out] { (void)!::write(out, "!", 1); },
        [in] {
          ::pollfd look{in, POLLIN, 0};
          return ::poll(&look, 1, 0) != 0;
        });
  } catch (pardl::CommError const& error) {
    text = std::string("CommError ") + error.what();
  } catch (std::exception const& error) {
    text = std::string("other ") + error.what();
  }
  (void)!::write(out, text.data(), text.size());
  ::_exit(0);
}

std::vector<Rank> start(Job const& job) {
  std::vector<Rank> ranks;
  for (int rank = 0; rank < job.size; ++rank) {
    int says[2] = {-1, -1}, hears[2] = {-1, -1};
    if (::pipe(says) != 0 || ::pipe(hears) != 0) throw std::runtime_error("no pipe");
    pid_t const pid = ::fork();
    if (pid == 0) {
      for (auto const& other : ranks) ::close(other.says), ::close(other.hears);
      ::close(says[0]);
      ::close(hears[1]);
      work(job, rank, says[1], hears[0]);
    }
    ::close(says[1]);
    ::close(hears[0]);
    ranks.push_back({pid, says[0], hears[1]});
  }
  return ranks;
}

bool at_work(Rank const& rank) {
  ::pollfd look{rank.says, POLLIN, 0};
  char byte = 0;
  return ::poll(&look, 1, 60'000) == 1 && ::read(rank.says, &byte, 1) == 1 && byte == '!';
}
void enough(Rank& rank) { ::close(std::exchange(rank.hears, -1)); }

/// What a rank still has to say, and whether it ended by itself in time.
std::pair<std::string, bool> last_words(Rank& rank) {
  std::string text;
  bool in_time = true;
  for (;;) {
    ::pollfd look{rank.says, POLLIN, 0};
    if (::poll(&look, 1, 60'000) != 1) {
      in_time = false;
      ::kill(rank.pid, SIGKILL);
    }
    std::array<char, 4096> buffer;
    auto const got = ::read(rank.says, buffer.data(), buffer.size());
    if (got <= 0) break;
    text.append(buffer.data(), static_cast<std::size_t>(got));
  }
  ::close(rank.says);
  if (rank.hears >= 0) enough(rank);
  ::waitpid(rank.pid, nullptr, 0);
  return {text, in_time};
}

/// One kill of one rank at one moment.
void kill_one(Job const& job, int victim, int signal, int moment_ms) {
  auto ranks = start(job);
  bool all = true;
  for (auto const& rank : ranks) all = at_work(rank) && all;
  CHECK(all);
  ::poll(nullptr, 0, moment_ms);  // the random moment; nothing is waited for
  ::kill(ranks[static_cast<std::size_t>(victim)].pid, signal);
  bool const goes_on = job.options.on_rank_failure == pardl::keep_going && victim != job.options.server;
  for (int rank = 0; rank < job.size; ++rank)
    if (goes_on && rank != victim) enough(ranks[static_cast<std::size_t>(rank)]);
  std::string end;
  for (int rank = 0; rank < job.size; ++rank) {
    if (rank == victim) continue;
    CAPTURE(rank);
    auto const [text, in_time] = last_words(ranks[static_cast<std::size_t>(rank)]);
    CHECK(in_time);
    if (goes_on) {
      CHECK_MESSAGE(text.starts_with("end "), text);
      auto const model = text.substr(0, text.find(" of version "));
      if (end.empty()) end = model;
      CHECK(model == end);
      if (rank == job.options.server)
        CHECK_MESSAGE(has(text, "worker rank " + std::to_string(victim) + " was lost after "), text);
    } else {
      CHECK_MESSAGE(text.starts_with("CommError [parameter_server] rank " + std::to_string(rank) + "/3: "), text);
      if (rank == job.options.server || victim == job.options.server)
        CHECK_MESSAGE(has(text, (victim == job.options.server ? "the server, rank " : "worker rank ") +
                                    std::to_string(victim) + (victim == job.options.server ? "," : " ") +
                                    (victim == job.options.server ? " was lost after " : "was lost after ")),
                      text);
      else
        CHECK_MESSAGE((has(text, "the server, rank ") && has(text, "worker rank " + std::to_string(victim))), text);
    }
  }
  auto& dead = ranks[static_cast<std::size_t>(victim)];
  ::kill(dead.pid, SIGKILL);
  (void)last_words(dead);
}

}  // namespace

TEST_CASE("any rank killed at any moment: named, and the others go on or end, as the options say") {
  auto const seed = pardl::testing::draw_seed();
  CAPTURE(seed);
  std::mt19937 draws(seed);
  TemporaryFolder const folder;
  auto const rounds = [&](std::string const& backend, int count) {
    for (int round = 0; round < count; ++round) {
      CAPTURE(round);
      Job job;
      job.meeting = (folder.path() / (backend + std::to_string(round))).string();
      job.backend = backend;
      job.options.staleness = static_cast<int>(draws() % 3);
      job.options.on_rank_failure = draws() % 2 == 0 ? pardl::keep_going : pardl::stop_all;
      job.options.server = draws() % 4 == 0 ? 2 : 0;
      kill_one(job, static_cast<int>(draws() % 3), SIGKILL, static_cast<int>(draws() % 12));
    }
  };
  rounds("shm", 30);
  rounds("gloo", 6);
}

TEST_CASE("a rank killed while the others begin, or just when they have: an error, or the loss of a worker") {
  auto const seed = pardl::testing::draw_seed();
  CAPTURE(seed);
  std::mt19937 draws(seed);
  TemporaryFolder const folder;
  for (int round = 0; round < 12; ++round) {
    CAPTURE(round);
    Job job;
    job.meeting = (folder.path() / std::to_string(round)).string();
    job.options.on_rank_failure = pardl::keep_going;
    job.timeout = std::chrono::seconds(3);
    auto ranks = start(job);
    auto const begun = static_cast<std::size_t>(round % 3);  // 2: nobody is waited for
    if (begun < 2) CHECK(at_work(ranks[begun]));
    ::poll(nullptr, 0, static_cast<int>(draws() % (begun < 2 ? 4 : 100)));
    ::kill(ranks[2].pid, SIGKILL);
    enough(ranks[1]);  // or it would train on with the server, where both had begun before
    for (std::size_t const rank : {0, 1}) {
      auto const [text, in_time] = last_words(ranks[rank]);
      CHECK(in_time);
      CHECK_MESSAGE((has(text, "Comm") || has(text, "end ")), text);
    }
    (void)last_words(ranks[2]);
  }
}

TEST_CASE("a worker that is silent for the timeout is lost too, and the others outlive it") {
  TemporaryFolder const folder;
  for (std::string const backend : {"shm", "gloo"}) {
    CAPTURE(backend);
    Job job;
    job.meeting = (folder.path() / backend).string();
    job.backend = backend;
    job.options.on_rank_failure = pardl::keep_going;
    job.timeout = std::chrono::seconds(4);
    kill_one(job, 2, SIGSTOP, 3);
  }
}

namespace {

constexpr auto launched_case = "parameter server under the launcher";

/// A program of three ranks under pardl::launch, of which the one named dies in its third step.
pardl::testing::Ended launched(int victim, bool keep_going, std::string const& backend) {
  return pardl::testing::run(
      {"/proc/self/exe", "--no-skip", "--source-file=*train/parameter_server_faults.test.cpp",
       std::string("--test-case=") + launched_case},
      {{"PS_VICTIM", std::to_string(victim)}, {"PS_KEEP_GOING", keep_going ? "1" : ""}, {"PS_BACKEND", backend}});
}

}  // namespace

TEST_CASE("parameter server under the launcher" * doctest::skip()) {
  char const* const victim = std::getenv("PS_VICTIM");
  if (victim == nullptr) return;
  std::string arguments[] = {"program", "--nproc=3", std::string("--backend=") + std::getenv("PS_BACKEND"),
                             "--device=cpu"};
  std::vector<char*> argv;
  for (auto& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pardl::LaunchOptions options;
  if (std::getenv("PS_KEEP_GOING") != nullptr) options.on_rank_failure = pardl::keep_going;
  int const code = pardl::launch(
      static_cast<int>(argv.size()) - 1, argv.data(),
      [&](pardl::ProcessGroup world) {
        int steps = 0;
        auto const end = train(
            world, {.on_rank_failure = options.on_rank_failure}, [] {},
            [&] {
              if (++steps == 3 && std::to_string(world.rank()) == victim) ::kill(::getpid(), SIGKILL);
              return steps == 6;
            });
        std::printf("%s\n", end.c_str());
      },
      options);
  std::fflush(nullptr);
  std::_Exit(code);
}

TEST_CASE("under the launcher: all end with the cause, or the others finish and the program succeeds") {
  for (std::string const backend : {"shm", "gloo"}) {
    CAPTURE(backend);
    auto const goes_on = launched(2, true, backend);
    CHECK(goes_on.in_time);
    CHECK_MESSAGE(goes_on.code == 0, goes_on.err);
    CHECK_MESSAGE(has(goes_on.err, "[launch] rank 2/3 "), goes_on.err);
    CHECK_MESSAGE(has(goes_on.out, "of version 6 [parameter_server] rank 0/3: worker rank 2 was lost after 3 steps"),
                  goes_on.out);
    CHECK_MESSAGE(has(goes_on.out, "[1] end "), goes_on.out);
    auto const ends = launched(1, false, backend);
    CHECK(ends.in_time);
    CHECK(ends.code == 128 + SIGKILL);
    CHECK_MESSAGE(has(ends.err, "rank 1/3"), ends.err);
    CHECK_FALSE(has(ends.out, "end "));
  }
}
