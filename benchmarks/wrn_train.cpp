// SPDX-License-Identifier: MIT
/// Images per second of training a wide residual network, loading and augmenting included.
///
/// --config cpu   WRN-16-1 over --nproc ranks of one thread. Its peers are wrn_train.py --style seed (the guide's
///                script) and --style equal (same precision and layout, no loading).
/// --config seed  the guide's configuration: its network, 512 images a step over all ranks, float16 with a GradScaler,
/// a
///                constant rate, 50,000 images, whole epochs. For GPUs; --device cpu is a trial in float32. Peers:
///                wrn_train.py --config seed with the same two styles. --variant says how we do it:
///   resident     as examples/cifar100_wrn: the images on the GPU, channels_last, cuDNN chooses by timing, gradients
///   are
///                views of the buckets
///   prefetch     the same, but threads gather batches in host memory, and bytes are copied to the GPU
///   plain        prefetch with the guide's settings only: NCHW, cuDNN's and DDP's defaults
#include <ATen/Context.h>
#include <torch/cuda.h>

#include <CLI/CLI.hpp>
#include <optional>

#include "common.hpp"
#include "models/wide_resnet.hpp"

namespace {

/// The command line; what is not given is the configuration's choice.
struct Options {
  std::string config = "cpu", variant, precision;
  std::int64_t batch_size = 512;  // of all ranks together
  std::optional<std::int64_t> images, warm_up, steps;
  std::optional<int> workers;
  int repeat = 1;
};

struct Plan {
  std::string benchmark, variant;  // of the CSV line
  std::int64_t images = 0;
  std::optional<std::int64_t> warm_up, steps;  // none: one epoch, and two
  int workers = 0;
  bool resident = false;
  bool tuned = true;  // channels_last, bucket views and cuDNN's timing; false: LibTorch's defaults
  std::optional<torch::ScalarType> half;
};

void refuse(std::string const& what, std::string const& remedy) {
  throw pardl::ConfigError(pardl::sentence("wrn_train", what, remedy));
}

Plan plan_for(Options const& options, torch::Device device) {
  bool const guide = options.config == "seed", gpu = device.is_cuda();
  if (!guide && gpu) refuse("--config cpu on " + device.str(), "add --device cpu, or use --config seed");
  if (!guide && !options.variant.empty()) refuse("--variant with --config cpu", "it belongs to --config seed");
  auto const precision = options.precision.empty() ? (gpu ? "fp16" : "fp32") : options.precision;
  if (precision == "fp16" && !gpu) refuse("--precision fp16 on a CPU", "use fp32 or bf16");

  Plan plan;
  plan.warm_up = options.warm_up;
  plan.steps = options.steps;
  if (precision != "fp32") plan.half = precision == "fp16" ? torch::kHalf : torch::kBFloat16;
  if (guide) {
    auto const variant = options.variant.empty() ? "resident" : options.variant;
    plan.benchmark = gpu ? "wrn_train_gpu" : "wrn_train_trial";
    plan.variant = "pardl-" + variant + "-" + precision;
    plan.images = options.images.value_or(50'000);
    plan.workers = options.workers.value_or(8);
    plan.resident = variant == "resident";
    plan.tuned = variant != "plain";
  } else {
    plan.benchmark = "wrn_train";
    plan.variant = "pardl-" + precision;
    plan.images = options.images.value_or(8'192);
    plan.workers = options.workers.value_or(1);
    if (!plan.warm_up) plan.warm_up = 3;
    if (!plan.steps) plan.steps = 12;
  }
  return plan;
}

template <class Net>
int run(pardl::ProcessGroup const& world, Options const& options, Plan const& plan, Net net) {
  auto const device = world.device();
  auto const format = plan.tuned ? torch::MemoryFormat::ChannelsLast : torch::MemoryFormat::Contiguous;
  at::globalContext().setBenchmarkCuDNN(plan.tuned);
  net->to(device);
  pardl::to_memory_format(net, format);
  pardl::DistributedDataParallel model{net, world, {.gradient_as_bucket_view = plan.tuned}};
  pardl::optim::SGD sgd{model.parameters(), {.lr = 0.01, .momentum = 0.9, .weight_decay = 5e-4}};
  pardl::GradScaler scaler{{.enabled = plan.half == torch::kHalf}};

  auto const images = benchmarks::synthetic_images(plan.images);
  pardl::DistributedSampler const sampler{images.size(), world, {.seed = 7}};
  pardl::DataLoader const loader{images,
                                 sampler,
                                 benchmarks::augmentation(images),
                                 {.batch_size = options.batch_size / world.size(),
                                  .drop_last = true,
                                  .workers = plan.workers,
                                  .device = device,
                                  .resident = plan.resident,
                                  .memory_format = format}};
  if (loader.batches() < 1) refuse("fewer images than one step takes", "raise --images or lower --batch-size");
  benchmarks::Forever batches{loader};

  auto const train = [&](std::int64_t steps) {
    for (std::int64_t step = 0; step < steps; ++step) {
      auto const [input, target] = batches.next();
      sgd.zero_grad();
      auto const loss = [&] {
        pardl::Autocast const amp{device, {.dtype = plan.half, .enabled = plan.half.has_value()}};
        return torch::nn::functional::cross_entropy(model(input), target);
      }();
      scaler.scale(loss).backward();
      scaler.step(sgd);
      scaler.update();
    }
    pardl::barrier(world);
    if (device.is_cuda()) torch::cuda::synchronize(device.index());  // so far the work is queued, not done
  };
  train(plan.warm_up.value_or(loader.batches()));
  auto const steps = plan.steps.value_or(2 * loader.batches());
  auto const elapsed = benchmarks::seconds([&] { train(steps); });
  if (world.rank() == 0)
    benchmarks::report(plan.benchmark.c_str(), plan.variant, world.size(),
                       static_cast<double>(steps * loader.batch_size() * world.size()) / elapsed, "images/s",
                       options.repeat);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return pardl::launch(argc, argv, [](pardl::ProcessGroup world, int count, char** arguments) {
    Options options;
    CLI::App app{"Images per second of training; --nproc N starts N ranks."};
    app.add_option("--config", options.config, "cpu: WRN-16-1; seed: the guide's network and settings, for a GPU")
        ->check(CLI::IsMember({"cpu", "seed"}))
        ->capture_default_str();
    app.add_option("--variant", options.variant, "with --config seed [resident]")
        ->check(CLI::IsMember({"resident", "prefetch", "plain"}));
    app.add_option("--precision", options.precision, "[GPU: fp16, CPU: fp32]")
        ->check(CLI::IsMember({"fp32", "fp16", "bf16"}));
    app.add_option("--batch-size", options.batch_size, "of all ranks together")->capture_default_str();
    app.add_option("--images", options.images, "in the data set [cpu: 8192, seed: 50000]");
    app.add_option("--workers", options.workers, "loader threads of each rank [cpu: 1, seed: 8]");
    app.add_option("--warm-up", options.warm_up, "steps before the clock starts [cpu: 3, seed: an epoch]");
    app.add_option("--steps", options.steps, "steps that are timed [cpu: 12, seed: two epochs]");
    app.add_option("--repeat", options.repeat, "number of this repetition, for the CSV line")->capture_default_str();
    CLI11_PARSE(app, count, arguments);

    torch::set_num_threads(1);
    torch::manual_seed(1);
    auto const plan = plan_for(options, world.device());
    if (options.config == "seed") return run(world, options, plan, models::GuideWideResNet{});
    return run(world, options, plan,
               models::WideResNet{models::WideResNetOptions{.depth = 16, .widen_factor = 1, .classes = 10}});
  });
}
