// SPDX-License-Identifier: MIT
/// \file   How the samples of one dataset are split among clients.
/// \layer  fed (std only).
///
/// A partitioner gets the label of every sample and returns the samples of every client. It is a pure function of its
/// settings, the labels, the number of clients and the seed, the same on every machine. All of them give every sample
/// to exactly one client (ByOwner alone may be told to leave some out), and every client at least `min_samples`, or
/// they throw a sentence that says what to change. \paper McMahan et al., "Communication-efficient learning of deep
/// networks from decentralized data", AISTATS 2017 (shards); Yurochkin et al., "Bayesian nonparametric federated
/// learning of neural networks", ICML 2019 (Dirichlet proportions of each class over the clients).
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/fed/detail/deal.hpp"
#include "pardl/fed/detail/portable_math.hpp"
#include "pardl/fed/draws.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// For each client the indices of its samples, ascending.
using Partition = std::vector<std::vector<std::int64_t>>;

/// Splits `labels.size()` samples among `clients` clients. Models: Iid, Dirichlet, DirichletQuantity,
/// LogNormalQuantity, Pathological, Shards, ByOwner, any_partitioner.
template <class P>
concept partitioner = std::copyable<P> && requires(P const& p, std::span<std::int64_t const> labels,
                                                   std::size_t clients, std::uint64_t seed) {
  { p.split(labels, clients, seed) } -> std::same_as<Partition>;
};
static_assert(!partitioner<int>);
static_assert(!partitioner<Partition>);

/// \throws ConfigError unless the clients' lists are ascending, disjoint and within 0 … samples-1. Whether they cover
/// all samples is the partitioner's business. \cost samples/8 bytes.
inline void check_partition(Partition const& partition, std::size_t samples) {
  std::vector<bool> taken(samples);
  for (std::size_t client = 0; client < partition.size(); ++client) {
    std::int64_t before = -1;
    for (std::int64_t const sample : partition[client]) {
      auto const refuse = [&](std::string const& what) {
        throw ConfigError(sentence("fed", "a partition whose client " + std::to_string(client) + " " + what,
                                   "a partitioner returns ascending, disjoint indices of the samples it was given"));
      };
      if (sample < 0 || static_cast<std::size_t>(sample) >= samples)
        refuse("has sample " + std::to_string(sample) + " of " + std::to_string(samples));
      if (sample <= before) refuse("lists sample " + std::to_string(sample) + " after " + std::to_string(before));
      if (taken[static_cast<std::size_t>(sample)])
        refuse("has sample " + std::to_string(sample) + ", which another client has");
      taken[static_cast<std::size_t>(sample)] = true;
      before = sample;
    }
  }
}

/// Any partitioner, the user's too, with its result checked. \throws ConfigError as the partitioner does, and where it
/// returns another number of clients or what check_partition() refuses.
template <class P>
[[nodiscard]] Partition make_partition(P const& p, std::span<std::int64_t const> labels, std::size_t clients,
                                       std::uint64_t seed) {
  static_assert(partitioner<P>,
                "pardl: this is not a partitioner; give it split(std::span<std::int64_t const> labels, std::size_t "
                "clients, std::uint64_t seed) const that returns a pardl::fed::Partition.");
  if constexpr (partitioner<P>) {
    Partition partition = p.split(labels, clients, seed);
    if (partition.size() != clients)
      throw ConfigError(sentence("fed",
                                 "a partition of " + std::to_string(partition.size()) + " clients where " +
                                     std::to_string(clients) + " were asked for",
                                 "a partitioner returns one list per client"));
    check_partition(partition, labels.size());
    return partition;
  }
}

/// Every client gets a random share of the same size (the first ones one sample more where it does not divide).
struct Iid {
  std::int64_t min_samples = 1;  ///< per client, or an error; 0 allows empty clients

  [[nodiscard]] Partition split(std::span<std::int64_t const> labels, std::size_t clients, std::uint64_t seed) const {
    detail::check_split("an IID partition", labels.size(), clients, min_samples);
    Draws draws(seed, 0, 0, purpose::partition);
    return detail::cut(detail::shuffled(labels.size(), draws), detail::even_sizes(labels.size(), clients));
  }
};
static_assert(partitioner<Iid>);

