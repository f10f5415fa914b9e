// SPDX-License-Identifier: MIT
// What cannot be is refused on every rank; who fails is named on every rank. Ranks are threads here; processes that are
// killed stand in parameter_server_faults.test.cpp.
#include <torch/torch.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <latch>
#include <stdexcept>
#include <string>
#include <vector>

#include "parameter_server_support.hpp"
#include "pardl/train/detail/flat_row.hpp"
#include "pardl/train/detail/ps_link.hpp"
#include "pardl/train/parameter_server.hpp"
#include "support/ranks.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

using namespace ps_test;
using pardl::ParameterServer;
using pardl::ProcessGroup;
using pardl::testing::with_ranks;
using Options = pardl::ParameterServerOptions;

namespace {

/// Every rank must refuse to begin, with ConfigError and all of `parts`.
void check_refused(int ranks, std::function<void(ProcessGroup const&)> const& make,
                   std::vector<std::string> const& parts) {
  with_ranks(ranks, [&](ProcessGroup world) {
    std::string text;
    try {
      make(world);
    } catch (pardl::ConfigError const& error) {
      text = error.what();
    }
    CHECK_MESSAGE(
        contains(text, "[parameter_server] rank " + std::to_string(world.rank()) + "/" + std::to_string(ranks) + ": "),
        text);
    for (auto const& part : parts) CHECK_MESSAGE(contains(text, part), text);
  });
}

auto with_options(std::function<Options(int)> const& options) {
  return [options](ProcessGroup const& world) {
    Mlp net(1);
    ParameterServer ps{net, world, sgd, options(world.rank())};
  };
}

/// Hears of losses.
struct Listener {
  std::vector<pardl::WorkerLostEvent> lost{};
  std::vector<pardl::ClockEvent> clocks{};
  void on_worker_lost(pardl::WorkerLostEvent const& event) { lost.push_back(event); }
  void on_clock(pardl::ClockEvent const& event) { clocks.push_back(event); }
};

}  // namespace

TEST_CASE("what cannot work is refused by all ranks, and says what would") {
  check_refused(1, with_options([](int) { return Options{}; }),
                {"a parameter server needs two ranks or more", "--nproc 2"});
  check_refused(2, with_options([](int rank) { return Options{.staleness = rank}; }),
                {"the options differ", "staleness 0", "staleness 1"});
  check_refused(2, with_options([](int) { return Options{.staleness = -1}; }), {"staleness is -1"});
  check_refused(2, with_options([](int) { return Options{.server = 2}; }), {"the server is rank 2"});
  check_refused(2, with_options([](int rank) {
                  return Options{.on_rank_failure = rank == 0 ? pardl::keep_going : pardl::stop_all};
                }),
                {"on_rank_failure keep_going", "on_rank_failure stop_all"});
  check_refused(2,
                [](ProcessGroup const& world) {
                  torch::nn::Linear net(3, 2 + world.rank());
                  ParameterServer ps{net, world, sgd};
                },
                {"parameter 'weight' is Float [2, 3]", "but Float [3, 3]"});
  check_refused(2,
                [](ProcessGroup const& world) {
                  Mlp net(1);
                  for (auto& parameter : net->parameters()) parameter.set_requires_grad(false);
                  ParameterServer ps{net, world, sgd};
                },
                {"nothing to train"});
  check_refused(2,
                [](ProcessGroup const& world) {
                  torch::nn::Embedding net(torch::nn::EmbeddingOptions(4, 2).sparse(world.rank() == 1));
                  ParameterServer ps{net, world, sgd};
                },
                {"'weight' gets sparse gradients"});
}

TEST_CASE("each side's calls are its own, and each training has one end") {
  with_ranks(2, [](ProcessGroup world) {
    Mlp net(1);
    ParameterServer ps{net, world, sgd};
    if (ps.is_server()) {
      CHECK(contains(message_of([&] { ps.step(); }), "rank 0/2: step() is for workers; rank 0 is the server"));
      CHECK(contains(message_of([&] { ps.finish(); }), "finish() is for workers"));
      CHECK(ps.version() == 0);
      ps.serve();
      CHECK(contains(message_of([&] { ps.serve(); }), "serve() was called before"));
      return;
    }
    CHECK(contains(message_of([&] { ps.serve(); }), "rank 1/2: serve() is for the server; rank 0 is the server"));
    CHECK(contains(message_of([&] { (void)ps.optimizer(); }), "optimizer() is for the server"));
    ps.finish();
    CHECK(contains(message_of([&] { ps.step(); }), "step() after finish()"));
    CHECK(contains(message_of([&] { ps.finish(); }), "finish() after finish()"));
  });
}

