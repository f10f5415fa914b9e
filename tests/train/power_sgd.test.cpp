// SPDX-License-Identifier: MIT
#include "pardl/train/power_sgd.hpp"

#include <torch/torch.h>

#include <cmath>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "hook_support.hpp"
#include "pardl/train/distributed_data_parallel.hpp"
#include "support/ranks.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

using namespace ddp_test;
using pardl::DistributedDataParallel;
using pardl::ProcessGroup;
using pardl::comm_hooks::PowerSgdOptions;
using pardl::testing::with_ranks;
namespace hooks = pardl::comm_hooks;

namespace {

std::uint64_t seed_of(int rank, int step) { return static_cast<std::uint64_t>(100 + 1000 * step + 50 * rank); }

/// The mean over ranks of gradient i.
torch::Tensor mean_gradient(Heap const& heap, int ranks, int step, std::size_t i) {
  std::vector<torch::Tensor> parts;
  for (int rank = 0; rank < ranks; ++rank) parts.push_back(heap.random_gradients(seed_of(rank, step))[i]);
  return mean(parts);
}

torch::Tensor orthonormal(torch::Tensor const& matrix) { return std::get<0>(torch::linalg_qr(matrix)); }

}  // namespace

TEST_CASE("seeds are those of NumPy's RandomState") {
  pardl::detail::RandomStateSeeds zero(0), seven(7), largest(4294967295U);
  for (auto const expected : {209652396U, 398764591U, 924231285U, 404868288U, 441365315U})
    CHECK(zero.next() == expected);
  for (auto const expected : {327741615U, 976413892U, 128500249U, 296233462U, 809211459U})
    CHECK(seven.next() == expected);
  for (auto const expected : {419326371U, 479346978U, 697429004U}) CHECK(largest.next() == expected);
  pardl::detail::RandomStateSeeds rejects(33);  // its first 30 bits are 1'067'342'868, which is too many
  CHECK(rejects.next() == 814680455U);
  CHECK(rejects.draws() == 2);
  pardl::detail::RandomStateSeeds again(7);
  again.skip(seven.draws());
  CHECK(again.next() == seven.next());
}

TEST_CASE("columns are made orthonormal, and zeros stay zeros") {
  for (int const rank : {1, 2, 3, 5})
    for (auto const type : {torch::kFloat32, torch::kFloat64}) {
      auto matrices = seeded({3, 9, rank}, 5).to(type);
      pardl::detail::orthogonalize(matrices, 0);
      auto const product = matrices.transpose(1, 2).bmm(matrices);
      CHECK(torch::allclose(product, torch::eye(rank, type).expand({3, rank, rank}), 0, 1e-5));
    }
  auto matrices = seeded({2, 9, 2}, 6);
  matrices[1].zero_();
  pardl::detail::orthogonalize(matrices, 0);
  CHECK(torch::equal(matrices[1], torch::zeros({9, 2})));
  CHECK(matrices[0].norm().item<double>() == doctest::Approx(std::sqrt(2.0)));
  auto damped = torch::full({1, 4, 1}, 2.0);
  pardl::detail::orthogonalize(damped, 1.0);  // norm 4, and 1 more
  CHECK(torch::allclose(damped, torch::full({1, 4, 1}, 0.4)));
}

TEST_CASE("options that cannot be right are refused in one sentence") {
  auto const said = [](PowerSgdOptions options) { return message_of([&] { (void)hooks::power_sgd(options); }); };
  CHECK(contains(said({.matrix_approximation_rank = 0}), "matrix_approximation_rank 0"));
  CHECK(contains(said({.start_powerSGD_iter = 1}), "start_powerSGD_iter 1"));
  CHECK(contains(said({.start_powerSGD_iter = 1, .use_error_feedback = false}), "start_powerSGD_iter 1"));
  CHECK(said({.start_powerSGD_iter = 0, .use_error_feedback = false, .warm_start = false}) == "");
  CHECK(contains(said({.start_powerSGD_iter = -1, .use_error_feedback = false, .warm_start = false}), "iter -1"));
  CHECK(contains(said({.min_compression_rate = 0}), "min_compression_rate"));
  CHECK(contains(said({.orthogonalization_epsilon = -1}), "orthogonalization_epsilon"));
  CHECK(said({}) == "");
}

