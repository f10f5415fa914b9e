// SPDX-License-Identifier: MIT
// Built with pardl::pardl only, and linked beside units that have Gloo and NCCL.
#include "pardl/ddp.hpp"
#include "shape/units.hpp"

std::string type_without_backends() { return typeid(pardl::ProcessGroup).name(); }
std::string gloo_without_backends() { return try_gloo(); }
