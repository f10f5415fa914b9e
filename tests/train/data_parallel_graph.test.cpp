// SPDX-License-Identifier: MIT
// The graph of DataParallel does what the graph of its module alone does. Most cases run one story twice, on the module
// alone and on three replicas, and compare what it leaves.
#include <torch/torch.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "data_parallel_support.hpp"
#include "pardl/train/data_parallel.hpp"
#include "pardl/train/distributed_data_parallel.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

using namespace dp_test;
using pardl::DataParallel;
using torch::autograd::grad;

namespace {

using Forward = std::function<torch::Tensor(torch::Tensor const&)>;

/// Tells a story on the module alone and on replicas of it: the same gradients must be left, and the same message.
template <class M>
void same_story(std::function<M()> const& make, std::function<void(M&, Forward const&)> const& story) {
  M alone = make(), net = make();
  DataParallel model{net, cpus(3)};
  auto const expected = message_of([&] { story(alone, [&](auto const& x) { return alone->forward(x); }); });
  auto const got = message_of([&] { story(net, [&](auto const& x) { return model(x); }); });
  CHECK_MESSAGE(close(gradients(*net), gradients(*alone)), gradients(*net) << "\nbut alone\n" << gradients(*alone));
  // The first line names the operation; what follows it counts versions and shapes.
  auto const head = [](std::string const& text) { return text.substr(0, 60); };
  CHECK_MESSAGE(head(got) == head(expected), got << "\nbut alone\n" << expected);
}
void same_story(std::function<void(Net&, Forward const&)> const& story) {
  same_story<Net>([] { return Net(1); }, story);
}

torch::Tensor batch(uint64_t seed, int64_t rows = 7) { return seeded({rows, 6}, seed); }

}  // namespace

TEST_CASE("a retained graph can be run again, one that is not cannot") {
  same_story([](Net&, Forward const& f) {
    auto const loss = loss_of(f(batch(1)));
    loss.backward({}, /*retain_graph=*/true);
    loss.backward({}, /*retain_graph=*/true);
    loss.backward();
  });
  same_story([](Net&, Forward const& f) {
    auto const loss = loss_of(f(batch(1)));
    loss.backward();
    loss.backward();
  });
}

TEST_CASE("two forwards before one backward, and backwards in another order than the forwards") {
  same_story([](Net&, Forward const& f) { (loss_of(f(batch(1))) + loss_of(f(batch(2)))).backward(); });
  same_story([](Net&, Forward const& f) {
    auto const first = loss_of(f(batch(1)));
    auto const second = loss_of(f(batch(2)));
    first.backward();
    second.backward();
  });
  same_story([](Net&, Forward const& f) { loss_of(f(torch::cat({f(batch(1)), f(batch(2))}, 1))).backward(); });
}

TEST_CASE("gradients accumulate in .grad") {
  same_story([](Net& net, Forward const& f) {
    for (uint64_t s = 0; s < 3; ++s) loss_of(f(batch(s))).backward();
    net->a->weight.mutable_grad() = torch::Tensor();
    loss_of(f(batch(3))).backward();
  });
}

TEST_CASE("a step between forward and backward is found out, one after both is not") {
  auto const step = [](Net& net) {
    torch::NoGradGuard no_grad;
    for (auto& parameter : net->parameters()) parameter.mul_(0.9);
  };
  same_story([&](Net& net, Forward const& f) {
    auto const loss = loss_of(f(batch(1)));
    step(net);
    loss.backward();
  });
  same_story([&](Net& net, Forward const& f) {
    auto const loss = loss_of(f(batch(1)));
    step(net);
    loss_of(f(batch(2))).backward();  // the replicas have followed
    loss.backward();
  });
  same_story([&](Net& net, Forward const& f) {
    auto const loss = loss_of(f(batch(1)));
    loss.backward();
    step(net);
    loss_of(f(batch(2))).backward();
  });
}

TEST_CASE("a change that is not counted is not found out") {
  same_story([](Net& net, Forward const& f) {
    auto const loss = loss_of(f(batch(1)));
    for (auto& parameter : net->parameters()) parameter.data().mul_(0.9);
    loss_of(f(batch(2))).backward();
    loss.backward();
  });
}

TEST_CASE("a forward without gradients has none, and leaves earlier graphs alone") {
  same_story([](Net&, Forward const& f) {
    auto const loss = loss_of(f(batch(1)));
    {
      torch::NoGradGuard no_grad;
      CHECK_FALSE(f(batch(2)).requires_grad());
    }
    {
      c10::InferenceMode const inference;
      CHECK(f(batch(2)).is_inference());
    }
    loss.backward();
    CHECK(f(batch(2)).requires_grad());
  });
}

