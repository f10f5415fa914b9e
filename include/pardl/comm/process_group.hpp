// SPDX-License-Identifier: MIT
/// \file   The ranks that work together: a small value around a c10d::ProcessGroup, and init(), which makes the world.
/// \layer  comm.
///
/// Whatever the transport, there is a c10d::ProcessGroup inside: hand it to anything of LibTorch that asks for one, and
/// adopt any that LibTorch made. A world of one is a world, so a program runs without a launcher.
///
/// When an operation fails or times out, every rank throws CommError or CommTimeout within about three seconds beyond
/// the timeout, and the sentence names the operation and the ranks that have not come.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/detail/bounded.hpp"
#include "pardl/comm/detail/device.hpp"
#include "pardl/comm/detail/make_backend.hpp"
#include "pardl/comm/detail/places.hpp"
#include "pardl/comm/detail/rendezvous.hpp"
#include "pardl/comm/work.hpp"
#include "pardl/policy/environment.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/ranked.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct InitOptions {
  std::string backend = {};  ///< "self", "shm", "gloo", "nccl"; empty: self alone, nccl on GPUs, on CPUs shm, or gloo
                             ///< where the ranks sit on several hosts
  std::optional<torch::Device> device = {};     ///< default: CUDA if there is one and NCCL was built in, else the CPU
  std::chrono::milliseconds timeout{600'000};   ///< of one operation; the ranks' meeting has up to 5 min of it
  c10::intrusive_ptr<c10d::Store> store = {};   ///< where the ranks meet, theirs alone; null: by the environment
  std::optional<Environment> environment = {};  ///< who we are; none: read_environment()
  std::string host = {};                        ///< what counts as one host; empty: the machine's name and boot
};

/// A group of ranks. Copies are handles of one group; it ends with the last of them, or with shutdown().
/// Its operations are the free functions of collectives.hpp. Models `ranked`.
class ProcessGroup {
 public:
  /// A world of one on the CPU. Local; needs no launcher and no optional part.
  ProcessGroup() : state_(std::make_shared<State>(detail::BackendPlan{.name = "self"}, std::vector<int>{0}, nullptr)) {}

  /// Adopts any group of c10d: its operations keep their own errors, and its ranks count as one host, until
  /// count_hosts() has been called. Local.
  /// \param device  where this rank computes.
  explicit ProcessGroup(c10::intrusive_ptr<c10d::ProcessGroup> group, torch::Device device = torch::kCPU)
      : state_(std::make_shared<State>(std::move(group), device)) {}

  [[nodiscard]] int rank() const noexcept { return state_->rank; }
  [[nodiscard]] int size() const noexcept { return state_->size; }
  /// Where this rank computes, and where its tensors are to be.
  [[nodiscard]] torch::Device device() const noexcept { return state_->device; }
  /// "self", "shm", "gloo", "nccl", or what c10d calls it.
  [[nodiscard]] std::string_view backend() const noexcept { return state_->backend; }
  /// Hosts that the ranks really sit on, whatever the launcher says; a subgroup counts its own.
  [[nodiscard]] int nodes() const noexcept { return state_->places.nodes; }
  /// This rank among those of its host, in the order of ranks.
  [[nodiscard]] int local_rank() const noexcept { return state_->places.local_rank; }
  /// Ranks of this group on this host.
  [[nodiscard]] int local_size() const noexcept { return state_->places.local_size; }
  /// How long one operation may take.
  [[nodiscard]] std::chrono::milliseconds timeout() const noexcept { return state_->timeout; }
  /// Changes it for operations begun from now on, through every copy of the handle. Local; ranks should do it alike.
  void set_timeout(std::chrono::milliseconds limit) {
    if (size() > 1) detail::translated([&] { c10d()->getDefaultBackend()->setTimeout(limit); });
    state_->timeout = limit;
  }
  /// Whether a backend of the group reads tensors there; a group of a kind that does not say is believed to.
  [[nodiscard]] bool serves(torch::DeviceType kind) const {
    auto const has = [kind](auto const& kinds) { return std::find(kinds.begin(), kinds.end(), kind) != kinds.end(); };
    if (has(state_->served)) return true;
    auto const now = detail::served_by(*c10d());  // an adopted group may have been given a backend since
    return now.empty() || has(now);
  }
  /// The group, for anything of LibTorch that takes one.
  [[nodiscard]] c10::intrusive_ptr<c10d::ProcessGroup> const& c10d() const noexcept { return state_->group; }

