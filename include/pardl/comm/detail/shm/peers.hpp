// SPDX-License-Identifier: MIT
/// \file   How ranks get hold of the shared memory, and how they learn that one of them has died.
/// \layer  comm, private.
///
/// Rank 0 creates the memory and listens on a Unix socket in the abstract name space, which is no file and ends with
/// its process. The others connect, show a secret that they have from the store, and get the memory's descriptor. The
/// connections stay: the kernel closes them when a process ends, however it ends. Where ranks see each other's process
/// numbers, each also holds a pidfd of every other, so that no death has to be told by rank 0.
#pragma once

#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/detail/post_mortem.hpp"
#include "pardl/comm/detail/shm/board.hpp"
#include "pardl/comm/detail/shm/segment.hpp"
#include "pardl/io/posix.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

using Deadline = std::chrono::steady_clock::time_point;

/// What a rank shows at rank 0's door.
struct Hello {
  std::array<std::uint8_t, 16> secret{};
  std::int32_t rank = 0;
};

inline int left_ms(Deadline deadline) {
  auto const left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 1 << 30));
}

/// Waits until something can be read. \returns false at the deadline.
inline bool readable(int descriptor, Deadline deadline) {
  for (;;) {
    ::pollfd look{descriptor, POLLIN, 0};
    int const found = ::poll(&look, 1, left_ms(deadline));
    if (found > 0) return true;
    if (found == 0 || errno != EINTR) return false;
  }
}

[[noreturn]] inline void refuse_meeting(int rank, std::size_t size, std::string const& what) {
  throw CommError(
      sentence("comm", rank, static_cast<int>(size), what, "see what the other ranks say, or name the backend gloo"));
}

/// A message of one byte and one file descriptor, to be sent or to be filled.
struct DescriptorLetter {
  char byte = 1;
  ::iovec data{&byte, 1};
  alignas(::cmsghdr) char room[CMSG_SPACE(sizeof(int))] = {};
  ::msghdr message{};

  DescriptorLetter() {
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = room;
    message.msg_controllen = sizeof room;
  }
  DescriptorLetter(DescriptorLetter const&) = delete;  // the message points into it
  DescriptorLetter& operator=(DescriptorLetter const&) = delete;
};

/// Rank 0's door.
class Door {
 public:
  explicit Door(std::size_t size) : size_(size) {
    socket_ = io::FileDescriptor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    ::sockaddr_un address{};
    address.sun_family = AF_UNIX;
    // An address of the family alone asks the kernel for an abstract name that nobody has.
    if (!socket_ || ::bind(socket_.get(), reinterpret_cast<::sockaddr*>(&address), sizeof(::sa_family_t)) != 0 ||
        ::listen(socket_.get(), static_cast<int>(std::max<std::size_t>(size, 128))) != 0)
      refuse_meeting(0, size, "no Unix socket to meet at: " + io::reason_of(errno));
    ::socklen_t length = sizeof address;
    ::getsockname(socket_.get(), reinterpret_cast<::sockaddr*>(&address), &length);
    name_.assign(address.sun_path, length - offsetof(::sockaddr_un, sun_path));
    if (::getrandom(secret_.data(), secret_.size(), 0) != static_cast<ssize_t>(secret_.size()))
      refuse_meeting(0, size, "the kernel gives no random numbers");
  }

  /// For the store: the socket's name, then the secret.
  [[nodiscard]] std::vector<std::uint8_t> invitation() const {
    std::vector<std::uint8_t> text(secret_.size() + name_.size());
    std::copy(name_.begin(), name_.end(), std::copy(secret_.begin(), secret_.end(), text.begin()));
    return text;
  }

