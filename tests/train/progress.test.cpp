// SPDX-License-Identifier: MIT
#include "pardl/train/progress.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "pardl/train/observer.hpp"

using namespace std::chrono_literals;
using pardl::BatchEvent;
using pardl::EpochEvent;
using pardl::Progress;
using pardl::ProgressOptions;

namespace {

struct Screen {
  std::string all;
  std::chrono::steady_clock::time_point time{};

  ProgressOptions options(pardl::Terminal terminal) {
    ProgressOptions options{.unit = "images"};
    options.bar.terminal = terminal;
    options.bar.write = [this](std::string_view text) { all += text; };
    options.bar.now = [this] { return time; };
    return options;
  }
};

constexpr pardl::Terminal plain{};
constexpr pardl::Terminal ascii{.interactive = true, .utf8 = false, .columns = 100};

struct BatchCounter {
  int batches = 0;
  void on_batch(BatchEvent const&) { ++batches; }
};
struct Keeper {
  std::string seen;
  void on_epoch(EpochEvent const& event) { seen += "e" + std::to_string(event.epoch); }
  void on_checkpoint(pardl::CheckpointEvent const& event) { seen += "c" + event.path.string(); }
};
struct Hookless {
  void on_btach(BatchEvent const&) {}
  void on_epoch(int) {}
};

}  // namespace

TEST_CASE("an observer is whatever has one of the hooks, with the right event") {
  static_assert(pardl::observer<BatchCounter> && pardl::observer<Keeper> && pardl::observer<Progress>);
  static_assert(!pardl::observer<Hookless> && !pardl::observer<std::string>);
}

TEST_CASE("each event reaches those who have a hook for it, and no other") {
  BatchCounter counter;
  Keeper keeper;
  pardl::observe(BatchEvent{.batch = 3}, counter, keeper);
  pardl::observe(EpochEvent{.epoch = 7}, counter, keeper);
  pardl::observe(pardl::CheckpointEvent{.path = "x"}, keeper, counter);
  pardl::observe(BatchEvent{}, counter);
  pardl::observe(BatchEvent{});
  CHECK(counter.batches == 2);
  CHECK(keeper.seen == "e7cx");
}

TEST_CASE("rank 0 shows each epoch in plain lines with the rate of all ranks") {
  Screen screen;
  Progress progress{pardl::Ranks{0, 4}, screen.options(plain)};
  for (int epoch = 0; epoch < 2; ++epoch) {
    progress.begin_epoch(epoch, 20, 2);
    for (int batch = 0; batch < 20; ++batch) {
      screen.time += 1s;
      progress.on_batch(512);
    }
    progress.end_epoch();
  }
  CHECK(screen.all.starts_with("epoch 1/2  10%  2/20  512 images/s  ETA 0:18\n"));
  CHECK(screen.all.find("epoch 1/2 100%  20/20  512 images/s  0:20\nepoch 2/2  10%") != std::string::npos);
  CHECK(screen.all.ends_with("epoch 2/2 100%  20/20  512 images/s  0:20\n"));
}

TEST_CASE("other ranks, and a progress that is switched off, show nothing") {
  Screen screen;
  ProgressOptions off = screen.options(ascii);
  off.enabled = false;
  Progress other{pardl::Ranks{1, 4}, screen.options(ascii)}, disabled{pardl::Ranks{0, 4}, off};
  for (Progress* progress : {&other, &disabled}) {
    progress->begin_epoch(0, 10);
    progress->on_batch(128);
    progress->on_batch(BatchEvent{.batches = 10, .samples = 128});
    progress->end_epoch();
  }
  CHECK(screen.all.empty());
}

TEST_CASE("told by events alone it shows the same, and the first batch is no speed") {
  Screen screen;
  {
    Progress progress{pardl::Ranks{0, 1}, screen.options(ascii)};
    for (int batch = 0; batch < 5; ++batch) {
      screen.time += 2s;
      BatchEvent event{.epoch = 2, .epochs = 3, .batch = batch, .batches = 5, .samples = 100};
      if (batch == 3) event.loss = 0.25;
      pardl::observe(event, progress);
    }
    CHECK(screen.all.find("epoch 3/3  20%") == std::string::npos);  // nothing to measure before 100 ms have passed
    CHECK(screen.all.find("2/5  50.0 images/s  ETA 0:06") != std::string::npos);
    CHECK(screen.all.find("loss 0.2500") != std::string::npos);
    pardl::observe(EpochEvent{.epoch = 2}, progress);
  }
  CHECK(screen.all.find("5/5  50.0 images/s  0:08") != std::string::npos);
  CHECK(screen.all.ends_with("\n"));
}

TEST_CASE("an epoch that ends early, or by an exception, leaves a whole line") {
  Screen early;
  {
    Progress progress{pardl::Ranks{0, 1}, early.options(ascii)};
    progress.begin_epoch(0, 10);
    progress.on_batch(8);
    progress.begin_epoch(1, 10);
    CHECK(early.all.find("1/10") != std::string::npos);
    CHECK(early.all.find("\n\repoch 2") != std::string::npos);
    progress.end_epoch();
    progress.end_epoch();
  }
  CHECK(early.all.ends_with("\n"));
  Screen broken;
  try {
    Progress progress{pardl::Ranks{0, 1}, broken.options(ascii)};
    progress.begin_epoch(0, 10);
    throw std::runtime_error("no more data");
  } catch (std::runtime_error const&) {
  }
  CHECK(broken.all.ends_with("\n"));
}

TEST_CASE("an unknown number of batches is no obstacle") {
  Screen screen;
  Progress progress{pardl::Ranks{0, 1}, screen.options(plain)};
  progress.begin_epoch(0, 0);
  for (int batch = 0; batch < 3; ++batch) {
    screen.time += 1s;
    progress.on_batch(10);
  }
  progress.end_epoch();
  CHECK(screen.all == "epoch 1  3  10.0 images/s  0:03\n");
}
