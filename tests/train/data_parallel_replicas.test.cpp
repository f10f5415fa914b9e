// SPDX-License-Identifier: MIT
// The replicas of DataParallel: kept, following the module, one thread each.
#include <torch/torch.h>

#include <ATen/Parallel.h>
#include <atomic>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "data_parallel_support.hpp"
#include "pardl/train/autocast.hpp"
#include "pardl/train/data_parallel.hpp"
#include "pardl/train/evaluate.hpp"
#include "pardl/train/optim.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

using namespace dp_test;
using pardl::DataParallel;

TEST_CASE("replicas are cloned once and kept, and drawing their weights leaves the random numbers alone") {
  static std::atomic<int> built;
  struct CountedImpl : torch::nn::Cloneable<CountedImpl> {
    CountedImpl() { reset(); }
    void reset() override {
      ++built;
      layer = register_module("layer", torch::nn::Linear(3, 3));
    }
    torch::Tensor forward(torch::Tensor const& x) { return layer(x); }
    torch::nn::Linear layer = nullptr;
  };
  auto const net = std::make_shared<CountedImpl>();
  torch::manual_seed(3);
  auto const expected = torch::rand({4});
  torch::manual_seed(3);
  built = 0;
  DataParallel model{net, cpus(3)};
  CHECK(torch::equal(torch::rand({4}), expected));
  CHECK(built == 2);
  torch::optim::SGD sgd(model.parameters(), 0.1);
  for (int s = 0; s < 5; ++s) {
    sgd.zero_grad();
    model(torch::ones({6, 3})).sum().backward();
    sgd.step();
  }
  model.eval();
  (void)model(torch::ones({6, 3}));
  CHECK(built == 2);
  model.replicate();
  CHECK(built == 4);
}

TEST_CASE("each forward sees the module as it is, however it was changed") {
  Net net(1), other(7);
  DataParallel model{net, cpus(3)};
  auto x = seeded({6, 6}, 1);
  auto const check = [&](char const* how) {
    INFO(how);
    CHECK(torch::allclose(model(x), net(x), 1e-5, 1e-6));
    net->zero_grad();
    loss_of(model(x)).backward();
    auto const got = copies(gradients(*net));
    net->zero_grad();
    loss_of(net(x)).backward();
    CHECK(close(got, gradients(*net)));
  };
  auto const weight = net->b->weight;
  check("as made");
  {
    torch::NoGradGuard no_grad;
    weight.mul_(2);
  }
  check("in place");
  model.load_state_dict(pardl::state_dict(*other));
  check("load_state_dict");
  net->b->weight.set_data(seeded({16, 16}, 9));
  check("set_data");
  net->to(torch::kFloat64);
  x = x.to(torch::kFloat64);
  check("to float64");
  net->to(torch::kFloat32);
  x = x.to(torch::kFloat32);
  check("and back");
  net->c->weight.set_data(seeded({16, 16}, 10).t().narrow(0, 0, 3));
  check("of other strides");
  net->c->weight.set_data(seeded({5, 16}, 11));
  net->c->bias.set_data(seeded({5}, 12));
  check("of another shape");
  net->c = torch::nn::Linear(16, 2);
  net->replace_module("c", net->c);
  check("another part");

  torch::nn::Sequential layers(torch::nn::Linear(6, 6));
  DataParallel growing{layers, cpus(2)};
  CHECK(torch::equal(growing(x), layers->forward(x)));
  layers->push_back(torch::nn::Tanh());  // nothing in it but what it does
  CHECK(torch::equal(growing(x), layers->forward(x)));
  layers->push_back(torch::nn::Linear(6, 2));
  CHECK(torch::allclose(growing(x), layers->forward(x), 1e-5, 1e-6));
}

TEST_CASE("replicas that a small batch left out follow later") {
  Scale net;
  DataParallel model{net, cpus(3)};
  auto const x = floats({1, 2, 3});
  for (int s = 2; s < 5; ++s) {
    torch::NoGradGuard no_grad;
    net->w.fill_(s);
    CHECK(torch::equal(model(x.narrow(0, 0, s % 3 + 1)), x.narrow(0, 0, s % 3 + 1) * s));
  }
}

