// SPDX-License-Identifier: MIT
// The ABI test: two units of one program, built with different backends, each keep their own functions.
#include <iostream>

#include "pardl/ddp.hpp"
#include "shape/units.hpp"

int main() {
#ifdef PARDL_WITH_GLOO
  bool const differs = type_with_all() != type_without_backends();
  bool const own_bodies = gloo_with_all() == "gloo" && gloo_without_backends().find("pardl::gloo") != std::string::npos;
  std::cout << "types " << type_with_all() << " and " << type_without_backends() << "\nwith: " << gloo_with_all()
            << "\nwithout: " << gloo_without_backends() << "\n";
  return differs && own_bodies ? 0 : 1;
#else
  std::cout << "skipped: this machine has no pardl::gloo to differ by\n";
  return 0;
#endif
}
