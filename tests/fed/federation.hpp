// SPDX-License-Identifier: MIT
/// A small federation for tests of strategies: a net with everything that could differ between workers, and its data.
#pragma once

#include <torch/torch.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/data/dataset.hpp"
#include "pardl/fed/clients.hpp"
#include "pardl/fed/local_training.hpp"
#include "pardl/fed/round.hpp"
#include "pardl/io/safetensors.hpp"
#include "support/temporary_folder.hpp"

namespace federation {

namespace fed = pardl::fed;
using pardl::data::TensorDataset;

inline torch::nn::Sequential small_net(bool batch_norm = true, double dropout = 0.5) {
  // Not torch::manual_seed(), which takes GPUs into use: workers that are forked later could not use them.
  auto generator = at::globalContext().defaultGenerator(torch::kCPU);
  generator.set_current_seed(3);
  torch::nn::Sequential net(torch::nn::Linear(8, 16));
  if (batch_norm) net->push_back(torch::nn::BatchNorm1d(16));
  net->push_back(torch::nn::ReLU());
  if (dropout > 0) net->push_back(torch::nn::Dropout(dropout));
  net->push_back(torch::nn::Linear(16, 4));
  return net;
}

/// One weight, for closed forms.
inline torch::nn::Sequential line(double weight = 0) {
  torch::nn::Sequential net(torch::nn::Linear(torch::nn::LinearOptions(1, 1).bias(false)));
  torch::NoGradGuard const no_grad;
  net->parameters()[0].fill_(weight);
  return net;
}

inline constexpr std::int64_t enough = 1000;

inline TensorDataset samples(std::int64_t count = enough) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(std::uint64_t{5});
  auto inputs = torch::randn({count, 8}, generator);
  auto targets = (inputs.sum(1) > 0).to(torch::kLong) + 2 * (inputs.select(1, 0) > 0).to(torch::kLong);
  return {inputs, targets};
}

/// Clients of 5, 6, 7, … samples.
inline fed::ClientShares growing(std::int64_t clients) {
  fed::ClientShares shares;
  std::int64_t next = 0;
  for (std::int64_t c = 0; c < clients; ++c) {
    fed::Shares one;
    for (std::int64_t i = 0; i < 5 + c; ++i) one.train.push_back(next++);
    for (std::int64_t i = 0; i < 3; ++i) one.test.push_back(next++);
    shares.push_back(std::move(one));
  }
  return shares;
}

inline std::vector<torch::Tensor> state_of(torch::nn::Sequential const& net) {
  std::vector<torch::Tensor> state;
  for (auto const& tensor : net->parameters()) state.push_back(tensor.detach().clone());
  for (auto const& tensor : net->buffers()) state.push_back(tensor.detach().clone());
  return state;
}

/// The global model of a runner over small_net.
template <class Runner>
std::vector<torch::Tensor> global_of(Runner const& runner, torch::nn::Sequential net = small_net()) {
  runner.load_global(net);
  return state_of(net);
}

/// Figures of an evaluation, to be compared bit for bit.
inline std::vector<torch::Tensor> figures_of(std::vector<fed::ClientEvaluation> const& clients) {
  std::vector<torch::Tensor> figures;
  for (auto const& one : clients)
    figures.push_back(torch::tensor({static_cast<double>(one.correct), one.loss}, torch::kDouble));
  return figures;
}

inline bool same(std::vector<torch::Tensor> const& a, std::vector<torch::Tensor> const& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!torch::equal(a[i], b[i])) return false;
  return a.size() == b.size();
}

inline bool close(std::vector<torch::Tensor> const& a, std::vector<torch::Tensor> const& b, double tolerance = 1e-6) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!torch::allclose(a[i].to(torch::kDouble), b[i].to(torch::kDouble), tolerance, tolerance)) return false;
  return a.size() == b.size();
}

/// Numbers of one tensor of a file.
template <class Number = float>
std::vector<Number> read(std::filesystem::path const& file, std::string const& name) {
  pardl::io::SafetensorsReader const reader(file);
  auto const& tensor = reader.at(name);
  std::vector<Number> numbers(tensor.bytes / sizeof(Number));
  reader.read(tensor, std::as_writable_bytes(std::span(numbers)));
  return numbers;
}

/// All that a runner's checkpoint holds, byte by byte, but for what it has learned from clocks: the global model, the
/// server's states and numbers, what clients keep.
template <class Runner>
std::map<std::string, std::vector<std::uint8_t>> contents_of(Runner const& runner) {
  pardl::testing::TemporaryFolder const folder;
  runner.save(folder / "state");
  pardl::io::SafetensorsReader const reader(folder / "state");
  std::map<std::string, std::vector<std::uint8_t>> contents;
  for (auto const& tensor : reader.tensors())
    if (tensor.name != "costs") contents[tensor.name] = read<std::uint8_t>(folder / "state", tensor.name);
  return contents;
}

inline fed::LocalTrainingOptions two_epochs(fed::Trained trained = fed::Trained::all) {
  fed::LocalTrainingOptions options;
  options.batches = {.batch_size = 4, .steps = 2, .unit = fed::StepUnit::epoch, .drop_last = true};
  options.max_grad_norm = 1.0;
  options.trained = trained;
  return options;
}

template <class Term = fed::NoTerm>
auto training(Term term = {}, double lr = 0.1) {
  return fed::LocalTraining<fed::CrossEntropy, fed::MakeSGD, Term>(two_epochs(), {.options = {.lr = lr}}, {}, term);
}

}  // namespace federation
