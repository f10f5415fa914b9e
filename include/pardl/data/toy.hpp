// SPDX-License-Identifier: MIT
/// \file   FederatedScope's data `toy`: clients that share one linear law and differ in the spread of their inputs.
/// \layer  data.
///
/// One weight per feature and one bias, standard normal, are common to all. Client k = 1, 2, … has inputs with
/// deviation k / 2 and targets x·w + b without noise; the validation and the test set, with deviation 1, are one and
/// the same for every client. The model `lr` with the mean squared error can fit it exactly, but not at every learning
/// rate: steps of client k alone converge below 4 / k². With a hundred clients the rate 0.1 diverges, in FederatedScope
/// as here.
///
/// \source federatedscope/core/data/utils.py, load_toy_data: 1000 samples of 5 features for each client. The law and
/// the shapes are its own; the numbers come from other draws.
#pragma once

#include <torch/types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "pardl/data/dataset.hpp"
#include "pardl/data/detail/keyed_words.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::data {

struct ToyOptions {
  std::int64_t clients = 5;
  std::int64_t samples = 1000;  ///< of each client, and of the validation and of the test set
  std::int64_t features = 5;
  double spread = 0.5;     ///< the inputs of client k = 1, 2, … have deviation spread · k
  std::uint64_t seed = 0;  ///< of weights, bias and inputs
};

/// The samples of all clients, then the validation set, then the test set.
struct Toy {
  TensorDataset samples;                         ///< inputs float [N, features], targets float [N, 1]
  std::vector<std::vector<std::int64_t>> train;  ///< for each client its sample numbers
  std::vector<std::int64_t> val;                 ///< of all clients
  std::vector<std::int64_t> test;                ///< of all clients
  std::vector<double> weights;                   ///< the law, one per feature
  double bias = 0;                               ///< the law
};

/// Makes the toy data. A client's inputs depend on the seed and its number alone, not on how many clients there are.
/// \throws ConfigError for no client, sample or feature, or a spread that is not a number above 0. \cost 30 ns a
/// number.
[[nodiscard]] inline Toy make_toy(ToyOptions const& o = {}) {
  if (o.clients < 1 || o.samples < 1 || o.features < 1 || !(o.spread > 0) || !std::isfinite(o.spread))
    throw ConfigError(sentence("data",
                               "toy data of " + std::to_string(o.clients) + " clients with " +
                                   std::to_string(o.samples) + " samples of " + std::to_string(o.features) +
                                   " features and spread " + std::to_string(o.spread),
                               "counts are at least 1 and the spread is above 0"));
  std::vector<double> weights(static_cast<std::size_t>(o.features));
  detail::KeyedWords law(o.seed, 0, 0, 1);
  for (double& weight : weights) weight = law.normal();
  double const bias = law.normal();

  auto const sets = o.clients + 2;
  auto inputs = torch::empty({sets * o.samples, o.features}, torch::kFloat);
  auto targets = torch::empty({sets * o.samples, 1}, torch::kFloat);
  auto* input = inputs.mutable_data_ptr<float>();
  auto* target = targets.mutable_data_ptr<float>();
  std::vector<std::vector<std::int64_t>> numbers(static_cast<std::size_t>(sets));
  std::int64_t sample = 0;
  for (std::int64_t set = 0; set < sets; ++set) {
    bool const common = set >= o.clients;
    double const deviation = common ? 1.0 : o.spread * static_cast<double>(set + 1);
    for (std::int64_t row = 0; row < o.samples; ++row, ++sample) {
      detail::KeyedWords draws(o.seed, static_cast<std::uint32_t>(row),
                               static_cast<std::uint32_t>(common ? set - o.clients : set), common ? 3 : 2);
      double sum = bias;
      for (double const weight : weights) {
        *input = static_cast<float>(deviation * draws.normal());
        sum += double{*input++} * weight;
      }
      *target++ = static_cast<float>(sum);
    }
    auto& list = numbers[static_cast<std::size_t>(set)];
    list.resize(static_cast<std::size_t>(o.samples));
    std::iota(list.begin(), list.end(), set * o.samples);
  }
  auto test = std::move(numbers.back());
  numbers.pop_back();
  auto val = std::move(numbers.back());
  numbers.pop_back();
  return {{std::move(inputs), std::move(targets)},
          std::move(numbers),
          std::move(val),
          std::move(test),
          std::move(weights),
          bias};
}

}  // namespace pardl::inline PARDL_ABI::data