TEST_CASE("a sparse gradient is refused before anything is sent") {
  with_ranks(2, [](ProcessGroup world) {
    Mlp net(1);
    ParameterServer ps{net, world, sgd};
    if (ps.is_server()) return ps.serve();
    net->a->weight.mutable_grad() = torch::zeros_like(net->a->weight).to_sparse();
    CHECK(contains(message_of([&] { ps.step(); }), "parameter number 0 has a sparse gradient"));
    net->a->weight.mutable_grad() = torch::Tensor();
    ps.step();
    ps.finish();
  });
}

TEST_CASE("keep_going: a worker that is lost is named, what it gave counts, and the others have the bits of that") {
  for (std::string const backend : {"gloo", "shm"}) {
    CAPTURE(backend);
    Listener listener;
    std::vector<std::vector<torch::Tensor>> ends(4);
    with_ranks(4,
               [&](ProcessGroup world) {
                 Mlp net(1);
                 ParameterServer ps{net, world, sgd, {.on_rank_failure = pardl::keep_going}};
                 if (ps.is_server()) {
                   ps.serve(listener);
                 } else {
                   for (int c = 0; c < 5; ++c) {
                     // The loss: this worker's part ends without finish(), as its process would.
                     if (world.rank() == 2 && c == 3) return;
                     backward(net, ps.workers().rank(), c);
                     ps.step();
                   }
                   ps.finish();
                 }
                 ends[static_cast<std::size_t>(world.rank())] = copies(net->parameters());
               },
               {.backend = backend});
    REQUIRE(listener.lost.size() == 1);
    auto const& loss = listener.lost[0];
    CHECK(loss.rank == 2);
    CHECK(loss.given == 3);
    CHECK(loss.left == 2);
    CHECK_MESSAGE(contains(loss.sentence, "[parameter_server] rank 0/4: worker rank 2 was lost after 3 steps, "),
                  loss.sentence);
    CHECK_MESSAGE(contains(loss.sentence, "; training goes on with 2 workers."), loss.sentence);
    REQUIRE(listener.clocks.size() == 5);
    CHECK(listener.clocks[2].workers == 3);
    CHECK(listener.clocks[3].workers == 2);
    auto const history = replay(Mlp(1), synchronous({5, 3, 5}));
    for (int const rank : {0, 1, 3}) CHECK(same_bits(ends[static_cast<std::size_t>(rank)], history.back()));
  }
}

TEST_CASE("keep_going: gradients of a worker that had run ahead count at their clocks though it is lost") {
  std::latch lost(1);
  struct {
    std::latch& lost;
    void on_worker_lost(pardl::WorkerLostEvent const& event) {
      CHECK(event.given == 2);
      lost.count_down();
    }
  } listener{lost};
  Versions versions(2);
  std::vector<torch::Tensor> end;
  with_ranks(3,
             [&](ProcessGroup world) {
               Mlp net(1);
               ParameterServer ps{net, world, sgd, {.staleness = 2, .on_rank_failure = pardl::keep_going}};
               if (ps.is_server()) {
                 ps.serve(listener);
                 end = copies(net->parameters());
                 return;
               }
               if (world.rank() == 2) lost.wait();
               auto const worker = static_cast<std::size_t>(ps.workers().rank());
               for (int c = 0; c < (world.rank() == 1 ? 2 : 4); ++c) {
                 versions[worker].push_back(ps.version());
                 backward(net, ps.workers().rank(), c);
                 ps.step();
               }
               if (world.rank() == 2) ps.finish();
             },
             {.backend = "shm"});
  CHECK(versions[0] == std::vector<std::int64_t>{0, 0});
  CHECK(same_bits(end, replay(Mlp(1), versions).back()));
}

