// SPDX-License-Identifier: MIT
/// \file   Which clients take part in a round.
/// \layer  fed (std only).
///
/// A sampler is a pure function of its settings, the round, the number of clients and the seed: a job that is resumed,
/// or run with other workers, samples the same clients. All draw without replacement. Clients are numbered from 0 and
/// returned in ascending order (the order in which they are trained is fed/schedule.hpp's business).
/// \paper Efraimidis, Spirakis, "Weighted random sampling with a reservoir", IPL 97(5), 2006; Madow, "On the theory of
/// systematic sampling, II", Ann. Math. Stat. 20(3), 1949.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/fed/detail/portable_math.hpp"
#include "pardl/fed/draws.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// The clients of a round: ascending, each once, within 0 … clients-1. Models: Uniform, Weighted, Poisson, Stratified,
/// AvailabilityAware, any_client_sampler.
template <class S>
concept client_sampler =
    std::copyable<S> && requires(S const& s, std::int64_t round, std::size_t clients, std::uint64_t seed) {
      { s.sample(round, clients, seed) } -> std::same_as<std::vector<std::int64_t>>;
    };
static_assert(!client_sampler<int>);

// ---- how many
// --------------------------------------------------------------------------------------------------------

enum class Rounding {
  floor,   ///< FederatedScope's int(rate * clients), with what a double makes of it: 0.29 of 100 are 28
  nearest  ///< 0.29 of 100 are 29
};

/// How many clients a rate stands for: rate * clients, rounded as told, but 1 at least.
/// \throws ConfigError unless there is a client and 0 < rate <= 1.
[[nodiscard]] inline std::int64_t count_from_rate(double rate, std::int64_t clients, Rounding rounding) {
  if (!(rate > 0 && rate <= 1))  // not a number fails here too
    throw ConfigError(sentence("fed", "a sampling rate of " + std::to_string(rate),
                               "a rate lies above 0 and at most at 1, where every client takes part"));
  if (clients < 1)
    throw ConfigError(
        sentence("fed", "a share of " + std::to_string(clients) + " clients to sample", "have at least 1 client"));
  double const exact = rate * static_cast<double>(clients);
  auto const count = rounding == Rounding::floor ? static_cast<std::int64_t>(exact) : std::llround(exact);
  return std::max<std::int64_t>(1, count);
}

namespace detail {

/// \throws ConfigError for what no sampler can do.
inline void check_sampling(std::int64_t round, std::size_t clients) {
  if (clients == 0) throw ConfigError(sentence("fed", "a round to sample from 0 clients", "have at least 1 client"));
  if (round < 0)
    throw ConfigError(sentence("fed", "clients sampled for round " + std::to_string(round), "rounds count from 0"));
}

inline void check_sampling(std::int64_t round, std::size_t clients, std::int64_t count) {
  check_sampling(round, clients);
  if (count < 1)
    throw ConfigError(sentence("fed", std::to_string(count) + " clients to sample per round", "sample at least 1"));
  if (static_cast<std::size_t>(count) > clients)
    throw ConfigError(sentence(
        "fed", std::to_string(count) + " clients to sample per round where there are " + std::to_string(clients),
        "sample at most as many"));
}

[[nodiscard]] inline Draws sampling_draws(std::int64_t round, std::uint64_t seed) {
  return Draws(seed, static_cast<std::uint64_t>(round), 0, purpose::client_sampling);
}

}  // namespace detail

/// Any sampler, the user's too, with its result checked.
/// \throws ConfigError as the sampler does, and for clients that are not ascending or do not exist.
template <class S>
[[nodiscard]] std::vector<std::int64_t> sample_clients(S const& sampler, std::int64_t round, std::size_t clients,
                                                       std::uint64_t seed) {
  static_assert(client_sampler<S>,
                "pardl: this is not a client sampler; give it sample(std::int64_t round, std::size_t clients, "
                "std::uint64_t seed) const that returns the ascending ids as std::vector<std::int64_t>.");
  if constexpr (client_sampler<S>) {
    auto chosen = sampler.sample(round, clients, seed);
    std::int64_t before = -1;
    for (std::int64_t const client : chosen) {
      if (client <= before || static_cast<std::size_t>(client) >= clients)
        throw ConfigError(sentence("fed",
                                   "a sampler that returned client " + std::to_string(client) + " after " +
                                       std::to_string(before) + ", of " + std::to_string(clients) + " clients",
                                   "a sampler returns ids in ascending order, each once, from 0"));
      before = client;
    }
    return chosen;
  }
}