TEST_CASE("changes that no version counts are seen, too") {
  Scale net;
  DataParallel model{net, cpus(2)};
  auto const x = floats({1, 1});
  auto const check = [&](float w) { CHECK(torch::equal(model(x), floats({w, w}))); };
  check(1);
  *net->w.mutable_data_ptr<float>() = 5;
  check(5);
  model(x).sum().backward();  // a gradient of 2
  pardl::optim::SGD sgd{model.parameters(), {.lr = 1.0}};
  sgd.step();
  check(3);
  torch::optim::SGD torch_sgd(model.parameters(), 1.0);
  torch_sgd.step();
  check(1);
}

TEST_CASE("batch norm normalises each part by itself, and the module keeps the first part's statistics") {
  torch::nn::Sequential net(torch::nn::BatchNorm1d(1));
  DataParallel model{net, cpus(2)};
  auto const x = floats({0, 2, 10, 30}).reshape({4, 1});
  auto const y = model(x);  // parts (0, 2) and (10, 30): means 1 and 20, biased variances 1 and 100
  CHECK(torch::allclose(y, floats({-1, 1, -1, 1}).reshape({4, 1}), 1e-4, 1e-4));
  auto const buffers = [&] { return net->named_buffers(); };
  CHECK(buffers()["0.running_mean"].item<float>() == doctest::Approx(0.1));  // 0.9 · 0 + 0.1 · 1
  CHECK(buffers()["0.running_var"].item<float>() == doctest::Approx(1.1));   // 0.9 · 1 + 0.1 · 2
  CHECK(buffers()["0.num_batches_tracked"].item<int64_t>() == 1);
  (void)model(x);
  CHECK(buffers()["0.running_mean"].item<float>() == doctest::Approx(0.19));
  CHECK(buffers()["0.num_batches_tracked"].item<int64_t>() == 2);

  model.eval();  // now all replicas use the module's statistics
  auto const mean = buffers()["0.running_mean"], var = buffers()["0.running_var"];
  CHECK(torch::allclose(model(x), (x - mean) / (var + 1e-5).sqrt(), 1e-5, 1e-6));
  CHECK(buffers()["0.num_batches_tracked"].item<int64_t>() == 2);
  CHECK(model.state_dict().keys() == pardl::state_dict(net).keys());
  CHECK(model.state_dict().contains("0.running_mean"));
}

TEST_CASE("two forwards of batch norm before one backward, in training and in evaluation") {
  auto const make = [] {
    ddp_test::WithBatchNorm made(1);
    return torch::nn::Sequential(made->a, made->norm);
  };
  for (bool const training : {true, false}) {
    auto net = make(), first = make(), second = make();
    for (auto* each : {&net, &first, &second}) (*each)->train(training);
    DataParallel model{net, cpus(2)};
    auto const x = seeded({6, 6}, 1), z = seeded({6, 6}, 2);
    (loss_of(model(x)) + loss_of(model(z))).backward();
    // Parts of three rows: the module normalises the first ones, replicas like `second` the others.
    auto const parts = [&](auto const& b) {
      return loss_of(torch::cat({first->forward(b.narrow(0, 0, 3)), second->forward(b.narrow(0, 3, 3))}));
    };
    (parts(x) + parts(z)).backward();
    auto sums = copies(gradients(*first));
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += gradients(*second)[i];
    CHECK(close(gradients(*net), sums));
  }
}

