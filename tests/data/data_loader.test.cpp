// SPDX-License-Identifier: MIT
#include "pardl/data/data_loader.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <ranges>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "pardl/data/synthetic.hpp"
#include "support/temporary_folder.hpp"

using namespace pardl;
using pardl::testing::what_of;

namespace {

auto const augment =
    RandomCrop{8, 2} | RandomHorizontalFlip{} | Cutout{2} | Normalize{{0.5, 0.5, 0.5}, {0.25, 0.25, 0.25}};

data::Synthetic small(std::int64_t samples = 50) {
  return data::Synthetic{{.samples = samples, .classes = 5, .channels = 3, .height = 8, .width = 8}};
}

template <class Range>
std::vector<Batch> all_of(Range&& range) {
  std::vector<Batch> batches;
  for (auto const& batch : range) batches.push_back(batch);
  return batches;
}

bool same(std::vector<Batch> const& a, std::vector<Batch> const& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!torch::equal(a[i].inputs, b[i].inputs) || !torch::equal(a[i].targets, b[i].targets)) return false;
  return true;
}

/// Sample i is the number i; it can be told to throw, and it counts its calls and its threads' OpenMP setting.
struct Numbers {
  struct Log {
    std::atomic<int> calls = 0, most_threads = 0;
  };
  std::int64_t count = 20;
  std::int64_t bad = -1;
  std::shared_ptr<Log> log = std::make_shared<Log>();

  [[nodiscard]] std::int64_t size() const { return count; }
  [[nodiscard]] Batch batch(std::span<std::int64_t const> indices) const {
    ++log->calls;
    log->most_threads = std::max(log->most_threads.load(), at::get_num_threads());
    auto x = torch::empty({static_cast<std::int64_t>(indices.size())}, torch::kLong);
    for (std::size_t i = 0; i < indices.size(); ++i) {
      if (indices[i] == bad) throw std::runtime_error("sample " + std::to_string(bad) + " is rotten");
      x[static_cast<std::int64_t>(i)] = indices[i];
    }
    return {x, x * 10};
  }
};
static_assert(dataset<Numbers> && !resident_dataset<Numbers>);

/// This sampler models the concept and no more: no size(), no skip().
struct EverySecond {
  [[nodiscard]] std::vector<std::int64_t> indices(std::int64_t) const { return {0, 2, 4, 6, 8}; }
};

std::size_t threads_of_this_process() {
  return static_cast<std::size_t>(std::ranges::distance(std::filesystem::directory_iterator("/proc/self/task"),
                                                        std::filesystem::directory_iterator{}));
}

using Epoch = LoaderEpoch<Numbers, NoTransform>;
static_assert(std::ranges::input_range<Epoch> && std::ranges::sized_range<Epoch> && std::movable<Epoch>);

}  // namespace

TEST_CASE("an epoch is the sampler's order, cut into batches, the last one shorter unless it is dropped") {
  Numbers const numbers;
  DistributedSampler const order{numbers.size(), {1, 3}, {.seed = 3}};  // 7 of 20
  for (bool const drop : {false, true}) {
    DataLoader const loader{numbers, order, {.batch_size = 3, .drop_last = drop}};
    CHECK(loader.batches() == (drop ? 2 : 3));
    CHECK(loader.samples() == (drop ? 6 : 7));
    std::vector<std::int64_t> seen, expected;
    for (auto [x, y] : loader.epoch(4)) {
      CHECK(torch::equal(x * 10, y));
      CHECK(x.size(0) <= 3);
      for (std::int64_t i = 0; i < x.size(0); ++i) seen.push_back(x[i].item<std::int64_t>());
    }
    for (std::int64_t const index : order.indices(4)) expected.push_back(index);
    if (drop) expected.resize(6);
    CHECK(seen == expected);
    CHECK(loader.epoch(4).size() == static_cast<std::size_t>(loader.batches()));
  }
}

