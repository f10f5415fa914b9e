// SPDX-License-Identifier: MIT
// The schedule is carried out with sets in place of sums: of every element each rank knows whose contributions it holds
// and how often, so a sum that is made twice, not at all, or sent before it is there, shows.
#include "pardl/policy/ring_schedule.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <set>
#include <vector>

using pardl::ElementRange;
using pardl::Ranks;
using pardl::RingMove;
using pardl::RingPhase;
using pardl::RingSchedule;

namespace {

constexpr int most_ranks = 17;

using Contributions = std::multiset<int>;     // ranks whose values are in a sum
using Elements = std::vector<Contributions>;  // of one rank's tensor
using Message = std::vector<Contributions>;   // what is on its way
using Schedules = std::vector<RingSchedule>;  // of every rank
using Lengths = std::vector<std::int64_t>;

Schedules schedules_of(int ranks, std::int64_t length, std::int64_t segments) {
  Schedules all;
  for (int rank = 0; rank < ranks; ++rank) all.emplace_back(length, Ranks(rank, ranks), segments);
  return all;
}

Lengths lengths_for(int ranks) { return {0, 1, 2, ranks - 1, ranks, ranks + 1, 3 * ranks + 2, 61}; }

Message read(Elements const& elements, ElementRange range) {
  return {elements.begin() + range.begin, elements.begin() + range.end()};
}

bool overlap(ElementRange a, ElementRange b) {
  return a.size > 0 && b.size > 0 && a.begin < b.end() && b.begin < a.end();
}

/// What every rank holds after its moves, each begun as early as lookahead() says: what a move sends is read then.
std::vector<Elements> carried_out(Schedules const& ring) {
  auto const ranks = static_cast<int>(ring.size());
  std::vector<Elements> held(ring.size());
  for (int rank = 0; rank < ranks; ++rank)
    held[static_cast<std::size_t>(rank)].assign(static_cast<std::size_t>(ring[0].length()), {rank});
  std::vector<std::vector<Message>> sent(ring.size());
  for (std::int64_t i = 0; i < ring[0].size(); ++i) {
    for (std::size_t r = 0; r < ring.size(); ++r)
      while (static_cast<std::int64_t>(sent[r].size()) < std::min(i + 1 + ring[r].lookahead(), ring[r].size()))
        sent[r].push_back(read(held[r], ring[r][static_cast<std::int64_t>(sent[r].size())].send));
    for (std::size_t r = 0; r < ring.size(); ++r) {
      auto const move = ring[r][i];
      auto const& message = sent[static_cast<std::size_t>(ring[r].previous())][static_cast<std::size_t>(i)];
      REQUIRE(static_cast<std::int64_t>(message.size()) == move.receive.size);
      for (std::size_t e = 0; e < message.size(); ++e) {
        auto& mine = held[r][static_cast<std::size_t>(move.receive.begin) + e];
        if (move.phase == RingPhase::reduce_scatter)
          mine.insert(message[e].begin(), message[e].end());
        else
          mine = message[e];
      }
    }
  }
  return held;
}

template <class F>
void everywhere(F&& f) {
  for (int ranks = 1; ranks <= most_ranks; ++ranks)
    for (auto const length : lengths_for(ranks))
      for (std::int64_t const segments : {1, 2, 3, 7}) {
        CAPTURE(ranks);
        CAPTURE(length);
        CAPTURE(segments);
        f(schedules_of(ranks, length, segments));
      }
}

// The same claim, by counting and at compile time: bit r of a word is the contribution of rank r.
constexpr bool every_chunk_reaches_everyone(int ranks, std::int64_t segments) {
  constexpr std::int64_t length = 23;
  std::array<std::array<std::uint32_t, length>, most_ranks> held{}, next{};
  for (int rank = 0; rank < ranks; ++rank) held[static_cast<std::size_t>(rank)].fill(1U << rank);
  for (std::int64_t i = 0; i < RingSchedule(length, {0, ranks}, segments).size(); ++i) {
    next = held;
    for (int rank = 0; rank < ranks; ++rank) {
      RingSchedule const mine(length, {rank, ranks}, segments);
      auto const move = mine[i];
      for (auto e = static_cast<std::size_t>(move.receive.begin); e < static_cast<std::size_t>(move.receive.end());
           ++e) {
        auto const got = held[static_cast<std::size_t>(mine.previous())][e];
        auto& into = next[static_cast<std::size_t>(rank)][e];
        if (move.phase == RingPhase::reduce_scatter && (into & got) != 0) return false;  // a contribution twice
        into = move.phase == RingPhase::reduce_scatter ? into | got : got;
      }
    }
    held = next;
  }
  for (int rank = 0; rank < ranks; ++rank)
    for (auto const word : held[static_cast<std::size_t>(rank)])
      if (word != (1U << ranks) - 1U) return false;
  return true;
}
static_assert(every_chunk_reaches_everyone(1, 1));
static_assert(every_chunk_reaches_everyone(2, 1) && every_chunk_reaches_everyone(2, 5));
static_assert(every_chunk_reaches_everyone(5, 1) && every_chunk_reaches_everyone(5, 3));
static_assert(every_chunk_reaches_everyone(8, 2));
static_assert(RingSchedule(3, {4, 5}).chunk(4).size == 0, "more ranks than elements leave chunks empty");
static_assert(RingSchedule(100, {0, 4}, 3).widest() == 9 && RingSchedule(100, {0, 4}, 3).size() == 18);
static_assert(pardl::ring_segments(100, 4, 10) == 3 && pardl::ring_segments(100, 4, 25) == 1);
static_assert(pardl::ring_segments(0, 4, 10) == 1 && pardl::ring_segments(100, 4, 0) == 1);
static_assert(pardl::ring_segments(7, 2, 1) == 4);

}  // namespace

