// SPDX-License-Identifier: MIT
#include "pardl/data/leaf.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "pardl/data/synthetic_writers.hpp"
#include "support/temporary_folder.hpp"

using namespace pardl;
using data::LeafOptions;
using data::LeafPart;
using nlohmann::json;
using pardl::testing::read_text;
using pardl::testing::TemporaryFolder;
using pardl::testing::what_of;
using pardl::testing::write_text;

namespace {

struct Sample {
  std::vector<double> pixels;
  std::int64_t label;
};
using Writer = std::pair<std::string, std::vector<Sample>>;

/// 2x2 images: pixel p of sample s of a writer is (base + 4 s + p) / 255.
Writer writer(std::string const& name, int base, std::vector<std::int64_t> const& labels) {
  Writer made{name, {}};
  for (auto const label : labels) {
    std::vector<double> pixels;
    for (int p = 0; p < 4; ++p) pixels.push_back(base++ / 255.0);
    made.second.push_back({pixels, label});
  }
  return made;
}

json document(std::vector<Writer> const& writers) {
  json made{{"users", json::array()}, {"num_samples", json::array()}, {"user_data", json::object()}};
  for (auto const& [name, samples] : writers) {
    made["users"].push_back(name);
    made["num_samples"].push_back(samples.size());
    auto& data = made["user_data"][name] = {{"x", json::array()}, {"y", json::array()}};
    for (auto const& sample : samples) {
      data["x"].push_back(sample.pixels);
      data["y"].push_back(sample.label);
    }
  }
  return made;
}

std::filesystem::path write(std::filesystem::path const& path, json const& content) {
  std::filesystem::create_directories(path.parent_path());
  write_text(path, content.dump());
  return path;
}

LeafOptions const tiny{.classes = 10, .side = 2};

LeafOptions with(LeafPart part) {
  LeafOptions options = tiny;
  options.part = part;
  return options;
}

std::string error_of(std::filesystem::path const& root, LeafOptions const& options = tiny) {
  return what_of<DataError>([&] { (void)data::read_leaf(root, options); });
}

torch::Tensor images(data::Leaf const& leaf) { return std::get<data::ImageDataset>(leaf.samples).images(); }

std::vector<std::int64_t> list(torch::Tensor const& labels) {
  auto const flat = labels.contiguous();
  return {flat.const_data_ptr<std::int64_t>(), flat.const_data_ptr<std::int64_t>() + flat.numel()};
}

}  // namespace

TEST_CASE("LEAF's quotients of 255 become the bytes they were, with owners and names") {
  TemporaryFolder const folder;
  write(folder / "all_data_0.json", document({writer("f0000_14", 0, {3, 9}), writer("f0001_41", 100, {0, 1, 2})}));
  auto const leaf = data::read_leaf(folder.path(), tiny);
  CHECK(leaf.size() == 5);
  CHECK(leaf.files == 1);
  CHECK(leaf.writers.names == std::vector<std::string>{"f0000_14", "f0001_41"});
  CHECK(leaf.writers.owners == std::vector<std::int64_t>{0, 0, 1, 1, 1});
  CHECK(leaf.writers.partition() == std::vector<std::vector<std::int64_t>>{{0, 1}, {2, 3, 4}});
  CHECK(list(leaf.labels()) == std::vector<std::int64_t>{3, 9, 0, 1, 2});
  CHECK(torch::equal(images(leaf),
                     torch::cat({torch::arange(0, 8), torch::arange(100, 112)}).to(torch::kByte).view({5, 1, 2, 2})));
  auto const& set = std::get<data::ImageDataset>(leaf.samples);
  CHECK(set.classes() == 10);
  CHECK(set.mean() == std::vector<double>{0.9637});
}

TEST_CASE("every byte comes back from its quotient, as JSON prints it, rounded to six digits or whole") {
  TemporaryFolder const folder;
  std::string text;
  for (int k = 0; k < 256; ++k) {
    auto const digits = k % 255 == 0 ? std::to_string(k / 255)
                        : k % 2      ? json(k / 255.0).dump()
                                     : std::to_string(k / 255.0);
    text += (k == 0 ? "" : k % 4 ? "," : "],[") + digits;
  }
  std::string labels = "0";
  for (int k = 1; k < 64; ++k) labels += ",0";
  write_text(folder / "a.json",
             R"({"users":["w"],"num_samples":[64],"user_data":{"w":{"x":[[)" + text + R"(]],"y":[)" + labels + "]}}}");
  CHECK(torch::equal(images(data::read_leaf(folder.path(), tiny)).flatten(), torch::arange(256).to(torch::kByte)));
}

