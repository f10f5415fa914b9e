// SPDX-License-Identifier: MIT
#include "pardl/train/low_rank.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "pardl/train/autocast.hpp"
#include "pardl/train/clipped_step.hpp"

namespace {

/// Two layers, the first large beside a batch of 4; `shared` uses it twice.
struct Net {
  torch::Tensor w1, b1, w2;
  explicit Net(bool requires_grad = true) {
    torch::manual_seed(2);
    w1 = torch::randn({96, 80}).mul_(0.1).requires_grad_(requires_grad);
    b1 = torch::randn({96}).requires_grad_(requires_grad);
    w2 = torch::randn({3, 96}).mul_(0.1).requires_grad_(requires_grad);
  }
  [[nodiscard]] std::vector<torch::Tensor> parameters() const { return {w1, b1, w2}; }
  [[nodiscard]] torch::Tensor loss(torch::Tensor const& x, bool twice = false) const {
    auto h = pardl::linear(x, w1, b1).relu();
    if (twice) h = h + pardl::linear(2 * x, w1).tanh();
    return pardl::linear(h, w2).square().mean();
  }
};

torch::Tensor batch(std::int64_t rows = 4) {
  torch::manual_seed(7);
  return torch::randn({rows, 80});
}

/// Parameters after three clipped steps of two micro-batches, with factors or without.
template <class Options>
std::vector<torch::Tensor> trained(bool factors, double max_norm, Options options, bool twice = false) {
  Net const net;
  pardl::optim::SGD optimizer(net.parameters(), options);
  for (int step = 0; step < 3; ++step) {
    std::optional<pardl::LowRankGradients> low_rank;
    if (factors) low_rank.emplace();
    for (int part = 0; part < 2; ++part) net.loss(batch() + step + 0.5 * part, twice).backward();
    if (factors) {
      CHECK_FALSE(net.w1.grad().defined());
      pardl::clip_and_step(optimizer, max_norm, *low_rank);
      CHECK(low_rank->gradients().empty());
    } else {
      pardl::clip_grad_norm_(net.parameters(), max_norm > 0 ? max_norm : 1e30);
      optimizer.step();
    }
    optimizer.zero_grad();
  }
  return net.parameters();
}

void close(std::vector<torch::Tensor> const& a, std::vector<torch::Tensor> const& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    INFO("parameter ", i, ", largest difference ", (a[i] - b[i]).abs().max().item<double>());
    CHECK(torch::allclose(a[i], b[i], 1e-5, 1e-6));
  }
}

}  // namespace

TEST_CASE("a linear layer with factors is the plain one: outputs, and gradients of inputs and bias, bit for bit") {
  Net const plain, low;
  auto x = batch().requires_grad_(), y = batch().requires_grad_();
  plain.loss(x).backward();
  pardl::LowRankGradients scope;
  low.loss(y).backward();
  CHECK(torch::equal(x.grad(), y.grad()));
  CHECK(torch::equal(plain.b1.grad(), low.b1.grad()));
  CHECK(torch::equal(plain.w2.grad(), low.w2.grad()));  // 3 x 96 is not large beside 4 rows
  CHECK_FALSE(low.w1.grad().defined());
  REQUIRE(scope.gradients().size() == 1);
  auto const& gradient = scope.gradients().front();
  CHECK(gradient.weight.is_same(low.w1));
  CHECK(pardl::LowRankGradients::squared_norm(gradient) ==
        doctest::Approx(plain.w1.grad().square().sum().item<double>()).epsilon(1e-5));
  scope.materialize();
  CHECK(torch::allclose(low.w1.grad(), plain.w1.grad(), 1e-6, 1e-8));
  CHECK(scope.gradients().empty());
}

