// SPDX-License-Identifier: MIT
// A small job of the program federated, run as a real process in a folder of its own.
#pragma once

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "support/process.hpp"
#include "support/temporary_folder.hpp"

namespace pardl::testing {

/// Made images, a linear model, four rounds.
inline std::vector<std::string> small(TemporaryFolder const& folder, std::vector<std::string> more) {
  std::vector<std::string> words{"--no-progress", "--cfg", (folder / "job.yaml").string()};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

inline void write_job(TemporaryFolder const& folder) {
  std::ofstream(folder / "job.yaml") << R"(
seed: 7
early_stop: {patience: 0}
federate: {client_num: 20, total_round_num: 4, sample_client_rate: 0.3}
data: {type: synthetic_femnist, splits: [0.6, 0.2, 0.2], transform: [['ToTensor'], ['Normalize', {'mean': [0.5], 'std': [0.5]}]]}
dataloader: {batch_size: 10}
model: {type: lr, out_channels: 62}
train: {local_update_steps: 1, batch_or_epoch: epoch, optimizer: {lr: 0.1}}
grad: {grad_clip: 5.0}
criterion: {type: CrossEntropyLoss}
eval: {freq: 1, metrics: ['acc', 'correct']}
)";
}

/// Its results go to exp/run.
inline Process start(TemporaryFolder const& folder, std::vector<std::string> words) {
  words.insert(words.begin(), PARDL_FEDERATED);
  words.insert(words.end(), {"outdir", (folder / "exp").string(), "expname", "run"});
  return Process(std::move(words));
}

struct Result {
  int code;
  std::string output;
};
inline Result run(TemporaryFolder const& folder, std::vector<std::string> words) {
  auto process = start(folder, std::move(words));
  auto const ended = process.wait();
  CHECK(ended.in_time);
  return {ended.code, ended.out + ended.err};
}

inline std::string bytes(std::filesystem::path const& file) { return read_text(file); }

}  // namespace pardl::testing
