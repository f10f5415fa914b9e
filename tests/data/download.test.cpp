// SPDX-License-Identifier: MIT
#include "pardl/data/download.hpp"

#include <doctest/doctest.h>

#ifdef PARDL_WITH_DOWNLOAD

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cctype>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "support/fetching.hpp"
#include "support/http_server.hpp"
#include "support/temporary_folder.hpp"

namespace fs = std::filesystem;
using namespace pardl::testing;
using pardl::ConfigError;
using pardl::DataError;
using pardl::data::download;
using pardl::data::DownloadOptions;
using namespace std::chrono_literals;

TEST_CASE("a file with the right sums arrives whole, in a new folder, and leaves nothing beside it") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, payload, "\"v1\""); });
  DownloadOptions options = quiet(sha256(payload));
  options.md5 = sum(payload, EVP_md5());
  std::ranges::transform(options.md5, options.md5.begin(),
                         [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  CHECK(download(server.url(), folder / "new/set/file.bin", options) == folder / "new/set/file.bin");
  CHECK(read_text(folder / "new/set/file.bin") == payload);
  CHECK(std::distance(fs::directory_iterator(folder / "new/set"), {}) == 1);
}

TEST_CASE("the known digests of OpenSSL's manuals come out") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, "abc"); });
  DownloadOptions options = quiet("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  options.md5 = "900150983cd24fb0d6963f7d28e17f72";
  CHECK_NOTHROW(download(server.url(), folder / "abc", options));
}

TEST_CASE("an empty file is a file") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, ""); });
  download(server.url(), folder / "empty", quiet(sha256("")));
  CHECK(files_in(folder) == std::vector<std::string>{"empty"});
}

TEST_CASE("progress is shown in whole lines where there is no terminal") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, payload); });
  std::string shown;
  DownloadOptions options = quiet();
  options.progress = true;
  options.bar = {.terminal = pardl::Terminal{}, .write = [&](std::string_view text) { shown += text; }};
  download(server.url(), folder / "file.bin", options);
  has(shown, "file.bin 100%  293 KiB/293 KiB");
  CHECK(shown.find('\r') == std::string::npos);
}

TEST_CASE("a file that is there and right costs no request, a wrong one is replaced") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, payload); });
  write_text(folder / "file.bin", payload);
  download(server.url(), folder / "file.bin", quiet(sha256(payload)));
  download(server.url(), folder / "file.bin", quiet());
  CHECK(server.asked().empty());
  write_text(folder / "file.bin", "something else");
  download(server.url(), folder / "file.bin", quiet(sha256(payload)));
  CHECK(read_text(folder / "file.bin") == payload);
}

TEST_CASE("a wrong sum names both sums and leaves neither the bad file nor a part of it") {
  TemporaryFolder folder;
  std::string corrupt = payload;
  corrupt[1234] = static_cast<char>(corrupt[1234] ^ 1);
  HttpServer server([&](HttpAsk const& ask) { return file_answer(ask, corrupt, "\"v1\""); });
  DownloadOptions options = quiet(sha256(payload));
  options.retries = 3;
  std::string const what = what_of<DataError>([&] { download(server.url(), folder / "file.bin", options); });
  has(what,
      "its SHA-256 sum is " + sha256(corrupt) + " and should be " + sha256(payload) + ", so the file was removed");
  CHECK(files_in(folder).empty());
  CHECK(server.asked().size() == 1);
}

TEST_CASE("a failed download leaves the file that was there") {
  TemporaryFolder folder;
  write_text(folder / "file.bin", "old");
  HttpServer server([](HttpAsk const& ask) { return cut(file_answer(ask, payload), 5); });
  CHECK_THROWS_AS(download(server.url(), folder / "file.bin", quiet(sha256(payload))), DataError);
  CHECK(read_text(folder / "file.bin") == "old");
}

