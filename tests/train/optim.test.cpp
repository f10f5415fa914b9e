// SPDX-License-Identifier: MIT
#include "pardl/train/optim.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "support/python_trace.hpp"

using pardl::optim::SGD;
using pardl::optim::SGDGroup;
using pardl::optim::SGDOptions;
using pardl::testing::tensors;
using pardl::testing::what_of;
using Tensors = std::vector<torch::Tensor>;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

torch::Tensor flag(double value) { return torch::tensor(value, torch::kFloat32); }

Tensors trained(Tensors const& start) {
  Tensors copies;
  for (auto const& tensor : start)
    copies.push_back(tensor.detach().clone(torch::MemoryFormat::Preserve).requires_grad_());
  return copies;
}

void set_grads(Tensors& params, Tensors const& grads) {
  for (std::size_t i = 0; i < params.size(); ++i)
    params[i].mutable_grad() = grads[i].defined() ? grads[i].clone(torch::MemoryFormat::Preserve) : torch::Tensor();
}

Tensors random_like(Tensors const& params) {
  Tensors all;
  for (auto const& param : params) all.push_back(torch::randn_like(param.detach()));
  return all;
}

bool equal(Tensors const& a, Tensors const& b) {
  bool same = a.size() == b.size();
  for (std::size_t i = 0; same && i < a.size(); ++i)
    same = a[i].defined() == b[i].defined() && (!a[i].defined() || torch::equal(a[i].detach(), b[i].detach()));
  return same;
}

/// What Python did; two tests read it, one run makes it.
std::optional<pardl::testing::Trace> const& trace() {
  static auto const once =
      pardl::testing::python_trace(std::filesystem::path(__FILE__).parent_path() / "optim_parity.py");
  return once;
}

}  // namespace

TEST_CASE("SGD follows torch.optim.SGD bit for bit, fused and not") {
  auto const& python = trace();
  if (!python) return;
  int cases = 0;
  for (c10::IValue const& item : python->at("sgd").toList()) {
    auto const what = item.toGenericDict();
    INFO(what.at("name").toStringRef());
    auto const settings = what.at("settings").toGenericDict();
    auto const start = tensors(what.at("start"));
    bool const python_fused = what.at("fused").toBool();
    auto params = trained(start);
    // Reduced precision on the CPU takes the per-tensor operations, whatever `fused` says.
    bool const ours_fused = python_fused || params[0].scalar_type() == torch::kBFloat16;
    SGD sgd{params, SGDOptions{.lr = 0.1,
                               .momentum = settings.at("momentum").to<double>(),
                               .dampening = settings.at("dampening").to<double>(),
                               .weight_decay = settings.at("weight_decay").to<double>(),
                               .nesterov = settings.at("nesterov").toBool(),
                               .maximize = settings.at("maximize").toBool(),
                               .fused = ours_fused}};
    auto const grads = what.at("grads").toList();
    auto const after = what.at("after").toList();
    for (std::size_t step = 0; step < grads.size(); ++step) {
      if (step == 4) sgd.set_lr(0.025);
      set_grads(params, tensors(grads.get(step)));
      sgd.step();
      CHECK(equal(params, tensors(after.get(step))));
    }
    auto const buffers = tensors(what.at("buffers"));
    auto const state = sgd.state_dict();
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      auto const* mine = state.find("state." + std::to_string(i) + ".momentum_buffer");
      CHECK((mine != nullptr) == buffers[i].defined());
      if (mine && buffers[i].defined()) CHECK(torch::equal(*mine, buffers[i]));
    }
    ++cases;
  }
  CHECK(cases == 42);
}

TEST_CASE("clip_grad_norm_ and clip_grad_value_ are torch.nn.utils's bit for bit") {
  auto const& python = trace();
  if (!python) return;
  int cases = 0;
  for (c10::IValue const& item : python->at("clip").toList()) {
    auto const what = item.toGenericDict();
    auto const grads = tensors(what.at("grads"));
    Tensors params;
    for (auto const& grad : grads) params.push_back(torch::zeros_like(grad).requires_grad_());
    params.push_back(torch::zeros({3}).requires_grad_());  // without a gradient: left alone
    auto with_nothing = grads;
    with_nothing.emplace_back();
    set_grads(params, with_nothing);
    auto const total =
        pardl::clip_grad_norm_(params, what.at("max_norm").to<double>(), what.at("norm_type").to<double>());
    CHECK(torch::equal(total, what.at("total").toTensor()));
    auto const by_norm = tensors(what.at("by_norm"));
    for (std::size_t i = 0; i < grads.size(); ++i) CHECK(torch::equal(params[i].grad(), by_norm[i]));
    set_grads(params, with_nothing);
    pardl::clip_grad_value_(params, what.at("limit").to<double>());
    auto const by_value = tensors(what.at("by_value"));
    for (std::size_t i = 0; i < grads.size(); ++i) CHECK(torch::equal(params[i].grad(), by_value[i]));
    CHECK_FALSE(params.back().grad().defined());
    ++cases;
  }
  CHECK(cases == 16);
}

