// SPDX-License-Identifier: MIT
// A federation's file: all of it comes back, and a file that does not fit changes nothing.
#include "pardl/fed/checkpoint.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "federation.hpp"
#include "pardl/fed/runner.hpp"

using namespace federation;
using pardl::io::Metadata;
using pardl::io::TensorType;
using pardl::testing::read_text;
using pardl::testing::TemporaryFolder;

namespace {

/// Everything that a checkpoint can hold: the server's states and numbers, what clients keep, their integers.
auto make(int workers = 2) {
  fed::RunnerOptions options{.workers = workers, .seed = 4};
  options.sharing.buffers = fed::BufferPolicy::client_local;
  return std::make_unique<
      fed::Runner<torch::nn::Sequential, TensorDataset, decltype(training(fed::ControlVariates{})), fed::ServerAdam>>(
      small_net(), samples(), growing(6), training(fed::ControlVariates{}), fed::ServerAdam{.lr = 0.05}, options);
}

std::vector<double> costs_in(std::filesystem::path const& file) { return read<double>(file, "costs"); }

/// A file in memory, to be spoilt and written again.
struct File {
  struct Tensor {
    TensorType type;
    std::vector<std::int64_t> shape;
    std::vector<std::uint8_t> bytes;
  };
  Metadata words;
  std::map<std::string, Tensor> tensors;

  explicit File(std::filesystem::path const& path) {
    pardl::io::SafetensorsReader const reader(path);
    words = reader.metadata();
    for (auto const& tensor : reader.tensors())
      tensors[tensor.name] = {tensor.type, tensor.shape, read<std::uint8_t>(path, tensor.name)};
  }
  void write(std::filesystem::path const& path) const {
    std::vector<pardl::io::TensorBytes> all;
    for (auto const& [name, tensor] : tensors)
      all.push_back({name, tensor.type, tensor.shape, std::as_bytes(std::span(tensor.bytes))});
    pardl::io::write_safetensors(path, all, words);
  }
};

}  // namespace

TEST_CASE("what was loaded is saved again byte for byte, the learned costs too") {
  TemporaryFolder const folder;
  auto runner = make();
  for (int round = 0; round < 3; ++round) runner->train(fed::Uniform{.count = 4});
  runner->save(folder / "first", {{"word", "kept"}});
  auto const costs = costs_in(folder / "first");
  REQUIRE(costs.size() == 1 + 2 * 5);  // a number of workers, and five sums for each
  CHECK(costs[0] == 2);
  CHECK(costs[1] + costs[6] > 10);  // observations: 12, the older ones weighing less
  CHECK(costs[4] + costs[9] > 0);   // seconds

  auto again = make();
  auto const remarks = again->load(folder / "first");
  again->save(folder / "second", remarks);
  CHECK(read_text(folder / "first") == read_text(folder / "second"));

  // Over a federation that has gone another way, too.
  auto other = make();
  for (int round = 0; round < 2; ++round) other->train({0, 5});
  other->load(folder / "first");
  other->save(folder / "third", remarks);
  CHECK(read_text(folder / "first") == read_text(folder / "third"));

  // With fewer workers: what was learned of those that are left.
  auto alone = make(1);
  alone->load(folder / "first");
  alone->save(folder / "alone");
  auto const learned = costs_in(folder / "alone");
  REQUIRE(learned.size() == 1 + 5);
  CHECK(learned[0] == 1);
  CHECK(std::ranges::equal(std::span(learned).subspan(1), std::span(costs).subspan(1, 5)));
  CHECK(contents_of(*alone) == contents_of(*runner));
}

TEST_CASE("a client that kept something in a later round keeps nothing once an earlier round is loaded") {
  TemporaryFolder const folder;
  auto runner = make(), plain = make();
  runner->train({0, 1});
  plain->train({0, 1});
  runner->save(folder / "early");
  auto const early = contents_of(*runner);
  CHECK(early.count("client.1.integers") == 1);
  CHECK(early.count("client.4") == 0);
  runner->train({1, 4});
  CHECK(contents_of(*runner).count("client.4") == 1);
  runner->load(folder / "early");
  CHECK(contents_of(*runner) == early);
  CHECK(runner->round() == 1);
  runner->train({0, 4, 5});
  plain->train({0, 4, 5});
  CHECK(contents_of(*runner) == contents_of(*plain));
}

namespace {

/// Trains nothing, and lists whose turn it was.
struct Listed {
  std::shared_ptr<std::vector<std::int64_t>> list = std::make_shared<std::vector<std::int64_t>>();
  [[nodiscard]] static std::int64_t processed(std::int64_t count) { return count; }
  [[nodiscard]] fed::CrossEntropy loss() const { return {}; }
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    list->push_back(task.client);
    fed::LocalResult result;
    result.samples = task.samples;
    return result;
  }
};

}  // namespace

TEST_CASE("a run that is resumed schedules by the costs it had learned") {
  TemporaryFolder const folder;
  Listed local;
  auto const make_listed = [&] {
    return std::make_unique<fed::Runner<torch::nn::Sequential, TensorDataset, Listed>>(
        small_net(), samples(), growing(4), local, fed::Average{}, fed::RunnerOptions{.processes = false});
  };
  make_listed()->save(folder / "state");
  // In the file a sample costs nothing, only a client does: the small ones were seen to take longer.
  fed::CostModel learned(1);
  learned.observe(0, 5, 2);
  learned.observe(0, 8, 1);
  std::vector<double> sums;
  learned.save(sums);
  File file(folder / "state");
  auto const bytes = std::as_bytes(std::span(sums));
  std::ranges::transform(bytes, file.tensors.at("costs").bytes.begin(),
                         [](std::byte byte) { return std::to_integer<std::uint8_t>(byte); });
  file.write(folder / "state");

  make_listed()->train({0, 1, 2, 3});
  CHECK(*local.list == std::vector<std::int64_t>{3, 2, 1, 0});  // knowing nothing: the one with most samples first
  local.list->clear();
  auto resumed = make_listed();
  resumed->load(folder / "state");
  resumed->train({0, 1, 2, 3});
  CHECK(*local.list == std::vector<std::int64_t>{0, 1, 2, 3});
}

