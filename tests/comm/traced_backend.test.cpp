// SPDX-License-Identifier: MIT
// What the stamping decorator promises: a failure names the operation and the ranks that have not come, ends all ranks,
// and keeps its type through futures, the autograd engine and the Reducer.
#include <torch/torch.h>

#include <atomic>
#include <latch>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "support/ranks.hpp"
#include "support/sentences.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using namespace std::chrono_literals;
using pardl::testing::has, pardl::testing::outcome;

/// From here on operations may take a second. Not from the start: a busy machine may need longer to bring ranks
/// together.
void hurry(pardl::ProcessGroup& world) { world.set_timeout(1s); }

/// Over Gloo, which the traced backend is for.
template <class F>
void with_ranks(int n, F&& f, pardl::testing::RanksOptions options = {}) {
  options.backend = "gloo";
  pardl::testing::with_ranks(n, std::forward<F>(f), options);
}

}  // namespace

TEST_CASE("a timeout names the operation, its number and shape, and the rank that has not come") {
  std::latch over(2);
  with_ranks(3, [&](pardl::ProcessGroup world) {
    auto tensor = torch::ones({4});
    pardl::broadcast(world, tensor, 1).wait();
    hurry(world);
    if (world.rank() == 2) {
      over.wait();
      // Whoever comes later is told at once what happened, and not after another timeout.
      auto const late = outcome([&] { pardl::barrier(world); });
      CHECK_MESSAGE(has(late, "CommTimeout: [comm] rank 2/3: barrier was refused"), late);
      CHECK_MESSAGE(has(late, "all_reduce #2 (float32[4]) timed out after 1 s"), late);
      return;
    }
    auto const text = outcome([&] { pardl::all_reduce(world, tensor).wait(); });
    over.count_down();
    std::string const where = "CommTimeout: [comm] rank " + std::to_string(world.rank()) + "/3: ";
    CHECK_MESSAGE(has(text, where + "all_reduce #2 (float32[4]) "), text);
    CHECK_MESSAGE(has(text, "timed out after 1 s"), text);
    CHECK_MESSAGE(has(text, "ranks that have not come: 2 (last called broadcast #1 from rank 1 (float32[4]))"), text);
  });
}

TEST_CASE("ranks that call different operations are told which") {
  with_ranks(2, [](pardl::ProcessGroup world) {
    auto tensor = torch::ones({4});
    world.set_timeout(3s);
    auto const text = outcome([&] {
      if (world.rank() == 0)
        pardl::all_reduce(world, tensor).wait();
      else
        pardl::broadcast(world, tensor, 0).wait();
    });
    if (world.rank() == 0) {
      CHECK_MESSAGE(has(text, "all_reduce #1 (float32[4])"), text);
      CHECK_MESSAGE(has(text, "ranks at another operation: 1 (broadcast #1 from rank 0 (float32[4]))"), text);
    } else {
      CHECK_MESSAGE(has(text, "ranks at another operation: 0 (all_reduce #1 (float32[4]))"), text);
    }
    CHECK_MESSAGE(has(text, "all ranks must call the same operations, alike and in the same order."), text);
  });
}

TEST_CASE("a rank that gives up ends the others' operations at once, with its reason") {
  // The timeout is far away: only the note can end this within the test's own limit.
  with_ranks(4,
             [](pardl::ProcessGroup world) {
               if (world.rank() == 1) return world.abandon("the data file ends early");
               auto const text = outcome([&] { return pardl::all_sum(world, 1.0); });
               CHECK_MESSAGE(has(text, "CommError: [comm] rank "), text);
               CHECK_MESSAGE(has(text, "all_reduce #1 (float64[1])"), text);
               CHECK_MESSAGE(has(text, "rank 1 says it failed: the data file ends early"), text);
             },
             {.timeout = 600s});
}

TEST_CASE("a rank that leaves by an exception ends the others' operations") {
  std::string first;
  try {
    with_ranks(2,
               [](pardl::ProcessGroup world) {
                 if (world.rank() == 1) throw pardl::DataError("[data] rank 1/2: label out of range.");
                 auto const text = outcome([&] { pardl::barrier(world); });
                 CHECK_MESSAGE(has(text, "barrier #1"), text);
                 CHECK_MESSAGE(has(text, "rank 1 says it failed: an exception ended it"), text);
               },
               {.timeout = 600s});
  } catch (pardl::DataError const& e) {
    first = e.what();
  }
  CHECK(first == "[data] rank 1/2: label out of range.");
}

