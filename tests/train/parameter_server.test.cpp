// SPDX-License-Identifier: MIT
#include "pardl/train/parameter_server.hpp"

#include <torch/torch.h>

#include <atomic>
#include <cstdint>
#include <latch>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "parameter_server_support.hpp"
#include "pardl/comm/collectives.hpp"
#include "pardl/data/distributed_sampler.hpp"
#include "support/ranks.hpp"
#include "support/seed.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

using namespace ps_test;
using pardl::ParameterServer;
using pardl::ProcessGroup;
using pardl::testing::with_ranks;
using Options = pardl::ParameterServerOptions;

namespace {

/// Trains on so many workers, each for its own number of steps, and returns the versions that they used. All ranks must
/// hold the replayed training's bits in the end.
void check_against_replay(std::vector<int> const& steps, Options const& options, std::string const& backend,
                          unsigned seed) {
  Versions versions(steps.size());
  std::atomic<int> alike{0};
  std::vector<std::vector<torch::Tensor>> ends(steps.size() + 1);
  with_ranks(static_cast<int>(steps.size()) + 1,
             [&](ProcessGroup world) {
               Mlp net(world.rank() == options.server ? 1 : 77);  // the server's counts
               ParameterServer ps{net, world, sgd, options};
               if (ps.is_server()) {
                 std::int64_t clocks = 0;
                 struct {
                   std::int64_t& clocks;
                   void on_clock(pardl::ClockEvent const& event) { CHECK(event.clock == clocks++); }
                   void on_step(pardl::ClockEvent const& event) { CHECK(event.clock + 1 == clocks); }
                 } count{clocks};
                 ps.serve(count);
                 CHECK(ps.version() == clocks);
               } else {
                 int const worker = ps.workers().rank();
                 CHECK(ps.workers().size() == static_cast<int>(steps.size()));
                 std::mt19937 draws(seed + static_cast<unsigned>(worker));
                 auto& used = versions[static_cast<std::size_t>(worker)];
                 for (int c = 0; c < steps[static_cast<std::size_t>(worker)]; ++c) {
                   CHECK(ps.clock() == c);
                   used.push_back(ps.version());
                   backward(net, worker, c);
                   dawdle(draws() % 64);
                   ps.step();
                 }
                 ps.finish();
               }
               ends[static_cast<std::size_t>(world.rank())] = copies(net->parameters());
               ++alike;
             },
             {.backend = backend});
  CHECK(alike == static_cast<int>(steps.size()) + 1);
  for (auto const& each : versions)
    for (std::size_t c = 0; c < each.size(); ++c) {
      auto const clock = static_cast<std::int64_t>(c);
      CHECK(each[c] >= clock - options.staleness);
      CHECK(each[c] <= clock);
    }
  if (options.staleness == 0) CHECK(versions == synchronous(steps));
  auto const history = replay(Mlp(1), versions);
  for (auto const& end : ends) CHECK(same_bits(end, history.back()));
}

}  // namespace

TEST_CASE("synchronous: every rank ends with the bits of the same sums made in one process") {
  auto const seed = pardl::testing::draw_seed();
  CAPTURE(seed);
  for (std::string const backend : {"gloo", "shm"}) {
    CAPTURE(backend);
    check_against_replay({6, 6, 6}, {}, backend, seed);
    check_against_replay({5, 5, 5}, {.server = 2}, backend, seed + 1);
  }
}

TEST_CASE("a world of two: one worker's training is training alone, bit for bit") {
  with_ranks(2, [](ProcessGroup world) {
    Mlp net(1), alone(1);
    ParameterServer ps{net, world, sgd};
    if (ps.is_server()) return ps.serve();
    auto optimizer = sgd(alone->parameters());
    for (int c = 0; c < 5; ++c) {
      backward(alone, 0, c);
      optimizer.step();
      backward(net, 0, c);
      ps.step();
      CHECK(same_bits(copies(net->parameters()), copies(alone->parameters())));
    }
    ps.finish();
  });
}

TEST_CASE("bounded staleness: the result is what the versions that were used say, and they keep the bound") {
  auto const seed = pardl::testing::draw_seed();
  CAPTURE(seed);
  for (std::string const backend : {"gloo", "shm"}) {
    CAPTURE(backend);
    check_against_replay({8, 8, 8}, {.staleness = 1}, backend, seed);
    check_against_replay({12, 12}, {.staleness = 3}, backend, seed + 1);
  }
}

TEST_CASE("uneven data: who is done is no longer waited for, whatever the staleness") {
  auto const seed = pardl::testing::draw_seed();
  CAPTURE(seed);
  check_against_replay({2, 7, 4}, {}, "gloo", seed);
  check_against_replay({0, 3}, {}, "shm", seed);
  check_against_replay({9, 1, 5}, {.staleness = 2}, "shm", seed);
  check_against_replay({0, 0}, {}, "shm", seed);
}

