// SPDX-License-Identifier: MIT
// What ranks over shared memory hear when something is wrong: mismatches with both sides, timeouts, who has gone, and
// what happens to the operations and memory of those that hear it. Processes that die: shm_faults.test.cpp.
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <latch>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <vector>

#include "comm/shm_support.hpp"
#include "pardl/comm/backend/shm.hpp"
#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/comm/ring_all_reduce.hpp"
#include "support/sentences.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using pardl::ProcessGroup;
using pardl::ReduceOp;
using pardl::detail::shm::Progress;
using pardl::testing::has, pardl::testing::outcome;
using shm_test::bare, shm_test::over_shm;
using Tensors = std::vector<torch::Tensor>;

}  // namespace

TEST_CASE("ranks that mean different things all get a sentence with both sides") {
  auto const both = [](auto&& first, auto&& second, std::string const& one, std::string const& other) {
    over_shm(2, [&](ProcessGroup world) {
      auto const text = outcome([&] { world.rank() == 0 ? first(world) : second(world); });
      CHECK_MESSAGE(has(text, "CommError: [comm] rank " + std::to_string(world.rank()) + "/2: "), text);
      CHECK_MESSAGE(has(text, one), text);
      CHECK_MESSAGE(has(text, other), text);
    });
  };
  auto const sum = [](std::int64_t count, torch::Dtype dtype = torch::kFloat32) {
    return [=](ProcessGroup world) { pardl::all_reduce(world, torch::ones({count}, dtype)).wait(); };
  };
  both(sum(5), sum(5, torch::kInt32), "float32[5]", "int32[5]");
  auto const copy = [](ProcessGroup world) {  // its root has nobody to wait for, and hears at the next one
    pardl::broadcast(world, torch::ones({5}), 1).wait();
    pardl::barrier(world);
  };
  both(sum(5), copy, "all_reduce #1 (float32[5])", "broadcast #1 from rank 1 (float32[5])");
  both(sum(5), sum(6), "all_reduce #1 (float32[5])", "all_reduce #1 (float32[6])");
  both(sum(5), sum(5, torch::kFloat64), "float32[5]", "float64[5]");
  both(sum(5'000'000), sum(6'000'000), "float32[5000000]", "float32[6000000]");
  auto const letter = [](std::int64_t count, torch::Dtype dtype = torch::kFloat32) {
    return [=](ProcessGroup world) {
      if (world.rank() == 0) return pardl::send(world, torch::ones({3}), 1).wait(), pardl::barrier(world);
      auto t = torch::ones({count}, dtype);
      pardl::recv(world, t, 0).wait();
    };
  };
  both(letter(4), letter(4), "rank 0 sends 12 bytes with tag 0, this rank receives 16", "tag 0");
  both(letter(3, torch::kInt32), letter(3, torch::kInt32), "rank 0 sends 12 bytes with tag 0", "of another dtype");
  auto const into = [](int root, ReduceOp op) {
    return [=](ProcessGroup world) {
      pardl::reduce(world, torch::ones({5}), root, op).wait();
      pardl::barrier(world);
    };
  };
  both(into(0, ReduceOp::sum), into(1, ReduceOp::sum), "reduce #1 to rank 0", "reduce #1 to rank 1");
  both(into(0, ReduceOp::sum), into(0, ReduceOp::max), "by sum", "by maximum");
  // Both only take, and look at the root that they believe in.
  auto const from = [](int root) {
    return [=](ProcessGroup world) { pardl::broadcast(world, torch::ones({5}), root).wait(); };
  };
  both(from(1), from(0), "broadcast #1 from rank 0 (float32[5])", "broadcast #1 from rank 1 (float32[5])");
  auto const deal = [](std::int64_t mine, std::int64_t its) {
    return [=](ProcessGroup world) {
      Tensors in{torch::ones({2}), torch::ones({2})}, out{torch::ones({2}), torch::ones({2})};
      auto const other = static_cast<std::size_t>(1 - world.rank());
      in[other] = torch::ones({mine}), out[other] = torch::ones({its});
      world.c10d()->alltoall(out, in)->wait();
      pardl::barrier(world);  // whoever gets what it takes hears at the next one
    };
  };
  both(deal(3, 4), deal(4, 4), "rank 0 sends 12 bytes where this rank takes 16", "all_to_all #1");
  auto const uneven = [](std::int64_t count) {
    return [=](ProcessGroup world) {
      std::vector<Tensors> out{{torch::ones({8}), torch::ones({count})}};
      Tensors in{torch::ones({world.rank() == 0 ? 8 : count})};
      world.c10d()->allgather(out, in)->wait();
    };
  };
  both(uneven(8), uneven(12), "all_gather #1 (float32[8])", "all_gather #1 (float32[12])");
  auto const list = [](std::int64_t count) {
    return [=](ProcessGroup world) {
      std::vector<Tensors> out{{torch::ones({count}), torch::ones({9})}};
      Tensors in{torch::ones({world.rank() == 0 ? count : 9})};
      if (world.rank() == 1) out[0][0] = torch::ones({7});
      world.c10d()->allgather(out, in)->wait();
    };
  };
  both(list(9), list(9), "with other sizes in its list", "all_gather #1 (float32[9])");
  both(uneven(9), uneven(1'200'000), "all_gather #1 (float32[8])", "all_gather #1 (float32[1200000])");
}

