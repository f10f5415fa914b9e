// SPDX-License-Identifier: MIT
/// \file   How a parameter server begins: everybody agrees, has the server's model, and shares a group with it.
/// \layer  train, private.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/detail/model_check.hpp"
#include "pardl/train/detail/model_state.hpp"
#include "pardl/train/detail/ps_link.hpp"
#include "pardl/train/parameter_server_options.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::ps {

struct Started {
  Model model;
  std::vector<int> workers;  ///< their ranks
  std::vector<Link> links;   ///< on the server to each of them, on a worker to the server
};

/// What is wrong without asking another rank; empty where nothing is.
inline std::string local_problem(ProcessGroup const& world, ParameterServerOptions const& options,
                                 std::vector<NamedTensor> const& parameters) {
  if (world.size() < 2)
    return "a parameter server needs two ranks or more, one that serves and others that train; start with --nproc 2, "
           "or train alone";
  if (world.backend() == "nccl")
    return "a parameter server sends host memory, which the backend nccl cannot; name the backend gloo or shm";
  if (options.staleness < 0)
    return "staleness is " + std::to_string(options.staleness) + "; give the steps that a worker may be ahead, from 0";
  if (options.server < 0 || options.server >= world.size())
    return "the server is rank " + std::to_string(options.server) + ", which is not in this world; rank 0 is usual";
  bool trains = false;
  for (auto const& [name, tensor, sparse] : parameters) {
    trains = trains || tensor.requires_grad();
    if (sparse && tensor.requires_grad()) return "'" + name + "' gets sparse gradients; use a dense embedding";
  }
  return trains ? "" : "no parameter requires a gradient; there is nothing to train";
}

/// Every rank must call it.
inline Started start(ProcessGroup const& world, ParameterServerOptions const& options,
                     std::vector<NamedTensor> parameters, std::function<std::vector<NamedTensor>()> const& buffers) {
  parameters = distinct(std::move(parameters), {});
  auto const own_buffers = [buffers] { return distinct(buffers(), {}); };
  ModelDescription mine{.problem = local_problem(world, options, parameters),
                        .options = "staleness " + std::to_string(options.staleness) + " on_rank_failure " +
                                   (options.on_rank_failure == keep_going ? "keep_going" : "stop_all") + " server " +
                                   std::to_string(options.server),
                        .names = {},
                        .kinds = {}};
  describe(mine, parameters, "parameter");
  describe(mine, own_buffers(), "buffer");
  check_models(world, mine, room);

  Started started;
  for (auto const& parameter : parameters)
    if (parameter.tensor.requires_grad()) started.model.parameters.push_back(parameter.tensor);
  started.model.buffers = [own_buffers] { return tensors_of(own_buffers()); };

  auto everything = tensors_of(parameters);  // frozen parameters too, this once
  for (auto& buffer : started.model.buffers()) everything.push_back(std::move(buffer));
  constexpr std::size_t chunk_bytes = std::size_t{250} << 20;
  torch::NoGradGuard const no_grad;
  translated([&] { c10d::broadcast_coalesced(world.c10d(), everything, chunk_bytes, options.server); });

  for (int rank = 0; rank < world.size(); ++rank) {
    if (rank == options.server) continue;
    bool const server = world.rank() == options.server;
    auto pair = world.split(server || world.rank() == rank ? std::optional(0) : std::nullopt, server ? 0 : 1);
    started.workers.push_back(rank);
    if (pair) started.links.emplace_back(*std::move(pair));
  }
  return started;
}

}  // namespace pardl::inline PARDL_ABI::detail::ps
