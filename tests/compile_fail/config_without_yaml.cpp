// SPDX-License-Identifier: MIT
// expect-error: pardl::fed::read_config and parse_config need yaml-cpp: link the CMake target pardl::yaml
#undef PARDL_WITH_YAML  // whatever this file is built with: a program that did not link the target
#include "pardl/fed/config_yaml.hpp"

pardl::fed::Config settings() { return {.seed = 7}; }  // the header itself is usable without the target

#ifdef PARDL_COMPILE_FAIL
auto read() { return pardl::fed::read_config("job.yaml"); }
#endif
