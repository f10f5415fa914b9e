// SPDX-License-Identifier: MIT
// Every collective on 1 to 4 ranks against a plain loop over what the ranks brought.
#include <torch/torch.h>

#include <cstdint>
#include <mutex>
#include <numeric>
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
using Tensors = std::vector<torch::Tensor>;

constexpr int sizes[] = {1, 2, 3, 4};

/// What rank r brings to an operation: small whole numbers, exact in every dtype, different for every rank and salt.
torch::Tensor brought(int r, std::vector<std::int64_t> const& shape, torch::Dtype dtype = torch::kFloat32,
                      int salt = 0) {
  std::int64_t count = 1;
  for (auto const n : shape) count *= n;
  return ((torch::arange(count, torch::kInt64) * 7 + 3 * r + salt) % 5 + 1).view(shape).to(dtype);
}

Tensors all_brought(int n, std::vector<std::int64_t> const& shape, torch::Dtype dtype = torch::kFloat32, int salt = 0) {
  Tensors tensors;
  for (int r = 0; r < n; ++r) tensors.push_back(brought(r, shape, dtype, salt));
  return tensors;
}

torch::Tensor combined(Tensors const& tensors, ReduceOp op) {
  auto result = tensors[0].clone();
  for (std::size_t r = 1; r < tensors.size(); ++r) {
    auto const& next = tensors[r];
    switch (op) {
      case ReduceOp::sum:
      case ReduceOp::avg:
        result = result + next;
        break;
      case ReduceOp::min:
        result = torch::minimum(result, next);
        break;
      case ReduceOp::max:
        result = torch::maximum(result, next);
        break;
      case ReduceOp::product:
        result = result * next;
        break;
      case ReduceOp::band:
        result = result.bitwise_and(next);
        break;
      case ReduceOp::bor:
        result = result.bitwise_or(next);
        break;
      case ReduceOp::bxor:
        result = result.bitwise_xor(next);
        break;
    }
  }
  if (op == ReduceOp::avg) result = result / static_cast<std::int64_t>(tensors.size());
  return result;
}

bool same(torch::Tensor const& a, torch::Tensor const& b) { return a.dtype() == b.dtype() && torch::equal(a, b); }

template <class F>
std::string refused(F&& f) {
  try {
    f();
  } catch (pardl::ConfigError const& e) {
    return e.what();
  }
  return "nothing";
}

/// Over Gloo and shared memory, and over self.
template <class F>
void everywhere(F&& f) {
  for (char const* const backend : {"gloo", "shm"})
    for (int const n : sizes) {
      CAPTURE(backend);
      pardl::testing::with_ranks(n, f, {.backend = backend});
    }
  pardl::testing::with_ranks(1, f);
}

}  // namespace

TEST_CASE("all_reduce and reduce equal the loop over ranks for every dtype and operation") {
  std::vector<torch::Dtype> const floats{torch::kFloat32, torch::kFloat64, torch::kFloat16, torch::kBFloat16};
  std::vector<torch::Dtype> const wholes{torch::kInt8, torch::kUInt8, torch::kInt32, torch::kInt64};
  everywhere([&](ProcessGroup world) {
    int const n = world.size(), root = n - 1;
    auto const check = [&](torch::Dtype dtype, ReduceOp op) {
      CAPTURE(c10::toString(dtype));
      CAPTURE(static_cast<int>(op));
      auto const expected = combined(all_brought(n, {3, 5}, dtype), op);
      auto tensor = brought(world.rank(), {3, 5}, dtype);
      pardl::all_reduce(world, tensor, op).wait();
      CHECK(same(tensor, expected));
      auto at_root = brought(world.rank(), {3, 5}, dtype);
      pardl::reduce(world, at_root, root, op).wait();
      if (world.rank() == root) CHECK(same(at_root, expected));
    };
    for (auto const op : {ReduceOp::sum, ReduceOp::min, ReduceOp::max, ReduceOp::product}) {
      for (auto const dtype : floats) check(dtype, op);
      for (auto const dtype : wholes) check(dtype, op);
    }
    for (auto const dtype : floats) check(dtype, ReduceOp::avg);
    for (auto const op : {ReduceOp::band, ReduceOp::bor, ReduceOp::bxor})
      for (auto const dtype : wholes) check(dtype, op);
  });
}

