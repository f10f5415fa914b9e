// SPDX-License-Identifier: MIT
/// \file   A rank's operations over shared memory: their order, who moves them on, and how they end when a rank fails.
/// \layer  comm, private.
///
/// Whoever calls an operation, waits for one or asks for its future moves all of this rank's operations on, as far as
/// they can go without waiting. Where each rank has a core to spare, a thread does so too while nobody waits; and where
/// not, as soon as somebody in the process sleeps for another group's, since ranks may wait for the two in any order.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>
#include <c10/util/accumulate.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "pardl/comm/detail/post_mortem.hpp"
#include "pardl/comm/detail/shm/board.hpp"
#include "pardl/comm/detail/shm/call.hpp"
#include "pardl/comm/detail/shm/collective.hpp"
#include "pardl/comm/detail/shm/messages.hpp"
#include "pardl/comm/detail/shm/peers.hpp"
#include "pardl/comm/detail/shm/register.hpp"
#include "pardl/comm/detail/shm/verdict.hpp"
#include "pardl/comm/detail/shm/work.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/comm/detail/translate.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

/// Who moves operations on.
enum class Progress : std::uint8_t {
  automatic,  ///< a thread where this rank has two cores or more to itself, else the caller
  caller,     ///< calls into the backend, and a thread only while one sleeps for another group; an operation that
              ///< somebody chains on is over when its future is there
  thread      ///< a thread of each group too, so that operations go on while nobody waits
};

class Engine : public std::enable_shared_from_this<Engine> {
 public:
  struct Plan {
    int rank = 0;
    int size = 1;
    std::chrono::milliseconds timeout{600'000};
    Progress progress = Progress::caller;
    int looks = 2'000;  ///< before it sleeps
  };

  Engine(Meeting meeting, Plan plan)
      : plan_(plan),
        process_(::getpid()),
        timeout_(plan.timeout),
        ground_(std::move(meeting.ground)),
        verdict_(ground_, plan.rank, plan.size),
        pulse_(std::move(meeting.pulse)),
        mover_(ground_, static_cast<std::size_t>(plan.rank)),
        mail_(ground_, static_cast<std::size_t>(plan.rank)) {}
  Engine(Engine const&) = delete;
  Engine& operator=(Engine const&) = delete;

  [[nodiscard]] Sizes const& sizes() const noexcept { return ground_.sizes(); }
  [[nodiscard]] std::uint64_t issued() const noexcept { return issued_; }

  /// \throws CommError, CommTimeout where the group has failed before.
  void start(WorkHandle const& work) {
    {
      std::lock_guard const lock(mutex_);
      auto& stamp = work->stamp;
      if (verdict_.given() || ended_) heard_ = true, verdict_.refuse(stamp);
      if (stamp.timeout.count() < 0) stamp.timeout = timeout_;
      work->deadline = from_now(stamp.timeout);
      if (work->message) {
        if (work->before) std::exchange(work->before, nullptr)();
        stamp.number = ++messages_;
        bool const sends = std::string_view(stamp.name) == "send";
        letters_.push_back(work);
        sends ? mail_.send(work->message) : mail_.receive(work->message);
      } else {
        stamp.number = ++issued_;
        queue_.push_back(work);
      }
    }
    (void)drive();
    if (plan_.progress == Progress::thread && !work->over()) wake_helper();
  }
  /// Others must be able to find it. Once, before the first operation.
  void enrol() { Register::present().insert(weak_from_this()); }
  /// Gives operations that nobody waits for a thread, before the present one waits for something else.
  /// \param waited  the engine that this thread moves on itself
  static void move_on_all_but(Engine const* waited) noexcept {
    for (auto const& engine : Register::present().all())
      if (engine.get() != waited && engine->unattended()) engine->wake_helper();
  }

  /// Moves operations on. \returns whether any was; false also while another thread does it.
  bool drive() {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return false;
    Ended ended;
    bool const moved = step(ended);
    lock.unlock();
    finish(ended);
    return moved;
  }

