// SPDX-License-Identifier: MIT
/// Parameter server and ring all-reduce from scratch, beside DataParallel and DistributedDataParallel, on
/// Fashion-MNIST.
//
//   examples/run parallel_from_scratch --strategy ring_all_reduce --nproc 2
//   examples/run parallel_from_scratch --strategy param_server --n-gpus 4 --batch-size 512 --epochs 5
//   examples/run parallel_from_scratch --compare                 all four: tables, pictures and a report
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "compare.hpp"
#include "options.hpp"
#include "pardl/policy/environment.hpp"
#include "report.hpp"
#include "trial.hpp"

namespace parallel_from_scratch {

using Arguments = std::vector<std::string>;

/// Calls take(name, words) for each option with a value among `names`, and leave(word) for every other word.
template <class Take, class Leave>
void sift(Arguments const& arguments, std::vector<std::string_view> const& names, Take&& take, Leave&& leave) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    std::string_view const word = arguments[i];
    auto const name = word.substr(0, word.find('='));
    if (std::ranges::find(names, name) == names.end())
      leave(arguments[i]);
    else if (name.size() < word.size() || i + 1 == arguments.size())
      take(Arguments{arguments[i]});
    else
      take(Arguments{arguments[i], arguments[i + 1]}), ++i;
  }
}

/// Those options, as they were written.
Arguments handed_on(Arguments const& arguments, std::vector<std::string_view> const& names) {
  Arguments all;
  sift(
      arguments, names, [&](Arguments const& words) { all.insert(all.end(), words.begin(), words.end()); },
      [](std::string const&) {});
  return all;
}

/// As launch shall see them: a rank may start afresh with them, so nothing may be missing.
Arguments for_launch(char const* program, Arguments const& arguments, Options const& options) {
  Arguments all{program};
  sift(
      arguments, {"--n-gpus", "--n_gpus", "--nproc", "--device", "--devices"}, [](Arguments const&) {},
      [&](std::string const& word) { all.push_back(word); });
  bool const dp = options.strategy == "dp";
  all.insert(all.end(), {"--device", options.device});
  if (dp) all.insert(all.end(), {"--devices", std::to_string(options.ranks)});
  // A parameter server's messages lie in host memory, which NCCL, the choice for GPUs, cannot send.
  if (options.strategy == "param_server" && options.device == "cuda" && handed_on(arguments, {"--backend"}).empty())
    all.insert(all.end(), {"--backend", "gloo"});
  if (pardl::read_environment().launcher == pardl::Launcher::none)
    all.insert(all.end(), {"--nproc", dp ? "1" : std::to_string(options.ranks)});
  return all;
}

int run(int argc, char** argv) {
  Arguments const arguments(argv + 1, argv + argc);
  auto const options = parse(arguments);
  if (!options) return 0;
  if (options->compare) {
    check_gnuplot();
    Comparison const comparison{*options, handed_on(arguments, {"--timeout", "--data-dir"}),
                                handed_on(arguments, {"--backend"})};
    Report const report{comparison};
    report.write();
    std::printf("\n%s\nTable, pictures and this text are in %s\n", report.text().c_str(), options->out.c_str());
    return 0;
  }
  auto words = for_launch(argv[0], arguments, *options);
  std::vector<char*> pointers;
  for (auto& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pardl::launch(static_cast<int>(words.size()), pointers.data(),
                       [&](pardl::ProcessGroup const& world) {
                         Trial{*options, world}.run();
                       },
                       {.on_rank_failure = options->keep_going ? pardl::keep_going : pardl::stop_all});
}

}  // namespace parallel_from_scratch

int main(int argc, char** argv) {
  try {
    return parallel_from_scratch::run(argc, argv);
  } catch (pardl::ConfigError const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  } catch (parallel_from_scratch::Interrupted const& end) {
    std::fprintf(stderr, "%s\n", end.what());
    return 128 + end.signal;
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
