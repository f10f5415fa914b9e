// SPDX-License-Identifier: MIT
/// Milliseconds from the SIGKILL of a rank in the middle of all-reduces until each of the others has its error: the
/// median and the most over many kills at random moments.
///
/// Ranks are processes, forked before this one has started a thread, and work as a program's do: pardl::init, then
/// pardl::all_reduce(…).wait(). The time ends where wait() has thrown. It holds the end of the killed process too,
/// whose memory the kernel gives back first. Every error must name the rank that died.
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <vector>

#include "common.hpp"
#include "rotation.hpp"

namespace {

struct Options {
  std::string backend = "shm";
  int ranks = 2, kills = 40, repeat = 1;
  std::size_t kib = 4;
  unsigned seed = 0;
};

/// The clock is the machine's: parent and ranks read the same.
std::int64_t now_ns() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }

/// What a rank that lives tells the parent, in one write: shorter than a pipe's atomic size.
struct LastWords {
  char mark = '.';  ///< where a rank at work says '!'
  std::int64_t at_ns = 0;
  std::array<char, 2048> text{};
};

/// Works until it fails. Says "!" when it is at work, and its last words at the end.
[[noreturn]] void work(Options const& options, std::string const& meeting, int rank, int out) {
  LastWords words;
  auto const fails = [&](char const* what) {
    words.at_ns = now_ns();
    std::snprintf(words.text.data(), words.text.size(), "%s", what);
  };
  std::optional<pardl::ProcessGroup> world;  // outlives the error: its end would count otherwise
  try {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    torch::set_num_threads(1);
    pardl::Environment who;
    who.rank = who.local_rank = rank;
    who.size = who.local_size = options.ranks;
    world = pardl::init({.backend = options.backend,
                         .device = torch::kCPU,
                         .timeout = std::chrono::minutes(1),
                         .store = c10::make_intrusive<c10d::FileStore>(meeting, options.ranks),
                         .environment = who});
    auto const tensor = torch::zeros({static_cast<std::int64_t>(options.kib) << 8});
    for (int step = 0;; ++step) {
      pardl::all_reduce(*world, tensor).wait();
      if (step == 3) (void)!::write(out, "!", 1);
    }
  } catch (pardl::Error const& e) {
    fails(e.what());
  } catch (std::exception const& e) {
    fails((std::string("no error of pardl: ") + e.what()).c_str());
  }
  (void)!::write(out, &words, sizeof words);
  ::_exit(0);
}

struct Rank {
  pid_t pid = -1;
  int pipe = -1;
};