TEST_CASE("a few rows through a large weight, and many, give what the plain layer gives, gradients too") {
  torch::manual_seed(4);
  auto const weight = torch::randn({1100, 1000}), bias = torch::randn({1100});
  for (std::int64_t const rows : {1, 5, 10, 32, 33})
    for (bool const with_bias : {false, true})
      for (bool const factors : {false, true}) {
        CAPTURE(rows);
        CAPTURE(with_bias);
        CAPTURE(factors);
        std::vector<torch::Tensor> results;
        for (bool const ours : {false, true}) {
          auto x = torch::linspace(-1, 1, rows * 1000).view({rows, 1000}).requires_grad_();
          auto w = weight.clone().requires_grad_(), b = bias.clone().requires_grad_();
          std::optional<pardl::LowRankGradients> scope;
          if (factors) scope.emplace();
          auto const y = ours ? pardl::linear(x, w, with_bias ? b : torch::Tensor())
                              : torch::linear(x, w, with_bias ? std::optional(b) : std::nullopt);
          CHECK(y.is_contiguous());
          y.square().sum().backward();
          if (factors) scope->materialize();
          for (auto const& tensor : {y.detach(), x.grad(), w.grad()}) results.push_back(tensor);
          if (with_bias) results.push_back(b.grad());
        }
        auto const count = results.size() / 2;
        for (std::size_t i = 0; i < count; ++i) {
          INFO("result ", i);
          auto const scale = results[i].abs().max().item<double>();
          CHECK((results[i] - results[count + i]).abs().max().item<double>() <= 1e-5 * scale);
        }
      }
}

TEST_CASE("steps over factors are the steps over whole gradients, clipped or not, accumulated, weights used twice") {
  for (double const max_norm : {0.0, 0.01, 1e6})
    for (bool const twice : {false, true}) {
      CAPTURE(max_norm);
      CAPTURE(twice);
      pardl::optim::SGDOptions const options{.lr = 0.02};
      close(trained(true, max_norm, options, twice), trained(false, max_norm, options, twice));
    }
}

TEST_CASE("an optimizer that needs whole gradients gets them") {
  pardl::optim::SGDOptions const momentum{.lr = 0.02, .momentum = 0.9}, decay{.lr = 0.02, .weight_decay = 0.1};
  close(trained(true, 0.01, momentum), trained(false, 0.01, momentum));
  close(trained(true, 0.01, decay), trained(false, 0.01, decay));
}

TEST_CASE("a weight that has a dense gradient too keeps both parts") {
  Net const plain, low;
  auto const loss = [](Net const& net) { return net.loss(batch()) + net.w1.square().sum(); };
  loss(plain).backward();
  pardl::optim::SGD reference(plain.parameters(), {.lr = 0.1}), optimizer(low.parameters(), {.lr = 0.1});
  pardl::clip_grad_norm_(plain.parameters(), 0.5);
  reference.step();
  pardl::LowRankGradients scope;
  loss(low).backward();
  pardl::clip_and_step(optimizer, 0.5, scope);
  close(low.parameters(), plain.parameters());
}

TEST_CASE("gradients stay whole where factors would be wrong or no gain") {
  Net const net;
  pardl::LowRankGradients outer;
  {
    pardl::LowRankGradients inner;
    net.loss(batch()).backward();
    CHECK(inner.gradients().size() == 1);
  }
  CHECK(outer.gradients().empty());
  net.loss(batch(60)).backward();  // as many rows as the layer is wide
  CHECK(outer.gradients().empty());
  CHECK(net.w1.grad().defined());
  auto const again = torch::autograd::grad({net.loss(batch())}, {net.w1}, {}, true, /*create_graph=*/true);
  CHECK(again[0].defined());
  CHECK(outer.gradients().empty());
  Net const mixed;
  {
    pardl::Autocast const amp(torch::kCPU, torch::kBFloat16);
    mixed.loss(batch()).backward();
  }
  CHECK(outer.gradients().empty());
  CHECK(mixed.w1.grad().defined());
}

TEST_CASE("gradients that are not finite reach the weights, as they would without factors") {
  Net const net;
  pardl::optim::SGD optimizer(net.parameters(), {.lr = 0.1});
  pardl::LowRankGradients scope;
  (net.loss(batch()) * std::numeric_limits<float>::infinity()).backward();
  pardl::clip_and_step(optimizer, 1.0, scope);
  CHECK_FALSE(net.w1.isfinite().all().item<bool>());
}
