// SPDX-License-Identifier: MIT
/// \file   The store that the environment names: served or reached, on loopback where one host is all there is.
/// \layer  comm, private.
#pragma once

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/detail/bounded.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/comm/detail/translate.hpp"
#include "pardl/policy/environment.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

using StorePtr = c10::intrusive_ptr<c10d::Store>;

/// A store, and the manners it takes to end it: whoever serves it stays until the others have gone, so that nobody's
/// last word meets a closed door.
class StoreKeeper {
 public:
  /// How long the serving rank waits for the others at the end, and how long after a failure.
  static constexpr std::chrono::milliseconds patience{10'000}, haste{2'000};

  StoreKeeper(StorePtr store, std::string host, int rank, int size, bool rank_zero_serves)
      : store_(std::move(store)), host_(std::move(host)), rank_(rank), size_(size), served_by_rank_(rank_zero_serves) {}
  StoreKeeper(StoreKeeper const&) = delete;
  StoreKeeper& operator=(StoreKeeper const&) = delete;
  ~StoreKeeper() {
    if (!served_by_rank_) return;
    auto const limit = failed_ || std::uncaught_exceptions() > 0 ? haste : patience;
    try {
      (void)ends_within(limit, [limit, store = store_, rank = rank_, size = size_] {
        store->add("gone", 1);
        auto const until = std::chrono::steady_clock::now() + limit;
        while (rank == 0 && store->add("gone", 0) < size && std::chrono::steady_clock::now() < until)
          std::this_thread::sleep_for(std::chrono::milliseconds(5));
      });
    } catch (...) {  // the others have gone already
    }
  }

  /// The group has failed: nobody needs to wait long for ranks that may be gone.
  void hurry() noexcept { failed_ = true; }
  [[nodiscard]] StorePtr const& store() const noexcept { return store_; }
  /// Who serves it, for a sentence.
  [[nodiscard]] std::string const& host() const noexcept { return host_; }

 private:
  StorePtr store_;
  std::string host_;
  int rank_, size_;
  bool served_by_rank_;
  std::atomic<bool> failed_{false};
};

/// A socket that closes itself unless it is released.
class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int fd() const noexcept { return fd_; }
  int release() noexcept { return std::exchange(fd_, -1); }
  [[nodiscard]] std::uint16_t port() const {
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length);
    return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                               : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
  }

 private:
  int fd_;
};

