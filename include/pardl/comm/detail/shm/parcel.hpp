// SPDX-License-Identifier: MIT
/// \file   An operation's tensors as rows of bytes, and what is left to do with them when it is over.
/// \layer  comm, private.
#pragma once

#include <torch/types.h>

#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "pardl/comm/detail/shm/reduce.hpp"
#include "pardl/comm/detail/shm/row.hpp"
#include "pardl/comm/detail/shm/work.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

class Parcel {
 public:
  explicit Parcel(Stamp its_stamp) : stamp(std::move(its_stamp)) {}

  Stamp stamp;
  std::vector<Row> give, take;
  Combine combine = nullptr;
  std::size_t element = 1;  ///< bytes of a number

  /// The bytes of these tensors, in their order. What is not contiguous or not on the CPU goes by way of a copy.
  Row row(std::vector<at::Tensor> const& tensors, bool reads, bool writes) {
    Row row;
    for (auto const& tensor : tensors) {
      auto plain = tensor;
      if (!plain.is_cpu() || !plain.is_contiguous()) {
        torch::NoGradGuard const no_grad;
        plain = reads ? tensor.detach().to(torch::kCPU, /*non_blocking=*/false, /*copy=*/true).contiguous()
                      : torch::empty(tensor.sizes(), tensor.options().device(torch::kCPU).requires_grad(false));
        if (writes) back_.emplace_back(tensor.detach(), plain);
      }
      void* const data = writes ? plain.mutable_data_ptr() : const_cast<void*>(plain.const_data_ptr());
      row.add(data, plain.nbytes());
      kept_.push_back(std::move(plain));
    }
    return row;
  }

  /// What a rank sends itself: at once, and nothing where both are the same memory.
  static void copy(at::Tensor const& from, at::Tensor const& to) {
    torch::NoGradGuard const no_grad;
    if (from.is_alias_of(to) && from.const_data_ptr() == to.const_data_ptr() && from.strides() == to.strides()) return;
    to.detach().copy_(from.detach().view_as(to));
  }

  [[nodiscard]] Kept kept() && { return std::move(kept_); }
  /// Null where nothing is left to do.
  [[nodiscard]] std::function<void()> finish() {
    if (back_.empty()) return nullptr;
    return [back = std::move(back_)]() mutable {
      torch::NoGradGuard const no_grad;
      for (auto& [to, from] : back) to.copy_(from);
    };
  }

 private:
  Kept kept_;
  std::vector<std::pair<at::Tensor, at::Tensor>> back_;
};

}  // namespace pardl::inline PARDL_ABI::detail::shm
