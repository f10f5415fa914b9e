// SPDX-License-Identifier: MIT
#include "pardl/train/post_local_sgd.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "hook_support.hpp"
#include "pardl/train/amp.hpp"
#include "pardl/train/distributed_data_parallel.hpp"
#include "pardl/train/optim.hpp"
#include "support/ranks.hpp"

using namespace ddp_test;
using pardl::DistributedDataParallel;
using pardl::HierarchicalModelAverager;
using pardl::PeriodicModelAverager;
using pardl::ProcessGroup;
using pardl::optim::PostLocalSgd;
using pardl::testing::with_ranks;
namespace hooks = pardl::comm_hooks;

static_assert(pardl::fused_optimizer<PostLocalSgd<pardl::optim::SGD, PeriodicModelAverager>>);
static_assert(pardl::fused_optimizer<PostLocalSgd<torch::optim::Adam, PeriodicModelAverager>>);

namespace {

std::vector<torch::Tensor> own_gradients(Heap const& heap, int rank) {
  return heap.random_gradients(10 + 100 * static_cast<std::uint64_t>(rank));
}

torch::Tensor mean_of(Heap const& heap, std::vector<int> const& ranks) {
  torch::Tensor sum;
  for (int const rank : ranks) {
    auto const part = own_gradients(heap, rank)[0].div(static_cast<double>(ranks.size()));
    sum = sum.defined() ? sum + part : part;
  }
  return sum;
}

/// A parameter that holds the rank's number.
torch::Tensor number_of(int rank) { return torch::full({3}, static_cast<float>(rank)).requires_grad_(); }

}  // namespace

TEST_CASE("the hook averages over all, then over the subgroup, or not at all") {
  Heap const heap({{4, 3}});
  for (bool const subgroups : {true, false})
    with_ranks(4, [&](ProcessGroup world) {
      std::optional<ProcessGroup> pair;
      if (subgroups) pair = world.split(world.rank() / 2);
      auto hook = hooks::post_local_sgd({.start_localSGD_iter = 2, .subgroup = pair});
      auto const own = own_gradients(heap, world.rank());
      std::vector<int> const near{world.rank() / 2 * 2, world.rank() / 2 * 2 + 1};
      for (int s = 0; s < 4; ++s) {
        auto const got = heap.reduced(hook, world, own)[0];
        if (s < 2)
          CHECK(torch::allclose(got, mean_of(heap, {0, 1, 2, 3}), 0, 1e-6));
        else
          CHECK(torch::equal(got, subgroups ? mean_of(heap, near) : own[0]));
      }
    });
}

TEST_CASE("steps are counted by the last bucket, and go on from where they were") {
  Heap const heap({{4, 3}});
  ProcessGroup const world;
  int inner = 0;
  auto const counted = hooks::returning_mean([&inner](ProcessGroup const&, c10d::GradBucket& bucket) {
    ++inner;
    return hooks::completed(bucket.getBuffer());
  });
  auto const calls = [&](hooks::PostLocalSgdOptions const& options) {
    auto hook = hooks::post_local_sgd(options, counted);
    inner = 0;
    for (int s = 0; s < 5; ++s)
      for (std::size_t index = 0; index < 3; ++index) {
        auto bucket = heap.bucket(own_gradients(heap, 0), index, 3);
        (void)hook(world, bucket);
      }
    return inner;
  };
  CHECK(calls({.start_localSGD_iter = 2}) == 6);
  CHECK(calls({.start_localSGD_iter = 2, .iter = 1}) == 3);
  CHECK(calls({.start_localSGD_iter = 0}) == 0);
  CHECK(contains(message_of([&] { calls({.start_localSGD_iter = -1}); }), "start_localSGD_iter -1"));
}

