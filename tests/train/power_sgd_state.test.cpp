// SPDX-License-Identifier: MIT
// What PowerSGD keeps: over a checkpoint, an overflow, a silent layer, and ranks with unequal numbers of batches.
#include <torch/torch.h>

#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "hook_support.hpp"
#include "pardl/train/distributed_data_parallel.hpp"
#include "pardl/train/power_sgd.hpp"
#include "pardl/train/tensor_file.hpp"
#include "support/ranks.hpp"
#include "support/temporary_folder.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

using namespace ddp_test;
using pardl::DistributedDataParallel;
using pardl::ProcessGroup;
using pardl::comm_hooks::PowerSgdOptions;
using pardl::testing::with_ranks;
namespace hooks = pardl::comm_hooks;

namespace {

/// Trains from step `first` to `last`.
void train(DistributedDataParallel<Mlp>& model, int first, int last) {
  for (int s = first; s < last; ++s) {
    model.zero_grad();
    loss_of(model(batch_of(model.world().rank(), s))).backward();
    step(model.module().parameters(), gradients(model.module()), 0.1);
  }
}

bool same_state(pardl::StateDict const& a, pardl::StateDict const& b) {
  if (a.size() != b.size()) return false;
  for (auto const& item : a)
    if (!b.contains(item.key()) || !torch::equal(item.value(), b[item.key()])) return false;
  return true;
}

pardl::StateDict copy_of(pardl::StateDict const& state) {
  pardl::StateDict copy("name");
  for (auto const& item : state) copy.insert(item.key(), item.value().clone());
  return copy;
}

}  // namespace

TEST_CASE("a run goes on from a checkpoint bit for bit, whatever its buckets") {
  PowerSgdOptions const options{.start_powerSGD_iter = 2, .min_compression_rate = 0.5};
  for (double const cap_afterwards : {0.0005, 25.0}) {
    pardl::testing::TemporaryFolder const folder;
    with_ranks(2, [&](ProcessGroup world) {
      auto const file = folder / ("hook" + std::to_string(world.rank()) + ".safetensors");
      Mlp straight(1), first(1), second(2);
      auto const straight_hook = hooks::power_sgd(options);
      DistributedDataParallel whole{straight, world, {.bucket_cap_mib = 0.0005}};
      whole.register_comm_hook(straight_hook);
      train(whole, 0, 9);
      {
        DistributedDataParallel model{first, world, {.bucket_cap_mib = 0.0005}};
        auto const hook = hooks::power_sgd(options);
        model.register_comm_hook(hook);
        train(model, 0, 5);
        pardl::save_tensors(file, hook.state_dict(model));
      }
      pardl::load_state_dict(second, pardl::state_dict(first));
      DistributedDataParallel model{second, world, {.bucket_cap_mib = cap_afterwards}};
      auto hook = hooks::power_sgd(options);
      model.register_comm_hook(hook);
      hook.load_state_dict(second, pardl::load_tensors(file));
      CHECK(hook.iter() == 5);
      train(model, 5, 9);
      CHECK(same_bits(second->parameters(), straight->parameters()));
      CHECK(same_state(hook.state_dict(second), straight_hook.state_dict(straight)));
    });
  }
}

TEST_CASE("of equal buckets each kind of hook goes on bit for bit") {
  Heap heap({{12, 10}, {6}, {10, 12}, {12, 10}});
  for (bool const feedback : {true, false})
    for (bool const warm : {true, false})
      for (bool const batch : {true, false})
        with_ranks(2, [&](ProcessGroup world) {
          PowerSgdOptions const options{.matrix_approximation_rank = 2,
                                        .start_powerSGD_iter = 2,
                                        .min_compression_rate = 1,
                                        .use_error_feedback = feedback,
                                        .warm_start = warm,
                                        .random_seed = 3,
                                        .batch_tensors_with_same_shape = batch};
          auto straight = hooks::power_sgd(options), resumed = hooks::power_sgd(options);
          auto const gradients_of = [&](int s) {
            return heap.random_gradients(static_cast<std::uint64_t>(100 * s + 10 * world.rank()));
          };
          for (int s = 0; s < 6; ++s) (void)heap.reduced(straight, world, gradients_of(s));
          resumed.load_state_dict(heap, copy_of(straight.state_dict(heap)));
          CHECK(resumed.compression_stats().numel_after_compression ==
                straight.compression_stats().numel_after_compression);
          for (int s = 6; s < 9; ++s)
            CHECK(same_bits(heap.reduced(resumed, world, gradients_of(s)),
                            heap.reduced(straight, world, gradients_of(s))));
          CHECK(same_state(resumed.state_dict(heap), straight.state_dict(heap)));
        });
}

