// SPDX-License-Identifier: MIT
// A version of the parameters that somebody still sends is left alone, however many newer ones are made meanwhile. The
// workers speak the server's messages by hand here, since only so can one of them stop in the middle of an answer.
#include <torch/torch.h>

#include <cstdint>
#include <latch>
#include <optional>
#include <utility>
#include <vector>

#include "pardl/comm/process_group.hpp"
#include "pardl/train/detail/ps_link.hpp"
#include "pardl/train/detail/ps_server.hpp"
#include "support/ranks.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

using namespace pardl::detail::ps;
using pardl::ProcessGroup;
using pardl::testing::with_ranks;

namespace {

constexpr std::int64_t elements = 1 << 20;  // 4 MB, and between two ranks lie 256 KB

torch::Tensor parameter_of(std::int64_t version) {
  return torch::arange(elements, torch::kFloat32) + version;  // each value is an integer that a float holds
}

/// A worker that says just what it is told to.
struct Speaker {
  explicit Speaker(ProcessGroup pair) : link(std::move(pair)), shape({parameter_of(0)}, {}), row(shape.row()) {}

  void push() { link.send({Kind::push, clock, 0, shape.push()}, row); }
  /// The head of what is due, however often the server asks for patience.
  Head hear(Kind kind, std::int64_t bytes) {
    for (;;)
      if (auto const head = link.receive(clock, {{kind, bytes}, {Kind::wait, 0}}); head.kind == kind) return head;
  }
  /// The parameters that come after that head.
  torch::Tensor read(Head const& head) {
    auto into = shape.row();
    link.receive_row(into, head.bytes);
    return shape.parameters.tensor(into, 0);
  }
  /// The whole of a step.
  Head step() {
    push();
    auto const head = hear(Kind::answer, shape.answer());
    CHECK(torch::equal(read(head), parameter_of(head.version)));
    ++clock;
    return head;
  }
  void leave() {
    link.send({Kind::leave, clock, 0, 0});
    auto const head = hear(Kind::model, shape.model());
    CHECK(torch::equal(read(head), parameter_of(head.version)));
    link.send({Kind::bye, clock, 0, 0});
  }

  Link link;
  Shape shape;
  torch::Tensor row;
  std::int64_t clock = 0;
};

}  // namespace

TEST_CASE("an answer that is read late is of the version that its head names, though two newer ones were made") {
  std::latch begun(1), outdated(1);
  with_ranks(3,
             [&](ProcessGroup world) {
               std::vector<Link> links;
               std::optional<Speaker> worker;
               for (int rank = 1; rank < 3; ++rank) {
                 bool const server = world.rank() == 0;
                 auto pair = world.split(server || world.rank() == rank ? std::optional(0) : std::nullopt, !server);
                 if (!pair) continue;
                 if (server)
                   links.emplace_back(*std::move(pair));
                 else
                   worker.emplace(*std::move(pair));
               }
               if (world.rank() == 0) {
                 auto const parameter = parameter_of(0);
                 Model const model{.parameters = {parameter}, .buffers = [] { return std::vector<torch::Tensor>(); }};
                 Server server(world, model, {1, 2}, std::move(links), {.staleness = 2});
                 server.serve({.before_step = [](auto const&) {},
                               .step = [&] { torch::Tensor(parameter).add_(1); },
                               .after_step = [](auto const&) {},
                               .lost = [](auto const& event) { FAIL_CHECK(event.sentence); }});
                 CHECK(server.version() == 4);
                 return;
               }
               if (world.rank() == 1) {
                 worker->step();
                 worker->push();
                 auto const head = worker->hear(Kind::answer, worker->shape.answer());
                 CHECK(head.version == 0);
                 begun.count_down();  // the server is sending version 0
                 outdated.wait();
                 CHECK(torch::equal(worker->read(head), parameter_of(0)));
                 ++worker->clock;
               } else {
                 begun.wait();
                 for (int c = 0; c < 3; ++c) worker->step();
                 CHECK(worker->step().version == 2);  // of clock 3: it had to wait for that one
                 outdated.count_down();
               }
               worker->leave();
             },
             {.backend = "shm"});
}