  /// Moves operations on, and looks up from them now and then, for whoever asks again and again instead of waiting.
  void look_in() {
    if (drive()) return;
    auto const now = Clock::now().time_since_epoch().count();
    auto last = looked_.load(std::memory_order_relaxed);
    if (now - last < Clock::duration(doze_limit).count() || !looked_.compare_exchange_strong(last, now)) return;
    if (std::unique_lock lock(mutex_, std::try_to_lock); lock) look_after(lock);
    (void)drive();
  }

  /// Until the work is over. \throws what it ended with; CommTimeout at the caller's own limit, if it has one.
  void wait(ShmWork& work, std::chrono::milliseconds limit) {
    bring_to_end(work, limit);
    if (auto const error = work.exception()) {
      heard_ = true;
      std::rethrow_exception(error);
    }
  }
  /// \param limit  of the caller's patience; none: the operation's own holds.
  void bring_to_end(ShmWork& work, std::chrono::milliseconds limit = {}) {
    auto const until = from_now(limit);
    Attendance const attends(attendants_);
    constexpr int turns = 256;  // before it looks up from what keeps it busy, which may be others' messages without end
    for (int look = 0, turn = 0; !work.over();) {
      if (drive()) {
        look = 0;
        if (++turn < turns) continue;
        look_after(std::unique_lock(mutex_));
      } else if (++look < plan_.looks) {
        relax();
        continue;
      } else {
        look = 0;
        doze([&] { return work.over(); });
      }
      turn = 0;
      if (Clock::now() < until || work.over()) continue;
      std::lock_guard const lock(mutex_);
      fail_late(work, limit);
    }
  }

  // ---- failure ----

  /// Tells the other ranks that this one cannot go on.
  void announce(std::string const& why) noexcept {
    try {
      verdict_.give("it failed: " + first_line(why), false, nullptr);
      while (drive()) {
      }
    } catch (...) {  // a rank that is failing has worse to tell
    }
  }
  [[nodiscard]] bool failed() const noexcept { return verdict_.given(); }
  void check_unheard() {
    if (!verdict_.given() || heard_) return;
    heard_ = true;
    std::rethrow_exception(verdict_.error_of(nullptr));
  }

  // ---- operations made of messages: the others see how far this rank has come with them ----

  /// \returns its number. \throws CommError, CommTimeout where the group has failed before.
  std::uint64_t begin_composed(Stamp const& stamp) {
    std::lock_guard const lock(mutex_);
    if (verdict_.given() || ended_) heard_ = true, verdict_.refuse(stamp);
    auto const number = seat().composed.load(std::memory_order_relaxed) + 1;
    auto const bytes = static_cast<std::uint64_t>(c10::multiply_integers(stamp.shape)) * c10::elementSize(stamp.dtype);
    auto& call = seat().compositions[number % Seat::remembered];
    call = call_of(stamp, bytes, 0);
    call.number = number;
    seat().composed.store(number, std::memory_order_release);
    return number;
  }
  void end_composed() noexcept { seat().composed_finished.fetch_add(1, std::memory_order_relaxed); }
  /// \param cause  how one of its messages has ended
  std::exception_ptr explain_composed(Stamp const& stamp, std::string const& cause) {
    heard_ = true;
    return verdict_.error_of_composed(stamp, cause);
  }

  void set_timeout(std::chrono::milliseconds timeout) {
    std::lock_guard const lock(mutex_);
    timeout_ = timeout;
  }

  /// Ends this rank's part: what is under way may take up to `limit`.
  void shutdown(std::chrono::milliseconds limit) noexcept {
    if (::getpid() != process_) {  // a fork's copy: the rank is its parent, and what the handle names is not here
      (void)new std::vector<std::thread>(std::move(helpers_));
      return;
    }
    Attendance const attends(attendants_);
    try {
      auto const until = Clock::now() + limit;
      while (!verdict_.given() && !idle() && Clock::now() < until)
        if (!drive()) doze([this] { return idle(); });
      Ended ended;
      {
        std::lock_guard const lock(mutex_);
        if (ended_) return;
        ended_ = true;
        end_all(ended);
        std::uint32_t here = present;
        seat().state.compare_exchange_strong(here, left, std::memory_order_seq_cst);
      }
      ground_.board().bell.ring();
      finish(ended);
      std::vector<std::thread> helpers;
      {
        std::lock_guard const lock(helper_mutex_);
        helper_stop_ = true;
        helpers.swap(helpers_);
      }
      helper_wake_.notify_all();
      for (auto& helper : helpers)
        if (helper.get_id() == std::this_thread::get_id())
          helper.detach();
        else
          helper.join();
    } catch (...) {  // the end of a group has nobody to tell
    }
  }
  [[nodiscard]] bool chains_block() const noexcept { return plan_.progress != Progress::thread; }

