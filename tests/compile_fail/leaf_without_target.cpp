// SPDX-License-Identifier: MIT
// expect-error: pardl::data::read_leaf needs nlohmann/json: link the CMake target pardl::json
#undef PARDL_WITH_JSON  // whatever this file is built with: a program that did not link the target
#include "pardl/data/leaf.hpp"

bool found() { return pardl::data::leaf_found("data"); }  // the header itself is usable without the target

#ifdef PARDL_COMPILE_FAIL
auto read() { return pardl::data::read_leaf("data"); }
#endif
