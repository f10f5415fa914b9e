// SPDX-License-Identifier: MIT
/// \file   What a job has cost each client and the server, as FederatedScope's system_metrics.log tells it.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "results.hpp"

namespace federated {

/// What one model costs.
struct ModelCost {
  std::int64_t parameters = 0;    ///< numbers
  std::int64_t flops = 0;         ///< multiply-adds of one sample's forward; 0: not counted
  std::int64_t update_bytes = 0;  ///< that a client is sent in a round, and sends back
};

/// How the job ended.
struct JobEnd {
  double minutes = 0;
  std::int64_t rounds = 0;
  bool converged = false;  ///< stopped early
};

/// Counts of each client, from 0, over all rounds.
class SystemMetrics {
 public:
  explicit SystemMetrics(std::size_t clients = 0) : downloads_(clients), uploads_(clients), samples_(clients) {}

  /// A round that the client was drawn for. \param samples  that went through the model, 0 if it was not trained;
  /// \param sent_back  whether its update came
  void add(std::size_t client, std::int64_t samples, bool sent_back) {
    downloads_.at(client) += 1;
    uploads_.at(client) += sent_back ? 1 : 0;
    samples_.at(client) += samples;
  }

  /// For a checkpoint.
  [[nodiscard]] nlohmann::json save() const {
    return {{"downloads", downloads_}, {"uploads", uploads_}, {"samples", samples_}};
  }
  /// \throws nlohmann::json::exception for something else.
  void restore(nlohmann::json const& saved) {
    saved.at("downloads").get_to(downloads_);
    saved.at("uploads").get_to(uploads_);
    saved.at("samples").get_to(samples_);
  }

  /// A JSON object a line: the server (id 0), clients from 1, then `sys_avg` and `sys_std` over all of these; without a
  /// line's end at the end.
  ///
  /// Bytes are those that FederatedScope's protocol would have moved, had the clients been elsewhere: for each round
  /// and each client drawn for it, the tensors that travel, once to the client and once back (not back, where the
  /// client was left out); the server's are all clients' together. Here workers share memory, and nothing is sent. What
  /// FederatedScope counts beside them is left out: the model sent to all clients for an evaluation and at the end,
  /// buffers that its server sends and its clients throw away.
  /// total_flops are multiply-adds of the forwards in training; backward takes about twice as many, and evaluation is
  /// not counted. total_model_size counts parameters. Both are 0 for those who never trained, as the server.
  [[nodiscard]] std::string lines(ModelCost const& model, JobEnd const& end) const {
    std::vector<Row> rows{{}};  // the server's first
    for (std::size_t client = 0; client < samples_.size(); ++client) {
      Row const row{samples_[client] > 0 ? model.parameters : 0, samples_[client] * model.flops,
                    uploads_[client] * model.update_bytes, downloads_[client] * model.update_bytes};
      rows.push_back(row);
      rows[0][2] += row[3];
      rows[0][3] += row[2];
    }
    std::string text;
    for (std::size_t id = 0; id < rows.size(); ++id) {
      nlohmann::ordered_json line{{"id", id}, {"fl_end_time_minutes", end.minutes}};
      for (std::size_t i = 0; i < names.size(); ++i) line[names[i]] = rows[id][i];
      line["global_convergence_round"] = end.converged ? end.rounds : 0;
      line["local_convergence_round"] = 0;  // of FederatedScope's methods local and global
      line["global_convergence_time_minutes"] = end.converged ? end.minutes : 0.0;
      line["local_convergence_time_minutes"] = 0;
      text += line.dump() + "\n";
    }
    for (bool const deviation : {false, true}) {
      std::string const form = deviation ? "sys_std" : "sys_avg";
      auto const same = [&](double value) { return deviation ? 0.0 : value; };
      nlohmann::ordered_json line{{"id", form}, {form + "/fl_end_time_minutes", same(end.minutes)}};
      for (std::size_t i = 0; i < names.size(); ++i) {
        auto const [mean, std] = spread_of(rows, i);
        line[form + "/" + names[i]] = size_text(deviation ? std : mean);
      }
      line[form + "/global_convergence_round"] = same(end.converged ? static_cast<double>(end.rounds) : 0.0);
      line[form + "/local_convergence_round"] = 0.0;
      line[form + "/global_convergence_time_minutes"] = same(end.converged ? end.minutes : 0.0);
      line[form + "/local_convergence_time_minutes"] = 0.0;
      text += line.dump() + "\n";
    }
    text.pop_back();
    return text;
  }

  /// As FederatedScope shortens sizes: "25.19M", with two decimals and K = 1024.
  [[nodiscard]] static std::string size_text(double size) {
    constexpr std::array<char const*, 7> units{"", "K", "M", "G", "T", "P", "E"};
    std::size_t unit = 0;
    if (!(size > 0)) return repr(size);
    for (; size >= 1024 && unit + 1 < units.size(); ++unit) size /= 1024;
    return repr(std::round(size * 100) / 100) + units[unit];
  }

 private:
  static constexpr std::array<char const*, 4> names{"total_model_size", "total_flops", "total_upload_bytes",
                                                    "total_download_bytes"};
  using Row = std::array<std::int64_t, 4>;

  static std::pair<double, double> spread_of(std::vector<Row> const& rows, std::size_t column) {
    double sum = 0, squares = 0;
    auto const count = static_cast<double>(rows.size());
    for (auto const& row : rows) sum += static_cast<double>(row[column]);
    for (auto const& row : rows) squares += std::pow(static_cast<double>(row[column]) - sum / count, 2);
    return {sum / count, std::sqrt(squares / count)};
  }

  std::vector<std::int64_t> downloads_, uploads_, samples_;
};

}  // namespace federated
