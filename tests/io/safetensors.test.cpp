// SPDX-License-Identifier: MIT
#include "pardl/io/safetensors.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "support/hexadecimal.hpp"
#include "support/temporary_folder.hpp"

namespace fs = std::filesystem;
namespace io = pardl::io;
using io::TensorType;
using pardl::CheckpointError;
using pardl::testing::golden_bytes;
using pardl::testing::read_text;
using pardl::testing::TemporaryFolder;
using pardl::testing::to_hexadecimal;
using pardl::testing::what_of;
using pardl::testing::write_text;

namespace {

constexpr TensorType every_type[] = {TensorType::boolean, TensorType::u8,      TensorType::i8,  TensorType::f8_e5m2,
                                     TensorType::f8_e4m3, TensorType::f8_e8m0, TensorType::i16, TensorType::u16,
                                     TensorType::f16,     TensorType::bf16,    TensorType::i32, TensorType::u32,
                                     TensorType::f32,     TensorType::c64,     TensorType::f64, TensorType::i64,
                                     TensorType::u64};

std::span<std::byte const> bytes_of(std::string const& text) { return std::as_bytes(std::span(text)); }

/// The bytes that tests/golden/files.py gives the tensor of a type.
std::string pattern(TensorType type, std::size_t elements) {
  std::string bytes;
  for (std::size_t k = 0; k < elements * io::size_of(type); ++k)
    bytes.push_back(static_cast<char>(type == TensorType::boolean ? k % 2 : (37 * k + 11) % 256));
  return bytes;
}

std::string read_all(io::SafetensorsReader const& file, std::string_view name) {
  auto const& tensor = file.at(name);
  std::string bytes(tensor.bytes, '\0');
  file.read(tensor, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

/// A file with that header and so many bytes of data.
std::string file_of(std::string_view header, std::size_t data_bytes) {
  std::string text;
  for (int byte = 0; byte < 8; ++byte) text.push_back(static_cast<char>(header.size() >> (8 * byte) & 0xff));
  return (text += header).append(data_bytes, 'd');
}

std::string refusal(fs::path const& path, std::string_view file) {
  write_text(path, file);
  return what_of<CheckpointError>([&] { io::SafetensorsReader reader(path); });
}

/// Every tensor lies inside the data, and they fill it.
void check_sound(io::SafetensorsReader const& file, std::uint64_t size) {
  std::uint64_t total = 0;
  for (auto const& tensor : file.tensors()) {
    CHECK(tensor.offset == total);
    total += tensor.bytes;
    CHECK(read_all(file, tensor.name).size() == tensor.bytes);
  }
  CHECK(total <= size);
}

}  // namespace

TEST_CASE("files are those of Python's safetensors, byte for byte") {
  TemporaryFolder folder;
  auto const path = folder / "a.safetensors";
  auto const same = [&](std::vector<io::TensorBytes> tensors, io::Metadata const& metadata, std::string const& key) {
    std::ranges::reverse(tensors);  // the order of the call does not matter
    io::write_safetensors(path, tensors, metadata);
    CHECK(to_hexadecimal(read_text(path)) == to_hexadecimal(golden_bytes("safetensors.txt", key)));
  };
  same({}, {}, "empty");
  same({}, {{"Grüße \"1\"", "line\nend \u2028 \U0001f600"}}, "metadata");

  std::vector<std::string> kept;
  kept.reserve(std::size(every_type));
  std::vector<io::TensorBytes> tensors;
  for (TensorType const type : every_type) {
    kept.push_back(pattern(type, 6));
    tensors.push_back({"layer." + std::string(name_of(type)), type, {2, 3}, bytes_of(kept.back())});
  }
  same(tensors, {}, "types");

  std::string const scalar("\0\0\x20\x40", 4), one("\1"), deep("\0\0\0\0\1\0\0\0", 8);
  same({{"scalar", TensorType::f32, {}, bytes_of(scalar)},
        {"none", TensorType::f32, {0}, {}},
        {"flat", TensorType::i16, {2, 0, 3}, {}},
        {"deep", TensorType::i32, {1, 1, 1, 2, 1}, bytes_of(deep)},
        {"Zürich \"quoted\" \\ / \b\f\n\r\t\x01\x7f 深 \U0001f600", TensorType::u8, {1}, bytes_of(one)}},
       {{"format", "pt"}}, "shapes");
}

TEST_CASE("Python's files are read: types, shapes, names, metadata and bytes") {
  TemporaryFolder folder;
  auto const path = folder / "a.safetensors";
  write_text(path, golden_bytes("safetensors.txt", "types"));
  io::SafetensorsReader const types(path);
  CHECK(types.tensors().size() == std::size(every_type));
  for (TensorType const type : every_type) {
    auto const& tensor = types.at("layer." + std::string(name_of(type)));
    CHECK(tensor.type == type);
    CHECK(tensor.shape == std::vector<std::int64_t>{2, 3});
    CHECK(read_all(types, tensor.name) == pattern(type, 6));
    CHECK(io::tensor_type(io::name_of(type)) == type);
  }

  write_text(path, golden_bytes("safetensors.txt", "shapes"));
  io::SafetensorsReader const shapes(path);
  CHECK(shapes.metadata() == io::Metadata{{"format", "pt"}});
  CHECK(shapes.at("scalar").shape.empty());
  CHECK(read_all(shapes, "scalar") == std::string("\0\0\x20\x40", 4));
  CHECK(shapes.at("none").bytes == 0);
  CHECK(shapes.at("flat").shape == std::vector<std::int64_t>{2, 0, 3});
  CHECK(shapes.at("deep").shape == std::vector<std::int64_t>{1, 1, 1, 2, 1});
  CHECK(read_all(shapes, "Zürich \"quoted\" \\ / \b\f\n\r\t\x01\x7f 深 \U0001f600") == "\1");
  CHECK(shapes.find("Scalar") == nullptr);
  CHECK(what_of<CheckpointError>([&] { (void)shapes.at("Scalar"); }) ==
        "[io] " + path.string() + " has no tensor 'Scalar'; load a file of the same model.");

  write_text(path, golden_bytes("safetensors.txt", "metadata"));
  CHECK(io::SafetensorsReader(path).metadata() == io::Metadata{{"Grüße \"1\"", "line\nend \u2028 \U0001f600"}});
  CHECK(io::SafetensorsReader(path).tensors().empty());
}

TEST_CASE("the data begin at a multiple of 8, whatever the header's length") {
  TemporaryFolder folder;
  std::string const data(8, 'x');
  for (std::size_t length = 1; length < 20; ++length) {
    io::TensorBytes const tensor{std::string(length, 'n'), TensorType::f64, {1}, bytes_of(data)};
    io::write_safetensors(folder / "a", {&tensor, 1});
    auto const text = read_text(folder / "a");
    CHECK(text.size() % 8 == 0);
    CHECK(text.ends_with(data));
    CHECK(read_all(io::SafetensorsReader(folder / "a"), tensor.name) == data);
  }
}

TEST_CASE("JSON that others write is read: blanks, any order of keys and tensors, every escape") {
  TemporaryFolder folder;
  write_text(folder / "a", file_of("{ \"b\" :\t{\"data_offsets\":[ 4 , 6 ],\n\"shape\":[\r2],\"dtype\":\"I8\"},"
                                   R"("\u0061\"\\\/\b\f\n\r\t\u00e4\u6df1\ud83d\ude00\u0000":)"
                                   R"({"shape":[ ],"dtype":"F32","data_offsets":[0,4]}, "__metadata__": { } } )",
                                   6));
  io::SafetensorsReader const file(folder / "a");
  std::string const name = std::string("a\"\\/\b\f\n\r\tä深\U0001f600") + '\0';
  CHECK(file.tensors().size() == 2);
  CHECK(file.tensors()[0].name == name);
  CHECK(file.at(name).offset == 0);
  CHECK(file.at("b").offset == 4);
  CHECK(file.metadata().empty());
}

TEST_CASE("what is wrong with a file is one sentence that names it, and the tensor") {
  TemporaryFolder folder;
  auto const path = folder / "bad.safetensors";
  auto const tensor = [](std::string const& rest) { return R"({"w":{"dtype":"F32",)" + rest + "}}"; };
  std::string const sound = R"("shape":[2],"data_offsets":[0,8])";
  REQUIRE(refusal(path, file_of(tensor(sound), 8)).empty());

  struct Case {
    std::string header;
    std::size_t data_bytes;
    std::string said;
  };
  std::vector<Case> const cases{
      {tensor(sound), 7, "it ends inside tensor 'w', which needs 8 bytes of data where there are 7"},
      {tensor(sound), 9, "1 bytes follow the last tensor"},
      {"{}", 1, "1 bytes follow"},
      {"", 0, "does not begin with {"},
      {"[]", 0, "does not begin with {"},
      {" {}", 0, "does not begin with {"},
      {"{", 0, "expected \""},
      {"{}}", 0, "something follows the end"},
      {"{},", 0, "something follows the end"},
      {"{\"\xff\":1}", 0, "not UTF-8"},
      {"{\"\xed\xa0\x80\":1}", 0, "not UTF-8"},
      {"{\"\xc0\xaf\":1}", 0, "not UTF-8"},
      {"{\"a\nb\":1}", 0, "a control character"},
      {R"({"\x":1})", 0, "an escape that JSON does not have"},
      {R"({"\u12g4":1})", 0, "without four hexadecimal digits"},
      {R"({"\ud800":1})", 0, "the first half of a surrogate pair without the second"},
      {R"({"\ud800\u0041":1})", 0, "the first half of a surrogate pair without the second"},
      {R"({"\udc00":1})", 0, "the second half of a surrogate pair"},
      {R"({"abc)", 0, "it ends inside a string"},
      {R"({"w")", 0, "expected :"},
      {R"({"w":3})", 0, "expected {"},
      {R"({"w":{}})", 0, "tensor 'w' lacks its dtype, shape or data_offsets"},
      {R"({"w":{"dtype":"F32","shape":[2]}})", 0, "tensor 'w' lacks"},
      {R"({"w":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})", 8, "elements of type 'F31', which is not known"},
      {R"({"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, "tensor 'w' has two of dtype"},
      {tensor(sound + R"(,"colour":1)"), 8, "tensor 'w' has 'colour', which the format does not"},
      {tensor(R"("shape":[3],"data_offsets":[0,8])"), 8, "takes 12 bytes by its shape, and 8 by its data_offsets"},
      {tensor(R"("shape":[2],"data_offsets":[0,8,8])"), 8, "are not a beginning and an end"},
      {tensor(R"("shape":[2],"data_offsets":[8])"), 8, "are not a beginning and an end"},
      {tensor(R"("shape":[2],"data_offsets":[8,0])"), 8, "are not a beginning and an end"},
      {tensor(R"("shape":[2],"data_offsets":[4,12])"), 12, "begin at 4, and those before it end at 0"},
      {tensor(R"("shape":[-2],"data_offsets":[0,8])"), 8, "expected a whole number that is not negative"},
      {tensor(R"("shape":[2.0],"data_offsets":[0,8])"), 8, "expected ]"},
      {tensor(R"("shape":[02],"data_offsets":[0,8])"), 8, "a leading zero"},
      {tensor(R"("shape":[2,],"data_offsets":[0,8])"), 8, "expected a whole number"},
      {tensor(R"("shape":[9223372036854775808],"data_offsets":[0,8])"), 8, "a number beyond 64 bits"},
      {tensor(R"("shape":[99999999999999999999999],"data_offsets":[0,8])"), 8, "a number beyond 64 bits"},
      {tensor(R"("shape":[4611686018427387904,2],"data_offsets":[0,8])"), 8, "a shape of more than 2^63 bytes"},
      {tensor(R"("shape":[4294967296,4294967296,0],"data_offsets":[0,0])"), 0, "a shape of more than 2^63 bytes"},
      {tensor(R"("shape":[0],"data_offsets":[9223372036854775807,9223372036854775807])"), 0, "begin at 92233720368547"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "the bytes of tensor 'b' begin at 1, and those before it end at 2"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       4, "it has two of 'a'"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "it has two of '__metadata__'"},
      {R"({"__metadata__":{"a":"b","a":"c"}})", 0, "its metadata have two of 'a'"},
      {R"({"__metadata__":{"a":1}})", 0, "expected \""},
      {R"({"__metadata__":null})", 0, "expected {"},
      {R"({"a\nb":{}})", 0, "tensor 'a?b' lacks"},
  };
  for (auto const& [header, data_bytes, said] : cases) {
    auto const what = refusal(path, file_of(header, data_bytes));
    CHECK_MESSAGE(what.find(said) != std::string::npos, header, " gave: ", what);
    CHECK(what.starts_with("[io] " + path.string() + " is no sound safetensors file: "));
    CHECK(what.ends_with("; copy or write it anew."));
    CHECK(what.find('\n') == std::string::npos);
  }

  auto const length = [](std::uint64_t bytes) {
    std::string text;
    for (int byte = 0; byte < 8; ++byte) text.push_back(static_cast<char>(bytes >> (8 * byte) & 0xff));
    return text;
  };
  CHECK(refusal(path, "").find("it has 0 bytes, and a length takes 8") != std::string::npos);
  CHECK(refusal(path, "1234567").find("it has 7 bytes") != std::string::npos);
  CHECK(refusal(path, length(3) + "{}").find("its header claims 3 bytes, the file has 10") != std::string::npos);
  CHECK(refusal(path, length(~std::uint64_t{0}) + "{}").find("claims 18446744073709551615 bytes") != std::string::npos);
  // A sparse file, so that the limit and not the file's size refuses it.
  write_text(path, length(100'000'001));
  fs::resize_file(path, 100'000'100);
  CHECK(what_of<CheckpointError>([&] { io::SafetensorsReader reader(path); }).find("the format's limit is 100000000") !=
        std::string::npos);
}

TEST_CASE("what is no readable file is said so, and a pipe is not waited for") {
  TemporaryFolder folder;
  CHECK(what_of<CheckpointError>([&] { io::SafetensorsReader reader(folder / "none"); }) ==
        "[io] cannot read " + (folder / "none").string() +
            ": no such file or folder; create the folder or mend the path.");
  CHECK(what_of<CheckpointError>([&] { io::SafetensorsReader reader(folder.path()); }).find("a folder, not a file") !=
        std::string::npos);
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK(what_of<CheckpointError>([&] { io::SafetensorsReader reader(folder / "pipe"); }).find("not a regular file") !=
        std::string::npos);
}

TEST_CASE("a file that shrinks after it was opened is an exception, not a signal") {
  TemporaryFolder folder;
  std::string const data(64, 'x');
  io::TensorBytes const tensor{"w", TensorType::u8, {64}, bytes_of(data)};
  io::write_safetensors(folder / "a", {&tensor, 1});
  io::SafetensorsReader const file(folder / "a");
  fs::resize_file(folder / "a", fs::file_size(folder / "a") - 1);
  CHECK(what_of<CheckpointError>([&] { (void)read_all(file, "w"); }).find("it ends inside tensor 'w'") !=
        std::string::npos);
}

TEST_CASE("bytes are asked for whole, of a tensor of the file") {
  TemporaryFolder folder;
  std::string const data(8, 'x');
  io::TensorBytes const tensor{"w", TensorType::u8, {8}, bytes_of(data)};
  io::write_safetensors(folder / "a", {&tensor, 1});
  io::SafetensorsReader const file(folder / "a");
  std::byte place[9];
  CHECK_THROWS_AS(file.read(file.at("w"), std::span(place).first(7)), CheckpointError);
  CHECK_THROWS_AS(file.read(file.at("w"), place), CheckpointError);
  io::TensorInfo forged = file.at("w");
  forged.offset = 1;
  CHECK_THROWS_AS(file.read(forged, std::span(place).first(8)), CheckpointError);
  forged.offset = ~std::uint64_t{0};
  CHECK_THROWS_AS(file.read(forged, std::span(place).first(8)), CheckpointError);
}

TEST_CASE("a writer refuses what the format cannot hold, and leaves the old file") {
  TemporaryFolder folder;
  auto const path = folder / "a.safetensors";
  write_text(path, "old");
  std::string const data(8, 'x');
  auto const said = [&](std::vector<io::TensorBytes> const& tensors, io::Metadata const& metadata = {}) {
    return what_of<CheckpointError>([&] { io::write_safetensors(path, tensors, metadata); });
  };
  auto const tensor = [&](std::string name, std::vector<std::int64_t> shape, std::size_t bytes) {
    return io::TensorBytes{std::move(name), TensorType::u8, std::move(shape), bytes_of(data).first(bytes)};
  };
  CHECK(said({tensor("w", {8}, 7)}) == "[io] cannot write " + path.string() +
                                           ": tensor 'w' takes 8 bytes by its shape, and was given 7; give its "
                                           "elements without gaps.");
  CHECK(said({tensor("w", {8}, 8), tensor("v", {1}, 1), tensor("w", {4}, 4)}).find("two tensors are named 'w'") !=
        std::string::npos);
  CHECK(said({tensor("__metadata__", {8}, 8)}).find("cannot be a tensor's name") != std::string::npos);
  CHECK(said({tensor("\xff", {8}, 8)}).find("cannot be a tensor's name") != std::string::npos);
  CHECK(said({tensor("w", {-1}, 8)}).find("impossible shape") != std::string::npos);
  CHECK(said({tensor("w", {1LL << 62, 4}, 8)}).find("impossible shape") != std::string::npos);
  CHECK(said({}, {{"a", "\x80"}}).find("not UTF-8") != std::string::npos);

  io::SafetensorsWriter writer(
      path, {{.name = "b", .type = TensorType::u8, .shape = {1}}, {.name = "a", .type = TensorType::u8, .shape = {0}}});
  CHECK(writer.tensors()[0].name == "a");
  CHECK_THROWS_AS(writer.commit(), CheckpointError);
  writer.write({});
  CHECK_THROWS_AS(writer.write(bytes_of(data)), CheckpointError);
  writer.write(bytes_of(data).first(1));
  CHECK_THROWS_AS(writer.write({}), CheckpointError);
  CHECK(read_text(path) == "old");
  writer.commit();
  CHECK(io::SafetensorsReader(path).tensors().size() == 2);
  CHECK(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()) == 1);
}

