// SPDX-License-Identifier: MIT
// expect-error: pardl::launch runs a function of (pardl::ProcessGroup)
#include "pardl/comm/launch.hpp"

int main(int argc, char** argv) {
#ifdef PARDL_COMPILE_FAIL
  return pardl::launch(argc, argv, [](int rank) { return rank; });
#else
  return pardl::launch(argc, argv, [](pardl::ProcessGroup const& world, std::span<char* const> arguments) {
    return world.size() > 0 && !arguments.empty() ? 0 : 1;
  });
#endif
}
