// SPDX-License-Identifier: MIT
// Buckets made by hand, for tests of hooks that want to choose every gradient themselves.
#pragma once

#include <torch/torch.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <utility>
#include <vector>

#include "ddp_support.hpp"
#include "pardl/comm/process_group.hpp"

namespace ddp_test {

using Shapes = std::vector<std::vector<std::int64_t>>;

/// Parameters p0, p1, ... of given shapes, and buckets of gradients for all of them.
struct Heap : torch::nn::Module {
  explicit Heap(Shapes wanted) : shapes(std::move(wanted)) {
    for (std::size_t i = 0; i < shapes.size(); ++i)
      all.push_back(register_parameter("p" + std::to_string(i), torch::zeros(shapes[i])));
  }

  [[nodiscard]] std::vector<torch::Tensor> random_gradients(std::uint64_t seed) const {
    std::vector<torch::Tensor> gradients;
    for (auto const& shape : shapes) gradients.push_back(seeded(shape, seed++));
    return gradients;
  }

  [[nodiscard]] c10d::GradBucket bucket(std::vector<torch::Tensor> const& gradients, std::size_t index = 0,
                                        std::size_t count = 1) const {
    std::vector<torch::Tensor> flat;
    std::vector<std::size_t> offsets, lengths;
    std::vector<c10::IntArrayRef> sizes;
    std::size_t at = 0;
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      flat.push_back(gradients[i].reshape(-1));
      offsets.push_back(at);
      lengths.push_back(static_cast<std::size_t>(gradients[i].numel()));
      sizes.emplace_back(shapes[i]);
      at += lengths.back();
    }
    return c10d::GradBucket(index, count, torch::cat(flat), offsets, lengths, sizes, all, std::nullopt);
  }

  /// What a hook makes of these gradients on this rank.
  template <class Hook>
  std::vector<torch::Tensor> reduced(Hook& hook, pardl::ProcessGroup const& world,
                                     std::vector<torch::Tensor> const& gradients) const {
    auto made = bucket(gradients);
    auto const future = hook(world, made);
    future->waitAndThrow();
    auto const flat = c10d::detail::parseCppCommHookResult(future->value());
    std::vector<torch::Tensor> results;
    std::int64_t at = 0;
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      results.push_back(flat.narrow(0, at, gradients[i].numel()).view(gradients[i].sizes()).clone());
      at += gradients[i].numel();
    }
    return results;
  }

  Shapes shapes;
  std::vector<torch::Tensor> all;
};

/// The largest gap, over the largest value of `right`.
inline double gap(torch::Tensor const& left, torch::Tensor const& right) {
  auto const largest = right.abs().max().item<double>();
  return (left - right).abs().max().item<double>() / (largest > 0 ? largest : 1);
}

inline torch::Tensor mean(std::vector<torch::Tensor> const& parts) {
  return torch::stack(parts).to(torch::kFloat64).mean(0);
}

/// PowerSGD as it is made here compresses from the third call on, so two go before it.
template <class Hook>
void warm_up(Heap const& heap, Hook& hook, pardl::ProcessGroup const& world) {
  for (int s = 0; s < 2; ++s) (void)heap.reduced(hook, world, heap.random_gradients(1));
}

}  // namespace ddp_test
