// SPDX-License-Identifier: MIT
#include "pardl/train/summary_writer.hpp"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "pardl/train/observer.hpp"
#include "pardl/train/progress.hpp"
#include "support/event_records.hpp"
#include "support/hexadecimal.hpp"
#include "support/temporary_folder.hpp"

namespace fs = std::filesystem;
using pardl::Ranks;
using pardl::SummaryWriter;
using pardl::SummaryWriterOptions;
using pardl::testing::EventRecord;
using pardl::testing::golden_bytes;
using pardl::testing::read_events;
using pardl::testing::read_text;
using pardl::testing::split_records;
using pardl::testing::TemporaryFolder;
using pardl::testing::to_hexadecimal;
using pardl::testing::what_of;

namespace {

constexpr double seconds = 1700000000.25;  // that of tests/golden/files.py

std::vector<fs::path> event_files(fs::path const& folder) {
  std::vector<fs::path> files;
  for (auto const& entry : fs::directory_iterator(folder))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::ranges::sort(files);
  return files;
}

/// The events of the only file, but the first one, which is the version.
std::vector<EventRecord> events_of(fs::path const& folder) {
  auto const files = event_files(folder);
  REQUIRE(files.size() == 1);
  auto events = read_events(files[0]);
  REQUIRE(!events.empty());
  CHECK(events[0].version == "brain.Event:2");
  events.erase(events.begin());
  return events;
}

std::string shown(EventRecord const& event) {
  std::string text = std::to_string(event.step) + ":";
  for (auto const& value : event.values)
    text += " " + value.tag + "=" + (value.scalar ? std::to_string(*value.scalar) : value.text);
  return text;
}

}  // namespace

TEST_CASE("rank 0 writes what it is given, at once") {
  TemporaryFolder const folder;
  SummaryWriter writer{Ranks{0, 4}, folder.path()};
  writer.add_scalar("train/loss", 0.5, 3);
  writer.add_scalar("train/loss", torch::full({1, 1}, 0.25), 4);
  writer.add_scalar("steps", 7, 5, 12.5);
  writer.add_text("config", "a: 1", 6);
  auto const events = events_of(folder.path());  // the writer is still open
  REQUIRE(events.size() == 4);
  CHECK(shown(events[0]) == "3: train/loss=0.500000");
  CHECK(shown(events[1]) == "4: train/loss=0.250000");
  CHECK(shown(events[2]) == "5: steps=7.000000");
  CHECK(events[2].seconds == 12.5);
  CHECK(shown(events[3]) == "6: config/text_summary=a: 1");
  CHECK(writer.log_dir() == folder.path());
}

TEST_CASE("other ranks, and a writer that is switched off, touch neither files nor tensors") {
  TemporaryFolder const folder;
  auto const path = folder / "runs";
  torch::Tensor const undefined;
  SummaryWriter other{Ranks{1, 2}, path}, off{Ranks{0, 2}, path, {.enabled = false}};
  for (auto* writer : {&other, &off}) {
    writer->add_scalar("a", 1, 0);
    writer->add_scalar("a", undefined, 0);
    writer->add_scalars("a", {{"b", 1}}, 0);
    writer->add_text("a", "b", 0);
    writer->add_histogram("a", undefined, 0);
    writer->add_image("a", "no PNG", 0);
    writer->on_batch({.loss = 1});
    writer->on_epoch({.loss = 1});
    writer->on_checkpoint({.path = "x"});
    writer->flush();
    writer->close();
    writer->add_scalar("a", 1, 0);
  }
  CHECK_FALSE(fs::exists(path));
}

