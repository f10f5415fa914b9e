// SPDX-License-Identifier: MIT
/// \file   What one operation is called in an error: `all_reduce #17 (float32[1024])`.
/// \layer  comm, private.
#pragma once

#include <ATen/DimVector.h>
#include <c10/core/ScalarType.h>
#include <torch/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// "30 s", "1.5 s", "20 ms".
inline std::string in_words(std::chrono::milliseconds time) {
  auto const ms = time.count();
  if (ms % 1000 == 0) return std::to_string(ms / 1000) + " s";
  if (ms < 1000) return std::to_string(ms) + " ms";
  std::string const tenths = std::to_string(ms / 100 % 10);
  return std::to_string(ms / 1000) + "." + tenths + " s";
}

/// An operation's name, number and shape. Made on every call, so it copies numbers only; words are made on failure.
struct Stamp {
  char const* name = "";
  std::uint64_t number = 0;  ///< 1, 2, …: collectives count alike on every rank, messages count on their own
  bool collective = true;
  int peer = -1;  ///< root of a collective, other end of a message; -1: none, or any
  int tag = 0;
  bool same_shapes = false;  ///< all ranks must bring equal shapes
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  at::DimVector shape;
  std::size_t tensors = 0;
  std::chrono::milliseconds timeout{0};

  Stamp(char const* name_, std::vector<at::Tensor> const& subjects) : name(name_), tensors(subjects.size()) {
    if (!subjects.empty()) describe(subjects.front());
  }
  Stamp(char const* name_, at::Tensor const& subject) : name(name_), tensors(1) { describe(subject); }
  explicit Stamp(char const* name_) : name(name_) {}

  Stamp& from(std::int64_t root) {
    peer = static_cast<int>(root);
    return *this;
  }
  Stamp& alike() {
    same_shapes = true;
    return *this;
  }
  Stamp& message(int other, int its_tag) {
    collective = false;
    peer = other;
    tag = its_tag;
    return *this;
  }
  /// \param given  the operation's own limit; negative: none, the group's `usual` one holds.
  Stamp& within(std::chrono::milliseconds given) {
    timeout = given;
    return *this;
  }

  /// "float32[1024]", "3 tensors, float32[2, 5] first", or "".
  [[nodiscard]] std::string subject() const {
    if (tensors == 0 || dtype == c10::ScalarType::Undefined) return "";
    std::string text{c10::getDtypeNames(dtype).first};
    text += '[';
    for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    text += ']';
    return tensors == 1 ? text : std::to_string(tensors) + " tensors, " + text + " first";
  }

  /// "broadcast #17 from rank 0 (float32[1024])".
  [[nodiscard]] std::string text() const {
    std::string text = std::string(name) + " #" + std::to_string(number);
    bool const outward =
        std::string_view(name) == "send" || std::string_view(name) == "reduce" || std::string_view(name) == "gather";
    if (peer >= 0) text += (outward ? " to rank " : " from rank ") + std::to_string(peer);
    auto details = subject();
    if (!collective) details = "tag " + std::to_string(tag) + (details.empty() ? "" : ", " + details);
    if (!details.empty()) text += " (" + details + ")";
    return text;
  }

  /// What must be equal on all ranks for the operation to be one operation.
  [[nodiscard]] std::string agreement() const {
    if (same_shapes) return text();
    std::string text = std::string(name) + " #" + std::to_string(number);
    if (peer >= 0) text += " with root " + std::to_string(peer);
    return text;
  }

 private:
  void describe(at::Tensor const& tensor) {
    if (!tensor.defined()) return;
    dtype = tensor.scalar_type();
    shape = at::DimVector(tensor.sizes());
  }
};

}  // namespace pardl::inline PARDL_ABI::detail