TEST_CASE("avg is the sum divided once, bit for bit, also in the operation's future") {
  pardl::testing::with_ranks(3, [](ProcessGroup world) {
    torch::manual_seed(7);  // the generator is one for all threads: draw in one place
    static std::mutex mutex;
    auto const mine = [&] {
      std::lock_guard lock(mutex);
      return torch::randn({1000}, at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(world.rank())));
    }();
    auto sum = mine.clone(), avg = mine.clone(), later = mine.clone();
    pardl::all_reduce(world, sum).wait();
    pardl::all_reduce(world, avg, ReduceOp::avg).wait();
    CHECK(torch::equal(avg, sum.div(3)));
    auto work = pardl::all_reduce(world, later, ReduceOp::avg);
    auto const future = work.future();
    future->wait();
    CHECK(torch::equal(future->value().toTensorVector().at(0), avg));
    work.wait();  // not divided twice
    CHECK(torch::equal(later, avg));
  });
}

TEST_CASE("all_reduce takes dense layouts, scalars, empty tensors, views, and tensors that want gradients") {
  everywhere([](ProcessGroup world) {
    int const n = world.size();
    auto images = brought(world.rank(), {2, 3, 4, 4}).contiguous(torch::MemoryFormat::ChannelsLast);
    pardl::all_reduce(world, images).wait();
    CHECK(same(images, combined(all_brought(n, {2, 3, 4, 4}), ReduceOp::sum)));
    CHECK(images.is_contiguous(torch::MemoryFormat::ChannelsLast));
    auto scalar = torch::full({}, 2.0);
    pardl::all_reduce(world, scalar).wait();
    CHECK(scalar.item<double>() == 2.0 * n);
    auto empty = torch::empty({0});
    pardl::all_reduce(world, empty).wait();
    auto whole = torch::ones({4, 3});
    pardl::all_reduce(world, whole[1]).wait();
    CHECK(whole.sum().item<double>() == 9.0 + 3.0 * n);
    auto weight = torch::ones({3}, torch::requires_grad());
    pardl::all_reduce(world, weight).wait();
    CHECK(weight.detach()[0].item<double>() == n);
    CHECK(weight.is_leaf());
    CHECK(weight.requires_grad());
  });
}

TEST_CASE("all_reduce_coalesced equals one all_reduce each") {
  everywhere([](ProcessGroup world) {
    for (auto const op : {ReduceOp::sum, ReduceOp::avg, ReduceOp::max}) {
      Tensors tensors{brought(world.rank(), {4}, torch::kFloat64, 0),
                      brought(world.rank(), {2, 3}, torch::kFloat64, 1)};
      pardl::all_reduce_coalesced(world, tensors, op).wait();
      for (int i = 0; i < 2; ++i)
        CHECK(same(
            tensors[static_cast<std::size_t>(i)],
            combined(all_brought(world.size(), i == 0 ? std::vector<std::int64_t>{4} : std::vector<std::int64_t>{2, 3},
                                 torch::kFloat64, i),
                     op)));
    }
    pardl::all_reduce_coalesced(world, {}).wait();
  });
}

TEST_CASE("broadcast gives everybody the root's, whoever that is") {
  everywhere([](ProcessGroup world) {
    for (int root = 0; root < world.size(); ++root) {
      for (auto const dtype : {torch::kFloat32, torch::kInt64, torch::kUInt8, torch::kBool}) {
        auto tensor = brought(world.rank(), {3, 2}, dtype, root);
        pardl::broadcast(world, tensor, root).wait();
        CHECK(same(tensor, brought(root, {3, 2}, dtype, root)));
      }
    }
  });
}