 private:
  struct EndedWork {
    WorkHandle work;
    std::exception_ptr error;
  };
  using Ended = c10::SmallVector<EndedWork, 2>;
  static constexpr std::chrono::milliseconds doze_limit{50};  ///< without a look at what no bell tells

  /// Counts a thread among those that move the operations on.
  class Attendance {
   public:
    explicit Attendance(std::atomic<int>& count) : count_(count) { count_.fetch_add(1); }
    Attendance(Attendance const&) = delete;
    Attendance& operator=(Attendance const&) = delete;
    ~Attendance() { count_.fetch_sub(1); }

   private:
    std::atomic<int>& count_;
  };

  /// While a thread is in a callback: it is not counted, whether or not it was, since it moves nothing on there.
  class Absence {
   public:
    Absence(std::atomic<int>& present, std::atomic<int>& absent) : present_(present), absent_(absent) {
      absent_.fetch_add(1);
      present_.fetch_sub(1);
    }
    Absence(Absence const&) = delete;
    Absence& operator=(Absence const&) = delete;
    ~Absence() {
      present_.fetch_add(1);
      absent_.fetch_sub(1);
    }

   private:
    std::atomic<int>&present_, &absent_;
  };

  [[nodiscard]] Seat& seat() const noexcept { return ground_.seat(static_cast<std::size_t>(plan_.rank)); }

  // ---- under the lock ----

  /// Of a group that has failed, what had come before that is still carried out: another rank may have gone on from an
  /// operation, then failed, before this one has looked at it.
  bool step(Ended& ended) {
    bool const failed = verdict_.given();
    bool const moved = move_on(ended);
    if (!failed || (queue_.empty() && letters_.empty())) return moved;
    end_all(ended);
    return true;
  }
  bool move_on(Ended& ended) {
    bool moved = mail_.advance();
    if (!letters_.empty())
      std::erase_if(letters_, [&](WorkHandle const& letter) {  // also one that had come before it was asked for
        if (!letter->message->over) return false;
        std::exception_ptr error;
        if (letter->after && !done(letter->after, *letter))
          error = std::make_exception_ptr(CommError(sentence("comm", plan_.rank, plan_.size, wrong_)));
        ended.push_back({letter, std::move(error)});
        return moved = true;
      });
    if (!mail_.odd().empty()) return fail_odd(letters_.empty() ? nullptr : letters_.front().get(), mail_.odd(), ended);
    while (!queue_.empty()) {
      auto& work = *queue_.front();
      if (!begun_) {
        if (work.before && !done(work.before, work)) return fail_odd(&work, wrong_, ended);
        mover_.begin(*work.collective);
        begun_ = true;
      }
      moved |= mover_.advance(*work.collective);
      if (!mover_.odd().empty()) return fail_odd(&work, mover_.odd(), ended);
      if (!mover_.over(*work.collective)) break;
      seat().finished.store(work.collective->call.number, std::memory_order_release);
      if (work.after && !done(work.after, work)) return fail_odd(&work, wrong_, ended);
      ended.push_back({std::move(queue_.front()), nullptr});
      queue_.pop_front();
      begun_ = false;
    }
    return moved;
  }

  /// Copies before or after an operation. \returns false where they throw; wrong_ says what.
  bool done(std::function<void()>& copies, ShmWork const& work) {
    try {
      std::exchange(copies, nullptr)();
      return true;
    } catch (std::exception const& error) {
      wrong_ = std::string(work.stamp.name) + " could not copy a tensor: " + first_line(error.what());
      return false;
    }
  }