TEST_CASE("batches are the same, bit for bit, whatever the number of workers and the prefetch") {
  auto const set = small();
  DistributedSampler const order{set.size(), {0, 1}};
  auto const with = [&](int workers, int prefetch) {
    DataLoader const loader{
        set, order, augment, {.batch_size = 7, .workers = workers, .prefetch = prefetch, .seed = 9}};
    auto batches = all_of(loader.epoch(2));
    for (auto const& batch : all_of(loader.epoch(3))) batches.push_back(batch);
    return batches;
  };
  auto const expected = with(0, 1);
  CHECK(expected.size() == 16);
  for (int const workers : {1, 2, 5})
    for (int const prefetch : {1, 3}) CHECK(same(with(workers, prefetch), expected));
  DataLoader const other{set, order, augment, {.batch_size = 7, .seed = 10}};
  CHECK_FALSE(torch::equal(all_of(other.epoch(2))[0].inputs, expected[0].inputs));
}

TEST_CASE("a sample has the same pixels on any number of ranks, in any batch, and resident or not") {
  auto const set = small(24);
  data::TensorDataset const named{set.images(), torch::arange(24)};  // the target says which sample it is
  auto const pixels = [&](int ranks, std::int64_t batch_size, bool resident, torch::MemoryFormat format) {
    auto all = torch::zeros({24, 3, 8, 8});
    for (int rank = 0; rank < ranks; ++rank) {
      DistributedSampler const order{24, {rank, ranks}, {.seed = 1}};
      DataLoader const loader{
          named, order, augment, {.batch_size = batch_size, .resident = resident, .memory_format = format, .seed = 5}};
      for (auto [x, which] : loader.epoch(6)) {
        CHECK(x.is_contiguous(format));
        all.index_copy_(0, which, x);
      }
    }
    return all;
  };
  auto const expected = pixels(1, 24, false, torch::MemoryFormat::Contiguous);
  CHECK(torch::equal(pixels(2, 5, false, torch::MemoryFormat::Contiguous), expected));
  CHECK(torch::equal(pixels(3, 8, true, torch::MemoryFormat::Contiguous), expected));
  CHECK(torch::equal(pixels(4, 1, false, torch::MemoryFormat::ChannelsLast), expected));
  CHECK(torch::equal(pixels(2, 24, true, torch::MemoryFormat::ChannelsLast), expected));
}

TEST_CASE("the pixels are those that the transform makes of the run's seed, the epoch and the sample") {
  auto const set = small(24);
  DataLoader const loader{set, SequentialSampler{24}, augment, {.batch_size = 24, .seed = 5}};
  std::vector<std::int64_t> numbers(24);
  std::iota(numbers.begin(), numbers.end(), 0);
  for (std::int64_t const epoch : {0, 6})
    CHECK(torch::equal(all_of(loader.epoch(epoch))[0].inputs, augment(set.images(), {5, epoch, numbers})));
}

TEST_CASE("the rest of an epoch has the samples and the pixels that it would have had") {
  auto const set = small(24);
  for (int const ranks : {1, 2}) {
    DistributedSampler const order{24, {0, ranks}, {.seed = 1}};
    DataLoader const loader{set, order, augment, {.batch_size = 3, .seed = 5}};
    auto whole = all_of(loader.epoch(6));
    auto const rest = loader.epoch(6, 3 * 2 * ranks);
    CHECK(rest.size() == whole.size() - 2);
    whole.erase(whole.begin(), whole.begin() + 2);
    CHECK(same(all_of(loader.epoch(6, 3 * 2 * ranks)), whole));
  }
}

TEST_CASE("image bytes become floats in [0, 1] where no transform did it; other bytes stay") {
  auto const set = small(4);
  DataLoader const plain{set, SequentialSampler{4}, {.batch_size = 4}};
  CHECK(torch::equal(all_of(plain.epoch(0))[0].inputs, set.images().to(torch::kFloat).div(255)));
  DataLoader const cropped{
      set, SequentialSampler{4}, RandomCrop{8}, {.batch_size = 4, .memory_format = torch::MemoryFormat::ChannelsLast}};
  auto const batch = all_of(cropped.epoch(0))[0].inputs;
  CHECK(torch::equal(batch, set.images().to(torch::kFloat).div(255)));
  CHECK(batch.is_contiguous(torch::MemoryFormat::ChannelsLast));
  data::TensorDataset const text{torch::ones({4, 9}, torch::kByte), torch::arange(4)};
  DataLoader const tokens{text, SequentialSampler{4}, {.batch_size = 4}};
  CHECK((all_of(tokens.epoch(0))[0].inputs.scalar_type() == torch::kByte));
}

