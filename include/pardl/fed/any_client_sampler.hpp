// SPDX-License-Identifier: MIT
/// \file   A client sampler chosen at run time: one value type, and the one table from names to makers.
/// \layer  fed (std only).
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/fed/client_sampler.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// Any client sampler as a value; it models client_sampler itself.  \cost one indirect call per round.
class any_client_sampler {
 public:
  template <class S>
    requires(!std::same_as<std::remove_cvref_t<S>, any_client_sampler>) && client_sampler<S>
  any_client_sampler(S sampler)  // NOLINT(google-explicit-constructor): a sampler is a sampler
      : sample_([sampler = std::move(sampler)](std::int64_t round, std::size_t clients, std::uint64_t seed) {
          return sampler.sample(round, clients, seed);
        }) {}

  [[nodiscard]] std::vector<std::int64_t> sample(std::int64_t round, std::size_t clients, std::uint64_t seed) const {
    return sample_(round, clients, seed);
  }

 private:
  std::function<std::vector<std::int64_t>(std::int64_t, std::size_t, std::uint64_t)> sample_;
};
static_assert(client_sampler<any_client_sampler>);

/// What a job knows when it chooses a sampler by name. Each maker reads what it uses.
struct SamplerChoice {
  std::int64_t count = 1;                                                       ///< all but poisson: clients per round
  double rate = 1;                                                              ///< poisson: of each client
  std::vector<double> weights = {};                                             ///< weighted: one per client
  std::vector<std::int64_t> groups = {};                                        ///< stratified: of each client
  std::function<bool(std::int64_t round, std::int64_t client)> available = {};  ///< available: whom to ask
  std::function<void(std::string const&)> on_shortage = {};  ///< available: told of rounds with fewer
};

struct SamplerMaker {
  std::string_view name;
  any_client_sampler (*make)(SamplerChoice const&);
};

/// The one table from names to makers.
inline constexpr std::array<SamplerMaker, 5> client_samplers{{
    {"uniform", [](SamplerChoice const& c) -> any_client_sampler { return Uniform{.count = c.count}; }},
    {"weighted",
     [](SamplerChoice const& c) -> any_client_sampler { return Weighted{.weights = c.weights, .count = c.count}; }},
    {"poisson", [](SamplerChoice const& c) -> any_client_sampler { return Poisson{.rate = c.rate}; }},
    {"stratified",
     [](SamplerChoice const& c) -> any_client_sampler { return Stratified{.groups = c.groups, .count = c.count}; }},
    {"available",
     [](SamplerChoice const& c) -> any_client_sampler {
       return AvailabilityAware{.available = c.available, .count = c.count, .on_shortage = c.on_shortage};
     }},
}};

/// \throws ConfigError for a name that is not in the table (the sentence lists them); what a sampler refuses, it
/// refuses in sample().
[[nodiscard]] inline any_client_sampler make_client_sampler(std::string_view name, SamplerChoice const& choice = {}) {
  std::string known;
  for (auto const& entry : client_samplers) {
    if (entry.name == name) return entry.make(choice);
    known.append(known.empty() ? "" : ", ").append(entry.name);
  }
  throw ConfigError(
      sentence("fed", "no client sampler is called '" + std::string(name) + "'", "choose one of " + known));
}

}  // namespace pardl::inline PARDL_ABI::fed
