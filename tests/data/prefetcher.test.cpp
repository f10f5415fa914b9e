// SPDX-License-Identifier: MIT
#include "pardl/data/detail/prefetcher.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using Prefetcher = pardl::detail::Prefetcher<std::unique_ptr<std::int64_t>>;

namespace {
std::unique_ptr<std::int64_t> boxed(std::int64_t i) { return std::make_unique<std::int64_t>(i); }
}  // namespace

TEST_CASE("items come in order and once each, whatever the number of threads") {
  for (int const threads : {0, 1, 2, 3, 8})
    for (std::int64_t const capacity : {1, 2, 7}) {
      std::atomic<int> calls = 0;
      Prefetcher items(100, threads, capacity, {[&](std::int64_t i) {
                         ++calls;
                         for (int spin = 0; spin < (i % 3) * 50; ++spin) std::this_thread::yield();
                         return boxed(i);
                       }});
      for (std::int64_t i = 0; i < 100; ++i) {
        auto const item = items.next();
        REQUIRE(item.has_value());
        CHECK(**item == i);
      }
      CHECK_FALSE(items.next().has_value());
      CHECK_FALSE(items.next().has_value());
      CHECK(calls == 100);
    }
}

TEST_CASE("nothing at all is a sequence, too") {
  Prefetcher items(0, 4, 4, {boxed});
  CHECK_FALSE(items.next().has_value());
}

TEST_CASE("threads never run further ahead than the capacity") {
  std::atomic<std::int64_t> taken = 0, furthest = 0;
  {
    Prefetcher items(200, 3, 4, {[&](std::int64_t i) {
                       auto const ahead = i - taken;
                       for (auto seen = furthest.load();
                            ahead > seen && !furthest.compare_exchange_weak(seen, ahead);) {
                       }
                       return boxed(i);
                     }});
    for (int i = 0; i < 100; ++i) {
      (void)items.next();
      ++taken;
    }
  }
  CHECK(furthest <= 4);  // item taken+4 may start between next()'s end and ++taken, no later one
}

TEST_CASE("what make throws comes out in its turn, with its type, and ends the sequence") {
  for (int const threads : {0, 1, 4}) {
    Prefetcher items(50, threads, 6, {[](std::int64_t i) {
                       if (i >= 10) throw std::out_of_range("item " + std::to_string(i));
                       return boxed(i);
                     }});
    for (std::int64_t i = 0; i < 10; ++i) CHECK(**items.next() == i);
    CHECK_THROWS_WITH_AS((void)items.next(), "item 10", std::out_of_range);
    CHECK_FALSE(items.next().has_value());
  }
}

TEST_CASE("after a failure nothing behind it is started any more") {
  std::atomic<std::int64_t> furthest = 0;
  Prefetcher items(1'000'000, 2, 4, {[&](std::int64_t i) {
                     if (i == 3) throw std::runtime_error("item 3");
                     if (i > furthest) furthest = i;
                     return boxed(i);
                   }});
  for (int i = 0; i < 3; ++i) (void)items.next();
  CHECK_THROWS_WITH((void)items.next(), "item 3");
  for (int turn = 0; turn < 10'000; ++turn) std::this_thread::yield();
  CHECK(furthest <= 3 + 4);
}

TEST_CASE("leaving early makes no more than what was under way and what fits in the queue") {
  std::atomic<int> calls = 0;
  {
    Prefetcher items(1'000'000, 2, 3, {[&](std::int64_t i) {
                       ++calls;
                       return boxed(i);
                     }});
    CHECK(**items.next() == 0);
  }
  CHECK(calls <= 1 + 3);
}

TEST_CASE("a consumer that waits for a slow item is woken, and every thread entered once") {
  std::atomic<int> entered = 0;
  std::atomic<bool> go = false;
  Prefetcher items(2, 2, 2,
                   {[&](std::int64_t i) {
                      if (i == 0)
                        while (!go) std::this_thread::yield();
                      else
                        go = true;  // the later item is ready first
                      return boxed(i);
                    },
                    [&] { ++entered; }});
  CHECK(**items.next() == 0);
  CHECK(**items.next() == 1);
  CHECK(entered == 2);
}

TEST_CASE("a thread that cannot start fails the sequence instead of hanging it") {
  Prefetcher items(5, 1, 2, {boxed, [] { throw std::runtime_error("no thread today"); }});
  CHECK_THROWS_WITH((void)items.next(), "no thread today");
}