TEST_CASE("gathers collect by rank") {
  everywhere([](ProcessGroup world) {
    int const n = world.size(), root = n / 2;
    auto const mine = brought(world.rank(), {2, 3});
    auto const expected = all_brought(n, {2, 3});

    Tensors list;
    for (int r = 0; r < n; ++r) list.push_back(torch::zeros({2, 3}));
    pardl::all_gather(world, list, mine).wait();
    for (std::size_t r = 0; r < list.size(); ++r) CHECK(same(list[r], expected[r]));

    auto joined = torch::zeros({n * 2, 3});
    pardl::all_gather_into(world, joined, mine).wait();
    CHECK(same(joined, torch::cat(expected)));

    Tensors at_root;
    if (world.rank() == root)
      for (int r = 0; r < n; ++r) at_root.push_back(torch::zeros({2, 3}));
    pardl::gather(world, at_root, mine, root).wait();
    for (std::size_t r = 0; r < at_root.size(); ++r) CHECK(same(at_root[r], expected[r]));
  });
}

TEST_CASE("scatter deals out the root's list") {
  everywhere([](ProcessGroup world) {
    for (int root = 0; root < world.size(); ++root) {
      Tensors const list = world.rank() == root ? all_brought(world.size(), {5}, torch::kInt64, root) : Tensors{};
      auto mine = torch::zeros({5}, torch::kInt64);
      pardl::scatter(world, mine, list, root).wait();
      CHECK(same(mine, brought(world.rank(), {5}, torch::kInt64, root)));
    }
  });
}

TEST_CASE("reduce_scatter gives rank r the r-th sum, from a list and from one tensor") {
  everywhere([](ProcessGroup world) {
    int const n = world.size();
    for (auto const op : {ReduceOp::sum, ReduceOp::avg, ReduceOp::max}) {
      // Rank r brings for rank q: brought(r, salt q).
      auto const expected = combined(all_brought(n, {4}, torch::kFloat32, world.rank()), op);
      Tensors list;
      for (int q = 0; q < n; ++q) list.push_back(brought(world.rank(), {4}, torch::kFloat32, q));
      auto from_list = torch::zeros({4}), from_one = torch::zeros({4});
      pardl::reduce_scatter(world, from_list, list, op).wait();
      CHECK(same(from_list, expected));
      pardl::reduce_scatter_into(world, from_one, torch::cat(list), op).wait();
      CHECK(same(from_one, expected));
    }
  });
}

TEST_CASE("all_to_all transposes, from lists, from one tensor, and with shares of different size") {
  everywhere([](ProcessGroup world) {
    int const n = world.size(), me = world.rank();
    // What rank r gives rank q: (r + q) % 3 + 1 rows of 100 r + q.
    auto const piece = [](int r, int q) {
      return torch::full({(r + q) % 3 + 1, 2}, static_cast<double>(100 * r + q), torch::kFloat32);
    };
    Tensors in, out, expected;
    std::vector<std::int64_t> gives, takes;
    for (int q = 0; q < n; ++q) {
      in.push_back(piece(me, q));
      expected.push_back(piece(q, me));
      out.push_back(torch::zeros_like(expected.back()));
      gives.push_back(in.back().size(0));
      takes.push_back(out.back().size(0));
    }
    pardl::all_to_all(world, out, in).wait();
    for (std::size_t q = 0; q < out.size(); ++q) CHECK(same(out[q], expected[q]));

    auto uneven = torch::zeros_like(torch::cat(expected));
    pardl::all_to_all_single(world, uneven, torch::cat(in), takes, gives).wait();
    CHECK(same(uneven, torch::cat(expected)));

    auto even_in = torch::arange(2 * n, torch::kFloat32) + 100 * me, even_out = torch::zeros({2 * n});
    pardl::all_to_all_single(world, even_out, even_in).wait();
    for (int q = 0; q < n; ++q) CHECK(even_out[2 * q].item<float>() == static_cast<float>(100 * q + 2 * me));
  });
}

