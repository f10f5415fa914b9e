// SPDX-License-Identifier: MIT
/// \file   One HTTP GET by libcurl, and what a URL may be.
/// \layer  data, private (policy). Empty without the CMake target pardl::download.
#pragma once

#include "pardl/version.hpp"

#ifdef PARDL_WITH_DOWNLOAD

#include <arpa/inet.h>
#include <curl/curl.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "pardl/policy/error.hpp"

namespace pardl::inline PARDL_ABI::data::detail {

/// The parts of a URL that decide whether it may be fetched.
struct Url {
  std::string text;    ///< as given
  std::string shown;   ///< for messages: without a user name and password
  std::string scheme;  ///< lower case
  std::string host;
  [[nodiscard]] bool is_loopback() const {
    in_addr address{};
    return host == "localhost" || host == "[::1]" ||
           (::inet_pton(AF_INET, host.c_str(), &address) == 1 && (ntohl(address.s_addr) >> 24) == 127);
  }
};

/// \throws ConfigError for text that is no URL.
inline Url parse_url(std::string const& text) {
  std::unique_ptr<CURLU, void (*)(CURLU*)> const handle(curl_url(), &curl_url_cleanup);
  auto const part = [&](CURLUPart which) {
    char* value = nullptr;
    if (curl_url_get(handle.get(), which, &value, 0) != CURLUE_OK) return std::string();
    std::unique_ptr<char, void (*)(void*)> const owner(value, &curl_free);
    return std::string(value);
  };
  // Unknown schemes are parsed too, so that the message can name what is wrong with them.
  if (!handle || curl_url_set(handle.get(), CURLUPART_URL, text.c_str(), CURLU_NON_SUPPORT_SCHEME) != CURLUE_OK)
    throw ConfigError(sentence("data", "\"" + text + "\" is no URL", "write it as https://host/path"));
  Url url{.text = text, .shown = {}, .scheme = part(CURLUPART_SCHEME), .host = part(CURLUPART_HOST)};
  curl_url_set(handle.get(), CURLUPART_USER, nullptr, 0);
  curl_url_set(handle.get(), CURLUPART_PASSWORD, nullptr, 0);
  url.shown = part(CURLUPART_URL);
  return url;
}

struct HttpRequest {
  Url url;
  std::uint64_t offset = 0;  ///< first byte wanted
  std::string validator;     ///< If-Range: the whole file instead, should it have changed; empty: not sent
  std::chrono::seconds timeout{30};
  std::uint64_t least_speed = 1;  ///< bytes per second; less, over `timeout`, and the transfer has stalled
};

struct HttpReply {
  long status = 0;                          ///< 0: none came
  std::string redirect;                     ///< absolute, for 3xx
  std::string validator;                    ///< strong ETag, else Last-Modified, else empty
  std::optional<std::uint64_t> length;      ///< of this body
  std::optional<std::uint64_t> first_byte;  ///< of Content-Range
  std::optional<std::uint64_t> whole_size;  ///< of Content-Range
  CURLcode result = CURLE_OK;
  std::string problem;  ///< curl's words for `result`
};

/// Fetches, handing the body of a 200 or 206 to `on_data` after `on_begin` saw the headers; bodies of other answers are
/// dropped. Follows nothing: each hop of a redirect is the caller's decision. Rethrows what the callbacks throw.
class HttpGet {
 public:
  using OnBegin = std::function<void(HttpReply const&)>;
  using OnData = std::function<void(char const*, std::size_t)>;

  HttpGet(OnBegin on_begin, OnData on_data) : on_begin_(std::move(on_begin)), on_data_(std::move(on_data)) {
    // Once per process: it is not safe to repeat in threads. Never cleaned up, since others may use curl too.
    static CURLcode const ready = curl_global_init(CURL_GLOBAL_DEFAULT);
    if (ready == CURLE_OK) curl_.reset(curl_easy_init());
    if (!curl_) throw DataError(sentence("data", "libcurl cannot be initialised", "check its installation"));
  }