TEST_CASE("a message that does not come names its sender and where that is") {
  std::latch over(1);
  with_ranks(2, [&](pardl::ProcessGroup world) {
    auto tensor = torch::ones({3}, torch::kInt64);
    pardl::barrier(world);
    hurry(world);
    if (world.rank() == 1) return over.wait();
    auto const text = outcome([&] { pardl::recv(world, tensor, 1, 7).wait(); });
    over.count_down();
    CHECK_MESSAGE(has(text, "CommTimeout: [comm] rank 0/2: recv #1 from rank 1 (tag 7, int64[3]) timed out"), text);
    CHECK_MESSAGE(has(text, "rank 1 (last called barrier #1)"), text);
  });
}

TEST_CASE("a message nobody will send ends when another rank fails") {
  with_ranks(3,
             [](pardl::ProcessGroup world) {
               auto tensor = torch::ones({3});
               if (world.rank() == 2) return world.abandon("out of memory");
               auto const text = outcome([&] { pardl::recv(world, tensor, 2).wait(); });
               CHECK_MESSAGE(has(text, "rank 2 says it failed: out of memory"), text);
             },
             {.timeout = 600s});
}

TEST_CASE("the error keeps its type and sentence in the operation's future, and in one chained to it") {
  with_ranks(2, [](pardl::ProcessGroup world) {
    hurry(world);
    if (world.rank() == 1) return pardl::testing::wait_until_failed(world);
    auto work = pardl::all_reduce(world, torch::ones({4}));
    auto const future = work.future();
    auto const chained = future->then([](c10::ivalue::Future& done) { return done.value(); }, future->elementType());
    chained->wait();
    CHECK(chained->hasError());
    for (auto const& each : {future, chained}) {
      auto const text = outcome([&] { each->value(); });
      CHECK_MESSAGE(has(text, "CommTimeout: [comm] rank 0/2: all_reduce #1 (float32[4]) timed out after 1 s"), text);
      CHECK_MESSAGE(has(text, "ranks that have not come: 1"), text);
    }
    CHECK(has(outcome([&] { work.wait(); }), "CommTimeout"));
  });
}

TEST_CASE("the error reaches the caller of backward through c10d's Reducer") {
  with_ranks(2, [](pardl::ProcessGroup world) {
    auto const weight = torch::ones({8, 8}, torch::requires_grad());
    c10d::Reducer reducer({weight}, {{0}}, world.c10d(), {false}, 25 << 20, false, false, {}, 1 << 20, false, false,
                          {});
    auto const loss = weight.mul(2).sum();
    hurry(world);
    reducer.prepare_for_backward({loss});
    if (world.rank() == 1) return pardl::testing::wait_until_failed(world);
    auto const text = outcome([&] { loss.backward(); });
    CHECK_MESSAGE(has(text, "CommTimeout: [comm] rank 0/2: all_reduce #1 (float32[64]) timed out after 1 s"), text);
    CHECK_MESSAGE(has(text, "ranks that have not come: 1 (has not called any collective)"), text);
  });
}

TEST_CASE("operations that c10d refuses are named, and do not count") {
  with_ranks(2, [](pardl::ProcessGroup world) {
    std::vector<torch::Tensor> none;
    auto const text = outcome([&] { world.c10d()->getDefaultBackend()->allreduce(none); });
    CHECK_MESSAGE(has(text, "all_reduce #1 could not be started"), text);
    CHECK(pardl::all_sum(world, 1.0) == 2.0);
    std::vector<torch::Tensor> one{torch::ones({2})};
    CHECK(world.c10d()->allreduce(one)->getSequencenumber() == 2);
  });
}

TEST_CASE("a group that has been shut down says so, and its end is bounded with work under way") {
  std::latch ended(1);
  with_ranks(2, [&](pardl::ProcessGroup world) {
    hurry(world);
    if (world.rank() == 1) return ended.wait();
    auto work = pardl::all_reduce(world, torch::ones({4}));
    CHECK(has(outcome([&] { world.shutdown(); }), "CommTimeout"));  // the operation's failure is not lost
    ended.count_down();
    CHECK(has(outcome([&] { work.wait(); }), "CommTimeout"));
    CHECK(has(outcome([&] { pardl::barrier(world); }), "refused"));
  });
  with_ranks(2, [](pardl::ProcessGroup world) {
    pardl::barrier(world);
    world.shutdown();
    auto const text = outcome([&] { pardl::barrier(world); });
    CHECK_MESSAGE(has(text, "the group has been shut down"), text);
  });
}

