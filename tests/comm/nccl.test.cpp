// SPDX-License-Identifier: MIT
// NCCL, and Gloo with ranks that share a GPU. Without a GPU every test says so and is skipped: ctest
// then takes the whole file as skipped, whatever fails in it, so nothing that can run without a GPU belongs here.
#include <torch/torch.h>

#include <string>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "support/ranks.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using pardl::ProcessGroup;
using pardl::ReduceOp;

bool skipped_for_want_of_a_gpu() {
  if (torch::cuda::is_available()) return false;
  MESSAGE("skipped: no GPU");
  return true;
}

pardl::testing::RanksOptions on_gpu(std::string backend) {
  return {.backend = std::move(backend), .device = torch::Device(torch::kCUDA, 0)};
}

}  // namespace

#ifdef PARDL_WITH_NCCL
TEST_CASE("every collective works on a world of one over NCCL") {
  if (skipped_for_want_of_a_gpu()) return;
  pardl::testing::with_ranks(
      1,
      [](ProcessGroup world) {
        CHECK(world.backend() == "nccl");
        CHECK(world.device() == torch::Device(torch::kCUDA, 0));
        auto const gpu = torch::TensorOptions(world.device());
        auto t = torch::arange(6, gpu.dtype(torch::kFloat32));
        auto const before = t.clone();
        for (auto const op : {ReduceOp::sum, ReduceOp::avg, ReduceOp::max}) pardl::all_reduce(world, t, op).wait();
        pardl::all_reduce_coalesced(world, {t, t.clone()}).wait();
        pardl::reduce(world, t).wait();
        pardl::broadcast(world, t).wait();
        CHECK(torch::equal(t, before));
        auto out = torch::zeros_like(t);
        pardl::all_gather_into(world, out, t).wait();
        CHECK(torch::equal(out, before));
        pardl::all_gather(world, {out.zero_()}, t).wait();
        CHECK(torch::equal(out, before));
        pardl::gather(world, {out.zero_()}, t).wait();
        CHECK(torch::equal(out, before));
        pardl::scatter(world, out.zero_(), {t}).wait();
        CHECK(torch::equal(out, before));
        pardl::reduce_scatter(world, out.zero_(), {t}).wait();
        CHECK(torch::equal(out, before));
        pardl::reduce_scatter_into(world, out.zero_(), t).wait();
        CHECK(torch::equal(out, before));
        pardl::all_to_all(world, {out.zero_()}, {t}).wait();
        CHECK(torch::equal(out, before));
        pardl::all_to_all_single(world, out.zero_(), t).wait();
        CHECK(torch::equal(out, before));
        pardl::barrier(world);
        CHECK(pardl::all_sum(world, 2.5) == 2.5);
        CHECK(pardl::all_gather_strings(world, "alone") == std::vector<std::string>{"alone"});
        auto future = pardl::all_reduce(world, t, ReduceOp::avg).future();
        future->wait();
        CHECK(torch::equal(future->value().toTensorVector().at(0), before));
        CHECK(world.split(0)->size() == 1);
        world.shutdown();
      },
      on_gpu("nccl"));
}

TEST_CASE("NCCL refuses tensors that are not on its GPU") {
  if (skipped_for_want_of_a_gpu()) return;
  pardl::testing::with_ranks(
      1,
      [](ProcessGroup world) {
        CHECK_THROWS_WITH_AS(pardl::all_reduce(world, torch::ones({2})).wait(),
                             "[comm] rank 0/1: all_reduce: the tensor is on cpu, NCCL moves tensors on cuda:0; move it "
                             "there with tensor.to(world.device()).",
                             pardl::ConfigError);
      },
      on_gpu("nccl"));
}
#endif  // PARDL_WITH_NCCL

TEST_CASE("two ranks share one GPU over Gloo") {
  if (skipped_for_want_of_a_gpu()) return;
  pardl::testing::with_ranks(
      2,
      [](ProcessGroup world) {
        CHECK(world.backend() == "gloo");
        CHECK(world.device() == torch::Device(torch::kCUDA, 0));
        auto const gpu = torch::TensorOptions(world.device()).dtype(torch::kFloat32);
        auto const mine = torch::full({1000}, world.rank() + 1.0, gpu);
        auto sum = mine.clone(), avg = mine.clone(), copy = mine.clone();
        pardl::all_reduce(world, sum).wait();
        CHECK(sum.eq(3).all().item<bool>());
        pardl::all_reduce(world, avg, ReduceOp::avg).wait();
        CHECK(avg.eq(1.5).all().item<bool>());
        pardl::broadcast(world, copy, 1).wait();
        CHECK(copy.eq(2).all().item<bool>());
        auto all = torch::zeros({2000}, gpu);
        pardl::all_gather_into(world, all, mine).wait();
        CHECK(all.sum().item<float>() == 3000.0F);
        CHECK(pardl::all_sum(world, 1) == 2);
        pardl::barrier(world);
      },
      on_gpu("gloo"));
}
