// SPDX-License-Identifier: MIT
/// A training step of DistributedDataParallel beside the same step without it, in alternating blocks of one process.
///
/// With one rank the group is a world of one. With several, each rank steps its own copy alone while the others step
/// theirs, so that both sides share the memory's bandwidth alike; then all step together, without and with
/// gradient_as_bucket_view. Its peer is ddp_step.py. Over shared memory (--backend shm) a variant has that in its name.
#include <CLI/CLI.hpp>

#include "common.hpp"
#include "models/convnet2.hpp"
#include "models/wide_resnet.hpp"

namespace {

struct Options {
  std::string model = "mlp";
  int blocks = 0;
  int steps = 0;
  int repeat = 1;
};

/// A block of steps, and what it trains.
template <class Model>
class Trainer {
 public:
  Trainer(Model model, torch::Tensor input, torch::Tensor target)
      : model_(std::move(model)),
        sgd_(model_.parameters(), {.lr = 0.01, .momentum = 0.9, .weight_decay = 5e-4}),
        input_(std::move(input)),
        target_(std::move(target)) {}

  void steps(int count) {
    for (int step = 0; step < count; ++step) {
      sgd_.zero_grad();
      torch::nn::functional::cross_entropy(model_.forward(input_), target_).backward();
      sgd_.step();
    }
  }

 private:
  Model model_;
  pardl::optim::SGD sgd_;
  torch::Tensor input_, target_;
};

/// A bare module with the members that Trainer asks for.
template <class Holder>
struct Plain {
  Holder net;
  auto parameters() { return net->parameters(); }
  torch::Tensor forward(torch::Tensor const& input) { return net->forward(input); }
};

/// Microseconds a step, of the slowest rank; all ranks begin together.
template <class T>
double slowest(pardl::ProcessGroup const& world, T& trainer, int steps) {
  pardl::barrier(world);
  torch::Tensor const elapsed = torch::tensor(benchmarks::seconds([&] { trainer.steps(steps); }), torch::kFloat64);
  pardl::all_reduce(world, elapsed, pardl::ReduceOp::max).wait();
  return elapsed.item<double>() / steps * 1e6;
}

/// So many steps and blocks take half a minute or less.
struct Usual {
  int steps, blocks;
};

/// `net` makes the model anew for each way of training it.
template <class Net>
void measure(pardl::ProcessGroup const& world, Options const& options, Net net, torch::Tensor const& input,
             Usual usual) {
  int const steps = options.steps ? options.steps : usual.steps,
            blocks = options.blocks ? options.blocks : usual.blocks;
  auto const target = torch::arange(input.size(0), torch::kLong) % 10;
  Trainer plain{Plain<decltype(net())>{net()}, input, target};
  Trainer ddp{pardl::DistributedDataParallel{net(), world}, input, target};
  Trainer view{pardl::DistributedDataParallel{net(), world, {.gradient_as_bucket_view = true}}, input, target};
  std::vector<double> plain_us, ddp_us, view_us, ddp_ratio, view_ratio;
  for (int block = -1; block < blocks; ++block) {
    auto const alone = slowest(world, plain, steps), together = slowest(world, ddp, steps),
               viewed = slowest(world, view, steps);
    if (block < 0) continue;  // warm-up: kernels chosen, buckets rebuilt
    plain_us.push_back(alone);
    ddp_us.push_back(together);
    view_us.push_back(viewed);
    ddp_ratio.push_back(together / alone);
    view_ratio.push_back(viewed / alone);
  }
  if (world.rank() != 0) return;
  auto const line = [&](char const* variant, std::vector<double> const& values, char const* unit) {
    auto const name = options.model + (world.backend() == "shm" ? "-shm" : "") + variant;
    benchmarks::report("ddp_step", name, world.size(), benchmarks::median(values), unit, options.repeat);
  };
  line("-plain", plain_us, "us");
  line("-ddp", ddp_us, "us");
  line("-ddp-overhead", ddp_ratio, "ratio");
  line("-view", view_us, "us");
  line("-view-overhead", view_ratio, "ratio");
}

torch::nn::Sequential mlp() {
  return torch::nn::Sequential{torch::nn::Linear{784, 256}, torch::nn::ReLU{}, torch::nn::Linear{256, 10}};
}

models::ConvNet2 convnet2() { return models::ConvNet2{models::ConvNet2Options{}}; }

models::WideResNet wrn() {
  models::WideResNet net{models::WideResNetOptions{.depth = 16, .widen_factor = 1, .classes = 10}};
  pardl::to_memory_format(net, torch::MemoryFormat::ChannelsLast);
  return net;
}

}  // namespace

int main(int argc, char** argv) {
  return pardl::launch(argc, argv, [](pardl::ProcessGroup world, int count, char** arguments) {
    Options options;
    CLI::App app{"Microseconds a step of DDP and of the same step without it; --nproc N starts N ranks."};
    app.add_option("--model", options.model)->check(CLI::IsMember({"mlp", "convnet2", "wrn"}))->capture_default_str();
    app.add_option("--blocks", options.blocks, "of each kind; medians are over them; 0: by the model");
    app.add_option("--steps", options.steps, "of a block; 0: by the model");
    app.add_option("--repeat", options.repeat, "number of this repetition, for the CSV line")->capture_default_str();
    CLI11_PARSE(app, count, arguments);

    torch::set_num_threads(1);
    torch::manual_seed(1);
    if (options.model == "mlp") {
      measure(world, options, mlp, torch::rand({32, 784}), {.steps = 400, .blocks = 10});
    } else if (options.model == "convnet2") {
      measure(world, options, convnet2, torch::rand({32, 1, 28, 28}), {.steps = 4, .blocks = 10});
    } else {
      auto const images = torch::rand({256, 3, 32, 32}).contiguous(torch::MemoryFormat::ChannelsLast);
      measure(world, options, wrn, images, {.steps = 2, .blocks = 6});
    }
    return 0;
  });
}
