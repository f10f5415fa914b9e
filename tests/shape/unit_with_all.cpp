// SPDX-License-Identifier: MIT
// Everything that this machine's parts give, in a second unit: a function that lacks `inline` would be defined twice.
#include "pardl/ddp.hpp"
#include "shape/units.hpp"

std::string type_with_all() { return typeid(pardl::ProcessGroup).name(); }
std::string gloo_with_all() { return try_gloo(); }
