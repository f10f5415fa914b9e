// SPDX-License-Identifier: MIT
/// \file   Wide residual networks for 32x32 images: the guide's variant, and the canonical WRN-depth-width.
#pragma once

#include <torch/nn/functional/activation.h>
#include <torch/nn/init.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace models {

/// conv3x3-BN-ReLU, dropout, conv3x3-BN-ReLU, plus the input; where the width changes the input passes a 1x1
/// convolution with a bias. No ReLU after the sum.
class GuideBlockImpl : public torch::nn::Module {
 public:
  GuideBlockImpl(std::int64_t in, std::int64_t out, double dropout = 0.01)
      : convolve_{register_module(
            "convolve",
            torch::nn::Sequential{torch::nn::Conv2d{torch::nn::Conv2dOptions(in, out, 3).padding(1).bias(false)},
                                  torch::nn::BatchNorm2d{out}, torch::nn::ReLU{}, torch::nn::Dropout{dropout},
                                  torch::nn::Conv2d{torch::nn::Conv2dOptions(out, out, 3).padding(1).bias(false)},
                                  torch::nn::BatchNorm2d{out}, torch::nn::ReLU{}})} {
    if (in != out) widen_ = register_module("widen", torch::nn::Conv2d{torch::nn::Conv2dOptions(in, out, 1)});
  }

  torch::Tensor forward(torch::Tensor x) {
    torch::Tensor y = convolve_->forward(x);
    return y + (widen_ ? widen_->forward(x) : x);
  }

 private:
  torch::nn::Sequential convolve_;
  torch::nn::Conv2d widen_{nullptr};
};
TORCH_MODULE(GuideBlock);

struct GuideWideResNetOptions {
  std::int64_t classes = 100;  ///< outputs
  std::int64_t channels = 3;   ///< of the images
  double dropout = 0.01;       ///< inside each block
};

/// The network of the CIFAR-100 multi-GPU guide: three stages of two blocks at 160, 320 and 640 channels.
/// Input [B, channels, 32, 32] (28x28 also fits), output logits [B, classes].
class GuideWideResNetImpl : public torch::nn::Module {
 public:
  explicit GuideWideResNetImpl(GuideWideResNetOptions const& options = {})
      : features_{register_module(
            "features",
            torch::nn::Sequential{
                torch::nn::Conv2d{torch::nn::Conv2dOptions(options.channels, 16, 3).padding(1).bias(false)},
                torch::nn::BatchNorm2d{16}, torch::nn::ReLU{}, GuideBlock{16, 160, options.dropout},
                GuideBlock{160, 160, options.dropout}, torch::nn::MaxPool2d{2}, GuideBlock{160, 320, options.dropout},
                GuideBlock{320, 320, options.dropout}, torch::nn::MaxPool2d{2}, GuideBlock{320, 640, options.dropout},
                GuideBlock{640, 640, options.dropout}, torch::nn::AvgPool2d{7}, torch::nn::Flatten{}})},
        classify_{register_module("classify", torch::nn::Linear{640, options.classes})} {}

  torch::Tensor forward(torch::Tensor x) { return classify_->forward(features_->forward(x)); }

 private:
  torch::nn::Sequential features_;
  torch::nn::Linear classify_;
};
TORCH_MODULE(GuideWideResNet);

/// BN-ReLU-conv3x3, BN-ReLU-dropout-conv3x3, plus the input; where the shape changes, a 1x1 convolution of the
/// activated input stands in for it (the pre-activation block of He et al., as Zagoruyko & Komodakis use it).
class WideBlockImpl : public torch::nn::Module {
 public:
  WideBlockImpl(std::int64_t in, std::int64_t out, std::int64_t stride, double dropout)
      : norm1_{register_module("norm1", torch::nn::BatchNorm2d{in})},
        conv1_{register_module(
            "conv1", torch::nn::Conv2d{torch::nn::Conv2dOptions(in, out, 3).stride(stride).padding(1).bias(false)})},
        norm2_{register_module("norm2", torch::nn::BatchNorm2d{out})},
        drop_{register_module("drop", torch::nn::Dropout{dropout})},
        conv2_{
            register_module("conv2", torch::nn::Conv2d{torch::nn::Conv2dOptions(out, out, 3).padding(1).bias(false)})} {
    if (in != out || stride != 1)
      shortcut_ = register_module("shortcut",
                                  torch::nn::Conv2d{torch::nn::Conv2dOptions(in, out, 1).stride(stride).bias(false)});
  }

