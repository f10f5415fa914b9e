// SPDX-License-Identifier: MIT
/// \file   LeNet-5 with rectifiers: the small convolutional network that comparisons of strategies train.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <cstdint>

namespace models {

struct LeNetOptions {
  std::int64_t channels = 1;  ///< of the images
  std::int64_t height = 28;   ///< of the images, at least 4
  std::int64_t width = 28;    ///< of the images, at least 4
  std::int64_t classes = 10;  ///< outputs
};

/// LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, with ReLU and maximum pooling: twice
/// conv5x5-ReLU-maxpool (6 and 16 channels), then 120 and 84 hidden units. Input [B, channels, height, width], output
/// logits [B, classes]; 107,786 parameters for Fashion-MNIST. It has no buffers and draws no random numbers, so that
/// what differs between two ways of training it is the way alone.
class LeNetImpl : public torch::nn::Cloneable<LeNetImpl> {
 public:
  explicit LeNetImpl(LeNetOptions const& options = {}) : options_(options) { reset(); }

  void reset() override {
    auto const convolution = [](std::int64_t in, std::int64_t out) {
      return torch::nn::Conv2d{torch::nn::Conv2dOptions(in, out, 5).padding(2)};
    };
    conv1_ = register_module("conv1", convolution(options_.channels, 6));
    conv2_ = register_module("conv2", convolution(6, 16));
    fc1_ = register_module("fc1", torch::nn::Linear{16 * (options_.height / 4) * (options_.width / 4), 120});
    fc2_ = register_module("fc2", torch::nn::Linear{120, 84});
    fc3_ = register_module("fc3", torch::nn::Linear{84, options_.classes});
  }

  torch::Tensor forward(torch::Tensor x) {
    x = torch::max_pool2d(conv1_->forward(x).relu_(), 2);
    x = torch::max_pool2d(conv2_->forward(x).relu_(), 2);
    x = fc1_->forward(x.flatten(1)).relu_();
    return fc3_->forward(fc2_->forward(x).relu_());
  }

 private:
  LeNetOptions options_;
  torch::nn::Conv2d conv1_{nullptr}, conv2_{nullptr};
  torch::nn::Linear fc1_{nullptr}, fc2_{nullptr}, fc3_{nullptr};
};
TORCH_MODULE(LeNet);

}  // namespace models