TEST_CASE("messages go by tag, around the ring and to oneself in a world of one") {
  everywhere([](ProcessGroup world) {
    int const n = world.size(), me = world.rank(), next = (me + 1) % n, previous = (me + n - 1) % n;
    if (n == 1 && world.backend() == "gloo") return;  // Gloo has no connection to itself
    auto first = brought(me, {3}, torch::kInt64, 1), second = brought(me, {3}, torch::kInt64, 2);
    auto a = pardl::send(world, first, next, 1);
    auto b = pardl::send(world, second, next, 2);
    auto from_second = torch::zeros({3}, torch::kInt64), from_first = from_second.clone();
    pardl::recv(world, from_second, previous, 2).wait();  // in the other order: the tag decides
    pardl::recv(world, from_first, previous, 1).wait();
    a.wait();
    b.wait();
    CHECK(same(from_first, brought(previous, {3}, torch::kInt64, 1)));
    CHECK(same(from_second, brought(previous, {3}, torch::kInt64, 2)));

    auto any = torch::zeros({3}, torch::kInt64);
    auto c = pardl::send(world, first, next, 3);
    CHECK(pardl::recv_any(world, any, 3) == previous);
    c.wait();
    CHECK(same(any, brought(previous, {3}, torch::kInt64, 1)));
  });
}

TEST_CASE("nobody passes a barrier before everybody has come") {
  for (char const* const backend : {"", "gloo", "shm"})
    for (int const n : sizes) {
      std::atomic<int> arrived{0};
      pardl::testing::with_ranks(n,
                                 [&](ProcessGroup world) {
                                   for (int round = 1; round <= 5; ++round) {
                                     ++arrived;
                                     if (round % 2 == 0)
                                       pardl::barrier(world);
                                     else
                                       pardl::monitored_barrier(world);
                                     CHECK(arrived.load() >= round * n);
                                     pardl::barrier(world);
                                   }
                                 },
                                 {.backend = backend});
    }
}

TEST_CASE("several operations may be under way, and done() comes without wait()") {
  auto const several = [](ProcessGroup world) {
    Tensors tensors = {};
    std::vector<pardl::Work> works;
    for (int i = 0; i < 20; ++i) {
      tensors.push_back(brought(world.rank(), {257}, torch::kFloat32, i));
      works.push_back(pardl::all_reduce(world, tensors.back()));
    }
    while (!works[7].done()) std::this_thread::yield();
    CHECK(same(tensors[7], combined(all_brought(3, {257}, torch::kFloat32, 7), ReduceOp::sum)));
    for (auto& work : works) work.wait();
    for (int i = 0; i < 20; ++i)
      CHECK(same(tensors[static_cast<std::size_t>(i)],
                 combined(all_brought(3, {257}, torch::kFloat32, i), ReduceOp::sum)));
    works.front().wait();  // twice is harmless
  };
  for (char const* const backend : {"gloo", "shm"}) pardl::testing::with_ranks(3, several, {.backend = backend});
}

TEST_CASE("a Work keeps its tensors alive") {
  pardl::testing::with_ranks(2, [](ProcessGroup world) {
    auto work = [&] { return pardl::all_reduce(world, torch::full({1000}, 1.0)); }();
    auto const future = work.future();
    work.wait();
    CHECK(future->value().toTensorVector().at(0)[999].item<double>() == 2.0);
  });
}

