// SPDX-License-Identifier: MIT
/// \file   Messages between two ranks: a channel each way, tags, and a shelf for what nobody has asked for yet.
/// \layer  comm, private.
///
/// A message is a head and its bytes, which flow through a ring of fixed size as the receiver takes them out. One whose
/// tag nobody waits for goes to the receiver's own memory, as soon as that rank waits for another message or its own
/// sends do not get on. So no order of sends and receives blocks: all ranks may send first, however much.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pardl/comm/detail/shm/board.hpp"
#include "pardl/comm/detail/shm/row.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

/// One send or receive.
struct Message {
  Row row;
  int peer = -1;  ///< -1: whoever sends with this tag
  int tag = 0;
  std::uint8_t dtype = 0;
  std::size_t done = 0;  ///< bytes so far, the head's included
  bool over = false;
};

class Mailbox {
  struct alignas(16) Head {
    std::uint64_t bytes;
    std::int32_t tag;
    std::uint32_t dtype;
  };
  static constexpr std::size_t grain = sizeof(Head);  // records are multiples, so a head never wraps

 public:
  Mailbox(Ground const& ground, std::size_t rank)
      : ground_(ground), me_(rank), outgoing_(ground.sizes().ranks), incoming_(ground.sizes().ranks) {}

  void send(std::shared_ptr<Message> message) {
    outgoing_[static_cast<std::size_t>(message->peer)].push_back(std::move(message));
    ++pending_;
  }
  void receive(std::shared_ptr<Message> message) {
    ++pending_;
    for (std::size_t from = 0; from < incoming_.size(); ++from) {
      if (message->peer >= 0 && static_cast<std::size_t>(message->peer) != from) continue;
      auto& shelf = incoming_[from].shelf;
      for (auto at = shelf.begin(); at != shelf.end(); ++at)
        if ((*at)->tag == message->tag && !(*at)->wanted) {
          (*at)->wanted = std::move(message);
          (*at)->wanted->peer = static_cast<int>(from);
          hand_over(from, at);
          return;
        }
    }
    wanted_.push_back(std::move(message));
  }

  /// \returns whether bytes were moved.
  bool advance() {
    if (pending_ == 0) return false;
    bool moved = false, stuck = false;
    for (std::size_t peer = 0; peer < outgoing_.size(); ++peer) {
      if (outgoing_[peer].empty()) continue;
      moved |= push(peer);
      stuck |= !outgoing_[peer].empty();
    }
    for (std::size_t peer = 0; peer < incoming_.size(); ++peer)
      if (stuck || !wanted_.empty() || incoming_[peer].target || !incoming_[peer].shelf.empty()) moved |= pull(peer);
    return moved;
  }
  /// Touches none of the messages' memory any more: their callers have been told that all is over.
  void close() {
    for (auto& queue : outgoing_) queue.clear();
    for (auto& in : incoming_) in.target = nullptr;
    for (auto& in : incoming_) in.shelf.clear();
    wanted_.clear();
    pending_ = 0;
  }
  /// Whether a message that is under way cannot go on without its other rank: its channel is full, or empty.
  [[nodiscard]] bool stuck(Message const& message) const {
    if (message.peer < 0 || message.over) return false;
    auto const peer = static_cast<std::size_t>(message.peer);
    auto const sends = std::any_of(outgoing_[peer].begin(), outgoing_[peer].end(),
                                   [&](auto const& other) { return other.get() == &message; });
    auto const& channel = sends ? ground_.channel(me_, peer) : ground_.channel(peer, me_);
    auto const filled = channel.written.load(std::memory_order_acquire) - channel.read.load(std::memory_order_acquire);
    return sends ? filled + sizeof(Head) > ground_.sizes().channel : filled == 0;
  }
  /// Whether no rank's channel holds anything for this one.
  [[nodiscard]] bool silent() const {
    for (std::size_t from = 0; from < incoming_.size(); ++from) {
      auto const& channel = ground_.channel(from, me_);
      if (channel.written.load(std::memory_order_acquire) != channel.read.load(std::memory_order_acquire)) return false;
    }
    return true;
  }
  /// What a sender and a receiver mean otherwise, once that is found; empty: nothing.
  [[nodiscard]] std::string const& odd() const noexcept { return odd_; }

 private:
  struct Shelved {
    int tag;
    std::uint32_t dtype;
    std::vector<std::byte> bytes;
    std::shared_ptr<Message> wanted;  ///< who asked for it meanwhile
    bool whole = false;
  };
  using Shelf = std::deque<std::shared_ptr<Shelved>>;
  struct Incoming {
    Head head{};
    std::uint64_t left = 0;           ///< bytes of the present message, its padding not counted
    std::shared_ptr<Message> target;  ///< who gets it; null: the last on the shelf
    bool busy = false;
    Shelf shelf;
  };

  static std::size_t padded(std::uint64_t bytes) { return rounded_up(bytes, grain); }

