// SPDX-License-Identifier: MIT
#include "pardl/io/file_lock.hpp"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "support/temporary_folder.hpp"

using namespace std::chrono_literals;
using pardl::io::FileLock;
using pardl::testing::TemporaryFolder;
using pardl::testing::what_of;

TEST_CASE("one holder at a time, each gets its turn, and the file goes with the last") {
  TemporaryFolder folder;
  std::atomic<int> inside = 0, most = 0, turns = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 25; ++i) {
        FileLock const lock(folder / "x.lock", 60s);
        most = std::max(most.load(), ++inside);
        std::this_thread::yield();
        ++turns;
        --inside;
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK(most == 1);
  CHECK(turns == 100);
  CHECK_FALSE(std::filesystem::exists(folder / "x.lock"));
}

TEST_CASE("who waits too long is told, and whoever waits is told once") {
  TemporaryFolder folder;
  FileLock const held(folder / "x.lock", 1s);
  int told = 0;
  auto const what = what_of<pardl::Error>([&] { FileLock(folder / "x.lock", 50ms, [&] { ++told; }); });
  CHECK(what.find("another process holds " + (folder / "x.lock").string()) != std::string::npos);
  CHECK(told == 1);
  CHECK(std::filesystem::exists(folder / "x.lock"));
}

TEST_CASE("a lock whose file was removed while we waited guards nothing, and is not taken for one") {
  TemporaryFolder folder;
  std::optional<FileLock> first(std::in_place, folder / "x.lock", 1s), second;
  auto const overtaken = [&] {  // the waiter has the first file open; now it goes, and another process makes a new one
    first.reset();
    second.emplace(folder / "x.lock", 1s);
  };
  CHECK_THROWS_AS(FileLock(folder / "x.lock", 50ms, overtaken), pardl::Error);
}

TEST_CASE("a holder that is killed lets go, and the file it left is no obstacle") {
  TemporaryFolder folder;
  int ready[2];
  REQUIRE(::pipe(ready) == 0);
  pid_t const child = ::fork();
  if (child == 0) {
    FileLock const lock(folder / "x.lock", 1s);
    if (::write(ready[1], "x", 1) == 1)
      for (;;) ::pause();
    ::_exit(1);
  }
  char byte;
  REQUIRE(::read(ready[0], &byte, 1) == 1);
  CHECK_THROWS_AS(FileLock(folder / "x.lock", 0ms), pardl::Error);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  CHECK(std::filesystem::exists(folder / "x.lock"));
  CHECK_NOTHROW(FileLock(folder / "x.lock", 0ms));
  CHECK_FALSE(std::filesystem::exists(folder / "x.lock"));
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_CASE("a folder that is not there is a sentence") {
  TemporaryFolder folder;
  CHECK(what_of<pardl::Error>([&] { FileLock(folder / "none/x.lock", 1s); }) ==
        "[io] cannot lock " + (folder / "none/x.lock").string() +
            ": no such file or folder; create the folder or mend the path.");
}
