// SPDX-License-Identifier: MIT
/// \file   What follows from a configuration on a machine: how many clients take part in a round, and how many workers
/// train them where.
/// \layer  fed (std only).
///
/// FederatedScope's derived settings, with its limits on process_num kept where they make sense and lifted where they
/// do not. Each change of what was asked for is one warning that begins with the key's name, and so is each setting
/// that changes nothing beside the others (fed/detail/config_idle.hpp).
///
/// \source FederatedScope, core/configs/cfg_fl_setting.py: assert_fl_setting_cfg; core/parallel/parallel_runner.py.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "pardl/fed/config.hpp"
#include "pardl/fed/config_keys.hpp"
#include "pardl/fed/detail/config_idle.hpp"
#include "pardl/fed/detail/config_key.hpp"
#include "pardl/fed/detail/config_server.hpp"
#include "pardl/fed/detail/config_value.hpp"
#include "pardl/fed/robust_rules.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// What the job runs on.
struct Machine {
  std::int64_t gpus = 0;   ///< that LibTorch can use
  std::int64_t cores = 1;  ///< that this process may use
};

struct Resolved {
  std::int64_t clients = 0;                   ///< all
  std::int64_t participants = 0;              ///< those that can be drawn; the others are evaluated only
  std::int64_t sampled = 0;                   ///< drawn in each round
  std::int64_t workers = 1;                   ///< that train at the same time
  std::vector<std::int64_t> gpu_of_worker{};  ///< the GPU's index of each worker; empty: all compute on the CPU
  std::int64_t personal_steps = 0;            ///< personalization.local_update_steps, or train.local_update_steps
  double personal_lr = 0.0;                   ///< personalization.lr, or train.optimizer.lr
  bool use_fedopt = false;                    ///< by fedopt.use, or by the method
  double proximal_mu = 0.0;                   ///< by fedprox.use, or by the method; 0: no proximal term
  bool server_evaluates = false;              ///< the global model, itself; else every client evaluates
  std::vector<std::string> evaluated{};       ///< of eval.split, the parts that there are samples of
  std::vector<std::string> warnings{};
};

/// FederatedScope's count, rounded down: 0.29 of 100 is 28, since 0.29 * 100 is less than 29 in floating point.
[[nodiscard]] constexpr std::int64_t floor_share(double share, std::int64_t of) {
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(share * static_cast<double>(of)));
}

