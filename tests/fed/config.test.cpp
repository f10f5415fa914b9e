// SPDX-License-Identifier: MIT
#include "pardl/fed/config.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "pardl/fed/config_keys.hpp"
#include "pardl/fed/config_rules.hpp"
#include "pardl/fed/config_yaml.hpp"
#include "support/temporary_folder.hpp"

using pardl::fed::apply_overrides;
using pardl::fed::check_config;
using pardl::fed::Config;
using pardl::fed::parse_config;
using pardl::fed::to_yaml;
using Words = std::vector<std::string>;

namespace {

bool says(std::string const& text, std::string_view part) { return text.find(part) != std::string::npos; }

std::string refusal_of_yaml(std::string_view text) {
  return pardl::testing::what_of<pardl::ConfigError>([&] { (void)parse_config(text, "job.yaml"); });
}

// The two files of FederatedScope's page on parallelization, as they stand there.
constexpr std::string_view first_file = R"(use_gpu: True
backend: 'torch'
device: 0
early_stop:
  patience: 5
seed: 12345
federate:
  mode: standalone
  client_num: 100
  total_round_num: 20
  sample_client_rate: 0.2
  share_local_model: False
  process_num: 4 # run 4 processes simultaneously
...
)";
constexpr std::string_view second_file = R"(use_gpu: True
device: 0
early_stop:
  patience: 5
seed: 12345
federate:
  mode: standalone
  client_num: 100
  total_round_num: 10
  sample_client_rate: 0.4
  share_local_model: False
  # use StandaloneMultiGPURunner with 8 GPUs
  process_num: 8
  # use StandaloneRunner
  # process_num: 1

data:
  root: data/
  type: femnist
  splits: [0.6,0.2,0.2]
  batch_size: 10
  subsample: 0.05
  num_workers: 0
  transform: [['ToTensor'], ['Normalize', {'mean': [0.1307], 'std': [0.3081]}]]
model:
  type: convnet2
  hidden: 2048
  out_channels: 62
train:
  local_update_steps: 1
  batch_or_epoch: epoch
  optimizer:
    lr: 0.01
    weight_decay: 0.0
grad:
  grad_clip: 5.0
criterion:
  type: CrossEntropyLoss
trainer:
  type: cvtrainer
eval:
  freq: 10
  metrics: ['acc', 'correct']
)";

}  // namespace

// ---- files ---------------------------------------------------------------------------------------------------------

TEST_CASE("the seed's first file is read as it stands, with YAML's end of document") {
  Config expected;
  expected.use_gpu = true;
  expected.device = 0;
  expected.seed = 12345;
  expected.federate.client_num = 100;
  expected.federate.total_round_num = 20;
  expected.federate.sample_client_rate = 0.2;
  expected.federate.process_num = 4;
  Config const config = parse_config(first_file);
  CHECK(config == expected);
  check_config(config);
}

TEST_CASE("the seed's second file is read as it stands") {
  Config expected;
  expected.use_gpu = true;
  expected.device = 0;
  expected.seed = 12345;
  expected.federate.client_num = 100;
  expected.federate.total_round_num = 10;
  expected.federate.sample_client_rate = 0.4;
  expected.federate.process_num = 8;
  expected.data.root = "data/";
  expected.data.type = "femnist";
  expected.data.splits = {0.6, 0.2, 0.2};
  expected.data.subsample = 0.05;
  expected.data.transform = {
      {"ToTensor"}, {"Normalize", {{"mean", std::vector<double>{0.1307}}, {"std", std::vector<double>{0.3081}}}}};
  expected.dataloader.batch_size = 10;
  expected.model.type = "convnet2";
  expected.model.hidden = 2048;
  expected.model.out_channels = 62;
  expected.train.batch_or_epoch = "epoch";
  expected.train.optimizer.lr = 0.01;
  expected.grad.grad_clip = 5.0;
  expected.criterion.type = "CrossEntropyLoss";
  expected.trainer.type = "cvtrainer";
  expected.eval.freq = 10;
  expected.eval.metrics = {"acc", "correct"};
  Config const config = parse_config(second_file);
  CHECK(config == expected);
  check_config(config);
  CHECK(config.model.dropout == 0.5);  // what the file leaves out is FederatedScope's default
}

TEST_CASE("the seed's files ask for nothing that has no effect") {
  for (std::string_view const file : {first_file, second_file}) {
    Config const config = parse_config(file);
    CHECK(pardl::fed::resolve(config, {.gpus = 8, .cores = 16}, 100).warnings.empty());
    std::string const workers = std::to_string(config.federate.process_num);
    CHECK(pardl::fed::resolve(config, {.gpus = 0, .cores = 2}, 100).warnings ==
          Words{"use_gpu is True, but there is no GPU here: all is computed on the CPU",
                "federate.process_num is " + workers + ", more than the 2 cores: 2 workers train on the CPU"});
  }
}

