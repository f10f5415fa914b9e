// SPDX-License-Identifier: MIT
// What a Runner does when a worker, a callback or a sample fails: nothing hangs, nothing is half done unsaid.
#include <doctest/doctest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "federation.hpp"
#include "pardl/fed/runner.hpp"
#include "support/temporary_folder.hpp"

using namespace federation;

namespace {

using Clients = std::vector<std::int64_t>;
Clients const all{0, 1, 2, 3, 4, 5};

/// Dies or stops at client 4 of round 1: once, while a marker file is there, or always.
struct Faulty : fed::LocalTraining<> {
  Faulty() : fed::LocalTraining<>(training()) {}
  int signal = SIGKILL;  ///< 0: it waits for ever
  bool always = false;
  std::string marker{};
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    auto const result = fed::LocalTraining<>::operator()(task);
    if (task.client == 4 && task.round == 1 && (always || (!marker.empty() && std::remove(marker.c_str()) == 0))) {
      if (signal != 0) std::raise(signal);
      for (;;) ::pause();
    }
    return result;
  }
};

template <class Local = fed::LocalTraining<>>
auto make(fed::RunnerOptions options = {.workers = 2}, Local local = Local(training())) {
  options.seed = 5;
  return std::make_unique<fed::Runner<torch::nn::Sequential, TensorDataset, Local>>(
      small_net(), samples(), growing(6), std::move(local), fed::Average{}, options);
}
auto make(fed::RunnerOptions options, Faulty local) {
  options.seed = 5;
  return std::make_unique<fed::Runner<torch::nn::Sequential, TensorDataset, Faulty>>(
      small_net(), samples(), growing(6), std::move(local), fed::Average{}, options);
}

/// The processes forked from this one.
std::vector<pid_t> children() {
  std::ifstream file("/proc/self/task/" + std::to_string(::getpid()) + "/children");
  std::vector<pid_t> all_of_them;
  for (pid_t pid; file >> pid;) all_of_them.push_back(pid);
  return all_of_them;
}

}  // namespace

TEST_CASE("Runners beside each other end in any order") {
  auto first = make(), second = make(), third = make();
  second.reset();
  first->train(all);
  first.reset();
  third->train(all);
  third.reset();
  CHECK(children().empty());
}

TEST_CASE("a worker that dies while it waits is replaced, and the result is the same") {
  auto healthy = make(), hurt = make({.workers = 1});
  for (int round = 0; round < 2; ++round) {
    healthy->train(all);
    hurt->train(all);
    for (pid_t const pid : children()) ::kill(pid, SIGKILL);
  }
  CHECK(same(figures_of(healthy->evaluate(fed::Part::test)), figures_of(hurt->evaluate(fed::Part::test))));
  CHECK(same(global_of(*healthy), global_of(*hurt)));
}