TEST_CASE("clipping refuses what cannot be clipped, and leaves the gradients as they were") {
  Tensors params{torch::zeros({2}).requires_grad_()};
  CHECK(pardl::clip_grad_norm_(params, 1.0).item<float>() == 0);  // no gradient at all
  params[0].mutable_grad() = torch::tensor({1.0F, std::numeric_limits<float>::infinity()});
  CHECK(what_of<pardl::Error>([&] { pardl::clip_grad_norm_(params, 1.0, 2.0, true); }) ==
        "[train] the norm of the gradients is inf and cannot be clipped; look for the batch that diverged, or let "
        "error_if_nonfinite be false.");
  CHECK(params[0].grad()[0].item<float>() == 1);
  CHECK_THROWS_AS(pardl::clip_grad_norm_(params, -1.0), pardl::ConfigError);
  CHECK_THROWS_AS(pardl::clip_grad_norm_(params, not_a_number), pardl::ConfigError);
  CHECK_THROWS_AS(pardl::clip_grad_norm_(params, 1.0, not_a_number), pardl::ConfigError);
  CHECK_THROWS_AS(pardl::clip_grad_value_(params, -1.0), pardl::ConfigError);
}

TEST_CASE("clipping takes gradients of several types together") {
  Tensors params{torch::zeros({1}).requires_grad_(), torch::zeros({1}, torch::kFloat64).requires_grad_()};
  params[0].mutable_grad() = torch::tensor({3.0F});
  params[1].mutable_grad() = torch::tensor({4.0}, torch::kFloat64);
  CHECK(pardl::clip_grad_norm_(params, 1.0).item<double>() == 5.0);
  CHECK(params[0].grad().item<double>() == doctest::Approx(0.6).epsilon(1e-5));
  CHECK(params[1].grad().item<double>() == doctest::Approx(0.8).epsilon(1e-5));
}

TEST_CASE("a step that overflows changes nothing, and the first step that counts is a first step") {
  for (double const dampening : {0.0, 0.3})
    for (bool const fused : {true, false})
      for (auto const dtype : {torch::kFloat32, torch::kBFloat16}) {
        CAPTURE(dampening);
        CAPTURE(fused);
        torch::manual_seed(4);
        Tensors const start{torch::randn({37}).to(dtype), torch::randn({3, 5}).to(dtype)};
        SGDOptions const options{
            .lr = 0.1, .momentum = 0.9, .dampening = dampening, .weight_decay = 1e-3, .fused = fused};
        auto params = trained(start), expected = trained(start);
        SGD sgd{params, options}, plain{expected, options};
        for (int const overflow : {1, 1, 0, 0, 1, 0}) {
          auto const grads = random_like(params);
          set_grads(params, grads);
          set_grads(expected, grads);
          for (auto& param : params) param.mutable_grad().mul_(1024);
          auto const before = trained(params);
          sgd.step(flag(1024), flag(overflow));
          if (overflow) {
            CHECK(equal(params, before));
          } else {
            plain.step();
            CHECK(equal(params, expected));
            for (std::size_t i = 0; i < grads.size(); ++i) CHECK(torch::equal(params[i].grad(), grads[i]));
          }
        }
        set_grads(params, random_like(params));  // and then one without a scaler
        for (std::size_t i = 0; i < params.size(); ++i) expected[i].mutable_grad() = params[i].grad().clone();
        sgd.step();
        plain.step();
        CHECK(equal(params, expected));
      }
}

