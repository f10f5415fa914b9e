// SPDX-License-Identifier: MIT
/// \file   Before anything is shared: do all ranks hold the same model? If not, every rank throws, and says where.
/// \layer  train, private.
///
/// LibTorch's own check throws on the ranks that differ from rank 0 and leaves rank 0 waiting for them. Here a digest
/// of every rank's description is gathered first, so that all ranks reach the same verdict.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/detail/model_state.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// What one rank has, in lines that can be compared one by one.
struct ModelDescription {
  std::string problem;             ///< what this rank found wrong by itself; empty: nothing
  std::string options;             ///< settings that must agree
  std::vector<std::string> names;  ///< of parameters, then buffers
  std::vector<std::string> kinds;  ///< their dtype, shape and strides
};

inline std::string list_of(c10::IntArrayRef values) {
  std::string text = "[";
  for (std::size_t i = 0; i < values.size(); ++i) text.append(i ? ", " : "").append(std::to_string(values[i]));
  return text + "]";
}

inline void describe(ModelDescription& into, std::vector<NamedTensor> const& tensors, std::string_view what) {
  for (auto const& [name, tensor, sparse] : tensors) {
    into.names.push_back(std::string(what) + " '" + name + "'");
    std::string kind = std::string(c10::toString(tensor.scalar_type())) + " " + list_of(tensor.sizes());
    // Buffers are broadcast densely and may lie in memory as they like; gradients go where the strides say.
    if (what == "parameter") {
      if (tensor.layout() == torch::kStrided) kind += " with strides " + list_of(tensor.strides());
      kind += tensor.requires_grad() ? "" : ", frozen";
      kind += sparse ? ", sparse gradient" : "";
    }
    into.kinds.push_back(std::move(kind));
  }
}

/// One line each; names and kinds hold no line break.
inline std::string packed(ModelDescription const& model) {
  std::string text = model.problem + "\n" + model.options;
  for (std::size_t i = 0; i < model.names.size(); ++i) text += "\n" + model.names[i] + "\n" + model.kinds[i];
  return text;
}

inline ModelDescription unpacked(std::string const& text) {
  ModelDescription model;
  std::istringstream lines(text);
  std::getline(lines, model.problem);
  std::getline(lines, model.options);
  for (std::string name, kind; std::getline(lines, name) && std::getline(lines, kind);) {
    model.names.push_back(name);
    model.kinds.push_back(kind);
  }
  return model;
}

/// 128 bits of FNV-1a and the length: equal for equal texts, and different for different ones but by malice.
inline std::string digest(std::string_view text) {
  std::uint64_t a = 14695981039346656037ull;
  std::uint64_t b = 1099511628211ull;
  for (char const c : text) {
    auto const byte = static_cast<unsigned char>(c);
    a = (a ^ byte) * 1099511628211ull;
    b = (b ^ (byte + 0x9eu)) * 1099511628211ull;
    b ^= b >> 29;
  }
  return std::to_string(a) + ":" + std::to_string(b) + ":" + std::to_string(text.size());
}

/// The first difference between two ranks' models, as a clause; nothing where there is none.
inline std::optional<std::string> difference(ModelDescription const& zero, ModelDescription const& other, int rank) {
  std::string const there = " on rank " + std::to_string(rank);
  if (zero.options != other.options)
    return "the options differ: " + zero.options + " on rank 0, but " + other.options + there;
  auto const common = std::min(zero.names.size(), other.names.size());
  for (std::size_t i = 0; i < common; ++i) {
    if (zero.names[i] != other.names[i])
      return "the models differ at tensor " + std::to_string(i) + ": " + zero.names[i] + " (" + zero.kinds[i] +
             ") on rank 0, but " + other.names[i] + " (" + other.kinds[i] + ")" + there;
    if (zero.kinds[i] != other.kinds[i])
      return zero.names[i] + " is " + zero.kinds[i] + " on rank 0, but " + other.kinds[i] + there;
  }
  if (zero.names.size() == other.names.size()) return std::nullopt;
  bool const zero_has_more = zero.names.size() > other.names.size();
  auto const& longer = zero_has_more ? zero.names : other.names;
  return "rank 0 has " + std::to_string(zero.names.size()) + " parameters and buffers and rank " +
         std::to_string(rank) + " has " + std::to_string(other.names.size()) + ": " +
         (zero_has_more ? "rank " + std::to_string(rank) : std::string("rank 0")) + " lacks " + longer[common];
}

/// Every rank must call it; either all return, or all throw for the same reason.
/// \cost two small all-gathers; two more where something is wrong.
/// \param room  whose question it is, for the sentence.
/// \throws ConfigError that names the first parameter, buffer or option that differs, and both sides.
inline void check_models(ProcessGroup const& world, ModelDescription const& mine, std::string_view room = "ddp") {
  int const rank = world.rank();
  int const size = world.size();
  std::string const text = packed(mine);
  auto const digests = all_gather_strings(world, digest(text));
  std::size_t other = 0;
  while (other < digests.size() && digests[other] == digests[0]) ++other;
  if (other == digests.size()) {  // all alike
    if (mine.problem.empty()) return;
    throw ConfigError(sentence(room, rank, size, mine.problem));
  }
  auto const texts = all_gather_strings(world, text);
  for (std::size_t r = 0; r < texts.size(); ++r) {
    auto const problem = unpacked(texts[r]).problem;
    if (problem.empty()) continue;
    bool const here = static_cast<int>(r) == rank;
    throw ConfigError(sentence(room, rank, size, here ? problem : "rank " + std::to_string(r) + " says: " + problem));
  }
  auto const what = difference(unpacked(texts[0]), unpacked(texts[other]), static_cast<int>(other));
  throw ConfigError(sentence(room, rank, size, what.value_or("the models differ"),
                             "build the same model with the same options on every rank"));
}

}  // namespace pardl::inline PARDL_ABI::detail