// What follows also runs under -fsanitize=address,undefined, which sees a read beyond the bytes.

TEST_CASE("every truncation of a file is refused, every wrong byte is refused or harmless") {
  TemporaryFolder folder;
  auto const path = folder / "a.safetensors";
  std::string const one(24, '\1'), two("\2\3");
  std::vector<io::TensorBytes> const tensors{{"w\xc3\xa4", TensorType::f32, {2, 3}, bytes_of(one)},
                                             {"b", TensorType::u8, {2}, bytes_of(two)},
                                             {"none", TensorType::i64, {0}, {}}};
  io::write_safetensors(path, tensors, {{"k\n", "v"}});
  auto const sound = read_text(path);

  for (std::size_t size = 0; size < sound.size(); ++size)
    CHECK_FALSE(refusal(path, std::string_view(sound).substr(0, size)).empty());

  write_text(path, sound);
  int const file = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  REQUIRE(file >= 0);
  auto const put = [&](std::size_t at, char byte) { REQUIRE(::pwrite(file, &byte, 1, static_cast<off_t>(at)) == 1); };
  int refused = 0, read = 0;
  for (std::size_t at = 0; at < sound.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      if (static_cast<char>(value) == sound[at]) continue;
      put(at, static_cast<char>(value));
      try {
        io::SafetensorsReader const damaged(path);
        check_sound(damaged, sound.size());
        ++read;
      } catch (CheckpointError const&) {
        ++refused;
      }
    }
    put(at, sound[at]);
  }
  ::close(file);
  CHECK(read > 26 * 255);  // the data themselves, and letters of names
  CHECK(refused > read);
}