TEST_CASE("a model made or first called in inference mode trains afterwards") {
  Net net(1), alone(1);
  std::optional<DataParallel<Net>> model;
  {
    c10::InferenceMode const inference;
    model.emplace(net, cpus(2));
    (void)(*model)(batch(1));
  }
  loss_of((*model)(batch(1))).backward();
  loss_of(alone(batch(1))).backward();
  CHECK(close(gradients(*net), gradients(*alone)));
}

TEST_CASE("frozen parameters get no gradient, and may be frozen and thawed at any time") {
  same_story([](Net& net, Forward const& f) {
    net->b->weight.set_requires_grad(false);
    loss_of(f(batch(1))).backward();
    net->b->weight.set_requires_grad(true);
    loss_of(f(batch(2))).backward();
    auto const loss = loss_of(f(batch(3)));
    net->b->weight.set_requires_grad(false);  // between forward and backward
    net->c->bias.set_requires_grad(false);
    auto const second = loss_of(f(batch(4)));
    loss.backward();
    second.backward();
  });
  same_story([](Net& net, Forward const& f) {
    for (auto& parameter : net->parameters()) parameter.set_requires_grad(false);
    CHECK_FALSE(f(batch(1)).requires_grad());
  });
}

namespace {

/// Uses `some` for rows that begin with a positive number, and `never` not at all.
struct PartlyImpl : torch::nn::Cloneable<PartlyImpl> {
  PartlyImpl() {
    reset();
    fill(*this, 1);
  }
  void reset() override {
    all = register_module("all", torch::nn::Linear(6, 3));
    some = register_module("some", torch::nn::Linear(6, 3));
    never = register_module("never", torch::nn::Linear(6, 3));
  }
  torch::Tensor forward(torch::Tensor const& x) {
    return x.size(0) && x[0][0].item<float>() > 0 ? all(x) + some(x) : all(x);
  }
  torch::nn::Linear all = nullptr, some = nullptr, never = nullptr;
};
TORCH_MODULE(Partly);

/// One weight under two names, used twice; and one module under two names.
struct TiedImpl : torch::nn::Cloneable<TiedImpl> {
  TiedImpl() {
    reset();
    fill(*this, 1);
  }
  void reset() override {
    a = register_module("a", torch::nn::Linear(6, 6));
    b = register_module("b", a);
    tied = register_parameter("tied", a->weight);
  }
  torch::Tensor forward(torch::Tensor const& x) { return torch::tanh(a(b(x))).mm(tied); }
  torch::nn::Linear a = nullptr, b = nullptr;
  torch::Tensor tied;
};
TORCH_MODULE(Tied);

}  // namespace

TEST_CASE("unused parameters have no gradient; of those used on some devices it is the sum over these") {
  Partly net;
  DataParallel model{net, cpus(3)};
  auto x = torch::ones({6, 6});
  x.narrow(0, 0, 2).fill_(-1);
  model(x).sum().backward();
  CHECK(net->all->bias.grad()[0].item<float>() == 6.f);
  CHECK(net->some->bias.grad()[0].item<float>() == 4.f);
  CHECK_FALSE(net->never->weight.grad().defined());
  model.zero_grad();
  model(-torch::ones({6, 6})).sum().backward();
  CHECK_FALSE(net->some->bias.grad().defined());
}

TEST_CASE("a parameter that is registered twice is one parameter, with one gradient") {
  same_story<Tied>([] { return Tied(); },
                   [](Tied& net, Forward const& f) {
                     CHECK(net->parameters().size() == 5);  // under each of its names
                     loss_of(f(batch(1))).backward();
                     torch::NoGradGuard no_grad;
                     net->tied.add_(net->tied.grad(), -0.1);
                     torch::AutoGradMode const on(true);
                     loss_of(f(batch(2))).backward();
                   });
  // Sequential's clone() makes two modules of one; they still follow the one, and add up into it.
  auto const make = [] {
    torch::nn::Linear layer(6, 6);
    fill(*layer, 1);
    return torch::nn::Sequential(layer, torch::nn::Tanh(), layer);
  };
  same_story<torch::nn::Sequential>(make, [](torch::nn::Sequential& net, Forward const& f) {
    loss_of(f(batch(1))).backward();
    {
      torch::NoGradGuard no_grad;
      net->parameters()[0].mul_(0.5);
    }
    loss_of(f(batch(2))).backward();
  });
}

