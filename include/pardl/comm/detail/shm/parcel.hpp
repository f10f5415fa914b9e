// SPDX-License-Identifier: MIT
/// \file   An operation's tensors as rows of bytes, and what is to be done with them before it begins and after it.
/// \layer  comm, private.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>
#include <torch/types.h>

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "pardl/comm/detail/shm/reduce.hpp"
#include "pardl/comm/detail/shm/row.hpp"
#include "pardl/comm/detail/shm/work.hpp"
#include "pardl/comm/detail/stamp.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

class Parcel {
 public:
  explicit Parcel(Stamp its_stamp) : stamp(std::move(its_stamp)) {}

  Stamp stamp;
  std::vector<Row> give, take;
  Combine combine = nullptr;
  std::size_t element = 1;  ///< bytes of a number

  /// The tensor itself where its memory is its numbers, one after the other; else one of its shape that is so, filled
  /// when the operation begins (now, from another device: its stream is the caller's) and copied back when it is over.
  at::Tensor plain(at::Tensor const& tensor, bool reads, bool writes) {
    if (tensor.is_cpu() && tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg()) return tensor;
    if (writes && at::has_internal_overlap(tensor) == at::MemOverlap::Yes)
      throw ConfigError(sentence("comm",
                                 std::string(stamp.name) + ": a tensor that is to be written, " +
                                     c10::str(tensor.sizes()) + ", has several elements in one place",
                                 "give it memory of its own, by clone()"));
    torch::NoGradGuard const no_grad;
    auto const own = tensor.detach();
    auto plain = torch::empty(tensor.sizes(), tensor.options().device(torch::kCPU).requires_grad(false));
    if (reads && tensor.is_cpu())
      first_.emplace_back(plain, own);
    else if (reads)
      plain.copy_(own);
    if (writes) last_.emplace_back(own, plain);
    return plain;
  }
  /// The bytes of these tensors, in their order.
  Row row(std::vector<at::Tensor> const& tensors, bool reads, bool writes) {
    Row row;
    for (auto const& tensor : tensors) {
      auto memory = plain(tensor, reads, writes);
      void* const data = writes ? memory.mutable_data_ptr() : const_cast<void*>(memory.const_data_ptr());
      row.add(data, memory.nbytes());
      kept_.push_back(std::move(memory));
    }
    return row;
  }

  /// What a rank sends itself, as it is when the operation begins; nothing where both are the same memory.
  void copy(at::Tensor const& from, at::Tensor const& to) {
    if (from.is_alias_of(to) && from.const_data_ptr() == to.const_data_ptr() && from.strides() == to.strides() &&
        from.is_conj() == to.is_conj() && from.is_neg() == to.is_neg())
      return;
    if (from.is_cpu() && to.is_cpu()) {
      first_.emplace_back(to.detach(), from.detach());
    } else {
      torch::NoGradGuard const no_grad;
      to.detach().copy_(from.detach().reshape(to.sizes()));
    }
  }

  [[nodiscard]] Kept kept() && { return std::move(kept_); }
  /// What is to be done before and after; null where nothing is.
  [[nodiscard]] std::function<void()> before() { return copies(std::move(first_)); }
  [[nodiscard]] std::function<void()> after() { return copies(std::move(last_)); }

 private:
  using Pairs = std::vector<std::pair<at::Tensor, at::Tensor>>;  ///< to, from

  static std::function<void()> copies(Pairs pairs) {
    if (pairs.empty()) return nullptr;
    return [pairs = std::move(pairs)]() mutable {
      torch::NoGradGuard const no_grad;
      for (auto& [to, from] : pairs) {
        // The thread that copies may be another than the caller, whose inference mode it must take over.
        c10::InferenceMode const as_caller(to.is_inference() || c10::InferenceMode::is_enabled());
        to.copy_(from.reshape(to.sizes()));
      }
    };
  }

  Kept kept_;
  Pairs first_, last_;
};

}  // namespace pardl::inline PARDL_ABI::detail::shm
