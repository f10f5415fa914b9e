// SPDX-License-Identifier: MIT
// A small HTTP server on a free loopback port that answers as a test tells it to: whole files, parts, lies, silence.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace pardl::testing {

struct HttpAsk {
  std::string path;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string header(std::string const& name) const {
    auto const found = headers.find(name);
    return found == headers.end() ? "" : found->second;
  }
  // First byte of "Range: bytes=N-"; 0 without one.
  std::size_t offset() const {
    std::string const range = header("range");
    return range.starts_with("bytes=") ? std::stoul(range.substr(6)) : 0;
  }
};

struct HttpAnswer {
  std::string bytes;       // as they go over the wire, status line first
  bool then_hang = false;  // keep the connection open and silent until the client or the test is done
};

inline HttpAnswer answer(std::string const& status, std::string const& body = {}, std::string const& headers = {}) {
  return {"HTTP/1.1 " + status + "\r\nContent-Length: " + std::to_string(body.size()) + "\r\nConnection: close\r\n" +
          headers + "\r\n" + body};
}
inline HttpAnswer redirect(std::string const& location) {
  return answer("302 Found", "moved", "Location: " + location + "\r\n");
}
// As a good server does: 206 from the offset if the validator still holds (or none was sent), else 200 with all.
inline HttpAnswer file_answer(HttpAsk const& ask, std::string const& body, std::string const& etag = {}) {
  std::string const tag = etag.empty() ? "" : "ETag: " + etag + "\r\n";
  std::size_t const from = ask.offset();
  bool const fresh = ask.header("if-range").empty() || ask.header("if-range") == etag;
  std::string const size = std::to_string(body.size());
  if (from == 0 || !fresh) return answer("200 OK", body, tag);
  if (from >= body.size()) return answer("416 Range Not Satisfiable", "", "Content-Range: bytes */" + size + "\r\n");
  std::string const range = std::to_string(from) + "-" + std::to_string(body.size() - 1) + "/" + size;
  return answer("206 Partial Content", body.substr(from), tag + "Content-Range: bytes " + range + "\r\n");
}
// The same, but the connection ends `missing` bytes early.
inline HttpAnswer cut(HttpAnswer answer, std::size_t missing) {
  answer.bytes.resize(answer.bytes.size() - missing);
  return answer;
}

class HttpServer {
 public:
  using Handler = std::function<HttpAnswer(HttpAsk const&)>;

  explicit HttpServer(Handler handler) : handler_(std::move(handler)), listener_(listen_on_loopback(true)) {
    acceptor_ = std::thread([this] { accept_all(); });
  }
  HttpServer(HttpServer const&) = delete;
  HttpServer& operator=(HttpServer const&) = delete;
  ~HttpServer() {
    {
      std::scoped_lock const guard(mutex_);
      stopping_ = true;
    }
    stopped_.notify_all();
    ::shutdown(listener_, SHUT_RDWR);  // wakes accept
    acceptor_.join();
    for (std::thread& connection : connections_) connection.join();
    ::close(listener_);
  }

  [[nodiscard]] int port() const { return port_of(listener_); }
  [[nodiscard]] std::string url(std::string const& path = "/file.bin") const {
    return "http://127.0.0.1:" + std::to_string(port()) + path;
  }
  [[nodiscard]] std::vector<HttpAsk> asked() {
    std::scoped_lock const guard(mutex_);
    return asked_;
  }

  // A port where nobody listens, kept by a bound socket for the life of the process so that no other can take it.
  static int refusing_port() { return port_of(listen_on_loopback(false)); }

 private:
  static int listen_on_loopback(bool really) {
    int const descriptor = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (descriptor < 0 || ::bind(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        (really && ::listen(descriptor, 16) != 0))
      throw std::runtime_error("no loopback port");
    return descriptor;
  }
  static int port_of(int descriptor) {
    sockaddr_in address{};
    socklen_t size = sizeof address;
    ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size);
    return ntohs(address.sin_port);
  }

  void accept_all() {
    for (;;) {
      int const connection = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (connection < 0) return;
      connections_.emplace_back([this, connection] {
        serve(connection);
        ::close(connection);
      });
    }
  }

  void serve(int connection) {
    std::string text;
    while (text.find("\r\n\r\n") == text.npos) {
      char block[4096];
      ssize_t const got = ::recv(connection, block, sizeof block, 0);
      if (got <= 0) return;
      text.append(block, static_cast<std::size_t>(got));
    }
    HttpAsk const ask = parse(text);
    {
      std::scoped_lock const guard(mutex_);
      asked_.push_back(ask);
    }
    HttpAnswer const answer = handler_(ask);
    std::string_view rest = answer.bytes;
    while (!rest.empty()) {
      ssize_t const sent = ::send(connection, rest.data(), rest.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      rest.remove_prefix(static_cast<std::size_t>(sent));
    }
    if (answer.then_hang) {
      std::unique_lock guard(mutex_);
      stopped_.wait(guard, [this] { return stopping_; });
    }
    ::shutdown(connection, SHUT_WR);
  }

  static HttpAsk parse(std::string const& text) {
    HttpAsk ask;
    std::size_t const first = text.find(' ');
    ask.path = text.substr(first + 1, text.find(' ', first + 1) - first - 1);
    for (std::size_t at = text.find("\r\n") + 2; at < text.size();) {
      std::size_t const end = text.find("\r\n", at);
      std::string const line = text.substr(at, end - at);
      at = end + 2;
      std::size_t const colon = line.find(": ");
      if (colon == line.npos) continue;
      std::string name = line.substr(0, colon);
      std::ranges::transform(name, name.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c; });
      ask.headers[name] = line.substr(colon + 2);
    }
    return ask;
  }

  Handler handler_;
  int listener_;
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stopping_ = false;
  std::vector<HttpAsk> asked_;
  std::vector<std::thread> connections_;
  std::thread acceptor_;
};

}  // namespace pardl::testing