namespace {

/// Whether a process does nothing but wait: a worker whose last client is done waits for its next command.
bool sleeps(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string const line(std::istreambuf_iterator<char>(file), {});
  auto const name_ends = line.rfind(')');
  return name_ends != line.npos && line.compare(name_ends, 3, ") S") == 0;
}

/// Kills it and returns once it is dead; whose it is may still ask how it died.
void kill_for_sure(pid_t pid) {
  ::kill(pid, SIGKILL);
  siginfo_t ignored;
  ::waitid(P_PID, static_cast<id_t>(pid), &ignored, WEXITED | WNOWAIT);
}

/// While it lives this process can open no file.
class NoMoreFiles {
 public:
  NoMoreFiles() {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    int const first_free = ::dup(STDOUT_FILENO);
    ::close(first_free);
    rlimit none = before_;
    none.rlim_cur = static_cast<rlim_t>(first_free);  // and not 0, which poll() would mind
    ::setrlimit(RLIMIT_NOFILE, &none);
  }
  NoMoreFiles(NoMoreFiles const&) = delete;
  ~NoMoreFiles() { ::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

}  // namespace

TEST_CASE("a worker that dies between its last client and the end of the round is replaced, and its sums count") {
  bool kills = true;
  fed::RunnerOptions options{.workers = 1};
  options.on_clients = [&](std::int64_t done, std::int64_t count) {
    if (!kills || done < count) return;
    for (pid_t const pid : children()) {
      while (!sleeps(pid)) {
      }
      kill_for_sure(pid);
    }
    kills = false;
  };
  auto hurt = make(options);
  auto const report = hurt->train(all);
  CHECK_FALSE(kills);
  CHECK(report.warnings.empty());
  auto plain = make();
  plain->train(all);
  CHECK(contents_of(*hurt) == contents_of(*plain));
}

TEST_CASE("a round that cannot replace a worker is not begun or leaves no trace, and can be trained once more") {
  std::optional<NoMoreFiles> shortage;
  fed::RunnerOptions options{.workers = 2};
  enum { kill_them, give_up, nothing } next = kill_them;
  options.on_clients = [&](std::int64_t done, std::int64_t count) {
    if (next == nothing || done < count) return;
    for (pid_t const pid : children()) {
      while (!sleeps(pid)) {
      }
      if (next == kill_them) kill_for_sure(pid);
    }
    shortage.emplace();
    if (std::exchange(next, nothing) == give_up) throw std::runtime_error("stop it");
  };
  auto hurt = make(options);
  auto const start = contents_of(*hurt);
  CHECK_THROWS_WITH_AS(hurt->train(all), doctest::Contains("no socket for a worker"), pardl::Error);  // to finish
  CHECK_THROWS_WITH_AS(hurt->train(all), doctest::Contains("no socket for a worker"), pardl::Error);  // to begin
  shortage.reset();
  CHECK(contents_of(*hurt) == start);
  next = give_up;
  CHECK_THROWS(hurt->train(all));
  CHECK_THROWS(hurt->train(all));
  shortage.reset();
  CHECK(contents_of(*hurt) == start);
  hurt->train(all);
  auto plain = make();
  plain->train(all);
  CHECK(contents_of(*hurt) == contents_of(*plain));
}

TEST_CASE("two workers that die together, at no client, are no client's second time") {
  bool kills = false;
  fed::RunnerOptions options{.workers = 2};
  options.on_clients = [&](std::int64_t, std::int64_t) {
    if (!std::exchange(kills, false)) return;
    for (pid_t const pid : children()) ::kill(pid, SIGKILL);
  };
  auto hurt = make(options);
  hurt->train(all);  // clients that were done are not what they die at
  kills = true;
  for (pid_t const pid : children()) ::kill(pid, SIGSTOP);  // they do nothing with the command they get
  auto const report = hurt->train(all);
  auto plain = make();
  for (int round = 0; round < 2; ++round) plain->train(all);
  REQUIRE(report.warnings.size() == 1);
  CHECK(report.warnings[0].find("worker 0 was killed by Killed") != std::string::npos);
  CHECK(report.warnings[0].find("worker 1 was killed by Killed") != std::string::npos);
  CHECK(report.warnings[0].find("at client") == std::string::npos);
  CHECK(report.warnings[0].find("its 6 clients are done once more") != std::string::npos);
  CHECK(contents_of(*hurt) == contents_of(*plain));
}

TEST_CASE("a client that kills every worker ends the round, or is left out alone where the options say so") {
  Faulty local;
  local.always = true;
  auto strict = make({.workers = 2}, local);
  strict->train(all);
  auto const before = global_of(*strict);
  CHECK_THROWS_WITH_AS(strict->train(all), doctest::Contains("for the second time in this round"), pardl::Error);
  CHECK(same(before, global_of(*strict)));

  auto lenient = make({.workers = 2, .on_worker_death = fed::OnFailure::leave_out}, local);
  lenient->train(all);
  auto const report = lenient->train(all);
  for (auto const& client : report.clients) {
    if (client.client == 4)
      CHECK(client.failure.find("at client 4, for the second time") != std::string::npos);
    else
      CHECK(client.failure.empty());
  }
  auto without = make();
  without->train(all);
  without->train({0, 1, 2, 3, 5});
  CHECK(same(global_of(*without), global_of(*lenient)));
}

TEST_CASE("a worker that gives no sign is killed, and its clients are trained once more") {
  pardl::testing::TemporaryFolder const folder;
  Faulty local;
  local.signal = 0;
  local.marker = (folder.path() / "marker").string();
  std::ofstream(local.marker) << 'x';
  fed::RunnerOptions options{.workers = 2, .worker_timeout = std::chrono::seconds(3)};
  std::vector<std::int64_t> told;
  options.on_clients = [&](std::int64_t done, std::int64_t count) {
    CHECK(count == 6);
    told.push_back(done);
  };
  auto stuck = make(options, local);
  auto plain = make();
  for (int round = 0; round < 2; ++round) {
    auto const report = stuck->train(all);
    plain->train(all);
    if (round == 1) {
      REQUIRE(report.warnings.size() == 1);
      CHECK(report.warnings[0].find("gave no sign for 3000 ms at client 4") != std::string::npos);
    }
  }
  CHECK(same(global_of(*plain), global_of(*stuck)));
  CHECK(std::ranges::count(told, 5) > 0);  // all but the one that is stuck
  CHECK(told.back() == 6);
}

namespace {

/// Takes half a second for a client.
struct Patient : fed::LocalTraining<> {
  Patient() : fed::LocalTraining<>(training()) {}
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    ::poll(nullptr, 0, 500);
    return fed::LocalTraining<>::operator()(task);
  }
};

}  // namespace

TEST_CASE("the time without a sign is that at one client, not at all of them") {
  auto slow = make<Patient>({.workers = 1, .worker_timeout = std::chrono::milliseconds(1500)}, Patient{});
  CHECK(slow->train({0, 1, 2, 3}).warnings.empty());
}

TEST_CASE("a callback that throws ends the round, and the next one is whole") {
  bool throws = true;
  fed::RunnerOptions options{.workers = 2};
  options.on_clients = [&](std::int64_t, std::int64_t) {
    if (throws) throw std::runtime_error("stop it");
  };
  auto cancelled = make(options), plain = make();
  CHECK_THROWS_WITH_AS(cancelled->train(all), "stop it", std::runtime_error);
  throws = false;
  CHECK(cancelled->round() == 0);
  cancelled->train(all);
  plain->train(all);
  CHECK(same(global_of(*plain), global_of(*cancelled)));
}

namespace {

/// Kills its worker when it evaluates: once, while a marker file is there, or always.
struct DeadlyLoss : fed::CrossEntropy {
  bool always = false;
  std::string marker{};
  torch::Tensor operator()(torch::Tensor const& outputs, torch::Tensor const& targets) const {
    if (!torch::GradMode::is_enabled() && (always || (!marker.empty() && std::remove(marker.c_str()) == 0)))
      std::raise(SIGKILL);
    return fed::CrossEntropy::operator()(outputs, targets);
  }
};

}  // namespace

TEST_CASE("a worker that dies while it evaluates is replaced once, and ends the evaluation the second time") {
  pardl::testing::TemporaryFolder const folder;
  using Local = fed::LocalTraining<DeadlyLoss>;
  auto const run = [](DeadlyLoss loss) {
    auto runner = make<Local>({.workers = 2}, Local(two_epochs(), {.options = {.lr = 0.1}}, std::move(loss)));
    runner->train(all);
    return runner;
  };
  auto plain = run({});
  DeadlyLoss once;
  once.marker = (folder / "marker").string();
  auto hurt = run(once);
  std::ofstream(once.marker) << 'x';
  CHECK(same(figures_of(hurt->evaluate(fed::Part::test)), figures_of(plain->evaluate(fed::Part::test))));
  CHECK_FALSE(std::filesystem::exists(once.marker));
  DeadlyLoss deadly;
  deadly.always = true;
  auto strict = run(deadly);
  CHECK_THROWS_WITH_AS((void)strict->evaluate(fed::Part::test), doctest::Contains("for the second time in this round"),
                       pardl::Error);
  strict->train(all);
  plain->train(all);
  CHECK(contents_of(*strict) == contents_of(*plain));
}

namespace {

/// Sample 950 cannot be read.
struct Holey {
  TensorDataset data = samples();
  [[nodiscard]] std::int64_t size() const { return data.size(); }
  [[nodiscard]] pardl::Batch batch(std::span<std::int64_t const> indices) const {
    for (auto const index : indices)
      if (index == 950) throw std::runtime_error("sample 950 cannot be read");
    return data.batch(indices);
  }
};

}  // namespace

TEST_CASE("a round that fails while the global model is made says why, and leaves no model that looks whole") {
  pardl::testing::TemporaryFolder const folder;
  auto const file = folder.path() / "round";
  for (bool const processes : {true, false}) {
    fed::RunnerOptions options{.processes = processes, .seed = 5, .calibration = {940, 950}};
    options.sharing.buffers = fed::BufferPolicy::recalibrate;
    fed::Runner runner(small_net(), Holey{}, growing(6), training(), fed::Average{}, options);
    runner.save(file);
    CHECK_THROWS_WITH(runner.train(all), doctest::Contains("sample 950 cannot be read"));
    CHECK_THROWS_WITH_AS(runner.train(all), doctest::Contains("half made"), pardl::Error);
    CHECK_THROWS_WITH_AS((void)runner.evaluate(fed::Part::test), doctest::Contains("half made"), pardl::Error);
    CHECK_THROWS_WITH_AS(runner.save(file), doctest::Contains("half made"), pardl::Error);
    runner.load(file);
    CHECK(same(global_of(runner), state_of(small_net())));
  }
}

TEST_CASE("statistics are recalibrated without what any client keeps") {
  auto const run = [](int workers) {
    fed::RunnerOptions options{.workers = workers, .seed = 5, .calibration = {900, 901, 902, 903}};
    options.sharing.buffers = fed::BufferPolicy::recalibrate;
    options.sharing.keep_local = fed::containing({"0."});
    fed::Runner runner(small_net(), samples(), growing(6), training(), fed::Average{}, options);
    for (int round = 0; round < 2; ++round) runner.train(all);
    return global_of(runner);
  };
  auto const one = run(1);
  CHECK(same(one, run(2)));
  CHECK(same(one, run(4)));
}

TEST_CASE("numbers of any size that float32 has are averaged") {
  for (float const value : {1e-30F, 1.0F, 1e13F, 1e20F, 1e30F}) {
    fed::FixedPoint const scale(1280, value);
    CHECK(scale.units(64) > 0);
    fed::FixedPointSum sum(1, scale);
    CHECK_FALSE(sum.accumulate(torch::full({1}, value), 64));
    CHECK_FALSE(sum.accumulate(torch::full({1}, 2 * value), 192));
    CHECK(sum.finalize().item<double>() ==
          doctest::Approx(1.75 * static_cast<double>(value)).epsilon(value < 1 ? 1 : 1e-9));
  }
}
