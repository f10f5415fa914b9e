// SPDX-License-Identifier: MIT
/// \file   The command line of cifar100_wrn, and the defaults that fit a device.
#pragma once

#include <ATen/cpu/Utils.h>
#include <torch/types.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "option_checks.hpp"
#include "pardl/comm/launch.hpp"
#include "pardl/policy/error.hpp"

namespace cifar100_wrn {

using option_checks::above_zero;
using option_checks::at_least;
using option_checks::can_be_written;
using option_checks::whole_number;

/// What the user asked for; what was not given is filled in by `settle`.
struct Options {
  std::string data = "auto";
  std::string data_dir = "data";
  bool download = false;
  std::string model;
  std::int64_t batch_size = 512;
  int epochs = 0;
  double base_lr = 0;
  std::string schedule;
  double target_accuracy = -1;  // 0 is a target, too
  int patience = 2;
  std::string precision = "auto";
  std::string memory_format = "channels-last";
  std::uint64_t seed = 1;
  bool deterministic = false;
  std::int64_t limit_train = 0;
  int workers = 2;
  std::string progress = "auto";
  std::string summary;
};

/// True where the processor multiplies bfloat16 in hardware; elsewhere LibTorch emulates it, slower than float32.
inline bool has_bf16() {
  for (auto const& [name, value] : at::cpu::get_cpu_capabilities())
    if (name.find("bf16") != std::string::npos && value.isBool() && value.toBool()) return true;
  return false;
}

/// The guide's settings on a GPU; on a CPU a network and a schedule that learn real images in minutes: 100 s an epoch
/// on two cores of 2019 without bfloat16.
///
/// \param bf16  every rank's processor has it.
inline void settle(Options& options, torch::Device device, bool bf16) {
  bool const gpu = device.is_cuda();
  if (options.model.empty()) options.model = gpu ? "seed" : "wrn-16-1";
  if (options.epochs == 0) options.epochs = gpu ? 5 : 3;
  if (options.schedule.empty()) options.schedule = gpu ? "constant" : "one-cycle";
  if (options.base_lr == 0) options.base_lr = gpu ? 0.01 : 0.4;
  if (options.target_accuracy < 0) options.target_accuracy = gpu ? 0.85 : 0.95;
  if (options.precision == "auto") options.precision = gpu ? "fp16" : bf16 ? "bf16" : "fp32";
  if (options.precision == "fp16" && !gpu)
    throw pardl::ConfigError(pardl::sentence("cifar100_wrn", "--precision fp16 on a CPU",
                                             "CPUs have no fast half precision; use bf16 or fp32, or --device cuda"));
}

/// Nothing when the user asked for help, which `print_help` then has printed.
/// \throws pardl::ConfigError for an unknown option or a value that cannot be.
inline std::optional<Options> parse(std::span<char* const> arguments, bool print_help) {
  Options options;
  CLI::App app{"Trains a WideResNet on CIFAR-100 (or CIFAR-10, Fashion-MNIST, made images) over several ranks."};
  app.option_defaults()->always_capture_default()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--data", options.data, "auto: CIFAR-100 where its files are, else Fashion-MNIST, else synthetic")
      ->check(CLI::IsMember({"auto", "cifar100", "cifar10", "fashion-mnist", "synthetic"}));
  app.add_option("--data-dir", options.data_dir, "folder that holds, or gets, the files of the data set");
  app.add_flag("--download", options.download, "fetch CIFAR into --data-dir (once a host; checked against its MD5)");
  app.add_option("--model", options.model, "seed (the guide's network) or wrn-DEPTH-WIDTH [GPU: seed, CPU: wrn-16-1]");
  app.add_option("--batch-size", options.batch_size, "images per step, over all ranks")->check(at_least(1));
  app.add_option("--epochs", options.epochs, "at most so many epochs [GPU: 5, CPU: 3]")
      ->check(at_least(1))
      ->default_str("");
  app.add_option("--base-lr", options.base_lr, "learning rate; the peak, with one-cycle [GPU: 0.01, CPU: 0.4]")
      ->check(above_zero())
      ->default_str("");
  app.add_option("--schedule", options.schedule, "of the learning rate, per batch [GPU: constant, CPU: one-cycle]")
      ->check(CLI::IsMember({"constant", "cosine", "one-cycle"}));
  app.add_option("--target-accuracy", options.target_accuracy,
                 "stop after --patience epochs at or above it [GPU: 0.85, CPU: 0.95]")
      ->check(CLI::Range(0.0, 1.0))
      ->default_str("");
  app.add_option("--patience", options.patience, "epochs in a row at the target before stopping")->check(at_least(1));
  app.add_option("--precision", options.precision, "auto: fp16 on a GPU, bf16 where the CPU has it, else fp32")
      ->check(CLI::IsMember({"auto", "fp32", "fp16", "bf16"}));
  app.add_option("--memory-format", options.memory_format, "of images and weights")
      ->check(CLI::IsMember({"channels-last", "contiguous"}));
  app.add_option("--seed", options.seed, "of weights, order, augmentation and dropout")->check(at_least(0));
  app.add_flag("--deterministic", options.deterministic, "the same bits again on a GPU too, at some cost");
  app.add_option("--limit-train", options.limit_train, "use the first so many training images [all]")
      ->check(at_least(1))
      ->default_str("");
  app.add_option("--workers", options.workers, "loader threads per rank; 0 loads between the steps")
      ->check(at_least(0));
  app.add_option("--progress", options.progress, "auto: a bar on a terminal, else none")
      ->check(CLI::IsMember({"auto", "on", "off"}));
  app.add_option("--summary", options.summary, "write the run as JSON to this file")->check(can_be_written());
  app.footer(std::string(pardl::launch_help));

  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(std::move(reversed));
  } catch (CLI::CallForHelp const&) {
    if (print_help) std::fputs(app.help().c_str(), stdout);
    return std::nullopt;
  } catch (CLI::ParseError const& error) {
    throw pardl::ConfigError(pardl::sentence("cifar100_wrn", error.what(), "see --help"));
  }
  return options;
}

}  // namespace cifar100_wrn
