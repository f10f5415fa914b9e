// SPDX-License-Identifier: MIT
#include "pardl/train/flop_counter.hpp"

#include <ATen/record_function.h>
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstdint>
#include <thread>
#include <utility>

#include "models/convnet2.hpp"
#include "pardl/train/autocast.hpp"
#include "pardl/train/low_rank.hpp"

using pardl::FlopCounter;

namespace {

template <class F>
std::int64_t flops_of(F&& forward) {
  FlopCounter const counter;
  std::forward<F>(forward)();
  return counter.flops();
}

/// Per image of 28 x 28: two convolutions whose outputs are as large as their inputs, and two linear layers.
constexpr std::int64_t convnet2_flops = 28 * 28 * 32 * 25 + 14 * 14 * 64 * 25 * 32 + 3136 * 2048 + 2048 * 62;
static_assert(convnet2_flops == 17'211'904);

}  // namespace

TEST_CASE("a linear layer takes rows x in x out, with and without bias, in any number of dimensions") {
  torch::nn::Linear with{7, 5}, without{torch::nn::LinearOptions(7, 5).bias(false)};
  for (auto layer : {with, without}) {
    CHECK(flops_of([&] { (void)layer->forward(torch::rand({3, 7})); }) == 105);
    CHECK(flops_of([&] { (void)layer->forward(torch::rand({2, 3, 7})); }) == 210);
    CHECK(flops_of([&] { (void)layer->forward(torch::rand({7})); }) == 35);
  }
}

TEST_CASE("a convolution takes outputs x filter, with stride, padding, dilation and groups") {
  torch::nn::Conv2d grouped{torch::nn::Conv2dOptions(4, 6, {3, 5}).stride({2, 1}).padding({1, 2}).groups(2)};
  // Outputs 6 x 9 on 6 channels; each sums 4 / 2 channels of 3 x 5.
  CHECK(flops_of([&] { (void)grouped->forward(torch::rand({3, 4, 11, 9})); }) == 3 * 6 * 6 * 9 * (2 * 3 * 5));
  torch::nn::Conv2d wide{torch::nn::Conv2dOptions(2, 3, 3).dilation(2).bias(false)};
  CHECK(flops_of([&] { (void)wide->forward(torch::rand({1, 2, 9, 8})); }) == 3 * 5 * 4 * (2 * 9));
  torch::nn::Conv2d depthwise{torch::nn::Conv2dOptions(8, 8, 3).padding(1).groups(8)};
  CHECK(flops_of([&] { (void)depthwise->forward(torch::rand({2, 8, 5, 5})); }) == 2 * 8 * 25 * 9);
  torch::nn::Conv2d same{torch::nn::Conv2dOptions(2, 3, {3, 5}).padding(torch::kSame)};
  CHECK(flops_of([&] { (void)same->forward(torch::rand({1, 2, 6, 7})); }) == 3 * 6 * 7 * (2 * 15));
  torch::nn::Conv1d line{torch::nn::Conv1dOptions(2, 5, 4)};
  CHECK(flops_of([&] { (void)line->forward(torch::rand({3, 2, 10})); }) == 3 * 5 * 7 * (2 * 4));
  torch::nn::Conv3d solid{torch::nn::Conv3dOptions(1, 2, 2)};
  CHECK(flops_of([&] { (void)solid->forward(torch::rand({1, 1, 3, 4, 5})); }) == 2 * 2 * 3 * 4 * 8);
  // Transposed, each input is spread over 6 channels of 3 x 3.
  torch::nn::ConvTranspose2d up{torch::nn::ConvTranspose2dOptions(4, 6, 3).stride(2)};
  CHECK(flops_of([&] { (void)up->forward(torch::rand({2, 4, 5, 5})); }) == 2 * 4 * 25 * (6 * 9));
}