namespace config_detail {

inline void resolve_clients(Config const& config, std::int64_t found, Resolved& into) {
  auto const& federate = config.federate;
  into.clients = federate.client_num;
  if (found > 0 && (into.clients == 0 || into.clients > found)) {
    if (into.clients > found)
      into.warnings.push_back("federate.client_num is " + std::to_string(into.clients) + ", but the data has " +
                              std::to_string(found) + " clients: these take part");
    into.clients = found;
  }
  if (into.clients < 1)
    refuse("", "federate.client_num is 0, and the data does not say how many clients there are",
           "give federate.client_num");
  into.participants = floor_share(1.0 - federate.unseen_clients_rate, into.clients);
  if (federate.unseen_clients_rate > 0.0 && into.participants == into.clients)
    into.warnings.push_back("federate.unseen_clients_rate has no effect: it leaves no client out");
  bool const by_rate = federate.sample_client_rate > 0.0, by_number = federate.sample_client_num > 0;
  into.sampled = by_rate     ? floor_share(federate.sample_client_rate, into.participants)
                 : by_number ? federate.sample_client_num
                             : into.participants;
  if (by_rate && by_number)
    into.warnings.push_back(
        "federate.sample_client_rate goes before federate.sample_client_num: " + std::to_string(into.sampled) +
        " clients a round, not " + std::to_string(federate.sample_client_num));
  if (into.sampled > into.participants)
    refuse("",
           "federate.sample_client_num is " + std::to_string(into.sampled) + ", but only " +
               std::to_string(into.participants) + " clients take part",
           "ask for at most as many");
}

inline void resolve_workers(Config const& config, Machine const& machine, Resolved& into) {
  std::int64_t const asked = config.federate.process_num;
  std::string const name = "federate.process_num is " + std::to_string(asked);
  bool const gpu = config.use_gpu && machine.gpus > 0;
  if (config.use_gpu && machine.gpus == 0)
    into.warnings.push_back("use_gpu is True, but there is no GPU here: all is computed on the CPU");
  std::string why;
  auto const because = [&](std::string const& reason) { why += (why.empty() ? ", " : " and ") + reason; };
  into.workers = std::min(asked, into.sampled);
  if (into.workers < asked) because("more than the " + std::to_string(into.sampled) + " clients of a round");
  if (!gpu && into.workers > machine.cores) {
    into.workers = std::max<std::int64_t>(machine.cores, 1);
    because("more than the " + std::to_string(machine.cores) + " cores");
  } else if (!gpu && into.workers > 1) {
    because("without a GPU, where FederatedScope falls back to 1");
  }
  bool const shares = gpu && into.workers > 1 && into.workers > machine.gpus;
  if (shares)
    because("more than the " + std::to_string(machine.gpus) + " GPUs, where FederatedScope falls back to as many");
  if (!why.empty())
    into.warnings.push_back(name + why + ": " + std::to_string(into.workers) +
                            (into.workers == 1 ? " worker trains" : " workers train") +
                            (shares ? ", sharing them"
                             : gpu  ? " on GPUs"
                                    : " on the CPU"));
  if (into.workers > 1 && config.federate.share_local_model)
    into.warnings.push_back(
        "federate.share_local_model is True with several workers, which FederatedScope rules out: each worker has one "
        "model that its clients share");
  if (!gpu) return;
  std::int64_t const first = std::max<std::int64_t>(config.device, 0);
  if (first >= machine.gpus)
    refuse("",
           "device is " + std::to_string(config.device) + ", but there are " + std::to_string(machine.gpus) + " GPUs",
           "give a number from 0 to " + std::to_string(machine.gpus - 1) + ", or -1");
  for (std::int64_t worker = 0; worker < into.workers; ++worker)
    into.gpu_of_worker.push_back((first + worker) % machine.gpus);
}

/// Which parts of the data are evaluated, and by whom.
inline void resolve_evaluation(Config const& config, Resolved& into) {
  into.server_evaluates = server_evaluates(config);
  for (std::string const& split : config.eval.split) {
    bool const there = is_shared_out(config, split);
    if (there && (!into.server_evaluates || server_has(config, split))) {
      into.evaluated.push_back(split);
      continue;
    }
    into.warnings.push_back("eval.split has '" + split + "', but " +
                            (there ? "the server has no such samples" +
                                         std::string(split == "val" ? " without federate.merge_val_data" : "")
                                   : "data.splits leaves no such samples") +
                            ": it is not evaluated");
  }
}

/// Of n updates a round, f may lie: what the rules' own check(n) says (fed/robust_rules.hpp), in the names of keys.
/// Krum needs 2f + 2 < n, Bulyan 4f + 3 <= n, the medians and the trimmed mean 2f < n; a trimmed mean must also cut off
/// at least f at each end. That its ratio is below 0.5 is the key's own rule, and then one update is always left.
inline void check_robust(Config const& config, Resolved const& resolved) {
  std::int64_t const liars = config.aggregator.byzantine_node_num, updates = resolved.sampled;
  std::string const& rule = config.aggregator.robust_rule;
  if (rule == "fedavg" || rule == "normbounding") return;  // they do not ask how many may lie
  std::int64_t const factor = rule == "bulyan" ? 4 : 2, more = rule == "krum" || rule == "bulyan" ? 3 : 1;
  bool const possible = liars <= updates;  // else the product might overflow
  if (!possible || updates < factor * liars + more)
    refuse("",
           "aggregator.robust_rule is " + rule + " against " + std::to_string(liars) +
               " clients that may lie, but a round has " + std::to_string(updates) + " updates",
           "sample " +
               (possible ? "at least " + std::to_string(factor * liars + more) : "more than " + std::to_string(liars)) +
               ", or lower aggregator.byzantine_node_num");
  auto const& args = config.aggregator.BFT_args;
  if (rule == "krum" && args.krum_agg_num > updates - liars)
    refuse("",
           "aggregator.BFT_args.krum_agg_num is " + std::to_string(args.krum_agg_num) + ", more than the " +
               std::to_string(updates - liars) + " updates of a round that can be trusted",
           "lower it");
  if (rule != "trimmedmean") return;
  TrimmedMean const mean{.excluded_ratio = args.trimmedmean_excluded_ratio, .byzantine = liars};
  auto const cut = static_cast<std::int64_t>(mean.excluded(static_cast<std::size_t>(updates)));
  if (cut < liars)
    refuse("",
           "aggregator.BFT_args.trimmedmean_excluded_ratio is " + real_text(args.trimmedmean_excluded_ratio) +
               ", which cuts off " + std::to_string(cut) + " of a round's " + std::to_string(updates) +
               " updates at each end, but " + std::to_string(liars) + " clients may lie",
           "raise it, sample more, or lower aggregator.byzantine_node_num");
}

}  // namespace config_detail

/// \param clients_found  how many the data has; 0: whatever is asked for (a partitioner makes them).
/// \throws ConfigError as check_config() does, and for more clients a round, or a later GPU, than there are.
[[nodiscard]] inline Resolved resolve(Config const& config, Machine const& machine, std::int64_t clients_found = 0) {
  check_config(config);
  Resolved resolved;
  config_detail::resolve_clients(config, clients_found, resolved);
  config_detail::resolve_workers(config, machine, resolved);
  auto const& personal = config.personalization;
  resolved.personal_steps =
      personal.local_update_steps > 0 ? personal.local_update_steps : config.train.local_update_steps;
  resolved.personal_lr = personal.lr > 0.0 ? personal.lr : config.train.optimizer.lr;
  resolved.use_fedopt = config.fedopt.use || config.federate.method == "FedOpt";
  if (config.fedprox.use || config.federate.method == "FedProx") resolved.proximal_mu = config.fedprox.mu;
  config_detail::resolve_evaluation(config, resolved);
  for (std::string& sentence : config_detail::idle_settings(config)) resolved.warnings.push_back(std::move(sentence));
  config_detail::check_robust(config, resolved);
  return resolved;
}

}  // namespace pardl::inline PARDL_ABI::fed
