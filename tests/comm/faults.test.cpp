// SPDX-License-Identifier: MIT
// Ranks as processes without a launcher, rank 0 serving the store: one is killed or stopped, the other must end in
// time with a sentence that says where to look. The test starts itself, with the test case "rank" as what a rank does.
#include <signal.h>
#include <torch/torch.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "support/process.hpp"
#include "support/sentences.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using pardl::testing::has, pardl::testing::Process;

std::string variable(char const* name) {
  char const* const value = std::getenv(name);
  return value ? value : "";
}

/// What is left of two ranks when `victim` gets `signal` after one barrier: how the other ended, and what it printed.
pardl::testing::Ended survivor_of(int victim, int signal) {
  std::string const port = std::to_string(pardl::detail::listen_on("", 0, 0, 1).port());
  auto const start = [&](int rank) {
    return pardl::testing::Variables{{"RANK", std::to_string(rank)},
                                     {"WORLD_SIZE", "2"},
                                     {"MASTER_ADDR", "127.0.0.1"},
                                     {"MASTER_PORT", port},
                                     {"FAULTS_VICTIM", std::to_string(victim)},
                                     {"FAULTS_SIGNAL", std::to_string(signal)}};
  };
  std::vector<std::string> const self{"/proc/self/exe", "--no-skip", "--source-file=*comm/faults.test.cpp",
                                      "--test-case=rank"};
  Process zero(self, {.variables = start(0)}), one(self, {.variables = start(1)});
  return (victim == 0 ? one : zero).wait();  // the victim, stopped perhaps, is killed with its Process
}

}  // namespace

TEST_CASE("rank" * doctest::skip()) {
  if (variable("FAULTS_VICTIM").empty()) return;
  std::string text = "nothing thrown";
  {
    auto world = pardl::init({.backend = "gloo", .device = torch::kCPU, .timeout = std::chrono::seconds(120)});
    pardl::barrier(world);
    world.set_timeout(std::chrono::seconds(3));
    if (std::to_string(world.rank()) == variable("FAULTS_VICTIM")) {
      ::kill(::getpid(), std::stoi(variable("FAULTS_SIGNAL")));
      for (;;) ::pause();  // with several cores this thread may go on for a while before it stops
    }
    try {
      pardl::all_reduce(world, torch::ones({5})).wait();
    } catch (pardl::CommTimeout const& e) {
      text = std::string("CommTimeout ") + e.what();
    } catch (pardl::CommError const& e) {
      text = std::string("CommError ") + e.what();
    }
  }  // the group's end is bounded too
  std::printf("%s\nthe end\n", text.c_str());
}

TEST_CASE("a killed rank is an error at once on the other, which names it") {
  auto const ended = survivor_of(1, SIGKILL);
  CHECK(ended.in_time);
  CHECK_MESSAGE(has(ended.out, "CommError [comm] rank 0/2: all_reduce #2 (float32[5]) failed: "), ended.out);
  CHECK_MESSAGE(has(ended.out, "ranks that have not come: 1 (no sign of life)"), ended.out);
  CHECK(has(ended.out, "the end"));
}

TEST_CASE("a stopped rank is a timeout on the other, which names it") {
  auto const ended = survivor_of(1, SIGSTOP);
  CHECK(ended.in_time);
  CHECK_MESSAGE(has(ended.out, "CommTimeout [comm] rank 0/2: all_reduce #2 (float32[5]) timed out after 3 s"),
                ended.out);
  CHECK_MESSAGE(has(ended.out, "ranks that have not come: 1 (no sign of life)"), ended.out);
  CHECK(has(ended.out, "the end"));
}

TEST_CASE("the death of the rank that serves the store is an error that says so") {
  auto const ended = survivor_of(0, SIGKILL);
  CHECK(ended.in_time);
  CHECK_MESSAGE(has(ended.out, "CommError [comm] rank 1/2: all_reduce #2 (float32[5]) failed: "), ended.out);
  CHECK_MESSAGE(has(ended.out, "the store, served by rank 0, does not answer"), ended.out);
  CHECK(has(ended.out, "the end"));
}

TEST_CASE("a stop of the rank that serves the store is a timeout that says so, and ends") {
  auto const ended = survivor_of(0, SIGSTOP);
  CHECK(ended.in_time);
  CHECK_MESSAGE(has(ended.out, "CommTimeout [comm] rank 1/2: all_reduce #2 (float32[5]) timed out after 3 s"),
                ended.out);
  CHECK_MESSAGE(has(ended.out, "the store, served by rank 0, does not answer"), ended.out);
  CHECK(has(ended.out, "the end"));
}