  /// Divides the group: the ranks with one colour become a group, ordered by key, then by rank here. Every rank must
  /// call it, in the same order among the group's collectives. A group of one uses no transport; the others use this
  /// group's, or the one that fits their own hosts where init() was given no name.
  /// \param color  which group to join; none: this rank joins none, and gets nothing.
  /// \cost one all-gather of four numbers, and the new groups' connections.
  [[nodiscard]] std::optional<ProcessGroup> split(std::optional<int> color, int key = 0) const {
    auto const votes = exchange({color ? 1 : 0, color.value_or(0), key, rank() == 0 ? next_split() : 0});
    if (!color) return std::nullopt;
    std::vector<std::pair<std::int64_t, int>> members;
    for (int r = 0; r < size(); ++r)
      if (auto const* vote = &votes[static_cast<std::size_t>(4 * r)]; vote[0] == 1 && vote[1] == *color)
        members.emplace_back(vote[2], r);
    std::sort(members.begin(), members.end());
    detail::BackendPlan plan{.name = state_->backend, .named = state_->named, .device = device()};
    plan.size = static_cast<int>(members.size());
    plan.timeout = timeout();
    plan.address = state_->address;
    plan.host_ranks = state_->host_ranks;
    std::vector<int> hosts;
    for (std::size_t i = 0; i < members.size(); ++i) {
      if (members[i].second == rank()) plan.rank = static_cast<int>(i);
      hosts.push_back(state_->hosts[static_cast<std::size_t>(members[i].second)]);
    }
    plan.one_host = state_->places_known && detail::places_of(hosts, plan.rank).nodes == 1;
    if (plan.size == 1 || !plan.named) plan.name = detail::default_backend(device().type(), plan.size, plan.one_host);
    if (plan.size > 1) {
      plan.store = c10::make_intrusive<c10d::PrefixStore>(
          "split/" + std::to_string(votes[3]) + "/" + std::to_string(*color), state_->store);
      plan.store_host = state_->store_host();
      plan.group += "/split/" + std::to_string(votes[3]) + "/" + std::to_string(*color);
    }
    return ProcessGroup(std::make_shared<State>(plan, std::move(hosts), state_->keeper));
  }

  /// Finds out where the ranks of an adopted group sit. Every rank must call it. init() and split() have done so.
  void count_hosts() {
    if (size() > 1 && !state_->store) throw no_store();
    std::vector<int> hosts{0};
    if (size() > 1) {
      auto const votes = exchange({rank() == 0 ? next_split() : 0});
      auto const store = c10::make_intrusive<c10d::PrefixStore>("hosts/" + std::to_string(votes[0]), state_->store);
      hosts = detail::meet(store, rank(), size(), {detail::host_identity(), state_->backend}, timeout());
    }
    state_->place(std::move(hosts));
    state_->places_known = true;
  }

  /// Tells the other ranks that this one cannot go on: their operations end at once, with `why` in the sentence,
  /// instead of at their timeout. launch() calls it for an exception that leaves main, where no launcher stops the
  /// others. Local, takes up to a second.
  void abandon(std::string const& why) const noexcept {
    if (state_->line) state_->line.announce(why);
  }

