// SPDX-License-Identifier: MIT
/// Local training written down by hand: one weight or two, a handful of points, gradients in closed form.
#pragma once

#include <torch/torch.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "federation.hpp"
#include "pardl/fed/draws.hpp"
#include "pardl/fed/runner.hpp"

namespace federation {

/// Samples (x, y) of one client of a line y = w x; the loss is the mean of (w x - y)².
inline std::vector<double> const xs{1, 2, -1, 0.5, 3}, ys{2, -1, 0.5, 4, 1};

inline TensorDataset points() {
  auto inputs = torch::empty({5, 1}), targets = torch::empty({5, 1});
  for (std::int64_t i = 0; i < 5; ++i) {
    inputs[i] = xs[static_cast<std::size_t>(i)];
    targets[i] = ys[static_cast<std::size_t>(i)];
  }
  return {inputs, targets};
}
inline fed::ClientShares first_points(std::int64_t count, std::size_t clients = 1) {
  fed::Shares one;
  for (std::int64_t i = 0; i < count; ++i) one.train.push_back(i);
  one.test = {0};
  return fed::ClientShares(clients, one);
}

/// The mean gradient, or loss, of some samples at w.
inline double gradient(double w, std::vector<std::size_t> const& batch) {
  double sum = 0;
  for (auto const i : batch) sum += 2 * xs[i] * (w * xs[i] - ys[i]);
  return sum / static_cast<double>(batch.size());
}
inline double loss(double w, std::vector<std::size_t> const& batch) {
  double sum = 0;
  for (auto const i : batch) sum += (w * xs[i] - ys[i]) * (w * xs[i] - ys[i]);
  return sum / static_cast<double>(batch.size());
}

/// Where w comes to in some passes over all points, one at a time in drawn orders: w -= step(w, point).
template <class Step>
double after_passes(double w, int passes, fed::Draws draws, Step step) {
  for (int pass = 0; pass < passes; ++pass) {
    std::vector<std::size_t> order(xs.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    draws.shuffle(order);
    for (auto const i : order) w -= step(w, i);
  }
  return w;
}

template <class Term = fed::NoTerm>
using Training = fed::LocalTraining<fed::MeanSquaredError, fed::MakeSGD, Term>;

struct Trained {
  double weight;
  fed::ClientReport report;
};

/// The weight after one round of one client that starts at `start`.
template <class Local>
Trained train(Local local, std::int64_t samples, double start = 0.5) {
  fed::Runner runner(line(start), points(), first_points(samples), std::move(local), fed::Average{},
                     {.processes = false});
  auto const report = runner.train({0});
  auto net = line();
  runner.load_global(net);
  return {net->parameters()[0].item<double>(), report.clients[0]};
}

inline constexpr double eta = 0.05;
inline fed::MakeSGD const plain{.options = {.lr = eta}};

/// y = h w x: the body w is shared, the head h a client's own.
inline torch::nn::Sequential product(double w, double h) {
  auto net = line(w);
  net->push_back(torch::nn::Linear(torch::nn::LinearOptions(1, 1).bias(false)));
  torch::NoGradGuard const no_grad;
  net->parameters()[1].fill_(h);
  return net;
}
inline fed::RunnerOptions head_kept() {
  fed::RunnerOptions options{.processes = false};
  options.sharing.keep_local = fed::containing({"1."});
  return options;
}

}  // namespace federation