TEST_CASE("sparse tensors of several shapes or dtypes are refused on all ranks") {
  auto const sparse = [](std::int64_t rows, torch::Dtype dtype) {
    return torch::sparse_coo_tensor(torch::tensor({{rows - 1}}), torch::ones({1}, dtype), {rows});
  };
  over_shm(2, [&](ProcessGroup world) {
    Tensors t{sparse(world.rank() == 0 ? 5 : 50'000'001, torch::kFloat32)};
    auto const text = outcome([&] { world.c10d()->allreduce(t)->wait(); });
    CHECK_MESSAGE(has(text, "rank " + std::to_string(1 - world.rank()) + " has a sparse tensor of another shape"),
                  text);
    Tensors u{sparse(5, world.rank() == 0 ? torch::kFloat32 : torch::kInt32)};
    CHECK(has(outcome([&] { world.c10d()->allreduce(u)->wait(); }), "of another shape or dtype"));
  });
}

TEST_CASE("what a mismatch throws may leave the rank: it ends, and so do the others") {
  CHECK_THROWS_AS(over_shm(2,
                           [](ProcessGroup world) {
                             auto t = torch::ones({world.rank() == 0 ? 3 : 4});
                             if (world.rank() == 0) pardl::send(world, t, 1).wait();
                             if (world.rank() == 1) pardl::recv(world, t, 0).wait();
                             pardl::barrier(world);
                           }),
                  pardl::CommError);
  CHECK_THROWS_AS(over_shm(3,
                           [](ProcessGroup world) {
                             pardl::ring_all_reduce(world, torch::ones({world.rank() == 0 ? 100 : 90})).wait();
                             pardl::barrier(world);
                           }),
                  pardl::CommError);
}

TEST_CASE("a timeout names the operation, its number and the ranks that have not come; afterwards all is refused") {
  std::latch told(2);  // until then rank 2 has come no further, but has not gone
  over_shm(3, [&](ProcessGroup world) {
    pardl::barrier(world);
    world.set_timeout(std::chrono::milliseconds(300));
    if (world.rank() == 2) return pardl::testing::wait_until_failed(world), told.wait();
    auto const text = outcome([&] { pardl::all_reduce(world, torch::ones({5})).wait(); });
    told.count_down();
    CHECK_MESSAGE(
        has(text, "CommTimeout: [comm] rank " + std::to_string(world.rank()) + "/3: all_reduce #2 (float32[5]) "),
        text);
    CHECK_MESSAGE(has(text, "timed out after 300 ms"), text);
    CHECK_MESSAGE(has(text, "ranks that have not come: 2 (last called barrier #1)"), text);
    auto const next = outcome([&] { pardl::barrier(world); });
    CHECK_MESSAGE(has(next, "barrier was refused, since the group has failed"), next);
  });
}

