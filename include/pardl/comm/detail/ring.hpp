// SPDX-License-Identifier: MIT
/// \file   Carries out a RingSchedule by the sends and receives of a group, over a host transport or on a CUDA stream.
/// \layer  comm, private.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>
#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <tuple>
#include <utility>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/detail/checks.hpp"
#include "pardl/comm/detail/roll_call.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/comm/detail/traced_backend.hpp"
#include "pardl/comm/detail/translate.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/comm/work.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/ring_schedule.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// into = so_far (op) into, element by element, in this order, each result rounded to the tensors' dtype. `avg` adds.
inline void combine(torch::Tensor into, torch::Tensor const& so_far, ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::avg:
      at::add_out(into, so_far, into);
      return;
    case ReduceOp::min:
      at::minimum_out(into, so_far, into);
      return;
    case ReduceOp::max:
      at::maximum_out(into, so_far, into);
      return;
    case ReduceOp::product:
      at::mul_out(into, so_far, into);
      return;
    case ReduceOp::band:
      at::bitwise_and_out(into, so_far, into);
      return;
    case ReduceOp::bor:
      at::bitwise_or_out(into, so_far, into);
      return;
    case ReduceOp::bxor:
      at::bitwise_xor_out(into, so_far, into);
      return;
  }
}

/// Some dtypes can be moved but not added: better to hear of it before anything is sent. Tried once a thread, since to
/// try takes longer than a small sum.
inline void check_combines(ProcessGroup const& world, char const* op, torch::Tensor const& tensor, ReduceOp reduce) {
  using Known = std::tuple<c10::DeviceType, c10::ScalarType, ReduceOp>;
  static thread_local std::set<Known> combined;
  Known const asked{tensor.device().type(), tensor.scalar_type(), reduce};
  if (combined.contains(asked)) return;
  try {
    auto const one = torch::zeros({1}, tensor.options().requires_grad(false));
    combine(one.clone(), one, reduce);
    combined.insert(asked);
  } catch (c10::Error const& e) {
    refuse_argument(world, op,
                    "LibTorch cannot combine " + std::string(c10::getDtypeNames(tensor.scalar_type()).first) +
                        " by this operation: " + first_line(e.what_without_backtrace()),
                    "convert the tensor first");
  }
}

/// The elements in the order of memory, as one dimension: an alias of a dense tensor, whatever its layout.
inline torch::Tensor flat_alias(torch::Tensor const& tensor) {
  return tensor.detach().as_strided({tensor.numel()}, {1}, tensor.storage_offset());
}

inline c10d::Backend* backend_of(ProcessGroup const& world, torch::Tensor const& tensor) {
  try {
    return world.c10d()->getBackend(tensor.device().type()).get();
  } catch (c10::Error const&) {  // a group of a kind without backends
    return nullptr;
  }
}

/// Whether messages are put on a stream, several as one (NCCL): then nothing here blocks the host.
inline bool coalesces_messages(ProcessGroup const& world, torch::Tensor const& tensor) {
  auto const* backend = backend_of(world, tensor);
  return backend && backend->supportsCoalescing();
}

/// What the failure of a message says, without who says it, what others say, and what to do: "recv #3 from rank 2 (tag
/// 7, float32[4]) failed: Connection closed by peer".
inline std::string bare_cause(std::string_view text) {
  if (auto const head = text.find(": "); text.starts_with("[comm] rank ") && head != std::string_view::npos)
    text.remove_prefix(head + 2);
  for (std::string_view const rest : {"; ", ": rank ", ", since the group"}) text = text.substr(0, text.find(rest));
  return std::string(text);
}

/// An operation that is made of messages, in the group's book: it has a number, among the collectives or, over shared
/// memory, of its own, and an error can say which ranks have not come to it. A group that was adopted has no book.
class BookEntry {
 public:
  /// \throws CommError, CommTimeout  if the group has failed before.
  BookEntry(ProcessGroup const& world, Stamp const& stamp) : stamp_(std::make_shared<Stamp>(stamp)) {
    auto const* const backend = any_backend(world);
    if (auto const* const shm = dynamic_cast<ShmBackend const*>(backend)) {
      engine_ = shm->engine().shared_from_this();
      stamp_->number = engine_->begin_composed(*stamp_);
      return;
    }
    auto const* const traced = dynamic_cast<TracedBackend const*>(backend);
    if (!traced) return;
    roll_ = traced->roll().shared_from_this();
    // Nothing to end when another rank fails: the message under way is.
    entry_ = roll_->enter(*stamp_, [kept = stamp_](std::exception_ptr const&) {});
  }
  BookEntry(BookEntry const&) = delete;
  BookEntry& operator=(BookEntry const&) = delete;
  ~BookEntry() {
    if (engine_) engine_->end_composed();
    if (roll_) roll_->take(entry_);
  }

