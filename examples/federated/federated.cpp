// SPDX-License-Identifier: MIT
/// Federated learning simulated on one machine, from FederatedScope's YAML: many clients, few workers, one model.
#include <torch/torch.h>
#include <torch/version.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "data.hpp"
#include "evaluations.hpp"
#include "machine.hpp"
#include "options.hpp"
#include "pardl/fed/any_client_sampler.hpp"
#include "pardl/fed/config_rules.hpp"
#include "pardl/fed/runner.hpp"
#include "pardl/io/atomic_file.hpp"
#include "pardl/io/terminal.hpp"
#include "pardl/policy/evaluation_patience.hpp"
#include "pardl/policy/ranked.hpp"
#include "pardl/train/memory_format.hpp"
#include "pardl/train/summary_writer.hpp"
#include "parts.hpp"
#include "picture.hpp"
#include "record.hpp"
#include "results.hpp"

namespace federated {

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

// Draws of this program: which clients are never trained, which samples calibrate.
constexpr std::uint32_t unseen_purpose = 1000, calibration_purpose = 1001;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Job {
 public:
  explicit Job(Options options)
      : options_(std::move(options)),
        config_(options_.config),
        problem_((fed::check_config(config_), check_strategy(config_), load(config_, options_.stand_in))),
        resolved_(fed::resolve(config_, machine(), static_cast<std::int64_t>(problem_.shares.size()))),
        local_(local(config_, resolved_, problem_)),
        runner_(make_runner()) {
    std::ostringstream words;
    words << "--threads-per-worker " << options_.threads_per_worker << " --recalibrate " << options_.recalibrate
          << " --most-norm " << options_.screening.most_norm << " --most-medians " << options_.screening.most_medians
          << (options_.keep_going ? " --keep-going" : "") << (options_.stand_in ? " --stand-in" : "");
    record_.options = words.str();
    record_.costs = SystemMetrics(problem_.shares.size());
    warn_of_idle(options_, resolved_);
    resolved_.warnings.insert(resolved_.warnings.end(), problem_.warnings.begin(), problem_.warnings.end());
    if (auto const all = training_samples(); options_.recalibrate > static_cast<std::int64_t>(all.size()))
      resolved_.warnings.push_back("--recalibrate " + std::to_string(options_.recalibrate) +
                                   " is more than there is: all " + std::to_string(all.size()) + " training samples");
    if (resolved_.server_evaluates && (runner_->global_is_partial() || config_.federate.method == "Ditto"))
      resolved_.warnings.emplace_back(
          "the server evaluates the global model without what clients keep; batch norm's statistics are in it with "
          "personalization.share_non_trainable_para True or --recalibrate");
    sampler_ = fed::make_client_sampler("uniform", {.count = resolved_.sampled});
  }

  void run() {
    introduce();
    resume_or_begin();
    auto mark = Clock::now();
    auto const rounds = config_.federate.total_round_num;
    if (runner_->round() > rounds)
      say("Warning: federate.total_round_num is " + std::to_string(rounds) + ", but the checkpoint has " +
          std::to_string(runner_->round()) + " rounds: nothing is left to do.");
    pardl::EvaluationPatience const patience{
        .metric = {},
        .goal = pardl::goal_of(config_.eval.best_res_update_round_wise_key),
        .delta = config_.early_stop.delta,
        .patience = config_.early_stop.patience,
        .mode = config_.early_stop.improve_indicator_mode == "mean" ? pardl::Indicator::mean : pardl::Indicator::best,
        .name = config_.eval.best_res_update_round_wise_key};
    auto stop = patience.start();
    restore(stop);
    if (options_.progress && runner_->round() < rounds && record_.stopped.empty()) {
      bar_.emplace(rounds, pardl::ProgressBarOptions{.label = "rounds"});
      bar_->skip(runner_->round());
    }
    while (runner_->round() < rounds && record_.stopped.empty()) {
      train();
      bool const last = runner_->round() == rounds;
      if (last || runner_->round() % config_.eval.freq == 0) evaluate(stop, patience.goal);
      record_.seconds += since(std::exchange(mark, Clock::now()));
      keep(stop);
      if (bar_) bar_->advance();
    }
    bar_.reset();
    finish();
  }

 private:
  using Runner =
      fed::Runner<pardl::any_module, pardl::data::TensorDataset, Local, fed::any_server_optimizer, Transform>;

  std::unique_ptr<Runner> make_runner() {
    auto net = model(config_, problem_);
    check_local_param(config_, net);
    cost_ = cost_of(config_, problem_, net);
    pardl::to_memory_format(*net.module(),
                            torch::MemoryFormat::ChannelsLast);  // convolutions and pooling are faster so
    fed::RunnerOptions options;
    options.workers = static_cast<int>(resolved_.workers);
    options.threads_per_worker = options_.threads_per_worker;
    if (!resolved_.gpu_of_worker.empty()) {
      options.devices.clear();
      for (auto const gpu : resolved_.gpu_of_worker)
        options.devices.emplace_back(torch::kCUDA, static_cast<c10::DeviceIndex>(gpu));
    }
    options.seed = static_cast<std::uint64_t>(config_.seed);
    auto words = config_.personalization.local_param;
    if (config_.federate.method == "FedBN") words.emplace_back("bn");
    options.sharing.keep_local = fed::containing(words);
    options.sharing.buffers =
        config_.personalization.share_non_trainable_para ? fed::BufferPolicy::average : fed::BufferPolicy::client_local;
    options.weighting = config_.federate.ignore_weight ? fed::Weighting::uniform : fed::Weighting::samples;
    options.client_names = problem_.names;
    options.first_number = first_client;  // FederatedScope counts from 1, and so do its logs
    options.robust = robust_rule(config_);
    options.screening = options_.screening;
    if (options_.recalibrate > 0) {
      options.sharing.buffers = fed::BufferPolicy::recalibrate;
      options.calibration = calibration();
    }
    if (options_.keep_going) options.on_client_failure = options.on_worker_death = fed::OnFailure::leave_out;
    if (options_.progress)
      options.on_clients = [this](std::int64_t done, std::int64_t all) {
        if (!bar_) return;
        bar_->note(what_ + " " + std::to_string(done) + "/" + std::to_string(all));
        bar_->advance(0);
      };
    auto runner = std::make_unique<Runner>(std::move(net), problem_.samples, problem_.shares, local_,
                                           server(config_, resolved_), std::move(options), transform(config_, problem_),
                                           evaluation_transform(config_, problem_));
    cost_.update_bytes = runner->bytes_of_update();
    return runner;
  }

  [[nodiscard]] std::vector<std::int64_t> training_samples() const {
    std::vector<std::int64_t> all;
    for (auto const& shares : problem_.shares) all.insert(all.end(), shares.train.begin(), shares.train.end());
    return all;
  }
  /// Training samples of all clients, drawn by the seed.
  [[nodiscard]] std::vector<std::int64_t> calibration() const {
    auto const all = training_samples();
    auto const count = std::min(options_.recalibrate, static_cast<std::int64_t>(all.size()));
    auto chosen = fed::Draws(static_cast<std::uint64_t>(config_.seed), 0, 0, calibration_purpose)
                      .sample(static_cast<std::int64_t>(all.size()), count);
    for (auto& index : chosen) index = all[static_cast<std::size_t>(index)];
    return chosen;
  }

  void introduce() const {
    std::printf("Data: %s%s.\n", problem_.what.c_str(),
                options_.stand_in && config_.data.type == "femnist"
                    ? " (a stand-in for FEMNIST: give --cfg and LEAF's files for the real one)"
                    : "");
    std::printf(
        "Job: %lld of %lld clients a round, %lld rounds of %s, %s, seed %lld; %lld worker%s of %d thread%s on %s.\n",
        static_cast<long long>(resolved_.sampled), static_cast<long long>(resolved_.clients),
        static_cast<long long>(config_.federate.total_round_num), config_.federate.method.c_str(),
        config_.model.type.c_str(), static_cast<long long>(config_.seed), static_cast<long long>(resolved_.workers),
        resolved_.workers == 1 ? "" : "s", options_.threads_per_worker, options_.threads_per_worker == 1 ? "" : "s",
        resolved_.gpu_of_worker.empty() ? "the CPU" : "GPUs");
    for (auto const& warning : resolved_.warnings) std::printf("Warning: %s.\n", warning.c_str());
    if (!options_.partition.empty()) draw_partition(problem_, options_.partition);
    std::fflush(stdout);
  }

  void resume_or_begin() {
    if (!options_.checkpoint.empty() && std::filesystem::exists(options_.checkpoint)) {
      record_.resume(runner_->load(options_.checkpoint), options_.checkpoint, config_);
      std::printf("Going on from %s after round %lld.\n", options_.checkpoint.c_str(),
                  static_cast<long long>(runner_->round()));
    } else {
      if (!config_.federate.restore_from.empty()) runner_->load_model(config_.federate.restore_from);
      record_.begin(config_);
    }
    if (!options_.tensorboard.empty()) {
      pardl::SummaryWriterOptions how;
      if (runner_->round() > 0) how.purge_step = runner_->round();
      writer_.emplace(pardl::Ranks{0, 1}, options_.tensorboard, how);
    }
    std::printf("Results in %s\n", record_.folder.c_str());
  }

  template <class State>
  void restore(State& stop) const {
    std::span<double const> rest(record_.stopping);
    if (!rest.empty()) stop.restore(rest);
  }

  /// A line above the progress bar, if there is one.
  void say(std::string const& line) {
    if (bar_)
      bar_->print(line);
    else
      std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  }

  void train() {
    what_ = "clients trained";
    auto const report = runner_->train(drawn());
    double loss = 0, correct = 0, answers = 0, samples = 0;
    for (auto const& client : report.clients) {
      loss += client.loss;
      correct += static_cast<double>(client.correct);
      answers += static_cast<double>(client.answers);
      samples += static_cast<double>(client.samples);
      auto const who = static_cast<std::size_t>(client.client);
      auto const its = static_cast<std::int64_t>(problem_.shares[who].train.size());
      record_.costs.add(who, client.samples > 0 ? forwarded(config_, resolved_, its) : 0, client.failure.empty());
      if (!client.failure.empty())
        say("Warning: " + runner_->name_of(client.client) + " is left out of round " + std::to_string(report.round) +
            ": " + client.failure + ".");
    }
    for (auto const& warning : report.warnings) say("Warning: " + warning);
    Figures figures{{"train_loss", loss}, {"train_avg_loss", loss / samples}};
    if (answers > 0) figures.emplace_back("train_acc", correct / answers);
    figures.emplace_back("train_total", samples);
    std::array<char, 80> took{};
    std::snprintf(took.data(), took.size(), "} %.3f s, %.0f %% idle", report.seconds, 100 * report.idle_share);
    say("{'Role': 'Server #', 'Round': " + std::to_string(report.round) + ", 'Results_train': " + dict(figures, 6) +
        took.data());
    double const first =
        record_.history.empty() ? loss / samples : record_.history[0].at("train_avg_loss").get<double>();
    if (!explodes_ && loss / samples > 1000 * std::max(first, 1.0)) {
      explodes_ = true;
      say("Warning: the training loss is over a thousand times that of the first round: this job diverges, lower "
          "train.optimizer.lr");
    }
    json entry{{"round", report.round},
               {"seconds", report.seconds},
               {"idle_share", report.idle_share},
               {"clients", report.clients.size()}};
    for (auto const& [name, value] : figures) entry[name] = value;
    if (writer_)
      for (auto const& [name, value] : figures) writer_->add_scalar("train/" + name, value, report.round);
    record_.history.push_back(std::move(entry));
  }

  /// The clients of the next round, out of those that take part at all (federate.unseen_clients_rate).
  [[nodiscard]] std::vector<std::int64_t> drawn() const {
    auto const seed = static_cast<std::uint64_t>(config_.seed);
    auto chosen =
        fed::sample_clients(*sampler_, runner_->round(), static_cast<std::size_t>(resolved_.participants), seed);
    if (resolved_.participants == resolved_.clients) return chosen;
    auto const seen = fed::Draws(seed, 0, 0, unseen_purpose).sample(resolved_.clients, resolved_.participants);
    for (auto& client : chosen) client = seen[static_cast<std::size_t>(client)];
    return chosen;
  }

  [[nodiscard]] Evaluated evaluated_on(fed::View view) {
    return federated::evaluate(*runner_, problem_, resolved_, view);
  }

  template <class State>
  void evaluate(State& stop, pardl::Goal goal) {
    what_ = "clients evaluated";
    auto const evaluated = evaluated_on(fed::View::personal);
    if (evaluated.splits.empty())
      throw pardl::DataError(
          pardl::sentence("fed", "no client has samples to evaluate on", "raise the second and third of data.splits"));
    auto const round = runner_->round() - 1;
    std::string const head = "{'Role': 'Server #', 'Round': " + std::to_string(round) + ", ";
    int const digits = static_cast<int>(config_.print_decimal_digits);
    auto const exact = forms(config_, evaluated, -1);
    say(head + forms(config_, evaluated, digits) + "}");
    record_.append("eval_results.log", head + exact + "}");
    if (evaluated.by_server)
      record_.append("eval_results.raw", head + exact + "}");
    else if (std::ranges::find(config_.eval.report, "raw") != config_.eval.report.end())
      record_.append("eval_results.raw", head + "'Results_raw': " + raw(evaluated) + "}");
    auto const weighted = figures(config_, evaluated, true);
    for (auto const& [name, value] : weighted) {
      record_.history.back()[name] = value;
      if (writer_) writer_->add_scalar("eval/" + name, value, round);
    }
    if (options_.evaluate_global && !resolved_.server_evaluates)
      for (auto const& [name, figure] : figures(config_, evaluated_on(fed::View::global), true)) {
        record_.history.back()["global_" + name] = figure;
        if (writer_) writer_->add_scalar("eval_global/" + name, figure, round);
      }
    double const value = watched(config_, weighted);
    if (!record_.best || goal.improved(value, *record_.best, 0)) {
      record_.best = value;
      record_.best_round = round;
      record_.best_figures = final_forms(config_, evaluated, digits);
      record_.exact_figures = final_forms(config_, evaluated, -1);
      runner_->save_model(record_.folder / "best.safetensors");
    }
    if (stop.observe(value) == pardl::Verdict::stop) record_.stopped = stop.reason();
  }

  template <class State>
  void keep(State const& stop) {
    if (options_.checkpoint.empty()) return;
    record_.stopping.clear();
    stop.save(record_.stopping);
    runner_->save(options_.checkpoint, record_.remarks(config_));
  }

  void finish() {
    runner_->save_model(record_.folder / "latest.safetensors");
    if (!config_.federate.save_to.empty()) runner_->save_model(config_.federate.save_to);
    record_.append("system_metrics.log", record_.costs.lines(cost_, {.minutes = record_.seconds / 60,
                                                                     .rounds = runner_->round(),
                                                                     .converged = !record_.stopped.empty()}));
    if (!record_.stopped.empty()) std::printf("Stopped early: %s.\n", record_.stopped.c_str());
    std::string const head = "{'Role': 'Server #', 'Round': 'Final', ";
    std::printf("%s%s}\n", head.c_str(), record_.best_figures.c_str());
    record_.append("eval_results.log", head + record_.exact_figures + "}");
    double seconds = 0, idle = 0;  // of all rounds, those before a checkpoint too
    for (auto const& round : record_.history) {
      seconds += round.at("seconds").get<double>();
      idle += round.at("seconds").get<double>() * round.at("idle_share").get<double>();
    }
    double const per_round = seconds / static_cast<double>(std::max<std::size_t>(record_.history.size(), 1));
    double const idle_share = seconds > 0 ? idle / seconds : 0;
    std::printf(
        "\n| workers | rounds | seconds per round | idle | total running time (minute) |\n"
        "| ---: | ---: | ---: | ---: | ---: |\n| %lld | %lld | %.3f | %.1f %% | %.4f |\n",
        static_cast<long long>(resolved_.workers), static_cast<long long>(runner_->round()), per_round,
        100 * idle_share, record_.seconds / 60);
    if (record_.best)
      std::printf("\nBest %s: %.6f, in round %lld; its weights are in %s\n",
                  config_.eval.best_res_update_round_wise_key.c_str(), *record_.best,
                  static_cast<long long>(record_.best_round), (record_.folder / "best.safetensors").c_str());
    if (!options_.summary.empty()) write_summary(per_round, idle_share);
  }

  void write_summary(double seconds_per_round, double idle) const {
    json const summary{
        {"data", {{"what", problem_.what}, {"samples", problem_.samples.size()}, {"clients", resolved_.clients}}},
        {"rounds", record_.history},
        {"best",
         {{"key", config_.eval.best_res_update_round_wise_key},
          {"value", record_.best ? json(*record_.best) : json(nullptr)},
          {"round", record_.best_round}}},
        {"stop_reason", record_.stopped.empty() ? "all rounds are done" : record_.stopped},
        {"workers", resolved_.workers},
        {"threads_per_worker", options_.threads_per_worker},
        {"totals", {{"seconds", record_.seconds}, {"seconds_per_round", seconds_per_round}, {"idle_share", idle}}},
        {"warnings", resolved_.warnings},
        {"folder", record_.folder.string()},
        {"versions", {{"libtorch", TORCH_VERSION}}},
        {"config", fed::to_yaml(config_)}};
    pardl::write_file_atomically(options_.summary, summary.dump(2) + "\n");
  }

  Options options_;
  fed::Config const& config_;
  Problem problem_;
  fed::Resolved resolved_;
  Local local_;
  ModelCost cost_;
  std::optional<pardl::ProgressBar> bar_;
  std::string what_;
  std::unique_ptr<Runner> runner_;
  std::optional<fed::any_client_sampler> sampler_;
  std::optional<pardl::SummaryWriter> writer_;
  Record record_;
  bool explodes_ = false;
};

}  // namespace
}  // namespace federated

int main(int argc, char** argv) {
  try {
    at::set_num_threads(1);  // workers are forked: this process must not have started threads
    auto options = federated::parse(argc, argv);
    if (!options) return 0;
    federated::Job(std::move(*options)).run();
    return 0;
  } catch (c10::Error const& error) {
    std::fprintf(stderr, "[federated] %s\n", error.what_without_backtrace());
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 1;
}
