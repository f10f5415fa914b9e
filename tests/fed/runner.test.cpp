// SPDX-License-Identifier: MIT
#include "pardl/fed/runner.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "federation.hpp"
#include "support/temporary_folder.hpp"

using namespace federation;

namespace {

/// The global model after some rounds.
std::vector<torch::Tensor> after(fed::RunnerOptions options, int rounds = 3,
                                 fed::BufferPolicy buffers = fed::BufferPolicy::average) {
  options.seed = 11;
  options.sharing.buffers = buffers;
  fed::Runner runner(small_net(), samples(enough), growing(12), training(), fed::ServerSGD{.lr = 1.0, .momentum = 0.5},
                     options);
  for (int round = 0; round < rounds; ++round) {
    auto const report = runner.train(fed::Uniform{.count = 7});
    CHECK(report.clients.size() == 7);
    CHECK(report.warnings.empty());
  }
  auto net = small_net();
  runner.load_global(net);
  auto state = state_of(net);
  for (auto const& one : runner.evaluate(fed::Part::test))
    state.push_back(torch::tensor({static_cast<double>(one.correct), one.loss}, torch::kDouble));
  return state;
}

/// Kills its worker at client 4 of round 1, once.
struct Deadly : fed::LocalTraining<> {
  explicit Deadly(fed::LocalTraining<> const& training) : fed::LocalTraining<>(training) {}
  std::string marker{};  ///< a file that is there until then
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    if (task.client == 4 && task.round == 1 && !marker.empty() && std::remove(marker.c_str()) == 0) std::raise(SIGKILL);
    return fed::LocalTraining<>::operator()(task);
  }
};

}  // namespace

TEST_CASE("the result is bit for bit the same for any number of workers, in processes or not") {
  for (auto const buffers : {fed::BufferPolicy::average, fed::BufferPolicy::client_local}) {
    auto const one = after({.workers = 1, .processes = false}, 3, buffers);
    CHECK(same(one, after({.workers = 1}, 3, buffers)));
    CHECK(same(one, after({.workers = 2}, 3, buffers)));
    CHECK(same(one, after({.workers = 4}, 3, buffers)));
    CHECK(same(one, after({.workers = 8}, 3, buffers)));
  }
}

TEST_CASE("a round in the caller's own process leaves the caller's random numbers and threads alone") {
  auto const threads = torch::get_num_threads();
  torch::manual_seed(21);
  auto const undisturbed = torch::rand({8});
  torch::manual_seed(21);
  fed::Runner runner(small_net(), samples(), growing(3), training(), fed::Average{},
                     {.threads_per_worker = threads + 1, .processes = false});
  torch::manual_seed(21);
  runner.train({0, 1, 2});
  (void)runner.evaluate(fed::Part::test);
  CHECK(torch::equal(torch::rand({8}), undisturbed));
  CHECK(torch::get_num_threads() == threads);
}

namespace {

/// Takes at least 20 ms for a client.
struct Slow : fed::LocalTraining<> {
  Slow() : fed::LocalTraining<>(training()) {}
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    auto const end = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
    while (std::chrono::steady_clock::now() < end) {
    }
    return fed::LocalTraining<>::operator()(task);
  }
};

}  // namespace

TEST_CASE("the report counts what was trained, and the idle time of all workers") {
  fed::Runner runner(small_net(false, 0), samples(), growing(4), Slow{}, fed::Average{}, {.workers = 2});
  auto const report = runner.train({3});  // 8 samples, batches of 4, two epochs
  REQUIRE(report.clients.size() == 1);
  auto const& client = report.clients[0];
  CHECK(client.client == 3);
  CHECK(client.samples == 16);
  CHECK(client.batches == 4);
  CHECK(client.answers == 16);
  CHECK(client.correct > 0);
  CHECK(client.correct < 16);
  CHECK(client.loss > 0);
  CHECK_FALSE(client.norm);
  CHECK(client.seconds >= 0.02);
  CHECK(report.seconds >= client.seconds);
  CHECK(report.idle_share >= 0.5);  // one of the two has nothing to do
  CHECK(report.idle_share < 1);
}

