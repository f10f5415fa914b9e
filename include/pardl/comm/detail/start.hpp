// SPDX-License-Identifier: MIT
/// \file   What the collectives share: the operation on the wire, the division of an average, and the Work of it all.
/// \layer  comm, private.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Types.hpp>
#include <typeinfo>
#include <utility>
#include <vector>

#include "pardl/comm/detail/c10d_version.hpp"
#include "pardl/comm/detail/translate.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/comm/work.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

using Tensors = std::vector<torch::Tensor>;

/// `avg` is a sum here, and a division afterwards: that defines its bits, whatever the backend does with its own.
inline c10d::ReduceOp wire_op(ReduceOp op) {
  using Wire = c10d::ReduceOp;
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::avg:
      return Wire(Wire::SUM);
    case ReduceOp::min:
      return Wire(Wire::MIN);
    case ReduceOp::max:
      return Wire(Wire::MAX);
    case ReduceOp::product:
      return Wire(Wire::PRODUCT);
    case ReduceOp::band:
      return Wire(Wire::BAND);
    case ReduceOp::bor:
      return Wire(Wire::BOR);
    case ReduceOp::bxor:
      return Wire(Wire::BXOR);
  }
  return Wire(Wire::UNUSED);
}

inline std::function<void()> division(ProcessGroup const& world, ReduceOp op, Tensors results) {
  if (op != ReduceOp::avg) return nullptr;
  return [results = std::move(results), n = world.size()]() mutable {
    for (auto& tensor : results) tensor.div_(n);
  };
}

/// Without a past in autograd; what has none is not copied for it.
inline torch::Tensor detached(torch::Tensor const& tensor) { return tensor.requires_grad() ? tensor.detach() : tensor; }
inline Tensors detached(Tensors const& tensors) {
  Tensors plain;
  plain.reserve(tensors.size());
  for (auto const& tensor : tensors) plain.push_back(detached(tensor));
  return plain;
}

/// begin(backend), straight at the backend that serves `subject`. c10d's own way there leads through the dispatcher,
/// which boxes every argument for a part of autograd that has nothing to do here; that takes longer than a small sum.
template <class F>
c10::intrusive_ptr<c10d::Work> directly(ProcessGroup const& world, torch::Tensor const& subject, F&& begin) {
  c10d::ProcessGroup& group = *world.c10d();
  if (typeid(group) != typeid(c10d::ProcessGroup)) return begin(group);  // another kind may have ways of its own
  return begin(*group.getBackend(subject.device().type()));
}

inline Tensors joined(Tensors list, torch::Tensor const& one) {
  list.push_back(one);
  return list;
}

/// Starts an operation; the Work keeps its tensors.
template <class F>
Work started(F start, Tensors kept, std::function<void()> after = nullptr) {
  return Work(translated(std::move(start)), std::move(kept), std::move(after));
}
/// Starts what begin(by) begins, where `by` is the backend that serves `subject`.
template <class F>
Work started(ProcessGroup const& world, torch::Tensor const& subject, F&& begin, Tensors kept,
             std::function<void()> after = nullptr) {
  return started([&] { return directly(world, subject, begin); }, std::move(kept), std::move(after));
}

/// all_to_all of lists by one tensor that holds them end to end.
inline Work all_to_all_joined(ProcessGroup const& world, Tensors outputs, Tensors const& inputs) {
  std::vector<std::int64_t> takes, gives;
  std::int64_t total = 0;
  Tensors flat;
  for (auto const& tensor : inputs) flat.push_back(tensor.view(-1)), gives.push_back(tensor.numel());
  for (auto const& tensor : outputs) takes.push_back(tensor.numel()), total += tensor.numel();
  torch::Tensor in = torch::cat(flat), out = torch::empty({total}, in.options());
  auto deal = [out, takes, outputs = std::move(outputs)]() mutable {
    auto const parts = out.split_with_sizes(takes);
    for (std::size_t r = 0; r < outputs.size(); ++r) outputs[r].copy_(parts[r].view_as(outputs[r]));
  };
  return started([&] { return all_to_all_into(*world.c10d(), out, in, takes, gives); }, {out, in}, std::move(deal));
}

}  // namespace pardl::inline PARDL_ABI::detail