TEST_CASE("stop_all: a worker that is lost ends all, and every rank says which and why") {
  for (std::string const backend : {"gloo", "shm"}) {
    CAPTURE(backend);
    std::vector<std::string> said(3);
    with_ranks(3,
               [&](ProcessGroup world) {
                 Mlp net(1);
                 auto const part = [&] {
                   ParameterServer ps{net, world, sgd};
                   if (ps.is_server()) return ps.serve();
                   for (int c = 0; c < 5; ++c) {
                     if (world.rank() == 1 && c == 2) throw std::runtime_error("no more memory");
                     backward(net, ps.workers().rank(), c);
                     ps.step();
                   }
                   ps.finish();
                 };
                 said[static_cast<std::size_t>(world.rank())] = message_of(part);
               },
               {.backend = backend});
    CHECK(said[1] == "no more memory");
    CHECK_MESSAGE(contains(said[0], "[parameter_server] rank 0/3: worker rank 1 was lost after 2 steps, "), said[0]);
    CHECK_MESSAGE(contains(said[0], "an exception ended it"), said[0]);
    CHECK_MESSAGE(contains(said[2], "[parameter_server] rank 2/3: the server, rank 0, was lost after "), said[2]);
    CHECK_MESSAGE(contains(said[2], "worker rank 1 was lost"), said[2]);
  }
}

TEST_CASE("a buffer whose shape has changed is refused where it is, and the others hear of it") {
  std::string const refusal =
      "[train] tensor number 0 of a row has the shape [1] now, and had [8] when the row was made; keep the shapes of "
      "parameters and buffers while training.";
  for (int const guilty : {0, 1}) {
    CAPTURE(guilty);
    std::vector<std::string> said(3);
    with_ranks(3,
               [&](ProcessGroup world) {
                 WithBatchNorm net(1);
                 auto const shrink = [&] { net->norm->running_mean.set_data(torch::zeros({1})); };
                 struct Observer {
                   std::function<void()> change;
                   void on_clock(pardl::ClockEvent const& event) {
                     if (event.clock == 2) change();
                   }
                 } observer{guilty == 0 ? std::function<void()>(shrink) : [] {}};
                 auto const part = [&] {
                   ParameterServer ps{net, world, sgd};
                   if (ps.is_server()) return ps.serve(observer);
                   for (int c = 0; c < 5; ++c) {
                     backward(net, ps.workers().rank(), c);
                     if (world.rank() == guilty && c == 2) shrink();
                     ps.step();
                   }
                   ps.finish();
                 };
                 said[static_cast<std::size_t>(world.rank())] = message_of(part);
               },
               {.backend = "shm"});
    CHECK(said[static_cast<std::size_t>(guilty)] == refusal);
    if (guilty == 1)
      CHECK_MESSAGE(contains(said[0], "[parameter_server] rank 0/3: worker rank 1 was lost after 2 steps, "), said[0]);
    else
      CHECK_MESSAGE((contains(said[1], "the server, rank 0, was lost after 2 steps of this worker") &&
                     contains(said[1], "tensor number 0 of a row has the shape [1] now")),
                    said[1]);
    CHECK_MESSAGE(contains(said[2], "[parameter_server] rank 2/3: the server, rank 0, was lost after "), said[2]);
  }
}

TEST_CASE("a row takes tensors as they were when it was made, and changes nothing otherwise") {
  std::vector<torch::Tensor> const tensors{torch::ones({2, 3}), torch::ones({4}, torch::kInt64)};
  pardl::detail::RowLayout const layout(tensors);
  auto const row = torch::zeros({layout.end()}, torch::kUInt8);
  layout.pack({tensors[0] * 2, torch::Tensor()}, row);
  auto const before = row.clone();
  auto const refused = [&](std::vector<torch::Tensor> const& wrong, std::string const& what) {
    CHECK_THROWS_AS(layout.pack(wrong, row), pardl::ConfigError);
    CHECK_THROWS_AS(layout.unpack(row, wrong), pardl::ConfigError);
    auto const text = message_of([&] { layout.pack(wrong, row); });
    CHECK_MESSAGE(contains(text, what), text);
    CHECK(torch::equal(row, before));
  };
  refused({tensors[0]}, "a row was made for 2 tensors, and now there are 1;");
  refused({tensors[0], tensors[1], tensors[1]}, "a row was made for 2 tensors, and now there are 3;");
  refused({tensors[0], torch::ones({4, 1})}, "tensor number 1 of a row has the shape [4, 1] now, and had [4] when");
  refused({torch::ones({3, 2}), tensors[1]}, "tensor number 0 of a row has the shape [3, 2] now, and had [2, 3] when");
  CHECK(torch::equal(tensors[0], torch::ones({2, 3})));
  layout.unpack(row, tensors);
  CHECK(torch::equal(tensors[0], torch::full({2, 3}, 2.F)));
  CHECK(torch::equal(tensors[1], torch::zeros({4}, torch::kInt64)));
}

