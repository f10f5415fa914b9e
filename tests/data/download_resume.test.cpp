// SPDX-License-Identifier: MIT
// What an interrupted download leaves, and how the next one goes on from there.
#include <doctest/doctest.h>

#include "pardl/data/download.hpp"

#ifdef PARDL_WITH_DOWNLOAD

#include <atomic>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "support/fetching.hpp"
#include "support/http_server.hpp"
#include "support/temporary_folder.hpp"

namespace fs = std::filesystem;
using namespace pardl::testing;
using pardl::DataError;
using pardl::data::download;
using pardl::data::DownloadOptions;

TEST_CASE("a transfer that is cut short says so, keeps its bytes, and the next run goes on from there") {
  TemporaryFolder folder;
  std::atomic<bool> cutting = true;
  HttpServer server(
      [&](HttpAsk const& ask) { return cut(file_answer(ask, payload, "\"v1\""), cutting ? 100'000 : 0); });
  SUBCASE("by the server's validator") {
    std::string const what = what_of<DataError>([&] { download(server.url(), folder / "file.bin", quiet()); });
    has(what, "[data] " + server.url() + ": the transfer was cut short after 200000 bytes");
    has(what, "200000 bytes are kept in " + (folder / "file.bin.part").string());
    CHECK_FALSE(fs::exists(folder / "file.bin"));
    cutting = false;
    download(server.url(), folder / "file.bin", quiet());
    CHECK(server.asked().back().header("if-range") == "\"v1\"");
  }
  SUBCASE("by the sum, from another address of the same file") {
    CHECK_THROWS_AS(download(server.url("/a"), folder / "file.bin", quiet(sha256(payload))), DataError);
    cutting = false;
    download(server.url("/b"), folder / "file.bin", quiet(sha256(payload)));
    CHECK(server.asked().back().header("if-range").empty());
  }
  CHECK(server.asked().back().header("range") == "bytes=200000-");
  CHECK(read_text(folder / "file.bin") == payload);
  CHECK(files_in(folder) == std::vector<std::string>{"file.bin"});
}

TEST_CASE("a retry goes on where the transfer broke, and shows it") {
  TemporaryFolder folder;
  std::atomic<int> count = 0;
  HttpServer server([&](HttpAsk const& ask) { return cut(file_answer(ask, payload), count++ < 2 ? 50'000 : 0); });
  std::string shown;
  DownloadOptions options = quiet(sha256(payload));
  options.retries = 2;
  options.progress = true;
  options.bar = {.terminal = pardl::Terminal{}, .write = [&](std::string_view text) { shown += text; }};
  download(server.url(), folder / "file.bin", options);
  CHECK(read_text(folder / "file.bin") == payload);
  auto const asked = server.asked();
  REQUIRE(asked.size() == 3);
  CHECK(asked[1].header("range") == "bytes=250000-");
  has(shown, "cut short after 250000 bytes");
  has(shown, "trying again");
}

TEST_CASE("a server that ignores the range sends all of it, and all of it is taken") {
  TemporaryFolder folder;
  write_text(folder / "file.bin.part", payload.substr(0, 1000));
  HttpServer server([](HttpAsk const&) { return answer("200 OK", payload); });
  download(server.url(), folder / "file.bin", quiet(sha256(payload)));
  CHECK(server.asked().front().header("range") == "bytes=1000-");
  CHECK(read_text(folder / "file.bin") == payload);
}

TEST_CASE("bytes of an older version of the file are not glued to a newer one") {
  TemporaryFolder folder;
  std::string const newer = random_bytes(300'000, 2);
  std::atomic<bool> renewed = false;
  HttpServer server([&](HttpAsk const& ask) {
    return renewed ? file_answer(ask, newer, "\"v2\"") : cut(file_answer(ask, payload, "\"v1\""), 1000);
  });
  CHECK_THROWS_AS(download(server.url(), folder / "file.bin", quiet()), DataError);
  renewed = true;
  download(server.url(), folder / "file.bin", quiet());
  CHECK(read_text(folder / "file.bin") == newer);
}

TEST_CASE("without a sum or a validator a partial file is not trusted") {
  TemporaryFolder folder;
  write_text(folder / "file.bin.part", std::string(1000, 'x'));
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, payload); });
  download(server.url(), folder / "file.bin", quiet());
  CHECK(server.asked().front().header("range").empty());
  CHECK(read_text(folder / "file.bin") == payload);
}

TEST_CASE("a partial file that turns out wrong is fetched again from the start, once") {
  TemporaryFolder folder;
  write_text(folder / "file.bin.part", std::string(1000, 'x'));
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, payload); });
  download(server.url(), folder / "file.bin", quiet(sha256(payload)));
  CHECK(read_text(folder / "file.bin") == payload);
  CHECK(server.asked().size() == 2);
}

TEST_CASE("an earlier run that died before the rename costs no second transfer; a longer partial file does") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, payload); });
  write_text(folder / "file.bin.part", payload);
  download(server.url(), folder / "file.bin", quiet(sha256(payload)));
  CHECK(server.asked().size() == 1);
  write_text(folder / "longer.bin.part", payload + "x");
  DownloadOptions options = quiet(sha256(payload));
  options.retries = 1;
  download(server.url(), folder / "longer.bin", options);
  CHECK(read_text(folder / "longer.bin") == payload);
}

TEST_CASE("a server that continues at the wrong place is not believed, with a sum or without one") {
  TemporaryFolder folder;
  std::atomic<bool> lying = false;
  HttpServer server([&](HttpAsk const& ask) {
    if (lying && ask.offset() > 0)
      return answer("206 Partial Content", payload.substr(500), "Content-Range: bytes 500-299999/300000\r\n");
    return cut(file_answer(ask, payload, "\"v1\""), lying ? 0 : 1000);
  });
  for (std::string const& sum : {sha256(payload), std::string()}) {
    lying = false;
    CHECK_THROWS_AS(download(server.url(), folder / "file.bin", quiet(sum)), DataError);
    lying = true;
    DownloadOptions options = quiet(sum);
    options.retries = 1;
    download(server.url(), folder / "file.bin", options);
    CHECK(read_text(folder / "file.bin") == payload);
    fs::remove(folder / "file.bin");
  }
}

#else

TEST_CASE("resuming is not tested: this build has no libcurl or no OpenSSL") { MESSAGE("skipped: no pardl::download"); }

#endif  // PARDL_WITH_DOWNLOAD
