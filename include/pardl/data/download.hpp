// SPDX-License-Identifier: MIT
/// \file   Fetches a file: checked, resumable, and under its name only when it is whole.
/// \layer  data (policy, io). Needs the CMake target pardl::download (libcurl, OpenSSL); no LibTorch.
///
/// The bytes go to NAME.part and are summed as they pass; a broken transfer is taken up where it broke, by this call or
/// by the next run. Only a file whose length and sum are right is renamed to NAME.
/// Ranks: let one of them call this and the others wait in a barrier,
///     if (world.rank() == 0) data::download(url, file, {.sha256 = sum});
///     barrier(world);
/// A folder that is not shared by all hosts needs this once per host (local_rank() == 0). Should several call it all
/// the same, a lock makes one fetch and the others find its file.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/data/detail/digest.hpp"
#include "pardl/data/detail/http.hpp"
#include "pardl/data/detail/part_file.hpp"
#include "pardl/io/file_lock.hpp"
#include "pardl/io/terminal.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data {

struct DownloadOptions {
  std::string sha256{};                      ///< 64 hexadecimal digits; empty: not checked
  std::string md5{};                         ///< 32 hexadecimal digits, where the publisher gives no better sum
  bool progress = true;                      ///< a bar on a terminal, plain lines otherwise
  ProgressBarOptions bar{};                  ///< how the bar looks; its label defaults to the file's name
  std::chrono::seconds timeout{30};          ///< to connect; and with less than the next line's speed over it, stalled
  std::uint64_t least_bytes_per_second = 1;  ///< mean over each span of `timeout`
  int retries = 4;                           ///< after failures that may pass: no connection, stall, 5xx, cut short
  std::chrono::milliseconds retry_delay{1000};       ///< before the first retry; doubles each time, up to a minute
  std::uint64_t max_bytes = std::uint64_t{1} << 36;  ///< 64 GiB; a larger file is refused
  int max_redirects = 10;                            ///< followed to https, or from http to http; never to files
  bool allow_http = false;                           ///< true: plain http from any host, not only from this machine
  std::chrono::seconds lock_timeout{3600};           ///< longest wait for another process that fetches the same file
};

#ifdef PARDL_WITH_DOWNLOAD

namespace detail {

/// https is fetched from anywhere, http from this machine or where the caller said so, anything else from nowhere; and
/// who asked for https gets https to the end. \param from  the redirect's origin; null for the caller's own URL.
/// \throws ConfigError for the caller's URL, DataError for a redirect.
inline void require_allowed(Url const& url, Url const* from, bool allow_http) {
  bool const http = url.scheme == "http" && (allow_http || url.is_loopback());
  bool const downgrade = from != nullptr && from->scheme == "https" && url.scheme != "https";
  if ((url.scheme == "https" || http) && !downgrade) return;
  if (from != nullptr)
    throw DataError(sentence("data", from->shown + " redirects to " + url.shown + ", which is not https",
                             "it was not followed: give the file's own https address"));
  throw ConfigError(sentence(
      "data", url.shown + " is not https",
      url.scheme == "http" ? "use https, or set .allow_http = true and give a checksum" : "give an https address"));
}

/// One download, attempt by attempt.
class Download {
 public:
  Download(std::string const& url, std::filesystem::path const& destination, DownloadOptions const& options)
      : url_(parse_url(url)), destination_(destination), options_(options), digests_(sums_of(options)) {
    require_allowed(url_, nullptr, options.allow_http);
    if (options.timeout < std::chrono::seconds(1))
      throw ConfigError(sentence("data", "download timeout below one second", "give whole seconds, at least one"));
  }

  /// True if a file of this name is there and, as far as a sum was given, right.
  [[nodiscard]] bool present() {
    std::error_code error;
    if (std::filesystem::is_directory(destination_, error))
      throw ConfigError(sentence("data", destination_.string() + " is a folder", "name the file to write inside it"));
    if (!std::filesystem::exists(destination_, error)) return false;
    digests_.reset();
    digests_.update_from(destination_);
    return digests_.mismatch().empty();
  }

