// SPDX-License-Identifier: MIT
#include "pardl/train/memory_format.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

TEST_CASE("weights of four dimensions take the layout, 1x1 ones with its strides, and compute the same") {
  torch::manual_seed(5);
  torch::nn::Sequential net{torch::nn::Conv2d{torch::nn::Conv2dOptions(3, 8, 3)}, torch::nn::BatchNorm2d{8},
                            torch::nn::Conv2d{torch::nn::Conv2dOptions(8, 4, 1)}};
  net->eval();
  auto const images = torch::rand({2, 3, 8, 8});
  auto const before = net->forward(images);
  pardl::to_memory_format(net, torch::MemoryFormat::ChannelsLast);
  auto const parameters = net->named_parameters();
  CHECK(parameters["0.weight"].strides() == torch::IntArrayRef({27, 1, 9, 3}));
  CHECK(parameters["2.weight"].strides() == torch::IntArrayRef({8, 1, 8, 8}));
  CHECK(parameters["0.bias"].is_contiguous());
  CHECK(parameters["0.weight"].requires_grad());
  CHECK(torch::allclose(net->forward(images.contiguous(torch::MemoryFormat::ChannelsLast)), before, 1e-5, 1e-6));
  pardl::to_memory_format(net, torch::MemoryFormat::Contiguous);
  CHECK(net->named_parameters()["2.weight"].strides() == torch::IntArrayRef({8, 1, 1, 1}));
  CHECK(torch::equal(net->forward(images), before));
}

TEST_CASE("a format for volumes is refused") {
  torch::nn::Linear net{2, 2};
  CHECK_THROWS_AS(pardl::to_memory_format(net, torch::MemoryFormat::ChannelsLast3d), pardl::ConfigError);
}
