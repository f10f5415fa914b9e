// SPDX-License-Identifier: MIT
/// \file   The named tensors of a module, in the order in which Python lists them.
/// \layer  train, private.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/embedding.h>
#include <torch/types.h>

#include <algorithm>
#include <concepts>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "pardl/train/module_like.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

struct NamedTensor {
  std::string name;  ///< "layer1.weight": no prefix of any wrapper
  torch::Tensor tensor;
  bool sparse_gradient = false;  ///< an embedding's with sparse gradients
};

/// Whether backward gives this module's own parameters sparse gradients.
inline bool gives_sparse_gradients(torch::nn::Module const& part) {
  if (auto const* embedding = dynamic_cast<torch::nn::EmbeddingImpl const*>(&part)) return embedding->options.sparse();
  if (auto const* bag = dynamic_cast<torch::nn::EmbeddingBagImpl const*>(&part)) return bag->options.sparse();
  return false;
}

inline std::string joined(std::string const& path, std::string const& key) {
  return path.empty() ? key : path + "." + key;
}

/// Each parameter under every name it has, module by module, the outer one first.
template <class T>
std::vector<NamedTensor> all_parameters(T& module) {
  std::vector<NamedTensor> found;
  if constexpr (std::derived_from<T, torch::nn::Module>) {
    static_cast<torch::nn::Module const&>(module).apply([&](std::string const& path, torch::nn::Module const& part) {
      bool const sparse = gives_sparse_gradients(part);
      for (auto const& item : part.named_parameters(/*recurse=*/false))
        if (item.value().defined()) found.push_back({joined(path, item.key()), item.value(), sparse});
    });
  } else {
    for (auto const& item : module.named_parameters()) found.push_back({item.key(), item.value()});
  }
  return found;
}

template <class T>
std::vector<NamedTensor> all_buffers(T& module) {
  std::vector<NamedTensor> found;
  for (auto const& item : module.named_buffers())
    if (item.value().defined()) found.push_back({item.key(), item.value()});
  return found;
}

/// Parameters and buffers as `state_dict()` lists them in Python: of each module first the one, then the other.
template <class T>
std::vector<NamedTensor> all_state(T& module) {
  std::vector<NamedTensor> found;
  if constexpr (std::derived_from<T, torch::nn::Module>) {
    static_cast<torch::nn::Module const&>(module).apply([&](std::string const& path, torch::nn::Module const& part) {
      for (auto const& item : part.named_parameters(/*recurse=*/false))
        if (item.value().defined()) found.push_back({joined(path, item.key()), item.value()});
      for (auto const& item : part.named_buffers(/*recurse=*/false))
        if (item.value().defined()) found.push_back({joined(path, item.key()), item.value()});
    });
  } else {
    found = all_parameters(module);
    for (auto& buffer : all_buffers(module)) found.push_back(std::move(buffer));
  }
  return found;
}

/// Drops what is to be ignored, and every name but the first of a tensor that has several.
inline std::vector<NamedTensor> distinct(std::vector<NamedTensor> tensors, std::vector<std::string> const& ignored) {
  std::unordered_set<c10::TensorImpl*> seen;
  std::erase_if(tensors, [&](NamedTensor const& item) {
    if (std::find(ignored.begin(), ignored.end(), item.name) != ignored.end()) return true;
    return !seen.insert(item.tensor.unsafeGetTensorImpl()).second;
  });
  return tensors;
}

inline std::vector<torch::Tensor> tensors_of(std::vector<NamedTensor> const& named) {
  std::vector<torch::Tensor> tensors;
  tensors.reserve(named.size());
  for (auto const& item : named) tensors.push_back(item.tensor.detach());
  return tensors;
}

}  // namespace pardl::inline PARDL_ABI::detail