  void run() {
    part_.emplace(destination_);
    if (options_.progress) {
      ProgressBarOptions look = options_.bar;
      if (look.label.empty()) look.label = destination_.filename().string();
      look.bytes = true;
      bar_.emplace(std::nullopt, std::move(look));
    }
    inherited_ = part_->size() > 0;
    auto delay = options_.retry_delay;
    for (int attempt = 0;; ++attempt) {
      prepare();
      std::string const problem = fetch();
      if (problem.empty()) {
        std::string const wrong = digests_.mismatch();
        if (wrong.empty()) break;
        if (std::exchange(inherited_, false)) {  // an earlier run's bytes may be of another version of the file
          part_->restart(url_.text, "");
          continue;
        }
        part_->discard();
        throw DataError(sentence("data", url_.shown + ": " + wrong + ", so the file was removed",
                                 "it is damaged or has changed: try again, or correct the sum"));
      }
      if (attempt >= options_.retries) throw DataError(sentence("data", url_.shown + ": " + problem, kept()));
      if (bar_) bar_->print(url_.shown + ": " + problem + "; trying again");
      std::this_thread::sleep_for(delay);  // a server in trouble is not helped by haste
      delay = std::min(delay * 2, std::chrono::milliseconds(60'000));
    }
    part_->publish();
    if (bar_) bar_->finish();
  }

 private:
  static std::vector<ExpectedSum> sums_of(DownloadOptions const& options) {
    std::vector<ExpectedSum> sums;
    if (!options.sha256.empty()) sums.push_back(expected_sum("SHA-256", options.sha256, 64));
    if (!options.md5.empty()) sums.push_back(expected_sum("MD5", options.md5, 32));
    return sums;
  }

  /// Decides whether what is there can be continued, and sums it.
  void prepare() {
    bool const known = digests_.any() || !part_->validator(url_.text).empty();
    if (part_->size() > 0 && (!known || part_->size() > options_.max_bytes)) part_->restart(url_.text, "");
    digests_.reset();
    if (part_->size() > 0) digests_.update_from(part_->path());
  }

  void begin(HttpReply const& reply) {
    std::uint64_t const offset = part_->size();
    bool const continues = reply.status == 206 && offset > 0;
    if (continues && reply.first_byte != offset) {
      part_->restart(url_.text, "");
      throw Unusable{"the server continued at the wrong place"};
    }
    if (reply.status == 206 && !continues) throw Unusable{"the server sent a part of the file unasked"};
    if (!continues) {
      part_->restart(url_.text, reply.validator);
      digests_.reset();
      inherited_ = false;
    }
    std::optional<std::int64_t> total;
    if (reply.length) total = static_cast<std::int64_t>(*reply.length + part_->size());
    if (reply.length && *reply.length + part_->size() > options_.max_bytes) refuse_size(*reply.length + part_->size());
    if (!bar_) return;
    bar_->restart(total);
    bar_->skip(static_cast<std::int64_t>(part_->size()));
  }

  [[noreturn]] void refuse_size(std::uint64_t size) const {
    throw DataError(sentence("data",
                             url_.shown + " has " + std::to_string(size) + " bytes or more, and " +
                                 std::to_string(options_.max_bytes) + " are allowed",
                             "raise .max_bytes if that is right"));
  }

  void receive(char const* bytes, std::size_t size) {
    if (part_->size() + size > options_.max_bytes) refuse_size(part_->size() + size);
    part_->append(bytes, size);
    digests_.update(bytes, size);
    if (bar_) bar_->advance(static_cast<std::int64_t>(size));
  }

  /// One attempt. Empty when the file is complete; a reason when trying again may help. \throws DataError otherwise.
  std::string fetch() {
    HttpGet get([this](HttpReply const& reply) { begin(reply); },
                [this](char const* bytes, std::size_t size) { receive(bytes, size); });
    Url at = url_;
    for (int hop = 0; hop <= options_.max_redirects; ++hop) {
      HttpRequest request{.url = at, .offset = part_->size(), .validator = part_->validator(url_.text)};
      request.timeout = options_.timeout;
      request.least_speed = options_.least_bytes_per_second;
      HttpReply reply;
      try {
        reply = get(request);
      } catch (Unusable const& unusable) {
        return unusable.reason;
      }
      if (reply.redirect.empty()) return judge(request, reply);
      Url const next = parse_url(reply.redirect);
      require_allowed(next, &at, options_.allow_http);
      at = next;
    }
    throw DataError(sentence("data",
                             url_.shown + ": more than " + std::to_string(options_.max_redirects) + " redirects",
                             "give the file's own address"));
  }

  std::string judge(HttpRequest const& request, HttpReply const& reply) {
    std::string const& where = request.url.shown;
    std::string const code = "HTTP " + std::to_string(reply.status);
    if (reply.status == 200 || reply.status == 206) {
      if (reply.result == CURLE_OK) return {};
    } else if (reply.status == 416 && request.offset > 0) {
      if (reply.whole_size == request.offset) return {};  // an earlier run had all of it and died before the rename
      part_->restart(url_.text, "");
      return "what was there is no part of the file";
    } else if (reply.status == 408 || reply.status == 429 || reply.status >= 500) {
      return "the server is in trouble (" + code + ")";
    } else if (reply.status == 404 || reply.status == 410) {
      throw DataError(sentence("data", where + ": no such file on the server (" + code + ")", "check the URL"));
    } else if (reply.status == 401 || reply.status == 403) {
      throw DataError(sentence("data", where + ": the server refuses access (" + code + ")",
                               "check the URL, or fetch the file by hand"));
    } else if (reply.result == CURLE_OK) {
      throw DataError(sentence("data", where + ": unexpected answer (" + code + ")", "check the URL"));
    }
    switch (reply.result) {
      case CURLE_COULDNT_CONNECT:
        return "no connection (" + reply.problem + ")";
      case CURLE_COULDNT_RESOLVE_HOST:
      case CURLE_COULDNT_RESOLVE_PROXY:
        return "unknown host name, or no network (" + reply.problem + ")";
      case CURLE_OPERATION_TIMEDOUT:
        return "the server has sent next to nothing for " + std::to_string(options_.timeout.count()) + " s";
      case CURLE_PARTIAL_FILE:
      case CURLE_RECV_ERROR:
      case CURLE_SEND_ERROR:
      case CURLE_GOT_NOTHING:
      case CURLE_HTTP2:
      case CURLE_HTTP2_STREAM:
        return "the transfer was cut short after " + std::to_string(part_->size()) + " bytes (" + reply.problem + ")";
      case CURLE_PEER_FAILED_VERIFICATION:
      case CURLE_SSL_CACERT_BADFILE:
        throw DataError(sentence("data", where + ": its certificate cannot be verified (" + reply.problem + ")",
                                 "install the package ca-certificates, or check the machine's clock"));
      default:
        throw DataError(sentence("data", where + ": " + reply.problem, "check the URL and the network"));
    }
  }

  [[nodiscard]] std::string kept() const {
    std::string const advice = "check the network, a proxy (https_proxy) and the URL";
    if (part_->size() == 0) return advice;
    return std::to_string(part_->size()) + " bytes are kept in " + part_->path().string() +
           ", and the next run goes on from there";
  }

  struct Unusable {
    std::string reason;
  };

  Url url_;
  std::filesystem::path destination_;
  DownloadOptions const& options_;
  Digests digests_;
  std::optional<PartFile> part_;
  std::optional<ProgressBar> bar_;
  bool inherited_ = false;  // the part file holds bytes of an earlier run
};

}  // namespace detail

/// Fetches `url` to the file `destination`, whose folder is made if need be, and returns `destination`.
/// A file that is already there is kept if its sum is right (or none was given: then its presence is enough), and
/// replaced in one step otherwise. Not collective: see the head of this file for ranks. Blocks.
/// \throws DataError    no connection, HTTP error, stall, cut short, wrong sum, disk full, forbidden redirect;
/// \throws ConfigError  what is no URL, no https, no sum, or a folder. Nothing is left under the final name.
/// \cost   one pass over the bytes; one more over those that an earlier run left.
inline std::filesystem::path download(std::string const& url, std::filesystem::path const& destination,
                                      DownloadOptions const& options = {}) {
  detail::Download work(url, destination, options);
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::absolute(destination).parent_path(), error);
  if (error) io::throw_errno<DataError>("data", "make the folder of", destination, error.value());
  if (work.present()) return destination;
  std::filesystem::path lock_name = destination;
  lock_name += ".lock";
  std::optional<io::FileLock> lock;
  try {
    lock.emplace(lock_name, options.lock_timeout, [&] {
      if (!options.progress) return;
      ProgressBarOptions look = options.bar;
      look.terminal = Terminal{};  // a line is enough
      ProgressBar(std::nullopt, look).print("waiting for another process that fetches " + destination.string());
    });
  } catch (DataError const&) {
    throw;
  } catch (Error const& failure) {
    throw DataError(failure.what());
  }
  if (!work.present()) work.run();  // the one we waited for may have brought it
  return destination;
}

#else

/// Without the CMake target pardl::download every call is a compile error that says so.
template <class Never = void>
std::filesystem::path download(std::string const&, std::filesystem::path const&, DownloadOptions const& = {}) {
  static_assert(!std::is_void_v<Never>,
                "pardl::data::download needs libcurl and OpenSSL: link the CMake target pardl::download "
                "(target_link_libraries(app pardl::download)).");
  return {};
}

#endif  // PARDL_WITH_DOWNLOAD

}  // namespace pardl::inline PARDL_ABI::data
