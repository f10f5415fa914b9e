// SPDX-License-Identifier: MIT
/// \file   Which device a rank computes on, with a sentence where it cannot be had.
/// \layer  comm, private.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/cuda.h>
#include <torch/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "pardl/comm/detail/make_backend.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// CUDA where there is some and ranks could use it together, else the CPU.
inline c10::DeviceType default_device_type() {
  return has_nccl && torch::cuda::is_available() ? c10::DeviceType::CUDA : c10::DeviceType::CPU;
}

/// \throws ConfigError  for a device this program cannot use, or that the backend cannot serve.
inline void check_device(std::string const& backend, c10::DeviceType kind, int rank, int size) {
  if (kind == c10::DeviceType::CPU) {
    if (backend != "nccl") return;
    throw ConfigError(sentence("comm", rank, size, "NCCL needs a GPU, and the device is the CPU",
                               torch::cuda::is_available() ? "name the device cuda, or the backend gloo"
                                                           : "no GPU is visible here: name the backend gloo"));
  }
  if (kind == c10::DeviceType::CUDA && !torch::cuda::is_available())
    throw ConfigError(
        sentence("comm", rank, size, "no GPU is visible to this process",
                 "see nvidia-smi and CUDA_VISIBLE_DEVICES, and that the program links torch_cuda; or name "
                 "the device cpu"));
}

/// The device with its index; a GPU becomes this thread's current one.
/// Without an index it is the one of this rank's place on its host. NCCL wants a GPU per rank; over Gloo ranks may
/// share. Schedulers may show each rank the one GPU that is its own (Slurm: --gpus-per-task=1): \p bound says that such
/// a launcher has started this rank.
inline torch::Device choose_device(std::optional<torch::Device> wish, c10::DeviceType kind, std::string const& backend,
                                   bool bound, int local_rank, int rank, int size) {
  torch::Device device = wish.value_or(torch::Device(kind));
  if (kind != c10::DeviceType::CUDA) return device;
  auto const count = static_cast<int>(torch::cuda::device_count());
  int index = device.has_index() ? device.index() : local_rank;
  if (!device.has_index() && (backend != "nccl" || (bound && count == 1))) index %= count;
  if (index >= count)
    throw ConfigError(sentence("comm", rank, size,
                               "there is no cuda:" + std::to_string(index) + ", this host shows " +
                                   std::to_string(count) + (count == 1 ? " GPU" : " GPUs"),
                               "start at most that many ranks a host, or let them share by the backend gloo"));
  device = torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(index));
  c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).setDevice(device);  // needs no CUDA library at link time
  return device;
}

/// What c10d calls the backend of a group that others made.
inline std::string backend_name(c10d::ProcessGroup& group) {
  try {
    return group.getDefaultBackend()->getBackendName();
  } catch (c10::Error const&) {  // a ProcessGroup of a kind without backends
    return group.getBackendName();
  }
}

/// The kinds of devices whose tensors a backend of the group reads; none where a group of another kind does not say.
inline std::vector<torch::DeviceType> served_by(c10d::ProcessGroup const& group) {
  std::vector<torch::DeviceType> kinds;
  for (auto const device : group.getDeviceTypes()) kinds.push_back(device.type());
  return kinds;
}

/// The timeout of a group that others made; c10d's default where it does not say.
inline std::chrono::milliseconds backend_timeout(c10d::ProcessGroup& group) {
  try {
    return group.getDefaultBackend()->getBackendOptions()->timeout;
  } catch (c10::Error const&) {
    return kProcessGroupDefaultTimeout;
  }
}

}  // namespace pardl::inline PARDL_ABI::detail
