// SPDX-License-Identifier: MIT
// expect-error: link the CMake target pardl::download (target_link_libraries(app pardl::download))
#undef PARDL_WITH_DOWNLOAD  // whatever this file is built with: a program that did not link the target
#include "pardl/data/cifar_download.hpp"

static_assert(pardl::data::cifar100_archive.files.size() == 2);  // the header itself is usable without the target

#ifdef PARDL_COMPILE_FAIL
auto fetch() { return pardl::data::download_cifar100("data"); }
#endif