TEST_CASE("one full-batch step of all clients is one step of SGD on all samples") {
  auto const data = samples(enough);
  auto const shares = growing(6);
  auto net = small_net(false, 0);
  auto reference = small_net(false, 0);
  fed::LocalTraining<> const one_step({.batches = {.batch_size = 1000, .steps = 1}}, {.options = {.lr = 0.5}});
  fed::Runner runner(net, data, shares, one_step, fed::Average{}, {.workers = 2});
  runner.train({0, 1, 2, 3, 4, 5});
  auto trained = small_net(false, 0);
  runner.load_global(trained);

  std::vector<std::int64_t> all;
  for (auto const& client : shares) all.insert(all.end(), client.train.begin(), client.train.end());
  auto const [inputs, targets] = data.batch(all);
  torch::nn::functional::cross_entropy(reference->forward(inputs), targets).backward();
  for (auto& parameter : reference->parameters()) parameter.data() -= 0.5 * parameter.grad();
  auto const ours = state_of(trained), theirs = state_of(reference);
  for (std::size_t i = 0; i < ours.size(); ++i) CHECK(torch::allclose(ours[i], theirs[i], 1e-5, 1e-6));
  CHECK_FALSE(same(theirs, state_of(small_net(false, 0))));
}

TEST_CASE("on dyadic numbers one full-batch step of all clients is the centralised step to the last bit") {
  // Clients of 4, 4 and 8 points of a line through 0: every sum, mean and product below is exact in float.
  auto const count = std::int64_t{16};
  auto const x = (torch::arange(count, torch::kFloat) - 5).view({count, 1}), y = (3 - x.square() / 4).contiguous();
  fed::ClientShares shares(3);
  for (std::int64_t i = 0; i < count; ++i) shares[i < 4 ? 0 : i < 8 ? 1 : 2].train.push_back(i);
  fed::LocalTraining<fed::MeanSquaredError> const step({.batches = {.batch_size = 100, .steps = 1}},
                                                       {.options = {.lr = 0.0625}});
  auto const central = [&](float w, std::int64_t from, std::int64_t to) {
    auto const part = x.slice(0, from, to);
    return w - 0.0625F * (2 * part * (w * part - y.slice(0, from, to))).mean().item<float>();
  };
  auto const run = [&](fed::Weighting weighting) {
    fed::Runner runner(line(0.5), TensorDataset{x, y}, shares, step, fed::Average{},
                       {.workers = 2, .weighting = weighting});
    runner.train({0, 1, 2});
    return global_of(runner, line())[0].item<float>();
  };
  CHECK(run(fed::Weighting::samples) == central(0.5F, 0, 16));
  // Of equal weight they give the mean of what each comes to.
  auto const sum = central(0.5F, 0, 4) + central(0.5F, 4, 8) + central(0.5F, 8, 16);
  CHECK(run(fed::Weighting::uniform) == doctest::Approx(sum / 3).epsilon(1e-7));
  CHECK(run(fed::Weighting::uniform) != run(fed::Weighting::samples));
}

TEST_CASE("a worker that dies is named, its clients are trained once more, and the result is the same") {
  auto const run = [](bool deadly) {
    Deadly local{training()};
    if (deadly) {
      local.marker = "pardl_deadly_" + std::to_string(::getpid());
      std::fclose(std::fopen(local.marker.c_str(), "w"));
    }
    fed::Runner runner(small_net(), samples(enough), growing(9), local, fed::Average{},
                       {.workers = 2, .seed = 1, .sharing = {.buffers = fed::BufferPolicy::client_local}});
    std::vector<std::string> warnings;
    for (int round = 0; round < 3; ++round) {
      auto const report = runner.train({0, 1, 2, 3, 4, 5, 6, 7, 8});
      warnings.insert(warnings.end(), report.warnings.begin(), report.warnings.end());
    }
    CHECK(warnings.size() == (deadly ? 1 : 0));
    if (deadly && !warnings.empty()) {
      CHECK(warnings[0].find("was killed by Killed at client 4") != std::string::npos);
    }
    auto net = small_net();
    runner.load_global(net);
    return state_of(net);
  };
  CHECK(same(run(false), run(true)));
}