TEST_CASE("models are averaged at step warmup_steps and every period from there, and only then") {
  with_ranks(2, [](ProcessGroup world) {
    PeriodicModelAverager averager{world, {.period = 3, .warmup_steps = 4}};
    for (int s = 0; s < 14; ++s) {
      auto parameter = number_of(world.rank()), frozen = number_of(world.rank()).detach();
      bool const now = averager.average_parameters(std::vector{parameter, frozen});
      CHECK_MESSAGE(now == (s == 4 || s == 7 || s == 10 || s == 13), "step " << s);
      CHECK(torch::equal(parameter, torch::full({3}, now ? 0.5 : world.rank())));
      CHECK(torch::equal(frozen, torch::full({3}, 1.0 * world.rank())));
      CHECK(averager.step() == s + 1);
    }
  });
  ProcessGroup const alone;
  CHECK(contains(message_of([&] { PeriodicModelAverager{alone, {}}; }), "period 0"));
  CHECK(contains(message_of([&] { PeriodicModelAverager(alone, {.period = 1, .warmup_steps = -1}); }), "steps -1"));
}

TEST_CASE("an average keeps types, strides and memory, with or without gradients") {
  with_ranks(3, [](ProcessGroup world) {
    double const rank = world.rank();
    auto wide = torch::full({2, 3, 4, 4}, rank).to(torch::kFloat32, false, false, torch::MemoryFormat::ChannelsLast);
    auto narrow = torch::full({5}, rank, torch::kHalf), fine = torch::full({}, rank, torch::kFloat64);
    wide[0][0][0][0] = 30.0 * rank;
    for (auto* parameter : {&wide, &narrow, &fine}) parameter->requires_grad_();
    if (world.rank() == 1) fine.mutable_grad() = torch::ones({}, torch::kFloat64);  // on one rank only
    auto const* const memory = wide.data_ptr();
    pardl::average_parameters(world, std::vector{wide, narrow, fine});
    CHECK(wide.data_ptr() == memory);
    CHECK(wide.is_contiguous(torch::MemoryFormat::ChannelsLast));
    CHECK(wide[0][0][0][0].item<double>() == doctest::Approx(30));
    CHECK(wide[1][2][3][3].item<double>() == doctest::Approx(1));
    CHECK(bool(narrow.scalar_type() == torch::kHalf));
    CHECK(fine.item<double>() == doctest::Approx(1));
  });
}

TEST_CASE("of several levels the largest that is due averages") {
  with_ranks(4, [](ProcessGroup world) {
    HierarchicalModelAverager averager{world, {.levels = {{2, 2}, {4, 4}}, .warmup_steps = 3}};
    for (int s = 0; s < 10; ++s) {
      auto parameter = number_of(world.rank());
      averager.average_parameters(std::vector{parameter});
      double expected = world.rank();
      if (s >= 3 && s % 2 == 0) expected = s % 4 == 0 ? 1.5 : world.rank() / 2 * 2 + 0.5;
      CHECK_MESSAGE(torch::equal(parameter, torch::full({3}, expected)), "step " << s);
    }
    auto const said = [&](std::vector<pardl::AveragingLevel> levels) {
      return message_of([&] { HierarchicalModelAverager(world, {.levels = std::move(levels)}); });
    };
    CHECK(contains(said({}), "no levels"));
    CHECK(contains(said({{2, 2}, {4, 3}}), "groups of 3"));
    CHECK(contains(said({{2, 2}}), "no group of all"));
    CHECK(contains(said({{4, 2}, {2, 4}}), "period 2"));
  });
}

namespace {

/// Parameters after six steps; `local`: averaged by period-1 post-local SGD, else by gradients.
template <class Make>
std::vector<torch::Tensor> after_six(ProcessGroup const& world, bool local, Make make) {
  Mlp net(1);
  DistributedDataParallel model{net, world};
  if (local) model.register_comm_hook(hooks::post_local_sgd({.start_localSGD_iter = 0}));
  auto sgd = make(net->parameters(), local);
  for (int s = 0; s < 6; ++s) {
    sgd.zero_grad();
    loss_of(model(batch_of(world.rank(), s))).backward();
    sgd.step();
  }
  return copies(net->parameters());
}

}  // namespace

TEST_CASE("with period 1 a plain step of the mean gradient is the mean of the plain steps, with momentum too") {
  for (double const momentum : {0.0, 0.9})
    with_ranks(3, [&](ProcessGroup world) {
      auto const global = after_six(world, false, [&](auto parameters, bool) {
        return pardl::optim::SGD{parameters, {.lr = 0.1, .momentum = momentum}};
      });
      auto const local = after_six(world, true, [&](auto parameters, bool) {
        return PostLocalSgd{pardl::optim::SGD{parameters, {.lr = 0.1, .momentum = momentum}},
                            PeriodicModelAverager{world, {.period = 1}}};
      });
      for (std::size_t i = 0; i < global.size(); ++i) CHECK(torch::allclose(local[i], global[i], 1e-5, 1e-6));
    });
}

