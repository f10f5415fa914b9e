// SPDX-License-Identifier: MIT
/// \file   The header of a safetensors file: the little JSON that it is made of, written, and read with suspicion.
/// \layer  io, private (std only).
/// \source The format's description in its README, and RFC 8259 for strings.
///
/// Its grammar is so small (an object of names; each with a dtype, a shape and two offsets; and texts) that a reader of
/// exactly that needs no recursion and no tree, and everything else in the file is an error by itself.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/io/detail/utf8.hpp"
#include "pardl/io/tensor_info.hpp"
#include "pardl/io/text.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::io::detail {

inline constexpr std::string_view metadata_key = "__metadata__";

/// A name out of a file, for a message: one line, not too long.
[[nodiscard]] inline std::string in_quotes(std::string_view name) {
  std::string const shown = printable(name, true);
  std::string const cut = clip(shown, 80);
  return "'" + cut + (cut.size() < shown.size() ? "…'" : "'");
}

[[noreturn]] inline void damaged(std::string_view file, std::string_view what) {
  throw CheckpointError(sentence("io", std::string(file) + " is no sound safetensors file: " + std::string(what),
                                 "copy or write it anew"));
}

/// Reads JSON's objects, arrays, strings and whole numbers, one after another. Never leaves `text`.
class HeaderReader {
 public:
  /// \param text  well-formed UTF-8.  \param file  its name, for messages.
  HeaderReader(std::string_view text, std::string_view file) : text_(text), file_(file) {}

  [[noreturn]] void fail(std::string_view what) const {
    damaged(file_, "byte " + std::to_string(at_) + " of its header: " + std::string(what));
  }

  /// Passes over blanks and, if it comes next, over `c`.
  [[nodiscard]] bool take(char c) {
    skip_blanks();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(std::string("expected ") + c);
  }
  void expect_end() {
    skip_blanks();
    if (at_ != text_.size()) fail("something follows the end");
  }

  /// {"key": …, …}; `member(key)` reads each value.
  template <class F>
  void object(F member) {
    expect('{');
    if (take('}')) return;
    do {
      std::string key = string();
      expect(':');
      member(std::move(key));
    } while (take(','));
    expect('}');
  }

  /// [number, …]
  template <class F>
  void numbers(F each) {
    expect('[');
    if (take(']')) return;
    do each(number());
    while (take(','));
    expect(']');
  }

  [[nodiscard]] std::string string() {
    expect('"');
    std::string out;
    for (;;) {
      char const c = next();
      if (c == '"') return out;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character inside a string");
      if (c == '\\')
        escape(out);
      else
        out.push_back(c);
    }
  }

  /// A whole number from 0 to 2^63 - 1.
  [[nodiscard]] std::int64_t number() {
    skip_blanks();
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    std::size_t const from = at_;
    std::int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      int const digit = text_[at_] - '0';
      if (value > (most - digit) / 10) fail("a number beyond 64 bits");
      value = value * 10 + digit;
    }
    if (at_ == from) fail("expected a whole number that is not negative");
    if (text_[from] == '0' && at_ - from > 1) fail("a number with a leading zero");
    return value;
  }

 private:
  void skip_blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
      ++at_;
  }

  [[nodiscard]] char next() {
    if (at_ == text_.size()) fail("it ends inside a string");
    return text_[at_++];
  }

  [[nodiscard]] char32_t four_digits() {
    char32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      char const c = next();
      int const digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("\\u without four hexadecimal digits");
      value = value << 4 | static_cast<char32_t>(digit);
    }
    return value;
  }

  void escape(std::string& out) {
    switch (char const c = next()) {
      case '"':
      case '\\':
      case '/':
        out.push_back(c);
        return;
      case 'b':
        out.push_back('\b');
        return;
      case 'f':
        out.push_back('\f');
        return;
      case 'n':
        out.push_back('\n');
        return;
      case 'r':
        out.push_back('\r');
        return;
      case 't':
        out.push_back('\t');
        return;
      case 'u': {
        char32_t point = four_digits();
        if (point >= 0xdc00 && point < 0xe000) fail("the second half of a surrogate pair without the first");
        if (point >= 0xd800 && point < 0xdc00) {
          if (next() != '\\' || next() != 'u') fail("the first half of a surrogate pair without the second");
          char32_t const low = four_digits();
          if (low < 0xdc00 || low >= 0xe000) fail("the first half of a surrogate pair without the second");
          point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
        }
        append_utf8(out, point);
        return;
      }
      default:
        fail("an escape that JSON does not have");
    }
  }

  std::string_view text_;
  std::string_view file_;
  std::size_t at_ = 0;
};

struct SafetensorsHeader {
  Metadata metadata{};
  std::vector<TensorInfo> tensors{};  ///< in the order of their bytes
};

