// SPDX-License-Identifier: MIT
#include "pardl/io/event_file.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "support/event_records.hpp"
#include "support/hexadecimal.hpp"
#include "support/temporary_folder.hpp"

namespace fs = std::filesystem;
namespace io = pardl::io;
using io::EventFile;
using io::Summary;
using pardl::testing::golden_bytes;
using pardl::testing::read_events;
using pardl::testing::read_text;
using pardl::testing::split_records;
using pardl::testing::TemporaryFolder;
using pardl::testing::to_hexadecimal;
using pardl::testing::what_of;

namespace {

constexpr double seconds = 1700000000.25;  // that of tests/golden/files.py
io::EventFileOptions fixed_clock() {
  return {.suffix = {}, .now = [] { return seconds; }};
}

/// The one record that `write` appends, in hexadecimal.
template <class F>
std::string record_of(F write) {
  TemporaryFolder folder;
  EventFile file(folder.path(), fixed_clock());
  write(file);
  auto const records = split_records(read_text(file.path()));
  REQUIRE(records.size() == 2);
  return to_hexadecimal(records[1]);
}

std::string golden_record(std::string const& key) { return to_hexadecimal(golden_bytes("events.txt", key)); }

}  // namespace

TEST_CASE("records and checksums are those of TensorBoard's writer") {
  CHECK(io::crc32c("") == 0);
  CHECK(io::crc32c(std::string(32, '\0')) == 0x8a9136aau);  // RFC 3720, B.4
  CHECK(io::crc32c(std::string(32, '\xff')) == 0x62a8ab43u);
  std::string text;
  for (int i = 0; i < 300; ++i) text.push_back(static_cast<char>(i * 7));
  for (std::size_t cut = 0; cut <= text.size(); ++cut)
    CHECK(io::crc32c(std::string_view(text).substr(cut), io::crc32c(std::string_view(text).substr(0, cut))) ==
          io::crc32c(text));
  for (int const length : {0, 1, 7, 8, 9, 15, 16, 17, 300}) {
    std::string data;
    for (int k = 0; k < length; ++k) data.push_back(static_cast<char>((k * 73 + length) % 256));
    CHECK(to_hexadecimal(io::detail::tf_record(data)) == golden_record("record_" + std::to_string(length)));
  }
}

TEST_CASE("a file begins with its version, under the name that TensorBoard looks for") {
  TemporaryFolder folder;
  EventFile const file(folder / "runs/a", {.suffix = ".x", .now = [] { return seconds; }});
  CHECK(to_hexadecimal(read_text(file.path())) == golden_record("version"));
  CHECK(file.path().parent_path() == folder / "runs/a");
  std::string const name = file.path().filename().string();
  CHECK(name.starts_with("events.out.tfevents.1700000000." + io::host_name() + "." + std::to_string(::getpid()) + "."));
  CHECK(name.ends_with(".x"));
  EventFile const other(folder / "runs/a", {.suffix = ".x", .now = [] { return seconds; }});
  CHECK(other.path() != file.path());
  EventFile const early(folder.path(), {.suffix = {}, .now = [] { return 7.5; }});
  CHECK(early.path().filename().string().starts_with("events.out.tfevents.0000000007."));
}

TEST_CASE("events are those of Python's SummaryWriter, byte for byte") {
  auto const scalar = [](std::string_view tag, double value, std::int64_t step) {
    return record_of([&](EventFile& file) { file.add(Summary().scalar(tag, value), step); });
  };
  constexpr double infinite = std::numeric_limits<double>::infinity();
  CHECK(scalar("train/loss", 0.1, 3) == golden_record("scalar"));
  CHECK(scalar("zero", 0.0, 0) == golden_record("scalar_zero"));
  CHECK(scalar("zero", -0.0, 1) == golden_record("scalar_minus_zero"));
  CHECK(scalar("nan", std::numeric_limits<double>::quiet_NaN(), std::int64_t{1} << 40) == golden_record("scalar_nan"));
  CHECK(scalar("inf", -infinite, -1) == golden_record("scalar_inf"));
  CHECK(scalar("huge", 1e300, 5) == golden_record("scalar_huge"));
  CHECK(record_of([](EventFile& file) { file.add(Summary().scalar("a", 1).scalar("b", 2), 6, seconds); }) ==
        golden_record("scalars"));
  CHECK(record_of([](EventFile& file) { file.add(Summary().scalar("a", 1), 1, -0.0); }) ==
        golden_record("seconds_minus_zero"));

  CHECK(record_of([](EventFile& file) {
          file.add(Summary().text("notes/text_summary", "Grüße **fett** 深\n\n| a | b |"), 7);
        }) == golden_record("text"));
  CHECK(record_of([](EventFile& file) { file.add(Summary().text("notes/text_summary", ""), 8); }) ==
        golden_record("text_empty"));
  auto const png = golden_bytes("events.txt", "png");
  CHECK(record_of([&](EventFile& file) { file.add(Summary().image("picture", png), 13); }) == golden_record("image"));
}

