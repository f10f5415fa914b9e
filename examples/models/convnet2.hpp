// SPDX-License-Identifier: MIT
/// \file   The network of FederatedScope's FEMNIST runs: two 5x5 convolutions and two linear layers.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "pardl/train/low_rank.hpp"

namespace models {

struct ConvNet2Options {
  std::int64_t in_channels = 1;  ///< of the images
  std::int64_t height = 28;      ///< of the images, at least 4
  std::int64_t width = 28;       ///< of the images, at least 4
  std::int64_t hidden = 2048;    ///< between the linear layers
  std::int64_t classes = 62;     ///< outputs
  double dropout = 0.5;          ///< before each linear layer; 0: none
  bool batch_norm = true;        ///< after each convolution; without it, LEAF's own network for FEMNIST
};

/// Twice conv5x5-BN-ReLU-maxpool (32 and 64 channels), then dropout, linear, ReLU, dropout, linear.
/// Input [B, in_channels, height, width], output logits [B, classes]; as it comes 6,603,902 parameters, 25.2 MiB, of
/// which the first linear layer holds 97 %. Parameters and buffers have the names of FederatedScope's class, so that
/// weights pass in either direction.
class ConvNet2Impl : public torch::nn::Module {
 public:
  /// \throws std::invalid_argument for an image smaller than 4x4, an empty layer, or a dropout outside [0, 1).
  explicit ConvNet2Impl(ConvNet2Options const& options = {})
      : dropout_{checked(options).dropout},
        conv1_{register_module("conv1", convolution(options.in_channels, 32))},
        conv2_{register_module("conv2", convolution(32, 64))} {
    if (options.batch_norm) {
      bn1_ = register_module("bn1", torch::nn::BatchNorm2d{32});
      bn2_ = register_module("bn2", torch::nn::BatchNorm2d{64});
    }
    std::int64_t const area = (options.height / 2 / 2) * (options.width / 2 / 2);
    fc1_ = register_module("fc1", torch::nn::Linear{64 * area, options.hidden});
    fc2_ = register_module("fc2", torch::nn::Linear{options.hidden, options.classes});
  }

  torch::Tensor forward(torch::Tensor x) {
    x = block(x, conv1_, bn1_);
    x = block(x, conv2_, bn2_);
    // As fc1_->forward(…); but so a step that knows low-rank gradients need not write 25 MiB for a batch of 10.
    x = pardl::linear(drop(x.flatten(1)), fc1_->weight, fc1_->bias).relu_();
    return pardl::linear(drop(x), fc2_->weight, fc2_->bias);
  }

 private:
  static ConvNet2Options const& checked(ConvNet2Options const& o) {
    if (o.in_channels < 1 || o.height < 4 || o.width < 4 || o.hidden < 1 || o.classes < 1 ||
        !(o.dropout >= 0 && o.dropout < 1))
      throw std::invalid_argument("convnet2 for images [" + std::to_string(o.in_channels) + ", " +
                                  std::to_string(o.height) + ", " + std::to_string(o.width) + "] with " +
                                  std::to_string(o.hidden) + " hidden units, " + std::to_string(o.classes) +
                                  " classes and dropout " + std::to_string(o.dropout) +
                                  ": images are at least 4x4, no layer is empty, dropout lies in [0, 1)");
    return o;
  }
  static torch::nn::Conv2d convolution(std::int64_t in, std::int64_t out) {
    return torch::nn::Conv2d{torch::nn::Conv2dOptions(in, out, 5).padding(2)};
  }
  static torch::Tensor block(torch::Tensor x, torch::nn::Conv2d& conv, torch::nn::BatchNorm2d& norm) {
    x = conv->forward(x);
    if (norm) x = norm->forward(x);
    return torch::max_pool2d(x.relu_(), 2);
  }
  [[nodiscard]] torch::Tensor drop(torch::Tensor const& x) const {
    return dropout_ > 0 && is_training() ? torch::dropout(x, dropout_, /*train=*/true) : x;
  }

  double dropout_;
  torch::nn::Conv2d conv1_;
  torch::nn::Conv2d conv2_;
  torch::nn::BatchNorm2d bn1_{nullptr};
  torch::nn::BatchNorm2d bn2_{nullptr};
  torch::nn::Linear fc1_{nullptr};
  torch::nn::Linear fc2_{nullptr};
};
TORCH_MODULE(ConvNet2);

}  // namespace models
