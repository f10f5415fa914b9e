// SPDX-License-Identifier: MIT
#include "pardl/data/cifar_download.hpp"

#include <doctest/doctest.h>

#if defined(PARDL_WITH_DOWNLOAD) && defined(PARDL_WITH_ZLIB)

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "support/http_server.hpp"
#include "support/tar_archive.hpp"
#include "support/temporary_folder.hpp"

namespace fs = std::filesystem;
using namespace pardl::testing;
using namespace pardl::data;

namespace {

// A set of two small files behind a local server, described as CIFAR is.
struct SmallSet {
  TemporaryFolder source;
  std::string bytes = [this] {
    TarArchive().add("small-set/train.bin", "123456").add("small-set/test.bin", "78").write(source / "set.tar.gz");
    return read_text(source / "set.tar.gz");
  }();
  HttpServer server{[this](HttpAsk const& ask) { return file_answer(ask, bytes); }};
  std::string url = server.url("/pub/small-set.tar.gz");
  std::string md5 = [this] {
    pardl::data::detail::Digests digests(std::vector{pardl::data::detail::ExpectedSum{"MD5", ""}});
    digests.update(bytes.data(), bytes.size());
    std::string const words = digests.mismatch();  // "its MD5 sum is X and should be "
    return words.substr(15, 32);
  }();
  RequiredFile files[2] = {{"train.bin", 6}, {"test.bin", 2}};
  RemoteArchive archive{.url = url, .md5 = md5, .folder = "small-set", .files = files};
};

DownloadOptions const quiet{.progress = false, .retries = 0};

}  // namespace

TEST_CASE("an archive is fetched and unpacked once, and again only what is missing") {
  SmallSet set;
  TemporaryFolder root;
  CHECK_FALSE(is_unpacked(set.archive, root.path()));
  CHECK(download_archive(set.archive, root.path(), quiet) == root / "small-set");
  CHECK(read_text(root / "small-set/train.bin") == "123456");
  CHECK(is_unpacked(set.archive, root.path()));
  download_archive(set.archive, root.path(), quiet);
  CHECK(set.server.asked().size() == 1);
  write_text(root / "small-set/train.bin", "123");  // a damaged file is mended from the archive that is there
  download_archive(set.archive, root.path(), quiet);
  CHECK(read_text(root / "small-set/train.bin") == "123456");
  CHECK(set.server.asked().size() == 1);
}

TEST_CASE("an archive with another sum is never unpacked") {
  SmallSet set;
  TemporaryFolder root;
  RemoteArchive other = set.archive;
  other.md5 = "00000000000000000000000000000000";
  std::string const what = what_of<pardl::DataError>([&] { download_archive(other, root.path(), quiet); });
  CHECK(what.find("its MD5 sum is " + set.md5 + " and should be 00000000") != std::string::npos);
  CHECK(fs::is_empty(root.path()));
}

TEST_CASE("an archive without the files that readers need is an error") {
  SmallSet set;
  TemporaryFolder root;
  set.files[1].name = "validation.bin";
  CHECK(what_of<pardl::DataError>([&] {
          download_archive(set.archive, root.path(), quiet);
        }).find("does not hold the files of small-set") != std::string::npos);
}

TEST_CASE("unpacked CIFAR folders of the published sizes need no network") {
  TemporaryFolder root;
  auto const make = [&](RemoteArchive const& archive) {
    fs::create_directories(root / archive.folder);
    for (RequiredFile const& file : archive.files) {
      write_text(root / archive.folder / file.name, "");
      fs::resize_file(root / archive.folder / file.name, file.size);  // sparse: takes no room
    }
  };
  make(cifar10_archive);
  make(cifar100_archive);
  CHECK(download_cifar10(root.path()) == root / "cifar-10-batches-bin");
  CHECK(download_cifar100(root.path()) == root / "cifar-100-binary");
  CHECK(fs::file_size(root / "cifar-10-batches-bin/data_batch_5.bin") == 30'730'000);
  CHECK(fs::file_size(root / "cifar-100-binary/train.bin") == 153'700'000);
  CHECK(fs::file_size(root / "cifar-100-binary/test.bin") == 30'740'000);
}

#else

TEST_CASE("CIFAR's download is not tested: this build lacks libcurl, OpenSSL or zlib") {
  MESSAGE("skipped: no pardl::download");
}

#endif
