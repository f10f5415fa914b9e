// SPDX-License-Identifier: MIT
/// \file   A partitioner chosen at run time: one value type, and the one table from names to makers.
/// \layer  fed (std only).
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "pardl/fed/partition.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// Any partitioner as a value; it models partitioner itself.
class any_partitioner {
 public:
  template <class P>
    requires(!std::same_as<std::remove_cvref_t<P>, any_partitioner>) && partitioner<P>
  any_partitioner(P p)  // NOLINT(google-explicit-constructor): a partitioner is a partitioner
      : split_([p = std::move(p)](std::span<std::int64_t const> labels, std::size_t clients, std::uint64_t seed) {
          return p.split(labels, clients, seed);
        }) {}

  [[nodiscard]] Partition split(std::span<std::int64_t const> labels, std::size_t clients, std::uint64_t seed) const {
    return split_(labels, clients, seed);
  }

 private:
  std::function<Partition(std::span<std::int64_t const>, std::size_t, std::uint64_t)> split_;
};
static_assert(partitioner<any_partitioner>);

/// What a command line or a YAML file knows when it chooses a partitioner by name. Each maker reads what it uses.
struct PartitionChoice {
  double alpha = 0.5;                  ///< dirichlet, lda, dirichlet-quantity: concentration
  double sigma = 1;                    ///< log-normal: spread of the logarithm of a client's size
  std::size_t classes_per_client = 2;  ///< pathological
  std::size_t shards_per_client = 2;   ///< shards
  std::int64_t min_samples = 1;        ///< all: per client
};

struct PartitionMaker {
  std::string_view name;
  any_partitioner (*make)(PartitionChoice const&);
};

/// The one table from names to makers. `lda` is FederatedScope's name, `dirichlet` the same without its balancing rule.
inline constexpr std::array<PartitionMaker, 7> partitioners{{
    {"iid", [](PartitionChoice const& c) -> any_partitioner { return Iid{.min_samples = c.min_samples}; }},
    {"lda",
     [](PartitionChoice const& c) -> any_partitioner {
       return Dirichlet{.alpha = c.alpha, .min_samples = c.min_samples, .balanced = true};
     }},
    {"dirichlet",
     [](PartitionChoice const& c) -> any_partitioner {
       return Dirichlet{.alpha = c.alpha, .min_samples = c.min_samples, .balanced = false};
     }},
    {"dirichlet-quantity",
     [](PartitionChoice const& c) -> any_partitioner {
       return DirichletQuantity{.alpha = c.alpha, .min_samples = c.min_samples};
     }},
    {"log-normal",
     [](PartitionChoice const& c) -> any_partitioner {
       return LogNormalQuantity{.sigma = c.sigma, .min_samples = c.min_samples};
     }},
    {"pathological",
     [](PartitionChoice const& c) -> any_partitioner {
       return Pathological{.classes_per_client = c.classes_per_client, .min_samples = c.min_samples};
     }},
    {"shards",
     [](PartitionChoice const& c) -> any_partitioner {
       return Shards{.shards_per_client = c.shards_per_client, .min_samples = c.min_samples};
     }},
}};

/// \throws ConfigError for a name that is not in the table (the sentence lists them); what a partitioner refuses, it
/// refuses in split().
[[nodiscard]] inline any_partitioner make_partitioner(std::string_view name, PartitionChoice const& choice = {}) {
  std::string known;
  for (auto const& entry : partitioners) {
    if (entry.name == name) return entry.make(choice);
    known.append(known.empty() ? "" : ", ").append(entry.name);
  }
  throw ConfigError(sentence("fed", "no partitioner is called '" + std::string(name) + "'", "choose one of " + known));
}

}  // namespace pardl::inline PARDL_ABI::fed