/// Binds and listens. \returns the socket, or errno.
inline std::pair<std::optional<Socket>, int> try_listen(sockaddr const* address, socklen_t length) {
  Socket socket(::socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (socket.fd() < 0) return {std::nullopt, errno};
  int const on = 1, off = 0;
  ::setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (address->sa_family == AF_INET6) ::setsockopt(socket.fd(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  if (::bind(socket.fd(), address, length) != 0 || ::listen(socket.fd(), SOMAXCONN) != 0) return {std::nullopt, errno};
  return {std::move(socket), 0};
}

inline std::string loopback() { return "127.0.0.1"; }

/// Listens on loopback (`address` empty), or on the interface that has the address; if no interface has it, as behind
/// a container's network, on all of them.
/// \throws CommError  in one sentence if the port is taken.
inline Socket listen_on(std::string const& address, std::uint16_t port, int rank, int size) {
  sockaddr_in local{};
  local.sin_family = AF_INET;
  local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  local.sin_port = htons(port);
  std::pair<std::optional<Socket>, int> result{std::nullopt, EADDRNOTAVAIL};
  if (address.empty()) {
    result = try_listen(reinterpret_cast<sockaddr*>(&local), sizeof local);
  } else {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found) == 0) {
      for (auto* each = found; each && !result.first && result.second == EADDRNOTAVAIL; each = each->ai_next)
        result = try_listen(each->ai_addr, each->ai_addrlen);
      ::freeaddrinfo(found);
    }
    if (!result.first && result.second == EADDRNOTAVAIL) {
      sockaddr_in6 any{};
      any.sin6_family = AF_INET6;
      any.sin6_addr = in6addr_any;
      any.sin6_port = htons(port);
      result = try_listen(reinterpret_cast<sockaddr*>(&any), sizeof any);
      if (!result.first && result.second == EAFNOSUPPORT) {
        local.sin_addr.s_addr = htonl(INADDR_ANY);
        result = try_listen(reinterpret_cast<sockaddr*>(&local), sizeof local);
      }
    }
  }
  if (result.first) return std::move(*result.first);
  std::string const where = (address.empty() ? loopback() : address) + ":" + std::to_string(port);
  if (result.second == EADDRINUSE)
    throw CommError(sentence("comm", rank, size, "port " + std::to_string(port) + " is in use on this host",
                             "end the program that holds it, or set MASTER_PORT to another on every rank"));
  throw CommError(sentence("comm", rank, size, "cannot listen on " + where + ": " + std::strerror(result.second),
                           "check MASTER_ADDR and MASTER_PORT"));
}

/// True for names and addresses that never leave the host.
inline bool is_loopback(std::string const& address) {
  return address == "localhost" || address == "::1" || address.starts_with("127.");
}

/// This host's address on the way to another; empty if there is none but loopback. Sends nothing.
inline std::string address_towards(std::string const& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), "9", &hints, &found) != 0) return "";
  std::string address;
  for (auto const* each = found; each && address.empty(); each = each->ai_next) {
    Socket const socket(::socket(each->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage own{};
    socklen_t length = sizeof own;
    char text[NI_MAXHOST] = {};
    if (::connect(socket.fd(), each->ai_addr, each->ai_addrlen) == 0 &&
        ::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&own), &length) == 0 &&
        ::getnameinfo(reinterpret_cast<sockaddr*>(&own), length, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0 &&
        !is_loopback(text))
      address = text;
  }
  ::freeaddrinfo(found);
  return address;
}

inline StorePtr serve_store(Socket listener, std::string const& address, std::chrono::milliseconds limit) {
  c10d::TCPStoreOptions options;
  options.isServer = true;
  options.waitWorkers = false;
  options.timeout = limit;
  options.port = listener.port();
  options.masterListenFd = listener.fd();
  auto store = c10::make_intrusive<c10d::TCPStore>(address, options);
  listener.release();
  return store;
}