TEST_CASE("a scaled first step with dampening that was skipped leaves no momentum in the state") {
  Tensors params{torch::ones({4}).requires_grad_()};
  SGD sgd{params, {.lr = 0.1, .momentum = 0.9, .dampening = 0.5}};
  set_grads(params, {torch::ones({4})});
  sgd.step({}, flag(1));
  CHECK(sgd.state_dict().find("state.0.momentum_buffer") == nullptr);
  sgd.step({}, flag(0));
  CHECK(torch::equal(sgd.state_dict()["state.0.momentum_buffer"], torch::ones({4})));
}

TEST_CASE("a gradient with other strides than its parameter meets the right values") {
  torch::manual_seed(5);
  auto const start = torch::randn({4, 3, 5, 5}).contiguous(torch::MemoryFormat::ChannelsLast);
  auto const grad = torch::randn({4, 3, 5, 5});  // contiguous the other way
  Tensors params = trained({start}), reference = trained({start});
  SGD sgd{params, {.lr = 0.1, .momentum = 0.9}};
  SGD plain{reference, {.lr = 0.1, .momentum = 0.9, .fused = false}};
  for (int step = 0; step < 3; ++step) {
    set_grads(params, {grad * 8});
    sgd.step(flag(8), flag(0));
    CHECK(torch::equal(params[0].grad(), grad));  // unscaled in place, as always
    set_grads(reference, {grad});
    plain.step();
    CHECK(torch::allclose(params[0], reference[0], 1e-6, 1e-6));
  }
  // A 1x1 convolution's weight: strides differ where they mean nothing.
  auto const small = torch::randn({6, 4, 1, 1});
  Tensors pointwise = trained({small.contiguous(torch::MemoryFormat::ChannelsLast)});
  SGD other{pointwise, {.lr = 1}};
  set_grads(pointwise, {small});
  other.step();
  CHECK(torch::equal(pointwise[0].detach(), torch::zeros_like(small)));
}

TEST_CASE("parameters of several types and late gradients step together") {
  torch::manual_seed(6);
  Tensors const start{torch::randn({9}), torch::randn({9}, torch::kFloat64), torch::randn({9}).to(torch::kBFloat16),
                      torch::randn({5})};
  for (double const dampening : {0.0, 0.4}) {
    SGDOptions options{.lr = 0.1, .momentum = 0.9, .dampening = dampening};
    auto params = trained(start), reference = trained(start);
    SGD sgd{params, options};
    options.fused = false;
    SGD plain{reference, options};
    for (int step = 0; step < 4; ++step) {
      auto grads = random_like(params);
      if (step < 2) grads[3].reset();
      set_grads(params, grads);
      set_grads(reference, grads);
      sgd.step({}, flag(0));
      plain.step();
      for (std::size_t i = 0; i < params.size(); ++i) CHECK(torch::allclose(params[i], reference[i], 1e-6, 1e-6));
    }
  }
}

TEST_CASE("SGD and torch::optim::SGD walk together") {
  torch::manual_seed(7);
  Tensors const start{torch::randn({100}), torch::randn({3, 7})};
  auto params = trained(start), theirs = trained(start);
  SGD sgd{params, {.lr = 0.1, .momentum = 0.9, .weight_decay = 5e-4, .nesterov = true, .fused = false}};
  torch::optim::SGD other{theirs, torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(5e-4).nesterov(true)};
  for (int step = 0; step < 5; ++step) {
    auto const grads = random_like(params);
    set_grads(params, grads);
    set_grads(theirs, grads);
    sgd.step();
    other.step();
    for (std::size_t i = 0; i < params.size(); ++i) CHECK(torch::allclose(params[i], theirs[i], 1e-6, 1e-6));
  }
}

TEST_CASE("groups have settings of their own, and a schedule reaches all or one") {
  Tensors first{torch::ones({2}).requires_grad_()}, second{torch::ones({2}).requires_grad_()};
  SGD sgd{std::vector<SGDGroup>{{first, {.lr = 1}}, {second, {.lr = 0.5, .weight_decay = 1}}}};
  CHECK(sgd.groups() == 2);
  CHECK(sgd.parameters().size() == 2);
  first[0].mutable_grad() = torch::ones({2});
  second[0].mutable_grad() = torch::ones({2});
  sgd.step();
  CHECK(torch::equal(first[0].detach(), torch::zeros({2})));
  CHECK(torch::equal(second[0].detach(), torch::zeros({2})));
  sgd.set_lr(0.25, 1);
  CHECK(pardl::learning_rate(sgd) == 1);
  CHECK(sgd.lr(1) == 0.25);
  pardl::set_learning_rate(sgd, 0.125);
  CHECK(sgd.lr(0) == 0.125);
  CHECK(sgd.lr(1) == 0.125);
  CHECK_THROWS_AS(sgd.set_lr(-1), pardl::ConfigError);
  CHECK_THROWS_AS(sgd.set_lr(not_a_number), pardl::ConfigError);
  CHECK_THROWS_AS(sgd.set_lr(1, 2), pardl::ConfigError);
  CHECK_THROWS_AS((void)sgd.lr(2), pardl::ConfigError);
}

