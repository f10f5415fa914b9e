// SPDX-License-Identifier: MIT
/// \file   Fetches CIFAR-10 and CIFAR-100 in their binary form, checks them and unpacks them where the readers look.
/// \layer  data (policy, io). Needs the CMake target pardl::download (libcurl, OpenSSL, zlib); no LibTorch.
///
/// The data sets: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; addresses and sums as
/// published at https://www.cs.toronto.edu/~kriz/cifar.html. Their publisher gives MD5 only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

#include "pardl/data/archive.hpp"
#include "pardl/data/download.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data {

/// A file that an unpacked archive must hold, and its size in bytes.
struct RequiredFile {
  std::string_view name;  ///< relative to the folder of the archive
  std::uint64_t size;
};

/// A .tar.gz on the net that unpacks to one folder.
struct RemoteArchive {
  std::string_view url;
  std::string_view md5;
  std::string_view folder;              ///< that it unpacks to
  std::span<RequiredFile const> files;  ///< by which an unpacked one is recognised; views, not owned
};

namespace detail {

inline constexpr std::uint64_t cifar10_batch = 10'000 * (1 + 3 * 32 * 32);  // one label and three planes each
inline constexpr std::uint64_t cifar100_image = 2 + 3 * 32 * 32;            // coarse and fine label, three planes
inline constexpr RequiredFile cifar10_files[] = {
    {"data_batch_1.bin", cifar10_batch}, {"data_batch_2.bin", cifar10_batch}, {"data_batch_3.bin", cifar10_batch},
    {"data_batch_4.bin", cifar10_batch}, {"data_batch_5.bin", cifar10_batch}, {"test_batch.bin", cifar10_batch}};
inline constexpr RequiredFile cifar100_files[] = {{"train.bin", 50'000 * cifar100_image},
                                                  {"test.bin", 10'000 * cifar100_image}};

}  // namespace detail

/// 162 MiB, 176 MiB unpacked.
inline constexpr RemoteArchive cifar10_archive{.url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                                               .md5 = "c32a1d4ab5d03f1284b67883e8d87530",
                                               .folder = "cifar-10-batches-bin",
                                               .files = detail::cifar10_files};
/// 161 MiB, 176 MiB unpacked.
inline constexpr RemoteArchive cifar100_archive{.url = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                                                .md5 = "03b5dce01913d631647c71ecec9e9cb8",
                                                .folder = "cifar-100-binary",
                                                .files = detail::cifar100_files};

/// True if `root / archive.folder` holds every required file in its full size.
[[nodiscard]] inline bool is_unpacked(RemoteArchive const& archive, std::filesystem::path const& root) {
  for (RequiredFile const& file : archive.files) {
    std::error_code error;
    std::uintmax_t const size = std::filesystem::file_size(root / archive.folder / file.name, error);
    if (error || size != file.size) return false;
  }
  return true;
}

#if defined(PARDL_WITH_DOWNLOAD) && defined(PARDL_WITH_ZLIB)

/// Fetches and unpacks an archive into `root` unless it is there already, and returns `root / archive.folder`. The
/// archive itself stays in `root`, so that mending a damaged folder needs no network. Blocks; not collective: let one
/// rank per file system call it and the others wait in a barrier.
/// \param options  as download()'s; md5 is set from `archive`.
/// \throws DataError   as download() and extract_tar_gz() do, and if the archive lacks a required file.
inline std::filesystem::path download_archive(RemoteArchive const& archive, std::filesystem::path const& root,
                                              DownloadOptions options = {}) {
  std::filesystem::path const folder = root / archive.folder;
  if (is_unpacked(archive, root)) return folder;
  std::string const url(archive.url);
  options.md5 = archive.md5;
  std::filesystem::path const file = download(url, root / url.substr(url.rfind('/') + 1), options);
  extract_tar_gz(file, root);
  if (!is_unpacked(archive, root))
    throw DataError(sentence("data", file.string() + " does not hold the files of " + std::string(archive.folder),
                             "check the address and the sum"));
  return folder;
}

/// CIFAR-10 into `root`/cifar-10-batches-bin; see download_archive().
inline std::filesystem::path download_cifar10(std::filesystem::path const& root, DownloadOptions options = {}) {
  return download_archive(cifar10_archive, root, std::move(options));
}

/// CIFAR-100 into `root`/cifar-100-binary; see download_archive().
inline std::filesystem::path download_cifar100(std::filesystem::path const& root, DownloadOptions options = {}) {
  return download_archive(cifar100_archive, root, std::move(options));
}

#else

namespace detail {
template <class Never>
std::filesystem::path no_download_target() {
  static_assert(!std::is_void_v<Never>,
                "pardl::data::download_archive, download_cifar10 and download_cifar100 need libcurl, OpenSSL and zlib: "
                "link the CMake target pardl::download (target_link_libraries(app pardl::download)).");
  return {};
}
}  // namespace detail

/// Without the CMake target pardl::download every call is a compile error that says so.
template <class Never = void>
std::filesystem::path download_archive(RemoteArchive const&, std::filesystem::path const&, DownloadOptions = {}) {
  return detail::no_download_target<Never>();
}
template <class Never = void>
std::filesystem::path download_cifar10(std::filesystem::path const&, DownloadOptions = {}) {
  return detail::no_download_target<Never>();
}
template <class Never = void>
std::filesystem::path download_cifar100(std::filesystem::path const&, DownloadOptions = {}) {
  return detail::no_download_target<Never>();
}

#endif

}  // namespace pardl::inline PARDL_ABI::data
