// SPDX-License-Identifier: MIT
#include "pardl/policy/worker_clocks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

using pardl::WorkerClocks;

TEST_CASE("staleness 0: each step waits for all, and each worker for each step") {
  WorkerClocks clocks(3, 0);
  CHECK(clocks.may_go_on(0));  // to its first step
  CHECK_FALSE(clocks.ready());
  CHECK(clocks.give(2) == 0);
  CHECK(clocks.give(0) == 0);
  CHECK_FALSE(clocks.ready());
  CHECK_FALSE(clocks.may_go_on(0));
  CHECK(clocks.may_go_on(1));
  CHECK(clocks.give(1) == 0);
  CHECK(clocks.ready());
  CHECK(clocks.contributors() == std::vector<int>{0, 1, 2});  // by rank, not by arrival
  CHECK_FALSE(clocks.may_go_on(0));
  clocks.step();
  CHECK(clocks.version() == 1);
  CHECK_FALSE(clocks.ready());
  for (int const w : {0, 1, 2}) CHECK(clocks.may_go_on(w));
}

TEST_CASE("staleness s: a worker makes s steps without the slowest, and no more") {
  for (int const s : {0, 1, 2, 5}) {
    CAPTURE(s);
    WorkerClocks clocks(2, s);
    for (int step = 0; step < s; ++step) {
      clocks.give(0);
      CHECK(clocks.may_go_on(0));
    }
    clocks.give(0);
    CHECK_FALSE(clocks.may_go_on(0));
    CHECK_FALSE(clocks.ready());
    clocks.give(1);
    CHECK(clocks.ready());
    clocks.step();
    CHECK(clocks.may_go_on(0));
  }
}

TEST_CASE("who finishes or is lost is waited for no longer, and what it gave counts") {
  WorkerClocks clocks(3, 1);
  clocks.give(0);
  clocks.give(0);
  clocks.give(1);
  clocks.lose(0);
  CHECK(clocks.training() == 2);
  CHECK_FALSE(clocks.ready());  // worker 2 has given nothing
  clocks.finish(2);
  CHECK(clocks.ready());
  CHECK(clocks.contributors() == std::vector<int>{0, 1});
  clocks.step();
  CHECK_FALSE(clocks.ready());  // worker 1 trains
  clocks.finish(1);
  CHECK(clocks.ready());
  CHECK_FALSE(clocks.over());
  CHECK(clocks.contributors() == std::vector<int>{0});
  clocks.step();
  CHECK(clocks.over());
  CHECK(clocks.given(0) == 2);
}

TEST_CASE("nobody gives anything: over without a step") {
  WorkerClocks clocks(2, 0);
  CHECK_FALSE(clocks.over());
  clocks.finish(0);
  clocks.lose(1);
  clocks.finish(1);
  CHECK_FALSE(clocks.ready());
  CHECK(clocks.over());
}

TEST_CASE("a staleness without end neither overflows nor stops anybody") {
  WorkerClocks clocks(2, std::numeric_limits<int>::max());
  for (int i = 0; i < 1000; ++i) clocks.give(0);
  CHECK(clocks.may_go_on(0));
  CHECK_FALSE(clocks.ready());
}

TEST_CASE("whatever happens in whatever order, versions keep their bound and all ends") {
  for (unsigned seed = 0; seed < 300; ++seed) {
    CAPTURE(seed);
    std::mt19937 draws(seed);
    int const workers = 1 + static_cast<int>(draws() % 4), staleness = static_cast<int>(draws() % 4);
    WorkerClocks clocks(workers, staleness);
    std::vector<std::int64_t> begun(static_cast<std::size_t>(workers), 0);  // version that its present step began with
    std::vector<bool> trains(static_cast<std::size_t>(workers), true), waits(static_cast<std::size_t>(workers), false);
    std::int64_t used = 0, given = 0;
    bool bound = true, spread = true;
    for (int move = 0; move < 5000 && !clocks.over(); ++move) {
      auto const w = static_cast<std::size_t>(draws() % static_cast<unsigned>(workers));
      int const worker = static_cast<int>(w);
      if (clocks.ready() && draws() % 2 == 0) {
        auto const from = clocks.contributors();
        CHECK(std::is_sorted(from.begin(), from.end()));
        CHECK_FALSE(from.empty());
        used += static_cast<std::int64_t>(from.size());
        clocks.step();
      } else if (trains[w] && waits[w]) {
        if (!clocks.may_go_on(worker)) continue;
        waits[w] = false;
        begun[w] = clocks.version();
        bound = bound && begun[w] >= clocks.given(worker) - staleness && begun[w] <= clocks.given(worker);
      } else if (trains[w]) {
        if (move > 300 || draws() % 64 == 0) {
          draws() % 2 == 0 ? clocks.finish(worker) : clocks.lose(worker);
          trains[w] = false;
        } else {
          clocks.give(worker);
          ++given;
          waits[w] = true;
          std::int64_t slowest = clocks.given(worker);
          for (std::size_t other = 0; other < trains.size(); ++other)
            if (trains[other]) slowest = std::min(slowest, clocks.given(static_cast<int>(other)));
          // One more than the staleness: the step that it has just made, and waits after.
          spread = spread && clocks.given(worker) - slowest <= staleness + 1;
        }
      }
    }
    CHECK(bound);
    CHECK(spread);
    CHECK(clocks.over());
    CHECK(used == given);
  }
}

TEST_CASE("numbers that cannot be are refused in a sentence") {
  CHECK_THROWS_WITH_AS(WorkerClocks(0, 0), "[policy] 0 workers; a parameter server needs one.", pardl::ConfigError);
  CHECK_THROWS_WITH_AS(WorkerClocks(1, -1), "[policy] staleness -1; give the steps that a worker may be ahead, from 0.",
                       pardl::ConfigError);
}
