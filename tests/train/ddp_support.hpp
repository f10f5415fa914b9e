// SPDX-License-Identifier: MIT
// What the tests of DistributedDataParallel share: seeded weights and data that no thread order can change, small nets,
// and the gradients that a rank would have alone.
#pragma once

#include <torch/torch.h>

#include <ATen/CPUGeneratorImpl.h>
#include <cstdint>
#include <string>
#include <vector>

#include "pardl/train/distributed_data_parallel.hpp"
#include "support/ranks.hpp"

namespace ddp_test {

inline torch::Tensor seeded(std::vector<int64_t> const& shape, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, torch::kFloat32);
}

/// The same weights for the same seed, on whichever thread.
inline void fill(torch::nn::Module& module, uint64_t seed) {
  torch::NoGradGuard no_grad;
  for (auto& parameter : module.parameters()) parameter.copy_(seeded(parameter.sizes().vec(), seed++) * 0.3);
}

struct MlpImpl : torch::nn::Module {
  explicit MlpImpl(uint64_t seed = 1) {
    a = register_module("a", torch::nn::Linear(6, 16));
    b = register_module("b", torch::nn::Linear(16, 16));
    c = register_module("c", torch::nn::Linear(16, 3));
    fill(*this, seed);
  }
  torch::Tensor forward(torch::Tensor const& x) { return c(torch::tanh(b(torch::tanh(a(x))))); }
  torch::nn::Linear a = nullptr, b = nullptr, c = nullptr;
};
TORCH_MODULE(Mlp);

struct WithBatchNormImpl : torch::nn::Module {
  explicit WithBatchNormImpl(uint64_t seed = 1) {
    a = register_module("a", torch::nn::Linear(6, 8));
    norm = register_module("norm", torch::nn::BatchNorm1d(8));
    fill(*this, seed);
  }
  torch::Tensor forward(torch::Tensor const& x) { return norm(a(x)); }
  torch::nn::Linear a = nullptr;
  torch::nn::BatchNorm1d norm = nullptr;
};
TORCH_MODULE(WithBatchNorm);

/// The batch of a rank in a step.
inline torch::Tensor batch_of(int rank, int step, int64_t size = 5) {
  return seeded({size, 6}, static_cast<uint64_t>(1000 + 100 * step + rank));
}
inline torch::Tensor loss_of(torch::Tensor const& output) { return output.pow(2).mean(); }

inline std::vector<torch::Tensor> gradients(torch::nn::Module& module) {
  std::vector<torch::Tensor> all;
  for (auto const& parameter : module.parameters()) all.push_back(parameter.grad());
  return all;
}
inline std::vector<torch::Tensor> copies(std::vector<torch::Tensor> const& tensors) {
  std::vector<torch::Tensor> all;
  for (auto const& tensor : tensors) all.push_back(tensor.defined() ? tensor.detach().clone() : tensor);
  return all;
}

/// What the ranks' gradients add up to: each times 1/n, then summed in order.
inline std::vector<torch::Tensor> mean_of_own(MlpImpl& alone, int ranks, int step) {
  std::vector<torch::Tensor> mean;
  for (int rank = 0; rank < ranks; ++rank) {
    for (auto& parameter : alone.parameters()) parameter.mutable_grad() = torch::Tensor();
    loss_of(alone.forward(batch_of(rank, step))).backward();
    auto own = copies(gradients(alone));
    for (std::size_t i = 0; i < own.size(); ++i) {
      own[i].mul_(1.0 / ranks);
      if (rank == 0)
        mean.push_back(own[i]);
      else
        mean[i].add_(own[i]);
    }
  }
  return mean;
}

inline bool same_bits(std::vector<torch::Tensor> const& a, std::vector<torch::Tensor> const& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i].defined() != b[i].defined() || (a[i].defined() && !torch::equal(a[i], b[i]))) return false;
  return true;
}

inline void step(std::vector<torch::Tensor> const& parameters, std::vector<torch::Tensor> const& gradients, double lr) {
  torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < parameters.size(); ++i)
    if (gradients[i].defined()) torch::Tensor(parameters[i]).add_(gradients[i], -lr);
}

/// What a call throws; empty where it does not.
template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (std::exception const& error) {
    return error.what();
  }
  return {};
}
inline bool contains(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

}  // namespace ddp_test
