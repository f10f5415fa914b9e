// SPDX-License-Identifier: MIT
/// \file   A rank's last words: the file in which torchrun and pardl::launch look for the cause of a failure.
/// \layer  comm (std only).
///
/// The format is torchrun's (torch/distributed/elastic/multiprocessing/errors): one JSON object with a message and the
/// second it was written. Ours adds the nanosecond, so that ranks that fail within one second are told apart, and
/// whether the failure is a symptom, that is, a peer's or a transport's and so most likely the echo of another one.
#pragma once

#include <fcntl.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "pardl/io/posix.hpp"
#include "pardl/policy/whole_number.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::launching {

/// How a rank failed, in words.
struct LastWords {
  std::string message{};     ///< "Type: text", or the sentence of a pardl::Error
  std::int64_t unix_ns = 0;  ///< when
  bool symptom = false;      ///< communication failed: look for another rank's failure first
};

[[nodiscard]] inline std::int64_t unix_now_ns() {
  using std::chrono::duration_cast, std::chrono::nanoseconds, std::chrono::system_clock;
  return duration_cast<nanoseconds>(system_clock::now().time_since_epoch()).count();
}

/// `text` between quotes, with JSON's escapes; bytes that are not UTF-8 would make Python refuse the file and become
/// '?'.
[[nodiscard]] inline std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (std::size_t i = 0; i < text.size();) {
    auto const c = static_cast<unsigned char>(text[i]);
    std::size_t const length = c < 0x80 ? 1 : c >= 0xf0 && c < 0xf5 ? 4 : c >= 0xe0 ? 3 : c >= 0xc2 ? 2 : 0;
    bool whole = length > 0 && c < 0xf5 && i + length <= text.size();
    for (std::size_t k = 1; whole && k < length; ++k) whole = (static_cast<unsigned char>(text[i + k]) & 0xc0) == 0x80;
    if (!whole) {
      out.push_back('?');
      ++i;
      continue;
    }
    if (c == '"' || c == '\\') {
      out.append({'\\', static_cast<char>(c)});
    } else if (c < 0x20 || c == 0x7f) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c));
      out.append(code);
    } else {
      out.append(text.substr(i, length));
    }
    i += length;
  }
  return out.append("\"");
}

/// The text that torchrun reads.
[[nodiscard]] inline std::string error_file_text(LastWords const& words) {
  auto const message = json_string(words.message);  // twice, since the second is what torchrun prints
  // torchrun takes the earliest second for the cause: a symptom must never share one with what it echoes.
  auto const second = words.unix_ns / 1'000'000'000 + (words.symptom ? 1 : 0);
  return "{\"message\":{\"message\":" + message + ",\"extraInfo\":{\"py_callstack\":" + message + ",\"timestamp\":\"" +
         std::to_string(second) + "\",\"timestamp_ns\":\"" + std::to_string(words.unix_ns) + "\",\"symptom\":\"" +
         (words.symptom ? "1" : "0") + "\"}}}";
}

/// The string that follows the last `"key":"` of a JSON text that error_file_text wrote.
[[nodiscard]] inline std::optional<std::string> json_value(std::string_view json, std::string_view key) {
  std::string const mark = "\"" + std::string(key) + "\":\"";
  auto at = json.find(mark);  // a quote inside a value is escaped, so that a mark can only be a key
  if (at == std::string_view::npos) return std::nullopt;
  std::string out;
  for (at += mark.size(); at < json.size() && json[at] != '"'; ++at) {
    if (json[at] != '\\' || at + 1 >= json.size()) {
      out.push_back(json[at]);
    } else if (json[++at] == 'u' && at + 4 < json.size()) {
      out.push_back(static_cast<char>(std::strtol(std::string(json.substr(at + 1, 4)).c_str(), nullptr, 16)));
      at += 4;
    } else {
      out.push_back(json[at]);
    }
  }
  return out;
}

/// Reads what a rank left, or nothing if it left nothing.
[[nodiscard]] inline std::optional<LastWords> parse_error_file(std::string_view json) {
  auto const message = json_value(json, "message");
  auto const time = json_value(json, "timestamp_ns");
  if (!message || !time) return std::nullopt;
  return LastWords{.message = *message,
                   .unix_ns = whole_number<std::int64_t>(*time).value_or(0),
                   .symptom = json_value(json, "symptom") == "1"};
}

/// Writes a rank's last words. False if there is no place for them, or it does not take them.
[[nodiscard]] inline bool write_error_file(std::string const& path, LastWords const& words) {
  if (path.empty()) return false;
  auto const file = io::open_file(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  std::string const text = error_file_text(words);
  return file && io::write_all(file.get(), text.data(), text.size()) == 0;
}

}  // namespace pardl::inline PARDL_ABI::detail::launching
