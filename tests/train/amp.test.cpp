// SPDX-License-Identifier: MIT
#include "pardl/train/amp.hpp"

#include <ATen/autocast_mode.h>
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "pardl/policy/loss_scale.hpp"
#include "pardl/train/optim.hpp"
#include "support/python_trace.hpp"
#include "support/ranks.hpp"

using pardl::Autocast;
using pardl::GradScaler;
using pardl::optim::SGD;
using pardl::testing::tensors;
using pardl::testing::what_of;
using Tensors = std::vector<torch::Tensor>;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

bool cpu_autocast() { return at::autocast::is_autocast_enabled(torch::kCPU); }
auto cpu_dtype() { return at::autocast::get_autocast_dtype(torch::kCPU); }

torch::Tensor product() { return torch::mm(torch::ones({2, 2}), torch::ones({2, 2})); }

/// A parameter, and a gradient as backward() under the scaler would leave it.
struct Weight {
  torch::Tensor value = torch::ones({3}).requires_grad_();
  void backward(GradScaler& scaler, double gradient) { scaler.scale((value * gradient).sum()).backward(); }
  Tensors list() const { return {value}; }
};

/// An optimizer of the user's own: what the concept asks for, and no more.
struct Descent {
  Tensors weights;
  double rate = 0.5;
  int taken = 0;
  Tensors& parameters() { return weights; }
  void step() {
    torch::NoGradGuard const no_grad;
    for (auto& weight : weights) weight.sub_(weight.grad(), rate);
    ++taken;
  }
  void zero_grad() {
    for (auto& weight : weights) weight.mutable_grad().reset();
  }
  double lr() const { return rate; }
  void set_lr(double lr) { rate = lr; }
};
static_assert(pardl::optimizer<Descent> && !pardl::fused_optimizer<Descent>);

}  // namespace

TEST_CASE("Autocast casts while it lives, and leaves everything as it found it") {
  CHECK((product().scalar_type() == torch::kFloat32));
  {
    Autocast const amp{torch::kCPU};
    CHECK((product().scalar_type() == torch::kBFloat16));
    {
      Autocast const to_half{torch::kCPU, torch::kHalf};
      CHECK((product().scalar_type() == torch::kHalf));
      {
        Autocast const off{torch::kCPU, {.enabled = false, .cache_enabled = false}};
        CHECK((product().scalar_type() == torch::kFloat32));
        CHECK_FALSE(at::autocast::is_autocast_cache_enabled());
      }
      CHECK(at::autocast::is_autocast_cache_enabled());
      CHECK((cpu_dtype() == torch::kHalf));
    }
    CHECK((product().scalar_type() == torch::kBFloat16));
    bool other_thread = true;
    std::thread([&] { other_thread = cpu_autocast(); }).join();
    CHECK_FALSE(other_thread);  // the state is the thread's own
  }
  CHECK_FALSE(cpu_autocast());
  CHECK((cpu_dtype() == torch::kBFloat16));
  CHECK((product().scalar_type() == torch::kFloat32));
}

TEST_CASE("Autocast ends with its scope, also by an exception") {
  try {
    Autocast const amp{torch::Device(torch::kCPU), torch::kHalf};
    throw std::runtime_error("in the middle");
  } catch (std::runtime_error const&) {
  }
  CHECK_FALSE(cpu_autocast());
  CHECK((cpu_dtype() == torch::kBFloat16));
  CHECK(at::autocast::increment_nesting() == 1);  // the nesting level is back at the bottom
  CHECK(at::autocast::decrement_nesting() == 0);
}

TEST_CASE("the cast weights are kept until the outermost Autocast ends, and then dropped") {
  auto weight = torch::ones({4, 4}).requires_grad_();
  auto const input = torch::ones({4, 4});
  auto const result = [&] { return torch::mm(input, weight)[0][0].item<float>(); };
  auto const step = [&] {
    torch::NoGradGuard const no_grad;
    weight.mul_(2);
  };
  {
    Autocast const outer{torch::kCPU};
    {
      Autocast const inner{torch::kCPU};
      CHECK(result() == 4);
    }
    step();
    CHECK(result() == 4);  // still the first cast: the outermost lives
  }
  {
    Autocast const amp{torch::kCPU};
    CHECK(result() == 8);
  }
  {
    Autocast const amp{torch::kCPU, {.cache_enabled = false}};
    CHECK(result() == 8);
    step();
    CHECK(result() == 16);
  }
}