  bool push(std::size_t to) {
    auto& channel = ground_.channel(me_, to);
    auto const capacity = ground_.sizes().channel;
    std::byte* const ring = ground_.mail(me_, to);
    auto written = channel.written.load(std::memory_order_relaxed);
    auto const start = written;
    auto room = capacity - (written - channel.read.load(std::memory_order_acquire));
    auto& queue = outgoing_[to];
    while (!queue.empty() && room > 0) {
      auto& message = *queue.front();
      auto const size = message.row.size();
      if (message.done == 0) {
        if (room < sizeof(Head)) break;
        Head const head{size, message.tag, message.dtype};
        std::memcpy(ring + written % capacity, &head, sizeof head);
        message.done = sizeof head, written += sizeof head, room -= sizeof head;
      }
      while (room > 0 && message.done < grain + padded(size)) {
        auto const at = written % capacity;
        auto const bytes = std::min({room, capacity - at, grain + padded(size) - message.done});
        message.row.read(message.done - grain, bytes, ring + at);
        message.done += bytes, written += bytes, room -= bytes;
      }
      if (message.done < grain + padded(size)) break;
      message.over = true;
      --pending_;
      queue.pop_front();
    }
    if (written == start) return false;
    channel.written.store(written, std::memory_order_seq_cst);
    ground_.board().bell.ring();
    return true;
  }

  bool pull(std::size_t from) {
    auto& channel = ground_.channel(from, me_);
    auto const capacity = ground_.sizes().channel;
    std::byte const* const ring = ground_.mail(from, me_);
    auto read = channel.read.load(std::memory_order_relaxed);
    auto const start = read, written = channel.written.load(std::memory_order_acquire);
    auto& in = incoming_[from];
    while (read < written) {
      if (!in.busy) {
        std::memcpy(&in.head, ring + read % capacity, sizeof in.head);
        read += sizeof in.head;
        if (!open(from)) break;
      }
      while (in.left > 0 && read < written) {
        auto const at = read % capacity;
        auto const bytes = std::min<std::uint64_t>({written - read, capacity - at, in.left});
        auto const done = in.head.bytes - in.left;
        if (in.target)
          in.target->row.write(done, bytes, ring + at);
        else
          std::memcpy(in.shelf.back()->bytes.data() + done, ring + at, bytes);
        read += bytes, in.left -= bytes;
      }
      if (in.left > 0) break;
      read = rounded_up(read, grain);  // counters begin at 0 and every record is padded
      in.busy = false;
      if (in.target) {
        finish(std::exchange(in.target, nullptr));
      } else {
        in.shelf.back()->whole = true;
        hand_over(from, std::prev(in.shelf.end()));
      }
    }
    if (read == start) return false;
    channel.read.store(read, std::memory_order_seq_cst);
    ground_.board().bell.ring();
    return true;
  }

  /// A message has come: finds who wants it, or a place on the shelf.
  bool open(std::size_t from) {
    auto& in = incoming_[from];
    in.busy = true;
    in.left = in.head.bytes;
    auto const found = std::find_if(wanted_.begin(), wanted_.end(), [&](auto const& message) {
      return message->tag == in.head.tag && (message->peer < 0 || static_cast<std::size_t>(message->peer) == from);
    });
    if (found == wanted_.end()) {
      in.shelf.push_back(std::make_shared<Shelved>(
          Shelved{in.head.tag, in.head.dtype, std::vector<std::byte>(in.head.bytes), nullptr}));
      return true;
    }
    in.target = std::move(*found);
    wanted_.erase(found);
    in.target->peer = static_cast<int>(from);
    return fits(from, *in.target, in.head.bytes, in.head.dtype);
  }

  /// To who has asked for it, once both are there.
  void hand_over(std::size_t from, Shelf::iterator at) {
    auto const& shelved = **at;
    if (!shelved.wanted || !shelved.whole) return;
    if (!fits(from, *shelved.wanted, shelved.bytes.size(), shelved.dtype)) return;
    shelved.wanted->row.write(0, shelved.bytes.size(), shelved.bytes.data());
    finish(shelved.wanted);
    incoming_[from].shelf.erase(at);
  }

  bool fits(std::size_t from, Message const& message, std::uint64_t bytes, std::uint32_t dtype) {
    if (bytes == message.row.size() && dtype == message.dtype) return true;
    odd_ = "rank " + std::to_string(from) + " sends " + std::to_string(bytes) + " bytes with tag " +
           std::to_string(message.tag) + ", this rank receives " + std::to_string(message.row.size()) +
           (dtype == message.dtype ? "" : " of another dtype");
    return false;
  }
  void finish(std::shared_ptr<Message> const& message) {
    message->over = true;
    --pending_;
  }

  Ground const& ground_;
  std::size_t me_;
  std::vector<std::deque<std::shared_ptr<Message>>> outgoing_;  // by receiver
  std::vector<Incoming> incoming_;                              // by sender
  std::deque<std::shared_ptr<Message>> wanted_;                 // in the order of the calls
  std::size_t pending_ = 0;
  std::string odd_;
};

}  // namespace pardl::inline PARDL_ABI::detail::shm
