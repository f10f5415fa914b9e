// SPDX-License-Identifier: MIT
// expect-error: pardl::data::extract_tar_gz needs zlib: link the CMake target pardl::data
#undef PARDL_WITH_ZLIB  // whatever this file is built with: a program that did not link the target
#include "pardl/data/archive.hpp"

pardl::data::ExtractOptions settings() { return {.max_files = 2}; }  // the header itself is usable without the target

#ifdef PARDL_COMPILE_FAIL
auto unpack() { return pardl::data::extract_tar_gz("a.tar.gz", "folder", {.max_files = 2}); }
#endif