TEST_CASE("gradients of gradients, and gradients asked for by name") {
  same_story([](Net& net, Forward const& f) {
    auto const first = grad({loss_of(f(batch(1)))}, net->parameters(), {}, true, /*create_graph=*/true);
    CHECK_FALSE(net->a->weight.grad().defined());
    auto penalty = torch::zeros({});
    for (auto const& g : first) penalty = penalty + g.pow(2).sum();
    penalty.backward();
  });
  same_story([](Net& net, Forward const& f) {
    auto const first = grad({loss_of(f(batch(1)))}, {net->b->weight, net->c->bias});
    net->b->weight.mutable_grad() = first[0];
    net->c->bias.mutable_grad() = first[1];
  });
}

TEST_CASE("a hook on a parameter sees the sum once") {
  Net net(1), alone(1);
  DataParallel model{net, cpus(3)};
  int calls = 0;
  net->a->bias.register_hook([&](torch::Tensor const& gradient) {
    ++calls;
    return gradient * 2;
  });
  loss_of(model(batch(1))).backward();
  loss_of(alone(batch(1))).backward();
  CHECK(calls == 1);
  CHECK(torch::allclose(net->a->bias.grad(), alone->a->bias.grad() * 2, 1e-5, 1e-6));
}

TEST_CASE("sparse gradients are added") {
  auto const make = [] {
    torch::nn::Embedding table(torch::nn::EmbeddingOptions(10, 4).sparse(true));
    fill(*table, 1);
    return torch::nn::Sequential(table);
  };
  auto net = make(), alone = make();
  DataParallel model{net, cpus(3)};
  auto const rows = torch::tensor({1, 2, 1, 9, 1, 0, 2});
  loss_of(model(rows)).backward();
  loss_of(alone->forward(rows)).backward();
  auto const got = net->parameters()[0].grad();
  CHECK(got.is_sparse());
  CHECK(torch::allclose(got.to_dense(), alone->parameters()[0].grad().to_dense(), 1e-5, 1e-6));
}

namespace {

/// Hands out its weight as it is, beside what it computes.
struct HandsOutImpl : torch::nn::Cloneable<HandsOutImpl> {
  using Both = std::tuple<torch::Tensor, torch::Tensor>;
  HandsOutImpl() {
    reset();
    fill(*this, 1);
  }
  void reset() override { w = register_parameter("w", torch::zeros({2, 3})); }
  torch::Tensor forward(torch::Tensor const&) { return w; }
  Both forward(torch::Tensor const& x, double factor) { return {x * w * factor, w}; }
  torch::Tensor w;
};

/// Two parameters and an argument, whose gradients are one and the same memory.
struct SumOfThreeImpl : torch::nn::Cloneable<SumOfThreeImpl> {
  SumOfThreeImpl() { reset(); }
  void reset() override {
    w1 = register_parameter("w1", torch::ones({2, 3}));
    w2 = register_parameter("w2", torch::ones({2, 3}));
  }
  torch::Tensor forward(torch::Tensor const& x) { return x + w1 + w2; }
  torch::Tensor w1, w2;
};

}  // namespace

TEST_CASE("a parameter that forward hands out has the sum of what all replicas' copies of it are given") {
  for (std::size_t const devices : {2U, 4U})
    for (bool const parallel : {true, false}) {
      CAPTURE(devices);
      CAPTURE(parallel);
      auto const n = static_cast<int64_t>(devices);
      auto const net = std::make_shared<HandsOutImpl>();
      DataParallel model{net, cpus(devices), {.parallel = parallel}};
      auto const x = seeded({2 * n, 3}, 7), given = seeded({2 * n, 3}, 8), more = seeded({2 * n, 3}, 9);
      auto const sum_of_parts = [&](torch::Tensor const& rows) { return rows.view({n, 2, 3}).sum(0); };

      auto const y = model(x);
      CHECK(torch::equal(y, net->w.repeat({n, 1})));
      y.sum().backward();
      CHECK(torch::equal(net->w.grad(), torch::full({2, 3}, static_cast<float>(n))));
      model.zero_grad();
      model(x).backward(given);
      CHECK(torch::allclose(net->w.grad(), sum_of_parts(given), 1e-5, 1e-6));

      model.zero_grad();
      auto const [computed, handed_out] = model(x, 2.0);
      ((computed * more).sum() + (handed_out * given).sum()).backward();
      CHECK(torch::allclose(net->w.grad(), sum_of_parts(2 * x * more + given), 1e-5, 1e-6));
    }
}

TEST_CASE("gradients that are one memory are added without a change to it") {
  auto const net = std::make_shared<SumOfThreeImpl>();
  DataParallel model{net, cpus(3)};
  auto const x = seeded({6, 3}, 1).requires_grad_();
  auto const given = seeded({6, 3}, 2), before = given.clone();
  model(x).backward(given);
  CHECK(torch::equal(given, before));
  CHECK(torch::equal(x.grad(), before));
  auto const parts = before.view({3, 2, 3});
  auto const sum = parts[0] + parts[1] + parts[2];
  CHECK(torch::equal(net->w1.grad(), sum));
  CHECK(torch::equal(net->w2.grad(), sum));
}

