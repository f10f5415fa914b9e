// SPDX-License-Identifier: MIT
#include "pardl/data/idx.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>
#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "support/temporary_folder.hpp"

using namespace pardl;
using pardl::testing::read_text;
using pardl::testing::TemporaryFolder;
using pardl::testing::what_of;
using pardl::testing::write_text;

namespace {

std::string idx(int type, std::vector<std::uint32_t> const& sizes, std::string const& data) {
  std::string bytes{'\0', '\0', static_cast<char>(type), static_cast<char>(sizes.size())};
  for (auto const size : sizes)
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(size >> shift));
  return bytes + data;
}

void write_gzip(std::filesystem::path const& path, std::string const& bytes) {
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(file);
}

std::string counting(int count) {
  std::string data;
  for (int i = 0; i < count; ++i) data.push_back(static_cast<char>(i * 37 + i / 251));
  return data;
}

torch::Tensor counted(int count) {
  auto const i = torch::arange(count);
  return (i * 37 + i.div(251, "floor")).remainder(256).to(torch::kByte);
}

std::string error_of(std::filesystem::path const& path) {
  return what_of<DataError>([&] { (void)data::read_idx(path); });
}

}  // namespace

TEST_CASE("an IDX file is read plain and packed, recognised by its bytes, not by its name") {
  TemporaryFolder const folder;
  auto const bytes = idx(8, {5, 28, 28}, counting(5 * 784));
  write_text(folder / "plain", bytes);
  write_gzip(folder / "packed", bytes);
  for (auto const* name : {"plain", "packed"}) {
    auto const tensor = data::read_idx(folder / name);
    CHECK((tensor.scalar_type() == torch::kByte));
    CHECK(torch::equal(tensor, counted(5 * 784).view({5, 28, 28})));
  }
}

TEST_CASE("every element type of the format is read, from big-endian") {
  TemporaryFolder const folder;
  auto const read = [&](int type, std::string const& data, std::uint32_t count) {
    write_text(folder / "x", idx(type, {count}, data));
    return data::read_idx(folder / "x");
  };
  using std::string;
  CHECK(torch::equal(read(0x09, string("\xff\x02", 2), 2), torch::tensor({-1, 2}, torch::kChar)));
  CHECK(torch::equal(read(0x0B, string("\x01\x02\xff\xfe", 4), 2), torch::tensor({258, -2}, torch::kShort)));
  CHECK(torch::equal(read(0x0C, string("\x00\x01\x00\x02", 4), 1), torch::tensor({65538}, torch::kInt)));
  CHECK(torch::equal(read(0x0D, string("\x3f\xc0\x00\x00\xc0\x00\x00\x00", 8), 2), torch::tensor({1.5F, -2.0F})));
  CHECK(
      torch::equal(read(0x0E, string("\x3f\xf8\x00\x00\x00\x00\x00\x00", 8), 1), torch::tensor({1.5}, torch::kDouble)));
  CHECK(read(0x08, "", 0).numel() == 0);
}

TEST_CASE("a file that is no IDX file is refused") {
  TemporaryFolder const folder;
  CHECK(error_of(folder / "nothing").find("nothing is not there") != std::string::npos);
  CHECK(error_of(folder.path()).find("is not there or not a file") != std::string::npos);
  for (auto const& bytes :
       {std::string("\x89PNG....", 8), idx(7, {1}, "x"), idx(8, {}, "x"), std::string("\0\1\x08\1....", 8)}) {
    write_text(folder / "x", bytes);
    CHECK(error_of(folder / "x").find("is not an IDX file") != std::string::npos);
  }
  for (std::size_t length = 0; length < 4 + 4 * 3; ++length) {
    write_text(folder / "x", idx(8, {1, 1, 1}, "x").substr(0, length));
    CHECK(error_of(folder / "x").find("is cut short") != std::string::npos);
  }
}

TEST_CASE("less and more data than promised are refused, plain and packed") {
  TemporaryFolder const folder;
  auto const less = idx(8, {3, 4, 5}, counting(59)), more = idx(8, {3, 4, 5}, counting(61));
  write_text(folder / "x", less);
  CHECK(error_of(folder / "x").find("promises 3 x 4 x 5 elements") == std::string::npos);  // 60 bytes fit in 75
  CHECK(error_of(folder / "x").find("is cut short: it has less than its header promises") != std::string::npos);
  write_gzip(folder / "x", less);
  CHECK(error_of(folder / "x").find("is cut short") != std::string::npos);
  write_text(folder / "x", more);
  CHECK(error_of(folder / "x").find("has more data than its header promises") != std::string::npos);
  write_gzip(folder / "x", more);
  CHECK(error_of(folder / "x").find("has more data than its header promises") != std::string::npos);
}

TEST_CASE("absurd dimensions are refused before anything is allocated, also where their product overflows") {
  TemporaryFolder const folder;
  for (auto const& sizes :
       {std::vector<std::uint32_t>{0xffffffff, 28, 28}, std::vector<std::uint32_t>{0x80000000, 0x80000000, 4},
        std::vector<std::uint32_t>{1U << 31, 1U << 31, 1U << 31, 1U << 31}}) {
    write_text(folder / "x", idx(8, sizes, counting(100)));
    CHECK(error_of(folder / "x").find("elements, more than a file of") != std::string::npos);
    write_gzip(folder / "x", idx(8, sizes, counting(100)));
    CHECK(error_of(folder / "x").find("elements, more than a file of") != std::string::npos);
  }
  write_text(folder / "x", idx(8, {0, 0xffffffff, 0xffffffff}, ""));
  CHECK(error_of(folder / "x").find("elements, more than a file of") != std::string::npos);
  write_text(folder / "x", idx(8, {0, 28, 28}, ""));
  CHECK(data::read_idx(folder / "x").sizes() == torch::IntArrayRef({0, 28, 28}));
}

