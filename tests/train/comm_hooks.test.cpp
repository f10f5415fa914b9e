// SPDX-License-Identifier: MIT
#include "pardl/train/comm_hooks.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ddp_support.hpp"
#include "pardl/train/distributed_data_parallel.hpp"

using namespace ddp_test;
using pardl::DistributedDataParallel;
using pardl::ProcessGroup;
using pardl::testing::with_ranks;
namespace hooks = pardl::comm_hooks;

namespace {

/// Every rank's own gradients of step 0, flattened.
std::vector<std::vector<torch::Tensor>> own_gradients(int ranks) {
  std::vector<std::vector<torch::Tensor>> all;
  for (int rank = 0; rank < ranks; ++rank) {
    Mlp alone(1);
    loss_of(alone(batch_of(rank, 0))).backward();
    all.push_back(copies(gradients(*alone)));
  }
  return all;
}

/// What gradients become under a hook, on `ranks` ranks, compared with `expected(own gradients of one parameter)`.
template <class MakeHook, class Expected>
void check_hook(int ranks, MakeHook make_hook, Expected expected) {
  auto const own = own_gradients(ranks);
  for (bool const view : {false, true})
    with_ranks(ranks, [&](ProcessGroup world) {
      Mlp net(1);
      DistributedDataParallel model{net, world, {.bucket_cap_mib = 0.0005, .gradient_as_bucket_view = view}};
      model.register_comm_hook(make_hook());
      for (int s = 0; s < 2; ++s) {  // before and after the buckets are rebuilt
        model.zero_grad();
        loss_of(model(batch_of(world.rank(), 0))).backward();
        auto const got = gradients(*net);
        for (std::size_t i = 0; i < got.size(); ++i) {
          std::vector<torch::Tensor> parts;
          for (auto const& rank : own) parts.push_back(rank[i]);
          CHECK_MESSAGE(torch::equal(got[i], expected(parts)), "parameter " << i << " step " << s);
        }
      }
    });
}

auto narrow_mean(torch::ScalarType type) {
  return [type](std::vector<torch::Tensor> const& own) {  // cast, divide, sum, cast back
    return (own[0].to(type).div(2) + own[1].to(type).div(2)).to(torch::kFloat32);
  };
}

}  // namespace

TEST_CASE("the built-in hooks make bitwise what PyTorch's make") {
  SUBCASE("all_reduce") {
    check_hook(
        2, [] { return hooks::all_reduce(); }, [](auto const& own) { return own[0].div(2) + own[1].div(2); });
  }
  SUBCASE("fp16_compress") {
    check_hook(
        2, [] { return hooks::fp16_compress(); }, narrow_mean(torch::kHalf));
  }
  SUBCASE("bf16_compress") {
    check_hook(
        2, [] { return hooks::bf16_compress(); }, narrow_mean(torch::kBFloat16));
  }
  SUBCASE("a wrapper around a hook") {
    check_hook(
        2, [] { return hooks::fp16_compress(hooks::all_reduce()); }, narrow_mean(torch::kHalf));
  }
  SUBCASE("a wrapper around a wrapper") {
    check_hook(
        2, [] { return hooks::fp16_compress(hooks::bf16_compress()); },
        [](auto const& own) {
          auto const twice = [](torch::Tensor const& t) { return t.to(torch::kHalf).to(torch::kBFloat16).div(2); };
          return (twice(own[0]) + twice(own[1])).to(torch::kHalf).to(torch::kFloat32);
        });
  }
  SUBCASE("three ranks divide before they sum") {
    for (auto const& [type, tolerance] : {std::pair{torch::kHalf, 2e-3}, std::pair{torch::kBFloat16, 2e-2}}) {
      auto const own = own_gradients(3);
      with_ranks(3, [&](ProcessGroup world) {
        Mlp net(1);
        DistributedDataParallel model{net, world};
        if (type == torch::kHalf)
          model.register_comm_hook(hooks::fp16_compress());
        else
          model.register_comm_hook(hooks::bf16_compress());
        loss_of(model(batch_of(world.rank(), 0))).backward();
        auto const got = gradients(*net);
        for (std::size_t i = 0; i < got.size(); ++i)
          CHECK(torch::allclose(got[i], (own[0][i] + own[1][i] + own[2][i]) / 3, 0, tolerance));
      });
    }
  }
}

TEST_CASE("a user's function is divided or not, as it says") {
  auto const sum = [](ProcessGroup const& world, c10d::GradBucket& bucket) {
    return pardl::all_reduce(world, bucket.getBuffer()).future();
  };
  SUBCASE("a sum is divided") {
    check_hook(
        2, [&] { return hooks::returning_sum(sum); }, [](auto const& own) { return (own[0] + own[1]).div(2); });
  }
  SUBCASE("a mean is taken as it is") {
    check_hook(
        2, [&] { return hooks::returning_mean(sum); }, [](auto const& own) { return own[0] + own[1]; });
  }
  SUBCASE("a completed future needs no communication") {
    check_hook(
        2,
        [] {
          return hooks::returning_mean([](ProcessGroup const&, c10d::GradBucket& bucket) {
            return hooks::completed(torch::full_like(bucket.getBuffer(), 7));
          });
        },
        [](auto const& own) { return torch::full_like(own[0], 7); });
  }
  SUBCASE("a sum under a wrapper is still divided") {
    check_hook(
        2, [&] { return hooks::fp16_compress(hooks::returning_sum(sum)); },
        [](auto const& own) { return (own[0].to(torch::kHalf) + own[1].to(torch::kHalf)).to(torch::kFloat32).div(2); });
  }
}