TEST_CASE("pixels that are no bytes stay float, of all files, to the last digit") {
  TemporaryFolder const folder;
  write(folder / "all_data_0.json", document({writer("a", 0, {1})}));
  write(folder / "all_data_1.json", document({{"b", {{{0.5, 0.123456789, 1, 0}, 4}}}}));
  auto const leaf = data::read_leaf(folder.path(), tiny);
  auto const& set = std::get<data::TensorDataset>(leaf.samples);
  auto const expected =
      torch::tensor({0.0, 1 / 255.0, 2 / 255.0, 3 / 255.0, 0.5, 0.123456789, 1.0, 0.0}, torch::kDouble);
  CHECK(torch::equal(set.inputs(), expected.to(torch::kFloat).view({2, 1, 2, 2})));
  CHECK(list(leaf.labels()) == std::vector<std::int64_t>{1, 4});
  CHECK(leaf.writers.names == std::vector<std::string>{"a", "b"});
  CHECK(leaf.writers.owners == std::vector<std::int64_t>{0, 1});
}

TEST_CASE("keys come in any order, and keys that are not LEAF's are passed over") {
  TemporaryFolder const folder;
  write_text(folder / "a.json", R"({"version": 3, "user_data": {"u": {"note": {"x": [1, {"y": null}]}, "y": [7],
    "tags": [[1], "s", true], "x": [[0, 1, 0.0, 1.0]]}}, "hierarchies": ["h"], "num_samples": [1], "users": ["u"]})");
  auto const leaf = data::read_leaf(folder.path(), tiny);
  CHECK(torch::equal(images(leaf).flatten(), torch::tensor({0, 255, 0, 255}, torch::kByte)));
  CHECK(list(leaf.labels()) == std::vector<std::int64_t>{7});
}

TEST_CASE("files come in the order of their numbers, and a subsample takes the first ones, rounded up") {
  TemporaryFolder const folder;
  for (int f = 0; f < 12; ++f)
    write(folder / ("all_data_" + std::to_string(f) + ".json"),
          document({writer("w" + std::to_string(f), f, {f % 10})}));
  auto const names = [&](double subsample) {
    LeafOptions options = tiny;
    options.subsample = subsample;
    return data::read_leaf(folder.path(), options).writers.names;
  };
  CHECK(names(1).size() == 12);
  CHECK(names(1)[2] == "w2");
  CHECK(names(1)[11] == "w11");
  CHECK(names(0.05) == std::vector<std::string>{"w0"});
  CHECK(names(0.25) == std::vector<std::string>{"w0", "w1", "w2"});
  CHECK(names(0.26) == std::vector<std::string>{"w0", "w1", "w2", "w3"});
  CHECK(names(0.01).size() == 1);
  for (double const wrong : {0.0, -0.1, 1.01, std::nan("")}) {
    LeafOptions options = tiny;
    options.subsample = wrong;
    CHECK_THROWS_AS((void)data::read_leaf(folder.path(), options), ConfigError);
  }
}

TEST_CASE("the files are found where LEAF, FederatedScope or a user puts them") {
  for (auto const* place :
       {"", "all_data", "femnist/raw/all_data", "raw/all_data", "data/all_data", "femnist/data/all_data", "femnist",
        "sampled_data", "femnist/all_data", "data/rem_user_data"}) {
    TemporaryFolder const folder;
    CHECK_FALSE(data::leaf_found(folder.path()));
    write(folder / place / "all_data_0.json", document({writer("w", 0, {1})}));
    CHECK_MESSAGE(data::leaf_found(folder.path()), place);
    CHECK(data::read_leaf(folder.path(), tiny).size() == 1);
  }
}

TEST_CASE("the last step of LEAF's preprocessing counts") {
  TemporaryFolder const folder;
  write(folder / "data/all_data/all_data_0.json", document({writer("raw", 0, {1})}));
  auto const first = [&] { return data::read_leaf(folder.path(), tiny).writers.names.front(); };
  CHECK(first() == "raw");
  write(folder / "data/sampled_data/all_data_0_niid_05.json", document({writer("sampled", 0, {1})}));
  CHECK(first() == "sampled");
  write(folder / "data/rem_user_data/all_data_0_niid_05_keep_0.json", document({writer("kept", 0, {1})}));
  CHECK(first() == "kept");
  write(folder / "data/train/all_data_0_niid_05_keep_0_train_9.json", document({writer("train", 0, {1})}));
  CHECK(first() == "train");
}

TEST_CASE("a split by sample gives each writer all its samples, or those of one part") {
  TemporaryFolder const folder;
  write(folder / "train/all_data_0_train_9.json", document({writer("a", 0, {1, 2}), writer("b", 50, {3})}));
  write(folder / "test/all_data_0_test_9.json", document({writer("a", 100, {4}), writer("b", 150, {5, 6})}));
  auto const all = data::read_leaf(folder.path(), tiny);
  CHECK(all.writers.names == std::vector<std::string>{"a", "b"});
  CHECK(list(all.labels()) == std::vector<std::int64_t>{1, 2, 3, 4, 5, 6});
  CHECK(all.writers.partition() == std::vector<std::vector<std::int64_t>>{{0, 1, 3}, {2, 4, 5}});
  CHECK(list(data::read_leaf(folder.path(), with(LeafPart::train)).labels()) == std::vector<std::int64_t>{1, 2, 3});
  CHECK(list(data::read_leaf(folder.path(), with(LeafPart::test)).labels()) == std::vector<std::int64_t>{4, 5, 6});
}

