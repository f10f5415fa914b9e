// SPDX-License-Identifier: MIT
#include "pardl/io/atomic_file.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "support/temporary_folder.hpp"

namespace fs = std::filesystem;
using pardl::AtomicFile;
using pardl::testing::read_text;
using pardl::testing::TemporaryFolder;
using pardl::testing::what_of;

namespace {

std::size_t entries(fs::path const& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

}  // namespace

TEST_CASE("a committed file has its contents, and nothing else stays in the folder") {
  TemporaryFolder folder;
  {
    AtomicFile file(folder / "a.txt");
    file.write("one ");
    CHECK_FALSE(fs::exists(folder / "a.txt"));
    file.write("two");
    file.commit();
  }
  CHECK(read_text(folder / "a.txt") == "one two");
  CHECK(entries(folder.path()) == 1);
}

TEST_CASE("without a commit the old contents stay") {
  TemporaryFolder folder;
  pardl::write_file_atomically(folder / "a.txt", "old");
  {
    AtomicFile file(folder / "a.txt");
    file.write("new");
    CHECK(read_text(folder / "a.txt") == "old");
  }
  CHECK(read_text(folder / "a.txt") == "old");
  CHECK(entries(folder.path()) == 1);
}

TEST_CASE("a reader sees the old or the new contents and never a mixture") {
  TemporaryFolder folder;
  std::string const one(100'000, '1'), two(100'000, '2');
  pardl::write_file_atomically(folder / "a", one, {.sync = false});
  std::thread writer([&] {
    for (int i = 0; i < 200; ++i) pardl::write_file_atomically(folder / "a", i % 2 == 0 ? two : one, {.sync = false});
  });
  int mixtures = 0;
  for (int i = 0; i < 200; ++i) {
    std::string const seen = read_text(folder / "a");
    if (seen != one && seen != two) ++mixtures;
  }
  writer.join();
  CHECK(mixtures == 0);
}

TEST_CASE("writers of the same name do not disturb each other") {
  TemporaryFolder folder;
  std::vector<std::thread> writers;
  for (int w = 0; w < 4; ++w)
    writers.emplace_back([&, w] {
      for (int i = 0; i < 50; ++i)
        pardl::write_file_atomically(folder / "a", std::string(5000, static_cast<char>('0' + w)), {.sync = false});
    });
  for (auto& writer : writers) writer.join();
  std::string const text = read_text(folder / "a");
  CHECK(text.size() == 5000);
  CHECK(std::ranges::count(text, text[0]) == 5000);
  CHECK(entries(folder.path()) == 1);
}

TEST_CASE("permission bits of a replaced file stay, a new file obeys the umask") {
  TemporaryFolder folder;
  pardl::write_file_atomically(folder / "a", "1");
  mode_t const mask = ::umask(0);
  ::umask(mask);
  struct stat status {};
  REQUIRE(::stat((folder / "a").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == (0666 & ~mask));
  REQUIRE(::chmod((folder / "a").c_str(), 0640) == 0);
  pardl::write_file_atomically(folder / "a", "2");
  REQUIRE(::stat((folder / "a").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0640);
}

TEST_CASE("a symbolic link stays a link, and its file is replaced") {
  TemporaryFolder folder;
  fs::create_directory(folder / "real");
  pardl::write_file_atomically(folder / "real/a", "1");
  fs::create_symlink(folder / "real/a", folder / "link");
  pardl::write_file_atomically(folder / "link", "2");
  CHECK(fs::is_symlink(folder / "link"));
  CHECK(read_text(folder / "real/a") == "2");
}

TEST_CASE("a name as long as the file system allows") {
  TemporaryFolder folder;
  pardl::write_file_atomically(folder / std::string(255, 'n'), "x");
  CHECK(read_text(folder / std::string(255, 'n')) == "x");
}

TEST_CASE("errors are sentences that name the path, the reason and the remedy") {
  TemporaryFolder folder;
  CHECK(what_of<pardl::Error>([&] { AtomicFile file(folder / "none/a"); }) ==
        "[io] cannot write " + (folder / "none/a").string() +
            ": no such file or folder; create the folder or mend the path.");
  CHECK(what_of<pardl::Error>([&] { AtomicFile file(folder.path()); }) ==
        "[io] cannot write " + folder.path().string() +
            ": this is a folder, not a file; give the name of a file inside it.");
  CHECK(pardl::io::reason_of(EACCES) == "no permission");
  if (::geteuid() != 0) {  // root may write anywhere
    REQUIRE(::chmod(folder.path().c_str(), 0500) == 0);
    CHECK(what_of<pardl::Error>([&] { AtomicFile file(folder / "a"); }).find("no permission; choose a folder") !=
          std::string::npos);
    REQUIRE(::chmod(folder.path().c_str(), 0700) == 0);
  }
}

TEST_CASE("a full disk is said in a sentence") {
  int const full = ::open("/dev/full", O_WRONLY | O_CLOEXEC);
  REQUIRE(full >= 0);
  std::string const block(10'000, 'x');
  int const error = pardl::io::write_all(full, block.data(), block.size());
  ::close(full);
  CHECK(error == ENOSPC);
  CHECK(what_of<pardl::Error>([&] { pardl::io::throw_errno("io", "write", "x.bin", error); }) ==
        "[io] cannot write x.bin: the disk is full; free some space or choose a folder on another disk.");
}

TEST_CASE("a write that fails half way removes what it wrote and keeps the old file") {
  TemporaryFolder folder;
  pardl::write_file_atomically(folder / "a", "old");
  rlimit saved{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &saved) == 0);
  auto const handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit const small{.rlim_cur = 4096, .rlim_max = saved.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  std::string const what =
      what_of<pardl::Error>([&] { pardl::write_file_atomically(folder / "a", std::string(100'000, 'x')); });
  ::setrlimit(RLIMIT_FSIZE, &saved);
  std::signal(SIGXFSZ, handler);
  CHECK(what.find("would grow beyond the size limit") != std::string::npos);
  CHECK(read_text(folder / "a") == "old");
  CHECK(entries(folder.path()) == 1);
}

TEST_CASE("a file is committed once") {
  TemporaryFolder folder;
  AtomicFile file(folder / "a");
  file.commit();
  CHECK(fs::file_size(folder / "a") == 0);
  CHECK_THROWS_AS(file.commit(), pardl::Error);
  CHECK_THROWS_AS(file.write("x"), pardl::Error);
}