TEST_CASE("zero_grad forgets gradients, or empties them in place") {
  Tensors params{torch::ones({2}).requires_grad_(), torch::ones({2}).requires_grad_()};
  SGD sgd{params, {}};
  params[0].mutable_grad() = torch::ones({2});
  auto const kept = params[0].grad();
  sgd.zero_grad(/*set_to_none=*/false);
  CHECK(params[0].grad().is_same(kept));
  CHECK(torch::equal(kept, torch::zeros({2})));
  CHECK_FALSE(params[1].grad().defined());
  sgd.zero_grad();
  CHECK_FALSE(params[0].grad().defined());
}

TEST_CASE("a loaded state continues the run bit for bit") {
  torch::manual_seed(8);
  Tensors const start{torch::randn({33}), torch::randn({4, 3, 2, 2}).contiguous(torch::MemoryFormat::ChannelsLast)};
  SGDOptions const options{.lr = 0.1, .momentum = 0.9, .dampening = 0.1};
  auto params = trained(start);
  SGD sgd{params, options};
  set_grads(params, random_like(params));
  sgd.step();
  sgd.set_lr(0.05);
  auto resumed_params = trained(params);
  SGD resumed{resumed_params, {.lr = 7}};
  resumed.load_state_dict(sgd.state_dict());
  CHECK(resumed.lr() == 0.05);
  CHECK(resumed.options().momentum == 0.9);
  CHECK_FALSE(resumed.state_dict()["state.0.momentum_buffer"].is_same(sgd.state_dict()["state.0.momentum_buffer"]));
  for (int step = 0; step < 3; ++step) {
    auto const grads = random_like(params);
    set_grads(params, grads);
    set_grads(resumed_params, grads);
    sgd.step();
    resumed.step();
    CHECK(equal(params, resumed_params));
  }
}

TEST_CASE("a state of another optimizer is refused and changes nothing") {
  Tensors params{torch::ones({4}).requires_grad_()},
      more{torch::ones({4}).requires_grad_(), torch::ones({2}).requires_grad_()};
  SGD sgd{params, {.lr = 0.5, .momentum = 0.9}};
  SGD larger{more, {.lr = 0.25, .momentum = 0.9}};
  set_grads(more, {torch::ones({4}), torch::ones({2})});
  larger.step();
  CHECK_THROWS_AS(sgd.load_state_dict(larger.state_dict()), pardl::CheckpointError);
  Tensors other{torch::ones({5}).requires_grad_()};
  SGD shaped{other, {.momentum = 0.9}};
  set_grads(other, {torch::ones({5})});
  shaped.step();
  CHECK(what_of<pardl::CheckpointError>([&] { sgd.load_state_dict(shaped.state_dict()); }) ==
        "[train] this state is not of such an SGD: state.0.momentum_buffer has another shape than its parameter; load "
        "the "
        "state of an optimizer with the same parameters and groups.");
  CHECK(what_of<pardl::CheckpointError>([&] {
          sgd.load_state_dict(torch::OrderedDict<std::string, torch::Tensor>());
        }).find("param_groups.0.lr is missing") != std::string::npos);
  auto broken = sgd.state_dict();
  broken["param_groups.0.momentum"] = torch::tensor(-1.0, torch::kFloat64);
  CHECK_THROWS_AS(sgd.load_state_dict(broken), pardl::CheckpointError);
  CHECK(sgd.lr() == 0.5);
  CHECK(sgd.options().momentum == 0.9);
}