/// What follows a tensor's name.
[[nodiscard]] inline TensorInfo read_tensor_info(HeaderReader& in, std::string name, std::string_view file) {
  auto const refuse = [&](std::string const& what) { damaged(file, "tensor " + in_quotes(name) + what); };
  TensorInfo tensor;
  std::vector<std::int64_t> ends;
  bool has_type = false, has_shape = false, has_ends = false;
  auto const once = [&](bool& has, std::string const& key) {
    if (std::exchange(has, true)) refuse(" has two of " + key);
  };
  in.object([&](std::string const& key) {
    if (key == "dtype") {
      once(has_type, key);
      std::string const type = in.string();
      auto const known = tensor_type(type);
      if (!known) refuse(" has elements of type " + in_quotes(type) + ", which is not known");
      tensor.type = *known;
    } else if (key == "shape") {
      once(has_shape, key);
      in.numbers([&](std::int64_t extent) { tensor.shape.push_back(extent); });
    } else if (key == "data_offsets") {
      once(has_ends, key);
      in.numbers([&](std::int64_t end) { ends.push_back(end); });
    } else {
      refuse(" has " + in_quotes(key) + ", which the format does not");
    }
  });
  if (!has_type || !has_shape || !has_ends) refuse(" lacks its dtype, shape or data_offsets");
  if (ends.size() != 2 || ends[0] > ends[1]) refuse(" has data_offsets that are not a beginning and an end");
  tensor.offset = static_cast<std::uint64_t>(ends[0]);
  tensor.bytes = static_cast<std::uint64_t>(ends[1] - ends[0]);
  auto const due = byte_count(tensor.type, tensor.shape);
  if (!due) refuse(" has a shape of more than 2^63 bytes");
  if (*due != tensor.bytes)
    refuse(" takes " + std::to_string(*due) + " bytes by its shape, and " + std::to_string(tensor.bytes) +
           " by its data_offsets");
  tensor.name = std::move(name);
  return tensor;
}

/// The header, once all of it holds: names that differ, and tensors whose bytes fill the data without hole or overlap.
/// \param data_bytes  what the file has behind its header.  \throws CheckpointError otherwise.
[[nodiscard]] inline SafetensorsHeader parse_safetensors_header(std::string_view text, std::uint64_t data_bytes,
                                                                std::string_view file) {
  if (!is_utf8(text)) damaged(file, "its header is not UTF-8");
  if (!text.starts_with('{')) damaged(file, "its header does not begin with {");
  SafetensorsHeader header;
  std::set<std::string> names;
  HeaderReader in(text, file);
  in.object([&](std::string name) {
    if (!names.insert(name).second) damaged(file, "it has two of " + in_quotes(name));
    if (name != metadata_key) {
      header.tensors.push_back(read_tensor_info(in, std::move(name), file));
      return;
    }
    in.object([&](std::string key) {
      if (auto const [at, fresh] = header.metadata.try_emplace(std::move(key)); fresh)
        at->second = in.string();
      else
        damaged(file, "its metadata have two of " + in_quotes(at->first));
    });
  });
  in.expect_end();

  std::ranges::stable_sort(header.tensors, {}, [](TensorInfo const& t) { return std::pair(t.offset, t.bytes); });
  std::uint64_t end = 0;
  for (auto const& tensor : header.tensors) {
    if (tensor.offset != end)
      damaged(file, "the bytes of tensor " + in_quotes(tensor.name) + " begin at " + std::to_string(tensor.offset) +
                        ", and those before it end at " + std::to_string(end));
    end += tensor.bytes;  // both are below 2^63
    if (end > data_bytes)
      damaged(file, "it ends inside tensor " + in_quotes(tensor.name) + ", which needs " + std::to_string(end) +
                        " bytes of data where there are " + std::to_string(data_bytes));
  }
  if (end != data_bytes) damaged(file, std::to_string(data_bytes - end) + " bytes follow the last tensor");
  return header;
}

/// A JSON string with no more escapes than it must have.
[[nodiscard]] inline std::string json_string(std::string_view text) {
  static constexpr std::string_view digits = "0123456789abcdef";
  std::string out = "\"";
  for (char const c : text) {
    auto const code = static_cast<unsigned char>(c);
    static constexpr std::string_view plain = "\"\\\b\f\n\r\t", letter = "\"\\bfnrt";
    if (auto const at = plain.find(c); at != std::string_view::npos)
      (out += '\\') += letter[at];
    else if (code < 0x20)
      ((out += "\\u00") += digits[code >> 4]) += digits[code & 15];
    else
      out += c;
  }
  return out += '"';
}

/// The header with its length before it and the spaces behind it that bring the data to a multiple of 8.
[[nodiscard]] inline std::string format_safetensors_header(Metadata const& metadata,
                                                           std::span<TensorInfo const> tensors) {
  std::string text = "{";
  auto comma = [&, first = true]() mutable {
    if (!std::exchange(first, false)) text += ',';
  };
  if (!metadata.empty()) {
    comma();
    text += json_string(metadata_key) + ":{";
    bool first = true;
    for (auto const& [key, value] : metadata) {
      if (!std::exchange(first, false)) text += ',';
      text += json_string(key) + ":" + json_string(value);
    }
    text += '}';
  }
  for (auto const& tensor : tensors) {
    comma();
    text += json_string(tensor.name) + ":{\"dtype\":\"" + std::string(name_of(tensor.type)) + "\",\"shape\":[";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) text += (i == 0 ? "" : ",") + std::to_string(tensor.shape[i]);
    text += "],\"data_offsets\":[" + std::to_string(tensor.offset) + "," +
            std::to_string(tensor.offset + tensor.bytes) + "]}";
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string length;
  for (int byte = 0; byte < 8; ++byte)
    length.push_back(static_cast<char>(static_cast<unsigned char>(text.size() >> (8 * byte))));
  return length + text;
}

}  // namespace pardl::inline PARDL_ABI::io::detail
