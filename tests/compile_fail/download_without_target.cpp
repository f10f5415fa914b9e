// SPDX-License-Identifier: MIT
// expect-error: pardl::data::download needs libcurl and OpenSSL: link the CMake target pardl::download
#undef PARDL_WITH_DOWNLOAD  // whatever this file is built with: a program that did not link the target
#include "pardl/data/download.hpp"

pardl::data::DownloadOptions settings() { return {.retries = 2}; }  // the header itself is usable without the target

#ifdef PARDL_COMPILE_FAIL
auto fetch() { return pardl::data::download("https://example.org/a", "a", settings()); }
#endif
