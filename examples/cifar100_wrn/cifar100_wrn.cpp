// SPDX-License-Identifier: MIT
/// WideResNet on CIFAR-100 (or what images there are) over many devices: DDP, mixed precision, early stopping.
//
//   examples/run cifar100_wrn                    alone: one GPU, or all cores
//   examples/run cifar100_wrn --nproc 2          two ranks on this machine
//   torchrun --no-python --nproc-per-node 4 build/release/examples/cifar100_wrn --batch-size 1024 --base-lr 0.04
#include <torch/torch.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "data.hpp"
#include "models/wide_resnet.hpp"
#include "options.hpp"
#include "pardl/ddp.hpp"
#include "pardl/io/atomic_file.hpp"
#include "report.hpp"

namespace cifar100_wrn {

/// "wrn-28-10" as {28, 10}; nothing for anything else.
std::optional<std::pair<int, int>> depth_and_width(std::string_view name) {
  auto const dash = name.rfind('-');
  if (!name.starts_with("wrn-") || dash < 4) return std::nullopt;
  auto const depth = whole_number<int>(name.substr(4, dash - 4)), width = whole_number<int>(name.substr(dash + 1));
  if (!depth || !width) return std::nullopt;
  return std::pair{*depth, *width};
}

/// --model as a network: [B, channels, 32, 32] to [B, classes].
torch::nn::Sequential make_model(std::string const& name, std::int64_t channels, std::int64_t classes) {
  if (name == "seed")
    return torch::nn::Sequential{
        models::GuideWideResNet{models::GuideWideResNetOptions{.classes = classes, .channels = channels}}};
  auto const shape = depth_and_width(name);
  if (!shape)
    throw pardl::ConfigError(
        pardl::sentence("cifar100_wrn", "--model " + name, "it is seed, or wrn-DEPTH-WIDTH as in wrn-28-10"));
  try {
    return torch::nn::Sequential{models::WideResNet{models::WideResNetOptions{
        .depth = shape->first, .widen_factor = shape->second, .classes = classes, .channels = channels}}};
  } catch (std::invalid_argument const& error) {
    throw pardl::ConfigError(pardl::sentence("cifar100_wrn", "--model " + name, error.what()));
  }
}

/// Found out before hours of training, not after them. Rank 0 writes it, so rank 0 looks.
void check_summary(std::filesystem::path const& file) {
  auto const refuse = [&](std::string const& why) {
    throw pardl::ConfigError(pardl::sentence("cifar100_wrn", "--summary " + file.string() + " cannot be written" + why,
                                             "name a file in a folder that exists and that you may write to"));
  };
  if (std::filesystem::is_directory(file)) refuse(": it is a folder");
  try {
    pardl::AtomicFile const probe{file};  // leaves nothing behind unless committed
  } catch (pardl::Error const&) {
    refuse("");
  }
}

/// Images on this rank per step. The guide rounds the global batch down to a multiple of the ranks; so do we, and say
/// so.
std::int64_t batch_per_rank(Options const& options, pardl::ProcessGroup const& world, std::int64_t train_size) {
  auto const per_rank = options.batch_size / world.size();
  if (per_rank < 1)
    throw pardl::ConfigError(pardl::sentence(
        "cifar100_wrn",
        "--batch-size " + std::to_string(options.batch_size) + " over " + std::to_string(world.size()) + " ranks",
        "give at least one image per rank"));
  if (per_rank * world.size() > train_size)
    throw pardl::ConfigError(pardl::sentence(
        "cifar100_wrn",
        std::to_string(train_size) + " training images are fewer than a batch of " + std::to_string(options.batch_size),
        "lower --batch-size or raise --limit-train"));
  return per_rank;
}

int train(Options options, pardl::ProcessGroup const& world) {
  // Ranks of unlike processors must not choose unlike precisions.
  bool const bf16 = pardl::all_sum(world, std::int64_t{has_bf16()}) == world.size();
  settle(options, world.device(), bf16);
  if (world.rank() == 0 && !options.summary.empty()) check_summary(options.summary);
  torch::Device const device = world.device();
  bool const gpu = device.is_cuda();
  auto& settings = at::globalContext();
  settings.setBenchmarkCuDNN(!options.deterministic);
  settings.setDeterministicCuDNN(options.deterministic);
  settings.setDeterministicAlgorithms(options.deterministic, /*warn_only=*/false);

  auto images = load(options, world);
  if (options.limit_train > 0) images.train = images.train.first(options.limit_train);
  auto const per_rank = batch_per_rank(options, world, images.train.size());
  auto const format =
      options.memory_format == "channels-last" ? torch::MemoryFormat::ChannelsLast : torch::MemoryFormat::Contiguous;

  torch::manual_seed(options.seed);  // the same weights everywhere …
  auto net = make_model(options.model, images.train.channels(), images.train.classes());
  net->to(device);
  pardl::to_memory_format(net, format);
  torch::manual_seed(options.seed + 1 + static_cast<std::uint64_t>(world.rank()));  // … but dropout of each rank's own
  pardl::DistributedDataParallel model{net, world, {.gradient_as_bucket_view = true}};

  pardl::Normalize const normalize{images.train.mean(), images.train.stddev()};
  pardl::DistributedSampler const sampler{images.train.size(), world, {.seed = options.seed}};
  pardl::DataLoader const train_loader{images.train,
                                       sampler,
                                       pardl::RandomCrop{32, 4} | pardl::RandomHorizontalFlip{} | normalize,
                                       {.batch_size = per_rank,
                                        .drop_last = true,
                                        .workers = options.workers,
                                        .device = device,
                                        .resident = gpu,
                                        .memory_format = format,
                                        .seed = options.seed}};
  pardl::DataLoader const test_loader{
      images.test,
      pardl::DistributedSampler{images.test.size(), world, {.shuffle = false, .exact = true}},
      normalize,
      {.batch_size = per_rank, .workers = options.workers, .device = device, .resident = gpu, .memory_format = format}};

  auto const precision = options.precision == "fp16" ? torch::kHalf : torch::kBFloat16;
  bool const mixed = options.precision != "fp32";
  pardl::optim::SGD sgd{model.parameters(), {.lr = options.base_lr, .momentum = 0.9, .weight_decay = 5e-4}};
  pardl::GradScaler scaler{{.enabled = options.precision == "fp16"}};
  auto const schedule = pardl::make_lr_schedule(options.schedule, {.steps = options.epochs * train_loader.batches()});
  auto target = pardl::stopper<EpochRecord>(pardl::TargetReached{.metric = &EpochRecord::accuracy,
                                                                 .goal = pardl::Goal::maximize,
                                                                 .target = options.target_accuracy,
                                                                 .patience = options.patience,
                                                                 .name = "validation accuracy"});
  auto limits = pardl::stopper<EpochRecord>(pardl::any_of(
      pardl::Diverged{.metric = &EpochRecord::loss, .name = "validation loss"}, pardl::MaxEpochs{options.epochs}));
  auto training_loss = pardl::stopper(pardl::Diverged{.name = "training loss"});
  // Reading a loss waits for a GPU; a CPU has it already.
  std::int64_t const look_every = gpu ? 25 : 1;

  Report report{world, options};
  report.started(images.train.name(), images.train.size(), images.test.size(), images.hint, per_rank);
  pardl::Progress progress{
      world,
      {.enabled = options.progress == "on" || (options.progress == "auto" && pardl::detect_terminal().interactive)}};

  std::int64_t step = 0;
  for (int epoch = 0;; ++epoch) {
    model.train();
    pardl::Meter meter{device};
    progress.begin_epoch(epoch, train_loader.batches(), options.epochs);
    for (auto [inputs, labels] : train_loader.epoch(epoch)) {
      sgd.set_lr(options.base_lr * schedule(step));
      sgd.zero_grad();
      auto const loss = [&] {
        pardl::Autocast const autocast{device, {.dtype = precision, .enabled = mixed}};
        return torch::nn::functional::cross_entropy(model(inputs), labels);
      }();
      scaler.scale(loss).backward();
      scaler.step(sgd);
      scaler.update();
      meter.add(loss, inputs.size(0));
      // Under fp16 an overflow now and then is the scaler's business, until it has nothing left to scale by.
      if (step % look_every == 0 && training_loss.observe(loss.item<double>()) == pardl::Verdict::fail &&
          (!scaler.is_enabled() || scaler.get_scale() < 1))
        throw pardl::Error(pardl::sentence(
            "cifar100_wrn", world.rank(), world.size(),
            training_loss.reason() + " in epoch " + std::to_string(epoch + 1) + ", step " + std::to_string(step),
            "lower --base-lr, or look at the data"));
      progress.on_batch(inputs.size(0) * world.size());
      ++step;
    }
    auto const trained = meter.reduce(world);  // every rank is through its epoch once this has returned
    progress.end_epoch();
    auto const seen =
        pardl::evaluate(model, test_loader, world, {.autocast = mixed ? std::optional(precision) : std::nullopt});
    EpochRecord const record{.train_loss = trained.loss,
                             .loss = seen.loss,
                             .accuracy = seen.accuracy,
                             .seconds = trained.seconds,
                             .images = trained.samples,
                             .test_images = seen.samples};
    report.epoch(record);
    bool const reached = target.observe(record) == pardl::Verdict::stop;
    auto const verdict = limits.observe(record);
    if (verdict == pardl::Verdict::fail)
      throw pardl::Error(pardl::sentence("cifar100_wrn", limits.reason() + " after epoch " + std::to_string(epoch + 1),
                                         "lower --base-lr"));
    if (reached) report.target_reached();
    if (reached || verdict == pardl::Verdict::stop) break;
  }
  auto const reason = target.reason();
  report.finished(reason.empty() ? limits.reason() : reason);
  return 0;
}

}  // namespace cifar100_wrn

int main(int argc, char** argv) {
  ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);  // what --deterministic needs, before CUDA starts
  return pardl::launch(argc, argv, [](pardl::ProcessGroup world, std::span<char* const> arguments) {
    auto options = cifar100_wrn::parse(arguments.subspan(1), /*print_help=*/world.rank() == 0);
    return options ? cifar100_wrn::train(std::move(*options), world) : 0;
  });
}
