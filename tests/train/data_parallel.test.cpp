// SPDX-License-Identifier: MIT
#include "pardl/train/data_parallel.hpp"

#include <torch/torch.h>

#include <exception>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "data_parallel_support.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

using namespace dp_test;
using pardl::DataParallel;

TEST_CASE("outputs, gradients and steps are those of the module alone, and bitwise those of a loop in device order") {
  for (std::size_t const devices : {1u, 2u, 3u})
    for (int64_t const rows : {12, 7}) {
      Net net(1), alone(1), looped(1);
      DataParallel model{net, cpus(devices)};
      auto const options = torch::optim::SGDOptions(0.05).momentum(0.9);
      torch::optim::SGD sgd(model.parameters(), options), sgd_alone(alone->parameters(), options),
          sgd_looped(looped->parameters(), options);
      for (uint64_t s = 0; s < 4; ++s) {
        auto const batch = seeded({rows, 6}, 100 + s);
        CAPTURE(devices);
        CAPTURE(rows);
        CAPTURE(s);
        auto const output = model(batch);
        auto const expected = alone(batch);
        CHECK(torch::allclose(output, expected, 1e-5, 1e-6));
        sgd.zero_grad();
        sgd_alone.zero_grad();
        loss_of(output).backward();
        loss_of(expected).backward();
        CHECK(close(gradients(*net), gradients(*alone)));
        auto const sums = looped_gradients(*looped, batch, static_cast<int64_t>(devices));
        CHECK(same_bits(gradients(*net), sums));
        for (std::size_t i = 0; i < sums.size(); ++i) looped->parameters()[i].mutable_grad() = sums[i];
        sgd.step();
        sgd_alone.step();
        sgd_looped.step();
      }
      CHECK(same_bits(net->parameters(), looped->parameters()));
      CHECK_FALSE(torch::allclose(net->parameters()[0], Net(1)->parameters()[0]));  // it did train
    }
}

TEST_CASE("gradients are added from the first device to the last") {
  // In float32, (1e8 - 1e8) + 1 is 1, and 1e8 + (-1e8 + 1) is 0.
  for (bool const parallel : {true, false}) {
    Scale net;
    DataParallel model{net, cpus(3), {.parallel = parallel}};
    model(floats({1e8f, -1e8f, 1.f})).sum().backward();
    CHECK(net->w.grad().item<float>() == 1.f);
    model.zero_grad();
    auto const x = floats({1e8f, -1e8f, 1.f});
    (model(x) + model(x)).sum().backward();  // two uses of each replica before the sum
    CHECK(net->w.grad().item<float>() == 2.f);
  }
}

TEST_CASE("a batch is split as torch.chunk splits it, and no more replicas work than there are parts") {
  Witness net;
  auto const log = net->log;
  DataParallel four{net, cpus(4)}, three{net, cpus(3)};
  using Rows = std::vector<int64_t>;
  auto const x = torch::arange(12, torch::kFloat32);
  auto const check = [&](auto& model, int64_t rows, Rows const& parts) {
    auto const output = model(x.narrow(0, 0, rows));
    CHECK(log->take_rows() == parts);
    CHECK(torch::equal(output, x.narrow(0, 0, rows)));
  };
  check(four, 8, {2, 2, 2, 2});
  check(four, 7, {2, 2, 2, 1});
  check(four, 5, {2, 2, 1});
  check(four, 4, {1, 1, 1, 1});
  check(four, 2, {1, 1});
  check(four, 1, {1});
  check(four, 0, {0, 0, 0, 0});
  check(three, 4, {2, 2});
  for (int64_t rows = 0; rows < 12; ++rows)
    for (int64_t devices = 1; devices < 6; ++devices) {
      Rows expected;
      for (auto const& part : x.narrow(0, 0, rows).chunk(devices)) expected.push_back(part.size(0));
      CHECK(pardl::detail::chunk_sizes(rows, static_cast<std::size_t>(devices)) == expected);
    }
}

TEST_CASE("tiny and empty batches train") {
  Net net(1), alone(1);
  DataParallel model{net, cpus(3)};
  for (int64_t const rows : {1, 2, 0}) {
    auto const batch = seeded({rows, 6}, 5);
    CAPTURE(rows);
    model.zero_grad();
    alone->zero_grad();
    auto const output = model(batch);
    CHECK(output.sizes() == c10::IntArrayRef({rows, 3}));
    output.sum().backward();
    alone(batch).sum().backward();
    CHECK(close(gradients(*net), gradients(*alone)));
  }
}

