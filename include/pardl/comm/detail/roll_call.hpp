// SPDX-License-Identifier: MIT
/// \file   One rank's book of operations, and the thread that compares it with the other ranks' when something fails.
/// \layer  comm, private.
///
/// While all is well, the thread asks the store a few times a second whether anybody has failed. When an operation
/// fails here, it leaves a note; when it finds one, it ends this rank's operations at once. Either way every rank that
/// still can puts down where it stands, reads the others', and so can say who has not come.
/// The store's host may be dead or stopped, so nobody but this thread ever talks to the store, and nobody waits for
/// this thread without a limit.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/detail/post_mortem.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/comm/detail/translate.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

using StorePtr = c10::intrusive_ptr<c10d::Store>;

/// What a RollCall is told at the start.
struct RollCallPlan {
  StorePtr store;  ///< private to the group
  int rank = 0;
  int size = 1;
  std::chrono::milliseconds timeout{600'000};
  std::string store_host = "its host";          ///< who serves the store, for a sentence
  std::function<std::string()> transport = {};  ///< why the transport is dead; empty text: it is not
};

class RollCall : public std::enable_shared_from_this<RollCall> {
  using Clock = std::chrono::steady_clock;

 public:
  /// Longest time from a failure to its sentence, beyond the operation's own timeout.
  static constexpr std::chrono::milliseconds grace{2'000};

  static std::shared_ptr<RollCall> start(RollCallPlan plan) {
    std::shared_ptr<RollCall> self(new RollCall(std::move(plan)));
    // Detached, and owner of what it needs: a thread stuck in a dead store must never hold up the end of the group.
    std::thread([self] { self->watch(); }).detach();
    return self;
  }

  /// Enters an operation into the book and gives it its number. \returns the entry, for take().
  /// \param stamp  must live as long as `fail` does.
  /// \param fail  called at most once, by the thread, if others fail first.
  /// \throws CommError, CommTimeout  if the group has failed before.
  std::uint64_t enter(Stamp& stamp, std::function<void(std::exception_ptr)> fail) {
    std::lock_guard lock(mutex_);
    if (verdict_) refuse(stamp);
    if (stamp.timeout.count() < 0) stamp.timeout = timeout_;
    if (stamp.collective) {
      stamp.number = ++issued_;
      recent_[issued_ % remembered] = stamp;
    } else {
      stamp.number = ++messages_;
    }
    auto const entry = ++entries_;
    if (fail) pending_.emplace(entry, Pending{&stamp, std::move(fail)});
    return entry;
  }

  /// Removes an entry. \returns false if it is gone: the operation has been ended with an error already.
  /// \param failed  explain() follows.
  bool take(std::uint64_t entry, bool failed = false) {
    std::lock_guard lock(mutex_);
    if (pending_.erase(entry) == 0) return false;
    ++taken_;
    if (failed) ++explaining_;
    if (idle()) idle_.notify_all();
    return true;
  }

  /// How many operations have ended by themselves.
  [[nodiscard]] std::uint64_t ended() {
    std::lock_guard lock(mutex_);
    return taken_;
  }

  /// Changes how an entry is ended; at once, if it has been ended.
  void replace(std::uint64_t entry, Stamp const& stamp, std::function<void(std::exception_ptr)> fail) {
    std::unique_lock lock(mutex_);
    if (auto const found = pending_.find(entry); found != pending_.end()) {
      found->second = {&stamp, std::move(fail)};
    } else if (verdict_) {
      auto const error = *verdict_;
      lock.unlock();
      fail(error);
    }
  }

  /// The operation was refused before it began, on this rank alone: it never was.
  void withdraw(std::uint64_t entry, Stamp const& stamp) {
    std::lock_guard lock(mutex_);
    pending_.erase(entry);
    if (stamp.collective && issued_ == stamp.number) --issued_;
  }

  /// Turns the transport's error into ours. Leaves the note, waits up to `grace` for what the ranks have to say.
  std::exception_ptr explain(Stamp const& stamp, std::exception_ptr const& cause) {
    Ending ending;
    std::string reason = transport_reason(cause);
    ending.late = reason.find("imed out") != std::string::npos || reason.find("imeout") != std::string::npos;
    ending.phrase = ending.late ? "timed out after " + in_words(stamp.timeout) : "failed: " + reason;
    report({plan_.rank, ending.late, stamp.text() + " " + ending.phrase});
    std::unique_lock lock(mutex_);
    told_.wait_for(lock, grace + std::chrono::seconds(1), [&] { return verdict_ || ended_; });
    if (!verdict_) {
      lock.unlock();
      conclude(no_answer());
      lock.lock();
    }
    if (explaining_ > 0) --explaining_;
    if (idle()) idle_.notify_all();
    bool const late = ending.late || (findings_.note && findings_.note->late);
    return make_error(late, post_mortem(&stamp, ending, plan_.rank, plan_.size, findings_));
  }

  /// Tells the others that this rank cannot go on. Bounded by a second.
  void announce(std::string const& why) noexcept {
    try {
      report({plan_.rank, false, "it failed: " + first_line(why)});
      std::unique_lock lock(mutex_);
      told_.wait_for(lock, std::chrono::seconds(1), [&] { return written_ || verdict_; });
    } catch (...) {  // a rank that is failing has worse to tell
    }
  }

  /// Throws if the group has failed.
  void check() {
    std::lock_guard lock(mutex_);
    if (!verdict_) return;
    heard_ = true;
    std::rethrow_exception(*verdict_);
  }
  /// Throws if the group has failed and no caller has been told.
  void check_unheard() {
    if (!heard_) check();
  }
  /// Of operations begun from now on.
  void set_timeout(std::chrono::milliseconds timeout) {
    std::lock_guard lock(mutex_);
    timeout_ = timeout;
  }

  /// A caller has been told that the group has failed.
  void heard() noexcept { heard_ = true; }
  [[nodiscard]] bool failed() {
    std::lock_guard lock(mutex_);
    return verdict_.has_value();
  }

  /// Waits until no operation is under way. \returns false if that took longer, or the group has failed.
  bool drain(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    return idle_.wait_for(lock, limit, [&] { return idle() || verdict_; }) && !verdict_;
  }

  /// Ends the thread: it says good-bye in the store. Bounded by a second.
  void stop() {
    std::unique_lock lock(mutex_);
    stop_ = true;
    wake_.notify_all();
    told_.wait_for(lock, std::chrono::seconds(1), [&] { return ended_; });
  }

 private:
  struct Pending {
    Stamp const* stamp;  ///< owned by what `fail` owns
    std::function<void(std::exception_ptr)> fail;
  };
  static constexpr std::size_t remembered = 64;

  explicit RollCall(RollCallPlan plan) : plan_(std::move(plan)), timeout_(plan_.timeout) {}

  [[nodiscard]] bool idle() const { return pending_.empty() && explaining_ == 0; }

  static std::exception_ptr make_error(bool late, std::string const& text) {
    return late ? std::make_exception_ptr(CommTimeout(text)) : std::make_exception_ptr(CommError(text));
  }

  /// Gloo's own messages begin with the place in its sources.
  static std::string transport_reason(std::exception_ptr const& cause) {
    std::string reason = reason_of(cause);
    if (reason.starts_with('['))
      if (auto const end = reason.find("] "); end != std::string::npos) reason.erase(0, end + 2);
    return reason.substr(0, reason.find(". This is typically"));  // advice that ours replaces
  }

  [[noreturn]] void refuse(Stamp const& stamp) {
    heard_ = true;
    std::string const what = std::string(stamp.name) + " was refused, since the group has failed: ";
    std::string const why = findings_.note
                                ? "rank " + std::to_string(findings_.note->rank) + " says " + findings_.note->phrase
                                : first_line(reason_of(*verdict_));
    std::string const text =
        sentence("comm", plan_.rank, plan_.size, what + why, "mend that rank, then start all anew");
    if (findings_.note && findings_.note->late) throw CommTimeout(text);
    throw CommError(text);
  }

  void report(Note note) {
    std::lock_guard lock(mutex_);
    if (!note_) note_ = std::move(note);
    wake_.notify_all();
  }

  // ---- the thread ----

  void watch() noexcept {
    StorePtr store;
    try {
      store = plan_.store->clone();  // a connection of its own: the group's may be busy waiting
    } catch (...) {
      store = plan_.store;
    }
    // A thousand ranks must not wear out one store.
    auto const interval = std::chrono::milliseconds(std::clamp(plan_.size, 100, 1'000));
    bool reachable = true;
    for (;;) {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, interval, [&] { return stop_ || note_; });
      bool const local = note_.has_value();
      if (stop_ && !local) break;
      if (verdict_) break;
      lock.unlock();
      try {
        if (!local && plan_.transport)
          if (auto const dead = plan_.transport(); !dead.empty())
            report({plan_.rank, dead.find("timed out") != std::string::npos, "the transport failed: " + dead});
        if (!has_note() && (!reachable || !store->check({"note"}))) continue;
        investigate(*store);
        break;
      } catch (...) {
        // The store is gone. That alone fails nobody: the launcher, or the next operation, will.
        reachable = false;
        if (!has_note()) continue;
        conclude(no_answer());
        break;
      }
    }
    try {
      bool const leave = [&] {
        std::lock_guard lock(mutex_);
        return !verdict_;
      }();
      if (leave && reachable) publish(*store, true);
    } catch (...) {
    }
    store.reset();
    std::lock_guard lock(mutex_);
    ended_ = true;
    told_.notify_all();
  }

  bool has_note() {
    std::lock_guard lock(mutex_);
    return note_.has_value();
  }

  Findings no_answer() {
    std::lock_guard lock(mutex_);
    return {.answered = false, .store = plan_.store_host, .note = note_, .ranks = {}};
  }

  Status status(bool leaving) {
    std::lock_guard lock(mutex_);
    Status status;
    status.issued = issued_;
    status.left = leaving;
    for (auto const& [entry, pending] : pending_)
      if (pending.stamp->collective) status.busy = true;
    if (issued_ > 0) status.last = recent_[issued_ % remembered].text();
    // One fewer than the ring holds: an operation withdrawn has overwritten the oldest.
    for (auto n = issued_ - std::min<std::uint64_t>(issued_, remembered - 1) + 1; n <= issued_; ++n)
      status.recent.emplace_back(n, recent_[n % remembered].agreement());
    return status;
  }

  void publish(c10d::Store& store, bool leaving) {
    std::string const line = status(leaving).encode(plan_.rank);
    if (store.hasExtendedApi())
      store.append("roll", {line.begin(), line.end()});
    else
      store.set("roll/" + std::to_string(plan_.rank), line);
  }

  /// Reads whatever ranks have put down since.
  void read_roll(c10d::Store& store, std::map<int, Status>& ranks) {
    std::string text;
    if (store.hasExtendedApi()) {
      text = store.get_to_str("roll");  // there: this rank has written its own
    } else {
      for (int r = 0; r < plan_.size; ++r)
        if (std::string const key = "roll/" + std::to_string(r); !ranks.contains(r) && store.check({key}))
          text += store.get_to_str(key);
    }
    for (auto const& line : split_text(text, '\n'))
      if (auto status = Status::decode(line)) ranks.insert_or_assign(status->first, std::move(status->second));
  }

  Note leave_note(c10d::Store& store, Note const& mine) {
    std::string const text = mine.encode();
    try {
      return Note::decode(store.compareSet("note", std::string(), text)).value_or(mine);
    } catch (c10::NotImplementedError const&) {  // a FileStore: the last one to write wins, which serves as well
      if (!store.check({"note"})) store.set("note", text);
      return Note::decode(store.get_to_str("note")).value_or(mine);
    }
  }

  void investigate(c10d::Store& store) {
    std::optional<Note> mine;
    {
      std::lock_guard lock(mutex_);
      mine = note_;
    }
    Findings findings{.answered = true, .store = plan_.store_host, .note = std::nullopt, .ranks = {}};
    if (mine)
      findings.note = leave_note(store, *mine);
    else
      findings.note = Note::decode(store.get_to_str("note"));
    publish(store, false);
    {
      std::lock_guard lock(mutex_);
      written_ = true;
      told_.notify_all();
    }
    auto const until = Clock::now() + grace;
    do {
      read_roll(store, findings.ranks);
      if (findings.ranks.size() == static_cast<std::size_t>(plan_.size)) break;
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, std::chrono::milliseconds(50), [&] { return stop_; });
      if (stop_) break;
    } while (Clock::now() < until);
    conclude(std::move(findings));
  }

  /// The group has failed: says so, and ends what is under way.
  void conclude(Findings findings) {
    std::unique_lock lock(mutex_);
    if (verdict_) return;
    findings_ = std::move(findings);
    bool const late = findings_.note && findings_.note->late;
    Ending const ending{.phrase = findings_.note ? findings_.note->phrase : "the group has failed", .late = late};
    verdict_ = make_error(late, post_mortem(nullptr, ending, plan_.rank, plan_.size, findings_));
    auto ended = std::exchange(pending_, {});
    told_.notify_all();
    idle_.notify_all();
    lock.unlock();  // what waits on these operations may begin others; findings_ never changes again
    for (auto& [entry, pending] : ended)
      pending.fail(make_error(late, post_mortem(pending.stamp, {}, plan_.rank, plan_.size, findings_)));
  }

  RollCallPlan const plan_;
  std::chrono::milliseconds timeout_;
  std::mutex mutex_;
  std::condition_variable wake_;  ///< the thread has something to do
  std::condition_variable told_;  ///< the thread has something to tell
  std::condition_variable idle_;  ///< nothing is under way
  std::uint64_t issued_ = 0, messages_ = 0, entries_ = 0, taken_ = 0;
  std::vector<Stamp> recent_ = std::vector<Stamp>(remembered, Stamp(""));  ///< a ring, by number
  std::map<std::uint64_t, Pending> pending_;
  std::optional<Note> note_;  ///< this rank's own failure, to be left in the store
  Findings findings_;
  std::optional<std::exception_ptr> verdict_;
  int explaining_ = 0;  ///< operations that have failed and whose sentence is being made
  std::atomic<bool> heard_{false};
  bool stop_ = false, written_ = false, ended_ = false;
};

}  // namespace pardl::inline PARDL_ABI::detail