TEST_CASE("the module itself, and a graph older than the model, end where they did") {
  same_story([](Net& net, Forward const& f) {
    auto const before = loss_of(net->forward(batch(1)));
    auto const through = loss_of(f(batch(2)));
    auto const after = loss_of(net->forward(batch(3)));
    (before + through + after).backward();
  });
  Net net(1), alone(1);
  torch::Tensor loss;
  {
    DataParallel model{net, cpus(3)};
    loss = loss_of(model(batch(1)));
  }
  loss.backward();  // after the model has gone, with its replicas and threads
  loss_of(alone(batch(1))).backward();
  loss_of(alone(batch(2))).backward();
  loss_of(net(batch(2))).backward();
  CHECK(close(gradients(*net), gradients(*alone)));
}

TEST_CASE("two models of one module, and one model inside DistributedDataParallel") {
  Net net(1), alone(1);
  DataParallel two{net, cpus(2)}, three{net, cpus(3)};
  (loss_of(two(batch(1))) + loss_of(three(batch(2)))).backward();
  (loss_of(alone(batch(1))) + loss_of(alone(batch(2)))).backward();
  CHECK(close(gradients(*net), gradients(*alone)));

  two.zero_grad();
  alone->zero_grad();
  pardl::DistributedDataParallel outer{two, pardl::ProcessGroup{}};
  loss_of(outer(batch(1))).backward();
  loss_of(alone(batch(1))).backward();
  CHECK(close(gradients(*net), gradients(*alone)));
}

TEST_CASE("the bits of a gradient depend on no thread's history") {
  // Two results of each replica: the order of backward within a replica then follows from the numbers of its nodes.
  struct TwiceImpl : torch::nn::Cloneable<TwiceImpl> {
    TwiceImpl() {
      reset();
      fill(*this, 1);
    }
    void reset() override { layer = register_module("layer", torch::nn::Linear(6, 6)); }
    std::vector<torch::Tensor> forward(torch::Tensor const& x) {
      auto const once = layer(x);
      return {once, torch::tanh(layer(torch::tanh(once)) + layer(x))};
    }
    torch::nn::Linear layer = nullptr;
  };
  auto const net = std::make_shared<TwiceImpl>();
  auto const run = [&](auto& model) {
    for (auto& parameter : net->parameters()) parameter.mutable_grad() = torch::Tensor();
    auto const outputs = model(batch(1, 31));
    (outputs[0].exp().mean() + outputs[1].pow(3).mean()).backward();
    return copies(gradients(*net));
  };
  DataParallel sequential{net, cpus(3), {.parallel = false}};
  auto const expected = run(sequential);
  for (int round = 0; round < 5; ++round) {
    DataParallel model{net, cpus(3)};
    for (int i = 0; i < round; ++i) {
      auto const more = model(batch(2));           // numbers used up in the replicas' threads
      auto const own = more[0] * 2 + more[1] * 3;  // and in this one
    }
    CHECK(same_bits(run(model), expected));
  }
}

TEST_CASE("what is computed after the forward comes first in backward, though it began with what the module has kept") {
  // Here backward may go on in the nodes of the module's thread or in those of this one. The order in which the three
  // terms of the gradient of `early` are added then follows from who has the higher numbers.
  struct KeepsImpl : torch::nn::Cloneable<KeepsImpl> {
    KeepsImpl() {
      reset();
      fill(*this, 1);
    }
    void reset() override { layer = register_module("layer", torch::nn::Linear(6, 6)); }
    torch::Tensor forward(torch::Tensor const& x) {
      auto y = x;
      for (int i = 0; i < 20; ++i) y = torch::tanh(layer(y));  // uses numbers up
      early = layer(y);
      late = torch::tanh(early);
      return late;
    }
    torch::nn::Linear layer = nullptr;
    torch::Tensor early, late;
  };
  auto const net = std::make_shared<KeepsImpl>();
  auto const run = [&](bool parallel) {
    DataParallel model{net, cpus(2), {.parallel = parallel}};
    model.zero_grad();
    (void)model(batch(1, 30));
    auto const first = net->early * seeded({15, 6}, 2), second = net->early * seeded({15, 6}, 3);
    auto const both = first + second;
    (net->late + both).sum().backward();
    return copies(gradients(*net));
  };
  CHECK(same_bits(run(true), run(false)));
}
