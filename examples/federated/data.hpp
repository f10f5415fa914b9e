// SPDX-License-Identifier: MIT
/// \file   The data that a configuration names, as one dataset and every client's shares of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
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
  std::vector<std::int64_t> shape;  ///< of a sample, as the model gets it
  std::int64_t classes = 0;         ///< 0: targets are numbers
  std::string what;                 ///< for the first line
  bool common_evaluation = false;   ///< all clients have the same validation and test samples
  std::vector<std::string> warnings{};
};

/// In messages and logs clients are counted as FederatedScope does; 0 is the server.
inline constexpr std::size_t first_client = 1;

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
  auto shares = fed::split_shares(partition, fractions(config), seed, names, first_client);
  auto shape = samples.inputs().sizes().slice(1).vec();
  return {std::move(samples), std::move(shares), std::move(names), std::move(shape), classes, std::move(what)};
}

/// A data.root that was asked for and has no Fashion-MNIST is passed over where Debian's package has it.
inline std::vector<std::string> passed_over(fed::Config const& config) {
  std::filesystem::path const root = config.data.root;
  if (config.data.root == fed::Config().data.root) return {};
  for (auto const& folder : {root, root / "fashion-mnist", root / "FashionMNIST" / "raw"})
    for (char const* const name : {"train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"})
      if (std::filesystem::exists(folder / name)) return {};
  return {"data.root '" + config.data.root + "' has no Fashion-MNIST: the one of Debian's package is used"};
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
  auto problem =
      with_writers({images.images(), images.labels()}, images.classes(), partition, {}, config,
                   "Fashion-MNIST, " + std::to_string(images.size()) + " images split among " +
                       std::to_string(clients) + " clients by a Dirichlet partition over classes (alpha 0.5)");
  problem.warnings = passed_over(config);
  return problem;
}

/// A partition by data.splitter for data without owners.
inline fed::Partition split(fed::Config const& config, torch::Tensor const& labels, std::int64_t clients) {
  auto const& args = config.data.splitter_args;
  auto const number = [&](char const* name, double otherwise) {
    return fed::number_argument(args, "data.splitter", name, otherwise);
  };
  auto const count = [&](char const* name, double otherwise) {
    double const value = number(name, otherwise);
    if (!(value >= 1 && value <= 1e9 && value == std::floor(value)))
      throw pardl::ConfigError(
          pardl::sentence("config", "data.splitter_args: " + std::string(name) + " is " + std::to_string(value),
                          "give a whole number of 1 or more"));
    return static_cast<std::int64_t>(value);
  };
  fed::PartitionChoice choice;
  choice.alpha = number("alpha", choice.alpha);
  choice.sigma = number("sigma", choice.sigma);
  choice.classes_per_client = static_cast<std::size_t>(count("classes_per_client", 2));
  choice.shards_per_client = static_cast<std::size_t>(count("shards_per_client", 2));
  choice.min_samples = count("min_samples", 1);
  auto const host = labels.contiguous();
  return fed::make_partitioner(config.data.splitter, choice)
      .split({host.const_data_ptr<std::int64_t>(), static_cast<std::size_t>(host.numel())},
             static_cast<std::size_t>(clients), static_cast<std::uint64_t>(config.seed));
}

/// The data as it is stored. \throws DataError or ConfigError with what to do.
inline Problem read(fed::Config const& config, bool use_stand_in) {
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
    auto const writers = partition.size();
    auto const least = std::ceil(1 / fractions(config).train - 1e-9);  // of images, for one to train on
    for (std::size_t i = partition.size(); i-- > 0;)
      if (static_cast<double>(partition[i].size()) < least) {
        partition.erase(partition.begin() + static_cast<std::ptrdiff_t>(i));
        names.erase(names.begin() + static_cast<std::ptrdiff_t>(i));
      }
    auto const left_out = writers - partition.size();
    return with_writers(std::move(samples), 62, std::move(partition), std::move(names), config,
                        "FEMNIST, " + std::to_string(leaf.size()) + " images from " + std::to_string(leaf.files) +
                            " LEAF files in " + root +
                            (left_out > 0 ? "; " + std::to_string(left_out) + (left_out == 1 ? " writer" : " writers") +
                                                " with too few images to train on left out"
                                          : ""));
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
    auto problem = with_writers(
        {images.images(), images.labels()}, images.classes(), split(config, images.labels(), clients), {}, config,
        "Fashion-MNIST, " + std::to_string(images.size()) + " images split by " + config.data.splitter);
    problem.warnings = passed_over(config);
    return problem;
  }
  if (type == "toy") {
    auto const clients = config.federate.client_num > 0 ? config.federate.client_num : 5;
    auto toy = pardl::data::make_toy({.clients = clients, .seed = static_cast<std::uint64_t>(config.seed)});
    auto shape = toy.samples.inputs().sizes().slice(1).vec();
    return {toy.samples, fed::with_common_evaluation(toy.train, toy.val, toy.test), {},  std::move(shape),
            0,           "toy regression, " + std::to_string(clients) + " clients", true};
  }
  throw pardl::ConfigError(pardl::sentence("config", "data.type is '" + type + "'",
                                           "femnist, FashionMNIST@torchvision, synthetic_femnist and toy are built"));
}