// ---- the models
// ------------------------------------------------------------------------------------------------------

/// `count` clients, every subset of that size equally likely. \cost `count` draws and a bit per client.
struct Uniform {
  std::int64_t count = 1;  ///< clients per round, exactly

  [[nodiscard]] std::vector<std::int64_t> sample(std::int64_t round, std::size_t clients, std::uint64_t seed) const {
    detail::check_sampling(round, clients, count);
    return detail::sampling_draws(round, seed).sample(static_cast<std::int64_t>(clients), count);
  }
};
static_assert(client_sampler<Uniform>);

/// `count` clients, drawn one after the other with probability proportional to their weight among those not drawn yet
/// (Efraimidis and Spirakis: the `count` smallest of e_i / w_i, e exponential). A client of weight 0 never takes part.
/// The probability of taking part in a round grows with the weight but is proportional to it only for count = 1.
/// \cost a draw and a logarithm per client.
struct Weighted {
  std::vector<double> weights = {};  ///< one per client, finite and not negative
  std::int64_t count = 1;            ///< clients per round, exactly

  [[nodiscard]] std::vector<std::int64_t> sample(std::int64_t round, std::size_t clients, std::uint64_t seed) const {
    detail::check_sampling(round, clients, count);
    if (weights.size() != clients)
      throw ConfigError(sentence(
          "fed", std::to_string(weights.size()) + " sampling weights for " + std::to_string(clients) + " clients",
          "give one per client"));
    Draws draws = detail::sampling_draws(round, seed);
    std::vector<std::pair<double, std::int64_t>> arrivals;
    for (std::size_t client = 0; client < clients; ++client) {
      double const weight = weights[client];
      if (!(weight >= 0) || !std::isfinite(weight))
        throw ConfigError(
            sentence("fed", "client " + std::to_string(client) + " has sampling weight " + std::to_string(weight),
                     "weights are finite and not negative"));
      double const waiting = -detail::portable_log(draws.open_uniform());  // drawn for weight 0 too: others keep theirs
      if (weight > 0) arrivals.emplace_back(waiting / weight, static_cast<std::int64_t>(client));
    }
    if (arrivals.size() < static_cast<std::size_t>(count))
      throw ConfigError(sentence("fed",
                                 std::to_string(count) + " clients to sample per round where " +
                                     std::to_string(arrivals.size()) + " have a weight above 0",
                                 "sample at most as many"));
    std::nth_element(arrivals.begin(), arrivals.begin() + (count - 1), arrivals.end());
    std::vector<std::int64_t> chosen;
    for (std::int64_t i = 0; i < count; ++i) chosen.push_back(arrivals[static_cast<std::size_t>(i)].second);
    std::sort(chosen.begin(), chosen.end());
    return chosen;
  }
};
static_assert(client_sampler<Weighted>);

/// Every client takes part with probability `rate`, independently of the others: what the accounting of differential
/// privacy assumes. The number of clients varies, and a round may have none. \cost a draw per client.
struct Poisson {
  double rate = 1;  ///< in (0, 1]

  [[nodiscard]] std::vector<std::int64_t> sample(std::int64_t round, std::size_t clients, std::uint64_t seed) const {
    detail::check_sampling(round, clients);
    if (!(rate > 0 && rate <= 1))
      throw ConfigError(sentence("fed", "Poisson sampling with rate " + std::to_string(rate),
                                 "a rate lies above 0 and at most at 1, where every client takes part"));
    Draws draws = detail::sampling_draws(round, seed);
    std::vector<std::int64_t> chosen;
    for (std::size_t client = 0; client < clients; ++client)
      if (draws.uniform() < rate) chosen.push_back(static_cast<std::int64_t>(client));
    return chosen;
  }
};
static_assert(client_sampler<Poisson>);

/// `count` clients, from each group in proportion to its size: a group of n_g of n clients gets count * n_g / n rounded
/// down or up, and at random (systematic sampling of the fractions) such that every client takes part with probability
/// count / n exactly. Within a group every subset is equally likely. \cost a draw per client chosen, plus the groups.
struct Stratified {
  std::vector<std::int64_t> groups = {};  ///< the group of each client: any numbers
  std::int64_t count = 1;                 ///< clients per round, exactly