TEST_CASE("events of tensors are those of Python's SummaryWriter, byte for byte") {
  TemporaryFolder const folder;
  SummaryWriter writer{Ranks{0, 1}, folder.path(), {.now = [] { return seconds; }}};
  auto const values = torch::tensor({0.125, 0.25, 3.0, 3.0625, 1.0, 0.5, 7.0, 7.5}, torch::kDouble);
  writer.add_histogram("layer/weight", values, 9);
  writer.add_image("picture", golden_bytes("events.txt", "png"), 13);
  writer.add_text("notes", "Grüße **fett** 深\n\n| a | b |", 7);
  writer.add_scalar("train/loss", 0.1, 3);
  auto const records = split_records(read_text(event_files(folder.path()).at(0)));
  REQUIRE(records.size() == 5);
  std::vector<std::string> const keys{"version", "histogram", "image", "text", "scalar"};
  for (std::size_t i = 0; i < keys.size(); ++i)
    CHECK_MESSAGE(to_hexadecimal(records[i]) == to_hexadecimal(golden_bytes("events.txt", keys[i])), keys[i]);
}

TEST_CASE("histograms of any real type, shape and stride, and no others") {
  TemporaryFolder const folder;
  SummaryWriter writer{Ranks{0, 1}, folder.path()};
  auto const values = torch::arange(6, torch::kFloat).reshape({2, 3});
  writer.add_histogram("a", values, 0, 1.0);
  writer.add_histogram("a", values.t().to(torch::kBFloat16), 0, 1.0);
  writer.add_histogram("a", values.to(torch::kLong).set_requires_grad(false), 0, 1.0);
  writer.add_histogram("a", values.clone().set_requires_grad(true), 0, 1.0);
  auto const records = split_records(read_text(event_files(folder.path()).at(0)));
  REQUIRE(records.size() == 5);
  for (std::size_t i = 2; i < 5; ++i) CHECK(records[i] == records[1]);
  CHECK_THROWS_AS(writer.add_histogram("a", torch::empty({0}), 0), pardl::DataError);
  CHECK_THROWS_AS(writer.add_histogram("a", torch::full({2}, std::nan("")), 0), pardl::DataError);
  CHECK_THROWS_AS(writer.add_histogram("a", torch::Tensor(), 0), pardl::ConfigError);
  CHECK(what_of<pardl::ConfigError>([&] { writer.add_scalar("a", values, 0); }) ==
        "[train] add_scalar(\"a\") was given a tensor of 6 elements; give one element, or call add_histogram.");
}

TEST_CASE("several curves of one picture are runs of their own below, and no tag leaves the folder") {
  TemporaryFolder const folder;
  SummaryWriter writer{Ranks{0, 1}, folder / "a"};
  writer.add_scalars("eval/loss", {{"train", 1.0}, {"../test", 2.0}}, 3);
  writer.add_scalars("eval/loss", {{"train", 0.5}}, 4);
  auto const train = events_of(folder / "a/eval_loss_train"), test = events_of(folder / "a/eval_loss_.._test");
  REQUIRE(train.size() == 2);
  CHECK(shown(train[0]) == "3: eval/loss=1.000000");
  CHECK(shown(train[1]) == "4: eval/loss=0.500000");
  REQUIRE(test.size() == 1);
  CHECK(test[0].seconds == train[0].seconds);
}

TEST_CASE("what is added after close goes into a new file of the folder") {
  TemporaryFolder const folder;
  SummaryWriter writer{Ranks{0, 1}, folder.path(), {.filename_suffix = ".fed", .now = [] { return seconds; }}};
  writer.add_scalar("a", 1, 1);
  writer.flush();
  writer.close();
  writer.close();
  CHECK(event_files(folder.path()).size() == 1);
  writer.add_scalar("a", 2, 2);
  auto const files = event_files(folder.path());
  REQUIRE(files.size() == 2);
  for (auto const& file : files) {
    CHECK(read_events(file).size() == 2);
    CHECK(file.string().ends_with(".fed"));
  }
}

