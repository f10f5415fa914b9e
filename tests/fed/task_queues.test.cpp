// SPDX-License-Identifier: MIT
#include "pardl/fed/detail/task_queues.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <thread>
#include <vector>

using pardl::fed::detail::TaskQueues;

namespace {

using Tasks = std::vector<std::uint32_t>;

}  // namespace

TEST_CASE("a worker takes its own tasks from the front, then others' from the back of the fullest queue") {
  TaskQueues queues(3, 8);
  queues.fill(0, Tasks{7});
  queues.fill(1, Tasks{1, 2});
  queues.fill(2, Tasks{3, 4, 5});
  CHECK(queues.peek(0) == 7U);
  CHECK(queues.peek(2) == 3U);
  CHECK(queues.take(0) == 7U);
  CHECK_FALSE(queues.peek(0));
  CHECK(queues.take(0) == 5U);  // from worker 2, who has most
  CHECK(queues.take(2) == 3U);
  CHECK(queues.peek(2) == 4U);
  CHECK(queues.take(0) == 2U);  // from worker 1
  CHECK(queues.take(1) == 1U);
  CHECK_FALSE(queues.peek(1));
  CHECK(queues.take(1) == 4U);
  for (std::size_t worker = 0; worker < 3; ++worker) {
    CHECK_FALSE(queues.peek(worker));
    CHECK_FALSE(queues.take(worker));
  }
  queues.fill(0, Tasks{});  // a queue filled anew is all there is of it
  queues.fill(1, Tasks{6, 0, 2});
  CHECK(queues.take(0) == 2U);
  CHECK(queues.take(1) == 6U);
  CHECK(queues.take(1) == 0U);
  CHECK_FALSE(queues.take(1));
}

TEST_CASE("however many take at a time, each task is taken once and none is left") {
  constexpr std::size_t workers = 4;
  constexpr std::uint32_t count = 20'000;
  TaskQueues queues(workers, count);
  for (bool const one_has_all : {true, false}) {
    Tasks all(count);
    std::iota(all.begin(), all.end(), 0U);
    for (std::size_t worker = 0; worker < workers; ++worker) {
      auto const begin = one_has_all ? (worker == 0 ? 0 : count) : worker * count / workers;
      auto const end = one_has_all ? count : (worker + 1) * count / workers;
      queues.fill(worker, std::span(all).subspan(begin, end - begin));
    }
    std::vector<std::atomic<int>> taken(count);
    std::atomic<std::size_t> ready{0};
    std::vector<std::thread> threads;
    for (std::size_t worker = 0; worker < workers; ++worker)
      threads.emplace_back([&, worker] {
        ++ready;
        while (ready < workers) std::this_thread::yield();
        while (auto const task = queues.take(worker)) ++taken[*task];
      });
    for (auto& thread : threads) thread.join();
    bool once = true;
    for (auto const& times : taken) once = once && times == 1;
    CHECK(once);
  }
}
