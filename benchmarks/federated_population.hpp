// SPDX-License-Identifier: MIT
/// \file   Many small clients: what a round costs beside the training, and whether memory grows with the clients.
#pragma once

#include <sys/wait.h>
#include <torch/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "common.hpp"
#include "memory.hpp"
#include "models/logistic_regression.hpp"
#include "pardl/data/synthetic_writers.hpp"
#include "pardl/data/transforms.hpp"
#include "pardl/fed/client_sampler.hpp"
#include "pardl/fed/client_task.hpp"
#include "pardl/fed/local_training.hpp"
#include "pardl/fed/runner.hpp"
#include "pardl/train/summary_writer.hpp"

namespace benchmarks {

namespace fed = pardl::fed;

struct PopulationOptions {
  std::int64_t clients = 10'000;  ///< memory is compared with that of a tenth
  std::int64_t samples = 20;      ///< of each client
  std::int64_t sampled = 1'000;   ///< in each round
  std::int64_t rounds = 50;       ///< after a first one that is not counted; a fifth where memory is looked at
  int workers = 1;
  int repeat = 1;
};

/// A local update that trains nothing, so that all of a round is overhead. It still changes each weight, which costs a
/// few microseconds of what is counted.
struct Nudge {
  [[nodiscard]] std::int64_t processed(std::int64_t samples) const { return samples; }
  [[nodiscard]] fed::CrossEntropy loss() const { return {}; }
  template <class Net, class Batches>
  fed::LocalResult operator()(fed::ClientTask<Net, Batches> const& task) const {
    torch::NoGradGuard const no_grad;
    task.model.shared().add_(1e-6);
    fed::LocalResult result;
    result.samples = task.samples;
    result.batches = 1;
    return result;
  }
};
static_assert(fed::local_update<Nudge, models::LogisticRegression>);

/// Of one run. Plain numbers: they pass through a pipe.
struct PopulationFigures {
  double data_mib = 0;       ///< images, labels, and which samples are whose
  double most_mib = 0;       ///< of all processes at the end of a round; freed memory is kept, so nothing was above
  double round_seconds = 0;  ///< median
  double us_per_client = 0;  ///< of all workers together
};

/// What a round leaves behind, as the example `federated` does it: a line of JSON and curves for TensorBoard.
class RoundLog {
 public:
  RoundLog()
      : folder_(std::filesystem::temp_directory_path() / ("pardl_population_" + std::to_string(::getpid()))),
        writer_(pardl::Ranks{0, 1}, folder_ / "tensorboard"),
        lines_(folder_ / "rounds.jsonl") {}
  RoundLog(RoundLog&&) = delete;
  ~RoundLog() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  void write(fed::RoundReport const& report) {
    double loss = 0, correct = 0, answers = 0, samples = 0;
    for (auto const& client : report.clients) {
      loss += client.loss;
      correct += static_cast<double>(client.correct);
      answers += static_cast<double>(client.answers);
      samples += static_cast<double>(client.samples);
    }
    std::pair<char const*, double> const figures[] = {{"train_loss", loss},
                                                      {"train_avg_loss", loss / samples},
                                                      {"train_acc", answers > 0 ? correct / answers : 0},
                                                      {"train_total", samples}};
    nlohmann::json line{{"round", report.round},
                        {"seconds", report.seconds},
                        {"idle_share", report.idle_share},
                        {"clients", report.clients.size()}};
    for (auto const& [name, value] : figures) {
      line[name] = value;
      writer_.add_scalar(std::string("train/") + name, value, report.round);
    }
    lines_ << line << '\n';
    if (!lines_.flush()) throw std::runtime_error("cannot write " + (folder_ / "rounds.jsonl").string());
  }

