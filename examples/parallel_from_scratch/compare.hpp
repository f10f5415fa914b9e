// SPDX-License-Identifier: MIT
/// \file   All strategies, each as a program of its own: with several seeds, then on growing shares of the images.
#pragma once

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "options.hpp"

extern char** environ;

namespace parallel_from_scratch {

struct Mean {
  double value = 0;
  double error = 0;  ///< standard error; 0 for one value
};
[[nodiscard]] inline Mean mean_of(std::vector<double> const& values) {
  double sum = 0, squares = 0;
  for (double const x : values) sum += x;
  auto const n = static_cast<double>(values.size());
  for (double const x : values) squares += (x - sum / n) * (x - sum / n);
  return {sum / n, values.size() < 2 ? 0 : std::sqrt(squares / (n - 1) / n)};
}

/// What one program has told.
struct Run {
  std::string strategy{}, data{};
  std::uint64_t seed = 0;
  std::int64_t images = 0, batch = 0;
  int ranks = 0;
  std::vector<double> seconds{}, loss{}, accuracy{};  ///< an entry an epoch
};

/// A folder that goes when it goes.
class Scratch {
 public:
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "parallel_from_scratch-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) refuse("no folder for the runs' results in " + name, "set TMPDIR");
    path_ = name;
  }
  Scratch(Scratch const&) = delete;
  Scratch& operator=(Scratch const&) = delete;
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] std::filesystem::path const& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

class Comparison {
 public:
  explicit Comparison(Options options, std::vector<std::string> passed_on)
      : options_(std::move(options)), passed_on_(std::move(passed_on)) {
    for (int seed = 1; seed <= options_.seeds; ++seed)
      for (auto const* strategy : strategies)
        runs_.push_back(run(strategy, static_cast<std::uint64_t>(seed), options_.limit_train, options_.epochs));
    // The first of two epochs warms up; the whole set has been seen already.
    auto const all = runs_.front().images;
    for (std::int64_t const part : {8, 4, 2})
      if (all / part >= options_.batch_size)
        for (auto const* strategy : strategies) scaling_.push_back(run(strategy, 1, all / part, 2));
    for (auto const& one : runs_)
      if (one.seed == 1) scaling_.push_back(one);
  }

  [[nodiscard]] Options const& options() const { return options_; }
  [[nodiscard]] std::vector<Run> const& runs() const { return runs_; }        ///< strategies × seeds
  [[nodiscard]] std::vector<Run> const& scaling() const { return scaling_; }  ///< strategies × sizes, sizes ascending

  /// A figure of each seed's run of a strategy.
  template <class Figure>
  [[nodiscard]] Mean over_seeds(std::string const& strategy, Figure&& figure) const {
    std::vector<double> values;
    for (auto const& one : runs_)
      if (one.strategy == strategy) values.push_back(figure(one));
    return mean_of(values);
  }
  [[nodiscard]] Mean accuracy(std::string const& strategy) const {
    return over_seeds(strategy, [](Run const& one) { return one.accuracy.back(); });
  }
  /// Of an epoch, without the first one where there are more.
  [[nodiscard]] Mean seconds(std::string const& strategy) const { return over_seeds(strategy, usual_seconds); }
  [[nodiscard]] static double usual_seconds(Run const& one) {
    std::vector<double> later(one.seconds.begin() + (one.seconds.size() > 1 ? 1 : 0), one.seconds.end());
    return mean_of(later).value;
  }

 private:
  Run run(std::string const& strategy, std::uint64_t seed, std::int64_t images, int epochs) {
    auto const file = scratch_.path() / "summary.json";
    std::vector<std::string> arguments{"/proc/self/exe",
                                       "--strategy",
                                       strategy,
                                       "--nproc",
                                       std::to_string(options_.ranks),
                                       "--device",
                                       options_.device,
                                       "--batch-size",
                                       std::to_string(options_.batch_size),
                                       "--epochs",
                                       std::to_string(epochs),
                                       "--seed",
                                       std::to_string(seed),
                                       "--limit-train",
                                       std::to_string(images),
                                       "--lr",
                                       std::to_string(options_.lr),
                                       "--data",
                                       options_.data,
                                       "--summary",
                                       file.string()};
    arguments.insert(arguments.end(), passed_on_.begin(), passed_on_.end());
    std::printf("\n%s, seed %llu, %lld images\n", strategy.c_str(), static_cast<unsigned long long>(seed),
                static_cast<long long>(images));
    std::fflush(stdout);
    std::vector<char*> argv;
    for (auto& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_t pid = 0;
    if (int const error = ::posix_spawn(&pid, argv[0], nullptr, nullptr, argv.data(), environ); error != 0)
      throw pardl::Error(
          pardl::sentence("parallel_from_scratch", "cannot start " + strategy + ": " + std::strerror(error)));
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
      throw pardl::Error(pardl::sentence("parallel_from_scratch",
                                         strategy + " with seed " + std::to_string(seed) + " on " +
                                             std::to_string(images) + " images failed; nothing was written",
                                         "see above what it said"));
    auto const told = nlohmann::json::parse(std::ifstream(file));
    Run one{.strategy = strategy,
            .data = told.at("data"),
            .seed = seed,
            .images = told.at("train_images"),
            .batch = told.at("batch_size"),
            .ranks = told.at("ranks")};
    for (auto const& epoch : told.at("epochs")) {
      one.seconds.push_back(epoch.at("seconds"));
      one.loss.push_back(epoch.at("loss"));
      one.accuracy.push_back(epoch.at("accuracy"));
    }
    return one;
  }

  Options options_;
  std::vector<std::string> passed_on_;
  Scratch scratch_;
  std::vector<Run> runs_, scaling_;
};

}  // namespace parallel_from_scratch