  /// \returns whether anything has ended: what is odd stays so, and is looked at again.
  bool fail_odd(ShmWork* origin, std::string const& what, Ended& ended) {
    verdict_.give("failed: " + what, false, origin ? &origin->stamp : nullptr);
    end_all(ended);
    return !ended.empty();
  }

  void end_all(Ended& ended) {
    for (auto* list : {&queue_, &letters_})
      for (auto& work : *list) ended.push_back({work, verdict_.error_of(&work->stamp)});
    queue_.clear();
    letters_.clear();
    mail_.close();
    begun_ = false;
  }

  // ---- any time ----

  void fail_late(ShmWork& work, std::chrono::milliseconds limit) {
    verdict_.give("timed out after " + in_words(limit), true, &work.stamp);
  }

  void finish(Ended& ended) {
    if (ended.empty()) return;
    for (auto& each : ended) each.work->settle(std::move(each.error));
    ground_.board().bell.ring();  // for threads of this rank that wait for one of them
    for (auto& each : ended) {
      if (!each.work->has_listener()) continue;
      Absence const absent(attendants_, absent_);
      each.work->tell();
    }
  }
  [[nodiscard]] bool idle() {
    std::lock_guard const lock(mutex_);
    return queue_.empty() && letters_.empty();
  }
  /// Whether there is something to do and nobody to do it.
  [[nodiscard]] bool unattended() {
    if (attendants_.load() > 0) return false;
    std::unique_lock const lock(mutex_, std::try_to_lock);  // whoever has it is at it
    return lock && !(queue_.empty() && letters_.empty());
  }

  template <class Ready>
  void doze(Ready&& ready) {
    move_on_all_but(this);
    ground_.board().bell.sleep(doze_limit, [&] { return drive() || ready(); });
    look_after(std::unique_lock(mutex_));
  }

  /// Deaths, departures, deadlines, and ranks that have come to something else: what no bell tells.
  void look_after(std::unique_lock<std::mutex> const&) {
    if (verdict_.given() || ended_) return;
    if (verdict_.half_given()) return;
    ShmWork* const first = !queue_.empty()     ? queue_.front().get()
                           : !letters_.empty() ? letters_.front().get()
                                               : nullptr;
    auto const lost = [&](std::size_t rank, char const* how) {
      verdict_.give("failed: rank " + std::to_string(rank) + how, false, first ? &first->stamp : nullptr);
    };
    for (auto const rank : pulse_.ended()) {
      std::uint32_t here = present;
      if (ground_.seat(rank).state.compare_exchange_strong(here, dead, std::memory_order_seq_cst) || here == dead)
        return lost(rank, " has died");
    }
    if (begun_ && !mover_.all_mean(*queue_.front()->collective))
      return verdict_.give("failed: " + mover_.odd(), false, &first->stamp);
    for (std::size_t r = 0; r < ground_.sizes().ranks; ++r) {
      if (ground_.seat(r).state.load(std::memory_order_acquire) != left) continue;
      bool const misses = begun_ && ground_.seat(r).finished.load(std::memory_order_acquire) < mover_.number();
      if (misses || (!letters_.empty() && waits_for(r))) return lost(r, " has ended the group");
    }
    auto const now = Clock::now();
    for (auto* list : {&queue_, &letters_})
      for (auto const& work : *list)
        if (now >= work->deadline) return fail_late(*work, work->stamp.timeout);
  }
  /// Whether a message to or from this rank cannot go on without it.
  [[nodiscard]] bool waits_for(std::size_t rank) const {
    return std::any_of(letters_.begin(), letters_.end(), [&](WorkHandle const& letter) {
      auto const& message = *letter->message;
      if (message.peer < 0) return all_have_left() && mail_.silent();
      return message.peer == static_cast<int>(rank) && mail_.stuck(message);
    });
  }

  [[nodiscard]] bool all_have_left() const {
    for (std::size_t r = 0; r < ground_.sizes().ranks; ++r)
      if (r != static_cast<std::size_t>(plan_.rank) && ground_.seat(r).state.load(std::memory_order_acquire) != left)
        return false;
    return true;
  }