TEST_CASE("ranks part between averages and are one afterwards, bit for bit") {
  std::vector<std::vector<std::vector<torch::Tensor>>> seen(2);
  with_ranks(2, [&](ProcessGroup world) {
    Mlp net(1);
    DistributedDataParallel model{net, world};
    model.register_comm_hook(hooks::post_local_sgd({.start_localSGD_iter = 2}));
    PostLocalSgd sgd{torch::optim::SGD{net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9)},
                     PeriodicModelAverager{world, {.period = 3, .warmup_steps = 2}}};
    for (int s = 0; s < 9; ++s) {
      sgd.zero_grad();
      loss_of(model(batch_of(world.rank(), s))).backward();
      sgd.step();
      seen[static_cast<std::size_t>(world.rank())].push_back(copies(net->parameters()));
    }
  });
  for (std::size_t s = 0; s < 9; ++s)
    CHECK_MESSAGE(same_bits(seen[0][s], seen[1][s]) == (s <= 2 || s == 5 || s == 8), "step " << s);
}

TEST_CASE("the wrapper is the optimizer that it wraps") {
  ProcessGroup const world;
  auto parameter = torch::ones({3}).requires_grad_();
  PostLocalSgd adam{torch::optim::Adam{std::vector{parameter}, torch::optim::AdamOptions(0.25)},
                    PeriodicModelAverager{world, {.period = 2}}};
  CHECK(adam.lr() == 0.25);
  adam.set_lr(0.5);
  CHECK(pardl::learning_rate(adam) == 0.5);
  CHECK(adam.parameters().size() == 1);
  parameter.sum().backward();
  adam.zero_grad();
  CHECK_FALSE(parameter.grad().defined());
}

TEST_CASE("a checkpoint holds the averager's count") {
  ProcessGroup const world;
  auto parameter = torch::ones({3}).requires_grad_();
  auto const make = [&] {
    return PostLocalSgd{pardl::optim::SGD{std::vector{parameter}, {.lr = 0.5, .momentum = 0.9}},
                        PeriodicModelAverager{world, {.period = 4, .warmup_steps = 1}}};
  };
  auto first = make(), second = make();
  for (int s = 0; s < 3; ++s) {
    first.zero_grad();
    parameter.sum().backward();
    first.step();
  }
  auto const state = first.state_dict();
  CHECK(state["step"].item<std::int64_t>() == 3);
  second.load_state_dict(state);
  CHECK(second.averager().step() == 3);
  CHECK(torch::equal(second.state_dict()["state.0.momentum_buffer"], state["state.0.momentum_buffer"]));
  CHECK(contains(message_of([&] { second.load_state_dict(first.local().state_dict()); }), "step is missing"));
}

TEST_CASE("an overflow on one rank costs its step, and no rank waits for another") {
  for (bool const fused : {true, false})
    with_ranks(2, [&](ProcessGroup world) {
      auto parameter = torch::ones({3}).requires_grad_();
      PostLocalSgd sgd{pardl::optim::SGD{std::vector{parameter}, {.lr = 0.5, .fused = fused}},
                       PeriodicModelAverager{world, {.period = 2}}};
      pardl::GradScaler scaler{{.init_scale = 8}};
      double expected = 1;
      for (int s = 0; s < 4; ++s) {
        sgd.zero_grad();
        bool const bad = s == 1 && world.rank() == 1;
        scaler.scale((parameter * (bad ? std::numeric_limits<float>::infinity() : 1.0f)).sum()).backward();
        scaler.step(sgd);
        scaler.update();
        // Steps of 0.5; in step 1 rank 1 skips, and in step 2, which averages, the two are half a step apart.
        expected -= bad ? 0 : 0.5;
        if (s == 2) expected = -0.25;
        CHECK_MESSAGE(torch::allclose(parameter, torch::full({3}, expected)), "step " << s << " fused " << fused);
      }
      CHECK(sgd.averager().step() == 4);
    });
}
