// SPDX-License-Identifier: MIT
#include "pardl/fed/schedule.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "pardl/fed/draws.hpp"
#include "support/temporary_folder.hpp"

using pardl::CheckpointError;
using pardl::ConfigError;
using pardl::fed::CostModel;
using pardl::fed::Costs;
using pardl::fed::Draws;
using pardl::fed::idle_share;
using pardl::fed::longest_first;
using pardl::fed::makespan;
using pardl::fed::Queues;
using pardl::fed::ServerPlace;
using pardl::fed::static_split;
using pardl::testing::what_of;

namespace {

/// Equal workers: client `ids[i]` costs `seconds[i]` on each.
Costs equal_workers(std::size_t workers, std::vector<std::int64_t> ids, std::vector<double> const& seconds) {
  Costs costs{std::move(ids), workers, {}};
  for (std::size_t w = 0; w < workers; ++w) costs.seconds.insert(costs.seconds.end(), seconds.begin(), seconds.end());
  return costs;
}

std::vector<std::int64_t> first_ids(std::size_t count) {
  std::vector<std::int64_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

/// The shortest makespan of all assignments, by trying them all.
double shortest(Costs const& costs) {
  std::vector<double> busy(costs.workers);
  double best = std::numeric_limits<double>::infinity();
  std::function<void(std::size_t)> const place = [&](std::size_t client) {
    if (client == costs.clients.size()) {
      best = std::min(best, *std::max_element(busy.begin(), busy.end()));
      return;
    }
    for (std::size_t w = 0; w < costs.workers; ++w) {
      double const before = busy[w];
      busy[w] += costs(w, client);
      if (busy[w] < best) place(client + 1);
      busy[w] = before;
    }
  };
  place(0);
  return best;
}

std::vector<std::int64_t> all_of(Queues const& queues) {
  std::vector<std::int64_t> ids;
  for (auto const& queue : queues) ids.insert(ids.end(), queue.begin(), queue.end());
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace

TEST_CASE("longest first is within Graham's bound of the shortest schedule, and often is the shortest") {
  Draws draws(31);
  int exact = 0, cases = 0;
  for (std::size_t workers = 1; workers <= 4; ++workers)
    for (std::size_t clients = 1; clients <= 9; ++clients)
      for (int i = 0; i < 8; ++i, ++cases) {
        std::vector<double> seconds(clients);
        for (double& s : seconds) s = static_cast<double>(1 + draws.below(20));
        auto const costs = equal_workers(workers, first_ids(clients), seconds);
        auto const schedule = longest_first(costs);
        double const best = shortest(costs);
        CHECK(schedule.makespan() <= (4.0 / 3 - 1 / (3.0 * static_cast<double>(workers))) * best + 1e-12);
        CHECK(schedule.makespan() == doctest::Approx(makespan(schedule.queues, costs)));
        CHECK(all_of(schedule.queues) == costs.clients);
        exact += schedule.makespan() <= best + 1e-12;
      }
  CHECK(exact > cases * 3 / 4);
}

TEST_CASE("Graham's worst case for two workers comes out as he says") {
  // 3 3 2 2 2: longest first 7, the shortest 6, and 4/3 - 1/6 = 7/6.
  auto const costs = equal_workers(2, {0, 1, 2, 3, 4}, {3, 3, 2, 2, 2});
  auto const schedule = longest_first(costs);
  CHECK(schedule.makespan() == 7);
  CHECK(shortest(costs) == 6);
  CHECK(schedule.queues == Queues{{0, 2, 4}, {1, 3}});
  CHECK(schedule.finish_seconds == std::vector<double>{7, 5});
  CHECK(idle_share(schedule.queues, costs) == doctest::Approx(1 - 12.0 / 14));
}

TEST_CASE("with workers of different speed longest first keeps the bound of Gonzalez, Ibarra and Sahni") {
  Draws draws(32);
  for (std::size_t workers = 2; workers <= 4; ++workers)
    for (int i = 0; i < 40; ++i) {
      Costs costs{first_ids(7), workers, {}};
      std::vector<double> work(7);
      for (double& w : work) w = static_cast<double>(1 + draws.below(20));
      for (std::size_t w = 0; w < workers; ++w) {
        double const slowness = 1 + 3 * draws.uniform();
        for (double const amount : work) costs.seconds.push_back(slowness * amount);
      }
      double const bound = 2 - 2 / (static_cast<double>(workers) + 1);
      CHECK(longest_first(costs).makespan() <= bound * shortest(costs) + 1e-9);
    }
}

TEST_CASE("a fast worker gets the long clients, and a slow one is left alone where that is sooner") {
  Costs const costs{{5, 6, 7}, 2, {1, 2, 3, 10, 20, 30}};
  auto const schedule = longest_first(costs);
  CHECK(schedule.queues == Queues{{7, 6, 5}, {}});
  CHECK(schedule.makespan() == 6);
  CHECK(idle_share(schedule.queues, costs) == doctest::Approx(0.5));
}

TEST_CASE("the order in which clients are named does not change the schedule; equal costs go by id") {
  Draws draws(33);
  std::vector<std::size_t> order(30);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::vector<double> seconds(30);
  for (double& s : seconds) s = static_cast<double>(1 + draws.below(4));  // many ties
  auto const reference = longest_first(equal_workers(4, first_ids(30), seconds));
  for (int i = 0; i < 5; ++i) {
    draws.shuffle(order);
    std::vector<std::int64_t> ids;
    std::vector<double> shuffled;
    for (std::size_t const at : order) {
      ids.push_back(static_cast<std::int64_t>(at));
      shuffled.push_back(seconds[at]);
    }
    auto const again = longest_first(equal_workers(4, ids, shuffled));
    CHECK(again.queues == reference.queues);
    CHECK(again.finish_seconds == reference.finish_seconds);
  }
  CHECK(longest_first(equal_workers(2, {9, 4, 7}, {1, 1, 1})).queues == Queues{{4, 9}, {7}});
}

TEST_CASE("a round without clients leaves all workers idle and divides by nothing") {
  auto const costs = equal_workers(3, {}, {});
  auto const schedule = longest_first(costs);
  CHECK(schedule.queues == Queues(3));
  CHECK(schedule.makespan() == 0);
  CHECK(idle_share(schedule.queues, costs) == 0);
}

TEST_CASE("the static split is FederatedScope's: the server alone, contiguous blocks, the remainder to the last") {
  auto const everyone = first_ids(100);
  auto const split = static_split(everyone, 100, 8, ServerPlace::alone);
  std::vector<std::size_t> sizes;
  for (auto const& queue : split) sizes.push_back(queue.size());
  CHECK(sizes == std::vector<std::size_t>{0, 14, 14, 14, 14, 14, 14, 16});
  CHECK(split[1].front() == 0);
  CHECK(split[7].front() == 84);
  CHECK(all_of(split) == everyone);

  sizes.clear();
  auto const beside = static_split(everyone, 100, 8, ServerPlace::beside);
  for (auto const& queue : beside) sizes.push_back(queue.size());
  CHECK(sizes == std::vector<std::size_t>{13, 13, 13, 13, 12, 12, 12, 12});
  for (auto const& queue : beside) CHECK(queue.back() - queue.front() + 1 == static_cast<std::int64_t>(queue.size()));
  CHECK(all_of(beside) == everyone);

  CHECK(static_split(std::vector<std::int64_t>{3, 90, 15}, 100, 8, ServerPlace::alone) ==
        Queues{{}, {3}, {15}, {}, {}, {}, {}, {90}});
  CHECK(static_split(first_ids(2), 2, 4, ServerPlace::alone) == Queues{{}, {}, {}, {0, 1}});
  CHECK(static_split(first_ids(2), 2, 4, ServerPlace::beside) == Queues{{0}, {1}, {}, {}});
}

TEST_CASE("simulated rounds: what the seed's static split costs, and how little longest first leaves idle") {
  // 40 of 100 equal clients on 8 processes, and 20 of 100 on 4: the seed's two ways to use more than one GPU.
  struct Setting {
    std::size_t processes;
    std::int64_t sampled;
    double fullest, speedup;  // reference figures: mean clients on the fullest worker; sampled / fullest
  };
  for (Setting const& setting : {Setting{8, 40, 8.30, 4.82}, Setting{4, 20, 8.66, 2.31}}) {
    CAPTURE(setting.processes);
    int const rounds = 4000;
    double sum = 0, squares = 0, idle_static = 0, idle_beside = 0, idle_longest = 0, idle_uneven = 0, static_uneven = 0;
    std::vector<double> size(100);  // an uneven population: log-normal sizes
    Draws sizes(40);
    for (double& s : size) s = std::round(100 * std::exp(0.8 * sizes.normal())) + 1;
    for (int round = 0; round < rounds; ++round) {
      auto const ids = Draws(41, static_cast<std::uint64_t>(round)).sample(100, setting.sampled);
      auto const even = equal_workers(setting.processes, ids, std::vector<double>(ids.size(), 1));
      auto const split = static_split(ids, 100, setting.processes, ServerPlace::alone);
      double const fullest = makespan(split, even);
      sum += fullest;
      squares += fullest * fullest;
      idle_static += idle_share(split, even) / rounds;
      idle_beside += idle_share(static_split(ids, 100, setting.processes, ServerPlace::beside), even) / rounds;
      idle_longest += idle_share(longest_first(even).queues, even) / rounds;
      std::vector<double> seconds;
      for (std::int64_t const id : ids) seconds.push_back(size[static_cast<std::size_t>(id)]);
      auto const uneven = equal_workers(setting.processes, ids, seconds);
      idle_uneven += idle_share(longest_first(uneven).queues, uneven) / rounds;
      static_uneven += idle_share(split, uneven) / rounds;
    }
    double const mean = sum / rounds;
    double const error = std::sqrt((squares / rounds - mean * mean) / rounds);
    CHECK(std::abs(mean - setting.fullest) < 4 * error + 0.005);  // the figure is rounded to two places
    CHECK(std::abs(static_cast<double>(setting.sampled) / mean - setting.speedup) < 0.03);
    CHECK(idle_longest == doctest::Approx(0));  // 40 over 8, 20 over 4: five each, always
    CHECK(idle_static > 0.35);
    CHECK(idle_beside > 0.25);
    CHECK(idle_uneven < 0.12);
    CHECK(static_uneven > 3 * idle_uneven);
    MESSAGE(setting.processes, " processes: idle ", idle_static, " in the seed's split, ", idle_beside,
            " with the server beside, ", idle_longest, " longest first; uneven clients ", static_uneven, " and ",
            idle_uneven);
  }
}

TEST_CASE("before anything was seen all workers are equal and a client costs its samples") {
  CostModel const model(3);
  for (std::size_t worker = 0; worker < 3; ++worker) {
    CHECK(model.seconds(worker, 0) == 0);
    CHECK(model.seconds(worker, 120) == 120);
  }
  auto const costs = predict(model, std::vector<std::int64_t>{8, 9}, std::vector<std::int64_t>{10, 20});
  CHECK(costs.clients == std::vector<std::int64_t>{8, 9});
  CHECK(costs.seconds == std::vector<double>{10, 20, 10, 20, 10, 20});
}

TEST_CASE("base and rate of each worker are learned from what it takes") {
  CostModel model(2);
  Draws draws(34);
  for (int i = 0; i < 200; ++i) {
    double const samples = static_cast<double>(20 + draws.below(200));
    double const noise = 1 + 0.02 * draws.normal();
    model.observe(0, samples, (0.5 + 0.010 * samples) * noise);
    model.observe(1, samples, (0.1 + 0.030 * samples) * noise);
  }
  CHECK(model.line(0).base_seconds == doctest::Approx(0.5).epsilon(0.1));
  CHECK(model.line(0).seconds_per_sample == doctest::Approx(0.010).epsilon(0.05));
  CHECK(model.line(1).seconds_per_sample == doctest::Approx(0.030).epsilon(0.05));
  CHECK(model.seconds(0, 1000) == doctest::Approx(10.5).epsilon(0.05));
}

TEST_CASE("clients of one size teach a rate, and a worker that was not seen is like the others") {
  CostModel model(3);
  model.observe(0, 100, 2);
  model.observe(0, 100, 2);
  CHECK(model.line(0).base_seconds == 0);
  CHECK(model.seconds(0, 50) == doctest::Approx(1));
  CHECK(model.seconds(2, 50) == doctest::Approx(1));
  model.observe(1, 100, 4);
  model.observe(1, 100, 4);
  CHECK(model.seconds(0, 100) == doctest::Approx(2));
  CHECK(model.seconds(1, 100) == doctest::Approx(4));
  CHECK(model.seconds(2, 100) == doctest::Approx(3));
}

TEST_CASE("neither coefficient goes below zero, whatever the clock says") {
  CostModel model(1, {.memory = 1});
  model.observe(0, 10, 5);  // a smaller client took longer: the first one paid for warming up
  model.observe(0, 100, 1);
  CHECK(model.line(0).seconds_per_sample == 0);
  CHECK(model.line(0).base_seconds == doctest::Approx(3));
  CostModel steep(1, {.memory = 1});
  steep.observe(0, 10, 0.001);
  steep.observe(0, 100, 10);
  CHECK(steep.line(0).base_seconds == 0);
  CHECK(steep.line(0).seconds_per_sample > 0.09);
  CostModel empty(1);
  empty.observe(0, 0, 0.25);  // clients without samples
  CHECK(empty.seconds(0, 0) == doctest::Approx(0.25));
}

TEST_CASE("old observations are forgotten at the stated rate, or never") {
  CostModel forgetful(1, {.memory = 0.5}), never(1, {.memory = 1});
  for (CostModel* model : {&forgetful, &never}) {
    for (int i = 0; i < 4; ++i) model->observe(0, 100, 1);
    for (int i = 0; i < 4; ++i) model->observe(0, 100, 3);  // the worker slows down
  }
  // weights 2^-7 … 1: the old four weigh 15/128, the new four 15/8
  CHECK(forgetful.seconds(0, 100) == doctest::Approx((15.0 / 128 + 3 * 15.0 / 8) / (15.0 / 128 + 15.0 / 8)));
  CHECK(never.seconds(0, 100) == doctest::Approx(2));
}

TEST_CASE("learned costs beat equal shares once a worker turns out slow") {
  CostModel model(2);
  std::vector<std::int64_t> const ids = first_ids(12), samples(12, 100);
  std::vector<double> const truth{0.01, 0.03};
  auto const true_costs = [&] {
    Costs costs{ids, 2, {}};
    for (double const rate : truth) costs.seconds.insert(costs.seconds.end(), 12, rate * 100);
    return costs;
  }();
  auto const blind = longest_first(predict(model, ids, samples));
  for (std::size_t w = 0; w < 2; ++w)
    for (std::size_t i = 0; i < blind.queues[w].size(); ++i) model.observe(w, 100, truth[w] * 100);
  auto const learned = longest_first(predict(model, ids, samples));
  CHECK(idle_share(blind.queues, true_costs) > 0.3);
  CHECK(idle_share(learned.queues, true_costs) < 1e-9);
  CHECK(learned.queues[0].size() == 9);
}

TEST_CASE("a cost model comes back from a checkpoint as it was, also with another number of workers") {
  CostModel model(3);
  model.observe(0, 100, 1);
  model.observe(0, 50, 0.7);
  model.observe(2, 100, 4);
  std::vector<double> numbers{42};
  model.save(numbers);
  numbers.push_back(43);
  auto const from_the_second = [&] { return std::span<double const>(numbers).subspan(1); };

  CostModel same(3);
  auto rest = from_the_second();
  same.restore(rest);
  CHECK(rest.size() == 1);
  CHECK(rest[0] == 43);
  for (std::size_t w = 0; w < 3; ++w)
    for (double const samples : {0.0, 10.0, 77.0}) CHECK(same.seconds(w, samples) == model.seconds(w, samples));
  same.observe(1, 10, 1);
  model.observe(1, 10, 1);
  CHECK(same.seconds(1, 5) == model.seconds(1, 5));

  CostModel fewer(1), more(5);
  fewer.observe(0, 1, 99);
  rest = from_the_second();
  fewer.restore(rest);
  CHECK(rest.size() == 1);
  CHECK(fewer.seconds(0, 60) == model.seconds(0, 60));
  rest = from_the_second();
  more.restore(rest);
  CHECK(more.seconds(2, 60) == model.seconds(2, 60));
  CHECK(more.seconds(4, 60) == more.seconds(3, 60));
}

TEST_CASE("numbers that are no cost model are refused and leave it as it was") {
  CostModel model(2);
  model.observe(0, 10, 5);
  std::vector<double> good;
  model.save(good);
  auto truncated = good, negative = good, absurd = good;
  truncated.pop_back();
  negative[3] = -1;
  absurd[0] = 1.5;
  for (auto const& numbers : {truncated, negative, absurd, std::vector<double>{}, std::vector<double>{std::nan("")}}) {
    std::span<double const> from(numbers);
    CHECK(what_of<CheckpointError>([&] { model.restore(from); }).find("not those of a cost model") !=
          std::string::npos);
    CHECK(from.size() == numbers.size());
    CHECK(model.seconds(0, 10) == doctest::Approx(5));
  }
}

TEST_CASE("bad input to scheduling is named in one sentence") {
  CHECK(what_of<ConfigError>([] { CostModel(0); }) == "[fed] a cost model for no workers; give at least 1 worker.");
  for (double const memory : {0.0, -1.0, 1.5, std::nan("")})
    CHECK(what_of<ConfigError>([&] { CostModel(1, {.memory = memory}); }).find("memory") != std::string::npos);
  CostModel model(2);
  CHECK(what_of<ConfigError>([&] { model.observe(2, 1, 1); }) ==
        "[fed] worker 2 of 2 in the cost model; workers are numbered from 0.");
  CHECK(what_of<ConfigError>([&] { model.observe(1, 1, std::nan("")); }).find("worker 1") != std::string::npos);
  CHECK(what_of<ConfigError>([&] { model.observe(1, -1, 1); }).find("not negative") != std::string::npos);
  CHECK(what_of<ConfigError>([&] {
          (void)predict(model, std::vector<std::int64_t>{1, 2}, std::vector<std::int64_t>{5});
        }) == "[fed] 2 clients with 1 sample counts to schedule; give one count per client.");
  CHECK(what_of<ConfigError>([] { (void)longest_first(Costs{{1}, 0, {}}); }).find("no workers") != std::string::npos);
  CHECK(what_of<ConfigError>([] {
          (void)longest_first(Costs{{1, 2}, 2, {1, 2, 3}});
        }).find("3 numbers") != std::string::npos);
  CHECK(what_of<ConfigError>([] {
          (void)longest_first(Costs{{1}, 1, {std::nan("")}});
        }).find("finite") != std::string::npos);
  CHECK(what_of<ConfigError>([] {
          (void)longest_first(Costs{{4, 4}, 1, {1, 1}});
        }) == "[fed] client 4 twice in one round; a client trains once per round.");
  Costs const costs{{1}, 1, {1}};
  CHECK(what_of<ConfigError>([&] { (void)idle_share({{7}}, costs); }).find("client 7 is queued") != std::string::npos);
  CHECK(what_of<ConfigError>([&] { (void)makespan({{1}, {}}, costs); }).find("2 queues") != std::string::npos);
  CHECK(what_of<ConfigError>([] { (void)static_split({}, 5, 1, ServerPlace::alone); }).find("2 or more") !=
        std::string::npos);
  CHECK(what_of<ConfigError>([] { (void)static_split({}, 5, 0, ServerPlace::beside); }).find("0 processes") !=
        std::string::npos);
  CHECK(what_of<ConfigError>([] {
          (void)static_split(std::vector<std::int64_t>{5}, 5, 2, ServerPlace::beside);
        }).find("client 5 of a population of 5") != std::string::npos);
}
