// SPDX-License-Identifier: MIT
// The ring over Gloo and shared memory, on 1 to 5 ranks, against a plain loop in the order of sums that it states: bit
// for bit, for every dtype, operation, length and segment size. Then over a transport that keeps messages together, as
// NCCL does.
#include <torch/torch.h>

#include <ATen/CPUGeneratorImpl.h>
#include <atomic>
#include <cstdint>
#include <functional>
#include <latch>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/comm/ring_all_reduce.hpp"
#include "support/ranks.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using pardl::ProcessGroup;
using pardl::ReduceOp;
using pardl::RingOptions;
using Tensors = std::vector<torch::Tensor>;

constexpr std::uint64_t seed = 20090204;
constexpr int sizes[] = {1, 2, 3, 4, 5};
constexpr std::int64_t lengths[] = {0, 1, 2, 3, 7, 1000, 100003};

/// What rank r brings: normal numbers, so that another order of sums has other bits; for integers, all bits used.
torch::Tensor brought(int r, std::int64_t length, torch::Dtype dtype = torch::kFloat32) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed + static_cast<std::uint64_t>(r));
  if (c10::isIntegralType(dtype, /*includeBool=*/true))
    return at::randint(0, 256, {length}, generator, torch::kInt64).to(dtype);
  return at::randn({length}, generator, c10::isComplexType(dtype) ? torch::kComplexDouble : torch::kFloat64).to(dtype);
}

Tensors all_brought(int n, std::int64_t length, torch::Dtype dtype = torch::kFloat32) {
  Tensors tensors;
  for (int r = 0; r < n; ++r) tensors.push_back(brought(r, length, dtype));
  return tensors;
}

torch::Tensor two(torch::Tensor const& a, torch::Tensor const& b, ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::avg:
      return a + b;
    case ReduceOp::min:
      return torch::minimum(a, b);
    case ReduceOp::max:
      return torch::maximum(a, b);
    case ReduceOp::product:
      return a * b;
    case ReduceOp::band:
      return a.bitwise_and(b);
    case ReduceOp::bor:
      return a.bitwise_or(b);
    case ReduceOp::bxor:
      return a.bitwise_xor(b);
  }
  return {};
}

/// The stated order, without the schedule: chunk c begins with rank c and goes round.
torch::Tensor in_order(Tensors const& tensors, ReduceOp op) {
  auto const n = static_cast<std::int64_t>(tensors.size()), length = tensors[0].numel();
  auto result = torch::empty_like(tensors[0]);
  std::int64_t begin = 0;
  for (std::int64_t c = 0; c < n; ++c) {
    auto const size = length / n + (c < length % n ? 1 : 0);
    auto const piece = [&](std::int64_t r) { return tensors[static_cast<std::size_t>(r % n)].narrow(0, begin, size); };
    auto sum = piece(c).clone();
    for (std::int64_t i = 1; i < n; ++i) sum = two(sum, piece(c + i), op);
    if (op == ReduceOp::avg) sum = sum / n;
    result.narrow(0, begin, size).copy_(sum);
    begin += size;
  }
  return result;
}

bool same(torch::Tensor const& a, torch::Tensor const& b) { return a.dtype() == b.dtype() && torch::equal(a, b); }

/// Over Gloo and shared memory on n ranks; with n = 1 over self.
template <class F>
void everywhere(F&& f) {
  for (int const n : sizes)
    for (char const* const backend : {"gloo", "shm"})
      if (n > 1) pardl::testing::with_ranks(n, f, {.backend = backend});
  pardl::testing::with_ranks(1, f);
}

template <class F>
std::string refused(F&& f) {
  try {
    f();
  } catch (pardl::ConfigError const& e) {
    return e.what();
  }
  return "nothing";
}

/// How a ring's sentence begins on this rank.
std::string where(ProcessGroup const& world) {
  return "[comm] rank " + std::to_string(world.rank()) + "/" + std::to_string(world.size()) + ": ring_all_reduce";
}

}  // namespace

TEST_CASE("every length and segment size gives the sum in the stated order, bit for bit") {
  MESSAGE("seed " << seed);
  everywhere([](ProcessGroup world) {
    for (auto const length : lengths) {
      auto const expected = in_order(all_brought(world.size(), length), ReduceOp::sum);
      for (std::int64_t const segment : {0, 4, 1024, 65536, 1 << 20}) {
        if (segment == 4 && length > 1000) continue;  // a message for every element
        CAPTURE(length);
        CAPTURE(segment);
        auto tensor = brought(world.rank(), length);
        pardl::ring_all_reduce(world, tensor, ReduceOp::sum, {.segment_bytes = segment}).wait();
        CHECK(same(tensor, expected));
      }
    }
  });
}