TEST_CASE("LEAF's split by sample leaves unlisted users without data behind, and that is no error") {
  TemporaryFolder const folder;
  auto content = document({writer("a", 0, {1})});
  content["user_data"]["lonely"] = {{"x", json::array()}, {"y", json::array()}};
  write(folder / "train/a.json", content);
  CHECK(data::read_leaf(folder.path(), tiny).writers.names == std::vector<std::string>{"a"});
}

TEST_CASE("a part that was not made is an error that says how to make it") {
  TemporaryFolder const folder;
  write(folder / "all_data/all_data_0.json", document({writer("a", 0, {1})}));
  CHECK(error_of(folder.path(), with(LeafPart::train)).find("are not split into train/ and test/") !=
        std::string::npos);
  write(folder / "train/a.json", document({writer("a", 0, {1})}));
  CHECK(error_of(folder.path(), with(LeafPart::test)).find("in test/; run LEAF's preprocess.sh again") !=
        std::string::npos);
}

TEST_CASE("a folder without LEAF files is an error that says how to get them") {
  TemporaryFolder const folder;
  CHECK(error_of(folder.path())
            .starts_with("[data] FEMNIST: no LEAF files (*.json) in or under " + folder.path().string() +
                         "; run LEAF's data/femnist/preprocess.sh"));
  CHECK(error_of(folder / "nowhere").find("no LEAF files") != std::string::npos);
  std::filesystem::create_directories(folder / "femnist/raw");
  write_text(folder / "femnist/raw/femnist_all_data.zip", "PK");
  CHECK(error_of(folder.path()).find("; unpack " + (folder / "femnist/raw/femnist_all_data.zip").string()) !=
        std::string::npos);
}

TEST_CASE("a file cut short anywhere is refused as half-written, by its name") {
  TemporaryFolder const folder;
  auto const whole = document({writer("ab", 0, {1, 2})}).dump();
  for (std::size_t length = 0; length < whole.size(); ++length) {
    write_text(folder / "a.json", std::string_view(whole).substr(0, length));
    auto const error = error_of(folder.path());
    CHECK_MESSAGE(error == "[data] " + (folder / "a.json").string() + " ends in the middle of its JSON, after " +
                               std::to_string(length) +
                               " bytes; it is half-written or cut short; make or fetch it again.",
                  length << ": " << error);
  }
}

