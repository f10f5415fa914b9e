// SPDX-License-Identifier: MIT
// Where a module's numbers lie in the rows that travel.
#include "pardl/fed/flat_model.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstdint>
#include <string>

namespace fed = pardl::fed;

namespace {

torch::nn::Sequential odd_net() {
  torch::manual_seed(4);
  return torch::nn::Sequential(torch::nn::Linear(3, 5), torch::nn::BatchNorm1d(5), torch::nn::Linear(5, 7),
                               torch::nn::BatchNorm1d(7));
}

}  // namespace

TEST_CASE("aligned, every tensor begins at a multiple of 16 bytes, keeps its values, and what lies between is 0") {
  for (bool const keeps : {false, true}) {
    auto const net = odd_net(), untouched = odd_net();
    fed::Sharing sharing{.alignment = 4};
    if (keeps) sharing.keep_local = fed::containing({"2."});
    fed::FlatModel const model(net, sharing);
    std::int64_t numbers = 0;
    for (auto const& item : net->named_parameters()) {
      CHECK_MESSAGE(reinterpret_cast<std::uintptr_t>(item.value().const_data_ptr<float>()) % 16 == 0, item.key());
      CHECK(torch::equal(item.value(), untouched->named_parameters()[item.key()]));
      numbers += item.value().numel();
    }
    for (auto const& item : net->named_buffers()) {
      CHECK(torch::equal(item.value(), untouched->named_buffers()[item.key()]));
      if (!item.value().is_floating_point()) continue;
      CHECK_MESSAGE(reinterpret_cast<std::uintptr_t>(item.value().const_data_ptr<float>()) % 16 == 0, item.key());
      numbers += item.value().numel();
    }
    CHECK(model.shared().numel() + model.local().numel() > numbers);
    for (auto const& item : net->named_parameters()) item.value().data().zero_();
    for (auto const& item : net->named_buffers()) item.value().zero_();
    CHECK(model.shared().count_nonzero().item<std::int64_t>() == 0);
    CHECK(model.local().count_nonzero().item<std::int64_t>() == 0);
    CHECK((model.local().numel() > 0) == keeps);
  }
}

TEST_CASE("a number's name counts from where its tensor begins, and shared parameters end where buffers begin") {
  for (std::int64_t const alignment : {1, 4}) {
    auto const net = odd_net();
    fed::FlatModel const model(net, {.alignment = alignment});
    std::int64_t numbers = 0;
    for (auto const& place : model.places()) {
      CHECK(model.name_of(place.begin) == place.name + "[0]");
      CHECK(model.name_of(place.begin + place.size - 1) == place.name + "[" + std::to_string(place.size - 1) + "]");
      bool const is_parameter = net->named_parameters().contains(place.name);
      CHECK((place.begin < model.shared_parameters()) == is_parameter);
      numbers += place.size;
    }
    CHECK((model.shared().numel() == numbers) == (alignment == 1));
  }
}