TEST_CASE("every dtype and operation equals the loop, narrow floats rounded after each step") {
  std::vector<torch::Dtype> const floats{torch::kFloat32, torch::kFloat64, torch::kFloat16, torch::kBFloat16};
  std::vector<torch::Dtype> const wholes{torch::kInt8, torch::kUInt8, torch::kInt16, torch::kInt32, torch::kInt64};
  everywhere([&](ProcessGroup world) {
    auto const check = [&](torch::Dtype dtype, ReduceOp op) {
      CAPTURE(std::string(c10::toString(dtype)));
      CAPTURE(static_cast<int>(op));
      for (std::int64_t const segment : {0, 64}) {
        auto tensor = brought(world.rank(), 101, dtype);
        pardl::ring_all_reduce(world, tensor, op, {.segment_bytes = segment}).wait();
        auto const expected = in_order(all_brought(world.size(), 101, dtype), op);
        if (op == ReduceOp::product && c10::isComplexType(dtype))  // LibTorch rounds it by its place in a vector
          CHECK(torch::allclose(tensor, expected, 1e-5, 1e-6));
        else
          CHECK(same(tensor, expected));
      }
    };
    for (auto const op : {ReduceOp::sum, ReduceOp::min, ReduceOp::max, ReduceOp::product}) {
      for (auto const dtype : floats) check(dtype, op);
      for (auto const dtype : wholes) check(dtype, op);
      check(torch::kBool, op);
    }
    for (auto const dtype : floats) check(dtype, ReduceOp::avg);
    for (auto const op : {ReduceOp::band, ReduceOp::bor, ReduceOp::bxor}) {
      for (auto const dtype : wholes) check(dtype, op);
      check(torch::kBool, op);
    }
    for (auto const op : {ReduceOp::sum, ReduceOp::product, ReduceOp::avg}) check(torch::kComplexFloat, op);
  });
}

TEST_CASE("every rank has the same bits, in every run, whatever the segments") {
  for (int const n : {3, 5}) {
    std::mutex mutex;
    Tensors results;
    for (int run = 0; run < 3; ++run)
      pardl::testing::with_ranks(n, [&](ProcessGroup world) {
        for (std::int64_t const segment : {0, 4096}) {
          auto tensor = brought(world.rank(), 10007, torch::kBFloat16);
          pardl::ring_all_reduce(world, tensor, ReduceOp::avg, {.segment_bytes = segment}).wait();
          std::lock_guard lock(mutex);
          results.push_back(tensor);
        }
      });
    CHECK(results.size() == static_cast<std::size_t>(6 * n));
    for (auto const& result : results) CHECK(torch::equal(result, results[0]));
  }
}

TEST_CASE("it is near all_reduce, and avg is its sum divided once") {
  pardl::testing::with_ranks(3, [](ProcessGroup world) {
    auto const mine = brought(world.rank(), 1000, torch::kFloat64);
    auto ring = mine.clone(), avg = mine.clone(), other = mine.clone();
    pardl::ring_all_reduce(world, ring).wait();
    pardl::ring_all_reduce(world, avg, ReduceOp::avg).wait();
    pardl::all_reduce(world, other).wait();
    CHECK(torch::allclose(ring, other, 1e-14, 1e-14));
    CHECK(torch::equal(avg, ring / 3));
  });
}

TEST_CASE("it takes dense layouts, scalars, views and tensors that want gradients, and leaves the rest alone") {
  everywhere([](ProcessGroup world) {
    int const n = world.size();
    auto const factor = n * (n + 1) / 2.0;
    auto images = (torch::arange(96, torch::kFloat32).view({2, 3, 4, 4}) * (world.rank() + 1))
                      .contiguous(torch::MemoryFormat::ChannelsLast);
    pardl::ring_all_reduce(world, images).wait();
    CHECK(same(images.contiguous(), torch::arange(96, torch::kFloat32).view({2, 3, 4, 4}) * factor));
    CHECK(images.is_contiguous(torch::MemoryFormat::ChannelsLast));
    auto scalar = torch::full({}, 2.0);
    pardl::ring_all_reduce(world, scalar).wait();
    CHECK(scalar.item<double>() == 2.0 * n);
    auto whole = torch::ones({4, 3});
    pardl::ring_all_reduce(world, whole[1]).wait();
    CHECK(whole.sum().item<double>() == 9.0 + 3.0 * n);
    auto weight = torch::ones({3}, torch::requires_grad());
    pardl::ring_all_reduce(world, weight).wait();
    CHECK(weight.detach()[0].item<double>() == n);
    CHECK(weight.is_leaf());
    CHECK(weight.requires_grad());
    auto frozen = [] {
      c10::InferenceMode const inference;
      return torch::ones({3});
    }();
    pardl::ring_all_reduce(world, frozen).wait();
    CHECK(frozen[0].item<double>() == n);
  });
}