TEST_CASE("a matrix product counts once, however it is written") {
  auto const a = torch::rand({2, 3, 4}), b = torch::rand({2, 4, 5}), m = torch::rand({3, 4}), n = torch::rand({4, 5}),
             v = torch::rand({4});
  CHECK(flops_of([&] { (void)m.mm(n); }) == 60);
  CHECK(flops_of([&] { (void)m.matmul(n); }) == 60);
  CHECK(flops_of([&] { (void)a.matmul(b); }) == 120);
  CHECK(flops_of([&] { (void)a.matmul(n); }) == 120);
  CHECK(flops_of([&] { (void)a.bmm(b); }) == 120);
  CHECK(flops_of([&] { (void)m.mv(v); }) == 12);
  CHECK(flops_of([&] { (void)v.dot(v); }) == 4);
  CHECK(flops_of([&] { (void)torch::einsum("bij,bjk->bik", {a, b}); }) == 120);
  auto sum = torch::zeros({3, 5}), sums = torch::zeros({2, 3, 5});
  CHECK(flops_of([&] { (void)torch::addmm(sum, m, n); }) == 60);
  CHECK(flops_of([&] { sum.addmm_(m, n); }) == 60);
  CHECK(flops_of([&] { torch::mm_out(sum, m, n); }) == 60);
  CHECK(flops_of([&] { (void)torch::baddbmm(sums, a, b); }) == 120);
  CHECK(flops_of([&] { (void)torch::addbmm(sum, a, b); }) == 120);
  CHECK(flops_of([&] { (void)torch::addmv(torch::zeros({3}), m, v); }) == 12);
  CHECK(flops_of([&] { (void)(m * 2 + 1).relu().softmax(1).sum(); }) == 0);
}

TEST_CASE("convnet2 takes what its layers take by hand: in training and in evaluation") {
  models::ConvNet2 net;
  for (std::int64_t const images : {1, 10}) {
    auto const x = torch::rand({images, 1, 28, 28});
    for (bool const training : {true, false}) {
      net->train(training);
      CHECK(flops_of([&] { (void)net->forward(x); }) == images * convnet2_flops);
      torch::NoGradGuard const no_grad;
      CHECK(flops_of([&] { (void)net->forward(x); }) == images * convnet2_flops);
    }
    pardl::LowRankGradients const low_rank;
    CHECK(flops_of([&] { (void)net->forward(x); }) == images * convnet2_flops);
    pardl::Autocast const amp(torch::kCPU, torch::kBFloat16);
    CHECK(flops_of([&] { (void)net->forward(x); }) == images * convnet2_flops);
  }
}

TEST_CASE("what is computed on the device meta, where there are shapes only, counts alike") {
  auto const meta = [](torch::IntArrayRef shape) { return torch::empty(shape, torch::Device("meta")); };
  CHECK(flops_of([&] { (void)torch::linear(meta({4, 3000}), meta({2000, 3000})); }) == 24'000'000);
}

TEST_CASE("what backward computes is not counted") {
  models::ConvNet2 net{models::ConvNet2Options{.hidden = 16}};
  auto const x = torch::rand({4, 1, 28, 28});
  auto const forward = flops_of([&] { (void)net->forward(x); });
  CHECK(flops_of([&] {
          net->forward(x).sum().backward();
          (void)torch::ones({1, 2}).mm(torch::ones({2, 3}));  // and after it, all is counted again
        }) == forward + 6);
  CHECK(net->named_parameters()["conv1.weight"].grad().defined());
}

TEST_CASE("counters nest, count their own thread, survive what fails, and leave nothing behind") {
  auto const product = [] { (void)torch::ones({2, 2}).mm(torch::ones({2, 2})); };
  {
    FlopCounter const outer;
    product();
    {
      FlopCounter const inner;
      product();
      CHECK(inner.flops() == 8);
    }
    std::thread([&] {
      product();
      CHECK(flops_of(product) == 8);
    }).join();
    CHECK(outer.flops() == 16);
    CHECK_THROWS_AS((void)torch::ones({2, 2}).mm(torch::ones({3, 2})), c10::Error);
    product();
    CHECK(outer.flops() >= 24);
    CHECK(flops_of(product) == 8);
    CHECK(at::hasThreadLocalCallbacks());
  }
  CHECK_FALSE(at::hasThreadLocalCallbacks());
  CHECK(flops_of([] {}) == 0);
}