/// Label skew: the samples of each class are dealt among the clients in proportions from Dirichlet(alpha). A small
/// alpha gives every class to few clients, a large one approaches Iid.
///
/// With `balanced` a client that already has its even share of all samples gets none of the following classes: the rule
/// of FederatedScope's `lda` splitter and of Flower's DirichletPartitioner with self_balancing. Without it the
/// proportions stand as drawn: Flower's default. The proportions follow those rules; the random numbers are our own.
struct Dirichlet {
  double alpha = 0.5;            ///< concentration, finite and above 0
  std::int64_t min_samples = 1;  ///< per client: proportions are drawn anew until all have as many
  bool balanced = true;          ///< clients with their even share get no further class
  int attempts = 100;            ///< draws before min_samples is given up with an error

  [[nodiscard]] Partition split(std::span<std::int64_t const> labels, std::size_t clients, std::uint64_t seed) const {
    detail::check_positive("a Dirichlet partition", "alpha", alpha);
    detail::check_split("a Dirichlet partition", labels.size(), clients, min_samples);
    if (attempts < 1)
      throw ConfigError(
          sentence("fed", "a Dirichlet partition with " + std::to_string(attempts) + " attempts", "allow at least 1"));
    auto by_class = detail::group_by(labels);
    Draws draws(seed, 0, 0, purpose::partition);
    // Sizes first: an attempt that is given up then costs draws only, and no sample has been moved.
    std::vector<std::vector<std::int64_t>> cuts(by_class.size());
    std::int64_t fewest = 0;
    for (int attempt = 0; attempt < attempts; ++attempt) {
      std::vector<std::int64_t> sizes(clients);
      for (std::size_t c = 0; c < by_class.size(); ++c) {
        cuts[c] = class_sizes(by_class[c].samples.size(), sizes, labels.size(), draws);
        for (std::size_t client = 0; client < clients; ++client) sizes[client] += cuts[c][client];
      }
      fewest = std::max(fewest, *std::min_element(sizes.begin(), sizes.end()));
      if (fewest >= min_samples) return deal(by_class, cuts, clients, draws);
    }
    throw ConfigError(sentence("fed",
                               "a Dirichlet partition (alpha " + std::to_string(alpha) + ") of " +
                                   std::to_string(labels.size()) + " samples left one of " + std::to_string(clients) +
                                   " clients with " + std::to_string(fewest) +
                                   " samples or fewer, where min_samples is " + std::to_string(min_samples) +
                                   ", in each of " + std::to_string(attempts) + " attempts",
                               std::string("raise alpha, lower min_samples, take fewer clients") +
                                   (balanced ? "" : ", set balanced") + " or allow more attempts"));
  }

 private:
  /// How many of a class's samples each client gets.
  [[nodiscard]] std::vector<std::int64_t> class_sizes(std::size_t class_size, std::vector<std::int64_t> const& have,
                                                      std::size_t samples, Draws& draws) const {
    // Proportions zeroed and scaled up again are Dirichlet over those that are left, so it is drawn over them at once
    // (and never ends in 0/0). One is always left: were all at their even share, no sample would be.
    std::vector<std::size_t> open;
    for (std::size_t client = 0; client < have.size(); ++client)
      if (!balanced || static_cast<std::size_t>(have[client]) * have.size() < samples) open.push_back(client);
    auto const among_open = detail::proportional_sizes(class_size, draws.dirichlet(alpha, open.size()));
    std::vector<std::int64_t> sizes(have.size());
    for (std::size_t i = 0; i < open.size(); ++i) sizes[open[i]] = among_open[i];
    return sizes;
  }

  [[nodiscard]] static Partition deal(std::vector<detail::LabelGroup>& by_class,
                                      std::vector<std::vector<std::int64_t>> const& cuts, std::size_t clients,
                                      Draws& draws) {
    Partition partition(clients);
    for (std::size_t c = 0; c < by_class.size(); ++c) {
      draws.shuffle(by_class[c].samples);
      auto next = by_class[c].samples.begin();
      for (std::size_t client = 0; client < clients; ++client) {
        partition[client].insert(partition[client].end(), next, next + cuts[c][client]);
        next += cuts[c][client];
      }
    }
    detail::sort_each(partition);
    return partition;
  }
};
static_assert(partitioner<Dirichlet>);

/// Quantity skew: every client gets `min_samples`, the rest is dealt in proportions from Dirichlet(alpha), all at
/// random regardless of label. Never fails where there are enough samples.
struct DirichletQuantity {
  double alpha = 0.5;            ///< concentration, finite and above 0; small = few clients have nearly all
  std::int64_t min_samples = 1;  ///< per client, before the rest is dealt

  [[nodiscard]] Partition split(std::span<std::int64_t const> labels, std::size_t clients, std::uint64_t seed) const {
    detail::check_positive("a Dirichlet quantity partition", "alpha", alpha);
    detail::check_split("a Dirichlet quantity partition", labels.size(), clients, min_samples);
    Draws draws(seed, 0, 0, purpose::partition);
    auto const sizes = detail::sizes_above(min_samples, labels.size(), draws.dirichlet(alpha, clients));
    return detail::cut(detail::shuffled(labels.size(), draws), sizes);
  }
};
static_assert(partitioner<DirichletQuantity>);

