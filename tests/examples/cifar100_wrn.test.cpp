// SPDX-License-Identifier: MIT
// The program as its user meets it: real processes, real files, what is printed and how it ends.
#include <doctest/doctest.h>
#include <sys/socket.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "support/process.hpp"
#include "support/temporary_folder.hpp"

using pardl::testing::Ended;
using pardl::testing::Process;
using pardl::testing::TemporaryFolder;

namespace {

// Small enough for seconds, large enough to learn something.
std::vector<std::string> command(std::vector<std::string> more) {
  std::vector<std::string> all{PARDL_CIFAR100_WRN,
                               "--device",
                               "cpu",
                               "--data",
                               "synthetic",
                               "--limit-train",
                               "256",
                               "--batch-size",
                               "64",
                               "--epochs",
                               "2",
                               "--model",
                               "wrn-10-1",
                               "--timeout",
                               "20"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

Ended run(std::vector<std::string> more) { return pardl::testing::run(command(std::move(more))); }

nlohmann::json summary_of(std::vector<std::string> more) {
  TemporaryFolder folder;
  auto const file = folder.path() / "summary.json";
  more.insert(more.end(), {"--summary", file.string()});
  auto const ended = run(std::move(more));
  REQUIRE_MESSAGE(ended.code == 0, ended.err);
  std::ifstream stream(file);
  return nlohmann::json::parse(stream);
}

// The numbers that must repeat: not the seconds.
std::vector<double> numbers(nlohmann::json const& summary) {
  std::vector<double> all;
  for (auto const& epoch : summary["epochs"])
    for (auto const* key : {"train_loss", "loss", "accuracy"}) all.push_back(epoch[key].get<double>());
  return all;
}

// One clear sentence from us, a failure code, in time, and no half-written file.
void refuses(std::vector<std::string> const& more, std::string const& sentence, int code = 0) {
  for (auto const* ranks : {"1", "2"}) {
    CAPTURE(ranks);
    TemporaryFolder folder;
    auto arguments = command(more);
    arguments.insert(arguments.end(), {"--nproc", ranks, "--summary", (folder.path() / "summary.json").string()});
    auto const ended = pardl::testing::run(arguments);
    CHECK(ended.in_time);
    CHECK(ended.code != 0);
    if (code != 0) CHECK(ended.code == code);
    CHECK_MESSAGE(ended.err.find(sentence) != std::string::npos, ended.err);
    CHECK(std::filesystem::is_empty(folder.path()));
  }
}

void write(std::filesystem::path const& file, std::size_t bytes, unsigned char value = 0) {
  std::filesystem::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << std::string(bytes, static_cast<char>(value));
}

}  // namespace

TEST_CASE("it prints the guide's lines, and counts nodes, ranks and images truthfully") {
  auto const ended = run({"--nproc", "2", "--target-accuracy", "1"});
  REQUIRE_MESSAGE(ended.code == 0, ended.err);
  for (auto const* line :
       {"Data: synthetic", "for CIFAR-100", "Training started with 2 processes across 1 node.",
        "Using 2 CPU ranks per node", "Epoch 1/2 completed in ", "Epoch 2/2 completed in ",
        "Validation Loss: ", ", Validation Accuracy: ", "Epoch Throughput: ", "Training Summary:",
        "Total training time: ", "Throughput: ", "Number of nodes: 1", "Number of CPU ranks per node: 2",
        "Total CPU ranks used: 2", "Training completed successfully."})
    CHECK_MESSAGE(ended.out.find(line) != std::string::npos, line);
  CHECK(Process::count(ended.out, "Training Summary:") == 1);
}

TEST_CASE("the summary holds what was printed, every option and the versions") {
  auto const summary = summary_of({"--nproc", "2", "--target-accuracy", "1"});
  REQUIRE(summary["epochs"].size() == 2);
  for (auto const& epoch : summary["epochs"]) {
    CHECK(epoch["images"] == 256);  // four full batches of 64 over both ranks
    CHECK(epoch["seconds"].get<double>() > 0);
    CHECK(epoch["images_per_second"].get<double>() == doctest::Approx(256 / epoch["seconds"].get<double>()));
  }
  CHECK(summary["totals"]["images"] == 512);
  CHECK(summary["world"]["nodes"] == 1);
  CHECK(summary["world"]["ranks"] == 2);
  CHECK(summary["world"]["backend"] == "shm");
  CHECK(summary["options"]["batch_size"] == 64);
  CHECK(summary["options"]["model"] == "wrn-10-1");
  CHECK(summary["options"]["seed"] == 1);
  CHECK(summary["versions"].contains("libtorch"));
  CHECK(summary["versions"].contains("pardl"));
}

TEST_CASE("the test set is looked at whole, on any number of ranks") {
  auto const summary = summary_of({"--nproc", "3", "--batch-size", "96", "--epochs", "1"});
  CHECK(summary["world"]["batch_per_rank"] == 32);
  CHECK(summary["data"]["test_images"].get<int>() % (3 * 32) != 0);
  CHECK(summary["epochs"][0]["test_images"] == summary["data"]["test_images"]);
}

TEST_CASE("every kind of data trains, and auto takes CIFAR-100 where its files are") {
  TemporaryFolder folder;
  auto const blank = [&](char const* file, std::uintmax_t bytes) {  // sparse: black images of class 0
    std::filesystem::create_directories((folder.path() / file).parent_path());
    std::ofstream(folder.path() / file).flush();
    std::filesystem::resize_file(folder.path() / file, bytes);
  };
  auto const name_of = [&](std::string const& data) {
    return summary_of({"--data", data, "--data-dir", folder.path().string(), "--epochs", "1"})["data"]["name"]
        .get<std::string>();
  };
  blank("cifar-100-binary/train.bin", 50'000 * 3074);
  blank("cifar-100-binary/test.bin", 10'000 * 3074);
  CHECK(name_of("auto").starts_with("CIFAR-100"));
  for (auto const* file :
       {"data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"})
    blank(("cifar-10-batches-bin/" + std::string(file) + ".bin").c_str(), 10'000 * 3073);
  CHECK(name_of("cifar10").starts_with("CIFAR-10"));
  if (std::filesystem::exists("/usr/share/datasets/fashion-mnist"))
    CHECK(name_of("fashion-mnist").starts_with("Fashion-MNIST"));
}

TEST_CASE("the same seed gives the same bits, whatever the number of loader threads; another seed does not") {
  auto const once = numbers(summary_of({"--nproc", "2", "--workers", "2"}));
  CHECK(numbers(summary_of({"--nproc", "2", "--workers", "2"})) == once);
  CHECK(numbers(summary_of({"--nproc", "2", "--workers", "0"})) == once);
  CHECK(numbers(summary_of({"--nproc", "2", "--workers", "3"})) == once);
  CHECK(numbers(summary_of({"--nproc", "2", "--seed", "2"})) != once);
}

TEST_CASE("it stops early by the guide's rule, and says so") {
  auto const ended = run({"--epochs", "6", "--target-accuracy", "0.01", "--patience", "2"});
  REQUIRE_MESSAGE(ended.code == 0, ended.err);
  CHECK(ended.out.find("Target accuracy reached. Early stopping after epoch 2.") != std::string::npos);
  CHECK(Process::count(ended.out, "Validation Loss") == 2);
}

TEST_CASE("a target of nothing is reached at once") {
  auto const ended = run({"--target-accuracy", "0", "--patience", "1"});
  REQUIRE_MESSAGE(ended.code == 0, ended.err);
  CHECK(ended.out.find("Early stopping after epoch 1.") != std::string::npos);
}

TEST_CASE("each option of the training changes its numbers") {
  std::vector<std::string> const plain{"--precision", "fp32", "--epochs", "1"};
  auto const with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), plain.begin(), plain.end());  // of an option given twice the last counts
    return numbers(summary_of(std::move(more)));
  };
  auto const base = with({});
  for (auto const& [option, value] : std::vector<std::pair<std::string, std::string>>{{"--schedule", "constant"},
                                                                                      {"--schedule", "cosine"},
                                                                                      {"--precision", "bf16"},
                                                                                      {"--base-lr", "0.1"},
                                                                                      {"--batch-size", "32"},
                                                                                      {"--limit-train", "128"},
                                                                                      {"--model", "wrn-10-2"}}) {
    CAPTURE(option);
    CAPTURE(value);
    CHECK(with({option, value}) != base);
  }
  CHECK(with({"--schedule", "one-cycle"}) == base);
}

TEST_CASE("options that cannot be are refused in one sentence") {
  refuses({"--no-such-option"}, "--no-such-option", 2);
  refuses({"--model", "wrn-17-1"}, "WRN-17-1", 2);
  refuses({"--model", "resnet"}, "--model resnet", 2);
  refuses({"--precision", "fp16"}, "--precision fp16", 2);
  refuses({"--batch-size", "0"}, "--batch-size", 2);
  refuses({"--schedule", "linear"}, "--schedule", 2);
  refuses({"--data", "fashion-mnist", "--download"}, "--download", 2);
  refuses({"--limit-train", "10"}, "--batch-size", 2);
  refuses({"--backend", "carrier-pigeon"}, "carrier-pigeon", 2);
}

TEST_CASE("a batch smaller than the ranks is refused") {
  auto const ended = run({"--nproc", "2", "--batch-size", "1"});
  CHECK(ended.code == 2);
  CHECK_MESSAGE(ended.err.find("at least one image per rank") != std::string::npos, ended.err);
}

TEST_CASE("data files that are missing, truncated or hold a wrong label are refused by name") {
  TemporaryFolder data;
  auto const root = data.path();
  refuses({"--data", "cifar100", "--data-dir", (root / "nowhere").string()}, "nowhere");
  write(root / "short" / "cifar-100-binary" / "train.bin", 3074 * 100 - 1);
  write(root / "short" / "cifar-100-binary" / "test.bin", 3074 * 100);
  refuses({"--data", "cifar100", "--data-dir", (root / "short").string()}, "train.bin");
  write(root / "label" / "cifar-100-binary" / "train.bin", 3074UL * 50000, 200);
  write(root / "label" / "cifar-100-binary" / "test.bin", 3074UL * 10000, 200);
  refuses({"--data", "cifar100", "--data-dir", (root / "label").string()}, "label 200");
}

TEST_CASE("a loss that is no number ends the run on every rank with the policy's reason") {
  refuses({"--base-lr", "1e30", "--schedule", "constant", "--epochs", "5"}, "training loss is");
}

TEST_CASE("a summary that could not be written is refused before anything is trained") {
  auto const ended = run({"--summary", "/no/such/folder/summary.json"});
  CHECK(ended.code == 2);
  CHECK_MESSAGE(ended.err.find("/no/such/folder") != std::string::npos, ended.err);
  CHECK(ended.out.find("Epoch") == std::string::npos);
}

TEST_CASE("a port in use is one sentence") {
  int const listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(listener, 1) == 0);
  socklen_t length = sizeof address;
  REQUIRE(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  auto const port = std::to_string(ntohs(address.sin_port));
  auto const ended = pardl::testing::run(command({"--nproc", "2"}), {{"MASTER_PORT", port}});
  ::close(listener);
  CHECK(ended.in_time);
  CHECK(ended.code != 0);
  CHECK_MESSAGE(ended.err.find(port) != std::string::npos, ended.err);
}

TEST_CASE("a rank that dies or stops ends the run, names itself and leaves no process behind") {
  for (int const signal : {SIGKILL, SIGSTOP})
    for (std::string const victim : {"rank 0", "rank 1"}) {
      CAPTURE(signal);
      CAPTURE(victim);
      auto arguments = command({"--nproc", "2", "--epochs", "1000", "--timeout", "2", "--target-accuracy", "1"});
      Process program(arguments);
      REQUIRE(program.wait_for("Epoch 1/1000 completed"));
      auto const children = pardl::testing::descendants(program.pid());
      pardl::testing::Watch const watch(children);
      pid_t found = -1;
      for (pid_t const child : children) {
        std::ifstream comm("/proc/" + std::to_string(child) + "/comm");
        std::string name;
        if (std::getline(comm, name) && name.find(victim) != std::string::npos) found = child;
      }
      REQUIRE(found > 0);
      ::kill(found, signal);
      auto const ended = program.wait();
      CHECK(ended.in_time);
      CHECK(ended.code != 0);
      // The launcher's "rank 1 …", or a survivor's "ranks that have not come: 1".
      CHECK_MESSAGE((ended.err.find("[launch] " + victim) != std::string::npos ||
                     ended.err.find("have not come: " + victim.substr(5)) != std::string::npos),
                    ended.err);
      CHECK(watch.all_end());
    }
}