TEST_CASE("HTTP errors are sentences; those that may pass are tried again") {
  TemporaryFolder folder;
  auto const error_for = [&](std::string const& status, std::size_t requests) {
    HttpServer server([&](HttpAsk const&) { return answer(status, "<html>sorry</html>"); });
    DownloadOptions options = quiet();
    options.retries = 2;
    std::string const what = what_of<DataError>([&] { download(server.url(), folder / "file.bin", options); });
    CHECK(server.asked().size() == requests);
    CHECK(files_in(folder).empty());
    return what;
  };
  has(error_for("404 Not Found", 1), "no such file on the server (HTTP 404); check the URL");
  has(error_for("403 Forbidden", 1), "the server refuses access (HTTP 403)");
  has(error_for("418 I'm a teapot", 1), "unexpected answer (HTTP 418)");
  has(error_for("500 Internal Server Error", 3), "the server is in trouble (HTTP 500)");
  has(error_for("429 Too Many Requests", 3), "HTTP 429");
}

TEST_CASE("a refused connection is a sentence") {
  TemporaryFolder folder;
  std::string const url = "http://127.0.0.1:" + std::to_string(HttpServer::refusing_port()) + "/file.bin";
  std::string const what = what_of<DataError>([&] { download(url, folder / "file.bin", quiet()); });
  has(what, "[data] " + url + ": no connection (");
  has(what, "check the network, a proxy (https_proxy) and the URL.");
  CHECK(files_in(folder).empty());
}

TEST_CASE("a server that falls silent is given up") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) {
    HttpAnswer partial = cut(file_answer(ask, payload, "\"v1\""), 100'000);
    partial.then_hang = true;
    return partial;
  });
  std::string const what = what_of<DataError>([&] { download(server.url(), folder / "file.bin", quiet()); });
  has(what, "the server has sent next to nothing for 1 s; 200000 bytes are kept");
}

TEST_CASE("a connection that closes without an answer is a sentence") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const&) { return HttpAnswer{}; });
  has(what_of<DataError>([&] { download(server.url(), folder / "file.bin", quiet()); }), "cut short after 0 bytes");
}

TEST_CASE("redirects are followed on this machine, a few times, and never to a file or to plain http elsewhere") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) {
    if (ask.path == "/loop") return redirect("/loop");
    if (ask.path == "/passwd") return redirect("file:///etc/passwd");
    if (ask.path == "/ftp") return redirect("ftp://127.0.0.1/x");
    if (ask.path == "/plain") return redirect("http://192.0.2.1/x");
    if (ask.path == "/old") return redirect("/new");
    return file_answer(ask, payload);
  });
  download(server.url("/old"), folder / "file.bin", quiet(sha256(payload)));
  CHECK(read_text(folder / "file.bin") == payload);
  auto const error_for = [&](std::string const& path) {
    return what_of<DataError>([&] { download(server.url(path), folder / "other", quiet()); });
  };
  has(error_for("/loop"), "more than 10 redirects");
  has(error_for("/passwd"), "redirects to file:///etc/passwd, which is not https");
  has(error_for("/ftp"), "redirects to ftp://127.0.0.1/x");
  has(error_for("/plain"), "redirects to http://192.0.2.1/x");
  CHECK(files_in(folder) == std::vector<std::string>{"file.bin"});
}

TEST_CASE("who asked for https is never led to http, not even where http is allowed") {
  using pardl::data::detail::parse_url;
  using pardl::data::detail::require_allowed;
  auto const secure = parse_url("https://example.org/a");
  auto const plain = parse_url("http://example.org/a");
  auto const local = parse_url("http://localhost/a");
  CHECK_NOTHROW(require_allowed(secure, nullptr, false));
  CHECK_NOTHROW(require_allowed(secure, &plain, false));
  CHECK_NOTHROW(require_allowed(plain, nullptr, true));
  CHECK_NOTHROW(require_allowed(plain, &plain, true));
  CHECK_NOTHROW(require_allowed(local, nullptr, false));
  CHECK_THROWS_AS(require_allowed(plain, &secure, true), DataError);
  CHECK_THROWS_AS(require_allowed(local, &secure, true), DataError);
  CHECK_THROWS_AS(require_allowed(plain, &local, false), DataError);
}