TEST_CASE("plain all-reduce until start_powerSGD_iter, bit for bit, and factors from then on") {
  Heap const heap({{12, 10}, {12}, {7}});
  with_ranks(2, [&](ProcessGroup world) {  // of two, a sum has one order, wherever a tensor lies in what is sent
    auto hook = hooks::power_sgd({.start_powerSGD_iter = 3});
    auto plain = hooks::all_reduce();
    for (int s = 0; s < 5; ++s) {
      auto const gradients = heap.random_gradients(seed_of(world.rank(), s));
      auto const got = heap.reduced(hook, world, gradients), expected = heap.reduced(plain, world, gradients);
      CHECK(torch::equal(got[0], expected[0]) == (s < 3));
      for (std::size_t i : {1, 2})
        CHECK_MESSAGE(torch::equal(got[i], expected[i]), "small tensors are sent whole, in step " << s);
      CHECK(hook.iter() == s + 1);
    }
  });
}

TEST_CASE("what is worth compressing is n m against (n + m) r min_compression_rate") {
  pardl::detail::PowerSgdMemory const memory({1, 2, true, true, false}), fourth({4, 2, true, true, false});
  CHECK(memory.shape_of(torch::zeros({5, 5})).rank == 1);  // 10 * 2 < 25
  CHECK(memory.shape_of(torch::zeros({4, 4})).rank == 0);  // 8 * 2 = 16
  CHECK(memory.shape_of(torch::zeros({64})).rank == 0);
  CHECK(memory.shape_of(torch::zeros({})).rank == 0);
  CHECK(memory.shape_of(torch::zeros({0, 7})).rank == 0);
  CHECK(memory.shape_of(torch::zeros({8, 4, 3, 3})).columns == 36);
  CHECK(fourth.shape_of(torch::zeros({5, 5})).rank == 0);
  CHECK(fourth.shape_of(torch::zeros({20, 20})).rank == 4);
  pardl::detail::PowerSgdMemory const all({16, 0.01, true, true, false});
  CHECK(all.shape_of(torch::zeros({3, 20})).rank == 3);  // no more than either dimension
  CHECK(all.shape_of(torch::zeros({9})).rank == 1);
}

TEST_CASE("with the rank of the smaller dimension the mean is exact") {
  Heap const heap({{12, 7}, {5, 12}, {7}, {12, 7}, {4, 3, 2, 2}});
  for (bool const batch : {false, true})
    for (int const ranks : {1, 2, 3})
      with_ranks(ranks, [&](ProcessGroup world) {
        auto hook = hooks::power_sgd({.matrix_approximation_rank = 12,
                                      .start_powerSGD_iter = 2,
                                      .min_compression_rate = 0.01,
                                      .batch_tensors_with_same_shape = batch});
        warm_up(heap, hook, world);
        for (int s = 0; s < 3; ++s) {
          auto const got = heap.reduced(hook, world, heap.random_gradients(seed_of(world.rank(), s)));
          for (std::size_t i = 0; i < got.size(); ++i)
            CHECK_MESSAGE(gap(got[i].to(torch::kFloat64), mean_gradient(heap, ranks, s, i)) < 2e-6, "gradient " << i);
        }
      });
}

TEST_CASE("error feedback: what was sent and what is left add up to all gradients") {
  Heap heap({{12, 10}, {6}, {10, 12}, {12, 10}});
  for (bool const batch : {false, true})
    for (int const rank : {1, 3})
      with_ranks(2, [&](ProcessGroup world) {
        auto hook = hooks::power_sgd({.matrix_approximation_rank = rank,
                                      .start_powerSGD_iter = 2,
                                      .min_compression_rate = 1,
                                      .batch_tensors_with_same_shape = batch});
        warm_up(heap, hook, world);
        std::vector<torch::Tensor> wanted, sent;
        for (auto const& shape : heap.shapes) {
          wanted.push_back(torch::zeros(shape, torch::kFloat64));
          sent.push_back(torch::zeros(shape, torch::kFloat64));
        }
        for (int s = 0; s < 8; ++s) {
          auto const gradients = heap.random_gradients(seed_of(world.rank(), s));
          auto const got = heap.reduced(hook, world, gradients);
          for (std::size_t i = 0; i < got.size(); ++i) {
            wanted[i] += gradients[i];
            sent[i] += got[i];
          }
        }
        auto const state = hook.state_dict(heap);
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          auto const* left = state.find("error_dict.p" + std::to_string(i));
          CHECK((left != nullptr) == (i != 1));  // what is sent whole owes nothing
          if (!left) continue;
          CHECK(left->abs().max().item<double>() > 0.1);
          CHECK_MESSAGE(gap(sent[i] + *left, wanted[i]) < 2e-6, "gradient " << i << " rank " << rank);
        }
      });
}