 private:
  std::filesystem::path folder_;
  pardl::SummaryWriter writer_;
  std::ofstream lines_;
};

template <class Local>
PopulationFigures run_population(PopulationOptions const& o, Local local) {
  at::set_num_threads(1);
  fed::ClientShares shares;
  std::optional<pardl::data::ImageDataset> images;
  {
    auto made = pardl::data::make_synthetic_writers(
        {.writers = o.clients, .mean_samples = static_cast<double>(o.samples), .classes = 10, .seed = 1});
    for (auto& part : made.writers.partition()) shares.push_back({.train = std::move(part), .val = {}, .test = {}});
    images = std::move(made.samples);
  }
  PopulationFigures figures;
  double const bytes_of_sample = 28 * 28 + sizeof(std::int64_t) /* label */ + sizeof(std::int64_t) /* number */;
  figures.data_mib = static_cast<double>(images->size()) * bytes_of_sample / (1 << 20);

  torch::manual_seed(1);
  models::LogisticRegression net{models::LogisticRegressionOptions{.in_features = 28 * 28, .outputs = 10}};
  fed::Runner runner(net, *std::move(images), std::move(shares), std::move(local), fed::Average{},
                     {.workers = o.workers}, pardl::Normalize{{0.5}, {0.5}});
  RoundLog log;
  std::vector<double> all, logging;
  fed::Uniform const sampler{.count = o.sampled};
  for (std::int64_t round = 0; round <= o.rounds; ++round) {
    double logged = 0;
    double const whole = seconds([&] {
      auto const report = runner.train(sampler);
      if (report.clients.size() != static_cast<std::size_t>(o.sampled))
        throw std::logic_error("a round of another number of clients than asked for");
      logged = seconds([&] { log.write(report); });
    });
    if (round > 0) {
      all.push_back(whole);
      logging.push_back(logged);
    }
    if constexpr (!std::is_same_v<Local, Nudge>)  // it would walk through all pages and leave caches cold
      figures.most_mib = std::max(figures.most_mib, proportional_mib());
  }
  figures.round_seconds = median(all);
  double const per_client = 1e6 / static_cast<double>(o.sampled);
  figures.us_per_client = figures.round_seconds * o.workers * per_client;
  if constexpr (std::is_same_v<Local, Nudge>) {
    double const sampling = seconds([&] { (void)fed::sample_clients(sampler, o.rounds + 1, runner.clients(), 0); });
    std::fprintf(stderr, "population, %d workers: %.1f us a client, of which sampling %.2f and logging %.2f\n",
                 o.workers, figures.round_seconds * per_client, sampling * per_client, median(logging) * per_client);
  }
  return figures;
}

/// Runs it in a process of its own, so that the memory that one run keeps is not counted in another.
/// \throws std::runtime_error where that process ends without an answer; it has said why.
template <class Action>
auto apart(Action&& action) {
  using Answer = decltype(action());
  static_assert(std::is_trivially_copyable_v<Answer>);
  int ends[2];
  if (::pipe(ends) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
  std::fflush(nullptr);
  pid_t const pid = ::fork();
  if (pid < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (pid == 0) {
    bool told = false;
    try {
      Answer const answer = action();
      told = ::write(ends[1], &answer, sizeof answer) == sizeof answer;
    } catch (std::exception const& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    std::_Exit(told ? 0 : 1);
  }
  ::close(ends[1]);
  Answer answer;
  bool const got = ::read(ends[0], &answer, sizeof answer) == sizeof answer;
  ::close(ends[0]);
  ::waitpid(pid, nullptr, 0);
  if (!got) throw std::runtime_error("a run of the population ended without figures");
  return answer;
}

/// Call it before this process computes anything: its runs are forked from it.
inline void report_population(PopulationOptions const& o) {
  auto const line = [&](std::string const& variant, double value, char const* unit) {
    report("federated_population", variant, o.workers, value, unit, o.repeat);
  };
  line("overhead", apart([&] { return run_population(o, Nudge{}); }).us_per_client, "us");

  fed::LocalTraining<> const training({.batches = {.batch_size = 10, .unit = fed::StepUnit::epoch}},
                                      {.options = {.lr = 0.01}});
  PopulationFigures found[2];
  for (std::int64_t const tenth : {1, 0}) {
    auto part = o;
    part.rounds = std::max<std::int64_t>(o.rounds / 5, 1);
    if (tenth == 1) part.clients = o.clients / 10;
    auto const& figures = found[tenth] = apart([&] { return run_population(part, training); });
    auto const of = "-" + std::to_string(part.clients);
    line("data" + of, figures.data_mib, "MiB");
    line("memory" + of, figures.most_mib, "MiB");
    line("round" + of, figures.round_seconds, "s");
  }
  line("growth", (found[0].most_mib - found[1].most_mib) / (found[0].data_mib - found[1].data_mib), "ratio");
}

}  // namespace benchmarks
