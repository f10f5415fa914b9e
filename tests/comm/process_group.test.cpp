// SPDX-License-Identifier: MIT
// The handle: worlds of one, who sits where, subgroups, adopted groups, and what init() says when it cannot.
#include <torch/torch.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <latch>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "support/ranks.hpp"
#include "support/sentences.hpp"
#include "support/temporary_folder.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using namespace std::chrono_literals;
using pardl::Environment;
using pardl::ProcessGroup;
using pardl::testing::has;

/// The sentence of the E that f throws; "nothing" if it throws none.
template <class E, class F>
std::string thrown(F&& f) {
  try {
    f();
  } catch (E const& e) {
    return e.what();
  }
  return "nothing";
}

Environment rank_of(int rank, int size) {
  Environment environment;
  environment.rank = environment.local_rank = rank;
  environment.size = environment.local_size = size;
  return environment;
}

/// Runs f(environment) on n threads that are told to meet at one address, and joins them.
template <class F>
void at_address(int n, Environment common, F&& f) {
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < n; ++rank)
    ranks.emplace_back([&, rank] {
      auto environment = common;
      environment.rank = environment.local_rank = rank;
      environment.size = environment.local_size = n;
      f(environment);
    });
  for (auto& rank : ranks) rank.join();
}

/// A port that was free a moment ago.
std::uint16_t some_port() { return pardl::detail::listen_on("", 0, 0, 1).port(); }

}  // namespace

TEST_CASE("a world of one needs nothing") {
  ProcessGroup const alone;
  CHECK(alone.rank() == 0);
  CHECK(alone.size() == 1);
  CHECK(alone.nodes() == 1);
  CHECK(alone.local_rank() == 0);
  CHECK(alone.local_size() == 1);
  CHECK(alone.backend() == "self");
  CHECK(alone.device() == torch::Device(torch::kCPU));
  auto const world = pardl::init({.device = torch::kCPU, .environment = Environment{}});
  CHECK(world.backend() == "self");
  CHECK(pardl::all_sum(world, 3) == 3);
  static_assert(pardl::ranked<ProcessGroup>);
  CHECK(pardl::Ranks(world).size() == 1);
}

TEST_CASE("c10d's Reducer runs on a world of one, and on a handle's group of several") {
  for (int const n : {1, 2}) {
    pardl::testing::with_ranks(n, [n](ProcessGroup world) {
      auto const weight = torch::ones({4}, torch::requires_grad());
      c10d::Reducer reducer({weight}, {{0}}, world.c10d(), {false}, 25 << 20, false, false, {}, 1 << 20, false, false,
                            {});
      auto const loss = weight.mul(world.rank() + 1.0).sum();
      reducer.prepare_for_backward({loss});
      loss.backward();
      CHECK(weight.grad()[0].item<double>() == (n + 1) / 2.0);
    });
  }
}

TEST_CASE("hosts are counted by what they are, not by what the launcher says") {
  // Five ranks on three hosts, dealt out unevenly and not in blocks; the environment claims one host.
  std::vector<std::string> const hosts{"a", "b", "a", "c", "b"};
  pardl::testing::with_ranks(5,
                             [](ProcessGroup world) {
                               int const local_ranks[] = {0, 0, 1, 0, 1}, local_sizes[] = {2, 2, 2, 1, 2};
                               CHECK(world.nodes() == 3);
                               CHECK(world.local_rank() == local_ranks[world.rank()]);
                               CHECK(world.local_size() == local_sizes[world.rank()]);
                               auto const pair = world.split(world.rank() < 2 ? 0 : 1, 0);  // a b | a c b
                               CHECK(pair->nodes() == (world.rank() < 2 ? 2 : 3));
                               CHECK(pair->local_size() == 1);
                             },
                             {.hosts = hosts});
  pardl::testing::with_ranks(3, [](ProcessGroup world) {
    CHECK(world.nodes() == 1);
    CHECK(world.local_rank() == world.rank());
    CHECK(world.local_size() == 3);
  });
}