TEST_CASE("written out, a configuration is read as itself") {
  Config config = parse_config(second_file);
  apply_overrides(config, Words{"outdir",
                                "it's \"here\"",
                                "expname",
                                "a\\b",
                                "expname_tag",
                                "'tab\there'",
                                "train.optimizer.lr",
                                "1e-7",
                                "train.optimizer.weight_decay",
                                "3e20",
                                "train.optimizer.momentum",
                                "0.9",
                                "train.scheduler.type",
                                "MultiStepLR",
                                "train.scheduler.milestones",
                                "[3, 5]",
                                "data.splitter",
                                "lda",
                                "data.splitter_args",
                                "[{'alpha': 0.1, 'k': 2, 'name': 'x', 'on': True, 'l': ['a','b']}]",
                                "personalization.local_param",
                                "['bn', 'fc.weight']",
                                "federate.sample_client_num",
                                "3"});
  CHECK(config.expname_tag == "tab\there");
  std::string const text = to_yaml(config);
  CHECK(parse_config(text) == config);
  CHECK(to_yaml(parse_config(text)) == text);
  CHECK(parse_config(to_yaml(Config{})) == Config{});
  CHECK(says(text, "  optimizer:\n    type: 'SGD'\n    lr: 1.0e-07\n"));  // PyYAML takes 1e-07 for a text
  CHECK(says(text, "    weight_decay: 3.0e+20\n"));
  CHECK_FALSE(says(to_yaml(Config{}), "momentum"));  // FederatedScope would hand it to any optimizer
}

TEST_CASE("numbers and truth values are read in each of their spellings") {
  CHECK(parse_config("train: {optimizer: {lr: 1e-4}}").train.optimizer.lr == 1e-4);
  CHECK(parse_config("train: {optimizer: {lr: '1e-4'}}").train.optimizer.lr == 1e-4);
  CHECK(parse_config("train: {optimizer: {lr: .5}}").train.optimizer.lr == 0.5);
  CHECK(parse_config("train: {optimizer: {lr: 5.}}").train.optimizer.lr == 5.0);
  CHECK(parse_config("train: {optimizer: {lr: +1}}").train.optimizer.lr == 1.0);
  CHECK(parse_config("seed: 12.0").seed == 12);
  CHECK(parse_config("seed: 1e3").seed == 1000);
  CHECK(parse_config("seed: 9007199254740993").seed == 9007199254740993);
  for (char const* yes : {"True", "true", "TRUE", "yes", "on", "'True'"})
    CHECK(parse_config("use_gpu: " + std::string(yes)).use_gpu);
  for (char const* no : {"False", "false", "no", "off"})
    CHECK_FALSE(parse_config("dataloader: {shuffle: " + std::string(no) + "}").dataloader.shuffle);
  CHECK(parse_config("data:\n  splits: (0.6, 0.2, 0.2)\n").data.splits == std::vector<double>{0.6, 0.2, 0.2});
  CHECK(parse_config("data: {splits: '[0.6, 0.2, 0.2]'}").data.splits == std::vector<double>{0.6, 0.2, 0.2});
  CHECK(parse_config("eval:\n  metrics:\n    - acc\n    - 'correct'\n").eval.metrics == Words{"acc", "correct"});
  CHECK(parse_config("outdir: |\n  a\n").outdir == "a\n");
  CHECK(parse_config("outdir: '5'").outdir == "5");
  CHECK(parse_config("federate: {method: fedavg}").federate.method == "FedAvg");  // as FederatedScope, in any case
}

