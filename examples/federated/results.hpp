// SPDX-License-Identifier: MIT
/// \file   Evaluations in FederatedScope's words: val_avg_loss, test_acc, …, weighted, averaged, and how they spread.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/fed/config.hpp"
#include "pardl/fed/evaluation.hpp"
#include "pardl/fed/round.hpp"
#include "pardl/policy/error.hpp"

namespace federated {

namespace fed = pardl::fed;

/// Names and numbers in the order in which they are printed.
using Figures = std::vector<std::pair<std::string, double>>;

/// One evaluation: of all clients, or of the server as one.
struct Evaluated {
  struct Split {
    std::string name;
    std::vector<fed::ClientEvaluation> clients;
    fed::PartSummary summary;
  };
  std::vector<Split> splits;
  bool by_server = false;  ///< of the global model alone, as of one client

  [[nodiscard]] std::int64_t samples() const {
    std::int64_t all = 0;
    for (auto const& split : splits) all += split.summary.samples;
    return all;
  }
};

/// As Python's repr: the shortest digits that give the number back, and ".0" behind whole ones.
inline std::string repr(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x < 0 ? "-inf" : "inf";
  std::array<char, 40> text{};
  bool const plain = x == 0 || (std::abs(x) >= 1e-4 && std::abs(x) < 1e16);
  auto const end = std::to_chars(text.data(), text.data() + text.size(), x,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific)
                       .ptr;
  std::string found(text.data(), end);
  if (plain && found.find('.') == found.npos) found += ".0";
  return found;
}

/// As Python prints a dict; numbers with so many digits behind the point, or all of them (-1).
inline std::string dict(Figures const& figures, int digits = -1) {
  std::string text = "{";
  for (auto const& [name, value] : figures) {
    if (text.size() > 1) text += ", ";
    text += "'" + name + "': ";
    if (digits < 0) {
      text += repr(value);
    } else {
      std::array<char, 64> number{};
      std::snprintf(number.data(), number.size(), "%.*f", digits, value);
      text += number.data();
    }
  }
  return text + "}";
}

inline bool wants(fed::Config const& config, std::string_view metric) {
  return metric == "loss" || metric == "avg_loss" || metric == "total" ||
         std::ranges::find(config.eval.metrics, metric) != config.eval.metrics.end();
}

/// `weighted`: over all samples, sums before division; else the mean of the clients' own figures. Totals, counts and
/// the summed loss are means over clients in both, as in FederatedScope (whose weighted loss weighs a sum once more).
inline Figures figures(fed::Config const& config, Evaluated const& evaluated, bool weighted) {
  Figures all;
  for (auto const& [name, clients, summary] : evaluated.splits) {
    auto const count = static_cast<double>(summary.clients);
    if (wants(config, "loss"))
      all.emplace_back(name + "_loss", summary.loss * static_cast<double>(summary.samples) / count);
    all.emplace_back(name + "_avg_loss", weighted ? summary.loss : summary.client_loss.mean);
    if (wants(config, "acc") && summary.answers > 0)
      all.emplace_back(name + "_acc", weighted ? summary.accuracy : summary.client_accuracy.mean);
    if (wants(config, "correct") && summary.answers > 0)
      all.emplace_back(name + "_correct", static_cast<double>(summary.correct) / count);
    all.emplace_back(name + "_total", static_cast<double>(summary.samples) / count);
  }
  return all;
}

inline Figures fairness(fed::Config const& config, Evaluated const& evaluated) {
  Figures all;
  auto const describe = [&](std::string const& name, fed::Spread const& s) {
    for (auto const& [what, value] :
         std::initializer_list<std::pair<char const*, double>>{{"_std", s.deviation},
                                                               {"_bottom_decile", s.bottom_decile},
                                                               {"_top_decile", s.top_decile},
                                                               {"_min", s.min},
                                                               {"_max", s.max},
                                                               {"_bottom10%", s.bottom_tenth},
                                                               {"_top10%", s.top_tenth},
                                                               {"_cos1", s.cosine},
                                                               {"_entropy", s.entropy}})
      all.emplace_back(name + what, value);
  };
  for (auto const& [name, clients, summary] : evaluated.splits) {
    auto const count = static_cast<double>(summary.clients);
    all.emplace_back(name + "_total", static_cast<double>(summary.samples) / count);
    if (wants(config, "correct") && summary.answers > 0)
      all.emplace_back(name + "_correct", static_cast<double>(summary.correct) / count);
    describe(name + "_avg_loss", summary.client_loss);
    if (wants(config, "acc") && summary.answers > 0) describe(name + "_acc", summary.client_accuracy);
  }
  return all;
}

/// "'Results_weighted_avg': {…}, 'Results_avg': {…}, …" for the forms that eval.report asks for, without raw. Of the
/// server's own evaluation there is nothing to average: "'Results_raw': {…}".
inline std::string forms(fed::Config const& config, Evaluated const& evaluated, int digits) {
  if (evaluated.by_server) return "'Results_raw': " + dict(figures(config, evaluated, true), digits);
  std::string text;
  auto const add = [&](char const* form, Figures const& found) {
    if (std::ranges::find(config.eval.report, form) == config.eval.report.end()) return;
    text += std::string(text.empty() ? "" : ", ") + "'Results_" + form + "': " + dict(found, digits);
  };
  add("weighted_avg", figures(config, evaluated, true));
  add("avg", figures(config, evaluated, false));
  add("fairness", fairness(config, evaluated));
  return text;
}

/// FederatedScope's last line, of the best evaluation: each figure of the client that did best in it, then the clients
/// together in the forms that eval.report asks for.
inline std::string final_forms(fed::Config const& config, Evaluated const& evaluated, int digits) {
  if (evaluated.by_server)
    return "'Results_raw': {'server_global_eval': " + dict(figures(config, evaluated, true), digits) + "}";
  Figures best;
  for (auto const& [name, clients, summary] : evaluated.splits) {
    auto const of_clients = [&](char const* what, bool largest, auto&& number) {
      if (!wants(config, what)) return;
      double value = number(clients.front());
      for (auto const& one : clients) value = largest ? std::max(value, number(one)) : std::min(value, number(one));
      best.emplace_back(name + "_" + what, value);
    };
    of_clients("loss", false, [](auto const& one) { return one.loss; });
    of_clients("avg_loss", false, [](auto const& one) { return one.loss / static_cast<double>(one.samples); });
    if (summary.answers > 0) {
      of_clients("acc", true,
                 [](auto const& one) { return static_cast<double>(one.correct) / static_cast<double>(one.answers); });
      of_clients("correct", true, [](auto const& one) { return static_cast<double>(one.correct); });
    }
    of_clients("total", true, [](auto const& one) { return static_cast<double>(one.samples); });
  }
  std::string text = "'Results_raw': {'client_best_individual': " + dict(best, digits);
  auto const add = [&](char const* form, Figures const& found) {
    if (std::ranges::find(config.eval.report, form) != config.eval.report.end())
      text += std::string(", 'client_summarized_") + form + "': " + dict(found, digits);
  };
  add("weighted_avg", figures(config, evaluated, true));
  add("avg", figures(config, evaluated, false));
  add("fairness", fairness(config, evaluated));
  return text + "}";
}

/// Each client's own figures, as lists.
inline std::string raw(Evaluated const& evaluated) {
  std::string text = "{";
  for (auto const& [name, clients, summary] : evaluated.splits) {
    auto const list = [&](char const* what, auto&& number) {
      text += (text.size() > 1 ? ", '" : "'") + name + what + "': [";
      for (std::size_t i = 0; i < clients.size(); ++i) text += (i ? ", " : "") + number(clients[i]);
      text += "]";
    };
    list("_client", [](auto const& one) { return std::to_string(one.client + 1); });
    list("_loss", [](auto const& one) { return repr(one.loss); });
    list("_total", [](auto const& one) { return std::to_string(one.samples); });
    list("_correct", [](auto const& one) { return std::to_string(one.correct); });
  }
  return text + "}";
}

/// The figure that early stopping watches. \throws pardl::ConfigError where this evaluation has none of that name.
inline double watched(fed::Config const& config, Figures const& weighted) {
  auto const& key = config.eval.best_res_update_round_wise_key;
  std::string names;
  for (auto const& [name, value] : weighted) {
    if (name == key) return value;
    names += (names.empty() ? "" : ", ") + name;
  }
  throw pardl::ConfigError(pardl::sentence(
      "config", "eval.best_res_update_round_wise_key is '" + key + "', which no evaluation of this job gives",
      "take one of " + names + ", or add its metric to eval.metrics and its part to eval.split"));
}

}  // namespace federated
