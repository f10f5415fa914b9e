// SPDX-License-Identifier: MIT
// The program as its user meets it: the strategies agree, a comparison writes what it says, and misuse ends in a
// sentence.
#include <doctest/doctest.h>
#include <poll.h>
#include <signal.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "support/process.hpp"
#include "support/seed.hpp"
#include "support/temporary_folder.hpp"

using pardl::testing::descendants;
using pardl::testing::Ended;
using pardl::testing::Process;
using pardl::testing::read_text;
using pardl::testing::TemporaryFolder;
using pardl::testing::Watch;
using pardl::testing::write_text;

namespace {

std::vector<std::string> command(std::vector<std::string> more) {
  std::vector<std::string> all{PARDL_PARALLEL_FROM_SCRATCH, "--data", "synthetic", "--timeout", "30"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}
Ended run(std::vector<std::string> more) { return pardl::testing::run(command(std::move(more))); }

nlohmann::json summary_of(std::vector<std::string> more) {
  TemporaryFolder const folder;
  auto const file = folder / "summary.json";
  more.insert(more.end(), {"--summary", file.string()});
  auto const ended = run(std::move(more));
  REQUIRE_MESSAGE(ended.code == 0, ended.err);
  return nlohmann::json::parse(std::ifstream(file));
}

/// The ranks of a launcher, in their order, without the process that serves the store.
std::vector<pid_t> ranks_among(std::vector<pid_t> all) {
  std::sort(all.begin(), all.end());
  all.erase(all.begin());
  return all;
}

/// Fashion-MNIST's four files as they are published, but of 16 black images and 10 labels each.
void write_idx(std::filesystem::path const& folder) {
  std::filesystem::create_directories(folder);
  std::string const images =
      std::string("\0\0\x08\x03\0\0\0\x10\0\0\0\x1c\0\0\0\x1c", 16) + std::string(16 * 28 * 28, '\0');
  std::string labels("\0\0\x08\x01\0\0\0\x10", 8);
  for (int i = 0; i < 16; ++i) labels += static_cast<char>(i % 10);
  for (std::string const part : {"train", "t10k"}) {
    write_text(folder / (part + "-images-idx3-ubyte"), images);
    write_text(folder / (part + "-labels-idx1-ubyte"), labels);
  }
}

bool no_gnuplot() {
  if (std::system("gnuplot --version >/dev/null 2>&1") == 0) return false;
  MESSAGE("not run: gnuplot is not here");
  return true;
}

void refuses(std::vector<std::string> const& more, std::string const& sentence) {
  auto const ended = run(more);
  CHECK(ended.in_time);
  CHECK(ended.code == 2);
  CHECK_MESSAGE(ended.err.find(sentence) != std::string::npos, ended.err);
}

}  // namespace

TEST_CASE("all strategies take the same steps, whatever shares they cut a batch into") {
  auto const of = [](std::string const& strategy, std::string const& ranks) {
    return summary_of({"--strategy", strategy, "--nproc", ranks, "--limit-train", "384", "--batch-size", "48",
                       "--epochs", "2", "--seed", "7"});
  };
  auto const reference = of("dp", "1");
  REQUIRE(reference["epochs"].size() == 2);
  for (auto const* strategy : {"param_server", "ring_all_reduce", "dp", "ddp"}) {
    CAPTURE(strategy);
    auto const summary = of(strategy, "3");
    CHECK(summary["strategy"] == strategy);
    CHECK(summary["batch_size"] == 48);
    CHECK(summary["train_images"] == 384);
    CHECK(summary.value("lost_workers", nlohmann::json("none")) ==
          (strategy == std::string("param_server") ? nlohmann::json::array() : nlohmann::json("none")));
    for (std::size_t epoch = 0; epoch < 2; ++epoch) {
      double const loss = summary["epochs"][epoch]["loss"], expected = reference["epochs"][epoch]["loss"];
      CHECK(std::abs(loss - expected) < 1e-3 * expected);
      CHECK(summary["epochs"][epoch]["seconds"] > 0.0);
    }
  }
}

TEST_CASE("the seed's own way to write options is understood") {
  auto const summary =
      summary_of({"--strategy=ddp", "--nproc=2", "--batch_size=32", "--limit-train", "96", "--epochs=1"});
  CHECK(summary["ranks"] == 2);
  CHECK(summary["batch_size"] == 32);
}

TEST_CASE("each epoch of a parameter server has its own steps, the last one too") {
  auto const summary = summary_of(
      {"--strategy", "param_server", "--nproc", "2", "--limit-train", "2000", "--batch-size", "2000", "--epochs", "4"});
  REQUIRE(summary["epochs"].size() == 4);
  std::vector<double> seconds;
  for (auto const& epoch : summary["epochs"]) seconds.push_back(epoch["seconds"]);
  CAPTURE(seconds);
  // One step each: what a step more or less would do is far beyond a busy machine's doing.
  CHECK(seconds[3] > 0.2 * std::min(seconds[1], seconds[2]));
}

TEST_CASE("--data-dir is the folder that is read, whatever the system has") {
  TemporaryFolder const folder;
  auto const use = [&](std::string const& data) {
    return std::vector<std::string>{"--data",       data, "--data-dir", folder.path().string(),
                                    "--strategy",   "dp", "--nproc",    "1",
                                    "--batch-size", "8",  "--epochs",   "1"};
  };
  for (auto const* data : {"auto", "fashion-mnist"})
    refuses(use(data), "no Fashion-MNIST in --data-dir " + folder.path().string());
  CHECK(summary_of(use("synthetic"))["data"] != "Fashion-MNIST train");
  write_idx(folder / "FashionMNIST" / "raw");
  for (auto const* data : {"auto", "fashion-mnist"}) {
    auto const summary = summary_of(use(data));
    CHECK(summary["data"] == "Fashion-MNIST train");
    CHECK(summary["train_images"] == 16);
  }
}

TEST_CASE("a stale parameter server trains, too") {
  auto const summary = summary_of({"--strategy", "param_server", "--nproc", "3", "--staleness", "2", "--limit-train",
                                   "96", "--batch-size", "16", "--epochs", "2"});
  CHECK(summary["staleness"] == 2);
  CHECK(summary["epochs"].size() == 2);
}

TEST_CASE("any rank of any strategy killed at any moment: all end with its name, or a worker is missed and no more") {
  auto const seed = pardl::testing::draw_seed();
  CAPTURE(seed);
  std::mt19937 draws(seed);
  struct Way {
    std::string strategy, backend;
    bool keep_going;
  };
  for (auto const& [strategy, backend, keep_going] : std::vector<Way>{{"ddp", "shm", false},
                                                                      {"ring_all_reduce", "shm", false},
                                                                      {"param_server", "shm", false},
                                                                      {"param_server", "shm", true},
                                                                      {"ddp", "gloo", false},
                                                                      {"ring_all_reduce", "gloo", false},
                                                                      {"param_server", "gloo", true}}) {
    CAPTURE(strategy);
    CAPTURE(backend);
    CAPTURE(keep_going);
    TemporaryFolder const folder, left;
    auto const summary = folder / "summary.json";
    std::vector<std::string> words{"--strategy",    strategy, "--nproc",      "3",  "--backend", backend,
                                   "--epochs",      "6",      "--batch-size", "48", "--summary", summary.string(),
                                   "--limit-train", "960"};
    if (keep_going) words.push_back("--keep-going");
    Process process(command(words), {.variables = {{"TMPDIR", left.path().string()}}});
    bool const training = draws() % 2 == 0;
    REQUIRE(process.wait_for(training ? "Epoch 1/" : "Strategy: "));
    ::poll(nullptr, 0, static_cast<int>(draws() % 100));  // the random moment; nothing is waited for
    auto const all = descendants(process.pid());
    auto const ranks = ranks_among(all);
    REQUIRE(ranks.size() == 3);
    Watch const watch(all);
    auto const victim = draws() % 3;
    CAPTURE(victim);
    ::kill(ranks[victim], SIGKILL);
    auto const ended = process.wait();
    CHECK(ended.in_time);
    CHECK(watch.all_end());
    CHECK(std::filesystem::is_empty(left.path()));
    std::string const name = "rank " + std::to_string(victim);
    // The parameter server begins a little after the line on the strategy; a death before that ends all.
    bool const may_go_on = keep_going && victim != 0;
    if (may_go_on && (training || ended.code == 0)) {
      CHECK_MESSAGE(ended.code == 0, ended.err);
      CHECK_MESSAGE(ended.err.find("worker " + name + " was lost after ") != std::string::npos, ended.err);
      auto const told = nlohmann::json::parse(std::ifstream(summary));
      CHECK(told["epochs"].size() == 6);
      CHECK(told["lost_workers"] == nlohmann::json::array({victim}));
    } else {
      CHECK_MESSAGE(ended.code != 0, ended.err);
      CHECK_MESSAGE(ended.err.find(name + (may_go_on ? "" : "/3 failed first")) != std::string::npos, ended.err);
      CHECK_FALSE(std::filesystem::exists(summary));
    }
  }
}

TEST_CASE("a comparison writes table, pictures and a report whose figures are the table's") {
  if (std::system("gnuplot --version >/dev/null 2>&1") != 0) {
    MESSAGE("not run: gnuplot is not here");
    refuses({"--compare"}, "--compare draws with gnuplot");
    return;
  }
  TemporaryFolder const folder;
  auto const out = folder / "it's here";
  // 64 of them are whole batches. dp, which has no backend, runs beside those that this one is for.
  auto const ended = run({"--compare", "--limit-train", "70", "--batch-size", "32", "--epochs", "2", "--seeds", "2",
                          "--backend", "shm", "--out", out.string()});
  REQUIRE_MESSAGE(ended.code == 0, ended.err);
  CHECK(ended.out.find("Of 70 training images each run takes 64, whole batches of 32") != std::string::npos);
  for (auto const* name : {"accuracy", "epoch_time", "scaling"}) {
    CHECK(read_text(out / (std::string(name) + ".svg")).find("</svg>") != std::string::npos);
    CHECK(read_text(out / (std::string(name) + ".png")).starts_with("\x89PNG"));
  }
  std::size_t files = 0;
  for ([[maybe_unused]] auto const& file : std::filesystem::directory_iterator(out)) ++files;
  CHECK(files == 8);
  auto const csv = read_text(out / "results.csv"), report = read_text(out / "report.md");
  CHECK(Process::count(csv, "\n") == 1 + 4 * 2 * 2 + 4 * 2);  // two seeds, then half of the images: less is no batch
  for (auto const* run : {",2,1,64,32,1,", ",2,2,64,32,2,", ",2,1,32,32,2,"}) CHECK(Process::count(csv, run) == 4);
  CHECK(csv.starts_with("strategy,ranks,seed,train_images,batch_size,epoch,seconds,test_loss,test_accuracy\n"));
  for (auto const* strategy : {"param_server", "dp", "ring_all_reduce", "ddp"})
    CHECK(Process::count(report, std::string("| ") + strategy + " |") == 1);
  CHECK(report.find("two standard errors") != std::string::npos);
  CHECK(report.find("from the fastest to the slowest: ") != std::string::npos);
  CHECK(ended.out.find(report) != std::string::npos);
}

TEST_CASE("a comparison that ends early leaves what it measured, and neither processes nor files") {
  if (no_gnuplot()) return;
  struct Way {
    std::string moment;
    bool parent;  // gets the signal, and nobody else; or else its child does
    int signal, code;
    std::string says;
  };
  for (auto const& [moment, parent, signal, code, says] :
       std::vector<Way>{{"Strategy: param_server", true, SIGINT, 130,
                         "images was ended by the signal \"Interrupt\"; nothing was written"},
                        {"Strategy: param_server", true, SIGKILL, 137, ""},
                        {"Strategy: param_server", false, SIGKILL, 1,
                         "param_server with seed 1 on 9600 images failed; nothing was written"},
                        {"Strategy: dp", true, SIGTERM, 143, "results.csv has what ran before"}}) {
    CAPTURE(moment);
    CAPTURE(signal);
    TemporaryFolder const folder, left;
    auto const out = folder / "out";
    bool const at_once = says.find("has what ran before") == std::string::npos;
    Process process(command({"--compare", "--out", out.string(), "--batch-size", "32", "--limit-train",
                             at_once ? "9600" : "64", "--epochs", at_once ? "100" : "2", "--lr", "1e-7"}),
                    {.variables = {{"TMPDIR", left.path().string()}}});
    REQUIRE(process.wait_for(moment));
    auto const all = descendants(process.pid());
    REQUIRE(!all.empty());
    Watch const watch(all);
    ::kill(parent ? process.pid() : all.front(), signal);
    auto const ended = process.wait();
    CHECK(ended.in_time);
    CHECK(ended.code == code);
    CHECK_MESSAGE(ended.err.find(says) != std::string::npos, ended.err);
    CHECK(watch.all_end());
    if (code != 137) CHECK(std::filesystem::is_empty(left.path()));  // nobody can tidy up after a SIGKILL
    CHECK(std::filesystem::is_empty(out) == at_once);
    if (!at_once) CHECK(Process::count(read_text(out / "results.csv"), "\nparam_server,2,1,64,32,") == 2);
  }
}

TEST_CASE("a comparison that cannot end well does not begin") {
  if (no_gnuplot()) return;
  TemporaryFolder const folder;
  auto const file = folder / "file";
  write_text(file, "");
  std::filesystem::create_directories(folder / "taken" / "results.csv");
  auto const refuses_before = [&](std::vector<std::string> more, std::string const& sentence) {
    more.insert(more.begin(), "--compare");
    auto const ended = run(std::move(more));
    CHECK(ended.code == 2);
    CHECK_MESSAGE(ended.err.find(sentence) != std::string::npos, ended.err);
    CHECK(ended.out == "");
  };
  refuses_before({"--out", (file / "out").string()},
                 "no folder for the results can be made at --out " + file.string() + "/out");
  refuses_before({"--out", file.string()}, "name another");
  refuses_before({"--out", (folder / "taken").string()}, "results.csv cannot be written in --out ");
  refuses_before({"--out", ""}, "--out \"\"; name a folder");
  auto const out = (folder / "out").string();
  refuses_before({"--out", out, "--batch-size", "64", "--limit-train", "40"},
                 "--compare with --batch-size 64 and 40 training images");
}

TEST_CASE("misuse is one sentence that says what to do") {
  refuses({"--strategy", "hogwild"}, "--strategy");
  refuses({"--strategy", "param_server", "--nproc", "1"}, "param_server on 1 rank; give --nproc 2 or more");
  refuses({"--strategy", "ddp", "--staleness", "1"}, "--staleness with --strategy ddp; leave it out");
  refuses({"--strategy", "ddp", "--keep-going"}, "--keep-going with --strategy ddp; leave it out");
  refuses({"--seeds", "3"}, "--seeds without --compare; add --compare");
  refuses({"--compare", "--nproc", "4", "--batch-size", "128"}, "give a multiple of 12, so that all strategies");
  refuses({"--compare", "--seed", "3"}, "--seed with --compare; leave it out");
  refuses({"--compare", "--epochs", "1"}, "--compare with --epochs 1; give 2 or more");
  refuses({"--strategy", "dp", "--backend", "gloo"}, "--backend with --strategy dp; leave it out");
  refuses({"--n-gpus", "2", "--device", "cpu"}, "--n-gpus with --device cpu");
  refuses({"--limit-train", "16", "--batch-size", "64", "--nproc", "2"},
          "--batch-size 64 for 2 workers and 16 training");
  refuses({"--batch-size", "1", "--nproc", "3"}, "--batch-size 1 for 3 workers");
  refuses({"--epochs", "0"}, "is no whole number from 1");
  refuses({"--data-dir", "/no/such"}, "/no/such");
  refuses({"--summary", "/no/such/summary.json"}, "no file can be made in \"/no/such\"");
}

TEST_CASE("--help has the program's name") {
  auto const ended = run({"--help"});
  CHECK(ended.code == 0);
  CHECK_MESSAGE(ended.out.find("parallel_from_scratch [OPTIONS]") != std::string::npos, ended.out);
}
