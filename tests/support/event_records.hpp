// SPDX-License-Identifier: MIT
// Reads TensorBoard's event files back, on its own: the checksum bit by bit, the messages field by field.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "support/temporary_folder.hpp"

namespace pardl::testing {

struct ProtoField {
  int number = 0;
  std::uint64_t value = 0;  // of what is no text
  std::string text{};

  [[nodiscard]] double real() const { return std::bit_cast<double>(value); }
  [[nodiscard]] float single() const { return std::bit_cast<float>(static_cast<std::uint32_t>(value)); }
};

inline std::uint64_t little_endian(std::string_view bytes, std::size_t at, std::size_t count) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < count; ++i)
    value |= std::uint64_t{static_cast<unsigned char>(bytes.at(at + i))} << (8 * i);
  return value;
}

inline std::vector<ProtoField> proto_fields(std::string_view bytes) {
  std::size_t at = 0;
  auto const varint = [&] {
    std::uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      auto const byte = static_cast<unsigned char>(bytes.at(at++));
      value |= std::uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
  };
  std::vector<ProtoField> fields;
  while (at < bytes.size()) {
    auto const key = varint();
    ProtoField field{.number = static_cast<int>(key >> 3)};
    if ((key & 7) == 0) {
      field.value = varint();
    } else if ((key & 7) == 1 || (key & 7) == 5) {
      std::size_t const size = (key & 7) == 1 ? 8 : 4;
      field.value = little_endian(bytes, at, size);
      at += size;
    } else {
      auto const size = varint();
      field.text = bytes.substr(at, size);
      if (field.text.size() != size) throw std::runtime_error("a field is cut off");
      at += size;
    }
    fields.push_back(field);
  }
  return fields;
}

/// The text of the field at the end of a path of field numbers.
inline std::string proto_text(std::string_view bytes, std::vector<int> const& path) {
  std::string message(bytes);
  for (int const number : path) {
    std::optional<std::string> inner;
    for (auto const& field : proto_fields(message))
      if (field.number == number) inner = field.text;
    if (!inner) return {};
    message = *inner;
  }
  return message;
}

inline std::uint32_t masked_checksum(std::string_view bytes) {
  std::uint32_t rest = 0xffffffffu;
  for (char const c : bytes) {
    rest ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) rest = rest >> 1 ^ ((rest & 1) != 0 ? 0x82f63b78u : 0u);
  }
  return std::rotr(~rest, 15) + 0xa282ead8u;
}

/// The records of a file, frames and all. \throws std::runtime_error for one that is damaged or cut off.
inline std::vector<std::string> split_records(std::string_view file) {
  std::vector<std::string> records;
  for (std::size_t at = 0; at < file.size();) {
    if (file.size() - at < 16) throw std::runtime_error("a record is cut off");
    auto const length = little_endian(file, at, 8);
    if (length > file.size() - at - 16) throw std::runtime_error("a record is cut off");
    if (little_endian(file, at + 8, 4) != masked_checksum(file.substr(at, 8)) ||
        little_endian(file, at + 12 + length, 4) != masked_checksum(file.substr(at + 12, length)))
      throw std::runtime_error("a checksum is wrong");
    records.emplace_back(file.substr(at, length + 16));
    at += length + 16;
  }
  return records;
}

struct EventValue {
  std::string tag;
  std::optional<float> scalar;
  std::string text;     // of the text plugin
  std::string message;  // the whole value
};
struct EventRecord {
  double seconds = 0;
  std::int64_t step = 0;
  std::string version, session_log;
  std::vector<EventValue> values;
};

inline std::vector<EventRecord> read_events(std::filesystem::path const& path) {
  std::vector<EventRecord> events;
  for (auto const& record : split_records(read_text(path))) {
    EventRecord event;
    for (auto const& field : proto_fields(std::string_view(record).substr(12, record.size() - 16))) {
      if (field.number == 1) event.seconds = field.real();
      if (field.number == 2) event.step = static_cast<std::int64_t>(field.value);
      if (field.number == 3) event.version = field.text;
      if (field.number == 7) event.session_log = field.text;
      if (field.number != 5) continue;
      for (auto const& item : proto_fields(field.text)) {
        EventValue value{.tag = proto_text(item.text, {1}),
                         .scalar = {},
                         .text = proto_text(item.text, {8, 8}),
                         .message = item.text};
        for (auto const& part : proto_fields(item.text))
          if (part.number == 2) value.scalar = part.single();
        event.values.push_back(value);
      }
    }
    events.push_back(event);
  }
  return events;
}

}  // namespace pardl::testing