TEST_CASE("an error names the file, the line and the column, and what to do") {
  struct {
    char const *text, *expected;
  } const cases[] = {
      {"seed: 1\nfederate:\n  client_nums: 5\n",
       "[config] job.yaml:3:3: there is no key federate.client_nums; did you mean federate.client_num."},
      {"federat:\n  client_num: 5\n", "[config] job.yaml:1:1: there is no section federat; did you mean federate."},
      {"optimizer:\n  lr: 5\n", "[config] job.yaml:1:1: there is no section optimizer; did you mean train.optimizer."},
      {"batch_size: 5\n", "[config] job.yaml:1:1: there is no key batch_size; did you mean dataloader.batch_size."},
      {"federate.client_num: 5\n",
       "[config] job.yaml:1:1: federate.client_num is written with a dot; write it under its section: federate: "
       "client_num."},
      {"federate:\n  client_num: many\n",
       "[config] job.yaml:2:15: federate.client_num is many, which is no whole number; give one such as 10."},
      {"federate:\n  client_num: 5\n  client_num: 6\n",
       "[config] job.yaml:3:3: federate.client_num stands here twice, the first time on line 2; keep one of the two."},
      {"seed: 1\ntrain: {}\nseed: 2\n",
       "[config] job.yaml:3:1: seed stands here twice, the first time on line 1; keep one of the two."},
      {"data:\n  batch_size: 5\ndataloader:\n  batch_size: 6\n",
       "[config] job.yaml:2:15: data.batch_size is 5, but its new name dataloader.batch_size is 6 on line 4; keep one "
       "of the two."},
      {"train: 5\n", "[config] job.yaml:1:8: train is a section, and not 5; indent its keys under it."},
      {"train:\nseed: 1\n",
       "[config] job.yaml:1:1: train is a section, and there is nothing in it; leave it out, or indent its keys under "
       "it."},
      {"seed:\n", "[config] job.yaml:1:1: seed has no value; give one, or leave the key out."},
      {"wandb:\n  use: True\n",
       "[config] job.yaml:2:8: wandb.use is True, but pardl has not built this key of FederatedScope (log to Weights & "
       "Biases); leave it at False, or leave it out."},
      {"", "[config] job.yaml: the configuration is empty; give at least one key, such as seed: 0."},
      {"# nothing\n", "[config] job.yaml: the configuration is empty; give at least one key, such as seed: 0."},
      {"- 1\n", "[config] job.yaml:1:1: this is no mapping of keys to values; write key: value."},
      {"seed: 1\n---\nseed: 2\n",
       "[config] job.yaml: there are 2 YAML documents in it; keep one, and put the others into files of their own."},
      {"seed: !!python/object:os.system 1\n",
       "[config] job.yaml:1:7: the tag tag:yaml.org,2002:python/object:os.system is not supported; leave it out."},
      {"[1]: 2\n", "[config] job.yaml:1:1: a key is no plain word; write key: value."},
  };
  for (auto const& [text, expected] : cases) CHECK(refusal_of_yaml(text) == expected);
  for (char const* broken : {"a: [1\n", "a: b: c\n", "\tx: 1\n", "a: 'x\n", "{", "a: &\n", "*x\n", "%YAML 9\n---\n@"}) {
    std::string const text = refusal_of_yaml(broken);
    INFO(broken);
    CHECK(text.starts_with("[config] job.yaml:"));
    CHECK(std::count(text.begin(), text.end(), '\n') == 0);
  }
}

TEST_CASE("a hostile file ends in a sentence too") {
  std::string bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n";
  for (int i = 1; i < 12; ++i) {
    std::string const last = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + last;
    for (int j = 0; j < 8; ++j) bomb += "," + last;
    bomb += "]\n";
  }
  CHECK(says(refusal_of_yaml(bomb), "nested too deeply, or are too many"));
  CHECK(says(refusal_of_yaml("seed: " + std::string(100, '[') + std::string(100, ']')), "nested too deeply"));
  CHECK(says(refusal_of_yaml(std::string(100000, '[')), "job.yaml:"));
  CHECK(says(refusal_of_yaml(std::string((1 << 20) + 1, ' ')), "more than 1 MiB"));
}

TEST_CASE("a file that cannot be read says so") {
  pardl::testing::TemporaryFolder const folder;
  using pardl::fed::read_config;
  auto const text = [](std::filesystem::path const& path) {
    return pardl::testing::what_of<pardl::ConfigError>([&] { (void)read_config(path); });
  };
  CHECK(says(text(folder / "none.yaml"), "none.yaml cannot be read; check its name and its permissions."));
  CHECK(says(text(folder.path()), "cannot be read"));
  pardl::testing::write_text(folder / "job.yaml", second_file);
  CHECK(read_config(folder / "job.yaml") == parse_config(second_file));
  pardl::testing::write_text(folder / "bad.yaml", "seed: x\n");
  CHECK(says(text(folder / "bad.yaml"), "bad.yaml:1:7: seed is x"));
}

TEST_CASE("FederatedScope's old names are read, also beside the new ones that its own files spell out") {
  CHECK(parse_config("data: {batch_size: 10, shuffle: False, drop_last: True, loader: base}").dataloader ==
        pardl::fed::DataloaderConfig{.batch_size = 10, .shuffle = false, .drop_last = true});
  Config const both =
      parse_config("data: {batch_size: 64, shuffle: True}\ndataloader: {batch_size: 10, shuffle: False}");
  CHECK(both.dataloader.batch_size == 10);
  CHECK_FALSE(both.dataloader.shuffle);
  CHECK(parse_config("data: {batch_size: 10}\ndataloader: {batch_size: 10}").dataloader.batch_size == 10);
  CHECK(parse_config("dataloader: {batch_size: 10}\ndata: {batch_size: 64}").dataloader.batch_size == 10);
  CHECK(parse_config("data: {loader: '', drop_last: False}") == Config{});
  Config config = parse_config("data: {batch_size: 10}");
  apply_overrides(config, Words{"data.batch_size", "64"});  // on the command line the later word wins, default or not
  CHECK(config.dataloader.batch_size == 64);
}
