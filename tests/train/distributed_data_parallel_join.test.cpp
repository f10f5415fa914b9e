// SPDX-License-Identifier: MIT
// Ranks with unequal numbers of batches.
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "ddp_support.hpp"
#include "pardl/train/comm_hooks.hpp"
#include "pardl/train/distributed_data_parallel.hpp"

using namespace ddp_test;
using pardl::DistributedDataParallel;
using pardl::ProcessGroup;
using pardl::testing::with_ranks;
using Options = pardl::DistributedDataParallelOptions;

namespace {

/// Ranks 0, 1, 2 have these many batches.
constexpr int batches_of[] = {1, 3, 5};

/// The five steps by hand: a rank without a batch adds nothing, and the divisor is 3 or the ranks that still train.
std::vector<torch::Tensor> trained_by_hand(bool divide_by_three) {
  Mlp net(1);
  for (int s = 0; s < 5; ++s) {
    auto const alive = std::count_if(std::begin(batches_of), std::end(batches_of), [s](int n) { return n > s; });
    std::vector<torch::Tensor> sum;
    for (int rank = 0; rank < 3; ++rank) {
      if (s >= batches_of[rank]) continue;
      net->zero_grad();
      loss_of(net(batch_of(rank, s))).backward();
      auto own = copies(gradients(*net));
      for (std::size_t i = 0; i < own.size(); ++i) {
        own[i] /= divide_by_three ? 3.0 : static_cast<double>(alive);
        i < sum.size() ? static_cast<void>(sum[i].add_(own[i])) : sum.push_back(own[i]);
      }
    }
    step(net->parameters(), sum, 0.2);
  }
  return net->parameters();
}

void check_join(Options const& options, bool divide_by_three, bool with_hook = false) {
  auto const expected = trained_by_hand(divide_by_three);
  with_ranks(3, [&](ProcessGroup world) {
    Mlp net(1);
    DistributedDataParallel model{net, world, options};
    if (with_hook) model.register_comm_hook(pardl::comm_hooks::all_reduce());
    {
      auto const uneven = model.join({.divide_by_initial_world_size = divide_by_three});
      for (int s = 0; s < batches_of[world.rank()]; ++s) {
        model.zero_grad();
        loss_of(model(batch_of(world.rank(), s))).backward();
        step(model.parameters(), gradients(*net), 0.2);
      }
    }
    auto const got = net->parameters();
    for (std::size_t i = 0; i < got.size(); ++i)
      CHECK_MESSAGE(torch::allclose(got[i], expected[i], 1e-5, 1e-6), "parameter " << i << " rank " << world.rank());
    CHECK_FALSE(torch::allclose(got[0], Mlp(1)->parameters()[0], 1e-3, 1e-3));
    // Outside join() no rank waits for another that has no batch: training goes on as before.
    model.zero_grad();
    loss_of(model(batch_of(world.rank(), 9))).backward();
  });
}

}  // namespace

TEST_CASE("ranks of 1, 3 and 5 batches end with the model computed by hand") {
  SUBCASE("divided by all ranks") { check_join({}, true); }
  SUBCASE("divided by those that still train") { check_join({}, false); }
  SUBCASE("tiny buckets, rebuilt while a rank has finished") { check_join({.bucket_cap_mib = 0.0005}, true); }
  SUBCASE("buckets as views") { check_join({.bucket_cap_mib = 0.0005, .gradient_as_bucket_view = true}, false); }
  SUBCASE("search for unused parameters") { check_join({.find_unused_parameters = true}, true); }
  SUBCASE("static graph") { check_join({.static_graph = true}, true); }
  SUBCASE("a communication hook") { check_join({}, true, true); }
  if (pardl::detail::has_lazy_bucket_allocation) {
    SUBCASE("lazy buckets") { check_join({.lazy_bucket_allocation = true}, true); }
  }
}

