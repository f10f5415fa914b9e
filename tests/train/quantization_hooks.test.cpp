// SPDX-License-Identifier: MIT
#include "pardl/train/quantization_hooks.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "hook_support.hpp"
#include "pardl/train/distributed_data_parallel.hpp"
#include "support/ranks.hpp"

using namespace ddp_test;
using pardl::DistributedDataParallel;
using pardl::ProcessGroup;
using pardl::testing::with_ranks;
namespace hooks = pardl::comm_hooks;

namespace {

using Floats = std::vector<float>;

Floats values(torch::Tensor const& tensor) {
  auto const flat = tensor.contiguous();
  return {flat.data_ptr<float>(), flat.data_ptr<float>() + flat.numel()};
}

struct Coded {
  float scale, zero;
};

/// Scale and zero point of one channel, as torch.ao.quantization's MinMaxObserver makes them, one number at a time.
Coded code_of(float const* begin, float const* end) {
  float const least = std::min(*std::min_element(begin, end), 0.0f);
  float const greatest = std::max(*std::max_element(begin, end), 0.0f);
  float const scale = std::max((greatest - least) / 255.0f, std::numeric_limits<float>::epsilon());
  return {scale, std::clamp(0.0f - std::nearbyint(least / scale), 0.0f, 255.0f)};
}

/// What becomes of each rank's bucket: coded, decoded, added up rank by rank, divided.
Floats expected_mean(std::vector<Floats> const& ranks, std::size_t width) {
  Floats sum(ranks[0].size(), 0.0f);
  for (auto const& bucket : ranks)
    for (std::size_t from = 0; from < bucket.size(); from += width) {
      Floats channel(bucket.begin() + static_cast<std::ptrdiff_t>(from),
                     bucket.begin() + static_cast<std::ptrdiff_t>(std::min(from + width, bucket.size())));
      auto padded = channel;
      padded.resize(width);  // zeros, which count for least and greatest
      auto const [scale, zero] = code_of(padded.data(), padded.data() + padded.size());
      for (std::size_t i = 0; i < channel.size(); ++i) {
        float const code = std::clamp(std::nearbyint(channel[i] / scale) + zero, 0.0f, 255.0f);
        volatile float const back = scale * (code - zero);  // no fused multiply-add with the sum
        sum[from + i] += back;
      }
    }
  for (auto& value : sum) value /= static_cast<float>(ranks.size());
  return sum;
}

torch::Tensor flat(std::vector<torch::Tensor> const& gradients) {
  std::vector<torch::Tensor> parts;
  for (auto const& gradient : gradients) parts.push_back(gradient.reshape(-1));
  return torch::cat(parts);
}

}  // namespace

TEST_CASE("codes are PyTorch's, number by number") {
  Heap const heap({{20, 30}, {40}});  // 640 elements: no multiple of most widths
  for (int const ranks : {1, 2, 3})
    for (std::size_t const width : {0, 1, 7, 128, 512, 640, 1000}) {
      std::vector<Floats> buckets;
      for (int rank = 0; rank < ranks; ++rank)
        buckets.push_back(values(flat(heap.random_gradients(10 + static_cast<std::uint64_t>(rank)))));
      auto const expected = expected_mean(buckets, width == 0 ? buckets[0].size() : width);
      with_ranks(ranks, [&](ProcessGroup world) {
        auto const own = heap.random_gradients(10 + static_cast<std::uint64_t>(world.rank()));
        auto hook = width == 0 ? hooks::quantization_per_tensor()
                               : hooks::quantization_per_channel({.bucket_size = static_cast<std::int64_t>(width)});
        auto const got = values(flat(heap.reduced(hook, world, own)));
        CHECK_MESSAGE(got == expected, "width " << width << " ranks " << ranks);
      });
    }
}

