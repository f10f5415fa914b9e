// SPDX-License-Identifier: MIT
// Mixed precision on a GPU; skips, saying so, without one.
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <vector>

#include "pardl/train/amp.hpp"
#include "pardl/train/evaluate.hpp"
#include "pardl/train/optim.hpp"

using pardl::Autocast;
using pardl::GradScaler;
using pardl::optim::SGD;
using Tensors = std::vector<torch::Tensor>;

namespace {

bool no_gpu() {
  if (torch::cuda::is_available()) return false;
  MESSAGE("skipped: no GPU");
  return true;
}

torch::Tensor flag(double value) { return torch::full({}, value, torch::dtype(torch::kFloat32).device(torch::kCUDA)); }

}  // namespace

TEST_CASE("Autocast on CUDA takes half by default, and leaves the CPU alone") {
  if (no_gpu()) return;
  auto const on = [](torch::DeviceType device) {
    auto const ones = torch::ones({8, 8}, device);
    return torch::mm(ones, ones).scalar_type();
  };
  Autocast const amp{torch::Device(torch::kCUDA)};
  CHECK((on(torch::kCUDA) == torch::kHalf));
  CHECK((on(torch::kCPU) == torch::kFloat32));
  Autocast const other{torch::Device(torch::kCUDA), torch::kBFloat16};
  CHECK((on(torch::kCUDA) == torch::kBFloat16));
}

TEST_CASE("SGD on CUDA walks as on the CPU, also when the first steps overflow") {
  if (no_gpu()) return;
  for (double const dampening : {0.0, 0.3})
    for (bool const fused : {true, false}) {
      CAPTURE(dampening);
      CAPTURE(fused);
      torch::manual_seed(1);
      auto const start = torch::randn({1003});
      Tensors here{start.clone().requires_grad_()}, there{start.to(torch::kCUDA).requires_grad_()};
      pardl::optim::SGDOptions options{.lr = 0.1, .momentum = 0.9, .dampening = dampening, .weight_decay = 1e-3};
      SGD plain{here, options};
      options.fused = fused;
      SGD sgd{there, options};
      for (int const overflow : {1, 1, 0, 0, 1, 0}) {
        auto const grad = torch::randn({1003});
        there[0].mutable_grad() = grad.to(torch::kCUDA) * 1024;
        sgd.step(flag(1024), flag(overflow));
        here[0].mutable_grad() = grad;
        if (!overflow) plain.step();
        CHECK(torch::allclose(there[0].cpu(), here[0], 1e-5, 1e-6));
      }
    }
}

TEST_CASE("a fused step under the scaler does not wait for the GPU") {
  if (no_gpu()) return;
  auto const cuda = torch::Device(torch::kCUDA, 0);
  torch::nn::Linear net{64, 64};
  net->to(cuda);
  auto const norm_input = torch::randn({64, 64}, cuda);
  auto const big = torch::randn({8192, 8192}, cuda);
  SGD sgd{net->parameters(), {.lr = 1e-3, .momentum = 0.9, .dampening = 0.1}};
  GradScaler scaler;
  auto const iteration = [&] {
    scaler.scale(net->forward(norm_input).square().mean()).backward();
    scaler.unscale_(sgd);
    pardl::clip_grad_norm_(net->parameters(), 1.0);
    scaler.step(sgd);
    scaler.update();
    sgd.zero_grad();
  };
  iteration();  // first calls load kernels, and may wait
  iteration();
  torch::cuda::synchronize();
  c10::impl::VirtualGuardImpl const guard(torch::kCUDA);
  c10::Event done(torch::kCUDA);
  auto work = big;
  for (int i = 0; i < 60; ++i) work = torch::mm(big, big);  // a second or so of work in the queue
  done.record(guard.getStream(cuda));
  iteration();
  CHECK_FALSE(done.query());
  torch::cuda::synchronize();
  CHECK(done.query());
}

TEST_CASE("float16 training on CUDA skips overflows, recovers, and counts them") {
  if (no_gpu()) return;
  torch::manual_seed(2);
  auto const cuda = torch::Device(torch::kCUDA, 0);
  torch::nn::Linear net{16, 1};
  net->to(cuda);
  SGD sgd{net->parameters(), {.lr = 0.02, .momentum = 0.9}};
  GradScaler scaler{{.init_scale = 0x1p30}};  // far too much for half precision: the first steps overflow
  auto const inputs = torch::randn({256, 16}, cuda);
  auto const targets = inputs.sum(1, true);
  double first = 0, last = 0;
  int skipped = 0;
  for (int step = 0; step < 80; ++step) {
    sgd.zero_grad();
    auto const loss = [&] {
      Autocast const amp{cuda};
      auto const outputs = net->forward(inputs);
      CHECK((outputs.scalar_type() == torch::kHalf));
      return (outputs.to(torch::kFloat32) - targets).square().mean();
    }();
    scaler.scale(loss).backward();
    scaler.step(sgd);
    scaler.update();
    skipped += scaler.skipped();
    (step == 0 ? first : last) = loss.item<double>();
  }
  CHECK(skipped > 0);
  CHECK(skipped < 40);
  CHECK(last < 0.1 * first);
}

TEST_CASE("a Meter on CUDA counts as on the CPU") {
  if (no_gpu()) return;
  torch::manual_seed(3);
  auto const scores = torch::randn({100, 10});
  auto const targets = torch::randint(10, {100});
  auto const losses = torch::rand({100});
  pardl::Meter here, there{torch::Device(torch::kCUDA, 0)};
  here.add(losses, scores, targets);
  there.add(losses.to(torch::kCUDA), scores.to(torch::kCUDA), targets.to(torch::kCUDA));
  auto const a = here.reduce(pardl::ProcessGroup{}), b = there.reduce(pardl::ProcessGroup{});
  CHECK(a.loss == b.loss);
  CHECK(a.correct == b.correct);
}