  // ---- the thread ----

  void wake_helper() noexcept try {
    std::lock_guard const lock(helper_mutex_);
    if (helper_stop_) return;
    helper_has_work_ = true;
    // One for each thread that is in a callback, which may be a helper, and one more.
    if (helpers_.size() <= static_cast<std::size_t>(std::max(0, absent_.load())))
      helpers_.emplace_back([self = shared_from_this()] { self->help(); });
    helper_wake_.notify_all();
  } catch (std::exception const&) {  // no thread to be had: whoever waits moves them on
  }
  void help() noexcept {
    for (;;) {
      {
        std::unique_lock lock(helper_mutex_);
        helper_wake_.wait(lock, [&] { return helper_stop_ || helper_has_work_; });
        if (helper_stop_) return;
        helper_has_work_ = false;
      }
      Attendance const attends(attendants_);
      while (!idle())
        if (!drive()) doze([this] { return idle(); });
    }
  }

  Plan const plan_;
  pid_t const process_;
  std::chrono::milliseconds timeout_;
  std::mutex mutex_;
  Ground ground_;
  Verdict verdict_;
  Pulse pulse_;
  Mover mover_;
  Mailbox mail_;
  std::deque<WorkHandle> queue_;  ///< collectives, in the order of the calls: one at a time
  std::deque<WorkHandle> letters_;
  bool begun_ = false;  ///< the first of the queue is announced
  bool ended_ = false;
  std::string wrong_;
  std::atomic<std::uint64_t> issued_{0};
  std::uint64_t messages_ = 0;
  std::atomic<bool> heard_{false};
  std::atomic<int> attendants_{0};  ///< below 0 for a moment where who is absent had not been counted
  std::atomic<int> absent_{0};
  std::atomic<Clock::rep> looked_{0};  ///< when somebody last did who does not wait

  std::mutex helper_mutex_;
  std::condition_variable helper_wake_;
  std::vector<std::thread> helpers_;
  bool helper_stop_ = false, helper_has_work_ = false;
};

inline void ShmWork::settle(std::exception_ptr error) {
  before = after = nullptr;
  kept.clear();
  std::lock_guard const lock(future_mutex_);
  error_ = std::move(error);
  untold_ = future_;  // one that is made from now on is complete at once
  over_.store(true, std::memory_order_seq_cst);
}
inline void ShmWork::tell() noexcept {
  auto const future = std::exchange(untold_, nullptr);
  if (!future) return;
  try {
    // Callbacks run in the mode of who asked for the future, and not of whoever happens to move operations on.
    at::ThreadLocalStateGuard const as_asked(*modes_);
    if (error_)
      future->setError(error_);
    else
      future->markCompleted(c10::IValue(result_));
  } catch (std::exception const& error) {  // whoever moves operations on has nothing to do with it
    TORCH_WARN("[comm] a callback of ", stamp.text(), " threw, which nobody hears of: ", error.what(),
               "; give it to then(), whose future hands it on");
  } catch (...) {
    TORCH_WARN("[comm] a callback of ", stamp.text(), " threw, which nobody hears of; give it to then()");
  }
}
inline bool ShmWork::isCompleted() {
  if (!over()) engine_->look_in();
  return over();
}
inline bool ShmWork::wait(std::chrono::milliseconds limit) {
  engine_->wait(*this, limit);
  return true;
}
inline c10::intrusive_ptr<c10::ivalue::Future> ShmWork::getFuture() {
  if (!over() && engine_->chains_block()) engine_->bring_to_end(*this);
  std::unique_lock lock(future_mutex_);
  if (future_) return future_;
  future_ =
      c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()), devices_of(result_));
  auto const future = future_;
  bool const done = over();
  if (!done) modes_ = std::make_unique<at::ThreadLocalState>();
  lock.unlock();
  if (done && error_)
    future->setError(error_);
  else if (done)
    future->markCompleted(c10::IValue(result_));
  return future;
}

}  // namespace pardl::inline PARDL_ABI::detail::shm
