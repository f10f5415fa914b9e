// SPDX-License-Identifier: MIT
#include "pardl/train/ring_hook.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <latch>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ddp_support.hpp"
#include "pardl/comm/collectives.hpp"
#include "pardl/train/distributed_data_parallel.hpp"

using namespace ddp_test;
using pardl::DistributedDataParallel;
using pardl::ProcessGroup;
using pardl::testing::with_ranks;
namespace hooks = pardl::comm_hooks;

namespace {

constexpr std::uint64_t seed = 5;
constexpr int steps = 50;

/// A net that is trained by SGD under a hook, or under none, to give what a fixed map of its input gives.
class Training {
 public:
  explicit Training(ProcessGroup world) : model_(net_, world, {.bucket_cap_mib = 0.0005}) {}
  template <class Hook>
  Training(ProcessGroup world, Hook hook) : Training(std::move(world)) {
    model_.register_comm_hook(std::move(hook));
  }

  /// One step on this rank's batch; the loss before it.
  double step(int number) {
    auto const batch = batch_of(model_.world().rank(), number);
    model_.zero_grad();
    auto const loss = (model_(batch) - torch::tanh(batch.narrow(1, 0, 3))).pow(2).mean();
    loss.backward();
    ddp_test::step(net_->parameters(), gradients(*net_), 0.2);
    return loss.item<double>();
  }

  /// Whether all ranks hold the same parameters, bit for bit. Every rank must call it.
  bool alike() {
    for (auto const& parameter : net_->parameters()) {
      auto zero = parameter.detach().clone();
      pardl::broadcast(model_.world(), zero).wait();
      if (!torch::equal(zero, parameter)) return false;
    }
    return true;
  }

  MlpImpl& net() { return *net_; }

 private:
  Mlp net_{seed};
  DistributedDataParallel<Mlp> model_;
};

double mean(std::vector<double> const& values, std::size_t first, std::size_t count) {
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += values[first + i];
  return sum / static_cast<double>(count);
}

}  // namespace

TEST_CASE("the ring hook and DistributedDataParallel without one agree on the loss of each of 50 steps") {
  MESSAGE("seed " << seed);
  for (int const n : {1, 2, 3, 4})
    for (std::int64_t const segment : {0, 256})
      with_ranks(n, [&](ProcessGroup world) {
        Training plain(world), ring(world, hooks::ring_all_reduce{{.segment_bytes = segment}});
        std::vector<double> losses;
        for (int s = 0; s < steps; ++s) {
          auto const expected = plain.step(s);
          losses.push_back(ring.step(s));
          CHECK_MESSAGE(std::abs(losses.back() - expected) < 1e-5,
                        n << " ranks, step " << s << ": " << losses.back() << " instead of " << expected);
        }
        CHECK(ring.alike());
        CHECK(mean(losses, steps - 10, 10) < 0.7 * mean(losses, 0, 10));
      });
}

TEST_CASE("under fp16_compress and bf16_compress it trains, and ranks stay alike") {
  MESSAGE("seed " << seed);
  with_ranks(3, [](ProcessGroup world) {
    auto const check = [&](Training training, double tolerance) {
      Training plain(world);
      std::vector<double> losses;
      double worst = 0;
      for (int s = 0; s < steps; ++s) {
        losses.push_back(training.step(s));
        worst = std::max(worst, std::abs(losses.back() - plain.step(s)));
      }
      CHECK_MESSAGE(worst < tolerance, worst);
      CHECK(training.alike());
      CHECK(mean(losses, steps - 10, 10) < 0.7 * mean(losses, 0, 10));
    };
    check(Training(world, hooks::fp16_compress(hooks::ring_all_reduce{})), 1e-3);
    check(Training(world, hooks::bf16_compress(hooks::ring_all_reduce{})), 1e-2);
  });
}

TEST_CASE("on two ranks, where there is one order only, its bits are those of the all_reduce hook") {
  with_ranks(2, [](ProcessGroup world) {
    auto const same = [&](auto ring_hook, auto hook) {
      Training ring(world, std::move(ring_hook)), other(world, std::move(hook));
      for (int s = 0; s < 3; ++s) {
        ring.step(s);
        other.step(s);
        CHECK(same_bits(gradients(ring.net()), gradients(other.net())));
      }
    };
    same(hooks::ring_all_reduce{}, hooks::all_reduce());
    same(hooks::fp16_compress(hooks::ring_all_reduce{}), hooks::fp16_compress());
    same(hooks::bf16_compress(hooks::ring_all_reduce{{.segment_bytes = 32}}), hooks::bf16_compress());
  });
}

TEST_CASE("a peer that is gone ends backward with the ring's words, and so the next forward") {
  for (std::string const backend : {"gloo", "shm"}) {
    std::string at_backward, at_forward;
    with_ranks(2,
               [&](ProcessGroup world) {
                 Mlp net(seed);
                 DistributedDataParallel model{net, world};
                 model.register_comm_hook(hooks::ring_all_reduce{});
                 for (int s = 0; s < 2; ++s) loss_of(model(batch_of(world.rank(), s))).backward();
                 auto const loss = loss_of(model(batch_of(world.rank(), 2)));
                 if (world.rank() == 1) return;  // the group goes with the thread
                 at_backward = message_of([&] { loss.backward(); });
                 at_forward = message_of([&] { (void)model(batch_of(0, 1)); });
               },
               {.timeout = std::chrono::milliseconds(3000), .backend = backend});
    CHECK_MESSAGE(contains(at_backward, "[comm] rank 0/2: ring_all_reduce #"), at_backward);
    CHECK_MESSAGE(contains(at_backward, "reduce-scatter step 1 of 1"), at_backward);
    CHECK_MESSAGE(contains(at_forward, "[ddp] rank 0/2: the last backward failed"), at_forward);
    CHECK_MESSAGE(contains(at_forward, "ring_all_reduce"), at_forward);
  }
}

TEST_CASE("the hook's thread runs jobs in order, and its end does not wait for what never comes") {
  std::vector<int> order;
  std::latch all(100);
  {
    pardl::detail::SerialExecutor executor;
    for (int i = 0; i < 100; ++i)
      executor.submit([&, i] {
        order.push_back(i);
        all.count_down();
      });
    all.wait();
  }
  for (int i = 0; i < 100; ++i) CHECK(order.at(static_cast<std::size_t>(i)) == i);

  auto const go_on = std::make_shared<std::latch>(1), ended = std::make_shared<std::latch>(1);
  {
    pardl::detail::SerialExecutor executor;
    executor.submit([go_on, ended] {
      go_on->wait();
      ended->count_down();
    });
  }
  go_on->count_down();  // after the end of the executor: its job still ends
  ended->wait();
}
