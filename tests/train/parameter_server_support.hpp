// SPDX-License-Identifier: MIT
// What the tests of ParameterServer share: the same training in one process, given which version each worker used.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "ddp_support.hpp"
#include "pardl/train/optim.hpp"
#include "pardl/train/parameter_server.hpp"

namespace ps_test {

using namespace ddp_test;

/// versions[w][c]: of the parameters with which worker w made its step c.
using Versions = std::vector<std::vector<std::int64_t>>;

inline Versions synchronous(std::vector<int> const& steps) {
  Versions versions;
  for (int const n : steps) {
    versions.emplace_back();
    for (std::int64_t c = 0; c < n; ++c) versions.back().push_back(c);
  }
  return versions;
}

inline pardl::optim::SGD sgd(std::vector<torch::Tensor> parameters) {
  return pardl::optim::SGD(std::move(parameters), {.lr = 0.1, .momentum = 0.9, .weight_decay = 0.01});
}

/// A worker's forward and backward in its step c.
template <class Net>
void backward(Net& net, int worker, std::int64_t c) {
  for (auto& parameter : net->parameters()) parameter.mutable_grad() = torch::Tensor();
  loss_of(net->forward(batch_of(worker, static_cast<int>(c)))).backward();
}

/// Every version of the parameters: gradients at the versions given, summed in the order of workers, divided, stepped.
template <class Net>
std::vector<std::vector<torch::Tensor>> replay(Net net, Versions const& versions) {
  auto optimizer = sgd(net->parameters());
  std::vector<std::vector<torch::Tensor>> history{copies(net->parameters())};
  std::size_t clocks = 0;
  for (auto const& each : versions) clocks = std::max(clocks, each.size());
  auto const become = [&](std::size_t version) {
    torch::NoGradGuard no_grad;
    auto const parameters = net->parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) torch::Tensor(parameters[i]).copy_(history[version][i]);
  };
  for (std::size_t c = 0; c < clocks; ++c) {
    std::vector<torch::Tensor> mean;
    int givers = 0;
    for (std::size_t w = 0; w < versions.size(); ++w) {
      if (c >= versions[w].size()) continue;
      ++givers;
      become(static_cast<std::size_t>(versions[w][c]));
      backward(net, static_cast<int>(w), static_cast<std::int64_t>(c));
      auto own = copies(gradients(*net));
      if (mean.empty())
        mean = std::move(own);
      else
        for (std::size_t i = 0; i < mean.size(); ++i) mean[i].add_(own[i]);
    }
    become(c);
    auto parameters = net->parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].mutable_grad() = mean[i].div_(givers);
    optimizer.step();
    history.push_back(copies(net->parameters()));
  }
  return history;
}

/// Takes as long as it takes: the ranks' order of arrival changes with it.
inline void dawdle(unsigned work) {
  auto x = torch::ones({16, 16});
  for (unsigned i = 0; i < work; ++i) x = torch::tanh(x.mm(x));
}

}  // namespace ps_test
