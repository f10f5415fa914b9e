// SPDX-License-Identifier: MIT
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "models/convnet2.hpp"
#include "models/logistic_regression.hpp"

namespace {

using models::ConvNet2;
using models::ConvNet2Options;

std::int64_t count(torch::nn::Module const& module) {
  std::int64_t numbers = 0;
  for (auto const& parameter : module.parameters()) numbers += parameter.numel();
  return numbers;
}

}  // namespace

TEST_CASE("convnet2 has the 6,603,902 parameters of FederatedScope's, under its names") {
  ConvNet2 net;
  CHECK(count(*net) == 6'603'902);
  std::vector<std::string> names, shapes;
  for (auto const& item : net->named_parameters()) names.push_back(item.key());
  CHECK(names.size() == 12);
  for (auto const* layer : {"conv1", "conv2", "bn1", "bn2", "fc1", "fc2"})
    for (auto const* part : {".weight", ".bias"}) {
      auto const name = std::string(layer) + part;
      CHECK_MESSAGE(net->named_parameters().contains(name), name);
    }
  CHECK(net->named_buffers().size() == 6);
  CHECK(net->named_buffers().contains("bn2.running_var"));
  CHECK(net->named_parameters()["fc1.weight"].sizes() == torch::IntArrayRef({2048, 3136}));
  CHECK(net->named_parameters()["conv2.weight"].sizes() == torch::IntArrayRef({64, 32, 5, 5}));
}

TEST_CASE("convnet2's sizes follow its options") {
  // Layers by hand.
  auto const by_hand = [](std::int64_t channels, std::int64_t area, std::int64_t hidden, std::int64_t classes,
                          bool norm) {
    return 25 * channels * 32 + 32 + 25 * 32 * 64 + 64 + (norm ? 2 * 32 + 2 * 64 : 0) + 64 * area * hidden + hidden +
           hidden * classes + classes;
  };
  CHECK(count(*ConvNet2{ConvNet2Options{.in_channels = 3, .height = 32, .width = 32, .hidden = 512, .classes = 10}}) ==
        by_hand(3, 64, 512, 10, true));
  // 30 is halved to 15 and 7, 21 to 10 and 5.
  ConvNet2 odd{ConvNet2Options{.height = 30, .width = 21, .hidden = 16, .classes = 5, .batch_norm = false}};
  CHECK(count(*odd) == by_hand(1, 35, 16, 5, false));
  CHECK(odd->forward(torch::rand({3, 1, 30, 21})).sizes() == torch::IntArrayRef({3, 5}));
}

TEST_CASE("convnet2 computes conv-BN-ReLU-pool twice, then linear-ReLU-linear") {
  torch::manual_seed(1);
  ConvNet2 net{ConvNet2Options{.hidden = 32}};
  auto const x = torch::randn({4, 1, 28, 28});
  auto const p = [&](std::string const& name) { return net->named_parameters()[name]; };
  for (bool const training : {true, false}) {
    net->train(training);
    torch::manual_seed(2);
    auto const found = net->forward(x);
    auto expected = x;
    // Statistics of the batch in training. In evaluation those that the training pass left, read from the buffers.
    for (std::string const i : {"1", "2"}) {
      expected = torch::conv2d(expected, p("conv" + i + ".weight"), p("conv" + i + ".bias"), 1, 2);
      auto mean = net->named_buffers()["bn" + i + ".running_mean"].clone(),
           var = net->named_buffers()["bn" + i + ".running_var"].clone();
      expected = torch::batch_norm(expected, p("bn" + i + ".weight"), p("bn" + i + ".bias"), mean, var, training, 0.1,
                                   1e-5, false);
      expected = torch::max_pool2d(torch::relu(expected), 2);
    }
    expected = expected.flatten(1);
    torch::manual_seed(2);
    if (training) expected = torch::dropout(expected, 0.5, true);
    expected = torch::relu(torch::linear(expected, p("fc1.weight"), p("fc1.bias")));
    if (training) expected = torch::dropout(expected, 0.5, true);
    expected = torch::linear(expected, p("fc2.weight"), p("fc2.bias"));
    CHECK(torch::allclose(found, expected, 1e-5, 1e-6));
  }
}

TEST_CASE("convnet2 draws nothing without dropout and in evaluation, and its parameters all get gradients") {
  torch::manual_seed(1);
  ConvNet2 dry{ConvNet2Options{.hidden = 8, .dropout = 0}}, wet{ConvNet2Options{.hidden = 8}};
  auto const x = torch::rand({2, 1, 28, 28});
  auto const draws = [&](ConvNet2& net) {
    torch::manual_seed(7);
    (void)net->forward(x);
    auto const next = torch::rand({1});
    torch::manual_seed(7);
    return !torch::equal(next, torch::rand({1}));
  };
  CHECK_FALSE(draws(dry));
  CHECK(draws(wet));
  wet->eval();
  CHECK_FALSE(draws(wet));
  dry->forward(x).sum().backward();
  for (auto const& item : dry->named_parameters()) CHECK_MESSAGE(item.value().grad().defined(), item.key());
}

TEST_CASE("a convnet2 that cannot be is refused") {
  for (auto const& wrong : std::vector<ConvNet2Options>{{.in_channels = 0},
                                                        {.height = 3},
                                                        {.width = 3},
                                                        {.hidden = 0},
                                                        {.classes = 0},
                                                        {.dropout = 1},
                                                        {.dropout = -0.1}})
    CHECK_THROWS_AS(ConvNet2{wrong}, std::invalid_argument);
}

TEST_CASE("the model lr is one linear layer on flattened samples") {
  models::LogisticRegression net;
  CHECK(count(*net) == 6);
  CHECK(net->named_parameters().contains("fc.weight"));
  CHECK(net->forward(torch::rand({7, 5})).sizes() == torch::IntArrayRef({7, 1}));
  models::LogisticRegression images{
      models::LogisticRegressionOptions{.in_features = 784, .outputs = 62, .bias = false}};
  CHECK(count(*images) == 784 * 62);
  auto const x = torch::rand({3, 1, 28, 28});
  CHECK(torch::allclose(images->forward(x), x.view({3, 784}).matmul(images->parameters()[0].t())));
  CHECK_THROWS_AS(models::LogisticRegression{models::LogisticRegressionOptions{.in_features = 0}},
                  std::invalid_argument);
}