TEST_CASE("headers with several wrong, missing and added bytes are refused or sound") {
  std::string const sound =
      R"({"__metadata__":{"a\u00e4":"b"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("v":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}})";
  std::string_view const letters = "{}[]:,\"\\0123456789u _adeFI\x80\xc3\xf0";
  std::mt19937 random(7);
  auto const below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  int refused = 0;
  for (int round = 0; round < 50'000; ++round) {
    std::string text = sound;
    for (std::size_t change = below(4) + 1; change > 0 && !text.empty(); --change) {
      std::size_t const at = below(text.size());
      switch (below(4)) {
        case 0:
          text.erase(at, below(6) + 1);
          break;
        case 1:
          text.insert(at, 1, letters[below(letters.size())]);
          break;
        case 2: {
          std::size_t const from = below(text.size());
          text.insert(at, text.substr(from, below(30)));
          break;
        }
        default:
          text[at] = letters[below(letters.size())];
      }
    }
    std::vector<char> const exact(text.begin(), text.end());  // not one byte behind it
    try {
      auto const header = io::detail::parse_safetensors_header({exact.data(), exact.size()}, 26, "file");
      std::uint64_t end = 0;
      for (auto const& tensor : header.tensors) {
        CHECK(tensor.offset == end);
        CHECK(io::byte_count(tensor.type, tensor.shape) == tensor.bytes);
        end += tensor.bytes;
      }
      CHECK(end == 26);
    } catch (CheckpointError const&) {
      ++refused;
    }
  }
  CHECK(refused > 40'000);
}
