// SPDX-License-Identifier: MIT
// A client that does not count and a round that ends leave no trace: not in the model, nor in what the server or
// clients keep. All compared byte by byte with a federation in which they were never asked. The clients are chosen so
// that the fixed point of the sums (fixed_point_sum.hpp) is the same with and without the one that is left out.
#include <doctest/doctest.h>
#include <torch/torch.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "federation.hpp"
#include "pardl/fed/runner.hpp"

using namespace federation;

namespace {

using Clients = std::vector<std::int64_t>;
using Scaffold = fed::LocalTraining<fed::CrossEntropy, fed::MakeSGD, fed::ControlVariates>;

/// How client 2 goes wrong once it has trained.
enum class Fault {
  none,
  weight_too_large,
  weight_nan,
  buffer_infinite,
  weighs_nothing,
  change_nan,
  kept_nan,
  throws,
  dies
};

struct Faulty : Scaffold {
  explicit Faulty(Fault how, std::int64_t since = 1)
      : Scaffold(training(fed::ControlVariates{})), fault(how), first_round(since) {}
  Fault fault;
  std::int64_t first_round;  ///< in which it goes wrong
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    auto result = Scaffold::operator()(task);
    if (task.client != 2 || task.round < first_round) return result;
    torch::NoGradGuard const no_grad;
    auto const nan = std::numeric_limits<float>::quiet_NaN();
    auto shared = task.model.shared();
    torch::Tensor change = task.change, kept = task.kept;
    switch (fault) {
      case Fault::none:
        break;
      case Fault::weight_too_large:
        shared[7] = 3e6F;
        break;
      case Fault::weight_nan:
        shared[7] = nan;
        break;
      case Fault::buffer_infinite:
        shared[shared.numel() - 1] = std::numeric_limits<float>::infinity();
        break;
      case Fault::weighs_nothing:
        result.samples = 0;
        break;
      case Fault::change_nan:
        change[3] = nan;
        break;
      case Fault::kept_nan:
        kept[1] = nan;
        break;
      case Fault::throws:
        throw std::runtime_error("client 2 will not");
      case Fault::dies:
        std::raise(SIGKILL);
    }
    return result;
  }
};

template <class Local>
auto make(fed::RunnerOptions options, Local local) {
  options.seed = 5;
  return std::make_unique<fed::Runner<torch::nn::Sequential, TensorDataset, Local>>(
      small_net(), samples(), growing(8), std::move(local), fed::Average{}, options);
}

Clients const seven{0, 1, 2, 3, 4, 5, 6}, without_2{0, 1, 3, 4, 5, 6};

}  // namespace

TEST_CASE("a client that is left out leaves nothing in the server's numbers, whatever was wrong with it") {
  std::vector<std::pair<Fault, std::string>> const faults{
      {Fault::weight_too_large, "its update cannot be added: 0.weight[7] is 3000000"},
      {Fault::weight_nan, "its update cannot be added: 0.weight[7] is nan"},
      {Fault::buffer_infinite, "its update cannot be added: 1.running_var[15] is inf"},
      {Fault::weighs_nothing, "0 samples"},
      {Fault::change_nan, "its change of the server's number 3 is nan"},
      {Fault::kept_nan, "number 1 of what it keeps is nan"},
      {Fault::throws, "client 2 will not"}};
  auto plain = make({.workers = 2}, Faulty(Fault::none));
  plain->train(seven);
  plain->train(without_2);
  auto const after_two = contents_of(*plain);
  plain->train(seven);  // what a client keeps since the round before last is used, too
  auto const after_three = contents_of(*plain);
  for (auto const& [fault, words] : faults) {
    CAPTURE(words);
    auto lenient = make({.workers = 2, .on_client_failure = fed::OnFailure::leave_out}, Faulty(fault));
    lenient->train(seven);
    auto const report = lenient->train(seven);
    CHECK(report.clients[2].failure.find(words) != std::string::npos);
    for (auto const& client : report.clients) CHECK((client.client == 2 || client.failure.empty()));
    CHECK(contents_of(*lenient) == after_two);
  }
  auto twice = make({.workers = 1, .on_client_failure = fed::OnFailure::leave_out}, Faulty(Fault::none));
  for (int round = 0; round < 3; ++round) twice->train(round == 1 ? without_2 : seven);
  CHECK(contents_of(*twice) == after_three);
}

TEST_CASE("a client that fails in its first round keeps nothing, and is new when it comes again") {
  auto lenient =
      make({.workers = 2, .on_client_failure = fed::OnFailure::leave_out}, Faulty(Fault::weight_too_large, 0));
  auto plain = make({.workers = 2}, Faulty(Fault::none));
  lenient->train(seven);
  plain->train(without_2);
  CHECK(contents_of(*plain).count("client.2") == 0);
  CHECK(contents_of(*plain).count("client.3") == 1);
  CHECK(contents_of(*lenient) == contents_of(*plain));
}

namespace {

/// At its first attempt client 7, whom the schedule puts first, is trained, and client 0 kills the worker; from then on
/// client 7 fails. While its marker is there it is the first attempt.
struct Fickle : Scaffold {
  explicit Fickle(std::string file) : Scaffold(training(fed::ControlVariates{})), marker(std::move(file)) {}
  std::string marker;
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    if (task.client == 7 && !marker.empty() && ::access(marker.c_str(), F_OK) != 0)
      throw std::runtime_error("client 7 will not once more");
    auto const result = Scaffold::operator()(task);
    if (task.client == 0 && !marker.empty() && std::remove(marker.c_str()) == 0) std::raise(SIGKILL);
    return result;
  }
};

}  // namespace

