// SPDX-License-Identifier: MIT
/// \file   LibTorch's NCCL, set up so that a failure is an exception in bounded time and not the end of the process.
/// \layer  comm.
///
/// Compiled only with the target pardl::nccl. As it comes, ProcessGroupNCCL meets a failed or late operation by
/// throwing in its watchdog thread, which ends the process without unwinding: no message, no checkpoint. Here the
/// watchdog only frees the communicators; the group's roll call sees that, and the next operation, wait() or shutdown()
/// throws. NCCL keeps operations in order on CUDA streams, so wait() does not block the host, and a failure is heard of
/// one operation later than on the CPU: what a step computed in between is garbage, and is never reported as good,
/// since shutdown() throws what nobody has heard.
#pragma once

#ifdef PARDL_WITH_NCCL
#ifndef USE_C10D_NCCL
#define USE_C10D_NCCL
#endif

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/cuda.h>
#include <torch/types.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>

#include "pardl/comm/detail/bounded.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/comm/detail/translate.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct NcclOptions {
  torch::Device device = torch::kCUDA;         ///< the GPU of this rank, with its index
  std::chrono::milliseconds timeout{600'000};  ///< of one operation, and of connecting
  bool one_host = false;                       ///< all ranks share a host: NCCL's own sockets stay on loopback
};

namespace detail {

/// Sets a variable that NCCL or c10d reads, unless the user has.
inline void prefer(char const* name, char const* value) { ::setenv(name, value, /*overwrite=*/0); }

/// What must stand in the environment before ProcessGroupNCCL is constructed. Not thread-safe, as setenv is not: make
/// groups before starting threads that read the environment.
inline void prepare_nccl(bool one_host) {
  // 2 is CleanUpOnly. torchrun sets 1 for everybody (end the process); that is no user's choice.
  char const* const handling = std::getenv("TORCH_NCCL_ASYNC_ERROR_HANDLING");
  if (!handling || std::string_view(handling) == "1") ::setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", 1);
  prefer("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0");  // they would be thrown in the watchdog too
  prefer("TORCH_NCCL_DUMP_ON_TIMEOUT", "0");      // else the watchdog first waits for every rank's dump
  if (one_host) prefer("NCCL_SOCKET_IFNAME", "lo");
}

}  // namespace detail

namespace backend {

/// Every rank must call it: it returns when all ranks of the store are connected.
/// \param store  private to this group.
/// \throws ConfigError without a GPU; CommTimeout when the ranks do not connect in time; CommError when NCCL refuses,
///         several ranks on one GPU, say.
inline c10::intrusive_ptr<c10d::Backend> nccl(c10::intrusive_ptr<c10d::Store> const& store, int rank, int size,
                                              NcclOptions const& options = {}) {
  if (!torch::cuda::is_available())
    throw ConfigError(sentence("comm", rank, size, "NCCL needs a GPU, and none is visible to this process",
                               "see nvidia-smi and CUDA_VISIBLE_DEVICES, or use Gloo"));
  if (!options.device.is_cuda() || !options.device.has_index())
    throw ConfigError(sentence("comm", rank, size, "NCCL was given the device " + options.device.str(),
                               "name one GPU for each rank: cuda:0, cuda:1, …"));
  detail::prepare_nccl(options.one_host);
  return detail::translated([&]() -> c10::intrusive_ptr<c10d::Backend> {
    auto settings = c10d::ProcessGroupNCCL::Options::create();
    settings->timeout = options.timeout;
    auto made = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, std::move(settings));
    made->setBoundDeviceId(options.device);
    // Now, and not at the first operation: ncclCommInitRank waits for its peers without a limit.
    auto const connected = detail::ends_within(options.timeout, [made, device = options.device] {
      c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).setDevice(device);
      made->eagerConnectSingleDevice(device);
    });
    if (!connected)
      throw CommTimeout(sentence("comm", rank, size,
                                 "NCCL has not connected the ranks within " + detail::in_words(options.timeout),
                                 "run with NCCL_DEBUG=INFO, and see NCCL_SOCKET_IFNAME and the other ranks' output"));
    return made;
  });
}

}  // namespace backend
}  // namespace pardl::inline PARDL_ABI

#endif  // PARDL_WITH_NCCL
