// SPDX-License-Identifier: MIT
/// Microseconds of an all-reduce of float32 in place, for each size: the backend's own and the ring over its messages,
/// beside what memory allows, in turn in one process. Its peers are all_reduce.py and mpi/all_reduce.cpp.
///
/// What memory allows (--limits) are two passes by every rank at once that read a buffer once and write one once, the
/// least that a sum in place can do where the ranks' exchange stays in cache: `copy`, one memcpy into another buffer,
/// half a rotation away, so that neither is in cache; and `rewrite`, one pass that changes each element where it is.
/// Where memcpy reads its destination before it writes there, the second is the stricter one.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "common.hpp"
#include "pardl/comm/ring_all_reduce.hpp"
#include "rotation.hpp"

namespace {

using benchmarks::Arena;

struct Options {
  bool limits = false;
  int repeat = 1;
  std::size_t min_kib = 1, max_kib = 256 << 10, arena_mib = 128;
  benchmarks::Patience patience;
};

/// The other ranks, as measure() asks for them.
struct Ranks {
  pardl::ProcessGroup world;
  void meet() const { pardl::barrier(world); }
  [[nodiscard]] double most(double mine) const {
    auto const value = torch::tensor(mine, torch::kFloat64);
    pardl::all_reduce(world, value, pardl::ReduceOp::max).wait();
    return value.item<double>();
  }
};

/// All that is measured at one size, on buffers of one arena.
class Size {
 public:
  Size(pardl::ProcessGroup const& world, Options const& options, Arena const& arena, std::size_t bytes)
      : ranks_{world},
        options_(options),
        bytes_(bytes),
        floats_(bytes / sizeof(float)),
        data_(arena.data()),
        buffers_(arena.count(bytes)),
        all_(torch::from_blob(data_, {static_cast<std::int64_t>(buffers_ * floats_)})) {}

  /// A rank's tensors of the next block are made before the clock starts.
  template <class AllReduce>
  void all_reduce(std::string const& name, AllReduce&& run) {
    auto const& world = ranks_.world;
    benchmarks::check(data_, bytes_, world.rank(), world.size(), name, [&] { run(tensor(0)); });
    std::vector<torch::Tensor> tensors;
    report(name, benchmarks::measure(
                     ranks_, options_.patience, buffers_,
                     [&](std::size_t first, std::size_t calls) {
                       tensors.clear();
                       for (std::size_t i = 0; i < calls; ++i) tensors.push_back(tensor((first + i) % buffers_));
                     },
                     [&](std::size_t i, std::size_t) { run(tensors[i]); }));
  }

  void copy() {
    pass("copy", [&](std::size_t buffer) { std::memcpy(at((buffer + buffers_ / 2) % buffers_), at(buffer), bytes_); });
  }
  void rewrite() {
    pass("rewrite", [&](std::size_t buffer) {
      constexpr std::size_t step = 64;  // floats; a fixed number, which the compiler makes vectors of
      auto* const begin = at(buffer);
      for (float* x = begin; x != begin + floats_; x += step)
        for (std::size_t i = 0; i < step; ++i) x[i] += 1.0F;
    });
    std::fill_n(data_, buffers_ * floats_, 0.0F);
  }

 private:
  [[nodiscard]] float* at(std::size_t buffer) const { return data_ + buffer * floats_; }
  [[nodiscard]] torch::Tensor tensor(std::size_t buffer) const {
    auto const floats = static_cast<std::int64_t>(floats_);
    return all_.narrow(0, static_cast<std::int64_t>(buffer) * floats, floats);
  }
  template <class Pass>
  void pass(char const* name, Pass&& run) {
    report(name, benchmarks::measure(
                     ranks_, options_.patience, buffers_, [](std::size_t, std::size_t) {},
                     [&](std::size_t, std::size_t buffer) { run(buffer); }));
  }
  void report(std::string const& name, benchmarks::Spread const& us) const {
    if (ranks_.world.rank() == 0)
      benchmarks::report_spread("cpp", name, bytes_, ranks_.world.size(), us, options_.repeat);
  }

  Ranks ranks_;
  Options const& options_;
  std::size_t bytes_, floats_;
  float* data_;
  std::size_t buffers_;
  torch::Tensor all_;
};

}  // namespace

int main(int argc, char** argv) {
  return pardl::launch(argc, argv, [](pardl::ProcessGroup world, int count, char** arguments) {
    Options options;
    CLI::App app{"Microseconds of an all-reduce for each size; --nproc N --backend shm|gloo starts N ranks over it."};
    app.add_flag("--limits", options.limits, "what memory allows, too");
    app.add_option("--min-kib", options.min_kib, "smallest size")->capture_default_str()->check(CLI::PositiveNumber);
    app.add_option("--max-kib", options.max_kib, "largest size; each is 4 times the last")->capture_default_str();
    app.add_option("--arena-mib", options.arena_mib, "memory that a rank's buffers rotate through")
        ->capture_default_str();
    app.add_option("--seconds", options.patience.seconds, "of one size, about")->capture_default_str();
    app.add_option("--repeat", options.repeat, "number of this repetition, for the CSV line")->capture_default_str();
    CLI11_PARSE(app, count, arguments);

    torch::set_num_threads(1);
    Arena const arena(std::max(options.arena_mib << 20, 2 * (options.max_kib << 10)));
    std::string const backend{world.backend()};
    for (std::size_t bytes = options.min_kib << 10; bytes <= options.max_kib << 10; bytes *= 4) {
      Size size(world, options, arena, bytes);
      if (options.limits) size.copy();
      if (options.limits) size.rewrite();
      size.all_reduce(backend, [&](torch::Tensor const& tensor) { pardl::all_reduce(world, tensor).wait(); });
      size.all_reduce("ring-" + backend,
                      [&](torch::Tensor const& tensor) { pardl::ring_all_reduce(world, tensor).wait(); });
    }
    return 0;
  });
}