TEST_CASE("what is not LEAF's JSON is refused, with the file, the user and what is wrong") {
  TemporaryFolder const folder;
  auto const refused = [&](std::string const& text, std::string const& expected) {
    write_text(folder / "a.json", text);
    auto const error = error_of(folder.path());
    CHECK_MESSAGE(error.starts_with("[data] " + (folder / "a.json").string() + " "), error);
    CHECK_MESSAGE(error.find(expected) != std::string::npos, text << "\n" << error);
  };
  auto const one = [](std::string const& x, std::string const& y, std::string const& count = "1") {
    return R"({"users":["u7"],"num_samples":[)" + count + R"(],"user_data":{"u7":{"x":)" + x + R"(,"y":)" + y + "}}}";
  };
  std::string const good = "[[0,0,0,0]]";
  refused("nonsense", "is not JSON at byte");
  refused("{\"users\" [1]}", "is not JSON at byte 10");
  refused(one(good, "[1]") + "x", "is not JSON at byte");
  refused("[1,2]", "has an array where LEAF's format has none, at its top");
  refused("12", "has a number where LEAF's format has none, at its top");
  refused("{}", "lacks \"users\"");
  refused(R"({"users":[],"num_samples":[]})", "lacks \"users\", \"num_samples\" or \"user_data\"");
  refused(R"({"users":5})", "has a number where LEAF's format has none, under \"users\"");
  refused(R"({"users":[5]})", "has a number where LEAF's format has none, under \"users\"");
  refused(R"({"user_data":{"u7":[1]}})", "has an array where LEAF's format has none, under \"u7\"");
  refused(one("[[0,0,NaN,0]]", "[1]"), "holds a NaN or an infinity at byte");
  refused(one("[[0,0,-Infinity,0]]", "[1]"), "holds a NaN or an infinity at byte");
  refused(one("[[0,0,1e999,0]]", "[1]"), "holds a number at byte");
  refused(one("[[0,0,null,0]]", "[1]"), "user u7 has null where LEAF's format has none");
  refused(one("[[0,0,\"1\",0]]", "[1]"), "user u7 has a string where");
  refused(one("[[0,0,true,0]]", "[1]"), "user u7 has a truth value where");
  refused(one("[0,0,0,0]", "[1]"), "user u7 has a number where LEAF's format has none, under \"x\"");
  refused(one("[[[0,0],[0,0]]]", "[1]"), "user u7 has an array where LEAF's format has none, under \"x\"");
  refused(one("[[0,0,0]]", "[1]"), "user u7 has an image (number 0) of 3 pixels; LEAF's have 4");
  refused(one("[[0,0,0,0],[0,0,0,0,0]]", "[1,1]", "2"), "user u7 has an image (number 1) of 5 pixels");
  refused(one("[[0,0,7,0]]", "[1]"), "user u7 has a pixel of 7.000000 (image 0)");
  refused(one("[[0,0,-0.5,0]]", "[1]"), "user u7 has a pixel of -0.500000");
  refused(one(good, "[10]"), "user u7 has the label 10 (sample 0); labels are 0 to 9");
  refused(one(good, "[-1]"), "user u7 has the label -1");
  refused(one(good, "[1.5]"), "user u7 has the label 1.5");
  refused(one(good, "[1]", "1.0"), "lists the number of samples 1.0");
  refused(one(good, "[1,2]", "2"), "user u7 has 1 images and 2 labels");
  refused(one(good, "[1]", "2"), "user u7 has 1 samples, and \"num_samples\" says 2");
  refused(one(good, "[1]", "1,1"), "lists 1 users and 2 numbers of samples");
  auto const two = document({writer("a", 0, {1}), writer("b", 0, {1})});
  auto edited = two;
  edited["user_data"].erase("b");
  refused(edited.dump(), "user b is in \"users\" and has no entry in \"user_data\"");
  edited = two;
  edited["users"] = {"a"};
  edited["num_samples"] = {1};
  refused(edited.dump(), "user b has samples and is not in \"users\"");
  edited = two;
  edited["users"] = {"a", "a"};
  refused(edited.dump(), "user a is listed twice");
  refused(R"({"users":["a"],"num_samples":[1],"user_data":{"a":{"x":[],"y":[]},"a":{"x":[],"y":[]}}})",
          "user a comes twice in \"user_data\"");
  write_text(folder / "a.json", R"({"users":[],"num_samples":[],"user_data":{}})");
  CHECK(error_of(folder.path()).find("the 1 files hold no sample") != std::string::npos);
}

TEST_CASE("a writer in two files of one folder is refused with both names") {
  TemporaryFolder const folder;
  write(folder / "all_data_0.json", document({writer("f0000_14", 0, {1})}));
  write(folder / "all_data_1.json", document({writer("f0000_14", 0, {1})}));
  auto const error = error_of(folder.path());
  CHECK(error.find("all_data_1.json: user f0000_14 is also in ") != std::string::npos);
  CHECK(error.find("all_data_0.json;") != std::string::npos);
}

TEST_CASE("files of real size in LEAF's shape come back as the images they were written from") {
  TemporaryFolder const folder;
  auto const made = data::make_synthetic_writers({.writers = 6, .mean_samples = 40, .spread = 0.4, .seed = 2});
  auto const parts = made.writers.partition();
  for (std::size_t file = 0; file < 2; ++file) {
    std::vector<Writer> writers;
    for (std::size_t w = 3 * file; w < 3 * file + 3; ++w) {
      auto const [pixels, labels] = made.samples.batch(parts[w]);
      auto const* byte = pixels.const_data_ptr<std::uint8_t>();
      writers.push_back({made.writers.names[w], {}});
      for (std::int64_t i = 0; i < labels.size(0); ++i) {
        Sample sample{{}, labels[i].item<std::int64_t>()};
        for (int p = 0; p < 784; ++p) sample.pixels.push_back(*byte++ / 255.0);
        writers.back().second.push_back(std::move(sample));
      }
    }
    write(folder / ("femnist/raw/all_data/all_data_" + std::to_string(file) + ".json"), document(writers));
  }
  std::vector<std::pair<std::size_t, std::size_t>> seen;
  LeafOptions options;
  options.on_file = [&](std::size_t done, std::size_t all) { seen.emplace_back(done, all); };
  auto const leaf = data::read_leaf(folder.path(), options);
  CHECK(torch::equal(images(leaf), made.samples.images()));
  CHECK(torch::equal(leaf.labels(), made.samples.labels()));
  CHECK(leaf.writers.names == made.writers.names);
  CHECK(leaf.writers.owners == made.writers.owners);
  CHECK(seen == std::vector<std::pair<std::size_t, std::size_t>>{{1, 2}, {2, 2}});
}