TEST_CASE("ranks that have come to the same operation are not called at another one") {
  std::latch told(2);
  over_shm(3, [&](ProcessGroup world) {
    world.set_timeout(std::chrono::milliseconds(300));
    if (world.rank() == 2) return pardl::testing::wait_until_failed(world), told.wait();
    std::vector<Tensors> out{{torch::ones({4}), torch::ones({4}), torch::ones({4})}};
    Tensors in{torch::ones({4})};
    auto const text = outcome([&] { world.c10d()->allgather(out, in)->wait(); });
    told.count_down();
    CHECK_MESSAGE(has(text, "ranks that have not come: 2 (has not called any collective)"), text);
    CHECK_MESSAGE(!has(text, "another operation"), text);
  });
}

TEST_CASE("a message that does not come, and a wait of less patience, are timeouts that say so") {
  over_shm(2, [](ProcessGroup world) {
    pardl::barrier(world);
    world.set_timeout(std::chrono::milliseconds(300));
    if (world.rank() == 1) return pardl::testing::wait_until_failed(world);
    auto t = torch::ones({5});
    auto const text = outcome([&] { pardl::recv(world, t, 1, 9).wait(); });
    CHECK_MESSAGE(
        has(text, "CommTimeout: [comm] rank 0/2: recv #1 from rank 1 (tag 9, float32[5]) timed out after 300 ms"),
        text);
  });
  over_shm(2, [](ProcessGroup world) {
    if (world.rank() == 1) return pardl::testing::wait_until_failed(world);
    Tensors t{torch::ones({5})};
    auto const work = world.c10d()->getDefaultBackend()->allreduce(t, {});
    auto const text = outcome([&] { work->wait(std::chrono::milliseconds(200)); });
    CHECK_MESSAGE(has(text, "CommTimeout: [comm] rank 0/2: all_reduce #1 (float32[5]) timed out after 200 ms"), text);
  });
}

TEST_CASE("a monitored barrier has a limit of its own") {
  over_shm(2, [](ProcessGroup world) {
    if (world.rank() == 1) return pardl::testing::wait_until_failed(world);
    c10d::BarrierOptions options;
    options.timeout = std::chrono::milliseconds(200);
    auto const text = outcome([&] { world.c10d()->getDefaultBackend()->monitoredBarrier(options, false); });
    CHECK_MESSAGE(has(text, "CommTimeout: [comm] rank 0/2: barrier #1 timed out after 200 ms"), text);
  });
}

// Between two mailboxes, since in a group another rank of this process would move the message on meanwhile.
TEST_CASE("once it is closed, as after a failure, a mailbox writes nothing into what the caller has back") {
  using namespace pardl::detail::shm;
  auto const sizes = Sizes::of(2, 4 << 10);
  Ground const ground(Segment::create(sizes.all()), sizes);
  Mailbox here(ground, 0), there(ground, 1);
  std::vector<float> letter(1'000'000, 1.0F), place(letter.size());  // more than a channel holds
  auto const message = [](std::vector<float>& memory, int peer) {
    auto made = std::make_shared<Message>();
    made->row = Row(memory.data(), memory.size() * sizeof(float));
    made->peer = peer;
    return made;
  };
  there.send(message(letter, 0));
  here.receive(message(place, 1));
  CHECK(there.advance());
  CHECK(here.advance());
  CHECK(there.advance());
  auto const then = place;
  CHECK(then.front() == 1);
  CHECK(then.back() == 0);
  here.close();
  CHECK(!here.advance());
  CHECK(place == then);
}