TEST_CASE("small values and texts reach every rank") {
  everywhere([](ProcessGroup world) {
    int const n = world.size(), me = world.rank();
    CHECK(pardl::all_sum(world, 0.5 + me) == 0.5 * n + n * (n - 1) / 2.0);
    CHECK(pardl::all_sum(world, (std::int64_t{1} << 60) + me - (std::int64_t{1} << 60)) == n * (n - 1) / 2);
    CHECK(pardl::all_sum(world, 1) == n);
    CHECK(pardl::all_reduce_value(world, me, ReduceOp::max) == n - 1);
    auto const texts = pardl::all_gather_strings(world, std::string(static_cast<std::size_t>(me) * 3, 'x') + "é");
    for (int r = 0; r < n; ++r)
      CHECK(texts[static_cast<std::size_t>(r)] == std::string(static_cast<std::size_t>(r) * 3, 'x') + "é");
    CHECK(pardl::all_gather_strings(world, "") == std::vector<std::string>(static_cast<std::size_t>(n)));
    auto const digests = pardl::all_gather_digest(world, 0xf000'0000'0000'0000u + static_cast<std::uint64_t>(me));
    for (int r = 0; r < n; ++r)
      CHECK(digests[static_cast<std::size_t>(r)] == 0xf000'0000'0000'0000u + static_cast<std::uint64_t>(r));
  });
}

TEST_CASE("arguments that cannot be right are refused in a sentence, and the group goes on") {
  for (int const n : {1, 2}) {
    pardl::testing::with_ranks(n, [n](ProcessGroup world) {
      std::string const where = "[comm] rank " + std::to_string(world.rank()) + "/" + std::to_string(n) + ": ";
      auto const t = torch::ones({4});
      auto const run = [&](auto&& f) { return refused([&] { f().wait(); }); };
      CHECK(run([&] { return pardl::all_reduce(world, torch::Tensor()); }) ==
            where + "all_reduce: the tensor is undefined; pass one with memory.");
      CHECK(run([&] {
              return pardl::all_reduce(world, torch::ones({4, 4}).slice(1, 0, 2));
            }) == where +
                      "all_reduce: the tensor has gaps or overlaps in memory; pass tensor.contiguous(), and copy the "
                      "result back.");
      CHECK(run([&] {
              return pardl::all_gather_into(world, torch::ones({8}), torch::ones({2, 2}).t());
            }).find("the input is not contiguous") != std::string::npos);
      CHECK(run([&] { return pardl::broadcast(world, t, n); }) == where + "broadcast: the root is rank " +
                                                                      std::to_string(n) + " of " + std::to_string(n) +
                                                                      "; ranks count from 0.");
      CHECK(run([&] { return pardl::send(world, t, -1); }).find("the receiver is rank -1") != std::string::npos);
      CHECK(run([&] {
              return pardl::all_reduce(world, t, ReduceOp::band);
            }).find("bitwise operations are for integers, not float32") != std::string::npos);
      CHECK(run([&] {
              return pardl::all_reduce(world, t.to(torch::kInt64), ReduceOp::avg);
            }).find("would have to be rounded") != std::string::npos);
      CHECK(run([&] {
              return pardl::all_gather(world, Tensors(static_cast<std::size_t>(n) + 1, t.clone()), t);
            }).find("tensors for") != std::string::npos);
      CHECK(run([&] {
              return pardl::all_gather(world, Tensors(static_cast<std::size_t>(n), torch::ones({3})), t);
            }).find("has 3 elements, not 4") != std::string::npos);
      CHECK(run([&] {
              return pardl::all_gather_into(world, torch::ones({4 * n}, torch::kFloat64), t);
            }).find("different dtypes, float32 and float64") != std::string::npos);
      CHECK(run([&] { return pardl::reduce_scatter_into(world, t, torch::ones({4 * n + 1})); }).find("the input has") !=
            std::string::npos);
      CHECK(run([&] {
              return pardl::all_to_all_single(world, t, t, {1}, {3, 3, 3});
            }).find("do not divide") != std::string::npos);
      if (world.rank() != 0)
        CHECK(run([&] { return pardl::scatter(world, t, Tensors(2, t)); }).find("not the root but gave inputs") !=
              std::string::npos);
      CHECK(pardl::all_sum(world, 1) == n);
    });
  }
}
