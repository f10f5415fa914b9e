// SPDX-License-Identifier: MIT
/// \file   The command line of parallel_from_scratch.
#pragma once

#include <CLI/CLI.hpp>
#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "option_checks.hpp"
#include "pardl/policy/error.hpp"

namespace parallel_from_scratch {

using option_checks::above_zero;
using option_checks::at_least;
using option_checks::can_be_written;

/// From scratch, then what is built in for the same job.
inline constexpr std::array<char const*, 4> strategies{"param_server", "dp", "ring_all_reduce", "ddp"};

struct Options {
  std::string strategy = "ddp";
  std::int64_t batch_size = 128;
  int epochs = 3;
  double lr = 0.05;
  std::uint64_t seed = 1;
  std::int64_t limit_train = 0;  // 0: all
  std::string data = "auto";
  std::string data_dir = "data";
  int staleness = 0;
  bool keep_going = false;
  std::string summary;

  int ranks = 2;  // or, with dp, devices of the one process
  int devices = 0;
  std::string device;

  bool compare = false;
  int seeds = 5;
  std::string out = "parallel_from_scratch";
};

[[noreturn]] inline void refuse(std::string const& what, std::string const& remedy) {
  throw pardl::ConfigError(pardl::sentence("parallel_from_scratch", what, remedy));
}

/// Whether Fashion-MNIST is in a folder that the user named. FashionMnist::found() goes on to the system's folder,
/// which holds other files perhaps.
[[nodiscard]] inline bool has_fashion_mnist(std::filesystem::path const& root) {
  std::error_code error;
  for (auto const& folder : {root, root / "fashion-mnist", root / "FashionMNIST" / "raw"})
    for (auto const* name : {"train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"})
      if (std::filesystem::exists(folder / name, error)) return true;
  return false;
}

/// Nothing when the user asked for help, which is printed then.
/// \throws pardl::ConfigError for an unknown option or a value that cannot be.
inline std::optional<Options> parse(std::vector<std::string> arguments) {
  Options options;
  int gpus = 0;
  CLI::App app{
      "Trains LeNet on Fashion-MNIST by a parameter server, a ring all-reduce, and what is built in for the same "
      "jobs.",
      "parallel_from_scratch"};
  app.option_defaults()->always_capture_default()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--strategy", options.strategy, "dp is one process that uses all devices, the others a process each")
      ->check(CLI::IsMember(std::vector<std::string>(strategies.begin(), strategies.end())));
  auto* const on_gpus = app.add_option("--n-gpus,--n_gpus", gpus, "train on so many GPUs")->check(at_least(1));
  on_gpus->default_str("");
  app.add_option("--nproc", options.ranks, "ranks on this machine; with dp, devices")
      ->check(at_least(1))
      ->excludes(on_gpus);
  auto* const devices = app.add_option("--devices", options.devices, "dp: of the one process [as --nproc]")
                            ->check(at_least(1))
                            ->default_str("");
  app.add_option("--device", options.device, "cpu or cuda [cuda with --n-gpus, else cpu]")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->default_str("");
  app.add_option("--batch-size,--batch_size", options.batch_size, "images a step, over all ranks")->check(at_least(1));
  app.add_option("--epochs", options.epochs, "over the training images")->check(at_least(1));
  app.add_option("--lr", options.lr, "learning rate of SGD with momentum 0.9")->check(above_zero());
  app.add_option("--seed", options.seed, "of weights and order")->check(at_least(0));
  app.add_option("--limit-train", options.limit_train, "the first so many training images [all; 20000 with --compare]")
      ->check(at_least(1))
      ->default_str("");
  app.add_option("--data", options.data, "auto: Fashion-MNIST where it is, else made images")
      ->check(CLI::IsMember({"auto", "fashion-mnist", "synthetic"}));
  auto* const data_dir = app.add_option("--data-dir", options.data_dir, "folder with Fashion-MNIST's files")
                             ->check(CLI::ExistingDirectory);
  app.add_option("--staleness", options.staleness, "param_server: steps that a worker may be ahead of the slowest")
      ->check(at_least(0));
  app.add_flag("--keep-going", options.keep_going, "param_server: train on without workers that die");
  app.add_option("--summary", options.summary, "write the run as JSON to this file")->check(can_be_written());
  app.add_flag("--compare", options.compare, "run all strategies with several seeds and sizes, and report on them");
  auto* const seeds =
      app.add_option("--seeds", options.seeds, "with --compare: runs of each strategy")->check(at_least(2));
  auto* const out = app.add_option("--out", options.out, "with --compare: folder of tables, pictures and report");
  app.add_option("--timeout", "of one operation, in seconds [600]")->check(at_least(1))->default_str("");
  auto* const backend = app.add_option("--backend", "shm, gloo or nccl, instead of what fits the device")
                            ->check(CLI::IsMember({"shm", "gloo", "nccl"}))
                            ->default_str("");

  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(std::move(reversed));
  } catch (CLI::CallForHelp const&) {
    std::fputs(app.help().c_str(), stdout);
    return std::nullopt;
  } catch (CLI::ParseError const& error) {
    refuse(error.what(), "see --help");
  }
  if (gpus > 0) {
    if (options.device == "cpu") refuse("--n-gpus with --device cpu", "give --nproc for ranks on the CPU");
    options.ranks = gpus;
    options.device = "cuda";
  }
  if (options.device.empty()) options.device = "cpu";
  if (devices->count() > 0) {
    if (options.strategy != "dp" || options.compare)
      refuse("--devices without --strategy dp", "give --nproc: each device has a rank of its own");
    options.ranks = options.devices;
  }
  if (options.strategy == "dp" && backend->count() > 0)
    refuse("--backend with --strategy dp", "leave it out: one process has nobody to send to");
  if (data_dir->count() > 0 && options.data != "synthetic" && !has_fashion_mnist(options.data_dir))
    refuse("no Fashion-MNIST in --data-dir " + options.data_dir + " (train-images-idx3-ubyte, plain or .gz, and so on)",
           "put its four files there, or leave out --data-dir for where the system has them");
  bool const served = options.strategy == "param_server" || options.compare;
  if (served && options.ranks < 2)
    refuse("param_server on " + std::to_string(options.ranks) + " rank", "give --nproc 2 or more: one of them serves");
  if (!served && options.staleness > 0) refuse("--staleness with --strategy " + options.strategy, "leave it out");
  if (!served && options.keep_going) refuse("--keep-going with --strategy " + options.strategy, "leave it out");
  if (!options.compare && (seeds->count() > 0 || out->count() > 0))
    refuse(std::string(seeds->count() > 0 ? "--seeds" : "--out") + " without --compare", "add --compare");
  if (options.compare)
    for (auto const* name : {"--strategy", "--seed", "--summary", "--staleness", "--keep-going"})
      if (app.get_option(name)->count() > 0)
        refuse(std::string(name) + " with --compare", "leave it out: all strategies run, with seeds from 1 on");
  if (options.compare && options.epochs < 2)
    refuse("--compare with --epochs " + std::to_string(options.epochs),
           "give 2 or more: the first epoch warms up, and its time does not count");
  if (options.out.empty()) refuse("--out \"\"", "name a folder");
  // Rounded down, a batch of the server's workers would be another one than that of all ranks.
  auto const shares = std::lcm<std::int64_t>(options.ranks, options.ranks - 1);
  if (options.compare && options.batch_size % shares != 0)
    refuse("--compare with --batch-size " + std::to_string(options.batch_size) + " on " +
               std::to_string(options.ranks) + " ranks, which a parameter server divides among " +
               std::to_string(options.ranks - 1),
           "give a multiple of " + std::to_string(shares) + ", so that all strategies take the same batches");
  if (options.compare && options.limit_train == 0) options.limit_train = 20'000;
  return options;
}

}  // namespace parallel_from_scratch
