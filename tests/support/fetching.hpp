// SPDX-License-Identifier: MIT
// What the tests of downloads share: random contents, their sums, patient and impatient settings.
#pragma once

#ifdef PARDL_WITH_DOWNLOAD

#include <doctest/doctest.h>
#include <openssl/evp.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "pardl/data/download.hpp"
#include "support/temporary_folder.hpp"

namespace pardl::testing {

inline std::string random_bytes(std::size_t size, unsigned seed) {
  std::mt19937 engine(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(engine() & 0xff);
  return bytes;
}

// By OpenSSL's one-call interface, not by the code under test.
inline std::string sum(std::string const& bytes, EVP_MD const* kind) {
  unsigned char raw[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  EVP_Digest(bytes.data(), bytes.size(), raw, &size, kind, nullptr);
  std::string hex;
  for (unsigned i = 0; i < size; ++i) {
    hex += "0123456789abcdef"[raw[i] >> 4];
    hex += "0123456789abcdef"[raw[i] & 15];
  }
  return hex;
}
inline std::string sha256(std::string const& bytes) { return sum(bytes, EVP_sha256()); }

inline data::DownloadOptions quiet(std::string sha256 = {}) {
  return {.sha256 = std::move(sha256),
          .progress = false,
          .timeout = std::chrono::seconds(1),
          .retries = 0,
          .retry_delay = std::chrono::milliseconds(0)};
}

inline std::vector<std::string> files_in(TemporaryFolder const& folder) {
  std::vector<std::string> found;
  for (auto const& entry : std::filesystem::directory_iterator(folder.path())) found.push_back(entry.path().filename());
  std::ranges::sort(found);
  return found;
}

inline bool has(std::string const& text, std::string const& part) {
  INFO(text);
  bool const found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

inline std::string const payload = random_bytes(300'000, 1);

}  // namespace pardl::testing

#endif  // PARDL_WITH_DOWNLOAD
