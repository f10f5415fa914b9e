// SPDX-License-Identifier: MIT
/// \file   Tensors of any dtypes end to end in one row of bytes in host memory: what travels as one message.
/// \layer  train, private.
#pragma once

#include <ATen/TensorUtils.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/StringUtil.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Where each tensor lies. Those of one dtype lie together, so that a row is added to another in one operation a dtype.
class RowLayout {
 public:
  RowLayout() = default;
  /// \param begin  where in the row its first byte is.
  explicit RowLayout(std::vector<torch::Tensor> const& tensors, std::int64_t begin = 0) : end_(aligned(begin)) {
    places_.resize(tensors.size());
    std::vector<bool> placed(tensors.size(), false);
    for (std::size_t first = 0; first < tensors.size(); ++first) {
      if (placed[first]) continue;
      Block block{tensors[first].scalar_type(), end_, 0};
      for (std::size_t i = first; i < tensors.size(); ++i) {
        auto const& tensor = tensors[i];
        if (tensor.scalar_type() != block.dtype) continue;
        // Memory order is kept where a row can hold it, so that a gradient has its parameter's strides.
        bool const dense = tensor.is_non_overlapping_and_dense();
        places_[i] = {blocks_.size(), block.numel, tensor.sizes().vec(),
                      dense ? tensor.strides().vec() : at::detail::defaultStrides(tensor.sizes())};
        block.numel += tensor.numel();
        placed[i] = true;
      }
      end_ = aligned(end_ + block.bytes());
      blocks_.push_back(block);
    }
  }

  /// Bytes up to where the next thing may lie.
  [[nodiscard]] std::int64_t end() const noexcept { return end_; }
  [[nodiscard]] std::size_t size() const noexcept { return places_.size(); }

  /// The tensor number i within a row, with its shape and dtype.
  [[nodiscard]] torch::Tensor tensor(torch::Tensor const& row, std::size_t i) const {
    auto const& place = places_[i];
    auto const block = whole(row, blocks_[place.block]);
    return block.as_strided(place.sizes, place.strides, block.storage_offset() + place.begin);
  }
  /// All tensors of a dtype as one, dtype by dtype.
  [[nodiscard]] std::vector<torch::Tensor> blocks(torch::Tensor const& row) const {
    std::vector<torch::Tensor> all;
    for (auto const& block : blocks_) all.push_back(whole(row, block));
    return all;
  }

  /// Copies tensors, wherever they are, into a row. An undefined one becomes zeros.
  /// \throws ConfigError, and changes nothing, where their number or their sizes are not those of the layout.
  void pack(std::vector<torch::Tensor> const& from, torch::Tensor const& row) const {
    check(from);
    torch::NoGradGuard const no_grad;
    for (std::size_t i = 0; i < size(); ++i) {
      auto place = tensor(row, i);
      if (from[i].defined())
        place.copy_(from[i].detach());
      else
        place.zero_();
    }
  }
  /// Copies a row into tensors. \throws ConfigError as pack().
  void unpack(torch::Tensor const& row, std::vector<torch::Tensor> const& into) const {
    check(into);
    torch::NoGradGuard const no_grad;
    for (std::size_t i = 0; i < size(); ++i) torch::Tensor(into[i]).copy_(tensor(row, i));
  }

 private:
  struct Block {
    torch::ScalarType dtype;
    std::int64_t begin, numel;  ///< bytes into the row, and elements
    [[nodiscard]] std::int64_t bytes() const { return numel * static_cast<std::int64_t>(c10::elementSize(dtype)); }
  };
  struct Place {
    std::size_t block = 0;
    std::int64_t begin = 0;  ///< elements into the block
    std::vector<std::int64_t> sizes, strides;
  };

  /// A module may replace its tensors, such as buffers, but every rank has laid out rows for those of the start.
  void check(std::vector<torch::Tensor> const& tensors) const {
    auto const refuse = [](std::string const& what) {
      throw ConfigError(sentence("train", what, "keep the shapes of parameters and buffers while training"));
    };
    if (tensors.size() != size())
      refuse("a row was made for " + std::to_string(size()) + " tensors, and now there are " +
             std::to_string(tensors.size()));
    for (std::size_t i = 0; i < size(); ++i)
      if (tensors[i].defined() && tensors[i].sizes() != c10::IntArrayRef(places_[i].sizes))
        refuse("tensor number " + std::to_string(i) + " of a row has the shape " + c10::str(tensors[i].sizes()) +
               " now, and had " + c10::str(c10::IntArrayRef(places_[i].sizes)) + " when the row was made");
  }

  static std::int64_t aligned(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }
  static torch::Tensor whole(torch::Tensor const& row, Block const& block) {
    return row.narrow(0, block.begin, block.bytes()).view(block.dtype);
  }

  std::vector<Block> blocks_;
  std::vector<Place> places_;
  std::int64_t end_ = 0;
};

}  // namespace pardl::inline PARDL_ABI::detail
