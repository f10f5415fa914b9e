// SPDX-License-Identifier: MIT
/// \file   A module's weights in channels_last, or back: what Python's module.to(memory_format=…) does.
/// \layer  train (torch only).
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <string>

#include "pardl/policy/error.hpp"
#include "pardl/train/module_like.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Lays out every parameter and buffer of four dimensions in `format`; the others stay as they are. Call it before an
/// optimizer or DistributedDataParallel takes the parameters. Local.
/// Weights of 1x1 convolutions get the strides of the format too, although both layouts hold the same bytes: their
/// gradients come with those strides, and a Reducer copies, and warns, where the two differ.
/// \throws ConfigError for a format other than Contiguous and ChannelsLast.
template <class M>
void to_memory_format(M& model, torch::MemoryFormat format) {
  static_assert(module_like<M>,
                "pardl::to_memory_format needs a module: a torch::nn::Module, a shared_ptr or a holder of one.");
  if (format != torch::MemoryFormat::Contiguous && format != torch::MemoryFormat::ChannelsLast)
    throw ConfigError(sentence("train", "a memory format that weights cannot have", "use Contiguous or ChannelsLast"));
  torch::NoGradGuard const no_grad;
  auto const lay_out = [format](torch::Tensor tensor) {
    if (tensor.dim() == 4)
      tensor.set_data(at::empty(tensor.sizes(), tensor.options().memory_format(format)).copy_(tensor));
  };
  auto& module = detail::contained(model);
  for (auto const& parameter : module.parameters()) lay_out(parameter);
  for (auto const& buffer : module.buffers()) lay_out(buffer);
}

}  // namespace pardl::inline PARDL_ABI
