// SPDX-License-Identifier: MIT
// DataParallel with a GPU among its devices; skips, saying so, without one. The CPU stands in for a second GPU.
#include <torch/torch.h>

#include <vector>

#include "data_parallel_support.hpp"
#include "pardl/train/autocast.hpp"
#include "pardl/train/data_parallel.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

using namespace dp_test;
using pardl::DataParallel;

namespace {

torch::Device const gpu(torch::kCUDA, 0), cpu(torch::kCPU);

bool no_gpu() {
  if (torch::cuda::is_available()) return false;
  MESSAGE("skipped: no GPU");
  return true;
}

bool near(std::vector<torch::Tensor> const& a, std::vector<torch::Tensor> const& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!torch::allclose(a[i].cpu(), b[i].cpu(), 1e-4, 1e-5)) return false;
  return a.size() == b.size();
}

}  // namespace

TEST_CASE("one GPU gives the module's own bits") {
  if (no_gpu()) return;
  Net net(1), alone(1);
  net->to(gpu);
  alone->to(gpu);
  DataParallel model{net, {gpu}};
  auto const batch = seeded({12, 6}, 100).to(gpu);
  auto const output = model(batch), expected = alone(batch);
  CHECK(torch::equal(output, expected));
  loss_of(output).backward();
  loss_of(expected).backward();
  CHECK(same_bits(gradients(*net), gradients(*alone)));
}

TEST_CASE("a GPU and the CPU share a batch, whichever is first, and train as one module does") {
  if (no_gpu()) return;
  for (auto const& devices : std::vector<std::vector<torch::Device>>{{gpu, cpu}, {cpu, gpu}, {gpu, cpu, cpu}})
    for (bool const parallel : {true, false})
      for (bool const from_first : {true, false}) {
        CAPTURE(devices.size());
        CAPTURE(devices[0].str());
        CAPTURE(parallel);
        Net net(1), alone(1);
        net->to(devices[0]);
        DataParallel model{net, devices, {.parallel = parallel}};
        torch::optim::SGD sgd(model.parameters(), 0.05), sgd_alone(alone->parameters(), 0.05);
        for (uint64_t s = 0; s < 4; ++s) {
          auto const batch = seeded({s == 3 ? 2 : 13, 6}, 100 + s);
          auto const output = model(batch.to(from_first ? devices[0] : cpu));
          CHECK(output.device() == devices[0]);
          auto const expected = alone(batch);
          CHECK(torch::allclose(output.cpu(), expected, 1e-4, 1e-5));
          sgd.zero_grad();
          sgd_alone.zero_grad();
          loss_of(output).backward();
          loss_of(expected).backward();
          CHECK(near(gradients(*net), gradients(*alone)));
          sgd.step();
          sgd_alone.step();
        }
        CHECK(near(net->parameters(), alone->parameters()));
      }
}

TEST_CASE("the caller's stream is waited for, and waits") {
  if (no_gpu()) return;
  Scale net;
  net->to(gpu);
  DataParallel model{net, {gpu, cpu}};
  c10::impl::VirtualGuardImpl const kind(torch::kCUDA);
  auto const side = kind.getStreamFromGlobalPool(gpu);
  auto const busy = torch::rand({4096, 4096}, gpu);
  torch::Tensor x = torch::zeros({1000}, gpu), output;
  {
    c10::StreamGuard const guard(side);
    side.synchronize();
    for (int i = 0; i < 5; ++i) (void)torch::mm(busy, busy);  // the stream falls behind the host
    x.fill_(3);
    output = model(x);
    x.zero_();
    CHECK(output.sum().item<float>() == 3000.F);
  }
}