TEST_CASE("a message from anybody is not waited for when all have left") {
  over_shm(3, [](ProcessGroup world) {
    auto t = torch::zeros({2});
    if (world.rank() > 0) {
      if (world.rank() == 1) pardl::send(world, torch::ones({2}), 0, 3).wait();
      return;
    }
    CHECK(pardl::recv_any(world, t, 3) == 1);
    auto const text = outcome([&] { (void)pardl::recv_any(world, t, 3); });
    CHECK_MESSAGE(has(text, "has ended the group"), text);
  });
}

TEST_CASE("an operation that all ranks have come to ends well, even if another has failed since") {
  std::latch begun(1), failed(1);
  over_shm(3, [&](ProcessGroup world) {
    auto const tensor = torch::ones({4});
    if (world.rank() == 2) {  // looks at the others only when they are over
      auto work = pardl::all_reduce(world, tensor);
      begun.count_down();
      failed.wait();
      CHECK(outcome([&] { work.wait(); }) == "nothing");
      CHECK(tensor.sum().item<double>() == 12);
      CHECK(has(outcome([&] { pardl::barrier(world); }), "barrier was refused, since the group has failed"));
      return;
    }
    begun.wait();
    pardl::all_reduce(world, tensor).wait();
    if (world.rank() == 1) return;
    auto const text = outcome([&] { pardl::barrier(world); });
    failed.count_down();
    CHECK_MESSAGE(has(text, "rank 1 has ended the group"), text);
  });
}

TEST_CASE("a rank that gave up an operation and left is missed by who comes to it later") {
  std::latch gone(1);
  bare(2, {}, [&](c10d::Backend& backend, int rank) {
    Tensors t{torch::ones({4'000'000})};
    if (rank == 1) {
      auto const work = backend.allreduce(t, {});
      dynamic_cast<pardl::detail::ShmBackend&>(backend).engine().shutdown(std::chrono::milliseconds(0));
      CHECK(has(outcome([&] { work->wait(); }), "was given up: the group was shut down"));
      gone.count_down();
      return;
    }
    gone.wait();
    CHECK(has(outcome([&] { backend.allreduce(t, {})->wait(); }), "rank 1 has ended the group"));
  });
}

TEST_CASE("a future hears of a failure, whoever moves its operation on") {
  for (auto const progress : {Progress::caller, Progress::thread})
    bare(2, {.progress = progress}, [](c10d::Backend& backend, int rank) {
      if (rank == 1) return backend.abort();
      Tensors t{torch::ones({5})};
      std::string text;
      try {
        auto const future = backend.allreduce(t, {})->getFuture();
        future->wait();
        CHECK(future->hasError());
        text = future->tryRetrieveErrorMessage();
      } catch (pardl::CommError const& error) {  // the rank had gone before
        text = error.what();
      }
      CHECK_MESSAGE(has(text, "the group was aborted"), text);
    });
}

TEST_CASE("a rank that others keep busy is told of its deadline all the same") {
  bare(2, {}, [](c10d::Backend& backend, int rank) {
    backend.barrier()->wait();
    std::vector<at::Tensor> t{torch::ones({2})};
    if (rank == 0) {
      backend.setTimeout(std::chrono::milliseconds(300));
      auto const text = outcome([&] { backend.recv(t, 1, 9)->wait(); });
      CHECK_MESSAGE(has(text, "recv #1 from rank 1 (tag 9, float32[2]) timed out after 300 ms"), text);
    } else {
      auto const text = outcome([&] {  // far more than it has time for
        for (int i = 0; i < 3'000'000; ++i) backend.send(t, 0, 3)->wait();
      });
      CHECK_MESSAGE(has(text, "rank 0 says recv #1 from rank 1"), text);
    }
  });
}