TEST_CASE("Autocast refuses devices and types without one") {
  CHECK(what_of<pardl::ConfigError>([] {
          Autocast const amp{torch::kCPU, torch::kFloat32};
        }) == "[train] autocast to Float; use kHalf or kBFloat16.");
  CHECK_THROWS_AS(Autocast(torch::Device(torch::kMeta)), pardl::ConfigError);
  if (!torch::cuda::is_available()) CHECK_THROWS_AS(Autocast(torch::Device(torch::kCUDA)), pardl::ConfigError);
  Autocast const off{torch::kCPU, {.dtype = torch::kFloat32, .enabled = false}};  // nothing is cast: nothing to refuse
  CHECK_FALSE(cpu_autocast());
}

TEST_CASE("GradScaler is torch.amp.GradScaler, iteration for iteration") {
  auto const python = pardl::testing::python_trace(std::filesystem::path(__FILE__).parent_path() / "amp_parity.py");
  if (!python) return;
  int cases = 0;
  for (c10::IValue const& item : python->at("cases").toList()) {
    auto const what = item.toGenericDict();
    INFO(what.at("name").toStringRef());
    Tensors params;
    std::vector<std::unique_ptr<SGD>> sgds;
    for (auto const& start : tensors(what.at("starts"))) {
      params.push_back(start.clone().requires_grad_());
      sgds.push_back(std::make_unique<SGD>(Tensors{params.back()},
                                           pardl::optim::SGDOptions{.lr = 0.05,
                                                                    .momentum = what.at("momentum").to<double>(),
                                                                    .dampening = what.at("dampening").to<double>(),
                                                                    .fused = what.at("fused").toBool()}));
    }
    double const init = what.at("init").to<double>();
    int const interval = static_cast<int>(what.at("interval").toInt());
    GradScaler scaler{{.init_scale = init, .growth_interval = interval}};
    pardl::LossScale automaton{{.init_scale = init, .growth_interval = interval}};
    std::vector<std::int64_t> unscale;
    for (c10::IValue const& step : what.at("unscale").toList()) unscale.push_back(step.toInt());
    auto const steps = what.at("steps").toList();
    for (std::size_t n = 0; n < steps.size(); ++n) {
      auto const expected = steps.get(n).toGenericDict();
      auto const xs = tensors(expected.at("xs"));
      for (std::size_t i = 0; i < params.size(); ++i) {
        params[i].mutable_grad().reset();
        scaler.scale((params[i] * xs[i]).sum()).backward();
      }
      auto const norms = tensors(expected.at("norms"));
      std::size_t clipped = 0;
      for (std::size_t i = 0; i < params.size(); ++i) {
        if (std::find(unscale.begin(), unscale.end(), static_cast<std::int64_t>(n)) != unscale.end()) {
          scaler.unscale_(*sgds[i]);
          auto const norm = pardl::clip_grad_norm_(sgds[i]->parameters(), 1.5);
          CHECK(torch::equal(norm.nan_to_num(), norms[clipped++].nan_to_num()));
        }
        scaler.step(*sgds[i]);
      }
      bool const skipped = scaler.skipped();
      double const new_scale = what.at("new_scale").to<double>();
      if (n == 4 && new_scale > 0) {
        scaler.update(new_scale);
        automaton.set_scale(static_cast<float>(new_scale));
      } else {
        scaler.update();
        automaton.update(skipped);
      }
      CHECK(scaler.skipped() == skipped);
      auto const after = tensors(expected.at("params")), grads = tensors(expected.at("grads"));
      for (std::size_t i = 0; i < params.size(); ++i) {
        CHECK(torch::equal(params[i].detach(), after[i]));
        CHECK(torch::equal(params[i].grad().nan_to_num(), grads[i].nan_to_num()));
      }
      auto const state = scaler.state_dict();
      CHECK(state.size() == 5);
      for (auto const& [key, value] : state) CHECK(value == expected.at("state").toGenericDict().at(key).to<double>());
      CHECK(state.at("scale") == automaton.scale());
      CHECK(state.at("_growth_tracker") == automaton.growth_tracker());
    }
    ++cases;
  }
  CHECK(cases == 28);
}

