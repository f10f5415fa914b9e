// SPDX-License-Identifier: MIT
/// \file   The door to everything.
/// \layer  door: programs include it, the library does not.
#pragma once

#include "pardl/data/archive.hpp"         // IWYU pragma: export
#include "pardl/data/cifar_download.hpp"  // IWYU pragma: export
#include "pardl/data/download.hpp"        // IWYU pragma: export
#include "pardl/data/idx.hpp"             // IWYU pragma: export
#include "pardl/ddp.hpp"                  // IWYU pragma: export