TEST_CASE("a run that is resumed from a checkpoint ends bit for bit as one that went through") {
  pardl::testing::TemporaryFolder const folder;
  auto const file = folder.path() / "round.safetensors";
  fed::RunnerOptions const options{.workers = 2, .seed = 4, .sharing = {.buffers = fed::BufferPolicy::client_local}};
  auto const make = [&](int workers) {
    auto copy = options;
    copy.workers = workers;
    return std::make_unique<fed::Runner<torch::nn::Sequential, TensorDataset, fed::LocalTraining<>, fed::ServerAdam>>(
        small_net(), samples(enough), growing(9), training(), fed::ServerAdam{.lr = 0.05}, copy);
  };
  auto const outcome = [](auto& runner) {
    auto net = small_net();
    runner.load_global(net);
    auto state = state_of(net);
    for (auto const& one : runner.evaluate(fed::Part::test)) state.push_back(torch::tensor(one.loss, torch::kDouble));
    return state;
  };
  auto through = make(2);
  for (int round = 0; round < 4; ++round) {
    through->train(fed::Uniform{.count = 4});
    if (round == 1) through->save(file, {{"word", "kept"}});
  }
  auto resumed = make(1);
  CHECK(resumed->load(file).at("word") == "kept");
  CHECK(resumed->round() == 2);
  resumed->train(fed::Uniform{.count = 4});
  CHECK_FALSE(same(outcome(*through), outcome(*resumed)));
  resumed->train(fed::Uniform{.count = 4});
  CHECK(same(outcome(*through), outcome(*resumed)));

  auto copy = options;
  copy.seed = 5;
  fed::Runner other(small_net(), samples(enough), growing(9), training(), fed::ServerAdam{}, copy);
  CHECK_THROWS_WITH_AS((void)other.load(file), doctest::Contains("was made with the seed 4, this job has 5"),
                       pardl::CheckpointError);
}

TEST_CASE("FedProx with mu 0 is FedAvg bit for bit, and pulls clients to the global model otherwise") {
  auto const run = [](double mu) {
    auto const plain = training();
    fed::LocalTraining<fed::CrossEntropy, fed::MakeSGD, fed::Proximal> const local(
        plain.options(), {.options = {.lr = 0.1}}, {}, {.mu = mu});
    fed::Runner runner(small_net(), samples(enough), growing(6), local, fed::Average{}, {.seed = 2});
    for (int round = 0; round < 2; ++round) runner.train({0, 1, 2, 3, 4, 5});
    auto net = small_net();
    runner.load_global(net);
    return state_of(net);
  };
  fed::Runner average(small_net(), samples(enough), growing(6), training(), fed::Average{}, {.seed = 2});
  for (int round = 0; round < 2; ++round) average.train({0, 1, 2, 3, 4, 5});
  auto net = small_net();
  average.load_global(net);
  CHECK(same(run(0), state_of(net)));
  auto const moved = [start = state_of(small_net())](std::vector<torch::Tensor> const& state) {
    double square = 0;
    for (std::size_t i = 0; i < 4; ++i) square += (state[i] - start[i]).square().sum().item<double>();
    return square;
  };
  CHECK(moved(run(5)) < 0.8 * moved(run(0)));
  CHECK(moved(run(5)) > 0);
}