TEST_CASE("a rank without any batch joins at once, static graph or not") {
  for (auto const& options : {Options{}, Options{.static_graph = true}, Options{.find_unused_parameters = true}})
    with_ranks(2, [&](ProcessGroup world) {
      Mlp net(1), alone(1);
      DistributedDataParallel model{net, world, options};
      model.join([&] {
        for (int s = 0; s < 2 * world.rank(); ++s) {
          model.zero_grad();
          loss_of(model(batch_of(1, s))).backward();
          step(model.parameters(), gradients(*net), 0.2);
        }
      });
      for (int s = 0; s < 2; ++s) {
        alone->zero_grad();
        (loss_of(alone(batch_of(1, s))) / 2).backward();
        step(alone->parameters(), gradients(*alone), 0.2);
      }
      auto const got = net->parameters();
      for (std::size_t i = 0; i < got.size(); ++i) CHECK(torch::allclose(got[i], alone->parameters()[i], 1e-5, 1e-6));
    });
}

TEST_CASE("buffers come from a rank that still trains, and gradients may be kept back meanwhile") {
  with_ranks(2, [](ProcessGroup world) {
    WithBatchNorm net(1);
    DistributedDataParallel model{net, world};
    {
      auto const uneven = model.join();
      for (int s = 0; s < 1 + 3 * world.rank(); ++s) {
        if (s == 2) {
          auto const apart = model.no_sync();
          model(batch_of(world.rank(), s)).sum().backward();
        } else {
          model(batch_of(world.rank(), s)).sum().backward();
        }
      }
    }
    auto const steps = net->norm->num_batches_tracked.item<int64_t>();
    CHECK(steps == 4);  // the last joiner's count, on both
  });
}

TEST_CASE("an unused parameter stays unused after a rank that had used it has finished") {
  struct Net : torch::nn::Module {
    Net() {
      left = register_module("left", torch::nn::Linear(6, 2));
      right = register_module("right", torch::nn::Linear(6, 2));
      fill(*this, 7);
    }
    torch::Tensor forward(torch::Tensor const& x, bool both) { return both ? left(x) + right(x) : left(x); }
    torch::nn::Linear left = nullptr, right = nullptr;
  };
  with_ranks(2, [](ProcessGroup world) {
    Net net;
    DistributedDataParallel model{net, world, {.find_unused_parameters = true}};
    {
      auto const uneven = model.join();
      for (int s = 0; s < 1 + world.rank(); ++s) {
        model.zero_grad();
        model(batch_of(world.rank(), s), s == 0).sum().backward();
        CHECK(net.right->weight.grad().defined() == (s == 0));
      }
    }
  });
}

TEST_CASE("with throw_on_early_termination all ranks throw as soon as one has finished") {
  with_ranks(3, [](ProcessGroup world) {
    Mlp net(1);
    DistributedDataParallel model{net, world};
    int steps = 0;
    std::string const text = message_of([&] {
      auto const uneven = model.join({.throw_on_early_termination = true});
      for (int s = 0; s < batches_of[world.rank()]; ++s, ++steps) loss_of(model(batch_of(world.rank(), s))).backward();
    });
    CHECK(contains(text, world.rank() == 0 ? "this rank has no batch left" : "another rank has no batch left"));
    CHECK(steps == 1);
  });
}

TEST_CASE("join disabled does nothing, twice at once is refused, and an exception passes through it") {
  Mlp net(1);
  DistributedDataParallel model{net, ProcessGroup{}};
  {
    auto const off = model.join({.enable = false});
    auto const on = model.join();
    CHECK(contains(message_of([&] { auto const again = model.join(); }), "join() within join()"));
  }
  CHECK(message_of([&] {
          auto const uneven = model.join();
          throw std::runtime_error("the user's own");
        }) == "the user's own");
  CHECK(message_of([&] { loss_of(model(batch_of(0, 0))).backward(); }) == "");
}