TEST_CASE("split divides by colour and orders by key, then by rank") {
  pardl::testing::with_ranks(5, [](ProcessGroup world) {
    int const me = world.rank();
    // Rank 4 stays out; even ranks in reverse, odd ones as they are.
    std::optional<int> const color = me == 4 ? std::nullopt : std::optional(me % 2 == 0 ? 7 : -3);
    auto const part = world.split(color, me % 2 == 0 ? -me : 0);
    CHECK(part.has_value() == (me != 4));
    if (part) {
      int const expected[] = {1, 0, 0, 1};
      CHECK(part->size() == 2);
      CHECK(part->rank() == expected[me]);
      CHECK(part->backend() == "shm");
      CHECK(part->timeout() == world.timeout());
      CHECK(pardl::all_sum(*part, me) == (me % 2 == 0 ? 2 : 4));
    }
    CHECK(pardl::all_sum(world, 1) == 5);  // the parent goes on
    auto const alone = world.split(me);
    CHECK(alone->size() == 1);
    CHECK(alone->backend() == "self");
    auto const again = world.split(0);  // same colour as before, another group
    CHECK(pardl::all_sum(*again, me) == 10);
    auto const nested = again->split(me / 2);
    CHECK(pardl::all_sum(*nested, 1) == (me == 4 ? 1 : 2));
  });
  auto const self = ProcessGroup();
  CHECK(self.split(3)->size() == 1);
  CHECK_FALSE(self.split(std::nullopt).has_value());
}

TEST_CASE("a backend that nobody has named fits the hosts, in the world and in its parts") {
  std::vector<std::string> const hosts{"a", "b", "a"};
  auto const parts = [](ProcessGroup world, char const* whole, char const* part) {
    CHECK(world.backend() == whole);
    auto const some = world.split(world.rank() % 2);  // a a | b
    CHECK(some->backend() == (some->size() == 1 ? "self" : part));
    CHECK(pardl::all_sum(*some, 1) == some->size());
    CHECK(pardl::all_sum(*world.split(0), 1) == 3);
  };
  pardl::testing::with_ranks(3, [&](ProcessGroup world) { parts(world, "shm", "shm"); });
  pardl::testing::with_ranks(3, [&](ProcessGroup world) { parts(world, "gloo", "shm"); }, {.hosts = hosts});
  pardl::testing::with_ranks(3, [&](ProcessGroup world) { parts(world, "gloo", "gloo"); },
                             {.backend = "gloo", .hosts = hosts});
  auto const store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 2; ++rank)
    ranks.emplace_back([&, rank] {
      auto const text = thrown<pardl::ConfigError>([&] {
        return pardl::init({.backend = rank == 0 ? "" : "shm",
                            .device = torch::kCPU,
                            .timeout = 20s,
                            .store = store,
                            .environment = rank_of(rank, 2)});
      });
      CHECK_MESSAGE(has(text, "rank 1 has chosen the backend shm, rank 0 shm or gloo; name one backend"), text);
    });
  for (auto& rank : ranks) rank.join();
}

TEST_CASE("a subgroup outlives its world") {
  pardl::testing::with_ranks(2, [](ProcessGroup world) {
    auto part = world.split(0);
    world = ProcessGroup();
    CHECK(pardl::all_sum(*part, 1) == 2);
  });
}