namespace {

/// A transport that a stream keeps in order, as NCCL: works are done at once, and a failure shows in getError() only.
class StreamTransport final : public c10d::Backend {
 public:
  using Backend::Backend;
  const std::string getBackendName() const override { return "stream"; }
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& t, c10d::AllreduceOptions const&) override {
    return c10::make_intrusive<pardl::detail::DoneWork>(c10d::OpType::ALLREDUCE, t);
  }
  c10d::ErrorType getError() override { return error; }
  void setTimeout(std::chrono::milliseconds) override {}
  std::atomic<c10d::ErrorType> error{c10d::ErrorType::SUCCESS};
};

}  // namespace

TEST_CASE("over a stream a late operation comes to light at the next call that looks, with the ranks that lack it") {
  using namespace pardl::detail;
  auto const store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 2; ++rank)
    ranks.emplace_back([&, rank] {
      auto transport = c10::make_intrusive<StreamTransport>(rank, 2);
      auto roll =
          RollCall::start({.store = store, .rank = rank, .size = 2, .transport = [transport]() -> std::string {
                             return transport->getError() == c10d::ErrorType::TIMEOUT ? "an operation timed out" : "";
                           }});
      TracedBackend traced(transport, roll, Order::stream);
      std::vector<at::Tensor> tensors{torch::ones({4})};
      traced.allreduce(tensors, {})->wait();
      std::string text;
      if (rank == 0) {
        auto const work = traced.allreduce(tensors, {});
        transport->error = c10d::ErrorType::TIMEOUT;
        while (!roll->failed()) std::this_thread::yield();
        text = outcome([&] { work->wait(); });
        CHECK_MESSAGE(has(text, "ranks that have not come: 1 (last called all_reduce #1 (float32[4]))"), text);
      } else {
        while (!roll->failed()) std::this_thread::yield();
        text = outcome([&] { traced.allreduce(tensors, {})->wait(); });
        CHECK_MESSAGE(has(text, "rank 0 says the transport failed: an operation timed out"), text);
        text = outcome([&] { roll->check(); });
      }
      CHECK_MESSAGE(has(text, "CommTimeout: [comm] rank " + std::to_string(rank) + "/2: "), text);
      CHECK_MESSAGE(has(text, "not all ranks have come to all_reduce #2 (float32[4])"), text);
    });
  for (auto& rank : ranks) rank.join();
}

TEST_CASE("the sentence of a failure whose store is silent says whom to look at") {
  using namespace pardl::detail;
  Stamp stamp("all_reduce", torch::ones({2, 3}));
  stamp.number = 17;
  Findings silent{.answered = false, .store = "rank 0", .note = std::nullopt, .ranks = {}};
  auto const text = post_mortem(&stamp, {.phrase = "timed out after 30 s", .late = true}, 1, 2, silent);
  CHECK(text ==
        "[comm] rank 1/2: all_reduce #17 (float32[2, 3]) timed out after 30 s; nobody can say which ranks have not "
        "come, since the store, served by rank 0, does not answer; rank 0 may be stopped or gone: look there first.");
}

TEST_CASE("notes and standings survive the store's text") {
  using namespace pardl::detail;
  auto const note = Note::decode(Note{3, true, "broadcast #2 timed out after 1.5 s"}.encode());
  REQUIRE(note);
  CHECK(note->rank == 3);
  CHECK(note->late);
  CHECK(note->phrase == "broadcast #2 timed out after 1.5 s");
  Status status{.issued = 9,
                .busy = true,
                .left = false,
                .last = "barrier #9",
                .recent = {{8, "all_reduce #8"}, {9, "barrier #9"}}};
  auto line = status.encode(5);
  line.pop_back();
  auto const back = Status::decode(line);
  REQUIRE(back);
  CHECK(back->first == 5);
  CHECK(back->second.issued == 9);
  CHECK(back->second.busy);
  REQUIRE(back->second.at(8));
  CHECK(*back->second.at(8) == "all_reduce #8");
  CHECK(back->second.at(7) == nullptr);
  CHECK_FALSE(Status::decode("garbage"));
  CHECK_FALSE(Note::decode(""));
}