TEST_CASE("all that a worker had summed up goes with it: means, the server's numbers, the largest integers") {
  pardl::testing::TemporaryFolder const folder;
  auto const marker = (folder / "marker").string();
  std::ofstream(marker) << 'x';
  auto hurt = make({.workers = 1, .on_client_failure = fed::OnFailure::leave_out}, Fickle(marker));
  auto const report = hurt->train({0, 1, 2, 3, 4, 5, 6, 7});
  REQUIRE(report.warnings.size() == 1);
  CHECK(report.warnings[0].find("at client 0; its 8 clients are done once more") != std::string::npos);
  CHECK(report.clients[7].failure == "client 7 will not once more");
  auto plain = make({.workers = 1}, Fickle(""));
  plain->train(seven);
  auto with_7 = make({.workers = 1}, Fickle(""));
  with_7->train({0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(contents_of(*plain) == contents_of(*hurt));
  // Client 7 alone takes six batches, so that a trace of it would show in each.
  auto const most_batches = [](auto& runner) { return contents_of(*runner).at("model.1.num_batches_tracked").front(); };
  CHECK(most_batches(plain) == 4);
  CHECK(most_batches(with_7) == 6);  // the largest, though the clients after it had fewer
  CHECK(contents_of(*plain).at("numbers") != contents_of(*with_7).at("numbers"));
}

TEST_CASE("a round that ends early leaves nothing in the next one's sums, however it ended") {
  Clients const all{0, 1, 2, 3, 4, 5, 6, 7};  // client 7 has more batches than those of the next round
  auto plain = make({.workers = 2}, Faulty(Fault::none));
  plain->train(without_2);
  auto const expected = contents_of(*plain);
  for (auto const fault : {Fault::throws, Fault::weight_too_large, Fault::dies}) {
    auto strict = make({.workers = 2}, Faulty(fault, 0));
    auto const before = contents_of(*strict);
    CHECK_THROWS_WITH_AS(strict->train(all), doctest::Contains("client 2"), pardl::Error);
    CHECK(contents_of(*strict) == before);
    CHECK(strict->round() == 0);
    strict->train(without_2);
    CHECK(contents_of(*strict) == expected);
  }
  bool throws = true;
  fed::RunnerOptions options{.workers = 2};
  options.on_clients = [&](std::int64_t done, std::int64_t) {
    if (throws && done > 0) throw std::runtime_error("stop it");
  };
  auto cancelled = make(options, Faulty(Fault::none));
  CHECK_THROWS_WITH_AS(cancelled->train(all), "stop it", std::runtime_error);
  throws = false;
  cancelled->train(without_2);
  CHECK(contents_of(*cancelled) == expected);
}

TEST_CASE("a round in which nobody is left ends, also where the options leave everybody out") {
  auto lenient = make({.workers = 2, .on_client_failure = fed::OnFailure::leave_out}, Faulty(Fault::throws, 0));
  CHECK_THROWS_WITH_AS(lenient->train({2}), doctest::Contains("no client of this round is left"), pardl::Error);
  auto deadly = make({.workers = 2, .on_worker_death = fed::OnFailure::leave_out}, Faulty(Fault::dies, 0));
  CHECK_THROWS_WITH_AS(deadly->train({2}), doctest::Contains("no client of this round is left"), pardl::Error);
  auto plain = make({.workers = 2}, Faulty(Fault::none));
  for (auto* runner : {&lenient, &deadly, &plain}) (*runner)->train(without_2);
  CHECK(contents_of(*lenient) == contents_of(*plain));
  CHECK(contents_of(*deadly) == contents_of(*plain));
}

namespace {

/// Client 2 kills its workers in round 0, and fails by itself in round 1.
struct Deadly : fed::LocalTraining<> {
  Deadly() : fed::LocalTraining<>(training()) {}
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    if (task.client == 2 && task.round == 0) std::raise(SIGKILL);
    if (task.client == 2 && task.round == 1) throw std::runtime_error("client 2 will not");
    return fed::LocalTraining<>::operator()(task);
  }
};

/// Client 1 trains nothing, but says that it did.
struct Idle : Scaffold {
  explicit Idle(bool writes_zeros) : Scaffold(training(fed::ControlVariates{})), writes(writes_zeros) {}
  bool writes;
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    if (task.client != 1) return Scaffold::operator()(task);
    torch::Tensor change = task.change;
    if (writes) change.zero_();
    fed::LocalResult result;
    result.samples = 8;
    return result;
  }
};

}  // namespace

TEST_CASE("that a client was left out for its workers' deaths is forgotten when it fails in the next round") {
  auto runner = make({.workers = 2, .on_worker_death = fed::OnFailure::leave_out}, Deadly{});
  CHECK(runner->train({0, 1, 2, 3}).clients[2].failure.find("second time") != std::string::npos);
  CHECK_THROWS_WITH_AS(runner->train({0, 1, 2, 3}), doctest::Contains("client 2 will not"), pardl::Error);
  CHECK(runner->train({0, 1, 3}).clients.size() == 3);
}

TEST_CASE("a client that changes nothing of the server's numbers adds nothing, whoever was trained before it") {
  auto silent = make({.workers = 1}, Idle(false)), zero = make({.workers = 1}, Idle(true));
  for (auto* runner : {&silent, &zero}) (*runner)->train({0, 1, 2, 3});
  CHECK(contents_of(*silent) == contents_of(*zero));
}