/// Reads exactly so many bytes. \throws std::runtime_error  for a rank that says nothing for a minute or ends before.
void read_from(Rank const& rank, void* data, std::size_t bytes, char const* what) {
  for (auto* at = static_cast<char*>(data); bytes > 0;) {
    ::pollfd look{rank.pipe, POLLIN, 0};
    auto const got = ::poll(&look, 1, 60'000) == 1 ? ::read(rank.pipe, at, bytes) : -1;
    if (got <= 0) throw std::runtime_error(std::string("a rank ended or hangs ") + what);
    at += got;
    bytes -= static_cast<std::size_t>(got);
  }
}

/// The ranks of one kill; what still lives at the end is killed.
class Ranks {
 public:
  Ranks(Options const& options, std::string const& meeting) : shm_(options.backend == "shm") {
    for (int rank = 0; rank < options.ranks; ++rank) {
      int ends[2] = {-1, -1};
      if (::pipe(ends) != 0) throw std::runtime_error("no pipe");
      pid_t const pid = ::fork();
      if (pid < 0) throw std::runtime_error("no process");
      if (pid == 0) {
        for (auto const& other : ranks_) ::close(other.pipe);
        ::close(ends[0]);
        work(options, meeting, rank, ends[1]);
      }
      ::close(ends[1]);
      ranks_.push_back({pid, ends[0]});
    }
  }
  Ranks(Ranks const&) = delete;
  Ranks& operator=(Ranks const&) = delete;
  ~Ranks() {
    for (auto const& rank : ranks_) {
      ::kill(rank.pid, SIGKILL);
      ::close(rank.pipe);
      while (::waitpid(rank.pid, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
  }

  void wait_until_at_work() const {
    for (auto const& rank : ranks_) {
      LastWords words;
      read_from(rank, &words.mark, 1, "before it is at work");
      if (words.mark == '!') continue;
      read_from(rank, &words.mark + 1, sizeof words - 1, "before it is at work");
      throw std::runtime_error("a rank failed before one was killed: " + std::string(words.text.data()));
    }
  }

  /// Kills one. \returns milliseconds until each other rank had its error.
  [[nodiscard]] std::vector<double> kill(int victim) const {
    auto const killed_ns = now_ns();
    ::kill(ranks_.at(static_cast<std::size_t>(victim)).pid, SIGKILL);
    std::vector<double> ms;
    for (int rank = 0; rank < static_cast<int>(ranks_.size()); ++rank) {
      if (rank == victim) continue;
      LastWords words;
      read_from(ranks_[static_cast<std::size_t>(rank)], &words, sizeof words, "after another was killed");
      std::string const text = words.text.data();
      auto const number = std::to_string(victim);
      if (text.find(shm_ ? "rank " + number + " has died" : "have not come: " + number) == std::string::npos)
        throw std::runtime_error("rank " + std::to_string(rank) + " does not name rank " + number +
                                 ", which was killed: " + text);
      ms.push_back(static_cast<double>(words.at_ns - killed_ns) * 1e-6);
    }
    return ms;
  }

 private:
  bool shm_;  ///< the backends have sentences of their own
  std::vector<Rank> ranks_;
};

/// Where ranks meet; gone at the end.
class Folder {
 public:
  Folder() {
    auto name = (std::filesystem::temp_directory_path() / "pardl-deaths-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make " + name);
    path_ = name;
  }
  Folder(Folder const&) = delete;
  Folder& operator=(Folder const&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] std::string file(int number) const { return (path_ / std::to_string(number)).string(); }

 private:
  std::filesystem::path path_;
};

void run(Options const& options) {
  Folder const folder;
  std::mt19937 draws(options.seed);
  std::vector<double> ms;
  for (int kill = 0; kill < options.kills; ++kill) {
    Ranks const ranks(options, folder.file(kill));
    ranks.wait_until_at_work();
    auto const microseconds = static_cast<long>(draws() % 20'000);  // the random moment: nothing is waited for
    ::timespec const moment{0, microseconds * 1000};
    ::ppoll(nullptr, 0, &moment, nullptr);
    auto const taken = ranks.kill(static_cast<int>(draws() % static_cast<unsigned>(options.ranks)));
    ms.insert(ms.end(), taken.begin(), taken.end());
  }
  auto const name = options.backend + "-" + benchmarks::size_name(options.kib << 10);
  benchmarks::report("death_notice", name, options.ranks, benchmarks::median(ms), "ms", options.repeat);
  benchmarks::report("death_notice", name + "-most", options.ranks, std::ranges::max(ms), "ms", options.repeat);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Milliseconds until the other ranks hear that one was killed in the middle of an all-reduce."};
  app.add_option("--backend", options.backend)->check(CLI::IsMember({"shm", "gloo"}))->capture_default_str();
  app.add_option("--ranks", options.ranks)->check(CLI::Range(2, 64))->capture_default_str();
  app.add_option("--kills", options.kills)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--kib", options.kib, "of the tensor")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--seed", options.seed, "of victims and moments; 0: another one each time");
  app.add_option("--repeat", options.repeat, "number of this repetition, for the CSV line")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (options.seed == 0) options.seed = std::random_device()();
  try {
    run(options);
  } catch (std::exception const& e) {
    std::fprintf(stderr, "death_notice: %s (--seed %u)\n", e.what(), options.seed);
    return 1;
  }
  return 0;
}