TEST_CASE("any optimizer can be stepped: the user's own, torch::optim's, and a fused one") {
  Weight weights[3];
  Descent own{weights[0].list()};
  torch::optim::SGD theirs{weights[1].list(), torch::optim::SGDOptions(0.5)};
  SGD fused{weights[2].list(), {.lr = 0.5}};
  GradScaler scaler;
  for (double const gradient : {1.0, 1e35, 1.0}) {
    for (auto& weight : weights) {
      weight.value.mutable_grad().reset();
      weight.backward(scaler, gradient);
    }
    scaler.step(own);
    scaler.step(theirs);
    scaler.step(fused);
    CHECK(scaler.skipped() == (gradient > 1));
    scaler.update();
    CHECK(scaler.skipped() == (gradient > 1));
  }
  CHECK(own.taken == 2);
  for (auto& weight : weights) CHECK(torch::equal(weight.value.detach(), torch::zeros({3})));
  CHECK(scaler.get_scale() == 32768);
}

TEST_CASE("an overflow of one optimizer does not hold back the other, but backs the factor off") {
  Weight good, bad;
  SGD first{good.list(), {.lr = 1}}, second{bad.list(), {.lr = 1}};
  GradScaler scaler{{.init_scale = 4}};
  good.backward(scaler, 1);
  bad.backward(scaler, infinity);
  scaler.step(first);
  CHECK_FALSE(scaler.skipped());
  scaler.step(second);
  CHECK(scaler.skipped());
  scaler.update();
  CHECK(torch::equal(good.value.detach(), torch::zeros({3})));
  CHECK(torch::equal(bad.value.detach(), torch::ones({3})));
  CHECK(scaler.get_scale() == 2);
}

TEST_CASE("calls out of turn say so") {
  Weight weight;
  SGD sgd{weight.list(), {.lr = 1}};
  GradScaler scaler;
  CHECK(what_of<pardl::Error>([&] { scaler.step(sgd); }) ==
        "[train] GradScaler::step before any scale(); call scaler.scale(loss).backward() first.");
  CHECK_THROWS_AS(scaler.unscale_(sgd), pardl::Error);
  CHECK_THROWS_AS(scaler.update(), pardl::Error);
  CHECK_THROWS_AS(scaler.update(2.0), pardl::Error);
  weight.backward(scaler, 1);
  CHECK(what_of<pardl::Error>([&] { scaler.update(); }) ==
        "[train] GradScaler::update before any gradient was looked at; call step() first.");
  scaler.unscale_(sgd);
  CHECK(what_of<pardl::Error>([&] { scaler.unscale_(sgd); }) ==
        "[train] GradScaler::unscale_ was called twice on this optimizer; call it once before step().");
  scaler.step(sgd);
  CHECK(what_of<pardl::Error>([&] { scaler.step(sgd); }) ==
        "[train] GradScaler::step was called twice on this optimizer; call update() after each step().");
  CHECK(what_of<pardl::Error>([&] { scaler.unscale_(sgd); }) ==
        "[train] GradScaler::unscale_ was called after step(); call it between backward() and step().");
  CHECK(torch::equal(weight.value.detach(), torch::zeros({3})));  // one step, and only one
  scaler.update();
  scaler.unscale_(sgd);  // a new iteration
  torch::optim::SGD empty{Weight{}.list(), torch::optim::SGDOptions(1)};
  CHECK(what_of<pardl::Error>([&] { scaler.step(empty); }) ==
        "[train] GradScaler::step found no gradient; call backward() before, and pass the trained parameters.");
}

TEST_CASE("float16 gradients are refused, and stay scaled") {
  auto weight = torch::ones({2}, torch::kHalf).requires_grad_();
  torch::optim::SGD sgd{Tensors{weight}, torch::optim::SGDOptions(1)};
  GradScaler scaler{{.init_scale = 2}};
  scaler.scale(weight.sum().to(torch::kFloat32)).backward();
  CHECK(what_of<pardl::Error>([&] { scaler.unscale_(sgd); }).find("float16 gradients") != std::string::npos);
  CHECK(weight.grad()[0].item<float>() == 2);
  SGD fused{Tensors{weight}, {.lr = 0.25}};  // which unscales by itself, in float32, and may
  scaler.step(fused);
  CHECK(weight.detach()[0].item<float>() == 0.75F);
}

