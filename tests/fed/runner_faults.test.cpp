// SPDX-License-Identifier: MIT
// What a Runner does when a worker, a callback or a sample fails: nothing hangs, nothing is half done unsaid.
#include <doctest/doctest.h>
#include <torch/torch.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
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
  auto stuck = make({.workers = 2, .worker_timeout = std::chrono::seconds(3)}, local);
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
