// SPDX-License-Identifier: MIT
// What shared memory promises beyond what every backend does (collectives.test.cpp): the order of sums, any size and
// dtype, many ranks, messages in any order, sparse ones. Who moves operations on: shm_progress.test.cpp; errors:
// shm_errors.test.cpp.
#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <vector>

#include "comm/shm_support.hpp"
#include "pardl/comm/backend/shm.hpp"
#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "support/sentences.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using pardl::ProcessGroup;
using pardl::ReduceOp;
using pardl::testing::has;
using shm_test::bare, shm_test::over_shm;
using Tensors = std::vector<torch::Tensor>;

/// Rank r's numbers, the same in every process and thread.
torch::Tensor drawn(int r, std::int64_t count, torch::Dtype dtype = torch::kFloat32) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(100 + r));
  return torch::randn({count}, generator).to(dtype);
}

/// Added in the order of ranks, in float, rounded once.
torch::Tensor sum_in_order(int n, std::int64_t count, torch::Dtype dtype = torch::kFloat32) {
  auto const wide = dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  auto sum = drawn(0, count, dtype).to(wide);
  for (int r = 1; r < n; ++r) sum = sum + drawn(r, count, dtype).to(wide);
  return sum.to(dtype);
}

}  // namespace

TEST_CASE("sums run in the order of ranks, whatever the size, the slots and the layout, bit for bit on all ranks") {
  for (int const n : {2, 3, 5})
    for (std::size_t const slot : {std::size_t{4} << 10, std::size_t{256} << 10})
      for (std::size_t const read_all : {std::size_t{0}, std::size_t{1} << 20})
        bare(n, {.slot = slot, .read_all = read_all}, [n](c10d::Backend& backend, int rank) {
          for (auto const dtype : {torch::kFloat32, torch::kFloat64, torch::kFloat16, torch::kBFloat16})
            for (std::int64_t const count : {1, 7, 511, 513, 1000, 4096, 100'003}) {
              Tensors t{drawn(rank, count, dtype)};
              backend.allreduce(t, {})->wait();
              CHECK(torch::equal(t[0], sum_in_order(n, count, dtype)));
            }
          // Cut into other pieces, the same bits.
          auto const whole = drawn(rank, 30'000);
          auto const pieces = whole.split_with_sizes({1, 9'999, 12'345, 7'655});
          Tensors many(pieces.begin(), pieces.end());
          backend.allreduce_coalesced(many, {})->wait();
          CHECK(torch::equal(whole, sum_in_order(n, 30'000)));
        });
}

// Between two looks of this rank the others may come, read and go: its slot is not free before it has read it itself.
TEST_CASE("a rank's own row stays in its slot until the rank itself has read it") {
  bare(2, {.slot = 4 << 10, .read_all = 4 << 20}, [](c10d::Backend& backend, int rank) {
    auto const own = drawn(rank, 50'000);
    auto const sum = sum_in_order(2, 50'000);
    for (int i = 0; i < 2'000; ++i) {
      Tensors t{own.clone()};
      backend.allreduce(t, {})->wait();
      if (!torch::equal(t[0], sum)) {
        CHECK_MESSAGE(false, "rank " << rank << ", all_reduce " << i);
        return;
      }
    }
  });
}

TEST_CASE("every dtype that has an operation is reduced, and the others are refused in a sentence") {
  over_shm(3, [](ProcessGroup world) {
    auto const reduced = [&](torch::Tensor tensor, c10d::ReduceOp::RedOpType op) {
      Tensors t{tensor};
      c10d::AllreduceOptions options;
      options.reduceOp = op;
      world.c10d()->allreduce(t, options)->wait();
      return tensor;
    };
    auto const r = world.rank();
    for (auto const dtype : {torch::kInt8, torch::kUInt8, torch::kInt16, torch::kInt32, torch::kInt64, torch::kUInt16,
                             torch::kUInt32, torch::kUInt64}) {
      CHECK(torch::equal(reduced(torch::full({70}, r + 2, dtype), c10d::ReduceOp::PRODUCT).to(torch::kInt64),
                         torch::full({70}, 24, torch::kInt64)));
      CHECK(torch::equal(reduced(torch::full({70}, r + 1, dtype), c10d::ReduceOp::BXOR).to(torch::kInt64),
                         torch::full({70}, 0, torch::kInt64)));
    }
    auto const least = reduced(torch::full({5}, r - 1, torch::kInt8), c10d::ReduceOp::MIN);
    CHECK(torch::equal(least, torch::full({5}, -1, torch::kInt8)));
    auto const truth = torch::tensor({r == 0, false, true}, torch::kBool);
    CHECK(torch::equal(reduced(truth.clone(), c10d::ReduceOp::SUM), torch::tensor({true, false, true}, torch::kBool)));
    CHECK(torch::equal(reduced(truth.clone(), c10d::ReduceOp::MIN), torch::tensor({false, false, true}, torch::kBool)));
    for (auto const dtype : {torch::kComplexFloat, torch::kComplexDouble}) {
      auto const z = torch::complex(torch::full({9}, r + 1.0, torch::kDouble), torch::ones({9}, torch::kDouble));
      auto const sum = torch::complex(torch::full({9}, 6.0, torch::kDouble), torch::full({9}, 3.0, torch::kDouble));
      CHECK(torch::equal(reduced(z.to(dtype).clone(), c10d::ReduceOp::SUM), sum.to(dtype)));
      CHECK(torch::allclose(reduced(z.to(dtype).clone(), c10d::ReduceOp::AVG), (sum / 3).to(dtype)));
      CHECK_THROWS_WITH_AS(reduced(z.to(dtype).clone(), c10d::ReduceOp::MAX),
                           doctest::Contains("have no such operation"), pardl::ConfigError);
    }
    CHECK_THROWS_AS(reduced(torch::ones({3}, torch::kInt32), c10d::ReduceOp::AVG), pardl::ConfigError);
    // A NaN wins, as in torch.maximum.
    auto const nan =
        reduced(torch::tensor({r == 1 ? std::nanf("") : 1.0F, static_cast<float>(r)}), c10d::ReduceOp::MAX);
    CHECK(nan[0].isnan().item<bool>());
    CHECK(nan[1].item<float>() == 2);
  });
}

TEST_CASE("tensors with gaps, on any layout, and lists of uneven size are taken as they are") {
  over_shm(3, [](ProcessGroup world) {
    auto const r = world.rank();
    auto wide = torch::zeros({40, 50});
    Tensors t{wide.slice(1, 0, 50, 2)};
    t[0].fill_(r + 1);
    world.c10d()->allreduce(t)->wait();
    CHECK(wide.sum().item<float>() == 6 * 40 * 25);
    Tensors images{torch::full({2, 3, 4, 4}, r + 1.0).contiguous(torch::MemoryFormat::ChannelsLast)};
    world.c10d()->allreduce(images)->wait();
    CHECK(torch::equal(images[0], torch::full({2, 3, 4, 4}, 6.0)));
    std::vector<Tensors> out{{torch::zeros({1}), torch::zeros({1'000'000}), torch::zeros({3})}};
    Tensors in{torch::full(out[0][static_cast<std::size_t>(r)].sizes(), r + 1.0)};
    world.c10d()->allgather(out, in)->wait();
    for (int q = 0; q < 3; ++q)
      CHECK(torch::equal(out[0][static_cast<std::size_t>(q)],
                         torch::full_like(out[0][static_cast<std::size_t>(q)], q + 1.0)));
  });
}

TEST_CASE("what is one tensor for all ranks may have gaps too, and views that conjugate or negate are what they show") {
  over_shm(3, [](ProcessGroup world) {
    auto const r = world.rank();
    auto const backend = world.c10d()->getDefaultBackend();
    auto& shm = *backend;
    auto const gaps = [](std::int64_t count) { return torch::zeros({count, 3}).select(1, 1); };
    auto all = gaps(12), mine = gaps(4);
    mine.copy_(torch::arange(4) + 10 * r);
    shm._allgather_base(all, mine, {})->wait();
    for (int q = 0; q < 3; ++q)
      CHECK(torch::equal(all.narrow(0, 4 * q, 4), torch::arange(4).to(torch::kFloat) + 10 * q));
    auto share = gaps(4);
    shm._reduce_scatter_base(share, all, {})->wait();
    CHECK(torch::equal(share, 3 * (torch::arange(4).to(torch::kFloat) + 10 * r)));
    auto dealt = gaps(12);
    std::vector<std::int64_t> even;
    shm.alltoall_base(dealt, all, even, even, {})->wait();
    for (int q = 0; q < 3; ++q) CHECK(torch::equal(dealt.narrow(0, 4 * q, 4), all.narrow(0, 4 * r, 4)));
    std::vector<Tensors> lists{{gaps(4), torch::zeros({2, 2}), gaps(4)}};
    Tensors square{torch::arange(4.0).view({2, 2}).t() + r};
    shm.allgather(lists, square, {})->wait();
    for (int q = 0; q < 3; ++q)
      CHECK(torch::equal(lists[0][static_cast<std::size_t>(q)].flatten(), torch::tensor({0.0F, 2.0F, 1.0F, 3.0F}) + q));

    auto const z = torch::complex(torch::ones({5}), torch::full({5}, r + 1.0));
    Tensors conjugated{z.conj()}, negated{torch::_neg_view(torch::full({5}, r + 1.0))};
    shm.allreduce(conjugated, {})->wait();
    shm.allreduce(negated, {})->wait();
    Tensors largest{torch::_neg_view(torch::full({5}, r + 1.0))};
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::MAX;
    shm.allreduce(largest, options)->wait();
    CHECK(torch::equal(largest[0].resolve_neg(), torch::full({5}, -1.0F)));
    CHECK(torch::equal(torch::imag(conjugated[0].resolve_conj()), torch::full({5}, -6.0F)));
    CHECK(torch::equal(torch::imag(z), torch::full({5}, 6.0F)));
    CHECK(torch::equal(negated[0].resolve_neg(), torch::full({5}, -6.0F)));
  });
}

TEST_CASE("an average of half is divided before it is rounded: once, and without overflow on the way") {
  c10d::AllreduceOptions average;
  average.reduceOp = c10d::ReduceOp(c10d::ReduceOp::AVG);
  c10d::ReduceScatterOptions share;
  share.reduceOp = average.reduceOp;
  for (std::size_t const read_all : {std::size_t{0}, std::size_t{1} << 20})
    bare(3, {.slot = 4 << 10, .read_all = read_all}, [&](c10d::Backend& backend, int rank) {
      for (auto const dtype : {torch::kFloat16, torch::kBFloat16, torch::kFloat32}) {
        auto wide = drawn(0, 9'999, dtype).to(torch::kFloat32);
        for (int r = 1; r < 3; ++r) wide = wide + drawn(r, 9'999, dtype).to(torch::kFloat32);
        auto const mean = (wide / 3).to(dtype);
        Tensors t{drawn(rank, 9'999, dtype)};
        backend.allreduce(t, average)->wait();
        CHECK(torch::equal(t[0], mean));
        auto in = drawn(rank, 9'999, dtype), out = torch::empty({3'333}, dtype);
        backend._reduce_scatter_base(out, in, share)->wait();
        CHECK(torch::equal(out, mean.narrow(0, rank * 3'333, 3'333)));
      }
      Tensors large{torch::full({100}, 40'000, torch::kFloat16)};
      backend.allreduce(large, average)->wait();
      CHECK(torch::equal(large[0], torch::full({100}, 40'000, torch::kFloat16)));
      Tensors complex{torch::full({10}, c10::complex<double>(rank, 3), torch::kComplexDouble)};
      backend.allreduce(complex, average)->wait();
      CHECK(torch::equal(complex[0], torch::full({10}, c10::complex<double>(1, 3), torch::kComplexDouble)));
    });
}

// Receivers of one root do not look at each other, for as many operations as they like.
TEST_CASE("after many operations with one root any other may come") {
  for (int const n : {3, 4})
    over_shm(n, [n](ProcessGroup world) {
      auto const copies = [&](int count, int root) {
        for (int i = 0; i < count; ++i) {
          auto t = torch::full({1000}, world.rank() + i + 0.0);
          pardl::broadcast(world, t, root).wait();
          CHECK(t[0].item<double>() == root + i);
        }
      };
      for (int const root : {0, 2, 1}) {
        copies(161, root);
        auto sum = torch::ones({1});
        pardl::reduce(world, sum, root).wait();
        if (world.rank() == root) CHECK(sum.item<double>() == n);
        copies(70, root);
        copies(1, (root + 1) % n);
        pardl::barrier(world);
        copies(90, root);
        std::vector<torch::Tensor> all(static_cast<std::size_t>(world.rank() == root ? n : 0));
        for (auto& t : all) t = torch::zeros({1});
        pardl::gather(world, all, torch::full({1}, world.rank() + 1.0), root).wait();
        for (std::size_t r = 0; r < all.size(); ++r) CHECK(all[r].item<double>() == static_cast<double>(r + 1));
      }
    });
}

TEST_CASE("32 ranks on few cores, every kind of collective, messages, subgroups") {
  over_shm(32, [](ProcessGroup world) {
    auto const r = world.rank();
    for (std::int64_t const count : {1, 1000, 200'000}) {
      auto t = torch::full({count}, r + 1.0);
      pardl::all_reduce(world, t).wait();
      CHECK(torch::equal(t, torch::full({count}, 528.0)));
    }
    auto all = torch::zeros({32 * 3});
    pardl::all_gather_into(world, all, torch::full({3}, static_cast<float>(r))).wait();
    CHECK(all[3 * 31].item<float>() == 31);
    auto out = torch::zeros({32 * 5});
    pardl::all_to_all_single(world, out, torch::arange(32 * 5) + 1000.0F * static_cast<float>(r)).wait();
    CHECK(out[5 * 7 + 1].item<float>() == 7000 + 5 * static_cast<float>(r) + 1);
    auto sum = torch::ones({1000});
    pardl::reduce(world, sum, 31).wait();
    if (r == 31) CHECK(torch::equal(sum, torch::full({1000}, 32.0)));
    auto copied = torch::full({300'000}, static_cast<float>(r));
    pardl::broadcast(world, copied, 17).wait();
    CHECK(torch::equal(copied, torch::full({300'000}, 17.0)));
    auto share = torch::zeros({5});
    pardl::reduce_scatter_into(world, share, torch::arange(32 * 5).to(torch::kFloat32)).wait();
    CHECK(share[1].item<float>() == 32 * (5 * static_cast<float>(r) + 1));
    Tensors pieces;
    for (int q = 0; q < 32; ++q) pieces.push_back(torch::full({4}, static_cast<float>(q) + 0.5F));
    auto mine = torch::zeros({4});
    pardl::scatter(world, mine, r == 3 ? pieces : Tensors{}, 3).wait();
    CHECK(mine[3].item<float>() == static_cast<float>(r) + 0.5F);
    for (auto& piece : pieces) piece.zero_();
    pardl::gather(world, r == 5 ? pieces : Tensors{}, mine, 5).wait();
    if (r == 5) CHECK(pieces[30][0].item<float>() == 30.5F);
    auto sent = pardl::send(world, mine, (r + 1) % 32);
    auto received = torch::zeros({4});
    pardl::recv(world, received, (r + 31) % 32).wait();
    sent.wait();
    CHECK(received[0].item<float>() == static_cast<float>((r + 31) % 32) + 0.5F);
    auto const part = world.split(r % 2);
    REQUIRE(part);
    CHECK(part->backend() == "shm");
    CHECK(pardl::all_sum(*part, r) == (r % 2 == 0 ? 240 : 256));
    pardl::barrier(world);
  });
}

TEST_CASE("messages larger than a channel, all sent first, in any order of tags, from anybody") {
  over_shm(3, [](ProcessGroup world) {
    auto const me = world.rank(), n = world.size();
    std::vector<pardl::Work> sends;
    for (int to = 0; to < n; ++to)
      for (int const tag : {1, 2, 3})
        if (to != me) sends.push_back(pardl::send(world, torch::full({tag * 500'001}, me * 10.0 + tag), to, tag));
    for (int const tag : {3, 1, 2})
      for (int from = 0; from < n; ++from)
        if (from != me) {
          auto t = torch::zeros({tag * 500'001});
          pardl::recv(world, t, from, tag).wait();
          CHECK(torch::equal(t, torch::full_like(t, from * 10.0 + tag)));
        }
    for (auto& send : sends) send.wait();
    auto const done = pardl::send(world, torch::full({3}, me, torch::kInt64), (me + 1) % n, 9);
    auto any = torch::zeros({3}, torch::kInt64);
    auto const from = pardl::recv_any(world, any, 9);
    CHECK(from == (me + n - 1) % n);
    CHECK(any[0].item<std::int64_t>() == from);
    auto const early = pardl::send(world, torch::full({1}, me + 0.0), (me + 1) % n, 11);
    auto const later = pardl::send(world, torch::zeros({1}), (me + 1) % n, 12);
    auto one = torch::zeros({1});
    pardl::recv(world, one, (me + n - 1) % n, 12).wait();  // the first has come too, and nobody has asked for it
    CHECK(pardl::recv_any(world, one, 11) == (me + n - 1) % n);
    CHECK(one[0].item<float>() == (me + n - 1) % n);
    auto nothing = torch::zeros({0});
    auto const empty = pardl::send(world, nothing, (me + 1) % n, 4);
    pardl::recv(world, nothing, (me + n - 1) % n, 4).wait();
    pardl::barrier(world);
  });
}

TEST_CASE("operations between startCoalescing and endCoalescing are waited for as one") {
  bare(2, {}, [](c10d::Backend& backend, int rank) {
    Tensors a{torch::full({4}, rank + 1.0)}, b{torch::zeros({4})};
    backend.startCoalescing();
    auto const send = backend.send(a, 1 - rank, 0);
    auto const recv = backend.recv(b, 1 - rank, 0);
    auto const both = backend.endCoalescing();
    both->wait();
    CHECK(both->isCompleted());
    CHECK(b[0][0].item<float>() == 2 - rank);
    Tensors outs{torch::zeros({2}), torch::zeros({4})}, ins{torch::full({1}, rank + 0.0), torch::full({2}, rank + 5.0)};
    backend.allgather_into_tensor_coalesced(outs, ins, {})->wait();
    CHECK(torch::equal(outs[1], torch::tensor({5.0F, 5.0F, 6.0F, 6.0F})));
    std::vector<Tensors> lists(2);
    for (auto& list : lists) list = {torch::zeros({1}), torch::zeros({2})};
    backend.allgather_coalesced(lists, ins, {})->wait();
    for (std::size_t r = 0; r < 2; ++r) {
      CHECK(lists[r][0][0].item<float>() == static_cast<float>(r));
      CHECK(lists[r][1][1].item<float>() == static_cast<float>(r) + 5);
    }
    Tensors shares{torch::zeros({1}), torch::zeros({2})},
        wholes{torch::tensor({1.0F, 2.0F}), torch::tensor({1.0F, 2.0F, 3.0F, 4.0F}) * (rank + 1)};
    backend.reduce_scatter_tensor_coalesced(shares, wholes, {})->wait();
    CHECK(torch::equal(shares[0], torch::full({1}, rank == 0 ? 2.0F : 4.0F)));
    CHECK(torch::equal(shares[1], rank == 0 ? torch::tensor({3.0F, 6.0F}) : torch::tensor({9.0F, 12.0F})));
  });
}

TEST_CASE("sparse tensors are summed in the order of ranks") {
  over_shm(3, [](ProcessGroup world) {
    auto const r = world.rank();
    auto const indices = torch::tensor({r, 2 + r % 2}, torch::kInt64).view({1, 2});
    Tensors t{torch::sparse_coo_tensor(indices, torch::full({2, 2}, r + 1.0), {5, 2})};
    world.c10d()->allreduce(t)->wait();
    auto expected = torch::zeros({5, 2});
    for (int q = 0; q < 3; ++q) {
      expected[q] += q + 1.0;
      expected[2 + q % 2] += q + 1.0;
    }
    CHECK(torch::equal(t[0].to_dense(), expected));
    auto const once = [&](double value, torch::Dtype dtype) {
      Tensors one{torch::sparse_coo_tensor(torch::tensor({{1}}), torch::full({1}, value, dtype), {3})};
      world.c10d()->allreduce(one)->wait();
      return one[0].to_dense()[1].item<double>();
    };
    CHECK(once(r == 0 ? 1 : r == 1 ? 1e8 : -1e8, torch::kFloat32) == 0);  // 1 from the other end
    CHECK(once(r == 0 ? 2048 : 1, torch::kFloat16) == 2050);              // 2048 in half
  });
}

TEST_CASE("all ranks may send first and wait for it, however much") {
  over_shm(3, [](ProcessGroup world) {
    auto const me = world.rank(), next = (me + 1) % 3, previous = (me + 2) % 3;
    for (std::int64_t const count : {10, 1'000'000}) {
      pardl::send(world, torch::full({count}, me + 1.0), next, 4).wait();
      pardl::send(world, torch::full({count}, me + 5.0), previous, 5).wait();
      auto from_next = torch::zeros({count}), from_previous = torch::zeros({count});
      pardl::recv(world, from_next, next, 5).wait();
      pardl::recv(world, from_previous, previous, 4).wait();
      CHECK(torch::equal(from_next, torch::full({count}, next + 5.0)));
      CHECK(torch::equal(from_previous, torch::full({count}, previous + 1.0)));
    }
  });
}