  /// Hands every other rank the memory. \returns their connections, by rank; this one's is empty.
  std::vector<io::FileDescriptor> admit(Segment const& memory, Deadline deadline) {
    std::vector<io::FileDescriptor> guests(size_);
    for (std::size_t come = 1; come < size_;) {
      if (!readable(socket_.get(), deadline)) {
        std::vector<std::string> missing;
        for (std::size_t r = 1; r < size_; ++r)
          if (!guests[r]) missing.push_back(std::to_string(r));
        throw CommTimeout(sentence("comm", 0, static_cast<int>(size_),
                                   "the ranks did not all come for the shared memory; missing: " + listed(missing),
                                   "see whether those ranks were started, and what they said"));
      }
      io::FileDescriptor guest(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!guest) {
        if (errno == EINTR || errno == ECONNABORTED) continue;
        refuse_meeting(0, size_, "no connection of another rank can be taken: " + io::reason_of(errno));
      }
      Hello hello;
      ::ucred who{};
      ::socklen_t length = sizeof who;
      // Whoever is not one of ours is shown out: the memory is for ranks of this user that have read the store.
      if (::getsockopt(guest.get(), SOL_SOCKET, SO_PEERCRED, &who, &length) != 0 || who.uid != ::geteuid() ||
          !readable(guest.get(), std::min(deadline, std::chrono::steady_clock::now() + std::chrono::seconds(5))) ||
          ::recv(guest.get(), &hello, sizeof hello, MSG_DONTWAIT) != sizeof hello || hello.secret != secret_ ||
          hello.rank < 1 || static_cast<std::size_t>(hello.rank) >= size_)
        continue;
      auto& place = guests[static_cast<std::size_t>(hello.rank)];
      if (place || !give(guest.get(), memory.descriptor())) continue;
      place = std::move(guest);
      ++come;
    }
    return guests;
  }

 private:
  static bool give(int to, int descriptor) {
    DescriptorLetter letter;
    auto* const header = CMSG_FIRSTHDR(&letter.message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
    return ::sendmsg(to, &letter.message, MSG_NOSIGNAL) == 1;
  }

  std::size_t size_;
  io::FileDescriptor socket_;
  std::string name_;
  std::array<std::uint8_t, 16> secret_{};
};

/// The other ranks' side of the door: the connection to rank 0, and the memory.
inline std::pair<io::FileDescriptor, io::FileDescriptor> visit(std::vector<std::uint8_t> const& invitation, int rank,
                                                               std::size_t size, Deadline deadline) {
  Hello hello;
  hello.rank = rank;
  ::sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (invitation.size() <= hello.secret.size() || invitation.size() - hello.secret.size() > sizeof address.sun_path)
    refuse_meeting(rank, size, "the store holds no invitation of rank 0 to its shared memory");
  auto const name = invitation.begin() + static_cast<std::ptrdiff_t>(hello.secret.size());
  std::copy_n(invitation.begin(), hello.secret.size(), hello.secret.begin());
  std::copy(name, invitation.end(), address.sun_path);
  auto const length =
      static_cast<::socklen_t>(offsetof(::sockaddr_un, sun_path)) + static_cast<::socklen_t>(invitation.end() - name);
  io::FileDescriptor host(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!host || ::connect(host.get(), reinterpret_cast<::sockaddr*>(&address), length) != 0 ||
      ::send(host.get(), &hello, sizeof hello, MSG_NOSIGNAL) != sizeof hello)
    refuse_meeting(rank, size, "rank 0 cannot be reached for its shared memory: " + io::reason_of(errno));
  DescriptorLetter letter;
  ::cmsghdr* header = nullptr;
  if (!readable(host.get(), deadline) || ::recvmsg(host.get(), &letter.message, MSG_CMSG_CLOEXEC) != 1 ||
      (header = CMSG_FIRSTHDR(&letter.message)) == nullptr || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(int)))
    refuse_meeting(rank, size, "rank 0 has not handed over its shared memory");
  int descriptor = -1;
  std::memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
  return {std::move(host), io::FileDescriptor(descriptor)};
}

/// Who still lives, by what the kernel says.
class Pulse {
 public:
  void watch(std::size_t rank, io::FileDescriptor descriptor) {
    if (!descriptor) return;
    look_.push_back({descriptor.get(), POLLIN, 0});
    ranks_.push_back(rank);
    kept_.push_back(std::move(descriptor));
  }
  /// A rank in a process of its own that this one can see. \param space  in which its number counts
  void watch_process(std::size_t rank, std::int32_t pid, std::uint64_t space) {
#ifdef SYS_pidfd_open
    if (pid == ::getpid() || space != pid_space()) return;
    watch(rank, io::FileDescriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))));
