// SPDX-License-Identifier: MIT
/// \file   What many clients' evaluations say together: over all samples, over clients, and how unequal clients are.
/// \layer  fed.
///
/// Sums come before division: the accuracy over all samples is right answers over answers, never a mean of accuracies.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "pardl/fed/round.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// One number per client, described.
/// \source FederatedScope's Results_fairness, core/monitors/monitor.py; \paper Li et al., "Fair resource allocation in
/// federated learning", ICLR 2020 (deviation, tenths, angle and entropy).
struct Spread {
  double mean = 0, deviation = 0;                              ///< population deviation
  double min = 0, bottom_decile = 0, top_decile = 0, max = 0;  ///< of n values in order: 0, n/10, 9n/10, n-1
  double bottom_tenth = 0, top_tenth = 0;  ///< mean of the lowest n/10 values (1 at least), of those from 9n/10 on
  double cosine = 0;                       ///< between the values and (1, …, 1): 1 where all are equal
  double entropy = 0;                      ///< of the values as shares of their sum: log n where all are equal
};

/// NaN for no values.
[[nodiscard]] inline Spread spread(std::vector<double> values) {
  auto const n = values.size();
  if (n == 0) {
    double const none = std::numeric_limits<double>::quiet_NaN();
    return {none, none, none, none, none, none, none, none, none, none};
  }
  std::ranges::sort(values);
  auto const mean = [](std::span<double const> part) {
    double sum = 0;
    for (double const value : part) sum += value;
    return sum / static_cast<double>(part.size());
  };
  std::span<double const> const all(values);
  Spread found;
  found.mean = mean(all);
  double square = 0, sum = 0, deviation = 0;
  for (double const value : values) {
    sum += value;
    square += value * value;
    deviation += (value - found.mean) * (value - found.mean);
  }
  found.deviation = std::sqrt(deviation / static_cast<double>(n));
  found.min = values.front();
  found.max = values.back();
  found.bottom_decile = values[n / 10];
  found.top_decile = values[n * 9 / 10];
  found.bottom_tenth = mean(all.first(std::max<std::size_t>(n / 10, 1)));
  found.top_tenth = mean(all.subspan(n * 9 / 10));
  found.cosine = square > 0 ? sum / std::sqrt(square * static_cast<double>(n)) : 0;
  for (double const value : values)
    if (double const share = (value + 1e-9) / (sum + 1e-9 * static_cast<double>(n)); share > 0)
      found.entropy -= share * std::log(share);
  return found;
}

/// One part (train, val or test) of the clients' samples.
struct PartSummary {
  std::int64_t clients = 0, samples = 0, correct = 0, answers = 0;
  double loss = 0;         ///< over all samples: their sum divided by their number; NaN without any
  double accuracy = 0;     ///< over all answers; NaN where nothing could be right
  Spread client_loss;      ///< each client's loss per sample
  Spread client_accuracy;  ///< each client's accuracy
};

[[nodiscard]] inline PartSummary summarize(std::span<ClientEvaluation const> clients) {
  PartSummary all;
  std::vector<double> losses, accuracies;
  double loss = 0;
  for (auto const& one : clients) {
    if (one.samples == 0) continue;
    ++all.clients;
    all.samples += one.samples;
    all.correct += one.correct;
    all.answers += one.answers;
    loss += one.loss;
    losses.push_back(one.loss / static_cast<double>(one.samples));
    if (one.answers > 0) accuracies.push_back(static_cast<double>(one.correct) / static_cast<double>(one.answers));
  }
  double const none = std::numeric_limits<double>::quiet_NaN();
  all.loss = all.samples > 0 ? loss / static_cast<double>(all.samples) : none;
  all.accuracy = all.answers > 0 ? static_cast<double>(all.correct) / static_cast<double>(all.answers) : none;
  all.client_loss = spread(std::move(losses));
  all.client_accuracy = spread(std::move(accuracies));
  return all;
}

}  // namespace pardl::inline PARDL_ABI::fed