TEST_CASE("who only asks whether an operation is over hears of deadlines and of ranks that have gone") {
  for (auto const progress : {Progress::caller, Progress::thread}) {
    std::latch heard(1);
    bare(2, {.progress = progress}, [&](c10d::Backend& backend, int rank) {
      backend.barrier()->wait();
      std::vector<at::Tensor> t{torch::ones({2})};
      if (rank == 1) return heard.wait();
      backend.setTimeout(std::chrono::milliseconds(300));
      auto const work = backend.allreduce(t, {});
      while (!work->isCompleted()) {
      }
      heard.count_down();
      CHECK(!work->isSuccess());
      auto const text = outcome([&] { work->wait(); });
      CHECK_MESSAGE(has(text, "CommTimeout: [comm] rank 0/2: all_reduce #2 (float32[2]) timed out after 300 ms"), text);
    });
  }
  over_shm(2, [&](ProcessGroup world) {
    if (world.rank() == 1) return;
    auto work = pardl::all_reduce(world, torch::ones({2}));
    while (!work.done()) {
    }
    auto const text = outcome([&] { work.wait(); });
    CHECK_MESSAGE(has(text, "rank 1 has ended the group"), text);
  });
}

TEST_CASE("a timeout longer than any clock is none, and so is c10d's kNoTimeout") {
  std::latch late(1);
  bare(2, {.timeout = std::chrono::milliseconds::max()}, [&](c10d::Backend& backend, int rank) {
    std::vector<at::Tensor> t{torch::ones({2})};
    if (rank == 1) late.wait();
    auto const work = backend.allreduce(t, {});
    if (rank == 0) late.count_down();
    work->wait();
    c10d::BarrierOptions options;
    options.timeout = kNoTimeout;
    backend.barrier(options)->wait();
    CHECK(t[0][0].item<float>() == 2);
  });
}

TEST_CASE("tensors of several dtypes are refused where bytes would be taken for other numbers") {
  bare(2, {}, [](c10d::Backend& backend, int) {
    Tensors in{torch::ones({2}), torch::ones({2})}, out{torch::ones({2}, torch::kInt), torch::ones({2}, torch::kInt)};
    std::vector<Tensors> lists{out};
    Tensors one{in[0]};
    std::vector<std::int64_t> even;
    for (auto const& text : {outcome([&] { backend.allgather(lists, one, {})->wait(); }), outcome([&] {
                               auto whole = torch::cat(out);
                               backend._allgather_base(whole, in[0], {})->wait();
                             }),
                             outcome([&] { backend.alltoall(out, in, {})->wait(); }),
                             outcome([&] { backend.alltoall_base(out[0], in[0], even, even, {})->wait(); })})
      CHECK_MESSAGE(has(text, "dtype"), text);
    backend.barrier()->wait();
  });
}

TEST_CASE("another name, or other options, of what is equally large are found") {
  bare(2, {}, [](c10d::Backend& backend, int rank) {
    Tensors in{torch::ones({2})};
    auto whole = torch::ones({4});
    std::vector<Tensors> lists{{torch::ones({2}), torch::ones({2})}};
    auto const text = outcome([&] {
      if (rank == 0)
        backend._allgather_base(whole, in[0], {})->wait();
      else
        backend.allgather(lists, in, {})->wait();
    });
    CHECK_MESSAGE(has(text, "all_gather_into #1"), text);
  });
  auto const store = c10::make_intrusive<c10d::HashStore>();
  pardl::testing::with_ranks(2, [&](ProcessGroup world) {
    auto const backend = pardl::backend::shm(
        store, world.rank(), 2,
        {.timeout = std::chrono::seconds(30), .read_all = world.rank() == 0 ? std::size_t{1} << 20 : 0});
    Tensors t{torch::ones({1000})};
    auto const text = outcome([&] { backend->allreduce(t, {})->wait(); });
    CHECK_MESSAGE(has(text, "with another ShmOptions::read_all"), text);
  });
}

