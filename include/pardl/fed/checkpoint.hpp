// SPDX-License-Identifier: MIT
/// \file   A federation between two rounds as one safetensors file: resumed, it goes on bit for bit.
/// \layer  fed.
///
/// A draw depends on (seed, round, client) and on nothing before it, so no generator's state is in it; a round that was
/// cut short left no trace, since what it changes counts only once it is over. Layout: `model.NAME` (what Python reads
/// with safetensors too), `server.K` (the server optimizer's numbers), `numbers` (the server's of the local update,
/// such as SCAFFOLD's control variate), `client.I` and `client.I.integers` (what client
/// I keeps), `costs` (what the schedule has learned); in the metadata the round, the seed and the caller's own words.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/fed/detail/round_memory.hpp"
#include "pardl/fed/schedule.hpp"
#include "pardl/io/safetensors.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/whole_number.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// What the caller keeps beside the federation: its own history, the state of its stopping policy.
using Remarks = std::map<std::string, std::string>;

namespace detail {

inline constexpr std::string_view checkpoint_format = "pardl federation 1";

/// The tensors of a checkpoint, as places in memory that are written from and read into.
[[nodiscard]] inline std::vector<io::TensorBytes> checkpoint_tensors(RoundMemory const& memory,
                                                                     std::span<std::uint8_t const> keeping,
                                                                     std::string const& prefix, bool all) {
  std::vector<io::TensorBytes> tensors;
  auto const add = [&](std::string name, io::TensorType type, std::vector<std::int64_t> shape, auto numbers) {
    tensors.push_back(
        {.name = std::move(name), .type = type, .shape = std::move(shape), .bytes = std::as_bytes(numbers)});
  };
  auto const& sizes = memory.sizes();
  for (auto const& place : memory.shared_places())
    add(prefix + place.name, io::TensorType::f32, place.shape,
        memory.global.span(static_cast<std::size_t>(place.begin), static_cast<std::size_t>(place.size)));
  for (auto const& place : memory.shared_integer_places())
    add(prefix + place.name, io::TensorType::i64, place.shape,
        memory.global_integers.span(static_cast<std::size_t>(place.begin), static_cast<std::size_t>(place.size)));
  if (!all) return tensors;
  for (std::size_t s = 0; s < sizes.server_states; ++s)
    add("server." + std::to_string(s), io::TensorType::f32, {static_cast<std::int64_t>(sizes.shared)},
        memory.server_state.span(s * sizes.shared, sizes.shared));
  if (sizes.server_numbers > 0)
    add("numbers", io::TensorType::f32, {static_cast<std::int64_t>(sizes.server_numbers)},
        memory.server_numbers.span());
  for (std::size_t client = 0; client < keeping.size(); ++client) {
    if (keeping[client] == 0) continue;
    auto const name = "client." + std::to_string(client);
    add(name, io::TensorType::f32, {static_cast<std::int64_t>(sizes.kept())},
        memory.kept.span(client * sizes.kept(), sizes.kept()));
    if (!sizes.integers_shared)
      add(name + ".integers", io::TensorType::i64, {static_cast<std::int64_t>(sizes.integers)},
          memory.kept_integers.span(client * sizes.integers, sizes.integers));
  }
  return tensors;
}

inline void save_checkpoint(std::filesystem::path const& path, RoundMemory const& memory, std::int64_t round,
                            std::uint64_t seed, CostModel const& costs, Remarks const& remarks) {
  auto tensors = checkpoint_tensors(memory, memory.has_kept.span(), "model.", true);
  std::vector<double> learned;
  costs.save(learned);
  tensors.push_back({.name = "costs",
                     .type = io::TensorType::f64,
                     .shape = {static_cast<std::int64_t>(learned.size())},
                     .bytes = std::as_bytes(std::span(learned))});
  io::Metadata words{{"format", std::string(checkpoint_format)},
                     {"round", std::to_string(round)},
                     {"seed", std::to_string(seed)},
                     {"clients", std::to_string(memory.sizes().clients)}};
  for (auto const& [key, value] : remarks) words.emplace("remark." + key, value);
  io::write_safetensors(path, tensors, words);
}

/// The weights alone, from a model's file or a checkpoint. Nothing changes unless all of them are there.
inline void load_weights(std::filesystem::path const& path, RoundMemory& memory) {
  io::SafetensorsReader const file(path);
  std::string const prefix = file.metadata().contains("format") ? "model." : "";
  auto const expected = checkpoint_tensors(memory, {}, prefix, false);
  for (auto const& tensor : expected) {
    auto const& there = file.at(tensor.name);
    if (there.type != tensor.type || there.shape != tensor.shape)
      throw CheckpointError(sentence("fed", path.string() + " has a " + tensor.name + " of another shape or type",
                                     "load a file of the same model"));
  }
  for (auto const& tensor : expected)
    file.read(file.at(tensor.name), {const_cast<std::byte*>(tensor.bytes.data()), tensor.bytes.size()});
  memory.look_for_largest();
}

struct Resumed {
  std::int64_t round;
  Remarks remarks;
};

/// Nothing changes unless all of the file fits. \throws CheckpointError.
inline Resumed load_checkpoint(std::filesystem::path const& path, RoundMemory& memory, std::uint64_t seed,
                               CostModel& costs) {
  io::SafetensorsReader const file(path);
  auto const refuse = [&](std::string const& what, std::string const& remedy) {
    throw CheckpointError(sentence("fed", path.string() + " " + what, remedy));
  };
  auto const word = [&](std::string const& key) {
    auto const found = file.metadata().find(key);
    if (found == file.metadata().end()) refuse("says nothing of its " + key, "give a file that a Runner has saved");
    return found->second;
  };
  auto const whole = [&](std::string const& key) {
    auto const text = word(key);
    auto const number = pardl::detail::whole_number<std::uint64_t>(text);
    if (!number) refuse("has a damaged " + key, "take an older one");
    return *number;
  };
  if (word("format") != checkpoint_format)
    refuse("is of the format '" + word("format") + "'", "give a file that this version's Runner has saved");
  auto const round = whole("round");
  if (round > (std::uint64_t{1} << 62)) refuse("has a damaged round", "take an older one");
  if (whole("seed") != seed)
    refuse("was made with the seed " + word("seed") + ", this job has " + std::to_string(seed),
           "give it the same seed");
  if (whole("clients") != memory.sizes().clients)
    refuse("is of " + word("clients") + " clients, this job has " + std::to_string(memory.sizes().clients),
           "resume the job that it was made by");

  std::vector<std::uint8_t> keeping(memory.sizes().clients);
  for (std::size_t client = 0; client < keeping.size(); ++client)
    keeping[client] = file.find("client." + std::to_string(client)) != nullptr ? 1 : 0;
  auto const expected = checkpoint_tensors(memory, keeping, "model.", true);
  for (auto const& tensor : expected) {
    auto const* there = file.find(tensor.name);
    if (there == nullptr || there->type != tensor.type || there->shape != tensor.shape)
      refuse(there == nullptr ? "has no tensor " + tensor.name : "has a " + tensor.name + " of another shape or type",
             "resume with the model, sharing and server optimizer that it was made with");
  }
  auto const& learned = file.at("costs");
  if (learned.type != io::TensorType::f64) refuse("has damaged costs", "take an older one");
  if (file.tensors().size() != expected.size() + 1)
    refuse("has tensors that this model does not have",
           "resume with the model, sharing and server optimizer that it was made with");
  std::vector<double> numbers(learned.bytes / sizeof(double));
  file.read(learned, std::as_writable_bytes(std::span(numbers)));
  std::span<double const> rest(numbers);
  costs.restore(rest);
  for (auto const& tensor : expected)  // the places are this process's own memory: only here do they get written
    file.read(file.at(tensor.name), {const_cast<std::byte*>(tensor.bytes.data()), tensor.bytes.size()});
  std::ranges::copy(keeping, memory.has_kept.data());
  memory.look_for_largest();
  Resumed resumed{static_cast<std::int64_t>(round), {}};
  for (auto const& [key, value] : file.metadata())
    if (key.starts_with("remark.")) resumed.remarks.emplace(key.substr(7), value);
  return resumed;
}

}  // namespace detail
}  // namespace pardl::inline PARDL_ABI::fed