TEST_CASE("what the first replica makes of a buffer stays, what the others make of theirs is lost") {
  struct CounterImpl : torch::nn::Cloneable<CounterImpl> {
    CounterImpl() { reset(); }
    void reset() override { rows = register_buffer("rows", torch::zeros({1})); }
    torch::Tensor forward(torch::Tensor const& x) {
      auto const seen = x * 0 + rows;
      rows += x.size(0);
      return seen;
    }
    torch::Tensor rows;
  };
  auto const net = std::make_shared<CounterImpl>();
  DataParallel model{net, cpus(2)};
  auto const x = torch::ones({3});
  CHECK(torch::equal(model(x), floats({0, 0, 0})));
  CHECK(net->rows.item<float>() == 2.f);
  CHECK(torch::equal(model(x), floats({2, 2, 2})));
  CHECK(net->rows.item<float>() == 4.f);
  net->rows.zero_();
  CHECK(torch::equal(model(x), floats({0, 0, 0})));
}

TEST_CASE("modes follow, part by part") {
  torch::nn::Sequential net(Witness(), torch::nn::BatchNorm1d(6), Witness());
  auto const first = net->ptr<WitnessImpl>(0)->log, last = net->ptr<WitnessImpl>(2)->log;
  DataParallel model{net, cpus(3)};
  auto const modes = [&](bool first_trains, bool last_trains) {
    (void)model(seeded({6, 6}, 1));
    for (auto const& call : first->take()) CHECK(call.training == first_trains);
    for (auto const& call : last->take()) CHECK(call.training == last_trains);
  };
  modes(true, true);
  net->ptr<WitnessImpl>(2)->eval();
  modes(true, false);
  model.eval();
  CHECK_FALSE(model.is_training());
  modes(false, false);
  model.train();
  net->ptr<WitnessImpl>(0)->eval();
  modes(false, true);
}

TEST_CASE("each device has a thread of its own, kept from call to call") {
  Witness net;
  auto const me = std::this_thread::get_id();
  DataParallel model{net, cpus(3)}, sequential{net, cpus(3), {.parallel = false}};
  std::set<std::pair<void const*, std::thread::id>> pairs;
  for (int s = 0; s < 20; ++s) {
    (void)model(torch::ones({6}));
    for (auto const& call : net->log->take()) pairs.emplace(call.module, call.thread);
  }
  CHECK(pairs.size() == 3);  // each replica always in the same thread
  std::set<std::thread::id> threads;
  for (auto const& [module, thread] : pairs) threads.insert(thread);
  CHECK(threads.size() == 3);
  CHECK(threads.count(me) == 0);

  (void)sequential(torch::ones({6}));
  for (auto const& call : net->log->take()) CHECK(call.thread == me);
  (void)model(torch::ones({1}));  // one part needs no other thread
  CHECK(net->log->take().at(0).thread == me);
}

TEST_CASE("threads work in the caller's modes, and forget them") {
  Witness net;
  DataParallel model{net, cpus(3)};
  auto const x = torch::ones({6});
  auto const all = [&](auto&& holds) {
    (void)model(x);
    auto const calls = net->log->take();
    CHECK(calls.size() == 3);
    for (auto const& call : calls) CHECK(holds(call));
  };
  auto const plain = [](Call const& call) { return call.grad && !call.autocast && call.cache; };
  all(plain);
  {
    torch::NoGradGuard no_grad;
    all([](Call const& call) { return !call.grad; });
  }
  all(plain);
  {
    pardl::Autocast const to_half(torch::kCPU, torch::kHalf);
    all([](Call const& call) { return call.autocast && call.autocast_dtype == torch::kHalf && call.cache; });
    pardl::Autocast const uncached(torch::kCPU, {.dtype = torch::kBFloat16, .cache_enabled = false});
    all([](Call const& call) { return call.autocast && call.autocast_dtype == torch::kBFloat16 && !call.cache; });
  }
  all(plain);
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kFloat64));
  all([](Call const& call) { return call.default_dtype == torch::kFloat64; });
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kFloat32));
}