TEST_CASE("FedOpt with SGD at rate 1 is FedAvg, Adam's first step has its closed form") {
  auto const run = [](auto server) {
    fed::Runner runner(small_net(false, 0), samples(enough), growing(6), training(), server, {.seed = 2});
    runner.train({0, 2, 4, 5});
    auto net = small_net(false, 0);
    runner.load_global(net);
    return state_of(net);
  };
  auto const start = state_of(small_net(false, 0));
  auto const mean = run(fed::Average{});
  CHECK(same(mean, run(fed::ServerSGD{})));
  CHECK(same(run(fed::ServerAdam{.lr = 0.1}), run(fed::ServerYogi{.lr = 0.1})));  // from nothing they begin alike
  auto const adam = run(fed::ServerAdam{.lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .tau = 1e-3});
  for (std::size_t i = 0; i < start.size(); ++i) {
    auto const d = start[i].to(torch::kDouble) - mean[i].to(torch::kDouble);
    auto const expected = start[i].to(torch::kDouble) - 0.1 * (d * 0.1) / ((d.square() * 0.01).sqrt() + 1e-3);
    CHECK(torch::allclose(adam[i].to(torch::kDouble), expected, 1e-6, 1e-7));
  }
}

TEST_CASE("N clients with the same samples give what one of them gives") {
  auto const data = samples(enough);
  fed::Shares one;
  for (std::int64_t i = 0; i < 20; ++i) one.train.push_back(i);
  fed::LocalTraining<> const local({.batches = {.batch_size = 20, .steps = 3}, .shuffle = false},
                                   {.options = {.lr = 0.3}});
  auto const run = [&](std::size_t clients) {
    fed::Runner runner(small_net(false, 0), data, fed::ClientShares(clients, one), local, fed::Average{},
                       {.workers = 2});
    std::vector<std::int64_t> all(clients);
    std::iota(all.begin(), all.end(), std::int64_t{0});
    runner.train(all);
    auto net = small_net(false, 0);
    runner.load_global(net);
    return state_of(net);
  };
  CHECK(same(run(1), run(5)));
}

TEST_CASE("clients that fail are named, or left out where the options say so") {
  auto data = samples(enough);
  data.inputs()[7].fill_(std::numeric_limits<float>::quiet_NaN());  // client 1 has samples 8 … 13, client 0 has 0 … 4
  data.inputs()[9].fill_(std::numeric_limits<float>::quiet_NaN());
  fed::Runner strict(small_net(false, 0), data, growing(4), training(), fed::Average{}, {.workers = 2});
  CHECK_THROWS_WITH_AS(strict.train({0, 1, 2}), doctest::Contains("round 0: client 1 failed: its training loss is nan"),
                       pardl::Error);
  auto net = small_net(false, 0);
  strict.load_global(net);
  CHECK(same(state_of(net), state_of(small_net(false, 0))));  // as before the round
  CHECK(strict.train({0, 2}).clients.size() == 2);

  fed::Runner lenient(small_net(false, 0), data, growing(4), training(), fed::Average{},
                      {.workers = 2, .on_client_failure = fed::OnFailure::leave_out, .client_names = {"ann", "ben"}});
  CHECK(lenient.name_of(1) == "client 1 (ben)");
  CHECK(fed::RunnerOptions{.client_names = {"ann"}, .first_number = 1}.name_of(0) == "client 1 (ann)");
  auto const report = lenient.train({0, 1, 2});
  CHECK(report.clients[1].failure.find("nan") != std::string::npos);
  strict.load_global(net);
  auto other = small_net(false, 0);
  lenient.load_global(other);
  CHECK(same(state_of(net), state_of(other)));  // as if client 1 had not been asked
}

