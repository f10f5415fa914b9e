// SPDX-License-Identifier: MIT
/// \file   What a parameter server and a worker say to each other, over a group of the two alone.
/// \layer  train, private.
///
/// Each message begins with a head of four numbers, and some go on with a row of bytes:
///   worker                                   server
///   push, clock, version + gradients    ->
///                                       <-   wait (as often as it takes)
///                                       <-   answer, clock, version + parameters
///   leave, clock, version               ->
///                                       <-   wait (as often as it takes)
///                                       <-   model, clock, version + parameters and buffers
///   bye, clock, version                 ->
/// They take turns, so no two messages ever cross. `wait` comes well within the timeout: a worker that hears nothing
/// knows that the server is gone, however long it takes the other workers to come.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/detail/flat_row.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::ps {

inline constexpr char const* room = "parameter_server";

enum class Kind : std::int64_t { push = 1, leave, bye, wait, answer, model };

struct Head {
  Kind kind{};
  std::int64_t clock = 0;    ///< gradients that the worker had given before this message or the one it answers
  std::int64_t version = 0;  ///< of the parameters that the worker has, or gets
  std::int64_t bytes = 0;    ///< that follow in a row
};

/// The shape of the rows: parameters or gradients, then buffers, then for each parameter whether it has a gradient.
struct Shape {
  RowLayout parameters, buffers;
  Shape() = default;
  Shape(std::vector<torch::Tensor> const& trained, std::vector<torch::Tensor> const& kept)
      : parameters(trained), buffers(kept, parameters.end()) {}
  [[nodiscard]] std::int64_t answer() const { return parameters.end(); }
  [[nodiscard]] std::int64_t model() const { return buffers.end(); }
  [[nodiscard]] std::int64_t push() const { return model() + static_cast<std::int64_t>(parameters.size()); }
  [[nodiscard]] torch::Tensor used(torch::Tensor const& row) const {
    return row.narrow(0, model(), static_cast<std::int64_t>(parameters.size()));
  }
  [[nodiscard]] torch::Tensor row() const {
    return torch::zeros({push()}, torch::kUInt8);  // gaps between dtypes travel too
  }
};

/// The tensors that travel, as a side sees them in its module. Buffers are asked for anew: a module may replace them.
struct Model {
  std::vector<torch::Tensor> parameters;
  std::function<std::vector<torch::Tensor>()> buffers;
  [[nodiscard]] Shape shape() const { return {parameters, buffers()}; }
};

/// One end of a pair: rank 0 is the server, rank 1 the worker.
class Link {
 public:
  explicit Link(ProcessGroup pair) : pair_(std::move(pair)), head_(torch::empty({4}, torch::kInt64)) {}

  [[nodiscard]] ProcessGroup const& pair() const noexcept { return pair_; }

  void send(Head const& head) {
    auto* const words = head_.mutable_data_ptr<std::int64_t>();
    words[0] = static_cast<std::int64_t>(head.kind);
    words[1] = head.clock;
    words[2] = head.version;
    words[3] = head.bytes;
    pardl::send(pair_, head_, peer(), head_tag).wait();
  }
  /// A head and the first bytes of a row.
  void send(Head const& head, torch::Tensor const& row) {
    send(head);
    if (head.bytes > 0) pardl::send(pair_, row.narrow(0, 0, head.bytes), peer(), row_tag).wait();
  }

  /// The next head. \param bytes  that must follow it, for the kinds that are due now.
  /// \throws CommError for a head that is not due: whatever sent it is not this library, or not this version of it.
  Head receive(std::int64_t clock, std::initializer_list<std::pair<Kind, std::int64_t>> due) {
    recv(pair_, head_, peer(), head_tag).wait();
    auto const* const words = head_.const_data_ptr<std::int64_t>();
    Head const head{static_cast<Kind>(words[0]), words[1], words[2], words[3]};
    bool const known = std::any_of(
        due.begin(), due.end(), [&](auto const& each) { return each.first == head.kind && each.second == head.bytes; });
    if (!known || head.clock != clock || head.version < 0)
      throw CommError(sentence(room,
                               "a message of kind " + std::to_string(words[0]) + ", clock " + std::to_string(words[1]) +
                                   ", version " + std::to_string(words[2]) + " and " + std::to_string(words[3]) +
                                   " bytes came where clock " + std::to_string(clock) + " was due",
                               "run the same program on every rank"));
    return head;
  }
  void receive_row(torch::Tensor const& row, std::int64_t bytes) {
    if (bytes > 0) recv(pair_, row.narrow(0, 0, bytes), peer(), row_tag).wait();
  }

 private:
  static constexpr int head_tag = 1, row_tag = 2;
  [[nodiscard]] int peer() const { return 1 - pair_.rank(); }

  ProcessGroup pair_;
  torch::Tensor head_;
};

/// Why a pair failed, for a sentence that names the ranks as the world does: its first clause, without the remedy.
inline std::string as_the_pair_says(std::string text) {
  if (auto const end = text.find("/2: "); text.starts_with("[comm] rank ") && end != std::string::npos)
    text.erase(0, end + 4);
  text.erase(std::min(text.find("; "), text.size()));
  while (!text.empty() && text.back() == '.') text.pop_back();
  return ", as their pair of ranks (0 the server, 1 the worker) says: " + text;
}

}  // namespace pardl::inline PARDL_ABI::detail::ps
