// SPDX-License-Identifier: MIT
/// \file   Tensors by name to and from a safetensors file, bit for bit: the format that Python and C++ both read.
/// \layer  train.
///
///     pardl::save_tensors("model.safetensors", pardl::state_dict(model), {{"epoch", "3"}});
///     pardl::load_state_dict(model, pardl::load_tensors("model.safetensors"));
/// In Python: safetensors.torch.load_file("model.safetensors").
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/ScalarType.h>
#include <torch/ordered_dict.h>

#include <bit>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/io/atomic_file.hpp"
#include "pardl/io/safetensors.hpp"
#include "pardl/io/tensor_info.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

namespace detail {

static_assert(std::endian::native == std::endian::little, "pardl: a safetensors file is little-endian, and so are we.");

/// The format's type for one of LibTorch's; nothing where it has none (quantized, complex128, …).
[[nodiscard]] constexpr std::optional<io::TensorType> tensor_type_of(c10::ScalarType type) {
  switch (type) {
    case c10::ScalarType::Bool:
      return io::TensorType::boolean;
    case c10::ScalarType::Byte:
      return io::TensorType::u8;
    case c10::ScalarType::Char:
      return io::TensorType::i8;
    case c10::ScalarType::Float8_e5m2:
      return io::TensorType::f8_e5m2;
    case c10::ScalarType::Float8_e4m3fn:
      return io::TensorType::f8_e4m3;
    case c10::ScalarType::Float8_e8m0fnu:
      return io::TensorType::f8_e8m0;
    case c10::ScalarType::Short:
      return io::TensorType::i16;
    case c10::ScalarType::UInt16:
      return io::TensorType::u16;
    case c10::ScalarType::Half:
      return io::TensorType::f16;
    case c10::ScalarType::BFloat16:
      return io::TensorType::bf16;
    case c10::ScalarType::Int:
      return io::TensorType::i32;
    case c10::ScalarType::UInt32:
      return io::TensorType::u32;
    case c10::ScalarType::Float:
      return io::TensorType::f32;
    case c10::ScalarType::ComplexFloat:
      return io::TensorType::c64;
    case c10::ScalarType::Double:
      return io::TensorType::f64;
    case c10::ScalarType::Long:
      return io::TensorType::i64;
    case c10::ScalarType::UInt64:
      return io::TensorType::u64;
    default:
      return std::nullopt;
  }
}

[[nodiscard]] constexpr c10::ScalarType scalar_type_of(io::TensorType type) {
  using enum c10::ScalarType;
  constexpr c10::ScalarType types[] = {Bool,  Byte,         Char,   Float8_e5m2, Float8_e4m3fn, Float8_e8m0fnu,
                                       Short, UInt16,       Half,   BFloat16,    Int,           UInt32,
                                       Float, ComplexFloat, Double, Long,        UInt64};
  return types[static_cast<std::size_t>(type)];
}
static_assert([] {  // the table is as long as the list, in its order
  for (int i = 0; i <= static_cast<int>(io::TensorType::u64); ++i)
    if (tensor_type_of(scalar_type_of(static_cast<io::TensorType>(i))) != static_cast<io::TensorType>(i)) return false;
  return true;
}());

}  // namespace detail

