// SPDX-License-Identifier: MIT
/// \file   All strategies, each as a program of its own: with several seeds, then on growing shares of the images.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "child.hpp"
#include "options.hpp"
#include "pardl/io/atomic_file.hpp"
#include "trial.hpp"

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

[[nodiscard]] inline std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}
/// With all its digits, as another program shall read it.
[[nodiscard]] inline std::string exact(double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
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

/// Makes the folder of the results. Told before hours of training, not after.
inline void make_results_folder(std::filesystem::path const& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error)
    refuse("no folder for the results can be made at --out " + folder.string() + ": " + error.message(),
           "name another one");
  try {
    pardl::AtomicFile const attempt{folder / "results.csv"};
  } catch (pardl::Error const&) {
    refuse("results.csv cannot be written in --out " + folder.string(), "name another folder, or see its permissions");
  }
}

/// Each run is in results.csv from its end on, whatever becomes of those after it.
class Comparison {
 public:
  /// \param handed_on  options for every run. \param to_ranks  for those that start ranks.
  Comparison(Options options, std::vector<std::string> handed_on, std::vector<std::string> to_ranks)
      : options_(std::move(options)), handed_on_(std::move(handed_on)), to_ranks_(std::move(to_ranks)) {
    make_results_folder(options_.out);
    HeldSignals const signals;  // the last to go: a signal that comes after the runs then finds no scratch folder
    Scratch const scratch;
    auto const measure = [&](std::vector<Run>& runs, char const* strategy, int seed, std::int64_t images, int epochs) {
      runs.push_back(run(signals, scratch, strategy, seed, images, epochs));
      pardl::write_file_atomically(results(), table());
    };
    auto const all = all_images();
    for (int seed = 1; seed <= options_.seeds; ++seed)
      for (auto const* strategy : strategies) measure(runs_, strategy, seed, all, options_.epochs);
    // The first of two epochs warms up; the whole set has been seen already.
    for (std::int64_t const part : {8, 4, 2})
      if (auto const images = whole_batches(all / part); images > 0)
        for (auto const* strategy : strategies) measure(scaling_, strategy, 1, images, 2);
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
  /// Of an epoch, without the first one.
  [[nodiscard]] Mean seconds(std::string const& strategy) const { return over_seeds(strategy, usual_seconds); }
  [[nodiscard]] static double usual_seconds(Run const& one) {
    return mean_of({one.seconds.begin() + 1, one.seconds.end()}).value;
  }

 private:
  [[nodiscard]] std::filesystem::path results() const { return std::filesystem::path(options_.out) / "results.csv"; }

  /// A rest would be padded or cut by the number of ranks: not alike for all strategies.
  [[nodiscard]] std::int64_t whole_batches(std::int64_t images) const { return images - images % options_.batch_size; }

  /// The training images of the longest runs. \throws pardl::DataError as load(), before anything runs.
  [[nodiscard]] std::int64_t all_images() const {
    auto const wanted = std::min(load(options_).train.size(), options_.limit_train), all = whole_batches(wanted);
    auto const batch = std::to_string(options_.batch_size);
    if (all == 0)
      refuse("--compare with --batch-size " + batch + " and " + std::to_string(wanted) + " training images",
             "give a batch that is no larger");
    if (all < wanted)
      std::printf("Of %lld training images each run takes %lld, whole batches of %s, the same for all strategies.\n",
                  static_cast<long long>(wanted), static_cast<long long>(all), batch.c_str());
    return all;
  }

  /// One line for each epoch of each run.
  [[nodiscard]] std::string table() const {
    std::string csv = "strategy,ranks,seed,train_images,batch_size,epoch,seconds,test_loss,test_accuracy\n";
    for (auto const* runs : {&runs_, &scaling_})
      for (auto const& one : *runs)
        for (std::size_t e = 0; e < one.seconds.size(); ++e)
          csv += one.strategy + "," + std::to_string(one.ranks) + "," + std::to_string(one.seed) + "," +
                 std::to_string(one.images) + "," + std::to_string(one.batch) + "," + std::to_string(e + 1) + "," +
                 fixed(one.seconds[e], 6) + "," + fixed(one.loss[e], 6) + "," + fixed(one.accuracy[e], 6) + "\n";
    return csv;
  }

  [[nodiscard]] Run run(HeldSignals const& signals, Scratch const& scratch, std::string const& strategy, int seed,
                        std::int64_t images, int epochs) const {
    auto const file = scratch.path() / "summary.json";
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
                                       exact(options_.lr),
                                       "--data",
                                       options_.data,
                                       "--summary",
                                       file.string()};
    arguments.insert(arguments.end(), handed_on_.begin(), handed_on_.end());
    if (strategy != "dp") arguments.insert(arguments.end(), to_ranks_.begin(), to_ranks_.end());
    std::printf("\n%s, seed %d, %lld images\n", strategy.c_str(), seed, static_cast<long long>(images));
    std::fflush(stdout);
    auto const ended = signals.run_again(std::move(arguments));
    auto const which = strategy + " with seed " + std::to_string(seed) + " on " + std::to_string(images) + " images";
    auto const kept = runs_.empty() ? std::string("nothing was written") : results().string() + " has what ran before";
    if (ended.signal != 0)
      throw Interrupted(pardl::sentence("parallel_from_scratch", which + " was ended by the signal \"" +
                                                                     ::strsignal(ended.signal) + "\"; " + kept),
                        ended.signal);
    if (!WIFEXITED(ended.status) || WEXITSTATUS(ended.status) != 0)
      throw pardl::Error(
          pardl::sentence("parallel_from_scratch", which + " failed; " + kept, "see above what it said"));
    auto const told = nlohmann::json::parse(std::ifstream(file));
    Run one{.strategy = strategy,
            .data = told.at("data"),
            .seed = told.at("seed"),
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
  std::vector<std::string> handed_on_, to_ranks_;
  std::vector<Run> runs_, scaling_;
};

}  // namespace parallel_from_scratch