/// What data.transform makes of a batch, and of the shape of one sample.
struct Transformed {
  Transform transform;
  std::vector<std::int64_t> shape;
};

/// data.transform in its order, for samples of `shape`. Random steps are for training; to evaluate they are left out,
/// but where a RandomCrop changes the size, the middle of the image is taken. A step's place in the list is its
/// position in the random stream, so what the others are does not change its draws.
/// \throws ConfigError for a transform that is not built, or cannot be applied to these samples.
inline Transformed make_transform(fed::Calls const& calls, bool bytes, std::vector<std::int64_t> shape, bool training) {
  auto const refuse = [](std::string const& what, std::string const& remedy) {
    throw pardl::ConfigError(pardl::sentence("config", "data.transform: " + what, remedy));
  };
  auto const pixels = [&](fed::Call const& call, char const* name, std::int64_t least) {
    double const value = fed::number_argument(call.args, call.name, name, 0);
    if (!(value >= static_cast<double>(least) && value <= 65536 && value == std::floor(value)))
      refuse(call.name + " without a whole number as " + name, "it is at least " + std::to_string(least));
    return static_cast<std::int64_t>(value);
  };
  std::vector<std::pair<std::uint32_t, Transform>> steps;
  bool floats = !bytes;
  for (std::uint32_t position = 0; position < calls.size(); ++position) {
    auto const& call = calls[position];
    auto const add = [&](Transform step) { steps.emplace_back(position, std::move(step)); };
    if (call.name == "ToTensor") {
      fed::require_known_arguments(call.args, call.name, {});
      if (!floats) add(pardl::ToFloat{});
      floats = true;
      continue;
    }
    if (shape.size() != 3) refuse(call.name + " takes images, and the data has none", "leave it out");
    if (call.name == "Normalize") {
      fed::require_known_arguments(call.args, call.name, {"mean", "std"});
      auto const mean = fed::numbers_argument(call.args, call.name, "mean"),
                 std = fed::numbers_argument(call.args, call.name, "std");
      auto const channels = static_cast<std::size_t>(shape[0]);
      for (double const deviation : std)
        if (!(deviation > 0)) refuse("Normalize by a std of " + std::to_string(deviation), "it is above 0");
      if (!floats) refuse("Normalize comes before ToTensor", "put ToTensor first");
      if (mean.size() != channels || std.size() != channels)
        refuse("Normalize has other than " + std::to_string(channels) + " means and deviations",
               "give one of each per channel");
      add(pardl::Normalize(mean, std));
    } else if (call.name == "RandomCrop") {
      fed::require_known_arguments(call.args, call.name, {"size", "padding"});
      pardl::RandomCrop const crop{.size = pixels(call, "size", 1), .padding = pixels(call, "padding", 0)};
      if (crop.size > std::min(shape[1], shape[2]) + 2 * crop.padding)
        refuse("RandomCrop of " + std::to_string(crop.size) + " pixels from images of " + std::to_string(shape[1]) +
                   " x " + std::to_string(shape[2]) + " with " + std::to_string(crop.padding) + " around them",
               "take a size that fits");
      if (training)
        add(crop);
      else if (crop.size != shape[1] || crop.size != shape[2])
        add(pardl::CenterCrop{crop.size});
      shape[1] = shape[2] = crop.size;
    } else if (call.name == "RandomHorizontalFlip") {
      fed::require_known_arguments(call.args, call.name, {"p"});
      double const p = fed::number_argument(call.args, call.name, "p", 0.5);
      if (!(p >= 0 && p <= 1))
        refuse("RandomHorizontalFlip with a probability of " + std::to_string(p), "it lies from 0 to 1");
      if (training) add(pardl::RandomHorizontalFlip{p});
    } else {
      refuse("'" + call.name + "' is not built", "ToTensor, Normalize, RandomCrop and RandomHorizontalFlip are");
    }
  }
  if (!floats) refuse("images stay bytes", "add ['ToTensor']");
  return {[steps = std::move(steps)](torch::Tensor x, pardl::SampleStream const& stream) {
            for (auto const& [position, step] : steps) x = step(std::move(x), stream.at(stream.position + position));
            return x;
          },
          std::move(shape)};
}

inline Transformed make_transform(fed::Config const& config, Problem const& problem, bool training) {
  auto const& inputs = problem.samples.inputs();
  return make_transform(config.data.transform, inputs.scalar_type() == torch::kByte, inputs.sizes().slice(1).vec(),
                        training);
}

/// data.transform for batches that a model is trained on. \throws ConfigError as make_transform().
inline Transform transform(fed::Config const& config, Problem const& problem) {
  return make_transform(config, problem, true).transform;
}

/// data.transform for batches that a model is evaluated on: without what is random. \throws ConfigError likewise.
inline Transform evaluation_transform(fed::Config const& config, Problem const& problem) {
  return make_transform(config, problem, false).transform;
}

/// What the configuration names, ready for a model. \throws DataError or ConfigError with what to do.
inline Problem load(fed::Config const& config, bool use_stand_in) {
  auto problem = read(config, use_stand_in);
  problem.shape = make_transform(config, problem, true).shape;
  return problem;
}

}  // namespace federated