TEST_CASE("what is sent whole owes nothing") {
  Heap const heap({{12, 10}, {64}});
  with_ranks(3, [&](ProcessGroup world) {
    auto hook = hooks::power_sgd({.start_powerSGD_iter = 2});
    warm_up(heap, hook, world);
    for (int s = 0; s < 3; ++s) (void)heap.reduced(hook, world, heap.random_gradients(seed_of(world.rank(), s)));
    auto const got = heap.reduced(hook, world, {torch::zeros({12, 10}), torch::zeros({64})});
    CHECK_FALSE(torch::equal(got[0], torch::zeros({12, 10})));
    CHECK(torch::equal(got[1], torch::zeros({64})));
  });
}

TEST_CASE("without error feedback nothing is carried over") {
  Heap heap({{12, 10}});
  auto hook = hooks::power_sgd({.start_powerSGD_iter = 2, .use_error_feedback = false});
  ProcessGroup const world;
  warm_up(heap, hook, world);
  (void)heap.reduced(hook, world, heap.random_gradients(3));
  auto const state = hook.state_dict(heap);
  CHECK(state.contains("q_memory_dict.p0"));
  CHECK_FALSE(state.contains("error_dict.p0"));
}

TEST_CASE("a step is one power iteration of the mean, from the last step's Q where it is warm") {
  Heap heap({{20, 15}});
  for (bool const warm : {true, false})
    for (int const rank : {1, 2, 3})
      with_ranks(2, [&](ProcessGroup world) {
        auto hook = hooks::power_sgd({.matrix_approximation_rank = rank,
                                      .start_powerSGD_iter = 2,
                                      .min_compression_rate = 1,
                                      .use_error_feedback = false,
                                      .warm_start = warm,
                                      .random_seed = 7});
        warm_up(heap, hook, world);
        torch::Tensor q;
        pardl::detail::RandomStateSeeds seeds(7);
        for (int s = 0; s < 5; ++s) {
          auto const got = heap.reduced(hook, world, heap.random_gradients(seed_of(world.rank(), s)))[0];
          if (s == 0 || !warm)
            q = at::randn({1, 15, rank}, at::make_generator<at::CPUGeneratorImpl>(seeds.next()))[0].to(torch::kFloat64);
          auto const m = mean_gradient(heap, 2, s, 0);
          auto const p = orthonormal(m.mm(orthonormal(q)));
          q = m.t().mm(p);
          CHECK_MESSAGE(gap(got.to(torch::kFloat64), p.mm(q.t())) < 1e-5, "step " << s << " rank " << rank);
          auto const state = hook.state_dict(heap);
          CHECK(state["random_draws"].item<int64_t>() == seeds.draws());
          if (warm) CHECK(gap(state["q_memory_dict.p0"].mm(state["q_memory_dict.p0"].t()), q.mm(q.t())) < 1e-5);
        }
      });
}

TEST_CASE("warm start finds the best approximation of a gradient that stays") {
  Heap heap({{30, 20}});
  auto const gradients = heap.random_gradients(11);
  auto const [u, s, vt] = torch::linalg_svd(gradients[0]);
  auto const best = u.narrow(1, 0, 1).mm(vt.narrow(0, 0, 1)).mul(s[0]);
  for (bool const warm : {true, false}) {
    auto hook = hooks::power_sgd({.start_powerSGD_iter = 2, .use_error_feedback = false, .warm_start = warm});
    ProcessGroup const world;
    warm_up(heap, hook, world);
    torch::Tensor got;
    for (int step = 0; step < 200; ++step) got = heap.reduced(hook, world, gradients)[0];
    CHECK((gap(got, best) < 1e-3) == warm);
  }
}

TEST_CASE("ranks end with the same parameters, bit for bit") {
  for (auto const& [ranks, rank] : {std::pair{2, 1}, std::pair{3, 2}, std::pair{2, 4}}) {
    std::vector<std::vector<torch::Tensor>> ends(static_cast<std::size_t>(ranks));
    with_ranks(ranks, [&, ranks = ranks, rank = rank](ProcessGroup world) {
      Mlp net(1);
      DistributedDataParallel model{net, world, {.bucket_cap_mib = 0.0005}};  // three buckets
      auto hook =
          hooks::power_sgd({.matrix_approximation_rank = rank, .start_powerSGD_iter = 2, .min_compression_rate = 0.5});
      model.register_comm_hook(hook);
      for (int s = 0; s < 10; ++s) {
        model.zero_grad();
        loss_of(model(batch_of(world.rank(), s))).backward();
        step(net->parameters(), gradients(*net), 0.1);
      }
      CHECK(hook.iter() == 10);
      ends[static_cast<std::size_t>(world.rank())] = copies(net->parameters());
    });
    for (auto const& end : ends) CHECK(same_bits(end, ends[0]));
  }
}