  [[nodiscard]] std::vector<std::int64_t> sample(std::int64_t round, std::size_t clients, std::uint64_t seed) const {
    detail::check_sampling(round, clients, count);
    if (groups.size() != clients)
      throw ConfigError(
          sentence("fed", std::to_string(groups.size()) + " groups named for " + std::to_string(clients) + " clients",
                   "name the group of every client"));
    std::map<std::int64_t, std::vector<std::int64_t>> members;
    for (std::size_t client = 0; client < clients; ++client)
      members[groups[client]].push_back(static_cast<std::int64_t>(client));
    Draws draws = detail::sampling_draws(round, seed);
    auto const all = static_cast<std::int64_t>(clients);
    // The groups' fractions, in units of 1/all, laid end to end: whoever covers one of the points offset, offset + all,
    // … is rounded up. Each fraction is shorter than the points' distance, so none covers two.
    std::int64_t laid = 0;
    std::int64_t next_point = static_cast<std::int64_t>(draws.below(clients));
    std::vector<std::int64_t> chosen;
    for (auto const& [group, ids] : members) {
      auto const size = static_cast<std::int64_t>(ids.size());
      std::int64_t take = count * size / all;
      laid += count * size % all;
      if (laid > next_point) {
        ++take;
        next_point += all;
      }
      for (std::int64_t const position : draws.sample(size, take))
        chosen.push_back(ids[static_cast<std::size_t>(position)]);
    }
    std::sort(chosen.begin(), chosen.end());
    return chosen;
  }
};
static_assert(client_sampler<Stratified>);

enum class Shortage {
  take_all,  ///< the round goes on with those that are available, and `on_shortage` is told
  error      ///< ConfigError
};

/// `count` of the clients that are available in the round, every subset of these equally likely. Where fewer are, all
/// of them, and `on_shortage` gets the sentence that says so; where none is, the round has no client.
struct AvailabilityAware {
  std::function<bool(std::int64_t round, std::int64_t client)> available = {};  ///< must answer a question alike always
  std::int64_t count = 1;                                    ///< clients per round, where as many are available
  Shortage on_too_few = Shortage::take_all;                  ///< what a round with fewer does
  std::function<void(std::string const&)> on_shortage = {};  ///< told once per such round; empty = nobody is told

  /// How many clients are available in a round. \throws ConfigError without a function to ask.
  [[nodiscard]] std::int64_t available_clients(std::int64_t round, std::size_t clients) const {
    return static_cast<std::int64_t>(ids_available(round, clients).size());
  }

  [[nodiscard]] std::vector<std::int64_t> sample(std::int64_t round, std::size_t clients, std::uint64_t seed) const {
    detail::check_sampling(round, clients, count);
    auto ids = ids_available(round, clients);
    auto const there = static_cast<std::int64_t>(ids.size());
    if (there < count) {
      std::string const what = "round " + std::to_string(round) + ": " + std::to_string(there) + " of " +
                               std::to_string(clients) + " clients are available where " + std::to_string(count) +
                               " were to be sampled";
      if (on_too_few == Shortage::error)
        throw ConfigError(sentence("fed", what, "sample fewer, or let such a round go on with those that are there"));
      if (on_shortage) on_shortage(sentence("fed", what, "the round goes on with those"));
    }
    std::vector<std::int64_t> chosen;
    for (std::int64_t const position : detail::sampling_draws(round, seed).sample(there, std::min(count, there)))
      chosen.push_back(ids[static_cast<std::size_t>(position)]);
    return chosen;
  }

 private:
  [[nodiscard]] std::vector<std::int64_t> ids_available(std::int64_t round, std::size_t clients) const {
    if (!available)
      throw ConfigError(sentence("fed", "availability-aware sampling with nobody to ask who is available",
                                 "set .available to a function of (round, client)"));
    std::vector<std::int64_t> ids;
    for (std::size_t client = 0; client < clients; ++client)
      if (available(round, static_cast<std::int64_t>(client))) ids.push_back(static_cast<std::int64_t>(client));
    return ids;
  }
};
static_assert(client_sampler<AvailabilityAware>);

}  // namespace pardl::inline PARDL_ABI::fed
