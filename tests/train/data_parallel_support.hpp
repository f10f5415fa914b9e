// SPDX-License-Identifier: MIT
// What the tests of DataParallel share: modules that can be cloned, a module that tells how its forward was called, and
// what a loop over the devices would give.
#pragma once

#include <torch/torch.h>

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <algorithm>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "ddp_support.hpp"
#include "pardl/train/data_parallel.hpp"

namespace dp_test {

using ddp_test::contains;
using ddp_test::copies;
using ddp_test::fill;
using ddp_test::gradients;
using ddp_test::loss_of;
using ddp_test::message_of;
using ddp_test::same_bits;
using ddp_test::seeded;

inline std::vector<torch::Device> cpus(std::size_t n) { return std::vector<torch::Device>(n, torch::kCPU); }

/// Float values as they are written.
inline torch::Tensor floats(std::vector<float> const& values) { return torch::tensor(values); }

struct NetImpl : torch::nn::Cloneable<NetImpl> {
  explicit NetImpl(uint64_t seed = 1) {
    reset();
    fill(*this, seed);
  }
  void reset() override {
    a = register_module("a", torch::nn::Linear(6, 16));
    b = register_module("b", torch::nn::Linear(16, 16));
    c = register_module("c", torch::nn::Linear(16, 3));
  }
  torch::Tensor forward(torch::Tensor const& x) { return c(torch::tanh(b(torch::tanh(a(x))))); }
  torch::nn::Linear a = nullptr, b = nullptr, c = nullptr;
};
TORCH_MODULE(Net);

/// y = w · x, with one number as its weight.
struct ScaleImpl : torch::nn::Cloneable<ScaleImpl> {
  ScaleImpl() { reset(); }
  void reset() override { w = register_parameter("w", torch::ones({1})); }
  torch::Tensor forward(torch::Tensor const& x) { return x * w; }
  torch::Tensor w;
};
TORCH_MODULE(Scale);

/// How one forward was called.
struct Call {
  void const* module;
  std::thread::id thread;
  int64_t rows;
  bool grad, training, autocast, cache;
  torch::ScalarType autocast_dtype, default_dtype;
  int intra_op;
};

/// What all replicas of a Witness write to: clones share it.
struct Log {
  std::mutex mutex;
  std::vector<Call> calls;

  /// The calls since the last time, largest parts first.
  std::vector<Call> take() {
    std::lock_guard lock(mutex);
    auto taken = std::exchange(calls, {});
    std::stable_sort(taken.begin(), taken.end(), [](auto const& a, auto const& b) { return a.rows > b.rows; });
    return taken;
  }
  std::vector<int64_t> take_rows() {
    std::vector<int64_t> rows;
    for (auto const& call : take()) rows.push_back(call.rows);
    return rows;
  }
};

struct WitnessImpl : torch::nn::Cloneable<WitnessImpl> {
  WitnessImpl() { reset(); }
  void reset() override { w = register_parameter("w", torch::ones({1})); }
  torch::Tensor forward(torch::Tensor const& x) {
    std::lock_guard lock(log->mutex);
    log->calls.push_back({this, std::this_thread::get_id(), x.dim() ? x.size(0) : -1, torch::GradMode::is_enabled(),
                          is_training(), at::autocast::is_autocast_enabled(at::kCPU),
                          at::autocast::is_autocast_cache_enabled(), at::autocast::get_autocast_dtype(at::kCPU),
                          torch::get_default_dtype_as_scalartype(), at::get_num_threads()});
    return x * w;
  }
  torch::Tensor w;
  std::shared_ptr<Log> log = std::make_shared<Log>();
};
TORCH_MODULE(Witness);

template <class M>
std::shared_ptr<M> clone_of(M const& module) {
  return std::dynamic_pointer_cast<M>(module.clone());
}

/// The gradients of loss_of(all outputs) with a clone of `module` for each of `devices` parts of the batch, added up
/// from the first clone to the last.
template <class M>
std::vector<torch::Tensor> looped_gradients(M const& module, torch::Tensor const& batch, int64_t devices) {
  std::vector<std::shared_ptr<M>> clones;
  std::vector<torch::Tensor> outputs;
  for (auto const& part : batch.chunk(devices)) {
    clones.push_back(clone_of(module));
    outputs.push_back(clones.back()->forward(part));
  }
  loss_of(torch::cat(outputs)).backward();
  auto sums = copies(gradients(*clones.front()));
  for (std::size_t i = 1; i < clones.size(); ++i) {
    auto const own = gradients(*clones[i]);
    for (std::size_t p = 0; p < sums.size(); ++p) sums[p] += own[p];
  }
  return sums;
}

inline bool close(std::vector<torch::Tensor> const& a, std::vector<torch::Tensor> const& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i].defined() != b[i].defined() || (a[i].defined() && !torch::allclose(a[i], b[i], 1e-5, 1e-6))) return false;
  return true;
}

}  // namespace dp_test