namespace {

struct Pair {
  torch::Tensor first, second;
  int tag = 0;
};
struct Shared {  // no tensor that could be found, so that all replicas see the caller's own
  explicit Shared(int v) : value(v) {}
  Shared(Shared const&) = delete;
  Shared& operator=(Shared const&) = delete;
  int value;
};

/// Takes and gives everything.
struct ManyImpl : torch::nn::Cloneable<ManyImpl> {
  void reset() override {}
  std::tuple<torch::Tensor, std::vector<torch::Tensor>, Pair, int, torch::Tensor> forward(
      torch::Tensor const& x, std::tuple<torch::Tensor, int> const& pair, std::vector<torch::Tensor> list,
      std::map<std::string, torch::Tensor>& named, Pair parts, std::optional<torch::Tensor> const& maybe,
      torch::Tensor number, torch::Tensor nothing, double factor, std::string const& text, Shared& shared) {
    named.clear();  // a copy: the caller's stays whole
    CHECK(!nothing.defined());
    CHECK(text == "text");
    auto const y = x + std::get<0>(pair) + list[0] + list[1] + *maybe + number * factor + shared.value;
    return {y, {list[1], x}, {parts.second, parts.first, parts.tag}, static_cast<int>(x.size(0)), y.sum()};
  }
};
TORCH_MODULE(Many);

}  // namespace

TEST_CASE("tensors are found in whatever holds them, split, and gathered; the rest goes to all") {
  Many net;
  DataParallel model{net, cpus(2)};
  auto const x = floats({1, 2, 3});
  std::map<std::string, torch::Tensor> named{{"a", x}};
  Shared shared(1000);
  auto const [y, list, pair, rows, sums] =
      model(x, std::tuple(x * 10, 5), std::vector{x, x * 2}, named, Pair{x, -x, 7}, std::optional(x * 100),
            torch::tensor(3.f), torch::Tensor(), 0.5, std::string("text"), shared);
  CHECK(torch::equal(y, x * 114 + 1001.5));
  CHECK(torch::equal(list[0], x * 2));
  CHECK(torch::equal(list[1], x));
  CHECK(torch::equal(pair.first, -x));
  CHECK(torch::equal(pair.second, x));
  CHECK(pair.tag == 7);
  CHECK(rows == 2);                                                          // what is no tensor is the first replica's
  CHECK(torch::equal(sums, torch::stack({y.narrow(0, 0, 2).sum(), y[2]})));  // a number of each, as a vector
  CHECK(named.size() == 1);
}

TEST_CASE("numbers stay numbers on one device, and are vectors on several, of whatever length") {
  struct SumImpl : torch::nn::Cloneable<SumImpl> {
    void reset() override {}
    torch::Tensor forward(torch::Tensor const& x) { return x.sum(); }
  };
  auto const net = std::make_shared<SumImpl>();
  DataParallel one{net, cpus(1)}, three{net, cpus(3)};
  CHECK(one(floats({1, 2, 3})).dim() == 0);
  CHECK(torch::equal(three(floats({1, 2, 3, 4})), floats({3, 7})));
  CHECK(torch::equal(three(floats({5})), floats({5})));
}

TEST_CASE("forwards that return nothing or take nothing, and plain modules") {
  struct Counter : torch::nn::Cloneable<Counter> {
    Counter() { reset(); }
    void reset() override { w = register_parameter("w", torch::ones({1})); }
    void forward(torch::Tensor const& x) { *rows += x.size(0); }
    torch::Tensor forward() { return w * 2; }
    torch::Tensor forward(int times) { return w * times; }
    torch::Tensor w;
    std::shared_ptr<std::atomic<int64_t>> rows = std::make_shared<std::atomic<int64_t>>(0);
  };
  Counter net;
  DataParallel model{net, cpus(3)};
  model(floats({1, 2, 3, 4, 5}));
  CHECK(*net.rows == 5);
  CHECK(torch::equal(model(), floats({2})));         // no argument: the first device alone
  CHECK(torch::equal(model(4), floats({4, 4, 4})));  // none to split: all of them, as in Python
  model(4).sum().backward();
  CHECK(net.w.grad().item<float>() == 12.f);
  CHECK(&model.module() == &net);
}

