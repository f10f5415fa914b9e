// SPDX-License-Identifier: MIT
// Ranks as processes, one of which is killed or stopped in the middle of a ring all-reduce: the others must end in time
// with a sentence that names the operation and where to look. The test starts itself, with the test case "ring rank" as
// what a rank does.
#include <signal.h>
#include <torch/torch.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/comm/ring_all_reduce.hpp"
#include "pardl/policy/ring_schedule.hpp"
#include "support/process.hpp"
#include "support/sentences.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using pardl::testing::has, pardl::testing::Process;

constexpr int ranks = 3;
constexpr std::int64_t length = 999;

std::string variable(char const* name) {
  char const* const value = std::getenv(name);
  return value ? value : "";
}

/// How every rank ended, and what it printed, when `victim` gets `signal` after `moves` moves of a ring.
std::vector<pardl::testing::Ended> survivors_of(std::string const& backend, int victim, int signal, int moves) {
  std::string const port = std::to_string(pardl::detail::listen_on("", 0, 0, 1).port());
  std::vector<std::unique_ptr<Process>> all;
  for (int rank = 0; rank < ranks; ++rank)
    all.push_back(std::make_unique<Process>(
        std::vector<std::string>{"/proc/self/exe", "--no-skip", "--source-file=*comm/ring_faults.test.cpp",
                                 "--test-case=ring rank"},
        Process::Options{.variables = {{"RANK", std::to_string(rank)},
                                       {"WORLD_SIZE", std::to_string(ranks)},
                                       {"MASTER_ADDR", "127.0.0.1"},
                                       {"MASTER_PORT", port},
                                       {"RING_BACKEND", backend},
                                       {"RING_VICTIM", std::to_string(victim)},
                                       {"RING_SIGNAL", std::to_string(signal)},
                                       {"RING_MOVES", std::to_string(moves)}}}));
  std::vector<pardl::testing::Ended> ended;
  for (int rank = 0; rank < ranks; ++rank)
    if (rank != victim) ended.push_back(all[static_cast<std::size_t>(rank)]->wait());
  return ended;  // the victim, stopped perhaps, is killed with its Process
}

/// \param error  what a survivor throws, not always both: over Gloo the other may first see its neighbour end, and over
/// shared memory, which keeps messages, it may have got all that it needs.
void check_survivors(std::string const& backend, int victim, int signal, int moves, std::string const& error) {
  CAPTURE(backend);
  std::string const name = std::to_string(victim);
  int told = 0;
  for (auto const& rank : survivors_of(backend, victim, signal, moves)) {
    CHECK(rank.in_time);
    CHECK(has(rank.out, "the end"));
    if (backend == "shm" && has(rank.out, "the sum is right")) continue;
    told += has(rank.out, error + " [comm] rank ") ? 1 : 0;
    CHECK_MESSAGE(has(rank.out, ": ring_all_reduce #2 (float32[999]) in "), rank.out);
    CHECK_MESSAGE(has(rank.out, " step "), rank.out);
    if (backend == "gloo" && victim == 0)
      CHECK_MESSAGE(has(rank.out, "the store, served by rank 0, does not answer"), rank.out);
    else if (signal == SIGSTOP && backend == "shm")
      CHECK_MESSAGE(has(rank.out, "ranks that have not come: " + name), rank.out);
    else
      CHECK_MESSAGE(has(rank.out, "ranks that have not come: " + name + " (no sign of life)"), rank.out);
  }
  CHECK(told >= 1);
}

}  // namespace

TEST_CASE("ring rank" * doctest::skip()) {
  if (variable("RING_VICTIM").empty()) return;
  std::string text;
  {
    auto world =
        pardl::init({.backend = variable("RING_BACKEND"), .device = torch::kCPU, .timeout = std::chrono::seconds(600)});
    auto tensor = torch::ones({length});
    pardl::ring_all_reduce(world, tensor).wait();
    world.set_timeout(std::chrono::seconds(3));
    if (std::to_string(world.rank()) == variable("RING_VICTIM")) {
      // It takes part as the schedule says for so many moves, and no further.
      pardl::RingSchedule const schedule(length, world);
      for (int i = 0; i < std::stoi(variable("RING_MOVES")); ++i) {
        auto const move = schedule[i];
        auto received = torch::zeros({move.receive.size});
        auto receive = pardl::recv(world, received, schedule.previous(), pardl::RingOptions{}.tag);
        pardl::send(world, tensor.narrow(0, move.send.begin, move.send.size), schedule.next(), pardl::RingOptions{}.tag)
            .wait();
        receive.wait();
        auto mine = tensor.narrow(0, move.receive.begin, move.receive.size);
        move.phase == pardl::RingPhase::reduce_scatter ? mine.add_(received) : mine.copy_(received);
      }
      ::kill(::getpid(), std::stoi(variable("RING_SIGNAL")));
      for (;;) ::pause();  // with several cores this thread may go on for a while before it stops
    }
    try {
      pardl::ring_all_reduce(world, tensor).wait();
      text = tensor.eq(ranks * ranks).all().item<bool>() ? "the sum is right" : "the sum is wrong";
    } catch (pardl::CommTimeout const& e) {
      text = std::string("CommTimeout ") + e.what();
    } catch (pardl::CommError const& e) {
      text = std::string("CommError ") + e.what();
    }
  }  // the group's end is bounded too
  std::printf("%s\nthe end\n", text.c_str());
}

TEST_CASE("a rank killed in either phase of a ring is an error at once on the others, which name it") {
  for (std::string const backend : {"gloo", "shm"}) {
    check_survivors(backend, 1, SIGKILL, 1, "CommError");
    check_survivors(backend, 2, SIGKILL, 3, "CommError");
  }
}

TEST_CASE("so is the death of the rank that serves the store") {
  for (std::string const backend : {"gloo", "shm"}) check_survivors(backend, 0, SIGKILL, 1, "CommError");
}

TEST_CASE("a rank stopped in a ring is a timeout on the others, which name it") {
  for (std::string const backend : {"gloo", "shm"}) check_survivors(backend, 1, SIGSTOP, 1, "CommTimeout");
}