/// Quantity skew: every client gets `min_samples`, the rest is dealt in proportion to e^(sigma * normal), all at random
/// regardless of label. Never fails where there are enough samples.
struct LogNormalQuantity {
  double sigma = 1;              ///< spread of the logarithm of a client's size; 0 = all equal
  std::int64_t min_samples = 1;  ///< per client, before the rest is dealt

  [[nodiscard]] Partition split(std::span<std::int64_t const> labels, std::size_t clients, std::uint64_t seed) const {
    if (!(sigma >= 0) || !std::isfinite(sigma))
      throw ConfigError(sentence("fed", "a log-normal quantity partition with sigma " + std::to_string(sigma),
                                 "sigma is a finite number, 0 or above"));
    detail::check_split("a log-normal quantity partition", labels.size(), clients, min_samples);
    Draws draws(seed, 0, 0, purpose::partition);
    std::vector<double> shares(clients);
    for (double& share : shares) share = detail::rounded(sigma * draws.normal());
    double const most = *std::max_element(shares.begin(), shares.end());  // taken off, so that no power overflows
    double sum = 0;
    for (double& share : shares) sum += share = detail::portable_exp(share - most);
    for (double& share : shares) share /= sum;
    auto const sizes = detail::sizes_above(min_samples, labels.size(), shares);
    return detail::cut(detail::shuffled(labels.size(), draws), sizes);
  }
};
static_assert(partitioner<LogNormalQuantity>);

/// Every client has samples of exactly `classes_per_client` classes. Classes are held by equally many clients (give or
/// take one), and the samples of a class go to its holders in even parts.
struct Pathological {
  std::size_t classes_per_client = 2;  ///< exactly
  std::int64_t min_samples = 1;        ///< per client, or an error

  [[nodiscard]] Partition split(std::span<std::int64_t const> labels, std::size_t clients, std::uint64_t seed) const {
    detail::check_split("a pathological partition", labels.size(), clients, min_samples);
    auto by_class = detail::group_by(labels);
    check_classes(by_class.size(), clients);
    Draws draws(seed, 0, 0, purpose::partition);
    auto const holders = choose_holders(by_class.size(), clients, draws);
    Partition partition(clients);
    for (std::size_t c = 0; c < by_class.size(); ++c) {
      auto& samples = by_class[c].samples;
      if (samples.size() < holders[c].size())
        throw ConfigError(sentence("fed",
                                   "a pathological partition in which " + std::to_string(holders[c].size()) +
                                       " clients share the " + std::to_string(samples.size()) + " samples of class " +
                                       std::to_string(by_class[c].label),
                                   "lower classes_per_client or take fewer clients"));
      draws.shuffle(samples);
      auto next = samples.begin();
      auto const sizes = detail::even_sizes(samples.size(), holders[c].size());
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        partition[holders[c][i]].insert(partition[holders[c][i]].end(), next, next + sizes[i]);
        next += sizes[i];
      }
    }
    detail::sort_each(partition);
    detail::check_minimum("a pathological partition", partition, min_samples,
                          "lower min_samples or take fewer clients");
    return partition;
  }

 private:
  void check_classes(std::size_t classes, std::size_t clients) const {
    if (classes_per_client == 0 || classes_per_client > classes)
      throw ConfigError(sentence("fed",
                                 "a pathological partition with " + std::to_string(classes_per_client) +
                                     " classes per client where the labels hold " + std::to_string(classes),
                                 "choose 1 to " + std::to_string(classes)));
    if (clients * classes_per_client < classes)
      throw ConfigError(sentence("fed",
                                 "a pathological partition in which " + std::to_string(clients) + " clients of " +
                                     std::to_string(classes_per_client) + " classes each leave some of the " +
                                     std::to_string(classes) + " classes to nobody",
                                 "raise classes_per_client or take more clients"));
  }

  /// Client after client takes the classes that have the fewest holders so far, equal ones in random order. The clients
  /// come in random order too, and each class's holders are returned in the order in which they took it.
  [[nodiscard]] std::vector<std::vector<std::size_t>> choose_holders(std::size_t classes, std::size_t clients,
                                                                     Draws& draws) const {
    std::vector<std::vector<std::size_t>> holders(classes);
    std::vector<std::size_t> order(classes);
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (std::int64_t const client : detail::shuffled(clients, draws)) {
      draws.shuffle(order);
      std::stable_sort(order.begin(), order.end(),
                       [&](std::size_t a, std::size_t b) { return holders[a].size() < holders[b].size(); });
      for (std::size_t i = 0; i < classes_per_client; ++i)
        holders[order[i]].push_back(static_cast<std::size_t>(client));
    }
    return holders;
  }
};
static_assert(partitioner<Pathological>);