  torch::Tensor forward(torch::Tensor x) {
    torch::Tensor const active = norm1_->forward(x).relu_();
    torch::Tensor y = conv1_->forward(active);
    y = conv2_->forward(drop_->forward(norm2_->forward(y).relu_()));
    return y + (shortcut_ ? shortcut_->forward(active) : x);
  }

 private:
  torch::nn::BatchNorm2d norm1_;
  torch::nn::Conv2d conv1_;
  torch::nn::BatchNorm2d norm2_;
  torch::nn::Dropout drop_;
  torch::nn::Conv2d conv2_;
  torch::nn::Conv2d shortcut_{nullptr};
};
TORCH_MODULE(WideBlock);

struct WideResNetOptions {
  int depth = 28;              ///< 6 n + 4 layers
  int widen_factor = 10;       ///< times 16, 32, 64 channels
  std::int64_t classes = 100;  ///< outputs
  std::int64_t channels = 3;   ///< of the images
  double dropout = 0.0;        ///< inside each block; the paper's runs with dropout use 0.3
};

/// WRN-depth-widen_factor. Input [B, channels, 32, 32], output logits [B, classes].
/// \paper Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, table 1; weights start as in He et al. 2015 (fan
/// out).
class WideResNetImpl : public torch::nn::Module {
 public:
  /// \throws std::invalid_argument unless depth is 6 n + 4 with n >= 1 and widen_factor >= 1.
  explicit WideResNetImpl(WideResNetOptions const& options = {}) {
    int const blocks = (options.depth - 4) / 6;
    if (blocks < 1 || blocks * 6 + 4 != options.depth || options.widen_factor < 1)
      throw std::invalid_argument("WRN-" + std::to_string(options.depth) + "-" + std::to_string(options.widen_factor) +
                                  ": a depth is 6 n + 4 (10, 16, 22, 28, 40), a width at least 1");
    std::int64_t in = 16;
    features_->push_back(torch::nn::Conv2d{torch::nn::Conv2dOptions(options.channels, in, 3).padding(1).bias(false)});
    for (int stage = 0; stage < 3; ++stage) {
      std::int64_t const out = (std::int64_t{16} << stage) * options.widen_factor;
      for (int block = 0; block < blocks; ++block, in = out)
        features_->push_back(WideBlock{in, out, block == 0 && stage > 0 ? 2 : 1, options.dropout});
    }
    register_module("features", features_);
    norm_ = register_module("norm", torch::nn::BatchNorm2d{in});
    classify_ = register_module("classify", torch::nn::Linear{in, options.classes});

    for (auto const& module : modules(/*include_self=*/false)) {
      if (auto* conv = module->as<torch::nn::Conv2d>())
        torch::nn::init::kaiming_normal_(conv->weight, 0.0, torch::kFanOut, torch::kReLU);
      else if (auto* linear = module->as<torch::nn::Linear>())
        torch::nn::init::zeros_(linear->bias);
    }
  }

  torch::Tensor forward(torch::Tensor x) {
    x = norm_->forward(features_->forward(x)).relu_();
    return classify_->forward(x.mean({2, 3}));
  }

 private:
  torch::nn::Sequential features_;
  torch::nn::BatchNorm2d norm_{nullptr};
  torch::nn::Linear classify_{nullptr};
};
TORCH_MODULE(WideResNet);

}  // namespace models
