// SPDX-License-Identifier: MIT
// PowerSGD, the quantisation hooks and post-local SGD beside PyTorch's own, live, on the same LibTorch and machine:
// gradients and parameters of every rank after every step, from the random start that PyTorch draws.
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "hook_support.hpp"
#include "pardl/train/distributed_data_parallel.hpp"
#include "pardl/train/optim.hpp"
#include "pardl/train/post_local_sgd.hpp"
#include "pardl/train/power_sgd.hpp"
#include "pardl/train/quantization_hooks.hpp"
#include "support/python_trace.hpp"
#include "support/ranks.hpp"

using namespace ddp_test;
using pardl::DistributedDataParallel;
using pardl::PeriodicModelAverager;
using pardl::ProcessGroup;
using pardl::testing::Trace;
using pardl::testing::with_ranks;
namespace hooks = pardl::comm_hooks;

namespace {

using Model = DistributedDataParallel<torch::nn::Sequential>;

double option(Trace const& options, char const* name, double otherwise) {
  return options.contains(name) ? options.at(name).toDouble() : otherwise;
}
std::int64_t whole_option(Trace const& options, char const* name, double otherwise) {
  return static_cast<std::int64_t>(option(options, name, otherwise));
}

hooks::PowerSgd power_sgd_of(Trace const& o) {
  return hooks::power_sgd({.matrix_approximation_rank = whole_option(o, "matrix_approximation_rank", 1),
                           .start_powerSGD_iter = whole_option(o, "start_powerSGD_iter", 1000),
                           .min_compression_rate = option(o, "min_compression_rate", 2),
                           .use_error_feedback = option(o, "use_error_feedback", 1) != 0,
                           .warm_start = option(o, "warm_start", 1) != 0,
                           .orthogonalization_epsilon = option(o, "orthogonalization_epsilon", 0),
                           .random_seed = static_cast<std::uint32_t>(option(o, "random_seed", 0)),
                           .batch_tensors_with_same_shape = option(o, "batch_tensors_with_same_shape", 0) != 0});
}

void register_hook(Model& model, std::string const& kind, Trace const& o) {
  if (kind == "power_sgd") model.register_comm_hook(power_sgd_of(o));
  if (kind == "power_sgd_fp16") model.register_comm_hook(hooks::fp16_compress(power_sgd_of(o)));
  if (kind == "per_tensor") model.register_comm_hook(hooks::quantization_per_tensor());
  if (kind == "per_channel")
    model.register_comm_hook(hooks::quantization_per_channel({.bucket_size = whole_option(o, "bucket_size", 512)}));
  if (kind == "post_local")
    model.register_comm_hook(hooks::post_local_sgd({.start_localSGD_iter = whole_option(o, "warmup_steps", 0)}));
}

/// How far results are apart: in the number of values, and over each tensor's largest.
struct Distance {
  std::int64_t differ = 0, of = 0;
  double worst = 0;
  void see(torch::Tensor const& ours, torch::Tensor const& theirs) {
    differ += ours.ne(theirs).sum().item<std::int64_t>();
    of += ours.numel();
    worst = std::max(worst, gap(ours, theirs));
  }
};

template <class O>
Distance repeat(Trace const& trace, ProcessGroup const& world, torch::nn::Sequential& net, O&& sgd) {
  auto const rank = static_cast<std::size_t>(world.rank());
  auto const options = trace.at("options").toGenericDict();
  pardl::DistributedDataParallelOptions ddp;
  if (options.contains("bucket_cap_mb")) ddp.bucket_cap_mib = options.at("bucket_cap_mb").toDouble();
  Model model{net, world, ddp};
  register_hook(model, trace.at("kind").toStringRef(), options);
  auto const inputs = pardl::testing::tensors(trace.at("inputs"))[rank];
  auto const gradients_there = trace.at("gradients").toList().get(rank).toList();
  auto const after_there = trace.at("after").toList().get(rank).toList();
  auto const targets = torch::arange(inputs.size(1), torch::kInt64) % 10;
  Distance distance;
  for (std::int64_t s = 0; s < inputs.size(0); ++s) {
    sgd.zero_grad();
    torch::nn::functional::cross_entropy(model(inputs[s]), targets).backward();
    auto const there = pardl::testing::tensors(gradients_there.get(static_cast<std::size_t>(s)));
    auto const here = gradients(*net);
    for (std::size_t i = 0; i < here.size(); ++i) distance.see(here[i], there[i]);
    sgd.step();
    auto const later = pardl::testing::tensors(after_there.get(static_cast<std::size_t>(s)));
    for (std::size_t i = 0; i < later.size(); ++i) distance.see(net->parameters()[i].detach(), later[i]);
  }
  return distance;
}

Distance repeat(Trace const& trace, ProcessGroup const& world) {
  using namespace torch::nn;
  Sequential net(Linear(20, 64), Tanh(), Linear(64, 64), ReLU(), Linear(64, 64), Tanh(), Linear(64, 10));
  auto const weights = pardl::testing::tensors(trace.at("weights"));
  auto const parameters = net->parameters();
  {
    torch::NoGradGuard const no_grad;
    for (std::size_t i = 0; i < weights.size(); ++i) torch::Tensor(parameters[i]).copy_(weights[i]);
  }
  pardl::optim::SGD sgd{parameters, {.lr = trace.at("lr").toDouble(), .fused = false}};
  if (trace.at("kind").toStringRef() != "post_local") return repeat(trace, world, net, sgd);
  auto const o = trace.at("options").toGenericDict();
  return repeat(trace, world, net,
                pardl::optim::PostLocalSgd{
                    std::move(sgd), PeriodicModelAverager{world,
                                                          {.period = whole_option(o, "period", 1),
                                                           .warmup_steps = whole_option(o, "warmup_steps", 0)}}});
}

/// Zero where nothing differs by design. What PowerSGD sends whole does: we divide it before the sum, so that it does
/// not overflow, and PyTorch counts its distance from the mean as an error. Measured: 1.5e-6, and 5.9e-3 in float16.
double tolerance_of(Trace const& trace) {
  auto const kind = trace.at("kind").toStringRef();
  auto const options = trace.at("options").toGenericDict();
  auto const ranks = trace.at("ranks").toInt();
  bool const all_compressed = option(options, "min_compression_rate", 2) <= 0.5;
  if (kind.find("power_sgd") != 0 || all_compressed || ranks == 1) return 0;
  if (ranks == 2 && option(options, "use_error_feedback", 1) == 0) return 0;  // halves are exact
  return kind == "power_sgd_fp16" ? 2e-2 : 1e-5;
}

}  // namespace

