// SPDX-License-Identifier: MIT
/// \file   How many multiply-adds a forward takes: those of its convolutions and matrix products, counted as they run.
/// \layer  train (torch only).
///
/// A multiplication with its addition counts as one, as fvcore's FlopCountAnalysis counts (which FederatedScope's
/// total_flops are; PyTorch's own FlopCounterMode counts it as two). Biases, activations, pooling, normalisation and
/// losses count as nothing; fvcore adds something for normalisation. What a kernel does inside of itself is not seen:
/// fused attention, oneDNN's recurrent layers.
/// ```
/// pardl::FlopCounter counter;
/// (void)net->forward(torch::zeros({1, 1, 28, 28}));
/// std::int64_t const flops = counter.flops();
/// ```
#pragma once

#include <ATen/core/TensorBody.h>
#include <ATen/core/ivalue.h>
#include <ATen/record_function.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

namespace detail {

/// One thread's count.
struct FlopTally {
  std::int64_t flops = 0;
  int counters = 0;                 ///< alive
  bool inside = false;              ///< an operation that has been counted, or a backward
  at::CallbackHandle callback = 0;  ///< of the first counter
};
inline thread_local FlopTally flop_tally{};

/// What is known when an operation begins; the size of what it makes is known when it ends.
struct FlopContext : at::ObserverContext {
  std::int64_t fixed = 0;       ///< multiply-adds, whatever comes out
  std::int64_t per_output = 0;  ///< multiply-adds of each number that comes out
};

/// A matrix product's operand whose last dimension is summed over.
struct FlopProduct {
  std::string_view name;
  std::size_t operand;
};
/// Those that reach a kernel (matmul, einsum and the like are made of them), and linear, which may be a kernel itself.
inline constexpr std::array<FlopProduct, 11> flop_products{{{"aten::mm", 0},
                                                            {"aten::bmm", 0},
                                                            {"aten::mv", 0},
                                                            {"aten::dot", 0},
                                                            {"aten::vdot", 0},
                                                            {"aten::linear", 0},
                                                            {"mkldnn::_linear_pointwise", 0},
                                                            {"aten::addmm", 1},
                                                            {"aten::addmv", 1},
                                                            {"aten::baddbmm", 1},
                                                            {"aten::_addmm_activation", 1}}};

[[nodiscard]] inline at::Tensor flop_operand(c10::ArrayRef<c10::IValue const> inputs, std::size_t which) {
  return which < inputs.size() && inputs[which].isTensor() ? inputs[which].toTensor() : at::Tensor();
}

/// \returns null for what does not count.
[[nodiscard]] inline std::unique_ptr<FlopContext> flops_of(at::RecordFunction const& call) {
  std::string_view name = call.name();
  auto const inputs = call.inputs();
  if (name == "aten::convolution" || name == "aten::_convolution") {
    // input [B, in, ...], weight [out, in / groups, ...], bias, stride, padding, dilation, transposed, …
    auto const input = flop_operand(inputs, 0), weight = flop_operand(inputs, 1);
    if (!input.defined() || !weight.defined() || weight.numel() == 0 || inputs.size() < 7) return nullptr;
    auto context = std::make_unique<FlopContext>();
    auto const filter = weight.numel() / weight.size(0);
    if (inputs[6].toBool())
      context->fixed = input.numel() * filter;  // weight [in, out / groups, ...]: each number of the input is spread
    else
      context->per_output = filter;
    return context;
  }
  if (name == "aten::addbmm") {  // all products of the batch are added up
    auto const batch = flop_operand(inputs, 1);
    if (!batch.defined() || batch.dim() != 3) return nullptr;
    auto context = std::make_unique<FlopContext>();
    context->per_output = batch.size(0) * batch.size(2);
    return context;
  }
  if (name.ends_with('_')) name.remove_suffix(1);  // in place
  for (auto const& product : flop_products) {
    if (product.name != name) continue;
    auto const operand = flop_operand(inputs, product.operand);
    if (!operand.defined() || operand.dim() == 0) return nullptr;
    auto context = std::make_unique<FlopContext>();
    context->per_output = operand.size(-1);
    return context;
  }
  return nullptr;
}

[[nodiscard]] inline std::unique_ptr<at::ObserverContext> begin_counted(at::RecordFunction const& call) {
  auto& tally = flop_tally;
  if (tally.counters == 0 || tally.inside) return nullptr;
  auto context = call.scope() == at::RecordScope::BACKWARD_FUNCTION ? std::make_unique<FlopContext>() : flops_of(call);
  tally.inside = context != nullptr;
  return context;
}

inline void end_counted(at::RecordFunction const& call, at::ObserverContext* begun) {
  if (begun == nullptr) return;
  auto& tally = flop_tally;
  auto const& context = *static_cast<FlopContext const*>(begun);
  tally.inside = false;
  tally.flops += context.fixed;
  if (context.per_output == 0 || call.outputs().empty() || !call.outputs().front().isTensor()) return;
  tally.flops += context.per_output * call.outputs().front().toTensor().numel();
}

}  // namespace detail

/// While it lives, counts what this thread computes, on any device; what backward() computes is left out, and so is
/// what other threads do. Counters nest, and each has the whole of what ran while it lived. To be made, read and ended
/// in one thread. Every rank counts for itself.
/// \cost  every operation's inputs and outputs are boxed: count one step, and multiply.
/// \source https://github.com/facebookresearch/fvcore, fvcore/nn/jit_handles.py (what counts, and how much).
class FlopCounter {
 public:
  [[nodiscard("name it: it counts until it goes out of scope")]] FlopCounter() : begin_(detail::flop_tally.flops) {
    auto& tally = detail::flop_tally;
    if (tally.counters++ > 0) return;
    tally.inside = false;
    tally.callback =
        at::addThreadLocalCallback(at::RecordFunctionCallback(detail::begin_counted, detail::end_counted)
                                       .needsInputs(true)
                                       .needsOutputs(true)
                                       .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  }
  FlopCounter(FlopCounter&&) = delete;
  ~FlopCounter() {
    if (--detail::flop_tally.counters == 0) at::removeCallback(detail::flop_tally.callback);
  }

  /// Multiply-adds since it was made.
  [[nodiscard]] std::int64_t flops() const noexcept { return detail::flop_tally.flops - begin_; }

 private:
  std::int64_t begin_;
};

}  // namespace pardl::inline PARDL_ABI
