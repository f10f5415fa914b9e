// SPDX-License-Identifier: MIT
/// \file   The system calls of a launcher: what processes, pipes, nameless files and loopback ports need explaining.
/// \layer  comm (std and POSIX only).
#pragma once

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/io/posix.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::launching {

/// "SIGKILL" for 9.
[[nodiscard]] inline std::string signal_name(int signal) {
  constexpr std::pair<int, char const*> names[] = {
      {SIGHUP, "SIGHUP"},   {SIGINT, "SIGINT"},   {SIGQUIT, "SIGQUIT"}, {SIGILL, "SIGILL"},   {SIGTRAP, "SIGTRAP"},
      {SIGABRT, "SIGABRT"}, {SIGBUS, "SIGBUS"},   {SIGFPE, "SIGFPE"},   {SIGKILL, "SIGKILL"}, {SIGUSR1, "SIGUSR1"},
      {SIGSEGV, "SIGSEGV"}, {SIGUSR2, "SIGUSR2"}, {SIGPIPE, "SIGPIPE"}, {SIGALRM, "SIGALRM"}, {SIGTERM, "SIGTERM"},
      {SIGXCPU, "SIGXCPU"}, {SIGXFSZ, "SIGXFSZ"}, {SIGSYS, "SIGSYS"}};
  for (auto const& [number, name] : names)
    if (number == signal) return name;
  return "signal " + std::to_string(signal);
}

/// The code a shell would report: that of exit, or 128 plus the signal.
[[nodiscard]] inline int exit_code(int status) {
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

[[nodiscard]] inline Error system_error(std::string_view what, int error = errno) {
  return Error(sentence("launch", std::string(what) + ": " + io::reason_of(error), io::remedy_of(error)));
}

/// Cores that this process may run on.
[[nodiscard]] inline int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set))
                                                       : std::max(1, static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN)));
}

/// Whether a second thread runs in this process: then only exec makes a usable child.
[[nodiscard]] inline bool has_threads() {
  DIR* const tasks = ::opendir("/proc/self/task");
  if (tasks == nullptr) return true;  // cannot know: take the way that is always safe
  int count = 0;
  while (dirent const* const entry = ::readdir(tasks)) count += entry->d_name[0] != '.';
  ::closedir(tasks);
  return count > 1;
}

/// Whether a process is stopped, by SIGSTOP or a debugger.
[[nodiscard]] inline bool is_stopped(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string stat;
  std::getline(file, stat);
  auto const name_end = stat.rfind(')');  // the name may contain anything
  return name_end != std::string::npos && name_end + 2 < stat.size() &&
         (stat[name_end + 2] == 'T' || stat[name_end + 2] == 't');
}

struct Pipe {
  io::FileDescriptor read, write;
};

[[nodiscard]] inline Pipe make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw system_error("cannot make a pipe");
  return {io::FileDescriptor(ends[0]), io::FileDescriptor(ends[1])};
}

/// A file without a name: it is gone with the last process that holds it, however that ends.
[[nodiscard]] inline io::FileDescriptor make_nameless_file(char const* label) {
  io::FileDescriptor file(::memfd_create(label, MFD_CLOEXEC));
  if (!file) throw system_error("cannot make a file in memory");
  return file;
}

[[nodiscard]] inline std::string contents(io::FileDescriptor const& file) {
  std::string text;
  std::array<char, 4096> piece{};
  while (true) {
    auto const got = ::pread(file.get(), piece.data(), piece.size(), static_cast<off_t>(text.size()));
    if (got <= 0) return text;
    text.append(piece.data(), static_cast<std::size_t>(got));
  }
}

/// A socket that listens on 127.0.0.1 only. Holding it is what keeps the port ours: nobody can take it in between.
/// \param port  0: the kernel's choice, which is then written here. \throws ConfigError if a given one is taken.
[[nodiscard]] inline io::FileDescriptor listen_on_loopback(int& port) {
  io::FileDescriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listener) throw system_error("cannot make a socket");
  int const yes = 1;
  ::setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* const plain = reinterpret_cast<sockaddr*>(&address);
  if (::bind(listener.get(), plain, length) != 0 || ::listen(listener.get(), SOMAXCONN) != 0) {
    int const error = errno;
    if (error == EADDRINUSE || error == EACCES)
      throw ConfigError(sentence("launch",
                                 "port " + std::to_string(port) + (error == EACCES ? " is not allowed" : " is in use"),
                                 "set MASTER_PORT to a free port, or unset it to have one chosen"));
    throw system_error("cannot listen on 127.0.0.1:" + std::to_string(port), error);
  }
  if (::getsockname(listener.get(), plain, &length) != 0) throw system_error("cannot read a socket's address");
  port = ntohs(address.sin_port);
  return listener;
}

}  // namespace pardl::inline PARDL_ABI::detail::launching
