// SPDX-License-Identifier: MIT
/// \file   A local update chosen at run time out of a few, for programs that read their strategy from a file.
/// \layer  fed.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <utility>
#include <variant>

#include "pardl/fed/client_task.hpp"
#include "pardl/fed/flat_model.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// One of `Updates`, which have one type of loss. Models local_update, with what the chosen one keeps.
template <class... Updates>
class one_of {
 public:
  template <class Update>
  one_of(Update update) : choice_(std::move(update)) {}  // NOLINT(google-explicit-constructor): it is one of them

  [[nodiscard]] std::int64_t processed(std::int64_t samples) const {
    return std::visit([&](auto const& update) { return update.processed(samples); }, choice_);
  }
  [[nodiscard]] auto const& loss() const {
    return std::visit([](auto const& update) -> auto const& { return update.loss(); }, choice_);
  }
  [[nodiscard]] std::int64_t client_numbers(FlatModel const& model) const {
    return std::visit([&](auto const& update) { return detail::client_numbers(update, model); }, choice_);
  }
  [[nodiscard]] std::int64_t server_numbers(FlatModel const& model) const {
    return std::visit([&](auto const& update) { return detail::server_numbers(update, model); }, choice_);
  }
  void load_personal(FlatModel const& model, torch::Tensor const& kept) const {
    std::visit([&](auto const& update) { detail::load_personal(update, model, kept); }, choice_);
  }
  template <class Task>
  LocalResult operator()(Task const& task) const {
    return std::visit([&](auto const& update) { return update(task); }, choice_);
  }

 private:
  std::variant<Updates...> choice_;
};

}  // namespace pardl::inline PARDL_ABI::fed