TEST_CASE("a value is off by half a scale at most, and by less with channels of their own scale") {
  Heap const heap({{512}, {512}});
  auto gradients = heap.random_gradients(3);
  gradients[1].mul_(1e-3);
  ProcessGroup const world;
  auto whole = hooks::quantization_per_tensor();
  auto channels = hooks::quantization_per_channel();
  auto const coarse = heap.reduced(whole, world, gradients), fine = heap.reduced(channels, world, gradients);
  auto const range = (gradients[0].max() - gradients[0].min()).item<double>();
  CHECK((coarse[0] - gradients[0]).abs().max().item<double>() <= 0.501 * range / 255);
  CHECK(gap(coarse[1], gradients[1]) > 0.5);  // lost in the other's scale
  CHECK(gap(fine[1], gradients[1]) < 0.01);
}

TEST_CASE("zeros, one sign, and gradients that are no numbers") {
  Heap const heap(Shapes{{6}});
  ProcessGroup const world;
  for (auto hook : {hooks::quantization_per_tensor(), hooks::quantization_per_channel({.bucket_size = 4})}) {
    CHECK(torch::equal(heap.reduced(hook, world, {torch::zeros({6})})[0], torch::zeros({6})));
    auto const positive = torch::tensor({1.0f, 2.0f, 3.0f, 255.0f, 5.0f, 6.0f});
    CHECK(gap(heap.reduced(hook, world, {positive})[0], positive) < 1e-2);
    CHECK(gap(heap.reduced(hook, world, {-positive})[0], -positive) < 1e-2);
    for (float const bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
      auto spoilt = positive.clone();
      spoilt[5] = bad;
      CHECK_FALSE(heap.reduced(hook, world, {spoilt})[0].isfinite().all().item<bool>());  // a loss scaler sees it
    }
  }
  CHECK(contains(message_of([] { (void)hooks::quantization_per_channel({.bucket_size = 0}); }), "bucket_size 0"));
}

TEST_CASE("other widths come back as they went") {
  Heap const heap({{30, 9}});
  ProcessGroup const world;
  auto hook = hooks::quantization_per_channel({.bucket_size = 64});
  for (auto const type : {torch::kHalf, torch::kBFloat16, torch::kFloat64}) {
    std::vector<torch::Tensor> const gradients{heap.random_gradients(8)[0].to(type)};
    auto const got = heap.reduced(hook, world, gradients)[0];
    CHECK(bool(got.scalar_type() == type));
    CHECK(gap(got.to(torch::kFloat64), gradients[0].to(torch::kFloat64)) < 2e-2);
  }
}

TEST_CASE("ranks end with the same parameters, bit for bit, alone and under a wrapper") {
  for (bool const wrapped : {false, true}) {
    std::vector<std::vector<torch::Tensor>> ends(3);
    with_ranks(3, [&](ProcessGroup world) {
      Mlp net(1);
      DistributedDataParallel model{net, world, {.bucket_cap_mib = 0.0005, .gradient_as_bucket_view = wrapped}};
      if (wrapped)
        model.register_comm_hook(hooks::bf16_compress(hooks::quantization_per_channel({.bucket_size = 32})));
      else
        model.register_comm_hook(hooks::quantization_per_tensor());
      for (int s = 0; s < 4; ++s) {
        model.zero_grad();
        loss_of(model(batch_of(world.rank(), s))).backward();
        if (s == 0) {
          auto const expected = mean_of_own(*Mlp(1), 3, s);  // to within the codes' half steps
          for (std::size_t i = 0; i < expected.size(); ++i) CHECK(gap(gradients(*net)[i], expected[i]) < 0.1);
        }
        step(net->parameters(), gradients(*net), 0.1);
      }
      ends[static_cast<std::size_t>(world.rank())] = copies(net->parameters());
    });
    for (auto const& end : ends) CHECK(same_bits(end, ends[0]));
    CHECK_FALSE(same_bits(ends[0], copies(Mlp(1)->parameters())));
  }
}
