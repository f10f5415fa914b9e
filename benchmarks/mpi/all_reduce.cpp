// SPDX-License-Identifier: MIT
/// MPI's side of the all-reduce benchmark: MPI_Allreduce of float32 in place. benchmarks/run compiles it with mpicxx
/// where there is one and starts it with mpirun; CMake does not know it, since nothing else here needs MPI.
///
/// all_reduce_mpi REPEAT ARENA-MIB SECONDS MIN-KIB MAX-KIB
#define OMPI_SKIP_MPICXX 1  // Open MPI's old C++ interface: not needed, and it warns
#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>

#include "../rotation.hpp"

namespace {

/// The other ranks, as measure() asks for them.
struct Ranks {
  void meet() const { MPI_Barrier(MPI_COMM_WORLD); }
  [[nodiscard]] double most(double mine) const {
    MPI_Allreduce(MPI_IN_PLACE, &mine, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return mine;
  }
};

void run(int rank, int ranks, char** arguments) {
  int const repeat = std::atoi(arguments[1]);
  auto const number = [&](int i) { return static_cast<std::size_t>(std::atoll(arguments[i])); };
  benchmarks::Patience const patience{.seconds = std::atof(arguments[3])};
  std::size_t const least = number(4) << 10, most = number(5) << 10;
  benchmarks::Arena const arena(std::max(number(2) << 20, 2 * most));
  Ranks others;
  for (std::size_t bytes = least; bytes <= most; bytes *= 4) {
    auto const floats = bytes / sizeof(float);
    auto const all_reduce = [&](std::size_t buffer) {
      MPI_Allreduce(MPI_IN_PLACE, arena.data() + buffer * floats, static_cast<int>(floats), MPI_FLOAT, MPI_SUM,
                    MPI_COMM_WORLD);
    };
    benchmarks::check(arena.data(), bytes, rank, ranks, "MPI_Allreduce", [&] { all_reduce(0); });
    auto const us = benchmarks::measure(
        others, patience, arena.count(bytes), [](std::size_t, std::size_t) {},
        [&](std::size_t, std::size_t buffer) { all_reduce(buffer); });
    if (rank == 0) benchmarks::report_spread("mpi", "mpi", bytes, ranks, us, repeat);
  }
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, ranks = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  try {
    if (argc != 6) throw std::runtime_error("usage: all_reduce_mpi REPEAT ARENA-MIB SECONDS MIN-KIB MAX-KIB");
    run(rank, ranks, argv);
  } catch (std::exception const& e) {
    std::fprintf(stderr, "all_reduce_mpi: rank %d: %s\n", rank, e.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