TEST_CASE("a worker runs ahead of one that stands still by the staleness, and stays within it ever after") {
  for (int const staleness : {1, 3}) {
    CAPTURE(staleness);
    constexpr int rounds = 4;
    // The slow worker gives its gradient number r only after the fast one holds the answer to the last step that it may
    // make without it.
    std::vector<std::unique_ptr<std::latch>> latches;
    for (int r = 0; r < rounds; ++r) latches.push_back(std::make_unique<std::latch>(1));
    std::vector<std::int64_t> used;
    with_ranks(3,
               [&](ProcessGroup world) {
                 Mlp net(1);
                 ParameterServer ps{net, world, sgd, {.staleness = staleness}};
                 if (ps.is_server()) return ps.serve();
                 bool const fast = world.rank() == 1;
                 for (int c = 0; c < rounds + (fast ? staleness : 0); ++c) {
                   if (fast) {
                     used.push_back(ps.version());
                     if (c >= staleness) latches[static_cast<std::size_t>(c - staleness)]->count_down();
                   } else {
                     latches[static_cast<std::size_t>(c)]->wait();
                   }
                   backward(net, world.rank(), c);
                   ps.step();
                 }
                 ps.finish();
               },
               {.backend = "shm"});
    for (std::size_t c = 0; c < used.size(); ++c)  // exactly: neither less far ahead nor further
      CHECK(used[c] == std::max<std::int64_t>(0, static_cast<std::int64_t>(c) - staleness));
  }
}

TEST_CASE("synchronous training is DistributedDataParallel's over the workers") {
  constexpr int workers = 3;
  std::vector<torch::Tensor> server, ddp;
  with_ranks(workers + 1, [&](ProcessGroup world) {
    Mlp net(1);
    ParameterServer ps{net, world, sgd};
    if (ps.is_server()) {
      ps.serve();
      server = copies(net->parameters());
      return;
    }
    for (int c = 0; c < 6; ++c) {
      backward(net, ps.workers().rank(), c);
      ps.step();
    }
    ps.finish();
  });
  with_ranks(workers, [&](ProcessGroup world) {
    Mlp net(1);
    pardl::DistributedDataParallel model{net, world};
    auto optimizer = sgd(net->parameters());
    for (int c = 0; c < 6; ++c) {
      optimizer.zero_grad();
      loss_of(model(batch_of(world.rank(), c))).backward();
      optimizer.step();
    }
    if (world.rank() == 0) ddp = copies(net->parameters());
  });
  REQUIRE(server.size() == ddp.size());
  for (std::size_t i = 0; i < ddp.size(); ++i) CHECK(torch::allclose(server[i], ddp[i], 1e-5, 1e-6));
}

namespace {

/// Three layers, of which a worker uses those that it is told to.
struct BranchesImpl : torch::nn::Module {
  BranchesImpl() {
    for (char const* const name : {"both", "second", "nobody"})
      layers.push_back(register_module(name, torch::nn::Linear(6, 2)));
    fill(*this, 5);
  }
  std::vector<torch::nn::Linear> layers;
};
TORCH_MODULE(Branches);

}  // namespace

TEST_CASE("a parameter that no worker used is not stepped; one that some used counts as zero for the others") {
  std::vector<torch::Tensor> own, seen;  // of the second layer, by step
  with_ranks(3, [&](ProcessGroup world) {
    Branches net, before;
    ParameterServer ps{net, world, sgd};
    if (ps.is_server()) {
      struct {
        BranchesImpl& net;
        std::vector<torch::Tensor>& seen;
        void on_clock(pardl::ClockEvent const& event) {
          CHECK(event.workers == 2);
          CHECK(net.layers[0]->weight.grad().defined());
          CHECK_FALSE(net.layers[2]->weight.grad().defined());
          CHECK_FALSE(net.layers[2]->bias.grad().defined());
          seen.push_back(net.layers[1]->weight.grad().clone());
        }
      } look{*net, seen};
      return ps.serve(look);
    }
    for (int c = 0; c < 3; ++c) {
      ps.zero_grad();
      auto const x = batch_of(world.rank(), c);
      auto output = net->layers[0](x);
      if (world.rank() == 2) output = output + net->layers[1](x);
      loss_of(output).backward();
      if (world.rank() == 2) own.push_back(net->layers[1]->weight.grad().clone());
      ps.step();
    }
    ps.finish();
    CHECK(torch::equal(net->layers[2]->weight, before->layers[2]->weight));  // weight decay would move it
    CHECK_FALSE(torch::equal(net->layers[0]->weight, before->layers[0]->weight));
  });
  for (auto& gradient : own) gradient.div_(2);
  CHECK(same_bits(seen, own));
}