/// Tries once to connect, up to a second. \returns an empty text, or why not.
inline std::string try_connect(std::string const& address, std::uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (int const error = ::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found); error != 0)
    return ::gai_strerror(error);
  std::string reason = "no address";
  for (auto const* each = found; each && !reason.empty(); each = each->ai_next) {
    Socket const socket(::socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    int error = ::connect(socket.fd(), each->ai_addr, each->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      pollfd ready{socket.fd(), POLLOUT, 0};
      socklen_t length = sizeof error;
      if (::poll(&ready, 1, 1'000) != 1)
        error = ETIMEDOUT;
      else
        ::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &length);
    }
    reason = error == 0 ? "" : std::strerror(error);
  }
  ::freeaddrinfo(found);
  return reason;
}

/// \throws CommTimeout  if nobody serves there within the limit.
inline StorePtr reach_store(std::string const& address, std::uint16_t port, int rank, int size,
                            std::chrono::milliseconds limit) {
  auto const until = std::chrono::steady_clock::now() + limit;
  auto const failed = [&](std::string const& why) {
    return CommTimeout(sentence("comm", rank, size,
                                "no answer from the store at " + address + ":" + std::to_string(port) + " within " +
                                    in_words(limit) + ": " + why,
                                "see whether rank 0 runs, and whether MASTER_ADDR and MASTER_PORT name its host"));
  };
  // c10d's client tries once a second and writes a call stack for every failure: knock first.
  for (auto pause = std::chrono::milliseconds(5);; pause = std::min(2 * pause, std::chrono::milliseconds(250))) {
    auto const reason = try_connect(address, port);
    if (reason.empty()) break;
    if (std::chrono::steady_clock::now() + pause > until) throw failed(reason);
    std::this_thread::sleep_for(pause);
  }
  try {
    auto store = bounded(limit + std::chrono::seconds(1), [=]() -> StorePtr {
      c10d::TCPStoreOptions options;
      options.waitWorkers = false;
      options.timeout = limit;
      options.port = port;
      return c10::make_intrusive<c10d::TCPStore>(address, options);
    });
    if (store) return *store;
  } catch (std::exception const&) {
    throw failed(reason_of(std::current_exception()));
  }
  throw failed("it accepts connections but says nothing");
}

/// Rank 0 of one host serves on a port that the kernel chooses, and leaves its number in the job's folder.
inline StorePtr meet_in_folder(Environment const& env, int nth, std::chrono::milliseconds limit) {
  namespace fs = std::filesystem;
  fs::path const file = fs::path(env.rendezvous_folder) /
                        ("pardl." + std::to_string(env.restart_count) + "." + std::to_string(nth) + ".port");
  if (env.rank == 0) {
    auto listener = listen_on("", 0, env.rank, env.size);
    auto const port = listener.port();
    auto store = serve_store(std::move(listener), loopback(), limit);
    fs::path const draft = file.string() + ".draft";
    std::ofstream out(draft);
    out << port << '\n';
    out.close();
    std::error_code error;
    if (out) fs::rename(draft, file, error);  // whole or not at all
    if (!out || error)
      throw CommError(sentence("comm", env.rank, env.size, "cannot write " + file.string(),
                               "set MASTER_ADDR and MASTER_PORT instead"));
    return store;
  }
  auto const until = std::chrono::steady_clock::now() + limit;
  std::string why = file.string() + " is not there";
  for (; std::chrono::steady_clock::now() < until; std::this_thread::sleep_for(std::chrono::milliseconds(10))) {
    int number = 0;
    if (std::ifstream in(file); !(in >> number)) continue;
    auto const port = static_cast<std::uint16_t>(number);
    // A program that ran before in the same job has left its port: only one that answers counts.
    why = try_connect(loopback(), port);
    if (why.empty()) return reach_store(loopback(), port, env.rank, env.size, limit);
  }
  throw CommTimeout(sentence("comm", env.rank, env.size, "rank 0 has not come within " + in_words(limit) + ": " + why,
                             "see what rank 0 said"));
}

/// How many worlds this rank has made in this process. A second one must not read the first one's keys, which live as
/// long as the launcher; ranks may be threads, so each counts its own.
inline int count_world(int rank) {
  static std::mutex mutex;
  static std::map<int, int> worlds;
  std::lock_guard lock(mutex);
  return worlds[rank]++;
}

/// Makes or reaches the store. Every rank must call it, equally often in a process.
inline std::shared_ptr<StoreKeeper> store_from(Environment const& env, std::chrono::milliseconds limit) {
  int const nth = count_world(env.rank);
  std::string const prefix = "pardl/" + std::to_string(env.restart_count) + "/" + std::to_string(nth);
  return translated([&] {
    bool const one_host = (env.places_known && env.nodes == 1) || is_loopback(env.master_addr);
    bool const serve = !env.agent_store && env.rank == 0;
    // The agent listens on every address, and may be in another container: take its word. Otherwise one host is
    // loopback.
    std::string const address = one_host && !env.agent_store ? loopback() : env.master_addr;
    auto const port = static_cast<std::uint16_t>(env.master_port);
    StorePtr store;
    if (!env.rendezvous_folder.empty() && env.master_port == 0)
      store = meet_in_folder(env, nth, limit);
    else if (serve)
      store = serve_store(listen_on(one_host ? "" : address, port, env.rank, env.size), address, limit);
    else
      store = reach_store(address, port, env.rank, env.size, limit);
    return std::make_shared<StoreKeeper>(c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(store)),
                                         env.agent_store ? "the launcher" : "rank 0", env.rank, env.size,
                                         !env.agent_store);
  });
}

}  // namespace pardl::inline PARDL_ABI::detail