TEST_CASE("a host without file descriptors refuses the meeting, and does not ask for ever") {
  namespace shm = pardl::detail::shm;
  shm::Door door(2);
  auto const memory = shm::Segment::create(4096);
  auto const invitation = door.invitation();
  ::sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::copy(invitation.begin() + 16, invitation.end(), address.sun_path);
  pardl::io::FileDescriptor const guest(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
  REQUIRE(::connect(guest.get(), reinterpret_cast<::sockaddr*>(&address),
                    static_cast<::socklen_t>(offsetof(::sockaddr_un, sun_path) + invitation.size() - 16)) == 0);
  ::rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  auto none = before;
  int const next = ::dup(guest.get());
  ::close(next);
  none.rlim_cur = static_cast<::rlim_t>(next);
  ::setrlimit(RLIMIT_NOFILE, &none);
  auto const text = outcome([&] { door.admit(*memory, shm::Clock::now() + std::chrono::hours(1)); });
  ::setrlimit(RLIMIT_NOFILE, &before);
  CHECK_MESSAGE(has(text, "no connection of another rank can be taken: too many open files"), text);
}

TEST_CASE("who does not know the secret from the store, or is no rank of the group, gets no memory") {
  auto const store = c10::make_intrusive<c10d::HashStore>();
  pardl::ShmOptions const options{.timeout = std::chrono::seconds(30)};
  std::vector<at::Tensor> sums[2] = {{torch::ones({5})}, {torch::ones({5})}};
  auto const join = [&](int rank) { pardl::backend::shm(store, rank, 2, options)->allreduce(sums[rank], {})->wait(); };
  std::thread first([&] { join(0); });
  store->wait({"shm"});
  auto const deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  auto const knock = [&](std::vector<std::uint8_t> const& invitation, int rank) {
    return outcome([&] { pardl::detail::shm::visit(invitation, rank, 2, deadline); });
  };
  auto const invitation = store->get("shm");
  auto forged = invitation;
  forged[3] ^= 1;
  for (auto const& text : {knock(forged, 1), knock(invitation, 0), knock(invitation, 2), knock(invitation, -1)})
    CHECK_MESSAGE(has(text, "rank 0 has not handed over its shared memory"), text);
  join(1);
  first.join();
  for (auto const& sum : sums) CHECK(torch::equal(sum[0], torch::full({5}, 2.0F)));
}

TEST_CASE("a rank that dies while it writes why the group has failed is not waited for") {
  namespace shm = pardl::detail::shm;
  auto const sizes = shm::Sizes::of(2, 4096);
  for (bool const fails : {false, true}) {
    shm::Ground const ground(shm::Segment::create(sizes.all()), sizes);
    auto& board = ground.board();
    board.failure = 1;  // as rank 1 leaves it
    board.failed_rank = 1;
    std::fill(std::begin(board.phrase), std::end(board.phrase), 'x');
    shm::Verdict verdict(ground, 0, 2);
    if (fails) verdict.give("failed: something else", false, nullptr);
    while (verdict.half_given()) {
    }
    CHECK(verdict.given());
    CHECK(std::string(board.phrase) == std::string(sizeof board.phrase - 1, 'x'));  // ended, and nobody else's
  }
}

TEST_CASE("a rank that ends the group in good order is not waited for, one that throws takes the others along") {
  over_shm(3, [](ProcessGroup world) {
    pardl::barrier(world);
    if (world.rank() == 1) return;
    auto const text = outcome([&] { pardl::barrier(world); });
    CHECK_MESSAGE(has(text, "rank 1 has ended the group"), text);
  });
  CHECK_THROWS_WITH_AS(over_shm(3,
                                [](ProcessGroup world) {
                                  if (world.rank() == 1) throw std::runtime_error("not a good day");
                                  auto const text = outcome([&] { pardl::barrier(world); });
                                  CHECK_MESSAGE(has(text, "rank 1 says it failed: an exception ended it"), text);
                                }),
                       "not a good day", std::runtime_error);
}