TEST_CASE("bad input ends in a sentence") {
  CHECK_THROWS_WITH_AS(fed::LocalTraining<>({.autocast = torch::kHalf}), doctest::Contains("take kBFloat16"),
                       pardl::ConfigError);
  auto const make = [](fed::ClientShares shares, fed::RunnerOptions options) {
    return fed::Runner<torch::nn::Sequential, TensorDataset, fed::LocalTraining<>>(
        small_net(), samples(100), std::move(shares), training(), fed::Average{}, std::move(options));
  };
  auto empty = growing(3);
  empty[1].train.clear();
  CHECK_THROWS_WITH_AS(make(empty, {}), doctest::Contains("client 1 has no training samples"), pardl::DataError);
  CHECK_THROWS_WITH_AS(make(growing(30), {}), doctest::Contains("of a dataset of 100"), pardl::DataError);
  CHECK_THROWS_WITH_AS(make(growing(3), {.workers = 0}), doctest::Contains("0 workers"), pardl::ConfigError);
  CHECK_THROWS_WITH_AS(make(growing(3), {.workers = 2, .processes = false}), doctest::Contains("without processes"),
                       pardl::ConfigError);
  CHECK_THROWS_WITH_AS(make({}, {}), doctest::Contains("a federation of no clients"), pardl::ConfigError);
  fed::Runner fine(small_net(), samples(100), growing(3), training(), fed::Average{}, {});
  CHECK_THROWS_WITH_AS(fine.train({0, 0}), doctest::Contains("client 0 stands twice"), pardl::ConfigError);
  CHECK_THROWS_WITH_AS(fine.train({3}), doctest::Contains("client 3 of a federation of 3"), pardl::ConfigError);
  CHECK_THROWS_WITH_AS(fine.train(fed::Uniform{.count = 4}), doctest::Contains("4"), pardl::ConfigError);
  CHECK(fine.train(std::vector<std::int64_t>{}).clients.empty());
}

TEST_CASE("sums are exact whatever the order, and what does not fit is refused whole") {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(std::uint64_t{9});
  std::vector<torch::Tensor> updates;
  for (int i = 0; i < 7; ++i) updates.push_back(torch::randn({10'000}, generator));
  fed::FixedPoint const scale(28);
  fed::FixedPointSum forward(10'000, scale), backward(10'000, scale), left(10'000, scale), right(10'000, scale);
  for (int i = 0; i < 7; ++i) {
    CHECK_FALSE(forward.accumulate(updates[static_cast<std::size_t>(i)], i + 1));
    CHECK_FALSE(backward.accumulate(updates[static_cast<std::size_t>(6 - i)], 7 - i));
    CHECK_FALSE((i % 2 ? left : right).accumulate(updates[static_cast<std::size_t>(i)], i + 1));
  }
  CHECK(torch::equal(forward.finalize(), backward.finalize()));
  auto broken = updates[0].clone();
  broken[9'000] = std::numeric_limits<float>::quiet_NaN();
  CHECK(left.accumulate(broken, 1).value() == 9'000);
  broken[9'000] = 2'000'000.0F;
  CHECK(left.accumulate(broken, 1).value() == 9'000);
  left.merge(right);
  CHECK(torch::equal(forward.finalize(), left.finalize()));
  auto expected = torch::zeros({10'000}, torch::kDouble);
  for (int i = 0; i < 7; ++i) expected += updates[static_cast<std::size_t>(i)].to(torch::kDouble) * (i + 1) / 28.0;
  CHECK(torch::allclose(forward.finalize(), expected, 0, 1e-13));
  CHECK(fed::FixedPoint(28, 20'000).limit() > 4096 * 10'000.0F);
}

namespace {

struct Scale {
  float by;
  torch::Tensor operator()(torch::Tensor const& x, pardl::SampleStream const&) const { return x * by; }
};

}  // namespace

TEST_CASE("what is evaluated goes through the transform for evaluation, what is trained does not") {
  auto const make = [](float training_scale, float evaluation_scale) {
    return std::make_unique<
        fed::Runner<torch::nn::Sequential, TensorDataset, fed::LocalTraining<>, fed::Average, Scale>>(
        small_net(), samples(), growing(4), training(), fed::Average{}, fed::RunnerOptions{.workers = 2, .seed = 2},
        Scale{training_scale}, Scale{evaluation_scale});
  };
  auto plain = make(1, 1), other = make(1, 0), scaled = make(3, 1);
  for (auto* runner : {&plain, &other, &scaled}) (*runner)->train({0, 1, 2, 3});
  CHECK(same(global_of(*plain), global_of(*other)));
  CHECK_FALSE(same(global_of(*plain), global_of(*scaled)));
  CHECK_FALSE(same(figures_of(plain->evaluate(fed::Part::test)), figures_of(other->evaluate(fed::Part::test))));
}