TEST_CASE("the last worker's loss is an error even where training may go on") {
  with_ranks(3, [](ProcessGroup world) {
    Mlp net(1);
    Listener listener;
    ParameterServer ps{net, world, sgd, {.on_rank_failure = pardl::keep_going}};
    if (!ps.is_server()) return;
    auto const text = message_of([&] { ps.serve(listener); });
    CHECK_MESSAGE(contains(text, "it was the last one"), text);
    CHECK(listener.lost.size() == 1);
  });
}

TEST_CASE("a worker that is lost when all others have finished well is no error") {
  with_ranks(3,
             [](ProcessGroup world) {
               Mlp net(1);
               Listener listener;
               ParameterServer ps{net, world, sgd, {.on_rank_failure = pardl::keep_going}};
               if (ps.is_server()) {
                 CHECK(message_of([&] { ps.serve(listener); }) == "");
                 CHECK(listener.lost.size() == 1);
                 if (listener.lost.empty()) return;
                 CHECK(listener.lost[0].left == 0);
                 CHECK_MESSAGE(contains(listener.lost[0].sentence, "; the others have finished."),
                               listener.lost[0].sentence);
                 return;
               }
               // The second step of rank 2 ends only when the server knows that rank 1 has finished.
               for (int c = 0; c < (world.rank() == 1 ? 1 : 2); ++c) {
                 backward(net, world.rank(), c);
                 ps.step();
               }
               if (world.rank() == 1) ps.finish();
             },
             {.backend = "shm"});
}

TEST_CASE("a server that fails is named by every worker, with its own words") {
  for (std::string const backend : {"gloo", "shm"}) {
    CAPTURE(backend);
    with_ranks(3,
               [](ProcessGroup world) {
                 Mlp net(1);
                 ParameterServer ps{net, world, sgd, {.staleness = 1, .on_rank_failure = pardl::keep_going}};
                 struct {
                   void on_clock(pardl::ClockEvent const& event) {
                     if (event.clock == 2) throw std::runtime_error("the disk is full");
                   }
                 } fails;
                 auto const text = message_of([&] {
                   if (ps.is_server()) return ps.serve(fails);
                   for (int c = 0; c < 9; ++c) {
                     backward(net, ps.workers().rank(), c);
                     ps.step();
                   }
                   ps.finish();
                 });
                 if (ps.is_server())
                   CHECK(text == "the disk is full");
                 else
                   CHECK_MESSAGE(
                       (contains(text, "the server, rank 0, was lost after ") && contains(text, "the disk is full")),
                       text);
               },
               {.backend = backend});
  }
}

TEST_CASE("a worker may wait longer than the timeout, as long as the server lives") {
  for (std::string const backend : {"gloo", "shm"}) {
    CAPTURE(backend);
    with_ranks(3,
               [](ProcessGroup world) {
                 constexpr std::chrono::milliseconds timeout{1'000};
                 world.set_timeout(timeout);
                 Mlp net(1);
                 ParameterServer ps{net, world, sgd};
                 if (ps.is_server()) return ps.serve();
                 if (world.rank() == 1) {
                   auto const until = std::chrono::steady_clock::now() + 3 * timeout;
                   for (int c = 0; std::chrono::steady_clock::now() < until; ++c) {
                     backward(net, 0, c % 8);
                     ps.step();
                   }
                 }
                 CHECK(message_of([&] { ps.finish(); }) == "");  // rank 2 waits from the beginning
               },
               {.backend = backend});
  }
}

TEST_CASE("a message that is not due is an error and not taken for another") {
  using namespace pardl::detail::ps;
  with_ranks(
      2,
      [](ProcessGroup world) {
        Link link(world);
        if (world.rank() == 1) {
          link.send({Kind::push, 4, 0, 64});
          link.send({Kind::push, 5, 0, 65});
          link.send({Kind::answer, 6, 0, 64});
          link.send({static_cast<Kind>(77), 7, 0, 0});
          link.send({Kind::push, 8, -1, 64});
          link.send({Kind::push, 9, 0, 64});
          return;
        }
        auto const next = [&](std::int64_t clock) {
          return message_of([&] { (void)link.receive(clock, {{Kind::push, 64}, {Kind::leave, 0}}); });
        };
        CHECK(contains(next(3), "a message of kind 1, clock 4, version 0 and 64 bytes came where clock 3 was due"));
        CHECK(contains(next(5), "65 bytes"));
        CHECK(contains(next(6), "kind 5"));
        CHECK(contains(next(7), "kind 77"));
        CHECK(contains(next(8), "version -1"));
        CHECK(next(9) == "");
      },
      {.backend = "shm"});
}