TEST_CASE("gradients of several types, and sparse ones, are unscaled") {
  auto single = torch::ones({2}).requires_grad_(), twice = torch::ones({2}, torch::kFloat64).requires_grad_();
  auto sparse = torch::ones({3, 1}).requires_grad_();
  torch::optim::SGD sgd{Tensors{single, twice, sparse}, torch::optim::SGDOptions(1)};
  GradScaler scaler{{.init_scale = 8}};
  scaler.scale(single.sum() + twice.sum()).backward();
  auto const at = torch::tensor({{0, 2}});
  sparse.mutable_grad() = torch::sparse_coo_tensor(at, torch::full({2, 1}, 8.0F), {3, 1});
  scaler.unscale_(sgd);
  CHECK(torch::equal(single.grad(), torch::ones({2})));
  CHECK(torch::equal(twice.grad(), torch::ones({2}, torch::kFloat64)));
  CHECK(torch::equal(sparse.grad().to_dense().flatten(), torch::tensor({1.0F, 0.0F, 1.0F})));
}

TEST_CASE("scale takes several outputs, and makes the factor float32") {
  GradScaler scaler{{.init_scale = 4}};
  auto const scaled = scaler.scale(Tensors{torch::ones({}), torch::ones({2}, torch::kFloat64)});
  CHECK(scaled[0].item<float>() == 4);
  CHECK((scaled[1].scalar_type() == torch::kFloat64));
  CHECK((scaler.scale(torch::ones({}, torch::kHalf)).scalar_type() == torch::kFloat32));
}

TEST_CASE("a disabled scaler passes everything through") {
  Weight weight;
  Descent descent{weight.list()};
  GradScaler scaler{{.enabled = false}};
  auto const loss = weight.value.sum();
  CHECK(scaler.scale(loss).is_same(loss));
  CHECK(scaler.scale(Tensors{loss})[0].is_same(loss));
  loss.backward();
  scaler.unscale_(descent);
  scaler.step(descent);
  scaler.update();
  scaler.update(3.0);
  CHECK(descent.taken == 1);
  CHECK_FALSE(scaler.skipped());
  CHECK_FALSE(scaler.is_enabled());
  CHECK(scaler.get_scale() == 1);
  CHECK(scaler.state_dict().empty());
  scaler.load_state_dict({});
}

TEST_CASE("a new factor comes as a number or a tensor") {
  Weight weight;
  SGD sgd{weight.list(), {.lr = 1}};
  GradScaler scaler;
  weight.backward(scaler, 1);
  scaler.update(torch::tensor({128.0F}));
  CHECK(scaler.get_scale() == 128);
  scaler.update(64.0);
  CHECK(scaler.get_scale() == 64);
  for (double const wrong : {0.0, -1.0, 1e300}) CHECK_THROWS_AS(scaler.update(wrong), pardl::ConfigError);
  CHECK_THROWS_AS(scaler.update(torch::ones({2})), pardl::ConfigError);
  CHECK_THROWS_AS(scaler.update(torch::ones({1}).requires_grad_()), pardl::ConfigError);
  CHECK_THROWS_AS(scaler.update(torch::Tensor()), pardl::ConfigError);
  CHECK(scaler.get_scale() == 64);
}

TEST_CASE("a state goes from scaler to scaler, before and after its first use") {
  Weight weight;
  SGD sgd{weight.list(), {.lr = 0}};
  GradScaler scaler{{.init_scale = 16, .growth_factor = 4, .backoff_factor = 0.25, .growth_interval = 5}};
  for (int i = 0; i < 3; ++i) {
    weight.backward(scaler, 1);
    scaler.step(sgd);
    scaler.update();
  }
  auto const state = scaler.state_dict();
  CHECK(state == std::map<std::string, double>{{"scale", 16},
                                               {"growth_factor", 4},
                                               {"backoff_factor", 0.25},
                                               {"growth_interval", 5},
                                               {"_growth_tracker", 3}});
  GradScaler fresh, used;
  weight.backward(used, 1);
  for (auto* other : {&fresh, &used}) {
    other->load_state_dict(state);
    CHECK(other->state_dict() == state);
    weight.value.mutable_grad().reset();
    for (int i = 0; i < 2; ++i) {
      weight.backward(*other, 1);
      other->step(sgd);
      other->update();
    }
    CHECK(other->get_scale() == 64);
  }
  CHECK(what_of<pardl::CheckpointError>([&] { scaler.load_state_dict({}); }).find("disabled scaler") !=
        std::string::npos);
  auto part = state;
  part.erase("_growth_tracker");
  CHECK(what_of<pardl::CheckpointError>([&] { scaler.load_state_dict(part); }) ==
        "[train] this GradScaler state lacks _growth_tracker; load a complete one.");
  part = state;
  part["growth_factor"] = 0.5;
  CHECK_THROWS_AS(scaler.load_state_dict(part), pardl::CheckpointError);
  CHECK(scaler.state_dict() == state);
}

