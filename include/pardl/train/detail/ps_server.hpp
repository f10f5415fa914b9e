// SPDX-License-Identifier: MIT
/// \file   The serving rank: takes gradients as they come, steps when a clock is complete, answers who may go on.
/// \layer  train, private.
///
/// One thread a worker does nothing but talk to it. There is no other way to hear of a death at once: a receive tells
/// of it to whoever waits for it, and a wait for whichever of several groups speaks first does not exist. All
/// arithmetic, the optimizer and the observers run on the thread that called serve().
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/worker_clocks.hpp"
#include "pardl/train/detail/ps_link.hpp"
#include "pardl/train/parameter_server_options.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::ps {

/// What serve() does for its caller's types.
struct ServerHooks {
  std::function<void(ClockEvent const&)> before_step;
  std::function<void()> step;
  std::function<void(ClockEvent const&)> after_step;
  std::function<void(WorkerLostEvent const&)> lost;
};

class Server {
 public:
  /// \param ranks  of the workers in the world, in ascending order. \param links  to each of them.
  Server(ProcessGroup world, Model model, std::vector<int> ranks, std::vector<Link> links,
         ParameterServerOptions const& options)
      : world_(std::move(world)),
        model_(std::move(model)),
        shape_(model_.shape()),
        options_(options),
        clocks_(static_cast<int>(ranks.size()), options.staleness) {
    for (std::size_t w = 0; w < ranks.size(); ++w) workers_.push_back({ranks[w], std::move(links[w]), {}});
  }
  Server(Server const&) = delete;
  Server& operator=(Server const&) = delete;

  [[nodiscard]] std::int64_t version() const noexcept { return steps_; }

  /// Until every worker has finished or is lost. Once.
  void serve(ServerHooks const& hooks) {
    if (std::exchange(served_, true))
      throw ConfigError(sentence(room, world_.rank(), world_.size(), "serve() was called before",
                                 "make a new ParameterServer for another training"));
    std::vector<std::thread> threads;
    try {
      publish();
      for (int w = 0; w < static_cast<int>(workers_.size()); ++w) threads.emplace_back([this, w] { attend(w); });
      train(hooks);
      for (auto& thread : threads) thread.join();
      threads.clear();
      say_losses(hooks);
    } catch (...) {
      give_up(reason_of(std::current_exception()));
      for (auto& thread : threads) thread.join();
      workers_.clear();
      throw;
    }
    workers_.clear();  // the pairs end here, while the workers' do
  }

 private:
  struct Seat {
    int rank;
    Link link;
    std::deque<torch::Tensor> rows;  ///< gradients that no step has used yet, the oldest first
  };
  struct Loss {
    WorkerLostEvent event;
    std::exception_ptr cause;
  };
  /// Parameters and buffers as they are sent; nobody changes them while somebody sends.
  struct Version {
    std::int64_t number;
    torch::Tensor row;
  };

  // ---- the thread that serves ----