  /// Ends the group: waits up to 10 s for what is under way, then closes connections, whether peers live or not; with
  /// peers that hang it takes up to 25 s. Every copy of the handle is dead then. Every rank should call it, or let the
  /// last handle go. \throws CommError, CommTimeout  if the group has failed and no wait() has said so: nothing is
  /// lost.
  void shutdown() {
    state_->end();
    if (state_->line) state_->line.check_unheard();
  }

 private:
  friend ProcessGroup init(InitOptions options);

  struct State {
    State(detail::BackendPlan const& plan, std::vector<int> hosts_, std::shared_ptr<detail::StoreKeeper> keeper_)
        : device(plan.device),
          backend(plan.name),
          named(plan.named),
          rank(plan.rank),
          size(plan.size),
          host_ranks(plan.host_ranks),
          timeout(plan.timeout),
          address(plan.address),
          store(plan.store),
          keeper(std::move(keeper_)) {
      auto made = detail::make_group(plan);
      ours = true;
      group = std::move(made.group);
      line = std::move(made.line);
      served = detail::served_by(*group);
      places_known = true;
      place(std::move(hosts_));
    }
    State(c10::intrusive_ptr<c10d::ProcessGroup> adopted, torch::Device device_)
        : group(std::move(adopted)), device(device_) {
      if (!group)
        throw ConfigError(sentence("comm", "ProcessGroup was given a null c10d::ProcessGroup", "pass one that exists"));
      rank = group->getRank();
      size = group->getSize();
      backend = detail::backend_name(*group);
      timeout = detail::backend_timeout(*group);
      store = group->getStore();
      served = detail::served_by(*group);
      place(std::vector<int>(static_cast<std::size_t>(size), 0));
    }
    State(State const&) = delete;
    State& operator=(State const&) = delete;
    ~State() {
      // Whoever leaves by an exception leaves the others waiting: tell them.
      if (line && std::uncaught_exceptions() > 0) line.announce("an exception ended it");
      if (ours) end();  // an adopted group may serve others still
    }

    void place(std::vector<int> hosts_) {
      places = detail::places_of(hosts_, rank);
      hosts = std::move(hosts_);
    }
    [[nodiscard]] std::string store_host() const { return keeper ? keeper->host() : "its host"; }

    void end() noexcept {
      try {
        if (keeper && line && line.failed()) keeper->hurry();
        if (line)
          line.shutdown();
        else if (group && size > 1 && !std::exchange(ended, true))
          (void)detail::ends_within(std::chrono::seconds(10), [group = group] { group->shutdown(); });
      } catch (...) {  // an adopted group that cannot be shut down has said so itself
      }
      keeper.reset();
    }

    c10::intrusive_ptr<c10d::ProcessGroup> group;
    detail::Lifeline line;  ///< empty: a world of one, or an adopted group
    torch::Device device = torch::kCPU;
    std::string backend;
    std::vector<torch::DeviceType> served;  ///< by a backend; c10d makes a list anew whenever it is asked
    bool named = true;                      ///< the user has chosen it
    int rank = 0, size = 1;
    int host_ranks = 0;  ///< as in the plan
    std::chrono::milliseconds timeout{600'000};
    std::string address;  ///< of this host, for connections to other hosts
    c10::intrusive_ptr<c10d::Store> store;
    std::vector<int> hosts;  ///< by rank
    detail::Places places;
    bool places_known = false;  ///< hosts were counted: connections of ranks on one may stay on loopback
    bool ours = false;          ///< made here, not adopted
    bool ended = false;
    std::shared_ptr<detail::StoreKeeper> keeper;  ///< destroyed last: it serves the others' last words
  };

  explicit ProcessGroup(std::shared_ptr<State> state) : state_(std::move(state)) {}

  [[nodiscard]] CommError no_store() const {
    return CommError(sentence("comm", rank(), size(), "the adopted group has no store, so it cannot be divided",
                              "construct the c10d::ProcessGroup with a store"));
  }

