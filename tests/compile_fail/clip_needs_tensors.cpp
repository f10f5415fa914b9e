// SPDX-License-Identifier: MIT
// expect-error: pardl::clip_grad_norm_ clips the gradients of a range of tensors; pass model.parameters() (or
// pardl::parameters_of(optimizer)).
#include "pardl/train/clip_grad.hpp"

void use(torch::nn::Module& model) {
  pardl::clip_grad_norm_(model.parameters(), 1.0);
#ifdef PARDL_COMPILE_FAIL
  pardl::clip_grad_norm_(model, 1.0);
#endif
}