TEST_CASE("a hook sees every parameter once a step, bucket by bucket") {
  Mlp net(1);
  DistributedDataParallel model{net, ProcessGroup{}, {.bucket_cap_mib = 0.0005}};
  std::size_t seen = 0, last = 0;
  model.register_comm_hook(hooks::returning_mean([&](ProcessGroup const&, c10d::GradBucket& bucket) {
    seen += bucket.getParameters().size();
    last += bucket.isLast();
    return hooks::completed(bucket.getBuffer());
  }));
  for (int s = 0; s < 3; ++s) loss_of(model(batch_of(0, s))).backward();
  CHECK(seen == 3 * net->parameters().size());
  CHECK(last == 3);
}

TEST_CASE("one hook, before the first forward") {
  Mlp net(1);
  DistributedDataParallel model{net, ProcessGroup{}};
  model.register_comm_hook(hooks::all_reduce());
  CHECK(contains(message_of([&] { model.register_comm_hook(hooks::all_reduce()); }), "a communication hook already"));
  DistributedDataParallel late{net, ProcessGroup{}};
  loss_of(late(batch_of(0, 0))).backward();
  CHECK(contains(message_of([&] { late.register_comm_hook(hooks::all_reduce()); }), "before training"));
}

namespace {

/// Backward fails with `cause`; every later use says so again.
template <class Hook>
void check_failure(Hook hook, std::string const& cause) {
  Mlp net(1);
  {
    DistributedDataParallel model{net, ProcessGroup{}};
    model.register_comm_hook(std::move(hook));
    auto const loss = loss_of(model(batch_of(0, 0)));
    std::string const text = message_of([&] { loss.backward(); });
    CHECK_MESSAGE(contains(text, cause), text);
    for (int again = 0; again < 2; ++again) {
      std::string const later = message_of([&] { (void)model(batch_of(0, 0)); });
      CHECK_MESSAGE(contains(later, cause), later);
      CHECK(contains(later, "[ddp] rank 0/1: the last backward failed and its gradients were not reduced"));
    }
    CHECK(contains(message_of([&] { auto const uneven = model.join(); }), cause));
  }
  // The module itself is sound: wrapped again, it trains.
  DistributedDataParallel next{net, ProcessGroup{}};
  CHECK(message_of([&] { loss_of(next(batch_of(0, 0))).backward(); }) == "");
}

}  // namespace

TEST_CASE("a hook that throws ends backward with its own words, and the wrapper remembers them") {
  SUBCASE("in the hook") {
    check_failure(hooks::returning_mean([](ProcessGroup const&, c10d::GradBucket&) -> pardl::TensorFuture {
                    throw std::runtime_error("the hook's own words");
                  }),
                  "the hook's own words");
  }
  SUBCASE("in its future") {
    check_failure(
        hooks::returning_mean([](ProcessGroup const&, c10d::GradBucket& bucket) {
          return hooks::completed(bucket.getBuffer())
              ->then([](c10::ivalue::Future&) -> c10::IValue { throw std::runtime_error("the future's own words"); },
                     c10::TensorType::get());
        }),
        "the future's own words");
  }
  SUBCASE("no future at all") {
    check_failure(hooks::returning_mean([](ProcessGroup const&, c10d::GradBucket&) { return pardl::TensorFuture(); }),
                  "returned a null future");
  }
  SUBCASE("a tensor of another size") {
    check_failure(hooks::returning_mean(
                      [](ProcessGroup const&, c10d::GradBucket&) { return hooks::completed(torch::zeros({3})); }),
                  "made 3 elements of the 435 of bucket 0");
  }
}

TEST_CASE("an exception in the graph is named beside the parameters that it cut off") {
  struct Bomb : torch::autograd::Function<Bomb> {
    static torch::Tensor forward(torch::autograd::AutogradContext*, torch::Tensor x) { return x.clone(); }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext*, torch::autograd::variable_list) {
      throw std::runtime_error("the graph's own words");
    }
  };
  struct Net : MlpImpl {
    torch::Tensor forward(torch::Tensor const& x) { return c(Bomb::apply(torch::tanh(b(torch::tanh(a(x)))))); }
  };
  Net net;
  DistributedDataParallel model{net, ProcessGroup{}};
  auto const loss = loss_of(model(batch_of(0, 0)));
  CHECK(contains(message_of([&] { loss.backward(); }), "the graph's own words"));
  std::string const text = message_of([&] { (void)model(batch_of(0, 0)); });
  CHECK(contains(text, "'a.weight'"));
  CHECK_FALSE(contains(text, "'c.weight'"));
  CHECK(contains(text, "an exception that cut that backward short"));
}

TEST_CASE("a peer that is gone ends backward with its cause, and so the next forward") {
  std::string at_backward, at_forward;
  with_ranks(2,
             [&](ProcessGroup world) {
               Mlp net(1);
               DistributedDataParallel model{net, world};
               for (int s = 0; s < 2; ++s) loss_of(model(batch_of(world.rank(), s))).backward();
               auto const loss = loss_of(model(batch_of(world.rank(), 2)));
               if (world.rank() == 1) return;  // the group goes with the thread
               at_backward = message_of([&] { loss.backward(); });
               at_forward = message_of([&] { (void)model(batch_of(0, 1)); });
             },
             {.timeout = std::chrono::milliseconds(3000)});
  CHECK_MESSAGE(contains(at_backward, "all_reduce"), at_backward);
  CHECK_MESSAGE(contains(at_forward, "[ddp] rank 0/2: the last backward failed"), at_forward);
  CHECK_MESSAGE(contains(at_forward, "all_reduce"), at_forward);
}
