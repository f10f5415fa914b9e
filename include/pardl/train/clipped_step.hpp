// SPDX-License-Identifier: MIT
/// \file   Clipping and stepping as one: where the step can take the factor, the gradients are not written again.
/// \layer  train (torch only).
#pragma once

#include <ATen/Functions.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <vector>

#include "pardl/train/clip_grad.hpp"
#include "pardl/train/optim.hpp"
#include "pardl/train/optimizer.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// `clip_grad_norm_(parameters, max_norm); optimizer.step();` for a norm of 2; max_norm 0 steps unclipped. For
/// pardl::optim::SGD without momentum and weight decay on a CPU, a factor on the gradients is one on the rate, which
/// saves a pass that reads and writes all gradients (they then stay as backward left them); everything else, gradients
/// that are not finite too, goes the two steps.
/// \cost   a memory-bound layer's step on a CPU takes about two thirds of the two calls.
template <optimizer O>
void clip_and_step(O& optimizer, double max_norm) {
  if (max_norm == 0) return optimizer.step();
  if constexpr (std::same_as<O, optim::SGD>) {
    bool plain = optimizer.groups() == 1 && optimizer.options().momentum == 0 && optimizer.options().weight_decay == 0;
    for (torch::Tensor const& parameter : optimizer.parameters()) plain = plain && parameter.is_cpu();
    auto const gradients = detail::gradient_buckets(optimizer.parameters());
    if (plain && gradients.size() == 1) {
      torch::NoGradGuard const no_grad;
      double const norm =
          at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients.front().tensors))).template item<double>();
      if (std::isfinite(norm)) {
        double const rate = optimizer.lr();
        optimizer.set_lr(rate * std::min(1.0, max_norm / (norm + 1e-6)));
        optimizer.step();
        optimizer.set_lr(rate);
        return;
      }
    }
  }
  clip_grad_norm_(parameters_of(optimizer), max_norm);
  optimizer.step();
}

}  // namespace pardl::inline PARDL_ABI