TEST_CASE("settings that cannot work are refused, at the start and later") {
  for (auto const& options : std::vector<pardl::GradScalerOptions>{{.init_scale = 0},
                                                                   {.init_scale = 1e300},
                                                                   {.growth_factor = 1},
                                                                   {.backoff_factor = 1},
                                                                   {.backoff_factor = 0},
                                                                   {.growth_interval = 0}})
    CHECK_THROWS_AS(GradScaler{options}, pardl::ConfigError);
  GradScaler scaler;
  scaler.set_growth_factor(3);
  scaler.set_backoff_factor(0.1);
  scaler.set_growth_interval(7);
  CHECK(scaler.get_growth_factor() == 3);
  CHECK(scaler.get_backoff_factor() == 0.1);
  CHECK(scaler.get_growth_interval() == 7);
  CHECK_THROWS_AS(scaler.set_growth_factor(0.5), pardl::ConfigError);
  CHECK_THROWS_AS(scaler.set_backoff_factor(2), pardl::ConfigError);
  CHECK_THROWS_AS(scaler.set_growth_interval(0), pardl::ConfigError);
}

TEST_CASE("bfloat16 under autocast trains without a scaler, float16 with one") {
  for (auto const dtype : {torch::kBFloat16, torch::kHalf}) {
    torch::manual_seed(1);
    torch::nn::Linear net{4, 1};
    SGD sgd{net->parameters(), {.lr = 0.05}};
    GradScaler scaler{{.enabled = dtype == torch::kHalf}};
    auto const inputs = torch::randn({32, 4});
    auto const targets = inputs.sum(1, true);
    double first = 0, last = 0;
    for (int step = 0; step < 30; ++step) {
      sgd.zero_grad();
      auto const loss = [&] {
        Autocast const amp{torch::kCPU, dtype};
        auto const outputs = net->forward(inputs);
        CHECK((outputs.scalar_type() == dtype));
        return (outputs.to(torch::kFloat32) - targets).square().mean();
      }();
      scaler.scale(loss).backward();
      scaler.step(sgd);
      scaler.update();
      (step == 0 ? first : last) = loss.item<double>();
    }
    CHECK((net->weight.scalar_type() == torch::kFloat32));
    CHECK(last < 0.1 * first);
  }
}

TEST_CASE("an overflow on one rank's shard skips the step on all ranks") {
  pardl::testing::with_ranks(3, [](pardl::ProcessGroup const& world) {
    Weight weight;
    torch::optim::SGD theirs{weight.list(), torch::optim::SGDOptions(1)};
    Weight shard;
    SGD fused{shard.list(), {.lr = 1}};
    Weight mostly_absent;
    SGD absent{mostly_absent.list(), {.lr = 1}};
    GradScaler scaler{{.init_scale = 4}, world};
    for (int step = 0; step < 2; ++step) {
      double const gradient = step == 0 && world.rank() == 1 ? infinity : 1.0;
      for (auto* one : {&weight, &shard}) {
        one->value.mutable_grad().reset();
        one->backward(scaler, gradient);
      }
      if (world.rank() == 2) {  // the others hold no gradient here, and take part all the same
        mostly_absent.value.mutable_grad().reset();
        mostly_absent.backward(scaler, 1);
      }
      scaler.unscale_(theirs);
      scaler.step(theirs);
      scaler.step(fused);
      scaler.step(absent);
      CHECK(scaler.skipped() == (step == 0));
      scaler.update();
      auto const expected = step == 0 ? torch::ones({3}) : torch::zeros({3});
      CHECK(torch::equal(weight.value.detach(), expected));
      CHECK(torch::equal(shard.value.detach(), expected));
      CHECK(scaler.get_scale() == 2);
    }
  });
}
