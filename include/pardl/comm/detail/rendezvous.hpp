// SPDX-License-Identifier: MIT
/// \file   The ranks' first meeting: everybody has come, and who sits on which host.
/// \layer  comm, private.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/detail/bounded.hpp"
#include "pardl/comm/detail/post_mortem.hpp"
#include "pardl/comm/detail/store.hpp"
#include "pardl/comm/detail/translate.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// What ranks must share to reach each other by loopback: the machine's boot and the network namespace. Two containers
/// with networks of their own are two hosts, then. The machine's name serves where /proc does not tell.
inline std::string host_identity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  char network[64] = {};
  if (!boot.empty() && ::readlink("/proc/self/ns/net", network, sizeof network - 1) > 0) return boot + " " + network;
  char name[256] = {};
  ::gethostname(name, sizeof name - 1);
  return name;
}

/// Hosts by number, in the order in which ranks first name them: "0 0 1 1".
inline std::vector<int> numbered(std::vector<std::string> const& names) {
  std::map<std::string, int> seen;
  std::vector<int> hosts;
  for (auto const& name : names) hosts.push_back(seen.emplace(name, static_cast<int>(seen.size())).first->second);
  return hosts;
}

/// What a rank says of itself when it arrives.
struct Arrival {
  std::string host;     ///< host_identity(), or what the user calls it
  std::string backend;  ///< which backend it is going to make

  [[nodiscard]] std::string encode() const { return host + "\n" + backend; }
  static Arrival decode(std::string const& text) {
    auto const end = text.find('\n');
    return end == std::string::npos ? Arrival{text, ""} : Arrival{text.substr(0, end), text.substr(end + 1)};
  }
};

/// Rank 0's summary of who has come: each rank's host by number, or why they cannot work together.
inline std::string summary_of(std::vector<Arrival> const& arrivals) {
  std::vector<std::string> names;
  for (std::size_t r = 0; r < arrivals.size(); ++r) {
    if (arrivals[r].backend != arrivals[0].backend)
      return "!rank " + std::to_string(r) + " has chosen the backend " + arrivals[r].backend + ", rank 0 " +
             arrivals[0].backend;
    names.push_back(arrivals[r].host);
  }
  std::string text;
  for (int const host : numbered(names)) text += std::to_string(host) + " ";
  return text;
}

inline std::vector<int> meet_unbounded(c10d::Store& store, int rank, int size, Arrival const& self,
                                       std::chrono::milliseconds limit) {
  auto const key = [](int r) { return "host/" + std::to_string(r); };
  store.set(key(rank), self.encode());
  // Rank 0 reads the arrivals, the others its summary: 2 n requests and not n².
  try {
    if (rank == 0) {
      std::vector<std::string> keys;
      for (int r = 0; r < size; ++r) keys.push_back(key(r));
      store.wait(keys, limit);
      std::vector<Arrival> arrivals;
      for (auto const& each : keys) arrivals.push_back(Arrival::decode(store.get_to_str(each)));
      store.set("hosts", summary_of(arrivals));
    } else {
      store.wait({"hosts"}, limit);
    }
  } catch (c10::Error const&) {
    std::vector<std::string> missing;
    for (int r = 0; r < size; ++r)
      if (!store.check({key(r)})) missing.push_back(std::to_string(r));
    if (missing.empty()) throw;
    throw CommTimeout(sentence("comm", rank, size,
                               "the ranks did not all come within " + in_words(limit) + "; missing: " + listed(missing),
                               "see whether those ranks were started, and what they said"));
  }
  std::string const summary = store.get_to_str("hosts");
  if (summary.starts_with('!'))
    throw ConfigError(sentence("comm", rank, size, summary.substr(1), "name one backend for all ranks"));
  std::vector<int> hosts;
  for (auto const& word : split_text(summary, ' '))
    if (auto const host = to_number<int>(word)) hosts.push_back(*host);
  if (hosts.size() != static_cast<std::size_t>(size))
    throw CommError(sentence("comm", rank, size,
                             "the store holds the world of " + std::to_string(hosts.size()) + " other ranks",
                             "give every program a store of its own"));
  return hosts;
}

/// Waits until every rank has come. \returns each rank's host, by number from 0.
/// Every rank must call it. \cost 2 n requests to the store.
/// \throws CommTimeout  naming the ranks that have not come within the limit.
inline std::vector<int> meet(StorePtr const& store, int rank, int size, Arrival const& self,
                             std::chrono::milliseconds limit) {
  auto hosts = translated([&] {
    return bounded(limit + std::chrono::seconds(3), [=] { return meet_unbounded(*store, rank, size, self, limit); });
  });
  if (hosts) return std::move(*hosts);
  throw CommTimeout(sentence("comm", rank, size, "the store has not answered within " + in_words(limit),
                             "see whether its host, rank 0 or the launcher, is stopped"));
}

}  // namespace pardl::inline PARDL_ABI::detail