  /// The sentence of the operation whose message has failed.
  /// \param cause  what the message's failure says. \param place  where the operation was.
  [[nodiscard]] std::string explain(ProcessGroup const& world, std::string const& cause, std::string const& place) {
    std::string const subject = std::string(stamp_->name) + " (" + stamp_->subject() + ")";
    if (!roll_ && !engine_)
      return sentence("comm", world.rank(), world.size(), subject + " in " + place + ": " + bare_cause(cause),
                      "see what the other ranks said last");
    if (roll_) roll_->take(entry_, /*failed=*/true);
    auto text = reason_of(engine_ ? engine_->explain_composed(*stamp_, bare_cause(cause))
                                  : roll_->explain(*stamp_, std::make_exception_ptr(CommError(bare_cause(cause)))));
    auto const name = stamp_->text();
    if (auto const at = text.find(name); at != std::string::npos) text.insert(at + name.size(), " in " + place);
    return sentence_ended(std::move(text));
  }

 private:
  static std::string sentence_ended(std::string text) {
    if (!text.ends_with('.')) text += '.';  // reason_of() takes it off
    return text;
  }
  static c10d::Backend const* any_backend(ProcessGroup const& world) {
    try {
      return world.c10d()->getDefaultBackend().get();
    } catch (c10::Error const&) {
      return nullptr;
    }
  }

  std::shared_ptr<Stamp> stamp_;
  std::shared_ptr<RollCall> roll_;
  std::shared_ptr<shm::Engine> engine_;
  std::uint64_t entry_ = 0;
};

/// One all-reduce of a flat tensor, in place, on two ranks or more.
///
/// Each move posts its receive before its send, so that a transport that cannot buffer a message (Gloo sends nothing
/// before the receiver has posted) always finds a receiver: no rank ever waits for an event that is not earlier, in the
/// order of moves, than its own.
class RingRun {
 public:
  RingRun(ProcessGroup const& world, torch::Tensor flat, ReduceOp op, RingSchedule const& schedule, int tag)
      : world_(world),
        flat_(std::move(flat)),
        op_(op),
        schedule_(schedule),
        tag_(tag),
        coalesced_(coalesces_messages(world, flat_)) {
    for (std::int64_t i = 0; i <= schedule_.lookahead(); ++i)
      scratch_.at(static_cast<std::size_t>(i)) = torch::empty({schedule_.widest()}, flat_.options());
  }
  RingRun(RingRun const&) = delete;
  RingRun& operator=(RingRun const&) = delete;
  ~RingRun() = default;

  void run() {
    // Without autograd's layers of the dispatcher, which take as long as a short message; it hears of the change once.
    at::AutoDispatchBelowADInplaceOrView const below;
    auto const moves = schedule_.size();
    for (std::int64_t i = 0, posted = 0; i < moves; ++i) {
      for (auto const until = std::min(i + 1 + schedule_.lookahead(), moves); posted < until; ++posted) post(posted);
      take(i);
    }
    send_out(moves);  // the caller may write the tensor again
    if (!flat_.is_inference()) flat_.unsafeGetTensorImpl()->bump_version();
  }

  /// Where it is, in words: "reduce-scatter step 2 of 3".
  [[nodiscard]] std::string place() const {
    auto const move = schedule_[at_];
    return std::string(move.phase == RingPhase::reduce_scatter ? "reduce-scatter" : "all-gather") + " step " +
           std::to_string(move.step + 1) + " of " + std::to_string(schedule_.group().size() - 1);
  }

 private:
  /// More than these are not left under way: each is a buffer registered with the transport.
  static constexpr std::int64_t most_sends = 4;

  /// What is under way for a move that has been begun.
  struct Slot {
    Work receive;
    Work group;  ///< of a coalesced send and receive
  };

  [[nodiscard]] std::size_t slot(std::int64_t i) const {
    return static_cast<std::size_t>(i % (schedule_.lookahead() + 1));
  }
  [[nodiscard]] torch::Tensor piece(ElementRange range) const { return flat_.narrow(0, range.begin, range.size); }
  [[nodiscard]] torch::Tensor landing(std::int64_t i, RingMove const& move) const {
    if (move.phase == RingPhase::all_gather) return piece(move.receive);
    return scratch_.at(slot(i)).narrow(0, 0, move.receive.size);
  }

