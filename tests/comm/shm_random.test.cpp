// SPDX-License-Identifier: MIT
// Random programs over shared memory: any operation after any other, of any size, dtype and layout, several at a time,
// waited for in an order of each rank's own. Each result is what one process computes from the ranks' numbers.
#include <torch/torch.h>

#include <array>
#include <cstdint>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "comm/shm_support.hpp"
#include "support/seed.hpp"

// Last: LibTorch's logging has a CHECK of its own.
#include <doctest/doctest.h>

namespace {

using pardl::detail::shm::Progress;
using Tensors = std::vector<torch::Tensor>;
using RedOp = c10d::ReduceOp::RedOpType;

/// One rank's run of a program. All ranks draw the same program from `seed`.
class Program {
 public:
  Program(c10d::Backend& backend, int rank, int size, unsigned seed)
      : backend_(backend), rank_(rank), size_(size), draws_(seed), own_(seed + 1'000U * static_cast<unsigned>(rank)) {}

  void run(int steps, std::size_t at_a_time) {
    for (step_ = 0; step_ < steps; ++step_) {
      count_ = pick(std::array<std::int64_t, 9>{0, 1, 3, 63, 1024, 1025, 16'384, 16'390, 200'003});
      dtype_ = pick(std::array{torch::kFloat, torch::kDouble, torch::kHalf, torch::kBFloat16, torch::kInt8,
                               torch::kUInt8, torch::kInt16, torch::kInt32, torch::kInt64, torch::kBool});
      gaps_ = draws_() % 4 == 0;
      root_ = static_cast<int>(draws_() % static_cast<unsigned>(size_));
      begin(draws_() % 10);
      while (under_way_.size() > at_a_time) end(own_() % under_way_.size());
    }
    while (!under_way_.empty()) end(own_() % under_way_.size());
  }

 private:
  struct UnderWay {
    c10::intrusive_ptr<c10d::Work> work;
    std::function<bool()> right;
    int step;
  };

  template <class Choices>
  typename Choices::value_type pick(Choices const& choices) {
    return choices[draws_() % choices.size()];
  }
  /// Ones and twos, whose sums and products every dtype holds: what a rank brings to this step.
  [[nodiscard]] torch::Tensor of(int rank, std::int64_t count) const {
    auto const key = static_cast<std::uint64_t>(step_) * 64 + static_cast<std::uint64_t>(rank);
    auto generator = at::make_generator<at::CPUGeneratorImpl>(key);
    auto const numbers = torch::randint(1, 3, {count}, generator, torch::kInt64);
    return dtype_ == torch::kBool ? numbers.eq(1) : numbers.to(dtype_);
  }
  /// The same numbers, perhaps in memory with gaps.
  [[nodiscard]] torch::Tensor laid_out(torch::Tensor const& numbers) const {
    if (!gaps_) return numbers.clone();
    auto place = torch::empty({numbers.numel(), 2}, numbers.options()).select(1, 1);
    place.copy_(numbers);
    return place;
  }
  [[nodiscard]] torch::Tensor empty(std::int64_t count) const { return laid_out(torch::zeros({count}, dtype_)); }
  [[nodiscard]] torch::Tensor combined(RedOp op, std::int64_t count) const {
    auto all = of(0, count);
    for (int r = 1; r < size_; ++r) {
      auto const next = of(r, count);
      all = op == RedOp::SUM       ? all + next
            : op == RedOp::PRODUCT ? all * next
            : op == RedOp::MIN     ? torch::minimum(all, next)
                                   : torch::maximum(all, next);
    }
    return all;
  }
  [[nodiscard]] torch::Tensor gathered(std::int64_t count) const {
    Tensors all;
    for (int r = 0; r < size_; ++r) all.push_back(of(r, count));
    return torch::cat(all);
  }
  void put(c10::intrusive_ptr<c10d::Work> work, torch::Tensor const& result, torch::Tensor expected) {
    under_way_.push_back(
        {std::move(work), [result, expected = std::move(expected)] { return torch::equal(result, expected); }, step_});
  }

  void begin(std::uint_fast32_t kind) {
    auto const op = pick(std::array{RedOp::SUM, RedOp::PRODUCT, RedOp::MIN, RedOp::MAX});
    auto const mine = laid_out(of(rank_, count_));
    auto const share = count_ / size_, even = share * size_;
    switch (kind) {
      case 0:
      case 1: {
        c10d::AllreduceOptions options;
        options.reduceOp = c10d::ReduceOp(op);
        Tensors t{mine};
        return put(backend_.allreduce(t, options), mine, combined(op, count_));
      }
      case 2: {
        c10d::ReduceOptions options;
        options.reduceOp = c10d::ReduceOp(op);
        options.rootRank = root_;
        Tensors t{mine};
        return put(backend_.reduce(t, options), mine, rank_ == root_ ? combined(op, count_) : of(rank_, count_));
      }
      case 3: {
        c10d::BroadcastOptions options;
        options.rootRank = root_;
        Tensors t{mine};
        return put(backend_.broadcast(t, options), mine, of(root_, count_));
      }
      case 4: {
        auto all = empty(count_ * size_), in = mine;
        return put(backend_._allgather_base(all, in, {}), all, gathered(count_));
      }
      case 5: {
        c10d::ReduceScatterOptions options;
        options.reduceOp = c10d::ReduceOp(op);
        auto out = empty(share), in = laid_out(of(rank_, even));
        return put(backend_._reduce_scatter_base(out, in, options), out,
                   combined(op, even).narrow(0, share * rank_, share));
      }
      case 6: {
        auto out = empty(even), in = laid_out(of(rank_, even));
        std::vector<std::int64_t> alike;
        Tensors expected;
        for (int r = 0; r < size_; ++r) expected.push_back(of(r, even).narrow(0, share * rank_, share));
        return put(backend_.alltoall_base(out, in, alike, alike, {}), out, torch::cat(expected));
      }
      case 7: {
        c10d::ScatterOptions options;
        options.rootRank = root_;
        Tensors out{empty(share)};
        std::vector<Tensors> in;
        if (rank_ == root_) {
          auto const pieces = of(root_, even).view({size_, share}).unbind();
          in.emplace_back(pieces.begin(), pieces.end());
        }
        return put(backend_.scatter(out, in, options), out[0], of(root_, even).narrow(0, share * rank_, share));
      }
      case 8: {  // lists of uneven sizes
        std::vector<Tensors> out(1);
        for (int r = 0; r < size_; ++r) out[0].push_back(empty(count_ / (r + 1)));
        Tensors in{laid_out(of(rank_, count_ / (rank_ + 1)))};
        auto work = backend_.allgather(out, in, {});
        for (int r = 0; r < size_; ++r) put(work, out[0][static_cast<std::size_t>(r)], of(r, count_ / (r + 1)));
        return;
      }
      default: {
        if (size_ == 1) return;
        Tensors out{mine}, in{empty(count_)};
        auto const from = (rank_ + size_ - 1) % size_, tag = static_cast<int>(draws_() % 3);
        put(backend_.send(out, (rank_ + 1) % size_, tag), mine, of(rank_, count_));
        return put(backend_.recv(in, from, tag), in[0], of(from, count_));
      }
    }
  }
  void end(std::size_t which) {
    auto const [work, right, step] = std::move(under_way_[which]);
    under_way_.erase(under_way_.begin() + static_cast<std::ptrdiff_t>(which));
    work->wait();
    CHECK_MESSAGE(right(), "step " << step << " on rank " << rank_ << " of " << size_);
  }

  c10d::Backend& backend_;
  int rank_, size_;
  std::mt19937 draws_, own_;
  std::vector<UnderWay> under_way_;
  int step_ = 0;
  std::int64_t count_ = 0;
  torch::Dtype dtype_ = torch::kFloat;
  bool gaps_ = false;
  int root_ = 0;
};

}  // namespace

TEST_CASE("random programs of collectives and messages give what one process computes") {
  auto const seed = pardl::testing::draw_seed();
  CAPTURE(seed);
  for (unsigned program = 0; program < 18; ++program) {
    CAPTURE(program);
    int const size = 1 + static_cast<int>(program % 6);
    pardl::ShmOptions const options{.progress = program % 2 == 0 ? Progress::caller : Progress::thread,
                                    .slot = std::size_t{program % 3 == 0 ? 256U : 4U} << 10};
    shm_test::bare(size, options, [&](c10d::Backend& backend, int rank) {
      Program(backend, rank, size, seed + program).run(60, program % 5);
    });
  }
}