TEST_CASE("autograd notices that a tensor it has kept was written") {
  everywhere([](ProcessGroup world) {
    if (world.size() == 1) return;  // nothing is written
    auto const x = torch::ones({3}, torch::requires_grad());
    auto y = x * 2, z = y * y;
    pardl::ring_all_reduce(world, y).wait();
    CHECK_THROWS_WITH_AS(z.sum().backward(), doctest::Contains("modified by an inplace operation"), std::exception);
  });
}

TEST_CASE("the Work is done, and its future has the tensor") {
  everywhere([](ProcessGroup world) {
    auto tensor = torch::ones({10});
    auto work = pardl::ring_all_reduce(world, tensor);
    CHECK(work.done());
    auto const future = work.future();
    CHECK(future->completed());
    CHECK(future->value().toTensorVector().at(0).sum().item<double>() == 10.0 * world.size());
    work.wait();
  });
}

TEST_CASE("messages of 32 MiB, which no transport buffers, pass round though every rank sends at once") {
  pardl::testing::with_ranks(2, [](ProcessGroup world) {
    // Two chunks of 32 MiB: whole, then in segments of one and of sixteen MiB.
    for (std::int64_t const segment : {0, 1 << 20, 16 << 20}) {
      auto tensor = torch::full({16 << 20}, world.rank() + 1.0);
      pardl::ring_all_reduce(world, tensor, ReduceOp::sum, {.segment_bytes = segment}).wait();
      CHECK(tensor.eq(3).all().item<bool>());
    }
  });
  pardl::testing::with_ranks(3, [](ProcessGroup world) {
    auto tensor = torch::full({24 << 20}, world.rank() + 1.0);
    pardl::ring_all_reduce(world, tensor, ReduceOp::sum, {.segment_bytes = 0}).wait();
    CHECK(tensor.eq(6).all().item<bool>());
  });
}

TEST_CASE("two rings at once, and one beside collectives, do not mix with tags of their own") {
  auto const two_rings = [](ProcessGroup world) {
    auto a = brought(world.rank(), 30011), b = brought(world.rank() + 7, 30011);
    Tensors others;
    for (int r = 0; r < 3; ++r) others.push_back(brought(r + 7, 30011));
    std::thread beside(
        [&] { pardl::ring_all_reduce(world, b, ReduceOp::sum, {.segment_bytes = 4096, .tag = 1}).wait(); });
    pardl::ring_all_reduce(world, a, ReduceOp::sum, {.segment_bytes = 4096, .tag = 2}).wait();
    beside.join();
    CHECK(same(a, in_order(all_brought(3, 30011), ReduceOp::sum)));
    CHECK(same(b, in_order(others, ReduceOp::sum)));
    CHECK(pardl::all_sum(world, 1) == 3);
  };
  for (char const* const backend : {"gloo", "shm"}) pardl::testing::with_ranks(3, two_rings, {.backend = backend});
}

TEST_CASE("arguments that cannot be right are refused in a sentence, and the group goes on") {
  for (int const n : {1, 2})
    pardl::testing::with_ranks(n, [](ProcessGroup world) {
      auto const t = torch::ones({4});
      auto const refusal = [&](torch::Tensor const& tensor, ReduceOp op, RingOptions options) {
        auto const text = refused([&] { pardl::ring_all_reduce(world, tensor, op, options).wait(); });
        CHECK_MESSAGE(text.starts_with(where(world) + ": "), text);
        return text.substr(std::min(text.size(), where(world).size() + 2));
      };
      CHECK(refusal(t, ReduceOp::sum, {.segment_bytes = -1}) ==
            "segment_bytes is -1 and tag 2009; neither may be negative.");
      CHECK(refusal(torch::ones({4, 4}).slice(1, 0, 2), ReduceOp::sum, {}) ==
            "the tensor has gaps or overlaps in memory; pass tensor.contiguous(), and copy the result back.");
      CHECK(refusal(t, ReduceOp::bxor, {}).starts_with("bitwise operations are for integers, not float32"));
      CHECK(refusal(torch::ones({4}, torch::kInt32), ReduceOp::avg, {}).starts_with("an average of int32"));
      for (int twice = 0; twice < 2; ++twice)
        CHECK(refusal(torch::ones({4}, torch::kComplexFloat), ReduceOp::max, {})
                  .starts_with("LibTorch cannot combine complex64 by this operation: "));
      CHECK(refusal(torch::Tensor(), ReduceOp::sum, {}) == "the tensor is undefined; pass one with memory.");
      auto tensor = torch::ones({4});
      pardl::ring_all_reduce(world, tensor).wait();
      CHECK(tensor.sum().item<double>() == 4.0 * world.size());
    });
}