TEST_CASE("a gzip file that is cut or damaged anywhere is refused") {
  TemporaryFolder const folder;
  write_gzip(folder / "whole", idx(8, {40, 28, 28}, counting(40 * 784)));
  auto const packed = read_text(folder / "whole");
  REQUIRE(packed.size() > 100);
  for (std::size_t const length :
       {packed.size() - 1, packed.size() - 8, packed.size() / 2, std::size_t{20}, std::size_t{3}}) {
    write_text(folder / "x", packed.substr(0, length));
    CHECK_FALSE(error_of(folder / "x").empty());
  }
  for (std::size_t const at : {packed.size() - 1, packed.size() - 6, packed.size() / 2, std::size_t{30}}) {
    auto damaged = packed;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x55);
    write_text(folder / "x", damaged);
    CHECK_FALSE(error_of(folder / "x").empty());
  }
  CHECK(error_of(folder / "whole").empty());
}

TEST_CASE("MNIST and Fashion-MNIST come from their folder or the usual ones in it, padded if asked") {
  TemporaryFolder const folder;
  CHECK_FALSE(data::Mnist::found(folder.path()));
  CHECK(what_of<DataError>([&] {
          data::Mnist{folder.path(), data::Split::train};
        }).find("MNIST: no train-images-idx3-ubyte (or .gz) in " + folder.path().string()) != std::string::npos);
  auto const raw = folder / "MNIST" / "raw";
  std::filesystem::create_directories(raw);
  write_text(raw / "train-images-idx3-ubyte", idx(8, {3, 28, 28}, counting(3 * 784)));
  write_gzip(raw / "train-labels-idx1-ubyte.gz", idx(8, {3}, std::string("\7\0\1", 3)));
  CHECK(data::Mnist::found(folder.path()));
  CHECK_FALSE(data::Mnist::found(folder.path(), data::Split::test));
  data::Mnist const train{folder.path(), data::Split::train};
  CHECK(train.images().sizes() == torch::IntArrayRef({3, 1, 28, 28}));
  CHECK(torch::equal(train.images().flatten(), counted(3 * 784)));
  CHECK(torch::equal(train.labels(), torch::tensor({7, 0, 1})));
  CHECK(train.classes() == 10);
  data::Mnist const wide{folder.path(), data::Split::train, {.pad_to = 32}};
  CHECK(torch::equal(wide.images(), torch::constant_pad_nd(train.images(), {2, 2, 2, 2})));
  CHECK_THROWS_AS((data::Mnist{folder.path(), data::Split::train, {.pad_to = 20}}), ConfigError);
}

TEST_CASE("the four files come from one folder: what is missing there is not taken from the next") {
  TemporaryFolder const folder;
  write_text(folder / "train-images-idx3-ubyte", idx(8, {1, 28, 28}, counting(784)));
  std::filesystem::create_directories(folder / "mnist");
  for (std::string const part : {"train", "t10k"}) {
    write_text(folder / "mnist" / (part + "-images-idx3-ubyte"), idx(8, {1, 28, 28}, counting(784)));
    write_text(folder / "mnist" / (part + "-labels-idx1-ubyte"), idx(8, {1}, "\3"));
  }
  for (auto const split : {data::Split::train, data::Split::test})
    CHECK(what_of<DataError>([&] {
            data::Mnist{folder.path(), split};
          }).find(" in " + folder.path().string() + "; ") != std::string::npos);
  std::filesystem::remove(folder / "train-images-idx3-ubyte");
  CHECK(data::Mnist(folder.path(), data::Split::test).labels()[0].item<int>() == 3);
}

TEST_CASE("labels that do not go with the images are refused") {
  TemporaryFolder const folder;
  auto const load = [&] {
    return what_of<DataError>([&] {
      data::IdxImages{folder / "images", folder / "labels", {"things", 10, {0.5}, {0.5}}};
    });
  };
  write_text(folder / "images", idx(8, {2, 2, 2}, counting(8)));
  write_text(folder / "labels", idx(8, {2}, "\1\2"));
  CHECK(load().empty());
  write_text(folder / "labels", idx(8, {3}, "\1\2\3"));
  CHECK(load().find("holds [3] of Byte for 2 images") != std::string::npos);
  write_text(folder / "labels", idx(8, {2}, "\1\x0a"));
  CHECK(load().find("sample 1 has label 10 of 10 classes") != std::string::npos);
  write_text(folder / "images", idx(8, {8}, counting(8)));
  CHECK(load().find("images are uint8 [N, H, W]") != std::string::npos);
}

TEST_CASE("Debian's Fashion-MNIST is found without being told, is whole, and has the mean and deviation stated") {
  TemporaryFolder const folder;
  if (!data::FashionMnist::found(folder.path())) {
    MESSAGE("Debian's package dataset-fashion-mnist is not installed: not checked");
    return;
  }
  data::FashionMnist const train{folder.path(), data::Split::train},
      test{folder.path(), data::Split::test, {.pad_to = 32}};
  CHECK(train.size() == 60'000);
  CHECK(test.images().sizes() == torch::IntArrayRef({10'000, 1, 32, 32}));
  CHECK(torch::equal(train.labels().bincount(), torch::full({10}, 6000)));
  auto const [mean, stddev] = data::channel_statistics(train.images());
  CHECK(mean[0] == doctest::Approx(train.mean()[0]).epsilon(0.0005));
  CHECK(stddev[0] == doctest::Approx(train.stddev()[0]).epsilon(0.0005));
}