TEST_CASE("every element is summed exactly once with every rank's contribution, and the sum reaches every rank") {
  everywhere([](Schedules const& ring) {
    Contributions all;
    for (int rank = 0; rank < static_cast<int>(ring.size()); ++rank) all.insert(rank);
    for (auto const& elements : carried_out(ring))
      CHECK(std::all_of(elements.begin(), elements.end(), [&](Contributions const& c) { return c == all; }));
  });
}

TEST_CASE("chunks and segments are the tensor, in order, without gaps, and differ by at most one element") {
  everywhere([](Schedules const& ring) {
    auto const& schedule = ring[0];
    std::int64_t at = 0, least = schedule.length(), most = 0;
    for (int c = 0; c < static_cast<int>(ring.size()); ++c) {
      CHECK(schedule.chunk(c).begin == at);
      least = std::min(least, schedule.chunk(c).size);
      most = std::max(most, schedule.chunk(c).size);
      for (std::int64_t s = 0; s < schedule.segments(); ++s) {
        CHECK(schedule.segment(c, s).begin == at);
        CHECK(schedule.segment(c, s).size <= schedule.widest());
        at += schedule.segment(c, s).size;
      }
      CHECK(schedule.chunk(c).end() == at);
    }
    CHECK(at == schedule.length());
    CHECK(most - least <= 1);
  });
}

TEST_CASE("in every move each rank sends one segment to the next rank, which receives just that") {
  everywhere([](Schedules const& ring) {
    bool fits = true;
    for (std::int64_t i = 0; i < ring[0].size(); ++i) {
      std::set<int> receivers, senders;
      for (auto const& schedule : ring) {
        receivers.insert(schedule.next());
        senders.insert(schedule.previous());
        auto const& their_schedule = ring[static_cast<std::size_t>(schedule.next())];
        auto const move = schedule[i], theirs = their_schedule[i];
        fits = fits && their_schedule.previous() == schedule.group().rank() && theirs.receive == move.send &&
               theirs.receive_chunk == move.send_chunk && theirs.segment == move.segment &&
               theirs.phase == move.phase && theirs.step == move.step;
      }
      fits = fits && receivers.size() == ring.size() && senders.size() == ring.size();
    }
    CHECK(fits);
  });
}

TEST_CASE("nobody sends what it has not yet received and summed, and no move begun early needs the one before") {
  everywhere([](Schedules const& ring) {
    bool early = false;
    for (auto const& schedule : ring)
      for (std::int64_t i = 0; i < schedule.size(); ++i) {
        auto const needed = schedule.needs(i);
        early = early || (needed >= 0 && needed >= i - schedule.lookahead());
        early = early || (needed >= 0 && schedule[needed].receive != schedule[i].send);
        for (auto j = needed + 1; j < i; ++j) early = early || overlap(schedule[j].receive, schedule[i].send);
      }
    CHECK_FALSE(early);
  });
}

TEST_CASE("what a receive replaces has been sent by the move that overwrites() names, the last one to do so") {
  everywhere([](Schedules const& ring) {
    bool lost = false;
    for (auto const& schedule : ring)
      for (std::int64_t i = 0; i < schedule.size(); ++i) {
        auto const sent = schedule.overwrites(i);
        lost = lost || sent >= i || (sent >= 0 && schedule[sent].send != schedule[i].receive);
        for (auto j = std::max<std::int64_t>(sent + 1, 0); j <= i; ++j)
          lost = lost || overlap(schedule[j].send, schedule[i].receive);
      }
    CHECK_FALSE(lost);
  });
}

TEST_CASE("a rank completes one chunk, each segment once, and the chunks are all the ranks' together") {
  everywhere([](Schedules const& ring) {
    if (ring.size() == 1) return;
    std::set<int> chunks;
    for (auto const& schedule : ring) {
      std::set<std::int64_t> segments;
      for (std::int64_t i = 0; i < schedule.size(); ++i)
        if (schedule.completes(i)) {
          CHECK(schedule[i].phase == RingPhase::reduce_scatter);
          CHECK(schedule[i].receive_chunk == (schedule.group().rank() + 1) % schedule.group().size());
          chunks.insert(schedule[i].receive_chunk);
          segments.insert(schedule[i].segment);
        }
      CHECK(static_cast<std::int64_t>(segments.size()) == schedule.segments());
    }
    CHECK(chunks.size() == ring.size());
  });
}

TEST_CASE("a rank sends 2(n-1) chunks, which is within rounding 2(n-1)/n of the tensor") {
  everywhere([](Schedules const& ring) {
    auto const n = static_cast<std::int64_t>(ring.size());
    std::int64_t all = 0;
    for (auto const& schedule : ring) {
      std::int64_t mine = 0;
      for (std::int64_t i = 0; i < schedule.size(); ++i) mine += schedule[i].send.size;
      CHECK(schedule.size() == 2 * (n - 1) * schedule.segments());
      CHECK(mine <= 2 * (n - 1) * schedule.chunk(0).size);
      all += mine;
    }
    CHECK(all == 2 * (n - 1) * ring[0].length());
  });
}

TEST_CASE("what cannot be is refused in a sentence") {
  CHECK_THROWS_WITH_AS(
      RingSchedule(-1, {0, 2}),
      "[ring] rank 0/2: -1 elements in 1 segments; a tensor has 0 elements or more, a chunk 1 segment or more.",
      pardl::ConfigError);
  CHECK_THROWS_AS(RingSchedule(4, {0, 2}, 0), pardl::ConfigError);
}