TEST_CASE("any group of c10d can be adopted, divided and counted") {
  auto const store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 3; ++rank)
    ranks.emplace_back([&, rank] {
      auto options = c10d::ProcessGroupGloo::Options::create(20s);
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface("lo"));
      auto group = c10::make_intrusive<c10d::ProcessGroup>(store, rank, 3);
      auto const gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, 3, options);
      group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::GLOO, gloo);
      group->setDefaultBackend(c10d::ProcessGroup::GLOO);
      ProcessGroup world(group);
      CHECK(world.rank() == rank);
      CHECK(world.size() == 3);
      CHECK(world.backend() == "gloo");
      CHECK(world.timeout() == 20s);
      CHECK(world.c10d() == group);
      CHECK(pardl::all_sum(world, rank) == 3);
      auto avg = torch::full({2}, static_cast<double>(rank));
      pardl::all_reduce(world, avg, pardl::ReduceOp::avg).wait();
      CHECK(avg[1].item<double>() == 1.0);
      world.count_hosts();
      CHECK(world.local_rank() == rank);
      { ProcessGroup const second(group); }  // the end of a handle is not the end of a group that others made
      CHECK(pardl::all_sum(world, 1) == 3);
      auto const part = world.split(rank == 0 ? 0 : 1);
      CHECK(pardl::all_sum(*part, rank) == (rank == 0 ? 0 : 3));
    });
  for (auto& rank : ranks) rank.join();
  CHECK(has(thrown<pardl::ConfigError>([] { ProcessGroup(c10::intrusive_ptr<c10d::ProcessGroup>()); }), "null"));
}

TEST_CASE("init says what cannot be") {
  auto const refused = [](pardl::InitOptions options) {
    return thrown<pardl::ConfigError>([&] { return pardl::init(std::move(options)); });
  };
  Environment const one = rank_of(0, 1), two = rank_of(1, 2);
  CHECK(refused({.backend = "glue", .device = torch::kCPU, .environment = one}) ==
        "[comm] rank 0/1: no backend is called \"glue\"; there are self, shm, gloo, nccl.");
  CHECK(refused({.backend = "self", .device = torch::kCPU, .environment = two}) ==
        "[comm] rank 1/2: the backend \"self\" is for a world of one; use shm or gloo on CPUs, nccl on GPUs.");
#ifndef PARDL_WITH_NCCL
  CHECK(has(refused({.backend = "nccl", .environment = two}), "link the CMake target pardl::nccl"));
#else
  CHECK(has(refused({.backend = "nccl", .device = torch::kCPU, .environment = two}), "NCCL needs a GPU"));
#endif
  if (!torch::cuda::is_available())
    CHECK(has(refused({.backend = "gloo", .device = torch::kCUDA, .environment = one}), "no GPU is visible"));
}

#ifdef PARDL_WITH_NCCL
TEST_CASE("without a GPU NCCL is one clear sentence") {
  if (torch::cuda::is_available()) return;
  std::string text;
  try {
    auto const store = c10::make_intrusive<c10d::HashStore>();
    text = pardl::backend::nccl(store, 0, 1)->getBackendName();
  } catch (pardl::ConfigError const& e) {
    text = e.what();
  }
  CHECK(text ==
        "[comm] rank 0/1: NCCL needs a GPU, and none is visible to this process; see nvidia-smi and "
        "CUDA_VISIBLE_DEVICES, or use Gloo.");
}
#endif

TEST_CASE("ranks that chose different backends are told, all of them") {
  using pardl::detail::Arrival;
  CHECK(pardl::detail::summary_of({{"a", "gloo"}, {"b", "gloo"}, {"a", "gloo"}}) == "0 1 0 ");
  auto const store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 2; ++rank)
    ranks.emplace_back([&, rank] {
      auto const text = thrown<pardl::ConfigError>([&] {
        return pardl::detail::meet(store, rank, 2, Arrival{"a", rank == 0 ? "gloo" : "nccl"}, 10s);
      });
      CHECK_MESSAGE(has(text, "rank 1 has chosen the backend nccl, rank 0 gloo; name one backend"), text);
    });
  for (auto& rank : ranks) rank.join();
}

TEST_CASE("ranks that do not come to the meeting are named by those that do") {
  auto const store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::thread> ranks;
  for (int const rank : {0, 2})
    ranks.emplace_back([&, rank] {
      auto const text = thrown<pardl::CommTimeout>([&] {
        return pardl::init({.device = torch::kCPU, .timeout = 2s, .store = store, .environment = rank_of(rank, 4)});
      });
      CHECK_MESSAGE(has(text, "did not all come within 2 s; missing: 1, 3"), text);
    });
  for (auto& rank : ranks) rank.join();
}