TEST_CASE("the largest integers of rounds after the one that is loaded are forgotten") {
  TemporaryFolder const folder;
  auto const averaged = [] {
    return std::make_unique<fed::Runner<torch::nn::Sequential, TensorDataset, fed::LocalTraining<>>>(
        small_net(), samples(), growing(8), training(), fed::Average{}, fed::RunnerOptions{.workers = 2, .seed = 4});
  };
  auto runner = averaged(), plain = averaged();
  runner->save(folder / "start");
  runner->train({0, 7});  // client 7 sees six batches, client 0 two
  runner->load(folder / "start");
  runner->train({0, 1});
  plain->train({0, 1});
  CHECK(contents_of(*runner) == contents_of(*plain));
}

TEST_CASE("a file that does not fit is refused with the reason, and nothing changes") {
  TemporaryFolder const folder;
  auto const path = folder / "state";
  auto runner = make();
  runner->train({0, 1, 2});
  runner->save(path);
  File const good(path);
  runner->train({0, 3, 4});
  runner->save(folder / "before");

  struct Spoilt {
    std::function<void(File&)> spoil;
    char const* words;
  };
  auto const set = [](char const* key, char const* value) { return [=](File& file) { file.words[key] = value; }; };
  std::vector<Spoilt> const all{
      {[](File& file) { file.words.erase("format"); }, "says nothing of its format"},
      {set("format", "pardl federation 0"), "is of the format 'pardl federation 0'"},
      {[](File& file) { file.words.erase("round"); }, "says nothing of its round"},
      {set("round", "three"), "has a damaged round"},
      {set("round", "-1"), "has a damaged round"},
      {set("round", "9223372036854775807"), "has a damaged round"},
      {set("seed", "7"), "was made with the seed 7, this job has 4"},
      {set("clients", "5"), "is of 5 clients, this job has 6"},
      {[](File& file) { file.tensors.erase("model.0.bias"); }, "has no tensor model.0.bias"},
      {[](File& file) { file.tensors.erase("server.1"); }, "has no tensor server.1"},
      {[](File& file) { file.tensors.erase("numbers"); }, "has no tensor numbers"},
      {[](File& file) { file.tensors.erase("client.1.integers"); }, "has no tensor client.1.integers"},
      {[](File& file) {
         file.tensors.at("model.0.weight").shape = {8, 16};
       },
       "a model.0.weight of another shape"},
      {[](File& file) { file.tensors.at("numbers").type = TensorType::i32; }, "a numbers of another shape or type"},
      {[](File& file) { file.tensors["client.6"] = file.tensors.at("client.1"); }, "tensors that this model does not"},
      {[](File& file) { file.tensors["server.2"] = file.tensors.at("server.1"); }, "tensors that this model does not"},
      {[](File& file) { file.tensors.erase("costs"); }, "costs"},
      {[](File& file) { file.tensors.at("costs").type = TensorType::i64; }, "has damaged costs"},
      {[](File& file) { std::ranges::fill(file.tensors.at("costs").bytes, std::uint8_t{0xff}); }, "of a cost model"}};
  for (auto const& [spoil, words] : all) {
    CAPTURE(words);
    auto file = good;
    spoil(file);
    file.write(folder / "spoilt");
    CHECK_THROWS_WITH_AS((void)runner->load(folder / "spoilt"), doctest::Contains(words), pardl::CheckpointError);
    runner->save(folder / "after");
    CHECK(read_text(folder / "before") == read_text(folder / "after"));
  }
  runner->load(path);  // the file itself is fine
  runner->save(folder / "after");
  CHECK(read_text(path) == read_text(folder / "after"));
}

TEST_CASE("weights alone come from a model's file or a checkpoint, and leave all else as it was") {
  TemporaryFolder const folder;
  auto source = make();
  source->train({0, 1, 2, 3, 4, 5});
  source->save(folder / "state");
  source->save_model(folder / "model");
  for (auto const* name : {"state", "model"}) {
    CAPTURE(name);
    auto runner = make();
    runner->train({2, 3});
    auto expected = contents_of(*runner);
    for (auto const& [tensor, bytes] : contents_of(*source))
      if (tensor.starts_with("model.")) expected[tensor] = bytes;
    runner->load_model(folder / name);
    CHECK(runner->round() == 1);
    CHECK(contents_of(*runner) == expected);
  }
  auto runner = make();
  auto const before = contents_of(*runner);
  File file(folder / "model");
  CHECK(file.tensors.count("0.weight") == 1);
  CHECK(file.tensors.count("server.0") == 0);
  auto shorter = file;
  shorter.tensors.erase("4.bias");
  shorter.write(folder / "spoilt");
  CHECK_THROWS_AS(runner->load_model(folder / "spoilt"), pardl::CheckpointError);
  file.tensors.at("4.weight").shape = {16, 4};
  file.write(folder / "spoilt");
  CHECK_THROWS_WITH_AS(runner->load_model(folder / "spoilt"), doctest::Contains("4.weight of another shape"),
                       pardl::CheckpointError);
  CHECK(contents_of(*runner) == before);
}