TEST_CASE("a sampler needs no more than indices, and a lambda is a transform") {
  Numbers const numbers;
  DataLoader const loader{
      numbers, EverySecond{}, [](torch::Tensor const& x, SampleStream const&) { return x + 1; }, {.batch_size = 4}};
  CHECK(loader.batches() == 2);
  auto const batches = all_of(loader.epoch(0));
  CHECK(torch::equal(batches[0].inputs, torch::tensor({1, 3, 5, 7})));
  CHECK(torch::equal(batches[1].inputs, torch::tensor({9})));
}

TEST_CASE("no samples make no batches") {
  DataLoader const loader{data::TensorDataset{torch::zeros({0, 2}), torch::zeros({0})},
                          DistributedSampler{0, {0, 2}},
                          {.batch_size = 4, .workers = 2}};
  CHECK(loader.batches() == 0);
  CHECK(all_of(loader.epoch(0)).empty());
}

TEST_CASE("an epoch outlives its loader, the next epoch's call, and a move") {
  std::optional<DataLoader<Numbers, DistributedSampler>> loader;
  loader.emplace(Numbers{}, DistributedSampler{20, {0, 1}, {.seed = 2}},
                 DataLoaderOptions{.batch_size = 4, .workers = 2});
  auto const expected = all_of(loader->epoch(0));
  auto old = loader->epoch(0);
  auto it = old.begin();
  CHECK(torch::equal(it->inputs, expected[0].inputs));
  CHECK_FALSE(same(all_of(loader->epoch(1)), expected));
  loader.reset();
  auto moved = std::move(old);
  std::size_t count = 1;
  auto at = moved.begin();  // begin() again is where the range is
  CHECK(torch::equal(at->inputs, expected[0].inputs));
  for (++at; at != moved.end(); ++at, ++count) CHECK(torch::equal((*at).inputs, expected[count].inputs));
  CHECK(count == expected.size());
}

