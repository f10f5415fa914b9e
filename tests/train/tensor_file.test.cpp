// SPDX-License-Identifier: MIT
#include "pardl/train/tensor_file.hpp"

#include <doctest/doctest.h>
#include <torch/cuda.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/ordered_dict.h>
#include <torch/types.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "pardl/train/state_dict.hpp"
#include "support/hexadecimal.hpp"
#include "support/temporary_folder.hpp"

using pardl::CheckpointError;
using pardl::load_tensors;
using pardl::save_tensors;
using pardl::StateDict;
using pardl::TensorFile;
using pardl::testing::golden_bytes;
using pardl::testing::read_text;
using pardl::testing::TemporaryFolder;
using pardl::testing::to_hexadecimal;
using pardl::testing::what_of;
using pardl::testing::write_text;

namespace {

/// The tensor that tests/golden/files.py makes of a type.
torch::Tensor patterned(c10::ScalarType type) {
  torch::Tensor const tensor = torch::empty({2, 3}, type);
  auto* const bytes = static_cast<std::uint8_t*>(tensor.mutable_data_ptr());
  for (std::size_t k = 0; k < tensor.nbytes(); ++k)
    bytes[k] = static_cast<std::uint8_t>(type == torch::kBool ? k % 2 : (37 * k + 11) % 256);
  return tensor;
}

std::string bytes_of(torch::Tensor const& tensor) {
  auto const whole = tensor.cpu().contiguous();
  return {static_cast<char const*>(whole.const_data_ptr()), whole.nbytes()};
}

/// Equal in type, shape and every bit.
bool same(torch::Tensor const& a, torch::Tensor const& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && bytes_of(a) == bytes_of(b);
}

struct Named {
  std::string name;
  c10::ScalarType type;
};
using enum c10::ScalarType;
std::vector<Named> const every_type{{"BOOL", Bool},
                                    {"U8", Byte},
                                    {"I8", Char},
                                    {"F8_E5M2", Float8_e5m2},
                                    {"F8_E4M3", Float8_e4m3fn},
                                    {"F8_E8M0", Float8_e8m0fnu},
                                    {"I16", Short},
                                    {"U16", UInt16},
                                    {"F16", Half},
                                    {"BF16", BFloat16},
                                    {"I32", Int},
                                    {"U32", UInt32},
                                    {"F32", Float},
                                    {"C64", ComplexFloat},
                                    {"F64", Double},
                                    {"I64", Long},
                                    {"U64", UInt64}};

}  // namespace

TEST_CASE("tensors of every type are written as Python writes them, and read as it wrote them") {
  TemporaryFolder const folder;
  StateDict tensors("name");
  for (auto const& [name, type] : every_type) tensors.insert("layer." + name, patterned(type));
  save_tensors(folder / "ours", tensors);
  CHECK(to_hexadecimal(read_text(folder / "ours")) == to_hexadecimal(golden_bytes("safetensors.txt", "types")));

  write_text(folder / "python", golden_bytes("safetensors.txt", "types"));
  auto const read = load_tensors(folder / "python");
  CHECK(read.size() == every_type.size());
  for (auto const& item : tensors) CHECK_MESSAGE(same(read[item.key()], item.value()), item.key());

  write_text(folder / "shapes", golden_bytes("safetensors.txt", "shapes"));
  TensorFile const shapes(folder / "shapes");
  CHECK(shapes.metadata().at("format") == "pt");
  CHECK(shapes.tensor("scalar").dim() == 0);
  CHECK(shapes.tensor("scalar").item<float>() == 2.5f);
  CHECK(shapes.tensor("flat").sizes() == torch::IntArrayRef({2, 0, 3}));
  CHECK(shapes.tensor("deep").sum().item<int>() == 1);
  CHECK(shapes.contains("none"));
  CHECK_FALSE(shapes.contains("nobody"));
}

TEST_CASE("every bit returns: payloads of NaN, signs of zero, denormals") {
  TemporaryFolder const folder;
  std::vector<std::uint32_t> const bits{0x7fc00001, 0xffbfffff, 0x80000000, 0x7f800000, 0xff800000, 1};
  torch::Tensor const floats = torch::empty({6});
  std::memcpy(floats.mutable_data_ptr(), bits.data(), floats.nbytes());
  StateDict tensors("name");
  tensors.insert("bits", floats);
  save_tensors(folder / "a", tensors);
  CHECK(to_hexadecimal(read_text(folder / "a")) == to_hexadecimal(golden_bytes("safetensors.txt", "floats")));
  CHECK(same(TensorFile(folder / "a").tensor("bits"), floats));
}