#else
    (void)rank, (void)pid, (void)space;
#endif
  }

  /// Ranks whose process or connection has ended: dead, or gone in good order. \cost one poll(2).
  [[nodiscard]] std::vector<std::size_t> ended() {
    std::vector<std::size_t> found;
    if (look_.empty() || ::poll(look_.data(), look_.size(), 0) <= 0) return found;
    for (std::size_t i = 0; i < look_.size(); ++i)
      if (look_[i].revents != 0) {
        found.push_back(ranks_[i]);
        look_[i].fd = -1;  // told once
      }
    return found;
  }

  static std::uint64_t pid_space() {
    struct ::stat about {};
    return ::stat("/proc/self/ns/pid", &about) == 0 ? static_cast<std::uint64_t>(about.st_ino) : 0;
  }

 private:
  std::vector<::pollfd> look_;
  std::vector<std::size_t> ranks_;
  std::vector<io::FileDescriptor> kept_;
};

/// The memory of a group and the pulse of its ranks. Every rank must call it.
/// \throws CommTimeout, CommError  where ranks do not come.
struct Meeting {
  Ground ground;
  Pulse pulse;
};
inline Meeting gather_at(c10d::Store& store, int rank, Sizes const& sizes, Deadline deadline) {
  auto const me = static_cast<std::size_t>(rank);
  Pulse pulse;
  std::shared_ptr<Segment> segment;
  if (rank == 0) {
    Door door(sizes.ranks);
    segment = Segment::create(sizes.all());
    auto& board = *reinterpret_cast<Board*>(segment->data());
    board.magic = Board::made_by_us;
    board.size = static_cast<std::uint32_t>(sizes.ranks);
    store.set("shm", door.invitation());
    auto guests = door.admit(*segment, deadline);
    for (std::size_t r = 1; r < sizes.ranks; ++r) pulse.watch(r, std::move(guests[r]));
  } else {
    try {
      store.wait({"shm"}, std::chrono::milliseconds(left_ms(deadline)));
    } catch (c10::Error const&) {
      throw CommTimeout(sentence("comm", rank, static_cast<int>(sizes.ranks),
                                 "rank 0 did not come to share its memory in time", "see what rank 0 said last"));
    }
    auto [host, memory] = visit(store.get("shm"), rank, sizes.ranks, deadline);
    segment = Segment::map(std::move(memory), sizes.all());
    pulse.watch(0, std::move(host));
    auto const& board = *reinterpret_cast<Board const*>(segment->data());
    if (board.magic != Board::made_by_us || board.size != sizes.ranks)
      refuse_meeting(rank, sizes.ranks, "the shared memory of rank 0 is of another kind");
  }
  Ground ground(segment, sizes);
  std::memset(static_cast<void*>(ground.outbox(me)), 0, sizes.outbox());  // whoever writes a page first has it near
  auto& seat = ground.seat(me);
  seat.pid = ::getpid();
  seat.pid_space = Pulse::pid_space();
  seat.state.store(present, std::memory_order_seq_cst);
  ground.board().bell.ring();
  for (std::size_t r = 0; r < sizes.ranks; ++r) {
    auto& other = ground.seat(r);
    while (other.state.load(std::memory_order_seq_cst) == absent) {
      if (left_ms(deadline) == 0 || !pulse.ended().empty())
        refuse_meeting(rank, sizes.ranks,
                       "rank " + std::to_string(r) + " has not taken its place in the shared memory");
      ground.board().bell.sleep(std::chrono::milliseconds(50),
                                [&] { return other.state.load(std::memory_order_seq_cst) != absent; });
    }
    pulse.watch_process(r, other.pid, other.pid_space);
  }
  return {std::move(ground), std::move(pulse)};
}

}  // namespace pardl::inline PARDL_ABI::detail::shm