  void post(std::int64_t i) {
    at_ = i;
    auto const move = schedule_[i];
    send_out(std::max(schedule_.overwrites(i) + 1, i - most_sends));
    auto& under_way = slots_.at(slot(i));
    under_way = {};
    auto const device = flat_.device().type();
    // Also where both messages are empty: the group counts its coalesced operations, alike on every rank.
    if (coalesced_) translated([&] { world_.c10d()->startCoalescing(device); });
    Work receive, send;
    if (move.receive.size > 0) receive = recv(world_, landing(i, move), schedule_.previous(), tag_);
    if (move.send.size > 0) send = pardl::send(world_, piece(move.send), schedule_.next(), tag_);
    if (coalesced_) {
      under_way.group = Work(translated([&] { return world_.c10d()->endCoalescing(device); }));
    } else {
      under_way.receive = std::move(receive);
      sends_.push_back(std::move(send));
    }
  }

  /// Until move i has been received: then sums.
  void take(std::int64_t i) {
    at_ = i;
    auto const move = schedule_[i];
    slots_.at(slot(i)).receive.wait();
    slots_.at(slot(i)).group.wait();
    if (move.phase == RingPhase::all_gather || move.receive.size == 0) return;
    auto const mine = piece(move.receive);
    combine(mine, landing(i, move), op_);
    if (op_ == ReduceOp::avg && schedule_.completes(i)) torch::Tensor(mine).div_(world_.size());
  }

  /// Until the sends of the moves before `end` have gone. A stream keeps them in order by itself.
  void send_out(std::int64_t end) {
    for (; first_send_ < end && !sends_.empty(); ++first_send_) {
      sends_.front().wait();
      sends_.pop_front();
    }
  }

  ProcessGroup const& world_;
  torch::Tensor flat_;
  ReduceOp op_;
  RingSchedule schedule_;
  int tag_;
  bool coalesced_;
  std::array<torch::Tensor, 2> scratch_;  ///< what is received and not yet added
  std::array<Slot, 2> slots_;
  std::deque<Work> sends_;
  std::int64_t first_send_ = 0;  ///< the move whose send is sends_.front()
  std::int64_t at_ = 0;
};

/// An all-reduce in a ring that has been checked and has its number. Made where the order among the group's operations
/// is decided, it may be run on another thread.
class RingOperation {
 public:
  /// \throws ConfigError for what cannot be combined; CommError, CommTimeout if the group has failed before.
  RingOperation(ProcessGroup world, torch::Tensor const& tensor, ReduceOp op, std::int64_t segment_bytes, int tag)
      : world_(std::move(world)), flat_(checked(world_, tensor, op)), op_(op), tag_(tag) {
    if (segment_bytes < 0 || tag < 0)
      refuse_argument(world_, name,
                      "segment_bytes is " + std::to_string(segment_bytes) + " and tag " + std::to_string(tag),
                      "neither may be negative");
    if (world_.size() == 1 || flat_.numel() == 0) return;
    auto const most = segment_bytes == 0 ? 0 : std::max<std::int64_t>(1, segment_bytes / flat_.element_size());
    segments_ = ring_segments(flat_.numel(), world_.size(), most);
    entry_ = std::make_unique<BookEntry>(world_, Stamp(name, tensor).alike().within(world_.timeout()));
  }
  RingOperation(RingOperation const&) = delete;
  RingOperation& operator=(RingOperation const&) = delete;
  ~RingOperation() = default;

  /// Once. \throws CommError, CommTimeout
  void run() {
    if (!entry_) return;  // nobody to combine with, or nothing
    if (flat_.is_cpu() || coalesces_messages(world_, flat_)) {
      carry_out(flat_);
    } else {
      auto const host = flat_.cpu();
      carry_out(host);
      flat_.copy_(host);
    }
    entry_.reset();
  }

 private:
  static constexpr char const* name = "ring_all_reduce";

  static torch::Tensor checked(ProcessGroup const& world, torch::Tensor const& tensor, ReduceOp op) {
    check_tensor(world, name, tensor, Layout::dense);
    check_op(world, name, tensor, op);
    check_combines(world, name, tensor, op);
    return flat_alias(tensor);
  }

  void carry_out(torch::Tensor const& flat) {
    RingRun ring(world_, flat, op_, RingSchedule(flat.numel(), world_, segments_), tag_);
    try {
      translated([&] { ring.run(); });
    } catch (CommTimeout const& e) {
      throw CommTimeout(entry_->explain(world_, e.what(), ring.place()));
    } catch (CommError const& e) {
      throw CommError(entry_->explain(world_, e.what(), ring.place()));
    }
  }

  ProcessGroup world_;
  torch::Tensor flat_;
  ReduceOp op_;
  int tag_;
  std::int64_t segments_ = 1;
  std::unique_ptr<BookEntry> entry_;  ///< null: there is nothing to do
};

}  // namespace pardl::inline PARDL_ABI::detail
