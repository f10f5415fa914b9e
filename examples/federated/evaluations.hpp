// SPDX-License-Identifier: MIT
/// \file   One evaluation of a job: by every client on its own samples, or by the server on the data that it has.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "data.hpp"
#include "pardl/fed/config_rules.hpp"
#include "pardl/fed/evaluation.hpp"
#include "pardl/fed/round.hpp"
#include "results.hpp"

namespace federated {

/// The global model on the server's data. Whatever data that is, its samples are clients' shares: each is evaluated
/// once, by the workers, and the sums are added up by ascending client, as of one that has them all.
template <class Runner>
std::vector<fed::ClientEvaluation> evaluated_by_server(Runner& runner, Problem const& problem, fed::Part part) {
  auto const shares = problem.common_evaluation && part != fed::Part::train
                          ? runner.evaluate(part, std::vector<std::int64_t>{0}, fed::View::global)
                          : runner.evaluate(part, fed::View::global);
  fed::ClientEvaluation all;
  for (auto const& share : shares) {
    all.samples += share.samples;
    all.correct += share.correct;
    all.answers += share.answers;
    all.loss += share.loss;
  }
  return all.samples > 0 ? std::vector{all} : std::vector<fed::ClientEvaluation>{};
}

/// Parts without samples are left out.  \param view  of the clients; the server has the global model alone
template <class Runner>
Evaluated evaluate(Runner& runner, Problem const& problem, fed::Resolved const& resolved, fed::View view) {
  Evaluated evaluated;
  evaluated.by_server = resolved.server_evaluates;
  for (auto const& split : resolved.evaluated) {
    auto const part = split == "train" ? fed::Part::train : split == "val" ? fed::Part::val : fed::Part::test;
    auto results = evaluated.by_server ? evaluated_by_server(runner, problem, part) : runner.evaluate(part, view);
    auto const summary = fed::summarize(results);
    if (!results.empty()) evaluated.splits.push_back({split, std::move(results), summary});
  }
  return evaluated;
}

}  // namespace federated