TEST_CASE("hooks and averagers train as PyTorch's do") {
  auto const script = std::filesystem::path(__FILE__).parent_path() / "comm_hooks_parity.py";
  auto const trace = pardl::testing::python_trace(script);
  if (!trace) return;
  for (c10::IValue const& item : trace->at("cases").toList()) {
    auto const one = item.toGenericDict();
    auto const kind = one.at("kind").toStringRef(), name = kind + " " + one.at("name").toStringRef();
    auto const ranks = static_cast<int>(one.at("ranks").toInt());
    std::vector<Distance> distances(static_cast<std::size_t>(ranks));
    auto const tolerance = tolerance_of(one);
    with_ranks(ranks,
               [&](ProcessGroup world) { distances[static_cast<std::size_t>(world.rank())] = repeat(one, world); },
               {.backend = ranks == 1 ? "" : "gloo"});  // PyTorch's, whose sums have its order
    for (auto const& [differ, of, worst] : distances) {
      CAPTURE(name);
      CAPTURE(ranks);
      MESSAGE(name << ", " << ranks << " ranks: " << differ << " of " << of << " differ, by " << worst);
      CHECK(of > 0);
      CHECK(worst <= tolerance);
      if (tolerance == 0) CHECK(differ == 0);
    }
  }
}