/// Writes tensors by name into a file that appears whole or not at all. Strided views, channels_last and CUDA tensors
/// are written as their values, row by row, one copy at a time; tensors that share memory are written each. Empty
/// tensors, and those without dimensions, keep their shapes. Local: let one rank write.
/// \param metadata  texts that go with them.
/// \throws CheckpointError  naming the tensor that is undefined, not strided, or of a type that the format lacks;
///                          Error where the file cannot be written.
/// \cost one pass over the bytes, a copy of one tensor at a time if it is not contiguous or not in memory.
inline void save_tensors(std::filesystem::path const& path, torch::OrderedDict<std::string, at::Tensor> const& tensors,
                         io::Metadata const& metadata = {}, AtomicFileOptions options = {}) {
  std::vector<io::TensorInfo> infos;
  for (auto const& item : tensors) {
    at::Tensor const& tensor = item.value();
    auto const refuse = [&](std::string const& what, std::string const& remedy) {
      throw CheckpointError(
          sentence("train", "cannot write " + path.string() + ": tensor '" + item.key() + "' " + what, remedy));
    };
    if (!tensor.defined()) refuse("is undefined", "leave it out");
    auto const type = detail::tensor_type_of(tensor.scalar_type());
    if (!type)
      refuse("has elements of type " + std::string(c10::toString(tensor.scalar_type())) + ", which safetensors lacks",
             "convert it");
    if (tensor.layout() != at::kStrided || tensor.is_nested()) refuse("is not strided", "make it dense");
    if (tensor.is_meta()) refuse("is on the meta device and has no values", "materialize it");
    infos.push_back({.name = item.key(), .type = *type, .shape = tensor.sizes().vec()});
  }
  io::SafetensorsWriter writer(path, std::move(infos), metadata, options);
  c10::NoGradGuard const no_grad;
  for (auto const& info : writer.tensors()) {
    at::Tensor const values = tensors[info.name].resolve_conj().resolve_neg().to(at::kCPU).contiguous();
    writer.write({static_cast<std::byte const*>(values.const_data_ptr()), values.nbytes()});
  }
  writer.commit();
}

/// A safetensors file, opened and its header checked; its tensors are read when asked for. Local.
class TensorFile {
 public:
  /// \throws CheckpointError with the file, the tensor if it is one's fault, and what is wrong.
  explicit TensorFile(std::filesystem::path const& path) : file_(path) {}

  [[nodiscard]] io::Metadata const& metadata() const noexcept { return file_.metadata(); }
  /// Name, type, shape and size of each, in the order of the file.
  [[nodiscard]] std::span<io::TensorInfo const> infos() const noexcept { return file_.tensors(); }
  [[nodiscard]] bool contains(std::string_view name) const { return file_.find(name) != nullptr; }

  /// One tensor, in memory of its own. \throws CheckpointError where there is none of that name.
  /// \cost one read of its bytes, straight into its memory; a copy more onto another device.
  [[nodiscard]] at::Tensor tensor(std::string_view name, c10::Device device = at::kCPU) const {
    return read(file_.at(name), device);
  }

  /// All of them, in the order of the file.
  [[nodiscard]] torch::OrderedDict<std::string, at::Tensor> tensors(c10::Device device = at::kCPU) const {
    torch::OrderedDict<std::string, at::Tensor> all("name");
    all.reserve(file_.tensors().size());
    for (auto const& info : file_.tensors()) all.insert(info.name, read(info, device));
    return all;
  }

 private:
  [[nodiscard]] at::Tensor read(io::TensorInfo const& info, c10::Device device) const {
    at::Tensor const tensor = at::empty(info.shape, at::TensorOptions(detail::scalar_type_of(info.type)));
    std::span<std::byte> const bytes(static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes());
    file_.read(info, bytes);
    if (info.type == io::TensorType::boolean)  // a bool of another value is no value at all to C++
      for (std::byte const byte : bytes)
        if (byte > std::byte{1})
          throw CheckpointError(sentence(
              "train", file_.path().string() + " holds a bool that is neither 0 nor 1 in tensor '" + info.name + "'",
              "copy or write it anew"));
    return device.is_cpu() ? tensor : tensor.to(device);
  }

  io::SafetensorsReader file_;
};

/// All tensors of a file, e.g. for load_state_dict(). Local: every rank reads, or one reads and broadcasts.
/// \throws CheckpointError as TensorFile does.
[[nodiscard]] inline torch::OrderedDict<std::string, at::Tensor> load_tensors(std::filesystem::path const& path,
                                                                              c10::Device device = at::kCPU) {
  return TensorFile(path).tensors(device);
}

}  // namespace pardl::inline PARDL_ABI
