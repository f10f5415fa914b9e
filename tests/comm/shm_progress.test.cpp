// SPDX-License-Identifier: MIT
// Who moves operations over shared memory on: callers, threads, whoever waits; in which order; and what futures tell.
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <latch>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <vector>

#include "comm/shm_support.hpp"
#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using pardl::ProcessGroup;
using pardl::detail::shm::Progress;
using shm_test::bare, shm_test::over_shm;
using Tensors = std::vector<torch::Tensor>;

}  // namespace

TEST_CASE("operations go on in a thread, or in whoever waits, in any order of waiting; futures come either way") {
  for (auto const progress : {Progress::caller, Progress::thread})
    bare(3, {.progress = progress}, [](c10d::Backend& backend, int rank) {
      std::vector<c10::intrusive_ptr<c10d::Work>> works;
      std::vector<Tensors> tensors;
      for (int i = 0; i < 40; ++i) {
        tensors.push_back({torch::full({i % 3 == 0 ? 300'000 : 5}, rank + i + 0.0)});
        works.push_back(backend.allreduce(tensors.back(), {}));
      }
      auto const sum_of = [](int i) { return 3.0 * i + 3; };
      auto const chained = works[20]->getFuture()->then(
          [](c10::ivalue::Future& done) { return c10::IValue(done.value().toTensorVector().at(0).sum()); },
          c10::TensorType::get());
      chained->wait();
      CHECK(chained->value().toTensor().item<double>() == doctest::Approx(sum_of(20) * 5));
      for (std::size_t i = works.size(); i-- > 0;) works[i]->wait();
      for (int i = 0; i < 40; ++i) CHECK(tensors[static_cast<std::size_t>(i)][0].min().item<double>() == sum_of(i));
      CHECK(works[0]->isSuccess());
    });
}

TEST_CASE("with a thread, an operation ends although nobody waits for it") {
  bare(2, {.progress = Progress::thread}, [](c10d::Backend& backend, int rank) {
    Tensors t{torch::full({2'000'000}, rank + 1.0)};
    auto const work = backend.allreduce(t, {});
    std::mutex mutex;
    std::condition_variable told;
    bool over = false;
    work->getFuture()->addCallback([&](c10::ivalue::Future&) {
      std::lock_guard const lock(mutex);
      over = true;
      told.notify_all();
    });
    std::unique_lock lock(mutex);
    CHECK(told.wait_for(lock, std::chrono::seconds(60), [&] { return over; }));
    CHECK(t[0].min().item<float>() == 3);
  });
}

TEST_CASE("operations of two groups may be waited for in any order, another one on each rank") {
  over_shm(2, [](ProcessGroup world) {
    auto const part = world.split(0);
    REQUIRE(part);
    for (std::int64_t const count : {20'000, 2'000'000}) {  // more than a tick, and than all slots
      auto one = torch::full({count}, world.rank() + 1.0), two = torch::full({count}, world.rank() + 5.0);
      auto first = pardl::all_reduce(world, one), second = pardl::all_reduce(*part, two);
      if (world.rank() == 0) first.wait();
      second.wait();
      if (world.rank() == 1) first.wait();
      CHECK(one.min().item<double>() == 3);
      CHECK(two.max().item<double>() == 11);
    }
    auto letter = torch::full({2'000'000}, 7.0), sum = torch::ones({5});
    if (world.rank() == 0) {
      auto sent = pardl::send(world, letter, 1);
      pardl::all_reduce(*part, sum).wait();
      sent.wait();
    } else {
      letter.zero_();
      pardl::recv(world, letter, 0).wait();
      pardl::all_reduce(*part, sum).wait();
    }
    CHECK(letter.min().item<double>() == 7);
    CHECK(sum[0].item<double>() == 2);
  });
}

TEST_CASE("nor need the thread that waits be the one that began them") {
  over_shm(2, [](ProcessGroup world) {
    auto const part = world.split(0);
    REQUIRE(part);
    auto one = torch::full({2'000'000}, world.rank() + 1.0), two = torch::full({2'000'000}, world.rank() + 5.0);
    pardl::Work first, second;
    std::thread([&] { first = pardl::all_reduce(world, one); }).join();
    std::thread([&] { second = pardl::all_reduce(*part, two); }).join();
    if (world.rank() == 0) first.wait();
    second.wait();
    if (world.rank() == 1) first.wait();
    CHECK(one.max().item<double>() == 3);
    CHECK(two.max().item<double>() == 11);
  });
}

TEST_CASE("inference mode is the caller's, whichever thread moves its operation on") {
  for (auto const progress : {Progress::caller, Progress::thread})
    bare(2, {.progress = progress}, [](c10d::Backend& backend, int rank) {
      Tensors sum{torch::ones({1'000'000})};
      auto const before = backend.allreduce(sum, {});
      std::vector<Tensors> out(1);
      c10::intrusive_ptr<c10d::Work> work;
      {
        c10::InferenceMode const inference;
        out[0] = {torch::zeros({4, 2}).select(1, 0), torch::zeros({4})};
        Tensors in{torch::full({4, 2}, rank + 1.0).select(1, 1)};
        work = backend.allgather(out, in, {});
      }
      before->wait();
      work->wait();
      CHECK(out[0][0].sum().item<float>() == 4);
      CHECK(out[0][1].sum().item<float>() == 8);
    });
}

TEST_CASE("operations read and write in the order of the calls, whatever a rank sends itself and copies") {
  for (auto const progress : {Progress::caller, Progress::thread})
    bare(2, {.progress = progress}, [](c10d::Backend& backend, int rank) {
      for (bool const gaps : {false, true}) {
        auto const of = [gaps](std::int64_t count) {
          return gaps ? torch::zeros({count, 2}).select(1, 0) : torch::zeros({count});
        };
        auto x = of(100'000), all = of(200'000);
        x.fill_(rank + 1);
        Tensors t{x};
        auto const sum = backend.allreduce(t, {});
        auto const gathered = backend._allgather_base(all, x, {});
        auto const twice = backend.allreduce(t, {});
        twice->wait();
        gathered->wait();
        CHECK(all.min().item<float>() == 3);
        CHECK(all.max().item<float>() == 3);
        CHECK(x.min().item<float>() == 6);
      }
    });
}

TEST_CASE("a future's callback may wait for the next operation, and one that throws ends nothing else") {
  bare(2, {.progress = Progress::thread}, [](c10d::Backend& backend, int) {
    for (int i = 0; i < 300; ++i) {
      Tensors a{torch::ones({20})}, b{torch::ones({20})};
      auto const first = backend.allreduce(a, {}), second = backend.allreduce(b, {});
      auto const then =
          first->getFuture()->then([second](c10::ivalue::Future&) { return second->wait(); }, c10::BoolType::get());
      then->wait();
      CHECK(then->value().toBool());
    }
    Tensors a{torch::ones({1'000'000})}, b{torch::ones({20})};
    auto const first = backend.allreduce(a, {}), second = backend.allreduce(b, {});
    try {
      first->getFuture()->addCallback([](c10::ivalue::Future&) { throw std::runtime_error("not today"); });
    } catch (std::runtime_error const&) {  // it was over already, so this thread has called it
    }
    second->wait();
    first->wait();
    CHECK(a[0].min().item<float>() == 2);
    CHECK(b[0].min().item<float>() == 2);
  });
}

TEST_CASE("a callback may wait for another group, while others wait for what this one has under way") {
  auto const store = c10::make_intrusive<c10d::HashStore>();
  std::latch asked(1);
  bare(2, {.progress = Progress::thread}, [&](c10d::Backend& a, int rank) {
    auto const b = pardl::backend::shm(store, rank, 2, {.timeout = std::chrono::seconds(60)});
    Tensors x{torch::ones({5})}, y{torch::ones({5})}, z{torch::ones({2'000'000})};
    if (rank == 0) {  // the group's own thread is the one that comes to the callback
      a.allreduce(x, {})->getFuture()->addCallback([&](c10::ivalue::Future&) { b->allreduce(y, {})->wait(); });
      auto const second = a.allreduce(z, {})->getFuture();
      asked.count_down();
      second->wait();
      a.barrier()->wait();
    } else {
      asked.wait();
      a.allreduce(x, {})->wait();
      a.allreduce(z, {})->wait();
      b->allreduce(y, {})->wait();
      a.barrier()->wait();
    }
    b->barrier()->wait();
    CHECK(y[0][0].item<float>() == 2);
    CHECK(z[0].min().item<float>() == 2);
  });
}

TEST_CASE("callbacks run in the grad mode of who asked for the future, whoever moves the operation on") {
  bare(2, {.progress = Progress::thread}, [](c10d::Backend& backend, int) {
    std::atomic<int> without = 0, told = 0;
    constexpr int times = 200;
    for (int i = 0; i < times; ++i) {
      Tensors x{torch::ones({5})}, y{torch::ones({20'000})};
      backend.allreduce(x, {})->getFuture()->addCallback([&](c10::ivalue::Future&) {
        without += torch::GradMode::is_enabled() ? 0 : 1;
        told += 1;
      });
      torch::NoGradGuard const no_grad;
      backend.allreduce(y, {})->wait();
    }
    backend.barrier()->wait();
    backend.shutdown();
    CHECK(told == times);
    CHECK(without == 0);
  });
}

TEST_CASE("a rank that ends carries out what is under way, also what nobody waits for") {
  bare(2, {}, [](c10d::Backend& backend, int rank) {
    Tensors t{torch::ones({2'000'000})};
    auto const work = backend.allreduce(t, {});
    if (rank == 0) return;
    work->wait();
    CHECK(t[0].min().item<float>() == 2);
  });
}

TEST_CASE("a process forked from a rank may have groups and end its copy of the rank's: the rank's goes on") {
  std::latch begun(1), over(1);  // rank 1 stands still meanwhile: a fork's locks are as they were
  bare(2, {.progress = Progress::caller}, [&](c10d::Backend& backend, int rank) {
    Tensors t{torch::full({2'000'000}, rank + 1.0)};
    auto const work = backend.allreduce(t, {});
    if (rank == 1) {
      begun.count_down();
      over.wait();
    } else {
      begun.wait();
      pid_t const child = ::fork();
      if (child == 0) {
        bare(2, {.progress = Progress::caller}, [](c10d::Backend& own, int) { own.barrier({})->wait(); });
        backend.shutdown();
        ::_exit(0);
      }
      int status = -1;
      ::waitpid(child, &status, 0);
      CHECK(status == 0);
      over.count_down();
    }
    work->wait();
    CHECK(t[0].min().item<float>() == 3);
    backend.barrier({})->wait();
  });
}