  /// A number no other subgroup of this store has. Rank 0 only.
  [[nodiscard]] std::int64_t next_split() const {
    if (size() == 1) return 0;
    if (!state_->store) throw no_store();
    return detail::translated([&] { return state_->store->add("pardl/splits", 1); });
  }

  /// Every rank's numbers, one rank after the other.
  [[nodiscard]] std::vector<std::int64_t> exchange(std::vector<std::int64_t> const& mine) const {
    if (size() == 1) return mine;
    auto const device = state_->backend == "nccl" ? state_->device : torch::Device(torch::kCPU);
    auto in = torch::tensor(mine, torch::kInt64).to(device);
    auto out = torch::empty({size() * static_cast<std::int64_t>(mine.size())}, in.options());
    Work(detail::translated([&] { return detail::all_gather_into(*c10d(), out, in); })).wait();
    out = out.cpu();
    auto const* data = out.const_data_ptr<std::int64_t>();
    return {data, data + out.numel()};
  }

  std::shared_ptr<State> state_;
};

static_assert(ranked<ProcessGroup>);

/// Makes the world: finds out who we are, meets the other ranks, counts hosts, chooses and connects the backend. Every
/// rank must call it.
/// \throws ConfigError  for what cannot be: a backend that is not built in, a GPU that is not there, half an
/// environment. \throws CommError, CommTimeout  when the ranks cannot meet; the sentence names those missing.
inline ProcessGroup init(InitOptions options = {}) {
  Environment const env = options.environment ? *options.environment : read_environment();
  auto const kind = options.device ? options.device->type() : detail::default_device_type();
  detail::BackendPlan plan{.name = options.backend, .rank = env.rank, .size = env.size, .timeout = options.timeout};
  plan.named = !plan.name.empty();
  if (!plan.named)
    plan.name = detail::default_backend(kind, env.size, true);  // whatever the hosts, until they are known
  detail::check_backend(plan.name, env.rank, env.size);
  detail::check_device(plan.name, kind, env.rank, env.size);

  std::vector<int> hosts{0};
  std::shared_ptr<detail::StoreKeeper> keeper;
  if (env.size > 1) {
    auto const limit = std::min<std::chrono::milliseconds>(options.timeout, std::chrono::minutes(5));
    keeper = options.store
                 ? std::make_shared<detail::StoreKeeper>(c10::make_intrusive<c10d::PrefixStore>("pardl", options.store),
                                                         "its host", env.rank, env.size, false)
                 : detail::store_from(env, limit);
    detail::Arrival const self{options.host.empty() ? detail::host_identity() : options.host,
                               plan.named || plan.name != "shm" ? plan.name : "shm or gloo"};
    hosts = detail::meet(keeper->store(), env.rank, env.size, self, limit);
    auto const places = detail::places_of(hosts, env.rank);
    plan.one_host = places.nodes == 1;
    plan.host_ranks = places.local_size;
    if (!plan.named) plan.name = detail::default_backend(kind, env.size, plan.one_host);
    plan.store = c10::make_intrusive<c10d::PrefixStore>("world", keeper->store());
    plan.store_host = keeper->host();
    if (!plan.one_host && !env.master_addr.empty()) plan.address = detail::address_towards(env.master_addr);
  } else if (plan.name != "self") {
    plan.store = c10::make_intrusive<c10d::HashStore>();
  }
  // Who sits where is known for sure only now, and the GPU goes by it.
  bool const bound =
      env.launcher == Launcher::slurm || env.launcher == Launcher::open_mpi || env.launcher == Launcher::pmi;
  plan.device = detail::choose_device(options.device, kind, plan.name, bound,
                                      detail::places_of(hosts, env.rank).local_rank, env.rank, env.size);
  return ProcessGroup(std::make_shared<ProcessGroup::State>(plan, std::move(hosts), std::move(keeper)));
}

}  // namespace pardl::inline PARDL_ABI
