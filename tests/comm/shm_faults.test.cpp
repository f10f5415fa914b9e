// SPDX-License-Identifier: MIT
// Ranks as processes that share memory: one is killed at a random moment, again and again. The others must end with a
// sentence that names it, in time, and nothing may be left of any of them. Ranks are forked before this process has
// started a thread, which is why these tests stand alone.
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <vector>

#include "pardl/comm/backend/shm.hpp"
#include "support/process.hpp"
#include "support/seed.hpp"
#include "support/sentences.hpp"
#include "support/temporary_folder.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using pardl::testing::TemporaryFolder;

/// A forked rank, and what it says.
struct Rank {
  pid_t pid = -1;
  int pipe = -1;
};

/// Works until it fails, and says why: small and large reductions, copies, messages.
[[noreturn]] void work(std::string const& meeting, int rank, int size, int out, std::chrono::milliseconds timeout) {
  auto const text = pardl::testing::outcome([&] {
    auto const store = c10::make_intrusive<c10d::FileStore>(meeting, size);
    auto const backend = pardl::backend::shm(store, rank, size, {.timeout = timeout});
    (void)!::write(out, "!", 1);  // it is at work
    std::vector<at::Tensor> small{torch::ones({10})}, large{torch::ones({300'000})}, letter{torch::ones({200'000})},
        other{torch::ones({200'000})};
    for (;;) {
      backend->allreduce(small, {})->wait();
      backend->allreduce(large, {})->wait();
      backend->broadcast(large, {})->wait();
      auto const sent = backend->send(letter, (rank + 1) % size, 0);
      backend->recv(other, (rank + size - 1) % size, 0)->wait();
      sent->wait();
      small[0].fill_(1);
      large[0].fill_(1);
    }
  });
  (void)!::write(out, text.data(), text.size());
  ::_exit(0);
}

std::vector<Rank> start(std::string const& meeting, int size, std::chrono::milliseconds timeout) {
  std::vector<Rank> ranks;
  for (int rank = 0; rank < size; ++rank) {
    int ends[2] = {-1, -1};
    if (::pipe(ends) != 0) throw std::runtime_error("no pipe");
    pid_t const pid = ::fork();
    if (pid == 0) {
      for (auto const& other : ranks) ::close(other.pipe);
      ::close(ends[0]);
      work(meeting, rank, size, ends[1], timeout);
    }
    ::close(ends[1]);
    ranks.push_back({pid, ends[0]});
  }
  return ranks;
}

bool at_work(Rank const& rank) {
  ::pollfd look{rank.pipe, POLLIN, 0};
  char byte = 0;
  return ::poll(&look, 1, 60'000) == 1 && ::read(rank.pipe, &byte, 1) == 1 && byte == '!';
}

/// What a rank still has to say, and whether it ended by itself in time.
std::pair<std::string, bool> last_words(Rank const& rank) {
  std::string text;
  bool in_time = true;
  for (;;) {
    ::pollfd look{rank.pipe, POLLIN, 0};
    if (::poll(&look, 1, 30'000) != 1) {
      in_time = false;
      ::kill(rank.pid, SIGKILL);
    }
    char buffer[4096];
    auto const got = ::read(rank.pipe, buffer, sizeof buffer);
    if (got <= 0) break;
    text.append(buffer, static_cast<std::size_t>(got));
  }
  ::close(rank.pipe);
  ::waitpid(rank.pid, nullptr, 0);
  return {text, in_time};
}

/// What is in the places where other shared memories leave something.
std::size_t left_behind() {
  std::size_t count = 0;
  for (auto const& entry : std::filesystem::directory_iterator("/dev/shm")) {
    (void)entry;
    ++count;
  }
  return count;
}

}  // namespace

TEST_CASE("a rank killed at any moment is named by the others within their time, 200 times, and nothing is left") {
  auto const seed = pardl::testing::draw_seed();
  CAPTURE(seed);
  std::mt19937 draws(seed);
  auto const before = left_behind();
  TemporaryFolder const folder;
  for (int round = 0; round < 200; ++round) {
    CAPTURE(round);
    int const size = 2 + static_cast<int>(draws() % 2),
              victim = static_cast<int>(draws() % static_cast<unsigned>(size));
    auto const ranks = start((folder.path() / std::to_string(round)).string(), size, std::chrono::seconds(25));
    bool all = true;
    for (auto const& rank : ranks) all = at_work(rank) && all;
    CHECK(all);
    ::poll(nullptr, 0, static_cast<int>(draws() % 6));  // the random moment; nothing is waited for
    ::kill(ranks[static_cast<std::size_t>(victim)].pid, SIGKILL);
    for (int rank = 0; rank < size; ++rank) {
      auto const [text, in_time] = last_words(ranks[static_cast<std::size_t>(rank)]);
      CHECK(in_time);
      if (rank == victim) continue;
      CHECK_MESSAGE(text.find("CommError: [comm] rank " + std::to_string(rank) + "/" + std::to_string(size)) == 0,
                    text);
      CHECK_MESSAGE(text.find("rank " + std::to_string(victim) + " has died") != std::string::npos, text);
    }
  }
  CHECK(left_behind() == before);
}

TEST_CASE("a rank killed while the ranks meet is a timeout that says who is missing, or an error that names it") {
  TemporaryFolder const folder;
  std::mt19937 draws(5);
  for (int round = 0; round < 5; ++round) {
    CAPTURE(round);
    auto const ranks = start((folder.path() / std::to_string(round)).string(), 3, std::chrono::seconds(2));
    ::poll(nullptr, 0, static_cast<int>(draws() % 4));
    ::kill(ranks[2].pid, SIGKILL);
    for (std::size_t rank = 0; rank < 2; ++rank) {
      auto const [text, in_time] = last_words(ranks[rank]);
      CHECK(in_time);
      CHECK_MESSAGE(text.find("Comm") != std::string::npos, text);
      CHECK_MESSAGE((text.find("2") != std::string::npos || text.find("rank 0") != std::string::npos), text);
    }
    (void)last_words(ranks[2]);
  }
}

TEST_CASE("a stopped rank is a timeout on the others") {
  TemporaryFolder const folder;
  auto const ranks = start((folder.path() / "stopped").string(), 3, std::chrono::seconds(2));
  for (auto const& rank : ranks) CHECK(at_work(rank));
  ::kill(ranks[1].pid, SIGSTOP);
  for (std::size_t const rank : {0, 2}) {
    auto const [text, in_time] = last_words(ranks[rank]);
    CHECK(in_time);
    CHECK_MESSAGE(text.find("CommTimeout: [comm] rank " + std::to_string(rank) + "/3") == 0, text);
    CHECK_MESSAGE(text.find("timed out after 2 s") != std::string::npos, text);
  }
  ::kill(ranks[1].pid, SIGKILL);
  (void)last_words(ranks[1]);
}