/// McMahan et al.: the samples, sorted by label, are cut into clients * shards_per_client shards of equal size (the
/// first ones one sample longer where it does not divide), and every client gets its number of shards at random.
/// Within a label the order is random.
struct Shards {
  std::size_t shards_per_client = 2;  ///< 2 as in the paper: most clients have samples of two classes
  std::int64_t min_samples = 1;       ///< per client, or an error

  [[nodiscard]] Partition split(std::span<std::int64_t const> labels, std::size_t clients, std::uint64_t seed) const {
    detail::check_split("a partition into shards", labels.size(), clients, min_samples);
    if (shards_per_client == 0 || shards_per_client > labels.size() / clients)
      throw ConfigError(sentence("fed",
                                 "a partition of " + std::to_string(labels.size()) + " samples into " +
                                     std::to_string(shards_per_client) + " shards for each of " +
                                     std::to_string(clients) + " clients",
                                 "choose 1 shard or more, each of 1 sample or more"));
    Draws draws(seed, 0, 0, purpose::partition);
    std::vector<std::int64_t> sorted;
    sorted.reserve(labels.size());
    for (auto& group : detail::group_by(labels)) {
      draws.shuffle(group.samples);
      sorted.insert(sorted.end(), group.samples.begin(), group.samples.end());
    }
    std::size_t const shards = clients * shards_per_client;
    auto const sizes = detail::even_sizes(labels.size(), shards);
    std::vector<std::int64_t> starts(shards);
    std::exclusive_scan(sizes.begin(), sizes.end(), starts.begin(), std::int64_t{0});
    auto const order = detail::shuffled(shards, draws);
    Partition partition(clients);
    for (std::size_t i = 0; i < shards; ++i) {
      auto const shard = static_cast<std::size_t>(order[i]);
      auto& mine = partition[i / shards_per_client];
      mine.insert(mine.end(), sorted.begin() + starts[shard], sorted.begin() + starts[shard] + sizes[shard]);
    }
    detail::sort_each(partition);
    detail::check_minimum("a partition into shards", partition, min_samples, "lower min_samples or take fewer clients");
    return partition;
  }
};
static_assert(partitioner<Shards>);

/// One client per owner, in ascending order of the owners' ids: `owner[i]` is whose sample i is (a writer, a patient, a
/// phone). \throws ConfigError for no samples.
[[nodiscard]] inline Partition by_owner(std::span<std::int64_t const> owner) {
  if (owner.empty()) throw ConfigError(sentence("fed", "a partition by owner of no samples", "load the data first"));
  Partition partition;
  for (auto& group : detail::group_by(owner)) partition.push_back(std::move(group.samples));
  return partition;
}

/// by_owner() as a partitioner: labels and seed play no part.
struct ByOwner {
  std::vector<std::int64_t> owner;  ///< of each sample
  bool drop_others = false;  ///< fewer clients than owners: true = the first owners, the rest's samples are left out
                             ///< (FederatedScope's way with LEAF's writers); false = an error
  std::int64_t min_samples = 1;  ///< per client, or an error

  [[nodiscard]] Partition split(std::span<std::int64_t const> labels, std::size_t clients, std::uint64_t) const {
    detail::check_split("a partition by owner", labels.size(), clients, min_samples);
    if (owner.size() != labels.size())
      throw ConfigError(sentence("fed",
                                 "a partition by owner with " + std::to_string(owner.size()) + " owners for " +
                                     std::to_string(labels.size()) + " samples",
                                 "name the owner of every sample"));
    Partition partition = by_owner(owner);
    if (clients > partition.size() || (clients < partition.size() && !drop_others))
      throw ConfigError(sentence("fed",
                                 std::to_string(clients) + " clients by owner where the samples have " +
                                     std::to_string(partition.size()) + " owners",
                                 clients > partition.size() ? "take at most as many clients as there are owners"
                                                            : "take as many clients, or set drop_others"));
    partition.resize(clients);
    detail::check_minimum("a partition by owner", partition, min_samples,
                          "lower min_samples or leave that owner's samples out");
    return partition;
  }
};
static_assert(partitioner<ByOwner>);

}  // namespace pardl::inline PARDL_ABI::fed