TEST_CASE("SGD refuses settings and parameters that cannot be right") {
  auto const weight = torch::ones({2}).requires_grad_();
  auto const with = [&](SGDOptions options) {
    return what_of<pardl::ConfigError>([&] { SGD{Tensors{weight}, options}; });
  };
  CHECK(with({.lr = -1}) == "[train] SGD with lr -1.000000; it is zero or more.");
  CHECK(with({.lr = not_a_number}) != "");
  CHECK(with({.momentum = -0.1}) != "");
  CHECK(with({.dampening = not_a_number}) != "");
  CHECK(with({.weight_decay = -1}) != "");
  CHECK(with({.nesterov = true}) ==
        "[train] SGD with nesterov but no momentum, or with dampening; give it momentum above 0 and "
        "leave dampening at 0.");
  CHECK(with({.momentum = 0.9, .dampening = 0.1, .nesterov = true}) != "");
  auto const of = [](Tensors params) { return what_of<pardl::ConfigError>([&] { SGD{params, {}}; }); };
  CHECK(of({}) == "[train] SGD was given no parameters; pass model.parameters().");
  CHECK(of({weight, weight}) == "[train] parameter 1 of SGD was given before; give each parameter once.");
  CHECK(of({weight * 2}).find("result of a computation") != std::string::npos);
  CHECK(of({torch::ones({2}, torch::kInt64)}).find("floating-point") != std::string::npos);
  CHECK(of({torch::ones({4}).slice(0, 0, 4, 2)}).find("dense") != std::string::npos);
  CHECK(of({torch::Tensor()}).find("undefined") != std::string::npos);
}

TEST_CASE("a sparse gradient is refused before anything has moved") {
  Tensors params{torch::ones({2}).requires_grad_(), torch::ones({3, 1}).requires_grad_()};
  SGD sgd{params, {.lr = 1}};
  params[0].mutable_grad() = torch::ones({2});
  params[1].mutable_grad() = torch::ones({3, 1}).to_sparse();
  CHECK_THROWS_AS(sgd.step(), pardl::ConfigError);
  CHECK(torch::equal(params[0].detach(), torch::ones({2})));
  sgd.zero_grad(false);
  CHECK(params[1].grad().to_dense().sum().item<float>() == 0);
}

TEST_CASE("generic code reads any optimizer through the same three functions") {
  Tensors first{torch::ones({2}).requires_grad_()}, second{torch::ones({3}).requires_grad_()};
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(first);
  groups.emplace_back(second, std::make_unique<torch::optim::AdamOptions>(0.5));
  torch::optim::Adam adam{groups, torch::optim::AdamOptions(0.25)};
  CHECK(pardl::parameters_of(adam).size() == 2);
  CHECK(pardl::parameters_of(adam)[1].is_same(second[0]));
  CHECK(pardl::learning_rate(adam) == 0.25);
  pardl::set_learning_rate(adam, 0.125);
  CHECK(adam.param_groups()[1].options().get_lr() == 0.125);
  CHECK_THROWS_AS(pardl::set_learning_rate(adam, -1), pardl::ConfigError);
  static_assert(pardl::optimizer<torch::optim::Adam> && !pardl::fused_optimizer<torch::optim::Adam>);
  static_assert(pardl::fused_optimizer<SGD> && !pardl::optimizer<torch::Tensor>);
}

TEST_CASE("a momentum that a schedule moves is torch::optim::SGD's") {
  torch::manual_seed(3);
  Tensors const start{torch::randn({4, 3}), torch::randn({5})};
  Tensors mine = trained(start), theirs = trained(start);
  SGD sgd(mine, {.lr = 0.1, .momentum = 0.9});
  torch::optim::SGD peer(theirs, torch::optim::SGDOptions(0.1).momentum(0.9));
  for (double const momentum : {0.95, 0.9, 0.85, 0.0, 0.9}) {
    sgd.set_momentum(momentum);
    static_cast<torch::optim::SGDOptions&>(peer.param_groups()[0].options()).momentum(momentum);
    auto const grads = random_like(start);
    set_grads(mine, grads);
    set_grads(theirs, grads);
    sgd.step();
    peer.step();
    for (std::size_t i = 0; i < mine.size(); ++i) CHECK(torch::allclose(mine[i], theirs[i], 1e-6, 1e-7));
  }
  CHECK(what_of<pardl::ConfigError>([&] { sgd.set_momentum(-1); }) ==
        "[train] SGD with momentum -1.000000; it is zero or more.");
  SGD nesterov(trained(start), {.lr = 0.1, .momentum = 0.9, .nesterov = true});
  CHECK_THROWS_AS(nesterov.set_momentum(0), pardl::ConfigError);
}
