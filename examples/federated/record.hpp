// SPDX-License-Identifier: MIT
/// \file   What a job has found so far, in its own folder and beside the federation in a checkpoint.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

#include "pardl/fed/checkpoint.hpp"
#include "pardl/fed/config.hpp"
#include "pardl/fed/config_keys.hpp"
#include "pardl/io/atomic_file.hpp"
#include "pardl/policy/error.hpp"
#include "results.hpp"
#include "system_metrics.hpp"

namespace federated {

class Record {
 public:
  std::string options;                               ///< of the command line, those that decide what comes out
  std::filesystem::path folder;                      ///< of this run's own
  nlohmann::json history = nlohmann::json::array();  ///< an object for each round
  std::optional<double> best;                        ///< of the figure that is watched
  std::int64_t best_round = -1;
  double seconds = 0;            ///< of earlier starts too
  std::string stopped;           ///< why, if early
  std::string best_figures;      ///< of the best evaluation, as the last line prints them
  std::string exact_figures;     ///< the same with all digits, for the log
  std::vector<double> stopping;  ///< state of the stopping policy
  SystemMetrics costs;           ///< of each client

  /// A new folder with the settings in it; a second run beside a first one gets a number.
  void begin(fed::Config const& config) {
    auto const base = std::filesystem::path(config.outdir) / name_of(config);
    folder = base;
    for (int n = 2; std::filesystem::exists(folder / "config.yaml"); ++n)
      folder = base.string() + "_" + std::to_string(n);
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error)
      throw pardl::ConfigError(pardl::sentence(
          "federated", "cannot make the folder " + folder.string() + ": " + error.message(), "choose another outdir"));
    pardl::write_file_atomically(folder / "config.yaml", fed::to_yaml(config));
  }

  /// Takes up the job where the checkpoint left it. \throws pardl::CheckpointError for another program's, or a job with
  /// other settings: only the number of rounds, the workers and where results go may differ.
  void resume(fed::Remarks const& remarks, std::filesystem::path const& checkpoint, fed::Config const& config) {
    auto const refuse = [&](std::string const& what) {
      throw pardl::CheckpointError(pardl::sentence("federated", checkpoint.string() + " " + what,
                                                   "give the job that it was made by, or another --checkpoint"));
    };
    auto const word = remarks.find("job");
    auto const past = nlohmann::json::parse(word == remarks.end() ? std::string() : word->second, nullptr,
                                            /*allow_exceptions=*/false);
    if (!past.is_object()) refuse("was not made by this program");
    try {
      auto const theirs = comparable(past.at("config").get<std::string>()), ours = comparable(fed::to_yaml(config));
      if (auto const [there, here] = std::ranges::mismatch(theirs, ours); there != theirs.end() || here != ours.end())
        refuse("is of a job with other settings:" + (there == theirs.end() ? " nothing" : *there) + " there," +
               (here == ours.end() ? " nothing" : *here) + " here");
      if (past.at("options") != options)
        refuse("is of a job with " + past.at("options").get<std::string>() + ", this one has " + options);
      folder = past.at("folder").get<std::string>();
      history = past.at("history");
      if (!past.at("best").is_null()) best = past.at("best").get<double>();
      best_round = past.at("best_round").get<std::int64_t>();
      seconds = past.at("seconds").get<double>();
      stopped = past.at("stopped").get<std::string>();
      best_figures = past.at("best_figures").get<std::string>();
      exact_figures = past.at("exact_figures").get<std::string>();
      stopping = past.at("stopping").get<std::vector<double>>();
      costs.restore(past.at("costs"));
      std::filesystem::create_directories(folder);
      for (char const* const name : logs) {  // what was written after the checkpoint will be written again
        auto const length = past.at("bytes").at(name).get<std::uintmax_t>();
        auto const log = folder / name;
        if (std::filesystem::exists(log) && std::filesystem::file_size(log) > length)
          std::filesystem::resize_file(log, length);
      }
    } catch (nlohmann::json::exception const& error) {
      refuse(std::string("is damaged: ") + error.what());
    }
  }

  /// All of it, for a checkpoint.
  [[nodiscard]] fed::Remarks remarks(fed::Config const& config) const {
    nlohmann::json bytes;
    for (char const* const name : logs)
      bytes[name] = std::filesystem::exists(folder / name) ? std::filesystem::file_size(folder / name) : 0;
    nlohmann::json const job{{"config", fed::to_yaml(config)},
                             {"options", options},
                             {"folder", folder.string()},
                             {"history", history},
                             {"best", best ? nlohmann::json(*best) : nlohmann::json(nullptr)},
                             {"best_round", best_round},
                             {"seconds", seconds},
                             {"stopped", stopped},
                             {"best_figures", best_figures},
                             {"exact_figures", exact_figures},
                             {"stopping", stopping},
                             {"costs", costs.save()},
                             {"bytes", bytes}};
    return {{"job", job.dump()}};
  }

  /// A line to a file of the folder. \throws pardl::Error where it cannot be written.
  void append(char const* name, std::string const& line) const {
    std::ofstream file(folder / name, std::ios::app);
    file << line << '\n';
    if (!file.flush())
      throw pardl::Error(pardl::sentence("federated", "cannot write " + (folder / name).string(),
                                         "free some space or choose another outdir"));
  }

 private:
  static constexpr std::array<char const*, 3> logs{"eval_results.log", "eval_results.raw", "system_metrics.log"};

  /// FederatedScope's name of a run.
  static std::string name_of(fed::Config const& config) {
    std::string name = config.expname;
    if (name.empty()) {
      name = config.federate.method + "_" + config.model.type + "_on_" + config.data.type + "_lr" +
             repr(config.train.optimizer.lr) + "_lstep" + std::to_string(config.train.local_update_steps);
      std::ranges::replace(name, '/', '-');
    }
    return config.expname_tag.empty() ? name : name + "_" + config.expname_tag;
  }

  /// The lines of a configuration that decide what comes out.
  static std::vector<std::string> comparable(std::string const& yaml) {
    std::vector<std::string> lines;
    std::istringstream text(yaml);
    for (std::string line; std::getline(text, line);)
      if (std::ranges::none_of(std::array{"total_round_num:", "process_num:", "outdir:", "expname:", "save_to:"},
                               [&](char const* word) { return line.find(word) != line.npos; }))
        lines.push_back(line);
    return lines;
  }
};

}  // namespace federated
