// SPDX-License-Identifier: MIT
/// Images per second of training WRN-16-1 over --nproc ranks of one thread, loading and augmenting included.
///
/// Its peers are wrn_train.py --style seed (the guide's script) and --style equal (same precision and layout, no
/// loading).
#include <CLI/CLI.hpp>

#include "common.hpp"
#include "models/wide_resnet.hpp"

namespace {

struct Options {
  bool bf16 = false;
  std::int64_t batch_size = 512;  // of all ranks together
  std::int64_t images = 8192;
  int workers = 1;
  int warm_up = 3;
  int steps = 12;
  int repeat = 1;
};

int run(pardl::ProcessGroup const& world, Options const& options) {
  torch::set_num_threads(1);
  torch::manual_seed(1);
  models::WideResNet net{models::WideResNetOptions{.depth = 16, .widen_factor = 1, .classes = 10}};
  pardl::to_memory_format(net, torch::MemoryFormat::ChannelsLast);
  pardl::DistributedDataParallel model{net, world, {.gradient_as_bucket_view = true}};
  pardl::optim::SGD sgd{model.parameters(), {.lr = 0.01, .momentum = 0.9, .weight_decay = 5e-4}};

  auto const images = benchmarks::synthetic_images(options.images);
  pardl::DistributedSampler const sampler{images.size(), world, {.seed = 7}};
  pardl::DataLoader const loader{images,
                                 sampler,
                                 benchmarks::augmentation(images),
                                 {.batch_size = options.batch_size / world.size(),
                                  .drop_last = true,
                                  .workers = options.workers,
                                  .memory_format = torch::MemoryFormat::ChannelsLast}};
  benchmarks::Forever batches{loader};

  auto const train = [&](int steps) {
    for (int step = 0; step < steps; ++step) {
      auto const [input, target] = batches.next();
      sgd.zero_grad();
      auto const loss = [&] {
        pardl::Autocast const amp{world.device(), {.dtype = torch::kBFloat16, .enabled = options.bf16}};
        return torch::nn::functional::cross_entropy(model(input), target);
      }();
      loss.backward();
      sgd.step();
    }
    pardl::barrier(world);
  };
  train(options.warm_up);
  auto const elapsed = benchmarks::seconds([&] { train(options.steps); });
  if (world.rank() == 0)
    benchmarks::report("wrn_train", options.bf16 ? "pardl-bf16" : "pardl-fp32", world.size(),
                       static_cast<double>(options.steps * loader.batch_size() * world.size()) / elapsed, "images/s",
                       options.repeat);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return pardl::launch(argc, argv, [](pardl::ProcessGroup world, int count, char** arguments) {
    Options options;
    std::string precision = "fp32";
    CLI::App app{"Images per second of training WRN-16-1; --nproc N starts N ranks."};
    app.add_option("--precision", precision)->check(CLI::IsMember({"fp32", "bf16"}))->capture_default_str();
    app.add_option("--batch-size", options.batch_size, "of all ranks together")->capture_default_str();
    app.add_option("--images", options.images, "in the data set")->capture_default_str();
    app.add_option("--workers", options.workers, "loader threads of each rank")->capture_default_str();
    app.add_option("--warm-up", options.warm_up, "steps before the clock starts")->capture_default_str();
    app.add_option("--steps", options.steps, "steps that are timed")->capture_default_str();
    app.add_option("--repeat", options.repeat, "number of this repetition, for the CSV line")->capture_default_str();
    CLI11_PARSE(app, count, arguments);
    options.bf16 = precision == "bf16";
    return run(world, options);
  });
}