TEST_CASE("a resumed run makes TensorBoard forget the steps that it does again, once") {
  TemporaryFolder const folder;
  SummaryWriter writer{Ranks{0, 1}, folder.path(), {.purge_step = 40}};
  writer.close();
  writer.add_scalar("a", 1, 40);
  auto const files = event_files(folder.path());
  REQUIRE(files.size() == 2);
  auto events = read_events(files[0]);
  auto later = read_events(files[1]);
  if (later.size() == 3) std::swap(events, later);  // the counter in the names does not sort as text
  REQUIRE(events.size() == 3);
  CHECK(events[1].step == 40);
  CHECK(events[2].step == 40);
  CHECK(to_hexadecimal(events[2].session_log) == "0801");
  CHECK(later.size() == 2);
}

TEST_CASE("without a folder there is one for the time, the host and the comment") {
  TemporaryFolder const folder;
  auto const here = fs::current_path();
  fs::current_path(folder.path());
  SummaryWriter const writer{Ranks{0, 1}, {}, {.comment = "_lr0.1"}};
  auto const runs = event_files(writer.log_dir());
  fs::current_path(here);
  auto const name = writer.log_dir().string();  // e.g. runs/Nov21_14-05-59_host_lr0.1
  CHECK_MESSAGE(name.starts_with("runs/"), name);
  CHECK_MESSAGE(name.ends_with("_" + pardl::io::host_name() + "_lr0.1"), name);
  std::string form = name.substr(5, 14);
  for (char& c : form)
    c = std::isdigit(static_cast<unsigned char>(c)) != 0   ? '0'
        : std::isalpha(static_cast<unsigned char>(c)) != 0 ? 'a'
                                                           : c;
  CHECK_MESSAGE(form == "aaa00_00-00-00", name);
  CHECK(runs.size() == 1);
}

TEST_CASE("told by events it draws what was measured, beside the progress bar") {
  TemporaryFolder const folder;
  Ranks const world{0, 2};
  SummaryWriter writer{world, folder.path()};
  pardl::Progress progress{world, {.enabled = false}};
  pardl::observe(pardl::BatchEvent{.epoch = 0, .batch = 0, .batches = 10, .loss = 2.0}, progress, writer);
  pardl::observe(pardl::BatchEvent{.epoch = 0, .batch = 1, .batches = 10}, progress, writer);  // not read
  pardl::observe(pardl::BatchEvent{.epoch = 1, .batch = 2, .batches = 10, .loss = 1.0}, progress, writer);
  pardl::observe(pardl::BatchEvent{.epoch = 1, .batch = 3, .loss = 0.5}, progress, writer);  // of nobody knows how many
  pardl::observe(
      pardl::EpochEvent{.epoch = 1, .samples = 100, .seconds = 4, .training_loss = 1.5, .loss = 1.25, .accuracy = 0.75},
      progress, writer);
  pardl::observe(pardl::EpochEvent{.epoch = 2, .loss = 1.0}, progress, writer);
  pardl::observe(pardl::EpochEvent{.epoch = 3}, progress, writer);
  pardl::observe(pardl::CheckpointEvent{.epoch = 2, .path = "out/2.safetensors"}, progress, writer);
  auto const events = events_of(folder.path());
  std::vector<std::string> lines;
  for (auto const& event : events) lines.push_back(shown(event));
  CHECK(lines == std::vector<std::string>{
                     "0: train/batch_loss=2.000000", "12: train/batch_loss=1.000000", "3: train/batch_loss=0.500000",
                     "1: train/loss=1.500000 train/seconds=4.000000 train/samples_per_second=25.000000 "
                     "validation/loss=1.250000 validation/accuracy=0.750000",
                     "2: validation/loss=1.000000", "2: checkpoint/text_summary=`out/2.safetensors`"});
}

TEST_CASE("a folder that cannot be made is an error of rank 0, when the writer is made") {
  TemporaryFolder const folder;
  pardl::testing::write_text(folder / "file", "");
  CHECK(what_of<pardl::Error>([&] {
          SummaryWriter writer(Ranks{0, 2}, folder / "file/runs");
        }).find("cannot make the folder") != std::string::npos);
  CHECK(what_of<pardl::Error>([&] { SummaryWriter writer(Ranks{1, 2}, folder / "file/runs"); }).empty());
}
