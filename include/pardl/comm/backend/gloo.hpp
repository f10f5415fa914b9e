// SPDX-License-Identifier: MIT
/// \file   LibTorch's Gloo over TCP: collectives on the CPU, and on CUDA tensors by way of the host.
/// \layer  comm.
///
/// Compiled only with the target pardl::gloo. Debian's libgloo-dev serves for the declarations; the code is LibTorch's.
#pragma once

#ifdef PARDL_WITH_GLOO
#ifndef USE_C10D_GLOO
#define USE_C10D_GLOO
#endif

#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>

#include "pardl/comm/detail/translate.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct GlooOptions {
  std::string interface = {};  ///< network interfaces, by comma; empty: GLOO_SOCKET_IFNAME, then address
  std::string address = {};    ///< of this host; empty: by its name, which often means loopback
  std::chrono::milliseconds timeout{600'000};  ///< of one operation
  int threads = 2;                             ///< that carry out operations, per rank
};

namespace detail {

/// What must stand in the environment before ProcessGroupGloo is constructed, for ranks that are threads of one
/// process: LibTorch 2.11's flight recorder notes a group in a map of the process without a lock. 2.15 holds one.
inline void prepare_gloo() {
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 15
  static std::once_flag once;
  std::call_once(once, [] {
    if (!std::getenv("TORCH_NCCL_TRACE_BUFFER_SIZE")) ::setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/0);
  });
#endif
}

}  // namespace detail

namespace backend {

/// Every rank must call it: it returns when all ranks of the store are connected.
/// \param store  private to this group. On one host pass interface "lo": nothing listens on the network then.
inline c10::intrusive_ptr<c10d::Backend> gloo(c10::intrusive_ptr<c10d::Store> const& store, int rank, int size,
                                              GlooOptions const& options = {}) {
  detail::prepare_gloo();
  return detail::translated([&]() -> c10::intrusive_ptr<c10d::Backend> {
    std::string interfaces = options.interface;
    if (interfaces.empty())
      if (char const* named = std::getenv("GLOO_SOCKET_IFNAME")) interfaces = named;
    auto settings = c10d::ProcessGroupGloo::Options::create(options.timeout);
    settings->threads = options.threads;
    if (interfaces.empty()) {
      settings->devices.push_back(options.address.empty()
                                      ? c10d::ProcessGroupGloo::createDefaultDevice()
                                      : c10d::ProcessGroupGloo::createDeviceForHostname(options.address));
    } else {
      for (std::size_t at = 0; at <= interfaces.size();) {  // "eth0,eth1": traffic is spread over both
        auto const end = std::min(interfaces.find(',', at), interfaces.size());
        settings->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(interfaces.substr(at, end - at)));
        at = end + 1;
      }
    }
    return c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, std::move(settings));
  });
}

}  // namespace backend
}  // namespace pardl::inline PARDL_ABI

#endif  // PARDL_WITH_GLOO
