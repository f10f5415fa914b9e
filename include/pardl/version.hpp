// SPDX-License-Identifier: MIT
/// \file   The version, and the name of the inline namespace that everything lives in.
/// \layer  below all.
///
/// The backends that a translation unit was built with change what inline functions do, so they are part of every
/// symbol's name: two units built differently link side by side, each with its own bodies, instead of sharing one by
/// the linker's choice. The targets pardl::gloo and pardl::nccl define the two macros below; nobody else should.
#pragma once

#define PARDL_VERSION_MAJOR 0
#define PARDL_VERSION_MINOR 1
#define PARDL_VERSION_PATCH 0

#if defined(PARDL_WITH_NCCL) && defined(PARDL_WITH_GLOO)
#define PARDL_ABI v0_1_gloo_nccl
#elif defined(PARDL_WITH_NCCL)
#define PARDL_ABI v0_1_nccl
#elif defined(PARDL_WITH_GLOO)
#define PARDL_ABI v0_1_gloo
#else
#define PARDL_ABI v0_1
#endif

namespace pardl::inline PARDL_ABI {

struct Version {
  int major, minor, patch;
};
inline constexpr Version version{PARDL_VERSION_MAJOR, PARDL_VERSION_MINOR, PARDL_VERSION_PATCH};

}  // namespace pardl::inline PARDL_ABI