TEST_CASE("histograms have Python's buckets, counts and sums") {
  auto const histogram = [](std::vector<double> const& values, std::int64_t step) {
    return record_of(
        [&](EventFile& file) { file.add(Summary().histogram("layer/weight", io::make_histogram(values)), step); });
  };
  CHECK(histogram({0.125, 0.25, 3.0, 3.0625, 1.0, 0.5, 7.0, 7.5}, 9) == golden_record("histogram"));
  CHECK(histogram({-2.5, -1.0, -1.0, -2.0}, 9) == golden_record("histogram_negative"));
  CHECK(histogram({-0x1p-44, -0.0, 0.0, 0x1p-44, 0x1p-39, -0x1p-39}, 9) == golden_record("histogram_about_zero"));
  CHECK(histogram({0.0}, 10) == golden_record("histogram_one"));
  CHECK(histogram({-0x1p100, 0x1p100, 0x1p60, 0x1p100}, 11) == golden_record("histogram_wide"));
  CHECK(histogram({std::nan(""), 1.0}, 12) == golden_record("histogram_nan"));

  // Each value lies in its bucket, edges included.
  auto const& edges = io::detail::histogram_edges();
  for (std::size_t i = 0; i < edges.size(); ++i) {
    auto const one = io::make_histogram(std::vector{edges[i]});
    REQUIRE(one.limits.size() == 2);
    CHECK(one.counts == std::vector<double>{0, 1});
    CHECK(one.limits[0] == edges[std::min(i, edges.size() - 2)]);
  }
  CHECK_THROWS_AS((void)io::make_histogram(std::vector<double>{}), pardl::DataError);
  CHECK(what_of<pardl::DataError>([] {
          (void)io::make_histogram(std::vector{std::nan(""), 1e30});
        }) == "[io] none of 2 values falls into a histogram; give at least one that is finite and below 1e20.");
}

TEST_CASE("a restart is what TensorBoard takes for one") {
  TemporaryFolder folder;
  EventFile file(folder.path(), fixed_clock());
  file.restart(4);
  auto const records = split_records(read_text(file.path()));
  REQUIRE(records.size() == 3);
  CHECK(to_hexadecimal(records[1]) == golden_record("restart_version"));
  CHECK(to_hexadecimal(records[2]) == golden_record("restart"));
}

TEST_CASE("tags and texts that are not UTF-8 are mended, as readers refuse the whole event otherwise") {
  TemporaryFolder folder;
  EventFile file(folder.path());
  file.add(Summary().scalar("a\xff/b", 1).text("\xc3", "\xed\xa0\x80 ok ä"), 0);
  auto const events = read_events(file.path());
  REQUIRE(events.size() == 2);
  CHECK(events[1].values[0].tag == "a\ufffd/b");
  CHECK(events[1].values[1].tag == "\ufffd");
  CHECK(events[1].values[1].text == "\ufffd\ufffd\ufffd ok ä");
}

TEST_CASE("an image must be a PNG") {
  std::string png = golden_bytes("events.txt", "png");
  CHECK(what_of<pardl::DataError>([&] { Summary().image("a", png.substr(0, 23)); }) ==
        "[io] the image 'a' is no PNG; give the bytes of a PNG file.");
  png[0] = 'x';
  CHECK_THROWS_AS(Summary().image("a", png), pardl::DataError);
  CHECK_THROWS_AS(Summary().image("a", ""), pardl::DataError);
}

TEST_CASE("a run that is killed leaves all its events") {
  TemporaryFolder folder;
  pid_t const child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    EventFile file(folder.path());
    for (int step = 0; step < 100; ++step) file.add(Summary().scalar("loss", step), step);
    ::raise(SIGKILL);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  auto const events = read_events(fs::directory_iterator(folder.path())->path());
  REQUIRE(events.size() == 101);
  CHECK(events.back().step == 99);
  CHECK(events.back().values.at(0).scalar == 99.f);
}

TEST_CASE("an event that does not fit is taken back whole, and what follows is readable") {
  TemporaryFolder folder;
  EventFile file(folder.path());
  rlimit saved{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &saved) == 0);
  auto const handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit const small{.rlim_cur = 4096, .rlim_max = saved.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  std::string const what =
      what_of<pardl::Error>([&] { file.add(Summary().text("long", std::string(10'000, 'x')), 1); });
  file.add(Summary().scalar("short", 1), 2);
  ::setrlimit(RLIMIT_FSIZE, &saved);
  std::signal(SIGXFSZ, handler);
  CHECK(what.starts_with("[io] cannot write " + file.path().string() + ": "));
  auto const events = read_events(file.path());
  REQUIRE(events.size() == 2);
  CHECK(events[1].values.at(0).tag == "short");
}

TEST_CASE("after close nothing can be added, and a folder that cannot be made is said so") {
  TemporaryFolder folder;
  EventFile file(folder.path());
  file.flush();
  file.close();
  file.close();
  file.flush();
  CHECK(what_of<pardl::Error>([&] { file.add(Summary().scalar("a", 1), 0); }) ==
        "[io] write after close of " + file.path().string() + "; make a new EventFile.");
  CHECK(what_of<pardl::Error>([&] {
          EventFile below(file.path() / "runs");
        }).starts_with("[io] cannot make the folder " + (file.path() / "runs").string()));
}
