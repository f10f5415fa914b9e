// SPDX-License-Identifier: MIT
/// \file   SHA-256 and MD5 of bytes as they pass, by OpenSSL: it is there with libcurl, knows MD5, and is ten times as
///         fast as io/sha256.hpp, which serves readers that have no such library.
/// \layer  data, private (policy, io). Empty without the CMake target pardl::download.
#pragma once

#include "pardl/version.hpp"

#ifdef PARDL_WITH_DOWNLOAD

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/data/detail/expected_sum.hpp"
#include "pardl/io/posix.hpp"
#include "pardl/policy/error.hpp"

namespace pardl::inline PARDL_ABI::data::detail {

/// Running digests for the sums that were asked for: one pass over the bytes, however many.
class Digests {
 public:
  explicit Digests(std::vector<ExpectedSum> expected) : expected_(std::move(expected)) { reset(); }

  void reset() {
    contexts_.clear();
    for (ExpectedSum const& sum : expected_) {
      contexts_.emplace_back(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
      EVP_MD const* const kind = sum.algorithm == "MD5" ? EVP_md5() : EVP_sha256();
      if (!contexts_.back() || EVP_DigestInit_ex(contexts_.back().get(), kind, nullptr) != 1)
        throw DataError(sentence("data", "this machine's OpenSSL offers no " + sum.algorithm,
                                 "give the SHA-256 sum instead, or leave FIPS mode"));
    }
  }

  void update(void const* bytes, std::size_t size) {
    for (auto& context : contexts_) EVP_DigestUpdate(context.get(), bytes, size);
  }

  /// Adds a file's contents. \throws DataError if it cannot be read.
  void update_from(std::filesystem::path const& path) {
    io::FileDescriptor const file = io::open_file(path, O_RDONLY);
    if (!file) io::throw_errno<DataError>("data", "read", path, errno);
    std::vector<std::byte> block(1 << 18);
    for (;;) {
      ssize_t const got = ::read(file.get(), block.data(), block.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) io::throw_errno<DataError>("data", "read", path, errno);
      if (got == 0) return;
      update(block.data(), static_cast<std::size_t>(got));
    }
  }

  /// Ends the digests. Empty if all are as expected, else "its MD5 sum is X and should be Y".
  [[nodiscard]] std::string mismatch() {
    for (std::size_t i = 0; i < expected_.size(); ++i) {
      std::array<unsigned char, EVP_MAX_MD_SIZE> raw{};
      unsigned size = 0;
      EVP_DigestFinal_ex(contexts_[i].get(), raw.data(), &size);
      std::string hex;
      for (unsigned at = 0; at < size; ++at) {
        hex += "0123456789abcdef"[raw[at] >> 4];
        hex += "0123456789abcdef"[raw[at] & 15];
      }
      if (hex != expected_[i].hex)
        return "its " + expected_[i].algorithm + " sum is " + hex + " and should be " + expected_[i].hex;
    }
    return {};
  }

  [[nodiscard]] bool any() const noexcept { return !expected_.empty(); }

 private:
  std::vector<ExpectedSum> expected_;
  std::vector<std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)>> contexts_;
};

}  // namespace pardl::inline PARDL_ABI::data::detail

#endif  // PARDL_WITH_DOWNLOAD