  HttpReply operator()(HttpRequest const& request) {
    reply_ = {};
    begun_ = false;
    dropped_ = 0;
    failure_ = nullptr;
    stalled_ = false;
    received_ = window_bytes_ = 0;
    window_start_ = std::chrono::steady_clock::now();
    timeout_ = request.timeout;
    least_per_window_ = request.least_speed * static_cast<std::uint64_t>(request.timeout.count());
    std::array<char, CURL_ERROR_SIZE> words{};
    std::unique_ptr<curl_slist, void (*)(curl_slist*)> headers(nullptr, &curl_slist_free_all);
    CURL* const c = curl_.get();
    curl_easy_reset(c);
    curl_easy_setopt(c, CURLOPT_URL, request.url.text.c_str());
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
#else
    curl_easy_setopt(c, CURLOPT_PROTOCOLS, static_cast<long>(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);  // no SIGALRM in a process whose other threads train
    curl_easy_setopt(c, CURLOPT_USERAGENT, "pardl");
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, words.data());
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, static_cast<long>(request.timeout.count()));
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, &HttpGet::look_for_stall);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, this);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, &HttpGet::receive_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, this);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, &HttpGet::receive_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, this);
    if (request.url.is_loopback()) curl_easy_setopt(c, CURLOPT_NOPROXY, "*");  // a proxy's loopback is not ours
    std::string const range = std::to_string(request.offset) + "-";
    if (request.offset > 0) curl_easy_setopt(c, CURLOPT_RANGE, range.c_str());
    if (request.offset > 0 && !request.validator.empty()) {
      headers.reset(curl_slist_append(nullptr, ("If-Range: " + request.validator).c_str()));
      curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers.get());
    }
    CURLcode const result = curl_easy_perform(c);
    reply_.result = stalled_ ? CURLE_OPERATION_TIMEDOUT : result;  // reset by each status line, so set last
    read_answer();
    if (!failure_ && !begun_ && reply_.result == CURLE_OK && wanted()) begin();  // an empty body
    if (failure_) std::rethrow_exception(failure_);
    if (char* next = nullptr; curl_easy_getinfo(c, CURLINFO_REDIRECT_URL, &next) == CURLE_OK && next != nullptr)
      reply_.redirect = next;
    reply_.problem = words[0] != '\0' ? words.data() : curl_easy_strerror(reply_.result);
    return reply_;
  }

 private:
  [[nodiscard]] bool wanted() const { return reply_.status == 200 || reply_.status == 206; }

  void read_answer() {
    curl_easy_getinfo(curl_.get(), CURLINFO_RESPONSE_CODE, &reply_.status);
    curl_off_t length = -1;
    if (curl_easy_getinfo(curl_.get(), CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length) == CURLE_OK && length >= 0)
      reply_.length = static_cast<std::uint64_t>(length);
  }

  // No exception may pass through curl's C frames: it is kept, and thrown again when curl has returned.
  bool begin() noexcept {
    begun_ = true;
    try {
      on_begin_(reply_);
      return true;
    } catch (...) {
      failure_ = std::current_exception();
      return false;
    }
  }

  static std::size_t receive_body(char* bytes, std::size_t, std::size_t size, void* self) noexcept {
    auto& get = *static_cast<HttpGet*>(self);
    get.received_ += size;
    if (!get.begun_) get.read_answer();
    if (!get.wanted()) {
      get.dropped_ += size;
      return get.dropped_ > (1 << 20) ? 0 : size;  // an error page without end is not worth reading
    }
    if (!get.begun_ && !get.begin()) return 0;
    try {
      get.on_data_(bytes, size);
      return size;
    } catch (...) {
      get.failure_ = std::current_exception();
      return 0;
    }
  }

  // curl calls this about once a second, also in silence. Its own low-speed limit averages over several seconds more.
  static int look_for_stall(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) noexcept {
    auto& get = *static_cast<HttpGet*>(self);
    auto const now = std::chrono::steady_clock::now();
    if (now - get.window_start_ < get.timeout_) return 0;
    get.stalled_ = get.received_ - get.window_bytes_ < get.least_per_window_;
    get.window_start_ = now;
    get.window_bytes_ = get.received_;
    return get.stalled_ ? 1 : 0;
  }

  static std::size_t receive_header(char* bytes, std::size_t, std::size_t size, void* self) noexcept {
    static_cast<HttpGet*>(self)->read_header({bytes, size});
    return size;
  }

  void read_header(std::string_view line) {
    while (!line.empty() && (line.back() == '\r' || line.back() == '\n' || line.back() == ' ')) line.remove_suffix(1);
    if (line.starts_with("HTTP/")) {  // also after "100 Continue" or a proxy's answer
      reply_ = {};
      return;
    }
    std::size_t const colon = line.find(':');
    if (colon == line.npos) return;
    std::string name(line.substr(0, colon));
    std::ranges::transform(name, name.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c; });
    std::string_view value = line.substr(colon + 1);
    while (!value.empty() && (value.front() == ' ' || value.front() == '\t')) value.remove_prefix(1);
    // If-Range wants a strong validator (RFC 9110, section 13.1.5); a date will do where there is no ETag.
    if (name == "etag" && value.starts_with('"')) reply_.validator = value;
    if (name == "last-modified" && reply_.validator.empty()) reply_.validator = value;
    if (name == "content-range" && value.starts_with("bytes ")) {
      value.remove_prefix(6);
      reply_.first_byte = number(value.substr(0, value.find('-')));
      if (std::size_t const slash = value.find('/'); slash != value.npos)
        reply_.whole_size = number(value.substr(slash + 1));
    }
  }

  static std::optional<std::uint64_t> number(std::string_view text) {
    std::uint64_t value = 0;
    auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
  }

  std::unique_ptr<CURL, void (*)(CURL*)> curl_{nullptr, &curl_easy_cleanup};
  OnBegin on_begin_;
  OnData on_data_;
  HttpReply reply_;
  bool begun_ = false;
  std::size_t dropped_ = 0;
  bool stalled_ = false;
  std::uint64_t received_ = 0, window_bytes_ = 0, least_per_window_ = 1;
  std::chrono::steady_clock::time_point window_start_{};
  std::chrono::seconds timeout_{};
  std::exception_ptr failure_;
};

}  // namespace pardl::inline PARDL_ABI::data::detail

#endif  // PARDL_WITH_DOWNLOAD