TEST_CASE("buffers are those of the lowest worker that made the step, and everybody's in the end") {
  // By step and worker; worker 0 makes two steps, worker 1 four.
  std::vector<std::vector<torch::Tensor>> own(2), seen;
  std::vector<std::vector<torch::Tensor>> ends(3);
  with_ranks(3, [&](ProcessGroup world) {
    WithBatchNorm net(1);
    ParameterServer ps{net, world, sgd};
    if (ps.is_server()) {
      struct {
        WithBatchNormImpl& net;
        std::vector<std::vector<torch::Tensor>>& seen;
        void on_clock(pardl::ClockEvent const&) { seen.push_back(copies(net.buffers())); }
      } look{*net, seen};
      ps.serve(look);
    } else {
      int const worker = ps.workers().rank();
      for (int c = 0; c < (worker == 0 ? 2 : 4); ++c) {
        backward(net, worker, c);
        for (auto const& buffer : copies(net->buffers())) own[static_cast<std::size_t>(worker)].push_back(buffer);
        ps.step();
      }
      ps.finish();
    }
    ends[static_cast<std::size_t>(world.rank())] = copies(net->buffers());
  });
  constexpr std::ptrdiff_t buffers = 3;  // mean, variance, and the number of batches, an integer
  auto const of = [&](std::size_t worker, std::ptrdiff_t c) {
    auto const begin = own[worker].begin() + c * buffers;
    return std::vector<torch::Tensor>(begin, begin + buffers);
  };
  REQUIRE(seen.size() == 4);
  for (std::ptrdiff_t c = 0; c < 4; ++c) CHECK(same_bits(seen[static_cast<std::size_t>(c)], of(c < 2 ? 0 : 1, c)));
  for (auto const& end : ends) CHECK(same_bits(end, of(1, 3)));
  CHECK(ends[0][2].item<std::int64_t>() == 4);
}

namespace {

/// Two dtypes, a channels_last convolution, a parameter with two names, and one that is frozen.
struct MixedImpl : torch::nn::Module {
  explicit MixedImpl(uint64_t seed) {
    wide = register_parameter("wide", seeded({3}, seed).to(torch::kFloat64));
    conv = register_module("conv", torch::nn::Conv2d(2, 3, 2));
    frozen = register_parameter("frozen", seeded({4}, seed), /*requires_grad=*/false);
    same = register_parameter("same", conv->bias);
    torch::NoGradGuard no_grad;
    conv->weight.set_data(seeded({3, 2, 2, 2}, seed).contiguous(torch::MemoryFormat::ChannelsLast));
    conv->bias.copy_(seeded({3}, seed + 1));
  }
  torch::Tensor forward(torch::Tensor const& x) {
    return conv(x.reshape({-1, 2, 3, 1}).expand({-1, 2, 3, 3})).sum({2, 3}) * wide + frozen.sum() * same;
  }
  torch::Tensor wide, frozen, same;
  torch::nn::Conv2d conv = nullptr;
};
TORCH_MODULE(Mixed);

}  // namespace

TEST_CASE("dtypes, memory formats, shared and frozen parameters travel as they are") {
  std::vector<std::vector<torch::Tensor>> ends(3);
  with_ranks(3, [&](ProcessGroup world) {
    Mixed net(world.rank() == 0 ? 3 : 30);
    ParameterServer ps{net, world, [](auto parameters) {
                         CHECK(parameters.size() == 3);
                         return sgd(parameters);
                       }};
    CHECK(torch::equal(net->frozen, seeded({4}, 3)));
    if (ps.is_server()) {
      struct {
        MixedImpl& net;
        void on_clock(pardl::ClockEvent const&) {
          CHECK(net.conv->weight.grad().strides() == net.conv->weight.strides());
          CHECK((net.wide.grad().scalar_type() == torch::kFloat64));
        }
      } look{*net};
      ps.serve(look);
    } else {
      for (int c = 0; c < 3; ++c) {
        backward(net, ps.workers().rank(), c);
        ps.step();
      }
      ps.finish();
    }
    CHECK(net->conv->weight.is_contiguous(torch::MemoryFormat::ChannelsLast));
    ends[static_cast<std::size_t>(world.rank())] = copies(net->parameters());
  });
  // A mean of two: the sum of the two and its half have the same bits in whatever order.
  Mixed net(3);
  std::vector<torch::Tensor> trained;
  for (auto const& parameter : net->parameters())
    if (parameter.requires_grad()) trained.push_back(parameter);
  auto optimizer = sgd({net->wide, net->conv->weight, net->conv->bias});
  for (int c = 0; c < 3; ++c) {
    std::vector<torch::Tensor> sum;
    for (int const worker : {0, 1}) {
      backward(net, worker, c);
      for (std::size_t i = 0; i < trained.size(); ++i) {
        auto const own = trained[i].grad().clone();
        if (worker == 0)
          sum.push_back(own);
        else
          sum[i].add_(own);
      }
    }
    for (std::size_t i = 0; i < trained.size(); ++i) trained[i].mutable_grad() = sum[i].div_(2);
    optimizer.step();
  }
  for (auto const& end : ends) CHECK(same_bits(end, copies(net->parameters())));
}