TEST_CASE("inputs that require gradients get them, and may be changed in place by each replica") {
  struct InPlaceImpl : torch::nn::Cloneable<InPlaceImpl> {
    InPlaceImpl() { reset(); }
    void reset() override { w = register_parameter("w", torch::full({1}, 2.f)); }
    torch::Tensor forward(torch::Tensor x) { return x.mul_(w); }
    torch::Tensor w;
  };
  auto const net = std::make_shared<InPlaceImpl>();
  DataParallel model{net, cpus(3)};
  auto const x = torch::arange(5, torch::kFloat32).requires_grad_();
  auto const weights = floats({1, 10, 100, 1000, 10000});
  (model(x) * weights).sum().backward();
  CHECK(torch::equal(x.grad(), weights * 2));
  CHECK(torch::equal(x, torch::arange(5, torch::kFloat32)));
  CHECK(net->w.grad().item<float>() == 43210.f);
  (model(x * 3) * weights).sum().backward();  // an input with a graph of its own
  CHECK(torch::equal(x.grad(), weights * 8));
}

TEST_CASE("what cannot be spread is refused in a sentence") {
  Net net(1);
  auto const refusal = [](auto&& module, std::vector<torch::Device> devices) {
    return message_of([&] { DataParallel model(module, devices); });
  };
  CHECK(refusal(net, {}) == "[train] DataParallel was given no device; list those that the module shall use.");
  CHECK(contains(refusal(net, {torch::kCPU, torch::Device(torch::kCUDA, 100)}), "cuda:100, which cannot be used here"));
  CHECK(contains(refusal(net, {torch::kMeta, torch::kMeta}), "meta twice"));  // as any device but the CPU
  CHECK(contains(refusal(net, {torch::kMeta}), "on the first device, meta, but 'a.weight' is on cpu"));
  DataParallel model{net, cpus(2)};
  struct ElsewhereImpl : torch::nn::Module {
    ElsewhereImpl() { register_parameter("w", torch::ones({1}, torch::kMeta)); }
  };
  net->replace_module("a", std::make_shared<ElsewhereImpl>());
  CHECK(contains(message_of([&] { model(torch::ones({4, 6})); }), "'a.w' is on meta; call module->to(device)"));

  struct TwoImpl : torch::nn::Cloneable<TwoImpl> {
    void reset() override {}
    torch::Tensor forward(torch::Tensor const& x, torch::Tensor const& y) { return x.sum() + y.sum(); }
  };
  auto const two = std::make_shared<TwoImpl>();
  DataParallel pair{two, cpus(2)};
  CHECK_THROWS_AS(pair(torch::ones({6, 2}), torch::ones({4})), pardl::DataError);
  CHECK(contains(message_of([&] { pair(torch::ones({6, 2}), torch::ones({4})); }), "of 6 and of 4 rows"));
  CHECK(pair(torch::ones({6, 2}), torch::ones({})).size(0) == 2);
}

namespace {

struct PlainPart : torch::nn::Module {
  torch::Tensor forward(torch::Tensor const& x) { return x; }
};
struct LateImpl : torch::nn::Cloneable<LateImpl> {  // registers where reset() cannot see it
  LateImpl() { register_parameter("w", torch::ones({1})); }
  void reset() override {}
  torch::Tensor forward(torch::Tensor const& x) { return x; }
};
struct ShallowImpl : torch::nn::Module {
  ShallowImpl() { w = register_parameter("w", torch::ones({1})); }
  std::shared_ptr<torch::nn::Module> clone(std::optional<torch::Device> const&) const override {
    auto copy = std::make_shared<ShallowImpl>();
    copy->w.set_data(w.detach());
    return copy;
  }
  torch::Tensor forward(torch::Tensor const& x) { return x * w; }
  torch::Tensor w;
};

}  // namespace

