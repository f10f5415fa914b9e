// SPDX-License-Identifier: MIT
/// \file   The data that a configuration names, as one dataset and every client's shares of it.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "pardl/data/idx.hpp"
#include "pardl/data/leaf.hpp"
#include "pardl/data/synthetic_writers.hpp"
#include "pardl/data/toy.hpp"
#include "pardl/data/transforms.hpp"
#include "pardl/fed/any_partitioner.hpp"
#include "pardl/fed/clients.hpp"
#include "pardl/fed/config.hpp"
#include "pardl/policy/error.hpp"

namespace federated {

namespace fed = pardl::fed;

/// Any transform as a value.
using Transform = std::function<torch::Tensor(torch::Tensor, pardl::SampleStream const&)>;

struct Problem {
  pardl::data::TensorDataset samples;
  fed::ClientShares shares;
  std::vector<std::string> names;   ///< of the clients, where they have some
  std::vector<std::int64_t> shape;  ///< of a sample
  std::int64_t classes = 0;         ///< 0: targets are numbers
  std::string what;                 ///< for the first line
};

inline constexpr std::int64_t stand_in_clients = 100;
inline constexpr std::int64_t stand_in_samples = 227;  ///< per client: the mean of FEMNIST's 3,550 writers
inline constexpr double stand_in_alpha = 0.5;

inline fed::Fractions fractions(fed::Config const& config) {
  auto const& splits = config.data.splits;
  return {splits.at(0), splits.size() > 1 ? splits[1] : 0, splits.size() > 2 ? splits[2] : 0};
}

inline Problem with_writers(pardl::data::TensorDataset samples, std::int64_t classes, fed::Partition partition,
                            std::vector<std::string> names, fed::Config const& config, std::string what) {
  auto const limit = static_cast<std::size_t>(config.federate.client_num);
  if (limit > 0 && partition.size() > limit) partition.resize(limit);
  names.resize(std::min(names.size(), partition.size()));
  auto const seed = static_cast<std::uint64_t>(config.seed);
  auto shares = fed::split_shares(partition, fractions(config), seed, names);
  auto shape = samples.inputs().sizes().slice(1).vec();
  return {std::move(samples), std::move(shares), std::move(names), std::move(shape), classes, std::move(what)};
}

/// Real images for a machine without FEMNIST: as many clients and samples as the job would have, classes skewed.
inline Problem stand_in(fed::Config const& config) {
  pardl::data::FashionMnist const all(config.data.root, pardl::data::Split::train);
  auto const clients = config.federate.client_num > 0 ? config.federate.client_num : stand_in_clients;
  auto const images = all.first(std::min(all.size(), clients * stand_in_samples));
  auto const labels = images.labels().contiguous();
  std::span<std::int64_t const> const classes{labels.const_data_ptr<std::int64_t>(),
                                              static_cast<std::size_t>(images.size())};
  auto const partition = fed::Dirichlet{.alpha = stand_in_alpha, .min_samples = 10}.split(
      classes, static_cast<std::size_t>(clients), static_cast<std::uint64_t>(config.seed));
  return with_writers({images.images(), images.labels()}, images.classes(), partition, {}, config,
                      "Fashion-MNIST, " + std::to_string(images.size()) + " images split among " +
                          std::to_string(clients) + " clients by a Dirichlet partition over classes (alpha 0.5)");
}

/// A partition by data.splitter for data without owners.
inline fed::Partition split(fed::Config const& config, torch::Tensor const& labels, std::int64_t clients) {
  auto const& args = config.data.splitter_args;
  fed::require_known_arguments(args, "data.splitter",
                               {"alpha", "sigma", "classes_per_client", "shards_per_client", "min_samples"});
  auto const number = [&](char const* name, double otherwise) {
    return fed::number_argument(args, "data.splitter", name, otherwise);
  };
  fed::PartitionChoice choice;
  choice.alpha = number("alpha", choice.alpha);
  choice.sigma = number("sigma", choice.sigma);
  choice.classes_per_client = static_cast<std::size_t>(number("classes_per_client", 2));
  choice.shards_per_client = static_cast<std::size_t>(number("shards_per_client", 2));
  choice.min_samples = static_cast<std::int64_t>(number("min_samples", 1));
  auto const host = labels.contiguous();
  return fed::make_partitioner(config.data.splitter, choice)
      .split({host.const_data_ptr<std::int64_t>(), static_cast<std::size_t>(host.numel())},
             static_cast<std::size_t>(clients), static_cast<std::uint64_t>(config.seed));
}

/// \throws DataError or ConfigError with what to do.
inline Problem load(fed::Config const& config, bool use_stand_in) {
  auto const& type = config.data.type;
  auto const& root = config.data.root;
  if (type == "femnist" && use_stand_in) return stand_in(config);
  if (type == "femnist") {
    if (!pardl::data::leaf_found(root))
      throw pardl::DataError(
          pardl::sentence("data", "there are no LEAF files of FEMNIST in " + root,
                          "make them with LEAF (github.com/TalwalkarLab/leaf: data/femnist/preprocess.sh -s niid --sf "
                          "1.0 -t sample) and "
                          "give their folder as data.root, or add --stand-in to run this job on Fashion-MNIST"));
    auto leaf = pardl::data::read_leaf(root, {.subsample = config.data.subsample});
    auto const* bytes = std::get_if<pardl::data::ImageDataset>(&leaf.samples);
    auto const* floats = std::get_if<pardl::data::TensorDataset>(&leaf.samples);
    pardl::data::TensorDataset samples =
        bytes != nullptr ? pardl::data::TensorDataset{bytes->images(), bytes->labels()} : *floats;
    auto partition = leaf.writers.partition();
    auto names = leaf.writers.names;
    for (std::size_t i = partition.size(); i-- > 0;)
      if (partition[i].empty()) {
        partition.erase(partition.begin() + static_cast<std::ptrdiff_t>(i));
        names.erase(names.begin() + static_cast<std::ptrdiff_t>(i));
      }
    return with_writers(std::move(samples), 62, std::move(partition), std::move(names), config,
                        "FEMNIST, " + std::to_string(leaf.size()) + " images from " + std::to_string(leaf.files) +
                            " LEAF files in " + root);
  }
  if (type == "synthetic_femnist") {
    auto const writers = config.federate.client_num > 0 ? config.federate.client_num : stand_in_clients;
    auto made = pardl::data::make_synthetic_writers(
        {.writers = writers, .mean_samples = 100, .seed = static_cast<std::uint64_t>(config.seed)});
    return with_writers({made.samples.images(), made.samples.labels()}, made.samples.classes(),
                        made.writers.partition(), made.writers.names, config,
                        "synthetic writers in FEMNIST's shape, " + std::to_string(made.samples.size()) + " images");
  }
  if (type == "FashionMNIST@torchvision") {
    pardl::data::FashionMnist const all(root, pardl::data::Split::train);
    if (config.data.splitter.empty())
      throw pardl::ConfigError(
          pardl::sentence("config", "data.type FashionMNIST@torchvision has no owners and data.splitter is empty",
                          "give data.splitter, such as lda"));
    auto const images =
        all.first(std::max<std::int64_t>(1, std::llround(config.data.subsample * static_cast<double>(all.size()))));
    auto const clients = config.federate.client_num > 0 ? config.federate.client_num : stand_in_clients;
    return with_writers({images.images(), images.labels()}, images.classes(), split(config, images.labels(), clients),
                        {}, config,
                        "Fashion-MNIST, " + std::to_string(images.size()) + " images split by " + config.data.splitter);
  }
  if (type == "toy") {
    auto const clients = config.federate.client_num > 0 ? config.federate.client_num : 5;
    auto toy = pardl::data::make_toy({.clients = clients, .seed = static_cast<std::uint64_t>(config.seed)});
    auto shape = toy.samples.inputs().sizes().slice(1).vec();
    return {toy.samples, fed::with_common_evaluation(toy.train, toy.val, toy.test), {}, std::move(shape),
            0,           "toy regression, " + std::to_string(clients) + " clients"};
  }
  throw pardl::ConfigError(pardl::sentence("config", "data.type is '" + type + "'",
                                           "femnist, FashionMNIST@torchvision, synthetic_femnist and toy are built"));
}

/// data.transform as one transform over batches. \throws ConfigError for one that is not built.
inline Transform transform(fed::Config const& config, Problem const& problem) {
  bool const bytes = problem.samples.inputs().scalar_type() == torch::kByte;
  std::vector<Transform> steps;
  bool floats = !bytes;
  for (auto const& [name, args] : config.data.transform) {
    if (name == "ToTensor") {
      fed::require_known_arguments(args, name, {});
      if (!floats)
        steps.emplace_back([](torch::Tensor x, pardl::SampleStream const&) { return x.to(torch::kFloat).div_(255); });
      floats = true;
    } else if (name == "Normalize") {
      fed::require_known_arguments(args, name, {"mean", "std"});
      auto const mean = fed::numbers_argument(args, name, "mean"), std = fed::numbers_argument(args, name, "std");
      auto const channels = problem.shape.empty() ? 1 : static_cast<std::size_t>(problem.shape[0]);
      for (double const deviation : std)
        if (!(deviation > 0))
          throw pardl::ConfigError(pardl::sentence(
              "config", "data.transform: Normalize by a std of " + std::to_string(deviation), "it is above 0"));
      if (!floats || mean.size() != channels || std.size() != channels)
        throw pardl::ConfigError(pardl::sentence(
            "config",
            floats ? "data.transform: Normalize has other than " + std::to_string(channels) + " means and deviations"
                   : "data.transform: Normalize comes before ToTensor",
            floats ? "give one of each per channel" : "put ToTensor first"));
      auto const m = torch::tensor(mean, torch::kFloat).view({1, -1, 1, 1}),
                 s = torch::tensor(std, torch::kFloat).view({1, -1, 1, 1});
      steps.emplace_back([m, s](torch::Tensor x, pardl::SampleStream const&) {
        return x.sub(m.to(x.device())).div_(s.to(x.device()));
      });
    } else {
      throw pardl::ConfigError(
          pardl::sentence("config", "data.transform: '" + name + "' is not built", "ToTensor and Normalize are"));
    }
  }
  if (!floats)
    throw pardl::ConfigError(
        pardl::sentence("config", "data.transform leaves images as bytes", "begin with ['ToTensor']"));
  return [steps](torch::Tensor x, pardl::SampleStream const& stream) {
    for (auto const& step : steps) x = step(std::move(x), stream);
    return x;
  };
}

}  // namespace federated