TEST_CASE("a rank that does not come is named with the operation, its number, shape and step") {
  for (std::string const backend : {"gloo", "shm"}) {
    std::latch over(2);
    auto const ring = [&](ProcessGroup world) {
      auto tensor = torch::ones({1000});
      pardl::ring_all_reduce(world, tensor).wait();
      world.set_timeout(std::chrono::seconds(1));
      if (world.rank() == 1) return over.wait();
      std::string text = "nothing";
      try {
        pardl::ring_all_reduce(world, tensor).wait();
      } catch (pardl::CommError const& e) {  // its own timeout, or the end of a neighbour that had one
        text = e.what();
      }
      over.count_down();
      auto const has = [&](std::string const& part) { return text.find(part) != std::string::npos; };
      // The next receive is posted ahead, and may be what finds that a neighbour has given up.
      std::string const name = where(world) + " #2 (float32[1000]) in ";
      CHECK_MESSAGE((text.starts_with(name + "reduce-scatter step ") || text.starts_with(name + "all-gather step 1 ")),
                    text);
      CHECK_MESSAGE(has("ranks that have not come: 1 (last called ring_all_reduce #1 (float32[1000]))"), text);
    };
    pardl::testing::with_ranks(3, ring, {.backend = backend});
  }
}

namespace {

/// Gloo behind the manners of NCCL: messages count only between startCoalescing() and endCoalescing(), and begin with
/// the latter. It counts groups, and messages outside them.
class CoalescingTransport final : public c10d::Backend {
  using Inner = c10::intrusive_ptr<c10d::Backend>;
  using Started = c10::intrusive_ptr<c10d::Work>;

  class Group final : public c10d::Work {
   public:
    explicit Group(std::vector<Started> works) : Work(-1, c10d::OpType::COALESCED), works_(std::move(works)) {}
    bool wait(std::chrono::milliseconds timeout) override {
      for (auto const& work : works_) work->wait(timeout);
      return true;
    }

   private:
    std::vector<Started> works_;
  };

 public:
  explicit CoalescingTransport(Inner inner) : Backend(inner->getRank(), inner->getSize()), inner_(std::move(inner)) {}
  const std::string getBackendName() const override { return "coalescing"; }
  bool supportsCoalescing() const override { return true; }
  void startCoalescing() override { open_ = true; }
  Started endCoalescing() override {
    open_ = false;
    ++groups;
    std::vector<Started> works;
    for (auto& start : std::exchange(waiting_, {})) works.push_back(start());
    if (works.empty()) return {};
    return c10::make_intrusive<Group>(std::move(works));
  }
  Started send(std::vector<at::Tensor>& t, int to, int tag) override {
    return later([this, t, to, tag]() mutable { return inner_->send(t, to, tag); });
  }
  Started recv(std::vector<at::Tensor>& t, int from, int tag) override {
    return later([this, t, from, tag]() mutable { return inner_->recv(t, from, tag); });
  }

  int groups = 0, outside = 0;

 private:
  Started later(std::function<Started()> start) {
    if (!open_) ++outside;
    waiting_.push_back(std::move(start));
    return {};
  }

  Inner inner_;
  bool open_ = false;
  std::vector<std::function<Started()>> waiting_;
};

}  // namespace

#ifdef PARDL_WITH_GLOO
TEST_CASE("where messages can be kept together, each move is one group, the same number on every rank") {
  for (int const n : {2, 3, 4}) {
    auto const store = c10::make_intrusive<c10d::HashStore>();
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < n; ++rank)
      ranks.emplace_back([&, rank] {
        using Type = c10d::ProcessGroup::BackendType;
        auto const transport =
            c10::make_intrusive<CoalescingTransport>(pardl::backend::gloo(store, rank, n, {.interface = "lo"}));
        auto const group = c10::make_intrusive<c10d::ProcessGroup>(store, rank, n);
        group->setBackend(c10::DeviceType::CPU, Type::CUSTOM, transport);
        group->setDefaultBackend(Type::CUSTOM);
        ProcessGroup const world(group);
        int expected_groups = 0;
        for (std::int64_t const length : {1, 3, 7, 1000})
          for (std::int64_t const segment : {0, 256}) {
            auto tensor = brought(rank, length);
            pardl::ring_all_reduce(world, tensor, ReduceOp::avg, {.segment_bytes = segment}).wait();
            CHECK(same(tensor, in_order(all_brought(n, length), ReduceOp::avg)));
            auto const chunk = (length + n - 1) / n;
            auto const segments = segment == 0 ? 1 : (chunk + 63) / 64;
            expected_groups += static_cast<int>(2 * (n - 1) * segments);
          }
        CHECK(transport->groups == expected_groups);
        CHECK(transport->outside == 0);
      });
    for (auto& rank : ranks) rank.join();
  }
}
#endif
