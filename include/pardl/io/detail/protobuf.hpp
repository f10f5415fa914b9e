// SPDX-License-Identifier: MIT
/// \file   Protocol buffers, written by hand: the wire format of the few messages that are needed, without a compiler.
/// \layer  io, private (std only).  \source Protocol Buffers, "Encoding".
///
/// Bytes are those of Google's own library if fields are put in the order of their numbers: as there, a field that
/// holds its type's zero is left out, unless it is one of a `oneof`.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::io::detail {

/// The bytes of an unsigned number, the lowest first.
template <class Number>
void append_little_endian(std::string& out, Number value) {
  for (std::size_t byte = 0; byte < sizeof value; ++byte)
    out.push_back(static_cast<char>(static_cast<unsigned char>(value >> (8 * byte))));
}

class ProtoMessage {
 public:
  [[nodiscard]] std::string const& bytes() const noexcept { return bytes_; }

  /// int32, int64, enum.
  ProtoMessage& integer(int field, std::int64_t value) {
    if (value == 0) return *this;
    key(field, 0);
    varint(static_cast<std::uint64_t>(value));
    return *this;
  }
  ProtoMessage& real(int field, double value) {
    if (auto const bits = std::bit_cast<std::uint64_t>(value); bits != 0) {  // -0.0 is written
      key(field, 1);
      append_little_endian(bytes_, bits);
    }
    return *this;
  }
  /// Of a oneof: zero is written too.
  ProtoMessage& chosen_float(int field, float value) {
    key(field, 5);
    append_little_endian(bytes_, std::bit_cast<std::uint32_t>(value));
    return *this;
  }
  /// string, bytes.
  ProtoMessage& text(int field, std::string_view value) { return value.empty() ? *this : chosen_text(field, value); }
  /// Of a oneof, or one of several: the empty text is written too.
  ProtoMessage& chosen_text(int field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  ProtoMessage& message(int field, ProtoMessage const& value) { return chosen_text(field, value.bytes_); }
  /// Repeated doubles, packed.
  ProtoMessage& reals(int field, std::span<double const> values) {
    if (values.empty()) return *this;
    key(field, 2);
    varint(values.size() * 8);
    for (double const value : values) append_little_endian(bytes_, std::bit_cast<std::uint64_t>(value));
    return *this;
  }

 private:
  void key(int field, unsigned wire) { varint(static_cast<std::uint64_t>(field) << 3 | wire); }
  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<char>(static_cast<unsigned char>(value | 0x80)));
    bytes_.push_back(static_cast<char>(value));
  }

  std::string bytes_;
};

}  // namespace pardl::inline PARDL_ABI::io::detail