TEST_CASE("of a model whose memory is channels last the errors have their places") {
  for (auto const format : {torch::MemoryFormat::Contiguous, torch::MemoryFormat::ChannelsLast}) {
    torch::nn::Sequential net(torch::nn::Conv2d(3, 8, 3));
    fill(*net, 4);
    auto weight = net->parameters()[0];
    weight.set_data(weight.detach().clone(format));
    ProcessGroup const world;
    DistributedDataParallel model{net, world};
    auto hook = hooks::power_sgd({.start_powerSGD_iter = 2});
    model.register_comm_hook(hook);
    auto const x = seeded({2, 3, 5, 5}, 9);
    torch::Tensor wanted;
    for (int s = 0; s < 3; ++s) {
      model.zero_grad();
      loss_of(model(x)).backward();
      if (s == 1) wanted = weight.grad().clone();
    }
    auto const state = hook.state_dict(net);
    auto const left = state["error_dict.0.weight"];
    CHECK(left.abs().max().item<double>() > 0.01 * wanted.abs().max().item<double>());
    CHECK(gap(weight.grad() + left, wanted) < 1e-6);
    auto again = hooks::power_sgd({.start_powerSGD_iter = 2});
    again.load_state_dict(net, state);
    CHECK(same_state(again.state_dict(net), state));
  }
}

TEST_CASE("a peer that is gone ends backward with its cause, and so the next forward") {
  std::string at_backward, at_forward;
  with_ranks(2,
             [&](ProcessGroup world) {
               Mlp net(1);
               DistributedDataParallel model{net, world};
               model.register_comm_hook(hooks::power_sgd({.start_powerSGD_iter = 2, .min_compression_rate = 0.5}));
               train(model, 0, 3);
               auto const loss = loss_of(model(batch_of(world.rank(), 3)));
               if (world.rank() == 1) return;  // the group goes with the thread
               at_backward = message_of([&] { loss.backward(); });
               at_forward = message_of([&] { (void)model(batch_of(0, 1)); });
             },
             {.timeout = std::chrono::milliseconds(3000)});
  CHECK_MESSAGE(contains(at_backward, "[comm] rank 0/2: all_reduce #"), at_backward);
  CHECK_MESSAGE(contains(at_forward, "[ddp] rank 0/2: the last backward failed"), at_forward);
}

TEST_CASE("a state that does not fit is refused, and nothing changes") {
  Heap heap({{12, 10}, {12}});
  auto hook = hooks::power_sgd({.start_powerSGD_iter = 2});
  ProcessGroup const world;
  warm_up(heap, hook, world);
  for (int s = 0; s < 2; ++s) (void)heap.reduced(hook, world, heap.random_gradients(4));
  auto const good = copy_of(hook.state_dict(heap));
  CHECK(good.size() == 6);
  auto const said = [&](auto change) {
    auto state = copy_of(good);
    change(state);
    auto const text = message_of([&] { hook.load_state_dict(heap, state); });
    CHECK(same_state(hook.state_dict(heap), good));
    return text;
  };
  CHECK(contains(said([](auto& state) { state.erase("iter"); }), "iter is missing"));
  CHECK(contains(said([](auto& state) { state["iter"] = torch::tensor(-1); }), "counts backwards"));
  CHECK(contains(said([](auto& state) { state["q_memory_dict.p0"] = torch::zeros({10, 2}); }), "q_memory_dict.p0 has"));
  CHECK(contains(said([](auto& state) { state["error_dict.p0"] = torch::zeros({10, 12}); }), "error_dict.p0 has"));
  CHECK(contains(said([](auto& state) { state.insert("error_dict.p1", torch::zeros({12})); }), "it has 1 entries"));
  CHECK(contains(said([](auto& state) { state.erase("q_memory_dict.p0"); }), "of p0 it has the error or the factor"));
  CHECK(contains(message_of([&] {
                   auto other = hooks::power_sgd({.start_powerSGD_iter = 2, .warm_start = false});
                   other.load_state_dict(heap, good);
                 }),
                 "it has 1 entries"));
  CHECK(said([](auto&) {}) == "");
}