TEST_CASE("only https, except on this machine or where it is asked for; the rest is refused before any connection") {
  TemporaryFolder folder;
  auto const error_for = [&](std::string const& url) {
    return what_of<ConfigError>([&] { download(url, folder / "file.bin", quiet()); });
  };
  has(error_for("http://192.0.2.1/x"), "http://192.0.2.1/x is not https; use https, or set .allow_http = true");
  has(error_for("http://127.0.0.1.example.org/x"), "is not https");
  has(error_for("ftp://example.org/x"), "is not https; give an https address");
  has(error_for("file:///etc/passwd"), "is not https");
  has(error_for("not a url"), "\"not a url\" is no URL");
  CHECK(files_in(folder).empty());
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, payload); });
  std::string const tls = "https" + server.url().substr(4);
  CHECK_THROWS_AS(download(tls, folder / "file.bin", quiet()), DataError);  // never by plain http instead
  CHECK(files_in(folder).empty());
}

TEST_CASE("a password in a URL is not repeated in messages") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const&) { return answer("404 Not Found"); });
  std::string const url = "http://user:secret@127.0.0.1:" + std::to_string(server.port()) + "/x";
  std::string const what = what_of<DataError>([&] { download(url, folder / "x", quiet()); });
  has(what, "HTTP 404");
  CHECK(what.find("secret") == std::string::npos);
}

TEST_CASE("a file larger than allowed is refused, whether its size is announced or not") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) {
    if (ask.path == "/known") return file_answer(ask, payload);
    return HttpAnswer{"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + payload};
  });
  DownloadOptions options = quiet();
  options.max_bytes = 250'000;
  for (char const* path : {"/known", "/unknown"})
    has(what_of<DataError>([&] { download(server.url(path), folder / "file.bin", options); }),
        "250000 are allowed; raise .max_bytes");
  CHECK_FALSE(fs::exists(folder / "file.bin"));
  options.max_bytes = 300'000;
  download(server.url("/unknown"), folder / "file.bin", options);
  CHECK(read_text(folder / "file.bin") == payload);
}

TEST_CASE("a disk that takes no more is a sentence, and nothing has the final name") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, payload); });
  rlimit saved{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &saved) == 0);
  auto const handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit const small{.rlim_cur = 65'536, .rlim_max = saved.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  std::string const what =
      what_of<DataError>([&] { download(server.url(), folder / "file.bin", quiet(sha256(payload))); });
  ::setrlimit(RLIMIT_FSIZE, &saved);
  std::signal(SIGXFSZ, handler);
  has(what, "[data] cannot write " + (folder / "file.bin.part").string() + ": the file would grow beyond");
  CHECK_FALSE(fs::exists(folder / "file.bin"));
  download(server.url(), folder / "file.bin", quiet(sha256(payload)));  // and the rest fits in later
  CHECK(read_text(folder / "file.bin") == payload);
}

TEST_CASE("of several that fetch one file at once, one fetches and all have it") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, payload); });
  std::barrier start(4);
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      start.arrive_and_wait();
      download(server.url(), folder / "file.bin", quiet(sha256(payload)));
      if (read_text(folder / "file.bin") == payload) ++right;
    });
  for (auto& thread : threads) thread.join();
  CHECK(right == 4);
  CHECK(server.asked().size() == 1);
  CHECK(files_in(folder) == std::vector<std::string>{"file.bin"});
}

TEST_CASE("settings that cannot be right are refused before anything is fetched") {
  TemporaryFolder folder;
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, payload); });
  has(what_of<ConfigError>([&] { download(server.url(), folder / "x", quiet("abc")); }),
      "\"abc\" is no SHA-256 sum; give its 64 hexadecimal digits");
  has(what_of<ConfigError>([&] { download(server.url(), folder.path(), quiet()); }), "is a folder; name the file");
  DownloadOptions hasty = quiet();
  hasty.timeout = 0s;
  CHECK_THROWS_AS(download(server.url(), folder / "x", hasty), ConfigError);
  CHECK(server.asked().empty());
}

TEST_CASE("a link planted under the name of the part leads the bytes nowhere") {
  TemporaryFolder folder;
  write_text(folder / "victim", "precious");
  fs::create_symlink(folder / "victim", folder / "file.bin.part");
  HttpServer server([](HttpAsk const& ask) { return file_answer(ask, payload); });
  CHECK_THROWS_AS(download(server.url(), folder / "file.bin", quiet()), DataError);
  CHECK(read_text(folder / "victim") == "precious");
}

#else

TEST_CASE("download is not tested: this build has no libcurl or no OpenSSL") { MESSAGE("skipped: no pardl::download"); }

#endif  // PARDL_WITH_DOWNLOAD
