// SPDX-License-Identifier: MIT
/// \file   What a tensor on disk is, before anybody knows of LibTorch: a name, a type of element, a shape, and bytes.
/// \layer  io (std only).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::io {

/// The types of element that safetensors knows and that fill whole bytes, by rising alignment. The order is that of
/// the format's own library, which lays tensors out by it: files of the two are equal byte for byte.
enum class TensorType : std::uint8_t {
  boolean,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,  ///< two f32: real, imaginary
  f64,
  i64,
  u64,
};

namespace detail {

struct TensorTypeRow {
  std::string_view name;
  std::size_t size;
};
inline constexpr std::array<TensorTypeRow, 17> tensor_types{{{"BOOL", 1},
                                                             {"U8", 1},
                                                             {"I8", 1},
                                                             {"F8_E5M2", 1},
                                                             {"F8_E4M3", 1},
                                                             {"F8_E8M0", 1},
                                                             {"I16", 2},
                                                             {"U16", 2},
                                                             {"F16", 2},
                                                             {"BF16", 2},
                                                             {"I32", 4},
                                                             {"U32", 4},
                                                             {"F32", 4},
                                                             {"C64", 8},
                                                             {"F64", 8},
                                                             {"I64", 8},
                                                             {"U64", 8}}};
static_assert(tensor_types[static_cast<std::size_t>(TensorType::u64)].name == "U64");

}  // namespace detail

/// As it stands in the file, e.g. "F32".
[[nodiscard]] constexpr std::string_view name_of(TensorType type) {
  return detail::tensor_types[static_cast<std::size_t>(type)].name;
}

/// Bytes of one element.
[[nodiscard]] constexpr std::size_t size_of(TensorType type) {
  return detail::tensor_types[static_cast<std::size_t>(type)].size;
}

/// The type of that name, if there is one.
[[nodiscard]] constexpr std::optional<TensorType> tensor_type(std::string_view name) {
  for (std::size_t i = 0; i < detail::tensor_types.size(); ++i)
    if (detail::tensor_types[i].name == name) return static_cast<TensorType>(i);
  return std::nullopt;
}

/// Bytes of a tensor; nothing for a negative extent, or where the extents other than 0 multiply to more than 2^63 - 1
/// bytes: then strides overflow, even if another extent is 0.
[[nodiscard]] constexpr std::optional<std::uint64_t> byte_count(TensorType type, std::span<std::int64_t const> shape) {
  constexpr std::uint64_t most = std::numeric_limits<std::int64_t>::max();
  std::uint64_t bytes = size_of(type);
  bool empty = false;
  for (std::int64_t const extent : shape) {
    if (extent < 0) return std::nullopt;
    if (extent == 0) {
      empty = true;
      continue;
    }
    if (bytes > most / static_cast<std::uint64_t>(extent)) return std::nullopt;
    bytes *= static_cast<std::uint64_t>(extent);
  }
  return empty ? 0 : bytes;
}

/// A tensor in a file.
struct TensorInfo {
  std::string name{};
  TensorType type = TensorType::f32;
  std::vector<std::int64_t> shape{};  ///< empty: one element without dimensions
  std::uint64_t offset = 0;           ///< of its first byte, from where the data begin; the file says it
  std::uint64_t bytes = 0;            ///< in all; the file says it
};

/// Texts that go with the tensors; sorted, so that equal contents make equal files.
using Metadata = std::map<std::string, std::string>;

}  // namespace pardl::inline PARDL_ABI::io