TEST_CASE("a loaded state is the hook's own copy") {
  Heap heap({{12, 10}});
  auto hook = hooks::power_sgd({.start_powerSGD_iter = 2});
  ProcessGroup const world;
  warm_up(heap, hook, world);
  (void)heap.reduced(hook, world, heap.random_gradients(4));
  auto const state = copy_of(hook.state_dict(heap)), before = copy_of(state);
  hook.load_state_dict(heap, state);
  (void)heap.reduced(hook, world, heap.random_gradients(5));
  CHECK(same_state(state, before));
  hook.load_state_dict(heap, state);
  for (auto const& item : state) item.value().zero_();
  CHECK(same_state(hook.state_dict(heap), before));
}

TEST_CASE("an overflow is passed on and then forgotten, also one of a gradient that is sent whole") {
  Heap heap({{12, 10}, {6}});
  for (int const rank : {1, 3})
    for (float const bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
      for (std::size_t const which : {0U, 1U})
        with_ranks(2, [&](ProcessGroup world) {
          CAPTURE(rank);
          CAPTURE(bad);
          CAPTURE(which);
          PowerSgdOptions const options{
              .matrix_approximation_rank = rank, .start_powerSGD_iter = 2, .min_compression_rate = 1};
          auto hook = hooks::power_sgd(options), spared = hooks::power_sgd(options);
          auto const gradients_of = [&](int s) {
            return heap.random_gradients(static_cast<std::uint64_t>(10 * s + 5 * world.rank()));
          };
          for (auto* each : {&hook, &spared}) {
            warm_up(heap, *each, world);
            (void)heap.reduced(*each, world, gradients_of(4));
          }
          auto const before = copy_of(hook.state_dict(heap));
          CHECK(before["error_dict.p0"].abs().max().item<float>() > 0);
          auto spoilt = gradients_of(5);
          if (world.rank() == 1) spoilt[which].view(-1)[3] = bad;
          auto const got = heap.reduced(hook, world, spoilt);
          for (std::size_t i = 0; i < 2; ++i)  // the same on both ranks: both skip the step
            CHECK(got[i].isfinite().all().item<bool>() == (i != which));
          auto const after = hook.state_dict(heap);
          for (auto const* name : {"error_dict.p0", "q_memory_dict.p0"}) {
            CAPTURE(name);
            CHECK(torch::equal(after[name], before[name]));
          }
          for (int s = 6; s < 8; ++s)  // as if that step had not been
            CHECK(same_bits(heap.reduced(hook, world, gradients_of(s)), heap.reduced(spared, world, gradients_of(s))));
        });
}

TEST_CASE("a layer that was silent for a step is heard again") {
  Heap const heap({{12, 10}});
  for (double const epsilon : {0.0, 1e-8})
    for (int const rank : {1, 2, 3}) {
      auto hook = hooks::power_sgd({.matrix_approximation_rank = rank,
                                    .start_powerSGD_iter = 2,
                                    .min_compression_rate = 1,
                                    .use_error_feedback = false,
                                    .orthogonalization_epsilon = epsilon});
      ProcessGroup const world;
      warm_up(heap, hook, world);
      auto const gradients = heap.random_gradients(4);
      (void)heap.reduced(hook, world, gradients);
      for (int s = 0; s < 2; ++s)
        CHECK(torch::equal(heap.reduced(hook, world, {torch::zeros({12, 10})})[0], torch::zeros({12, 10})));
      auto const got = heap.reduced(hook, world, gradients)[0];
      CHECK(got.isfinite().all().item<bool>());
      CHECK(got.norm().item<double>() > 0.1 * gradients[0].norm().item<double>());
    }
}

TEST_CASE("ranks with unequal numbers of batches finish together") {
  std::vector<std::vector<torch::Tensor>> ends(2);
  with_ranks(2, [&](ProcessGroup world) {
    Mlp net(1);
    DistributedDataParallel model{net, world, {.bucket_cap_mib = 0.0005}};
    model.register_comm_hook(hooks::power_sgd({.start_powerSGD_iter = 2, .min_compression_rate = 0.5}));
    model.join([&] { train(model, 0, 4 + 3 * world.rank()); });
    ends[static_cast<std::size_t>(world.rank())] = copies(net->parameters());
  });
  CHECK(same_bits(ends[0], ends[1]));
}

TEST_CASE("sparse gradients are refused by name") {
  auto const hook = hooks::power_sgd();
  auto sparse = torch::zeros({4, 2}).to_sparse();
  c10d::GradBucket wrong(0, 1, sparse, {}, {}, {}, {}, std::nullopt);
  CHECK(contains(message_of([&] { (void)hook(ProcessGroup{}, wrong); }), "power_sgd was given a sparse gradient"));
}
