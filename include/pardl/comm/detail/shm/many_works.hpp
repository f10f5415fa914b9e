// SPDX-License-Identifier: MIT
/// \file   Several operations that are waited for as one.
/// \layer  comm, private.
#pragma once

#include <ATen/core/ivalue.h>
#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/detail/translate.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

class ManyWorks final : public c10d::Work {
  using Handle = c10::intrusive_ptr<c10d::Work>;

 public:
  explicit ManyWorks(std::vector<Handle> works) : Work(-1, c10d::OpType::COALESCED), works_(std::move(works)) {}

  bool isCompleted() override {
    return std::all_of(works_.begin(), works_.end(), [](auto const& work) { return work->isCompleted(); });
  }
  bool isSuccess() const override {
    return std::all_of(works_.begin(), works_.end(), [](auto const& work) { return work->isSuccess(); });
  }
  std::exception_ptr exception() const override {
    for (auto const& work : works_)
      if (auto error = work->exception()) return error;
    return nullptr;
  }
  bool wait(std::chrono::milliseconds limit) override {
    for (auto const& work : works_) work->wait(limit);
    return true;
  }
  void synchronize() override { wait(kNoTimeout); }
  void abort() override {}
  std::vector<at::Tensor> result() override {
    std::vector<at::Tensor> all;
    for (auto const& work : works_) {
      auto const some = work->result();
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    c10::List<c10::intrusive_ptr<c10::ivalue::Future>> futures(
        c10::FutureType::create(c10::ListType::create(c10::TensorType::get())));
    for (auto const& work : works_) futures.push_back(work->getFuture());
    auto const all = result();
    return c10::collectAll(futures)->then(
        [all](c10::ivalue::Future& done) {
          for (auto const& one : done.value().toList()) (void)one.get().toFuture()->value();  // rethrows
          return c10::IValue(all);
        },
        c10::ListType::create(c10::TensorType::get()));
  }

 private:
  std::vector<Handle> works_;
};

}  // namespace pardl::inline PARDL_ABI::detail::shm