TEST_CASE("a training saved between two steps on the server goes on as if it had not been") {
  torch::OrderedDict<std::string, torch::Tensor> model("name"), optimizer("name");
  auto const clone_into = [](auto const& from, auto& into) {
    for (auto const& item : from) into.insert(item.key(), item.value().clone());
  };
  std::vector<torch::Tensor> end;
  with_ranks(3, [&](ProcessGroup world) {
    Mlp net(1);
    ParameterServer ps{net, world, sgd};
    if (ps.is_server()) {
      auto saves = [&](pardl::ClockEvent const& event) {
        if (event.clock != 3) return;
        clone_into(ps.state_dict(), model);
        clone_into(ps.optimizer().state_dict(), optimizer);
      };
      struct {
        decltype(saves)& f;
        void on_clock(pardl::ClockEvent const& event) { f(event); }
      } save{saves};
      ps.serve(save);
      end = copies(net->parameters());
      return;
    }
    for (int c = 0; c < 6; ++c) {
      backward(net, ps.workers().rank(), c);
      ps.step();
    }
    ps.finish();
  });
  with_ranks(3, [&](ProcessGroup world) {
    Mlp net(9);
    if (world.rank() == 0) pardl::load_state_dict(net, model);
    ParameterServer ps{net, world, sgd};
    if (ps.is_server()) {
      ps.optimizer().load_state_dict(optimizer);
      ps.serve();
      CHECK(same_bits(copies(net->parameters()), end));
      return;
    }
    for (int c = 3; c < 6; ++c) {
      backward(net, ps.workers().rank(), c);
      ps.step();
    }
    ps.finish();
  });
}

TEST_CASE("what an observer makes of the parameters after a step is what the workers get") {
  with_ranks(3, [](ProcessGroup world) {
    Mlp net(1);
    ParameterServer ps{net, world, sgd};
    if (ps.is_server()) {
      struct {
        Mlp& net;
        void on_step(pardl::ClockEvent const& event) {
          torch::NoGradGuard const no_grad;
          for (auto& parameter : net->parameters()) parameter.fill_(event.clock + 100);
        }
      } fill{net};
      ps.serve(fill);
      return;
    }
    for (int c = 0; c < 3; ++c) {
      backward(net, ps.workers().rank(), c);
      ps.step();
      for (auto const& parameter : net->parameters())
        CHECK(torch::equal(parameter, torch::full_like(parameter, c + 100)));
    }
    ps.finish();
  });
}

TEST_CASE("a schedule moves the learning rate before each step") {
  with_ranks(2, [](ProcessGroup world) {
    Mlp net(1), alone(1);
    ParameterServer ps{net, world, [](auto parameters) { return torch::optim::SGD(parameters, 1.0); }};
    if (ps.is_server()) {
      auto set = [&](pardl::ClockEvent const& event) {
        pardl::set_learning_rate(ps.optimizer(), 0.1 / static_cast<double>(event.clock + 1));
      };
      struct {
        decltype(set)& f;
        void on_clock(pardl::ClockEvent const& event) { f(event); }
      } schedule{set};
      return ps.serve(schedule);
    }
    for (int c = 0; c < 3; ++c) {
      backward(net, 0, c);
      backward(alone, 0, c);
      ps.step();
      step(alone->parameters(), gradients(*alone), 0.1 / (c + 1));
      CHECK(same_bits(copies(net->parameters()), copies(alone->parameters())));
    }
    ps.finish();
  });
}

TEST_CASE("the data is split among the workers, and the server has no share") {
  std::vector<int> count(12, 0);
  std::mutex mutex;
  with_ranks(4, [&](ProcessGroup world) {
    Mlp net(1);
    ParameterServer ps{net, world, sgd, {.server = 1}};
    if (ps.is_server()) {
      CHECK(contains(message_of([&] { (void)ps.workers(); }), "workers() is for workers; rank 1 is the server"));
      return ps.serve();
    }
    CHECK(ps.workers().rank() == (world.rank() == 0 ? 0 : world.rank() - 1));
    pardl::DistributedSampler sampler{12, ps.workers(), {.seed = 7}};
    for (auto const index : sampler.indices(0)) {
      std::lock_guard const lock(mutex);
      ++count[static_cast<std::size_t>(index)];
    }
    ps.finish();
  });
  CHECK(count == std::vector<int>(12, 1));
}
