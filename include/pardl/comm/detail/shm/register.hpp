// SPDX-License-Identifier: MIT
/// \file   The engines of this process, so that who sleeps for one of them sees to the others.
/// \layer  comm, private.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

class Engine;

/// All engines of this process. Never destroyed, since a group may be kept in whatever ends last; a fork begins with
/// an empty one, and leaves its parent's engines alone.
class Register {
 public:
  static Register& present() {
    static std::atomic<Register*> one{new Register};
    auto* now = one.load();
    if (now->process_ == ::getpid()) return *now;
    auto fresh = std::make_unique<Register>();
    if (one.compare_exchange_strong(now, fresh.get())) return *fresh.release();
    return *now;
  }
  void insert(std::weak_ptr<Engine> engine) {
    std::lock_guard const lock(mutex_);
    std::erase_if(engines_, [](auto const& known) { return known.expired(); });
    engines_.push_back(std::move(engine));
  }
  [[nodiscard]] std::vector<std::shared_ptr<Engine>> all() const noexcept try {
    std::lock_guard const lock(mutex_);
    std::vector<std::shared_ptr<Engine>> found;
    for (auto const& known : engines_)
      if (auto engine = known.lock()) found.push_back(std::move(engine));
    return found;
  } catch (std::exception const&) {  // no memory: they are asked again soon
    return {};
  }

 private:
  pid_t const process_ = ::getpid();
  mutable std::mutex mutex_;
  std::vector<std::weak_ptr<Engine>> engines_;
};

}  // namespace pardl::inline PARDL_ABI::detail::shm