TEST_CASE("modules that cannot be cloned, or not deeply, are refused with what to do") {
  auto const refusal = [](auto const& module) { return message_of([&] { DataParallel model(module, cpus(2)); }); };
  torch::nn::Sequential with_plain_part(torch::nn::Linear(1, 1), PlainPart());
  CHECK(contains(refusal(with_plain_part), "derive it and each of its parts from torch::nn::Cloneable"));
  CHECK(contains(refusal(std::make_shared<LateImpl>()), "register parameters, buffers and submodules in reset()"));
  CHECK(contains(refusal(std::make_shared<ShallowImpl>()), "the clone shares 'w' with the module"));
  CHECK(message_of([&] { DataParallel model(with_plain_part, cpus(1)); }).empty());  // one device needs no clone

  torch::nn::Sequential growing(torch::nn::Linear(1, 1));
  DataParallel model{growing, cpus(2)};
  growing->push_back(PlainPart());
  for (int time = 0; time < 2; ++time)  // it is found out in the next forward, and again in the one after that
    CHECK(contains(message_of([&] { model(torch::ones({2, 1})); }), "DataParallel cannot clone the module"));
}

TEST_CASE("an exception of a replica names its device, keeps the first cause, and leaves the model usable") {
  struct ThrowsImpl : torch::nn::Cloneable<ThrowsImpl> {
    void reset() override {}
    torch::Tensor forward(torch::Tensor const& x) {
      if (x[0].item<float>() < 0) throw std::out_of_range("negative " + std::to_string(x[0].item<int>()));
      TORCH_CHECK(x[0].item<float>() < 100, "large");
      return x;
    }
  };
  auto const net = std::make_shared<ThrowsImpl>();
  for (bool const parallel : {true, false}) {
    DataParallel model{net, cpus(3), {.parallel = parallel}};
    CHECK(message_of([&] { model(floats({1, -2, -3})); }) == "[train] forward failed on device 1 (cpu): negative -2.");
    CHECK(message_of([&] { model(floats({1, 2, 300})); }) == "[train] forward failed on device 2 (cpu): large.");
    try {
      model(floats({-7}));  // in the calling thread
      FAIL("nothing was thrown");
    } catch (pardl::Error const& error) {
      CHECK_THROWS_AS(std::rethrow_if_nested(error), std::out_of_range);
    }
    CHECK(torch::equal(model(floats({1, 2, 3})), floats({1, 2, 3})));
  }
}

TEST_CASE("results that do not fit together are refused in a sentence") {
  struct RaggedImpl : torch::nn::Cloneable<RaggedImpl> {
    void reset() override {}
    std::vector<torch::Tensor> forward(torch::Tensor const& x, int how) {
      bool const first = x[0].item<float>() == 0;
      if (how == 0) return first ? std::vector{x} : std::vector{x, x};
      if (how == 1) return {first ? x : torch::Tensor()};
      if (how == 2) return {first ? x : x.sum()};
      if (how == 3) return {x.unsqueeze(0)};  // as an LSTM's hidden state: [layers, batch]
      if (how == 4) return {first ? x : x.unsqueeze(1)};
      return {first ? torch::zeros({0}) : x.unsqueeze(1)};
    }
  };
  auto const net = std::make_shared<RaggedImpl>();
  DataParallel model{net, cpus(2)};
  auto const x = floats({0, 1}), uneven = floats({0, 0, 1});
  CHECK(contains(message_of([&] { model(x, 0); }), "1 tensors on the first device and 2 on device 1"));
  CHECK(contains(message_of([&] { model(x, 1); }), "undefined, or a number, on others"));
  CHECK(contains(message_of([&] { model(x, 2); }), "undefined, or a number, on others"));
  CHECK(model(x, 3)[0].sizes() == c10::IntArrayRef({2, 1}));
  CHECK_THROWS_AS(model(uneven, 3), pardl::DataError);
  CHECK(message_of([&] { model(uneven, 3); }) ==
        "[train] DataParallel cannot gather what forward returned: a tensor is [1, 2] on device 0 and [1, 1] on device "
        "1; let forward return tensors that have the batch as their first dimension and are alike in the others.");
  CHECK(contains(message_of([&] { model(x, 4); }), "a tensor is [1] on device 0 and [1, 1] on device 1"));
  CHECK(model(x, 5)[0].sizes() == c10::IntArrayRef({1, 1}));  // torch.cat joins an empty vector to anything
}
