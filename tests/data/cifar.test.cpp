// SPDX-License-Identifier: MIT
#include "pardl/data/cifar.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <filesystem>
#include <string>

#include "pardl/io/sha256.hpp"
#include "support/temporary_folder.hpp"

using namespace pardl;
using pardl::testing::TemporaryFolder;
using pardl::testing::what_of;
using pardl::testing::write_text;

namespace {

/// Records in the true format; pixel k of record r is (r + 7k) mod 256, label r mod classes.
std::string records(int first, int count, int classes, int coarse = 0) {
  std::string bytes;
  for (int r = first; r < first + count; ++r) {
    if (coarse) bytes.push_back(static_cast<char>(r % coarse));
    bytes.push_back(static_cast<char>(r % classes));
    for (int k = 0; k < 3072; ++k) bytes.push_back(static_cast<char>((r + 7 * k) % 256));
  }
  return bytes;
}

torch::Tensor expected_image(int r) {
  return ((torch::arange(3072) * 7 + r).remainder(256)).to(torch::kByte).view({3, 32, 32});
}

std::string sum_of(std::string const& text) {
  io::Sha256 sum;
  sum.update(text);
  return sum.hex();
}

}  // namespace

TEST_CASE("CIFAR-100 is read from the folder or from the archive's folder in it, with fine or coarse labels") {
  TemporaryFolder const folder;
  CHECK_FALSE(data::Cifar100::found(folder.path()));
  std::filesystem::create_directory(folder / "cifar-100-binary");
  write_text(folder / "cifar-100-binary" / "train.bin", records(0, 300, 100, 20));
  write_text(folder / "test.bin", records(300, 7, 100, 20));
  CHECK(data::Cifar100::found(folder.path()));
  CHECK(data::Cifar100::found(folder.path(), data::Split::test));
  data::Cifar100 const train{folder.path(), data::Split::train, {.records = 300}};
  CHECK(train.size() == 300);
  CHECK(train.classes() == 100);
  CHECK(train.name() == "CIFAR-100 train");
  CHECK(torch::equal(train.images()[299], expected_image(299)));
  CHECK(torch::equal(train.images()[256], expected_image(256)));
  CHECK(torch::equal(train.labels(), torch::arange(300).remainder(100)));
  data::Cifar100 const coarse{folder.path(), data::Split::train, {.coarse_labels = true, .records = 300}};
  CHECK(coarse.classes() == 20);
  CHECK(torch::equal(coarse.labels(), torch::arange(300).remainder(20)));
  data::Cifar100 const test{folder.path(), data::Split::test, {.records = 7}};
  CHECK(test.size() == 7);
  CHECK(torch::equal(test.images()[6], expected_image(306)));
  CHECK(test.mean().size() == 3);
}

TEST_CASE("CIFAR-10's five files are one training set, in order") {
  TemporaryFolder const folder;
  auto const root = folder / "cifar-10-batches-bin";
  std::filesystem::create_directory(root);
  for (int file = 0; file < 5; ++file)
    write_text(root / ("data_batch_" + std::to_string(file + 1) + ".bin"), records(file * 4, 4, 10));
  write_text(root / "test_batch.bin", records(100, 4, 10));
  data::Cifar10 const train{folder.path(), data::Split::train, {.records_per_file = 4}};
  CHECK(train.size() == 20);
  for (int r = 0; r < 20; ++r) CHECK(torch::equal(train.images()[r], expected_image(r)));
  CHECK(torch::equal(train.labels(), torch::arange(20).remainder(10)));
  CHECK(torch::equal(data::Cifar10(root, data::Split::test, {.records_per_file = 4}).images()[3], expected_image(103)));
  std::filesystem::remove(root / "data_batch_4.bin");
  CHECK(what_of<DataError>([&] {
          data::Cifar10{folder.path(), data::Split::train, {.records_per_file = 4}};
        }).find("data_batch_4.bin is not there") != std::string::npos);
}

TEST_CASE("a missing, truncated or longer file is refused with its name, both sizes and where to get it") {
  TemporaryFolder const folder;
  auto const load = [&] {
    return what_of<DataError>([&] { data::Cifar100{folder.path(), data::Split::train, {.records = 3}}; });
  };
  auto const missing = load();
  CHECK(missing.find("CIFAR-100 train: no train.bin in " + folder.path().string()) != std::string::npos);
  CHECK(missing.find("cifar-100-binary.tar.gz (MD5 03b5dce01913d631647c71ecec9e9cb8)") != std::string::npos);
  auto const whole = records(0, 3, 100, 20);
  for (auto const& bytes : {whole.substr(0, whole.size() - 1), whole.substr(0, 2 * 3074), whole + "x", std::string()}) {
    write_text(folder / "train.bin", bytes);
    auto const message = load();
    CHECK(message.find("train.bin has " + std::to_string(bytes.size()) + " bytes; 3 records of 3074 bytes are 9222") !=
          std::string::npos);
  }
  write_text(folder / "train.bin", whole);
  CHECK(load().empty());
  CHECK(what_of<DataError>([&] {
          data::Cifar100{folder.path(), data::Split::train};
        }).find("50000 records of 3074 bytes are 153700000") != std::string::npos);
  CHECK_THROWS_AS((data::Cifar100{folder.path(), data::Split::train, {.records = -1}}), ConfigError);
}

TEST_CASE("a label out of range names file and record") {
  TemporaryFolder const folder;
  auto bytes = records(0, 300, 100, 20);
  bytes[3074 * 270 + 1] = 100;
  write_text(folder / "train.bin", bytes);
  CHECK(what_of<DataError>([&] {
          data::Cifar100{folder.path(), data::Split::train, {.records = 300}};
        }).find("train.bin has label 100 in record 270; CIFAR-100 train has 100 classes") != std::string::npos);
  bytes[3074 * 270] = 20;
  write_text(folder / "train.bin", bytes);
  CHECK_THROWS_AS((data::Cifar100{folder.path(), data::Split::train, {.coarse_labels = true, .records = 300}}),
                  DataError);
}

TEST_CASE("a given SHA-256 is held against the file, in either case of its digits") {
  TemporaryFolder const folder;
  auto const bytes = records(0, 3, 100, 20);
  write_text(folder / "test.bin", bytes);
  auto sum = sum_of(bytes);
  auto const load = [&] { data::Cifar100{folder.path(), data::Split::test, {.records = 3, .sha256 = {sum}}}; };
  CHECK_NOTHROW(load());
  for (char& c : sum) c = static_cast<char>(std::toupper(c));
  CHECK_NOTHROW(load());
  sum = sum_of(bytes + "x");
  CHECK(what_of<DataError>(load).find("test.bin has the SHA-256 " + sum_of(bytes) + " and should have " + sum) !=
        std::string::npos);
  sum = "abc";
  CHECK_THROWS_AS(load(), ConfigError);
  CHECK_THROWS_AS(
      (data::Cifar100{folder.path(), data::Split::test, {.records = 3, .sha256 = {sum_of(bytes), sum_of(bytes)}}}),
      ConfigError);
}

TEST_CASE("a data set chosen at run time is an ImageDataset") {
  TemporaryFolder const folder;
  write_text(folder / "test.bin", records(0, 3, 100, 20));
  data::ImageDataset const chosen = data::Cifar100{folder.path(), data::Split::test, {.records = 3}};
  CHECK(chosen.classes() == 100);
  CHECK(chosen.size() == 3);
}