TEST_CASE("views are written as their values: strides, steps, offsets, layouts and lazy signs") {
  TemporaryFolder const folder;
  auto const base = torch::arange(24, torch::kDouble).reshape({2, 3, 4});
  auto const complex = torch::complex(torch::rand({3}), torch::rand({3}));
  auto const leaf = torch::rand({3}, torch::requires_grad());
  StateDict tensors("name");
  tensors.insert("transposed", base.transpose(0, 2));
  tensors.insert("stepped", base.slice(2, 1, 4, 2));
  tensors.insert("expanded", torch::full({1}, 3.f).expand({4}));
  tensors.insert("shared", base);
  tensors.insert("shared too", base);
  tensors.insert("channels_last", torch::rand({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast));
  tensors.insert("conjugate", complex.conj());
  tensors.insert("negative", torch::imag(complex.conj()));
  tensors.insert("leaf", leaf);
  tensors.insert("result", leaf * 2);
  tensors.insert("scalar", torch::tensor(7, torch::kLong));
  tensors.insert("empty", torch::empty({3, 0}));
  save_tensors(folder / "a", tensors, {{"step", "3"}});
  auto const read = load_tensors(folder / "a");
  CHECK(read.size() == tensors.size());
  for (auto const& item : tensors) {
    auto const expected = item.value().detach().resolve_conj().resolve_neg();
    CHECK_MESSAGE(same(read[item.key()], expected), item.key());
    CHECK_FALSE(read[item.key()].requires_grad());
  }
}

TEST_CASE("a model returns from its file") {
  TemporaryFolder const folder;
  auto const build = [] {
    return torch::nn::Sequential(torch::nn::Linear(3, 4), torch::nn::BatchNorm1d(4), torch::nn::Linear(4, 2));
  };
  auto model = build(), other = build();
  auto const x = torch::rand({5, 3});
  (void)model->forward(x);  // moves the running statistics and their counter
  save_tensors(folder / "model.safetensors", pardl::state_dict(model));
  pardl::load_state_dict(other, load_tensors(folder / "model.safetensors"));
  auto const before = pardl::state_dict(model), after = pardl::state_dict(other);
  for (auto const& item : before) CHECK_MESSAGE(same(after[item.key()], item.value()), item.key());
}

TEST_CASE("what cannot be written is named, and the old file stays") {
  TemporaryFolder const folder;
  auto const path = folder / "a";
  write_text(path, "old");
  auto const said = [&](torch::Tensor const& tensor) {
    StateDict tensors("name");
    tensors.insert("fine", torch::ones({2}));
    tensors.insert("layer.weight", tensor);
    return what_of<CheckpointError>([&] { save_tensors(path, tensors); });
  };
  CHECK(said(torch::Tensor()) ==
        "[train] cannot write " + path.string() + ": tensor 'layer.weight' is undefined; leave it out.");
  CHECK(said(torch::ones({2}, torch::kComplexDouble)).find("type ComplexDouble, which safetensors lacks") !=
        std::string::npos);
  CHECK(said(torch::ones({2}).to_sparse()).find("is not strided") != std::string::npos);
  CHECK(said(torch::ones({2}, torch::kMeta)).find("meta device") != std::string::npos);
  CHECK(read_text(path) == "old");
}

TEST_CASE("what cannot be read is named") {
  TemporaryFolder const folder;
  auto const path = folder / "a";
  StateDict tensors("name");
  tensors.insert("flag", torch::ones({2}, torch::kBool));
  save_tensors(path, tensors);
  CHECK(what_of<CheckpointError>([&] { (void)TensorFile(path).tensor("flags"); }) ==
        "[io] " + path.string() + " has no tensor 'flags'; load a file of the same model.");
  auto text = read_text(path);
  text.back() = '\2';
  write_text(path, text);
  CHECK(what_of<CheckpointError>([&] {
          (void)load_tensors(path);
        }).find("holds a bool that is neither 0 nor 1 in tensor 'flag'") != std::string::npos);
  text.pop_back();
  write_text(path, text);
  CHECK(what_of<CheckpointError>([&] { (void)load_tensors(path); }).find("it ends inside tensor 'flag'") !=
        std::string::npos);
}

TEST_CASE("CUDA tensors are written, and read to where they shall be") {
  if (!torch::cuda::is_available()) {
    MESSAGE("a part is left out: no GPU");
    return;
  }
  TemporaryFolder const folder;
  auto const tensor = torch::rand({3, 4}, torch::kCUDA);
  StateDict tensors("name");
  tensors.insert("w", tensor.t());
  save_tensors(folder / "a", tensors);
  CHECK(same(load_tensors(folder / "a")["w"], tensor.t()));
  auto const back = load_tensors(folder / "a", torch::kCUDA)["w"];
  CHECK(back.is_cuda());
  CHECK(same(back, tensor.t()));
}
