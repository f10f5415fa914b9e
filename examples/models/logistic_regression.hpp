// SPDX-License-Identifier: MIT
/// \file   One linear layer: FederatedScope's model `lr`.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace models {

struct LogisticRegressionOptions {
  std::int64_t in_features = 5;  ///< of a sample, all its dimensions together
  std::int64_t outputs = 1;      ///< classes, or values
  bool bias = true;
};

/// Scores, without a sigmoid or softmax: the loss decides whether this is a logistic regression (cross entropy) or a
/// linear one (mean squared error, FederatedScope's default). Input [B, ...], flattened; output [B, outputs].
class LogisticRegressionImpl : public torch::nn::Module {
 public:
  /// \throws std::invalid_argument for no features or no outputs.
  explicit LogisticRegressionImpl(LogisticRegressionOptions const& options = {})
      : fc_{register_module(
            "fc", torch::nn::Linear{
                      torch::nn::LinearOptions(checked(options).in_features, options.outputs).bias(options.bias)})} {}

  torch::Tensor forward(torch::Tensor const& x) { return fc_->forward(x.flatten(1)); }

 private:
  static LogisticRegressionOptions const& checked(LogisticRegressionOptions const& o) {
    if (o.in_features < 1 || o.outputs < 1)
      throw std::invalid_argument("a linear layer from " + std::to_string(o.in_features) + " features to " +
                                  std::to_string(o.outputs) + ": both are at least 1");
    return o;
  }

  torch::nn::Linear fc_;
};
TORCH_MODULE(LogisticRegression);

}  // namespace models