  void train(ServerHooks const& hooks) {
    for (;;) {
      std::vector<torch::Tensor> rows;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return !losses_.empty() || clocks_.ready() || clocks_.over(); });
        if (losses_.empty() && clocks_.ready())
          for (int const w : clocks_.contributors()) {
            auto& queue = workers_[static_cast<std::size_t>(w)].rows;
            rows.push_back(std::move(queue.front()));
            queue.pop_front();
          }
        else if (losses_.empty())
          break;
      }
      say_losses(hooks);
      if (!rows.empty()) take_step(hooks, std::move(rows));
    }
    std::lock_guard const lock(mutex_);
    done_ = true;
    changed_.notify_all();
  }

  void take_step(ServerHooks const& hooks, std::vector<torch::Tensor> rows) {
    average(rows);
    shape_.buffers.unpack(rows.front(), model_.buffers());
    ClockEvent const event{.clock = steps_, .workers = static_cast<int>(rows.size())};
    hooks.before_step(event);
    hooks.step();
    ++steps_;
    hooks.after_step(event);  // nobody has these parameters yet, so workers that may not run ahead wait for this
    publish();
    std::lock_guard const lock(mutex_);
    clocks_.step();
    for (std::size_t i = 1; i < rows.size(); ++i) free_.push_back(std::move(rows[i]));
    // The first row holds the gradients that the parameters show until the next step.
    if (gradients_.defined()) free_.push_back(std::move(gradients_));
    gradients_ = std::move(rows.front());
    changed_.notify_all();
  }

  /// Sums in the order of ranks, then divides: the same bits in whatever order the rows have come. The first row
  /// becomes the mean; a parameter that no worker used has no gradient.
  void average(std::vector<torch::Tensor> const& rows) {
    torch::NoGradGuard const no_grad;
    auto sums = shape_.parameters.blocks(rows.front());
    auto used = shape_.used(rows.front());
    for (std::size_t i = 1; i < rows.size(); ++i) {
      auto const terms = shape_.parameters.blocks(rows[i]);
      for (std::size_t b = 0; b < sums.size(); ++b) sums[b].add_(terms[b]);
      used.bitwise_or_(shape_.used(rows[i]));
    }
    for (auto& sum : sums) sum.div_(static_cast<std::int64_t>(rows.size()));
    auto const* const has_gradient = used.const_data_ptr<std::uint8_t>();
    for (std::size_t i = 0; i < model_.parameters.size(); ++i) {
      auto& parameter = model_.parameters[i];
      parameter.mutable_grad() =
          has_gradient[i] != 0 ? shape_.parameters.tensor(rows.front(), i).to(parameter.device()) : torch::Tensor();
    }
  }

  /// Makes what the workers get: a row that nobody sends any more, or a new one.
  void publish() {
    std::shared_ptr<Version> next;
    {
      std::lock_guard const lock(mutex_);
      if (spare_ && spare_.use_count() == 1) next = std::move(spare_);
    }
    if (!next) next = std::make_shared<Version>(Version{0, shape_.row()});
    next->number = steps_;
    shape_.parameters.pack(model_.parameters, next->row);
    shape_.buffers.pack(model_.buffers(), next->row);
    std::lock_guard const lock(mutex_);
    spare_ = std::exchange(version_, std::move(next));
  }

  /// \throws CommError, CommTimeout  for the first loss, where the options or the last worker's death end training.
  void say_losses(ServerHooks const& hooks) {
    std::vector<Loss> losses;
    bool some_finished = false;
    {
      std::lock_guard const lock(mutex_);
      losses = std::exchange(losses_, {});
      some_finished = finished_ > 0;
    }
    for (auto& [event, cause] : losses) {
      bool const go_on = options_.on_rank_failure == keep_going;
      std::string const what = "worker rank " + std::to_string(event.rank) + " was lost after " +
                               std::to_string(event.given) + (event.given == 1 ? " step" : " steps") +
                               as_the_pair_says(reason_of(cause));
      auto const say = [&](std::string const& remedy) {
        return sentence(room, world_.rank(), world_.size(), what, remedy);
      };
      bool const alone = event.left == 0 && !some_finished;
      if (!go_on || alone) {
        std::string const text =
            say(!go_on ? "see what it said last; with .on_rank_failure = keep_going the others would go on"
                       : "it was the last one, so nothing is left to serve");
        if (is_late(cause)) throw CommTimeout(text);
        throw CommError(text);
      }
      event.sentence = say(event.left == 0 ? "the others have finished"
                                           : "training goes on with " + std::to_string(event.left) +
                                                 (event.left == 1 ? " worker" : " workers"));
      hooks.lost(event);
    }
  }
  static bool is_late(std::exception_ptr const& cause) {
    try {
      std::rethrow_exception(cause);
    } catch (CommTimeout const&) {
      return true;
    } catch (...) {
      return false;
    }
  }

  /// Ends every worker's wait, and this rank's for them, with the reason.
  void give_up(std::string const& why) noexcept {
    {
      std::lock_guard const lock(mutex_);
      given_up_ = true;
      changed_.notify_all();
    }
    for (auto const& worker : workers_) worker.link.pair().abandon(why);
  }

  // ---- a thread for each worker ----

  void attend(int w) noexcept {
    auto& link = workers_[static_cast<std::size_t>(w)].link;
    try {
      for (std::int64_t clock = 0;; ++clock) {
        auto const head = link.receive(clock, {{Kind::push, shape_.push()}, {Kind::leave, 0}});
        if (head.kind == Kind::leave) return see_off(w, clock);
        auto row = free_row();
        link.receive_row(row, head.bytes);
        {
          std::lock_guard const lock(mutex_);
          workers_[static_cast<std::size_t>(w)].rows.push_back(std::move(row));
          clocks_.give(w);
          changed_.notify_all();
        }
        if (!answer(link, {Kind::answer, clock, 0, shape_.answer()}, [&] { return clocks_.may_go_on(w); })) return;
      }
    } catch (...) {
      lose(w, std::current_exception());
    }
  }

  /// A worker has no more data: it gets the model once the others have finished too.
  void see_off(int w, std::int64_t clock) {
    {
      std::lock_guard const lock(mutex_);
      clocks_.finish(w);
      ++finished_;
      changed_.notify_all();
    }
    auto& link = workers_[static_cast<std::size_t>(w)].link;
    if (answer(link, {Kind::model, clock, 0, shape_.model()}, [&] { return done_; }))
      (void)link.receive(clock, {{Kind::bye, 0}});  // so that neither side ends the pair before all has come
  }

  /// Sends the present version as soon as `ready` says so under the lock, and tells the worker meanwhile that this
  /// rank lives. \returns false if serving has been given up.
  template <class Ready>
  bool answer(Link& link, Head head, Ready const& ready) {
    auto const beat = std::max<std::chrono::milliseconds>(world_.timeout() / 3, std::chrono::milliseconds(1));
    std::shared_ptr<Version> mine;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        if (changed_.wait_for(lock, beat, [&] { return given_up_ || ready(); })) {
          if (given_up_) return false;
          mine = version_;
          break;
        }
      }
      link.send({Kind::wait, head.clock, 0, 0});
    }
    head.version = mine->number;
    link.send(head, mine->row);
    std::lock_guard const lock(mutex_);
    mine.reset();
    return true;
  }

  torch::Tensor free_row() {
    {
      std::lock_guard const lock(mutex_);
      if (!free_.empty()) {
        auto row = std::move(free_.back());
        free_.pop_back();
        return row;
      }
    }
    return shape_.row();
  }

  void lose(int w, std::exception_ptr cause) {
    std::lock_guard const lock(mutex_);
    if (given_up_) return;
    clocks_.lose(w);
    losses_.push_back({{.rank = workers_[static_cast<std::size_t>(w)].rank,
                        .given = clocks_.given(w),
                        .left = clocks_.training(),
                        .sentence = {}},
                       std::move(cause)});
    changed_.notify_all();
  }

  ProcessGroup world_;
  Model model_;
  Shape const shape_;
  ParameterServerOptions const options_;
  std::vector<Seat> workers_;
  bool served_ = false;
  std::int64_t steps_ = 0;
  torch::Tensor gradients_;  ///< of the last step

  std::mutex mutex_;
  std::condition_variable changed_;  ///< anything below
  WorkerClocks clocks_;
  std::vector<Loss> losses_;  ///< that nobody has been told of
  int finished_ = 0;          ///< workers that ended well
  bool done_ = false;         ///< the last step is taken
  bool given_up_ = false;
  std::shared_ptr<Version> version_, spare_;
  std::vector<torch::Tensor> free_;
};

}  // namespace pardl::inline PARDL_ABI::detail::ps