TEST_CASE("autocast trains as on the module alone") {
  Net net(1), alone(1);
  DataParallel model{net, cpus(3)};
  torch::optim::SGD sgd(model.parameters(), 0.1), sgd_alone(alone->parameters(), 0.1);
  for (uint64_t s = 0; s < 3; ++s) {
    auto const x = seeded({9, 6}, s);
    torch::Tensor loss, expected;
    {
      pardl::Autocast const amp(torch::kCPU, torch::kBFloat16);
      auto const output = model(x);
      CHECK((output.scalar_type() == torch::kBFloat16));
      loss = loss_of(output.to(torch::kFloat32)) + loss_of(model(x).to(torch::kFloat32));  // cast weights in use twice
      expected = loss_of(alone(x).to(torch::kFloat32)) * 2;
    }
    sgd.zero_grad();
    sgd_alone.zero_grad();
    loss.backward();
    expected.backward();
    for (std::size_t i = 0; i < 6; ++i)
      CHECK(torch::allclose(net->parameters()[i].grad(), alone->parameters()[i].grad(), 5e-2, 1e-2));
    sgd.step();
    sgd_alone.step();
  }
}

TEST_CASE("CPU devices share the intra-op threads of the caller, whose number stays") {
  int const before = at::get_num_threads();
  Witness net;
  DataParallel model{net, cpus(3)};
  for (int const total : {7, 2, 1}) {
    at::set_num_threads(total);
    (void)model(torch::ones({6}));
    for (auto const& call : net->log->take()) CHECK(call.intra_op == std::max(1, total / 3));
    CHECK(at::get_num_threads() == total);
    int later = 0;
    std::thread([&later] { later = at::get_num_threads(); }).join();
    CHECK(later == total);
    (void)model(torch::ones({1}));
    CHECK(net->log->take().at(0).intra_op == total);  // alone, it has all of them
  }
  at::set_num_threads(before);
}

TEST_CASE("dropout draws other masks on each replica; one after the other they repeat") {
  torch::nn::Sequential net(torch::nn::Dropout(0.5));
  DataParallel model{net, cpus(2)}, sequential{net, cpus(2), {.parallel = false}};
  auto const x = torch::ones({2, 200});
  auto const y = model(x);
  CHECK_FALSE(torch::equal(y[0], y[1]));
  for (auto const& row : {y[0], y[1]}) CHECK((row.eq(0).any().item<bool>() && row.eq(2).any().item<bool>()));
  torch::manual_seed(11);
  auto const first = sequential(x);
  torch::manual_seed(11);
  CHECK(torch::equal(sequential(x), first));
  torch::manual_seed(11);
  auto const whole = torch::cat({net->forward(x.narrow(0, 0, 1)), net->forward(x.narrow(0, 1, 1))});
  CHECK(torch::equal(first, whole));
  model.eval();
  CHECK(torch::equal(model(x), x));
}

TEST_CASE("values are packed for another device as they lie, by dtype, large ones alone") {
  std::vector<torch::Tensor> from{
      seeded({3, 4}, 1),  seeded({2, 3, 4, 5}, 2).contiguous(torch::MemoryFormat::ChannelsLast),
      torch::arange(5),   seeded({600, 600}, 3),
      torch::tensor(7.f), seeded({4, 3}, 4).t(),
      torch::ones({0, 3})};
  for (bool const across : {true, false}) {
    std::vector<torch::Tensor> to;
    for (auto const& tensor : from) to.push_back(torch::zeros_like(tensor));
    pardl::detail::copy_coalesced(from, to, across);
    CHECK(same_bits(to, from));
    CHECK(to[1].is_contiguous(torch::MemoryFormat::ChannelsLast));
  }
}

TEST_CASE("evaluate() measures the module itself") {
  Net net(1);
  DataParallel model{net, cpus(2)};
  std::vector<std::pair<torch::Tensor, torch::Tensor>> const batches{{seeded({4, 6}, 1), torch::tensor({0, 1, 2, 0})}};
  auto const got = pardl::evaluate(model, batches, pardl::ProcessGroup{});
  CHECK(got.loss == pardl::evaluate(net, batches, pardl::ProcessGroup{}).loss);
  CHECK(model.is_training());
}