TEST_CASE("leaving an epoch early stops its threads, and epochs leave none behind") {
  Numbers numbers{.count = 100'000};
  DataLoader const loader{numbers, SequentialSampler{numbers.count}, {.batch_size = 1, .workers = 3, .prefetch = 2}};
  for (auto const& batch : loader.epoch(0)) {
    CHECK(batch.inputs.item<std::int64_t>() == 0);
    break;
  }
  CHECK(numbers.log->calls <= 1 + 3 * 2);
  auto const before = threads_of_this_process();
  for (int epoch = 0; epoch < 20; ++epoch)
    for ([[maybe_unused]] auto const& batch : loader.epoch(epoch)) break;
  CHECK(threads_of_this_process() == before);
  { auto const never_begun = loader.epoch(1); }
  CHECK(threads_of_this_process() == before);
}

TEST_CASE("what a dataset or a transform throws comes out after the batches before it, and says which batch") {
  for (int const workers : {0, 1, 3}) {
    DataLoader const loader{Numbers{.bad = 9}, SequentialSampler{20}, {.batch_size = 4, .workers = workers}};
    auto epoch = loader.epoch(7);
    auto it = epoch.begin();
    CHECK(it->inputs[0].item<std::int64_t>() == 0);
    ++it;
    CHECK(it->inputs[0].item<std::int64_t>() == 4);
    std::string cause, message;
    try {
      ++it;
    } catch (DataError const& error) {
      message = error.what();
      try {
        std::rethrow_if_nested(error);
      } catch (std::runtime_error const& inner) {
        cause = inner.what();
      }
    }
    CHECK(message == "[data] batch 2 of epoch 7 failed: sample 9 is rotten; the dataset or a transform threw this.");
    CHECK(cause == "sample 9 is rotten");
    CHECK(it == epoch.end());
  }
  auto const torn = [](torch::Tensor const& x, SampleStream const&) { return x.view({-1, 7}); };
  DataLoader const wrong{Numbers{}, SequentialSampler{20}, torn, {.batch_size = 4}};
  auto const message = what_of<DataError>([&] { (void)all_of(wrong.epoch(0)); });
  CHECK(message.find("batch 0 of epoch 0 failed: shape '[-1, 7]' is invalid") != std::string::npos);
  CHECK(message.find("frame #") == std::string::npos);
}

TEST_CASE("our own errors keep their type and sentence") {
  DataLoader const beyond{small(10), SequentialSampler{20}, {.batch_size = 20, .workers = 1}};
  CHECK(what_of<DataError>([&] { (void)all_of(beyond.epoch(0)); }) ==
        "[data] sample 10 of a dataset of 10; make the sampler with the size of the dataset that the loader gets.");
  DataLoader const crop{small(10), SequentialSampler{10}, RandomCrop{.size = 99}, {.batch_size = 5}};
  CHECK_THROWS_AS((void)all_of(crop.epoch(0)), ConfigError);
  auto const halved = [](torch::Tensor const& x, SampleStream const&) { return x.narrow(0, 0, 1); };
  DataLoader const fewer{small(10), SequentialSampler{10}, halved, {.batch_size = 5}};
  CHECK(what_of<DataError>([&] { (void)all_of(fewer.epoch(0)); }).find("returned [1, 3, 8, 8] for 5 samples") !=
        std::string::npos);
}

TEST_CASE("options that cannot be right are refused when the loader is made") {
  auto const make = [](DataLoaderOptions options) {
    return what_of<ConfigError>([&] { DataLoader{Numbers{}, SequentialSampler{20}, options}; });
  };
  CHECK(make({.batch_size = 0}) ==
        "[data] DataLoader: batch size 0 on this rank; a batch has at least one sample per rank: raise the global "
        "batch size or use fewer ranks.");
  CHECK_FALSE(make({.batch_size = -4}).empty());
  CHECK_FALSE(make({.workers = -1}).empty());
  CHECK_FALSE(make({.prefetch = 0}).empty());
  CHECK_FALSE(make({.memory_format = torch::MemoryFormat::ChannelsLast3d}).empty());
  CHECK(make({.resident = true}).find("resident, but the dataset cannot be moved") != std::string::npos);
  if (!torch::cuda::is_available())
    CHECK(make({.device = torch::kCUDA}).find("LibTorch sees no CUDA device") != std::string::npos);
  CHECK(make({}).empty());
}

TEST_CASE("a worker computes in one thread, and the program's own setting stays as it is") {
  int const before = at::get_num_threads();
  at::set_num_threads(3);
  Numbers numbers;
  DataLoader const loader{numbers, SequentialSampler{20}, {.batch_size = 5, .workers = 2}};
  (void)all_of(loader.epoch(0));
  CHECK(numbers.log->most_threads == 1);
  CHECK(at::get_num_threads() == 3);
  int later = 0;
  std::thread([&] { later = at::get_num_threads(); }).join();
  CHECK(later == 3);
  at::set_num_threads(before);
}

TEST_CASE("batches carry no graph, and making them leaves the caller's grad mode alone") {
  data::TensorDataset const set{torch::rand({4, 2}), torch::arange(4)};
  auto const weight = torch::ones({2}, torch::requires_grad());
  for (int const workers : {0, 1}) {
    DataLoader const loader{set,
                            SequentialSampler{4},
                            [&](torch::Tensor const& x, SampleStream const&) { return x * weight; },
                            {.batch_size = 4, .workers = workers}};
    for (auto const& batch : loader.epoch(0)) {
      CHECK_FALSE(batch.inputs.requires_grad());
      CHECK(torch::GradMode::is_enabled());
    }
  }
}