TEST_CASE("rank 0 serves a store on loopback, and all meet there") {
  Environment common;
  common.launcher = pardl::Launcher::variables;
  common.master_addr = "127.0.0.1";
  common.master_port = some_port();
  at_address(3, common, [](Environment const& environment) {
    auto world = pardl::init({.device = torch::kCPU, .timeout = 30s, .environment = environment});
    CHECK(pardl::all_sum(world, environment.rank) == 3);
    auto const part = world.split(environment.rank % 2);
    CHECK(part->size() == (environment.rank % 2 == 0 ? 2 : 1));
  });
}

TEST_CASE("ranks of one host meet in a folder, again and again") {
  pardl::testing::TemporaryFolder const folder;
  Environment common;
  common.launcher = pardl::Launcher::open_mpi;
  common.rendezvous_folder = folder.path().string();
  for (int round = 1; round <= 2; ++round)
    at_address(2, common, [&](Environment const& environment) {
      auto const world = pardl::init({.device = torch::kCPU, .timeout = 30s, .environment = environment});
      CHECK(pardl::all_sum(world, round) == 2 * round);
    });
}

TEST_CASE("the address on the way to another host is never loopback") {
  CHECK(pardl::detail::address_towards("127.0.0.1").empty());
  CHECK(pardl::detail::address_towards("localhost").empty());
  CHECK(pardl::detail::address_towards("no such host").empty());
  CHECK(pardl::detail::is_loopback("127.0.1.1"));
  CHECK_FALSE(pardl::detail::is_loopback("10.0.0.1"));
}

TEST_CASE("a port in use is one sentence, at once") {
  auto const holder = pardl::detail::listen_on("", 0, 0, 1);
  Environment environment = rank_of(0, 2);
  environment.master_addr = "localhost";
  environment.master_port = holder.port();
  auto const text = thrown<pardl::CommError>(
      [&] { return pardl::init({.device = torch::kCPU, .timeout = 60s, .environment = environment}); });
  CHECK(text == "[comm] rank 0/2: port " + std::to_string(holder.port()) +
                    " is in use on this host; end the program that holds it, or set MASTER_PORT to another on every "
                    "rank.");
}

TEST_CASE("a store that nobody serves is named") {
  Environment environment = rank_of(1, 2);
  environment.master_addr = "127.0.0.1";
  environment.master_port = some_port();
  auto const text = thrown<pardl::CommError>(
      [&] { return pardl::init({.device = torch::kCPU, .timeout = 500ms, .environment = environment}); });
  CHECK_MESSAGE(has(text, "[comm] rank 1/2: no answer from the store at 127.0.0.1:"), text);
  CHECK_MESSAGE(has(text, "within 500 ms: Connection refused; see whether rank 0 runs"), text);
}

TEST_CASE("a FileStore serves too") {
  pardl::testing::TemporaryFolder const folder;
  auto const file = (folder.path() / "store").string();
  at_address(2, {}, [&](Environment const& environment) {
    auto const store = c10::make_intrusive<c10d::FileStore>(file, 2);
    std::string text = "nothing";
    auto world = pardl::init({.device = torch::kCPU, .store = store, .environment = environment});
    CHECK(pardl::all_sum(world, 1) == 2);
    world.set_timeout(1s);
    CHECK(world.timeout() == 1s);
    if (environment.rank == 1) return pardl::testing::wait_until_failed(world);
    text = thrown<pardl::CommTimeout>([&] { pardl::barrier(world); });
    CHECK_MESSAGE(has(text, "barrier #2 timed out after 1 s; ranks that have not come: 1 (last called all_reduce #1"),
                  text);
  });
}

TEST_CASE("a call that never ends is left behind") {
  auto const gate = std::make_shared<std::latch>(1);
  CHECK(pardl::detail::bounded(10s, [] { return 5; }) == 5);
  CHECK_FALSE(pardl::detail::bounded(20ms, [gate] {
                gate->wait();
                return 5;
              }).has_value());
  gate->count_down();
  CHECK_THROWS_AS(pardl::detail::bounded(10s, []() -> int { throw pardl::CommError("no"); }), pardl::CommError);
}
