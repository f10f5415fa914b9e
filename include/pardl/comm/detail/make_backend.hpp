// SPDX-License-Identifier: MIT
/// \file   A backend by its name, with a sentence where it was not built in.
/// \layer  comm, private.
#pragma once

#include <torch/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>

#include "pardl/comm/backend/gloo.hpp"
#include "pardl/comm/backend/nccl.hpp"
#include "pardl/comm/backend/self.hpp"
#include "pardl/comm/backend/shm.hpp"
#include "pardl/comm/detail/c10d_version.hpp"
#include "pardl/comm/detail/roll_call.hpp"
#include "pardl/comm/detail/traced_backend.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

#ifdef PARDL_WITH_GLOO
inline constexpr bool has_gloo = true;
#else
inline constexpr bool has_gloo = false;
#endif
#ifdef PARDL_WITH_NCCL
inline constexpr bool has_nccl = true;
#else
inline constexpr bool has_nccl = false;
#endif

/// Everything a backend needs to know.
struct BackendPlan {
  std::string name;                    ///< "self", "shm", "gloo" or "nccl"
  bool named = true;                   ///< by the user; else it fits device and hosts, and so will a subgroup's
  torch::Device device = torch::kCPU;  ///< where this rank computes
  int rank = 0;                        ///< of this process in the group
  int size = 1;                        ///< ranks in the group
  int host_ranks = 0;                  ///< that compute on this host, whatever their group; 0: this group's
  bool one_host = true;                ///< all ranks share a host: stay on loopback
  std::string address = {};            ///< of this host on the way to the others; empty: the transport finds one
  std::chrono::milliseconds timeout{600'000};  ///< of one operation
  c10::intrusive_ptr<c10d::Store> store = {};  ///< private to this group
  std::string group = "pardl";                 ///< unique name in c10d's logs
  std::string store_host = "its host";         ///< who serves it, for a sentence
};

/// The backend that the device, the number of ranks and their hosts ask for.
inline std::string default_backend(c10::DeviceType kind, int size, bool one_host) {
  if (size == 1) return "self";
  if (kind == c10::DeviceType::CUDA) return "nccl";
  return one_host ? "shm" : "gloo";
}

/// \throws ConfigError for a name nobody knows, or a backend that this program was built without.
inline void check_backend(std::string const& name, int rank, int size) {
  if (name == "self") {
    if (size == 1) return;
    throw ConfigError(sentence("comm", rank, size, "the backend \"self\" is for a world of one",
                               "use shm or gloo on CPUs, nccl on GPUs"));
  }
  if (name == "shm") return;
  if (name == "gloo") {
    if (has_gloo) return;
    throw ConfigError(sentence("comm", rank, size, "this program was built without Gloo",
                               "link the CMake target pardl::gloo (Debian: apt install libgloo-dev)"));
  }
  if (name == "nccl") {
    if (has_nccl) return;
    throw ConfigError(sentence("comm", rank, size, "this program was built without NCCL",
                               "link the CMake target pardl::nccl, or name the backend gloo"));
  }
  throw ConfigError(
      sentence("comm", rank, size, "no backend is called \"" + name + "\"", "there are self, shm, gloo, nccl"));
}

/// Every rank of the plan must call it.
inline c10::intrusive_ptr<c10d::Backend> make_backend(BackendPlan const& plan) {
  check_backend(plan.name, plan.rank, plan.size);
  if (plan.name == "shm") {
    if (!plan.one_host)
      throw ConfigError(sentence("comm", plan.rank, plan.size, "the backend \"shm\" is for ranks of one host",
                                 "use gloo over several"));
    return backend::shm(plan.store, plan.rank, plan.size, {.timeout = plan.timeout, .host_ranks = plan.host_ranks});
  }
#ifdef PARDL_WITH_GLOO
  if (plan.name == "gloo")
    return backend::gloo(plan.store, plan.rank, plan.size,
                         {.interface = plan.one_host ? "lo" : "", .address = plan.address, .timeout = plan.timeout});
#endif
#ifdef PARDL_WITH_NCCL
  if (plan.name == "nccl")
    return backend::nccl(plan.store, plan.rank, plan.size,
                         {.device = plan.device, .timeout = plan.timeout, .one_host = plan.one_host});
#endif
  return backend::self();
}

/// How a group hears that a rank cannot go on, and how it ends, whatever stands below c10d. Empty where nothing can
/// fail: in a world of one, and for a group that was adopted.
struct Lifeline {
  std::function<void(std::string const&)> announce = {};  ///< tells the other ranks why this one ends; up to a second
  std::function<bool()> failed = {};
  std::function<void()> check_unheard = {};  ///< throws if the group has failed and no caller has been told
  std::function<void()> shutdown = {};

  explicit operator bool() const noexcept { return announce != nullptr; }
};

/// The c10d group around a backend.
struct MadeGroup {
  GroupPtr group;
  Lifeline line;
};

/// Every rank of the plan must call it. c10d knows the group by the backend's own type and name, and treats it as it
/// would without us.
inline MadeGroup make_group(BackendPlan const& plan) {
  using Type = c10d::ProcessGroup::BackendType;
  auto made = make_backend(plan);
  bool const nccl = plan.name == "nccl";
  Type const type = nccl ? Type::NCCL : plan.name == "gloo" ? Type::GLOO : Type::CUSTOM;
  MadeGroup result{c10::make_intrusive<c10d::ProcessGroup>(plan.store, plan.rank, plan.size), {}};
  if (nccl && plan.device.has_index()) {
    result.group->setBoundDeviceId(plan.device);
  }
  if (plan.name == "shm") {  // which stamps its operations itself, in the memory that all ranks see
    auto shm = c10::static_intrusive_pointer_cast<ShmBackend>(made);
    result.line = {.announce = [shm](std::string const& why) { shm->engine().announce(why); },
                   .failed = [shm] { return shm->engine().failed(); },
                   .check_unheard = [shm] { shm->engine().check_unheard(); },
                   .shutdown = [shm] { shm->shutdown(); }};
  } else if (plan.size > 1) {
    // Weak: the roll call outlives the group for a moment, the transport must not.
    auto transport = [weak = c10::weak_intrusive_ptr<c10d::Backend>(made)]() -> std::string {
      auto const backend = weak.lock();
      if (!backend) return "";
      auto const error = backend->getError();
      if (error == c10d::ErrorType::SUCCESS) return "";
      return error == c10d::ErrorType::TIMEOUT ? "an operation timed out" : "a peer or the network failed";
    };
    auto roll = RollCall::start({.store = c10::make_intrusive<c10d::PrefixStore>("roll", plan.store),
                                 .rank = plan.rank,
                                 .size = plan.size,
                                 .timeout = plan.timeout,
                                 .store_host = plan.store_host,
                                 .transport = nccl ? std::function<std::string()>(transport) : nullptr});
    auto traced =
        c10::make_intrusive<TracedBackend>(std::move(made), std::move(roll), nccl ? Order::stream : Order::host);
    result.line = {.announce = [traced](std::string const& why) { traced->roll().announce(why); },
                   .failed = [traced] { return traced->roll().failed(); },
                   .check_unheard = [traced] { traced->roll().check_unheard(); },
                   .shutdown = [traced] { traced->shutdown(); }};
    made = traced;
  }
  if (!nccl) result.group->setBackend(c10::DeviceType::CPU, type, made);
  result.group->setBackend(c10::DeviceType::CUDA, type, made);
  result.group->setDefaultBackend(type);
  result.group->setGroupName(plan.group);
  return result;
}

}  // namespace pardl::inline PARDL_ABI::detail