TEST_CASE("DistributedDataParallel steps with the mean: where nothing is left out, with that of no hook") {
  with_ranks(2, [](ProcessGroup world) {
    Mlp net(1), alone(1);
    DistributedDataParallel model{net, world, {.bucket_cap_mib = 0.0005}};
    model.register_comm_hook(
        hooks::power_sgd({.matrix_approximation_rank = 16, .start_powerSGD_iter = 2, .min_compression_rate = 0.01}));
    for (int s = 0; s < 4; ++s) {
      model.zero_grad();
      loss_of(model(batch_of(world.rank(), s))).backward();
      auto const got = gradients(*net), expected = mean_of_own(*alone, 2, s);
      for (std::size_t i = 0; i < got.size(); ++i) CHECK_MESSAGE(gap(got[i], expected[i]) < 1e-5, "step " << s);
    }
  });
}

TEST_CASE("a bucket with nothing to compress takes its seed all the same, as in PyTorch, but only once") {
  Heap const biases(Shapes{{6}});
  Heap matrices({{12, 10}});
  ProcessGroup const world;
  pardl::detail::RandomStateSeeds seeds(0);
  seeds.next();
  seeds.next();
  auto const draws_after_step = [&](hooks::PowerSgd& hook) {
    auto first = biases.bucket(biases.random_gradients(1), 0, 2);
    auto second = matrices.bucket(matrices.random_gradients(1), 1, 2);
    for (auto* bucket : {&first, &second}) hook(world, *bucket)->waitAndThrow();
    return hook.state_dict(matrices)["random_draws"].item<std::int64_t>();
  };
  auto hook = hooks::power_sgd({.start_powerSGD_iter = 2});
  CHECK(draws_after_step(hook) == 0);
  CHECK(draws_after_step(hook) == 0);
  CHECK(draws_after_step(hook) == seeds.draws());
  CHECK(draws_after_step(hook) == seeds.draws());
  auto resumed = hooks::power_sgd({.start_powerSGD_iter = 2});
  resumed.load_state_dict(matrices, hook.state_dict(matrices));
  CHECK(draws_after_step(resumed) == seeds.draws());
}

TEST_CASE("compression_stats counts elements") {
  Heap const heap({{12, 10}, {12}});
  auto hook = hooks::power_sgd({.start_powerSGD_iter = 2});
  ProcessGroup const world;
  warm_up(heap, hook, world);
  CHECK(hook.compression_stats().compress_rate == 0);
  for (int s = 0; s < 3; ++s) (void)heap.reduced(hook, world, heap.random_gradients(1));
  CHECK(hook.compression_stats().numel_before_compression == 3 * 132);
  CHECK(hook.compression_stats().numel_after_compression == 3 * (22 + 12));
  CHECK(hook.compression_stats().compress_rate == doctest::Approx(132.0 / 34));
}

TEST_CASE("under fp16_compress the factors are 16 bits wide, and the handle still knows") {
  Heap heap({{12, 10}, {12}});
  with_ranks(2, [&](ProcessGroup world) {
    auto power_sgd =
        hooks::power_sgd({.matrix_approximation_rank = 10, .start_powerSGD_iter = 2, .min_compression_rate = 0.01});
    auto hook = hooks::fp16_compress(power_sgd);
    warm_up(heap, hook, world);
    auto const got = heap.reduced(hook, world, heap.random_gradients(seed_of(world.rank(), 0)));
    for (std::size_t i = 0; i < got.size(); ++i) {
      CHECK(bool(got[i].scalar_type() == torch::kFloat32));
      CHECK(gap(got[i].to(torch::kFloat64), mean_gradient(heap, 2, 0, i)) < 2e-2);
    }
    auto const state = power_sgd.state_dict(heap);
    CHECK(state["iter"].item<int64_t>() == 3);
    CHECK(bool(state["q_memory_dict.p0"].scalar_type() == torch::kHalf));
  });
}
