// SPDX-License-Identifier: MIT
/// \file   What each client trains, validates and tests on: three lists of sample numbers, out of its part of the data.
/// \layer  fed (std only).
///
/// All samples of all clients lie in one dataset; a client is a list of numbers into it, and so are its three shares.
/// Ten thousand clients then cost their numbers, 8 bytes a sample, and no copy of any sample.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/fed/draws.hpp"
#include "pardl/fed/partition.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// The sample numbers of one client, ascending in each share. The shares of split_shares are disjoint; data that comes
/// with a common validation and test set (with_common_evaluation) lists that for every client.
struct Shares {
  std::vector<std::int64_t> train;  ///< local updates draw their batches from these
  std::vector<std::int64_t> val;    ///< early stopping looks at these; may be empty
  std::vector<std::int64_t> test;   ///< reported; may be empty
};

/// For each client its shares, as numbers into ONE dataset that holds all samples of all clients.
using ClientShares = std::vector<Shares>;

/// How a client's samples are shared out.
struct Fractions {
  double train = 0.8;  ///< of the client's samples, rounded down
  double val = 0.1;    ///< of the client's samples; taken as val / (1 - train) of those that are left, rounded down
  double test = 0.1;   ///< the rest where the three add up to 1; otherwise rounded down, and what is over is not used
};

namespace purpose {
inline constexpr std::uint32_t shares = 20;  ///< fed/clients.hpp; see the list in fed/draws.hpp
}  // namespace purpose

namespace detail {

[[nodiscard]] inline std::string client_text(std::size_t client, std::span<std::string const> names,
                                             std::size_t first_number = 0) {
  return "client " + std::to_string(client + first_number) + (client < names.size() ? " (" + names[client] + ")" : "");
}

/// floor(fraction · count), and never more than count. What a fraction lost in binary is forgiven: 0.29 of 100 is 29,
/// where the floating-point product is a little less.
[[nodiscard]] inline std::size_t part_of(double fraction, std::size_t count) {
  return std::min(count, static_cast<std::size_t>(std::floor(fraction * static_cast<double>(count) + 1e-9)));
}

}  // namespace detail

/// \throws ConfigError unless each fraction lies in [0, 1], train is above 0, and they add up to at most 1.
inline void check(Fractions const& f) {
  auto const inside = [](double fraction) { return fraction >= 0 && fraction <= 1; };  // false for NaN
  if (!inside(f.train) || !inside(f.val) || !inside(f.test) || f.train == 0 || f.train + f.val + f.test > 1 + 1e-9)
    throw ConfigError(
        sentence("fed",
                 "shares of " + std::to_string(f.train) + " for training, " + std::to_string(f.val) +
                     " for validation and " + std::to_string(f.test) + " for tests",
                 "give each client three fractions between 0 and 1, the first above 0, that add up to at most 1"));
}

/// Shares out the samples of every client, in an order drawn for it from (seed, client).
///
/// Kept from FederatedScope's LEAF reader: the numbers of samples (train_test_split of scikit-learn, applied twice:
/// training gets floor(train · n), validation floor(val / (1 - train) · rest), tests what is left), and that each
/// client is split by itself. Not kept: which sample goes where, since that is NumPy's permutation for the seed 1234,
/// the same for all clients of one size; the sample that it loses where a fraction is not exact in binary; its refusal
/// of clients whose validation share would be empty (here that share is empty, and evaluation leaves the client out);
/// and that the third fraction is ignored.
///
/// A client's shares depend on the seed, its number and its own samples alone. \cost one shuffle and one sort a client.
/// \param names of the clients for messages, or nothing. \param first_number of them in messages.
/// \throws ConfigError for wrong fractions (see check); DataError for a client that is left without training samples.
[[nodiscard]] inline ClientShares split_shares(Partition const& partition, Fractions const& fractions,
                                               std::uint64_t seed, std::span<std::string const> names = {},
                                               std::size_t first_number = 0) {
  check(fractions);
  bool const all = fractions.train + fractions.val + fractions.test >= 1 - 1e-9;
  ClientShares clients;
  clients.reserve(partition.size());
  for (std::size_t client = 0; client < partition.size(); ++client) {
    std::vector<std::int64_t> order = partition[client];
    auto const train = detail::part_of(fractions.train, order.size());
    if (train == 0)
      throw DataError(sentence("fed",
                               detail::client_text(client, names, first_number) + " has " +
                                   std::to_string(order.size()) + " samples, of which a share of " +
                                   std::to_string(fractions.train) + " leaves none to train on",
                               "give it more samples, or raise the training share"));
    auto const rest = order.size() - train;
    auto const val = fractions.val > 0 ? detail::part_of(fractions.val / (1 - fractions.train), rest) : 0;
    auto const test = all ? rest - val : std::min(rest - val, detail::part_of(fractions.test, order.size()));

    Draws draws(seed, 0, client, purpose::shares);
    draws.shuffle(std::span(order));
    auto const share = [&](std::size_t from, std::size_t count) {
      auto const begin = order.begin() + static_cast<std::ptrdiff_t>(from);
      std::vector<std::int64_t> numbers(begin, begin + static_cast<std::ptrdiff_t>(count));
      std::ranges::sort(numbers);
      return numbers;
    };
    clients.push_back({share(0, train), share(train, val), share(train + val, test)});
  }
  return clients;
}

/// Clients with training samples of their own and one validation and test set for all, as FederatedScope's toy data.
/// \throws DataError for a client without training samples.
[[nodiscard]] inline ClientShares with_common_evaluation(Partition train, std::vector<std::int64_t> const& val,
                                                         std::vector<std::int64_t> const& test) {
  ClientShares clients;
  clients.reserve(train.size());
  for (std::size_t client = 0; client < train.size(); ++client) {
    if (train[client].empty())
      throw DataError(sentence("fed", detail::client_text(client, {}) + " has no training samples",
                               "leave the client out, or give it samples"));
    clients.push_back({std::move(train[client]), val, test});
  }
  return clients;
}

}  // namespace pardl::inline PARDL_ABI::fed
