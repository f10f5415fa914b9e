// SPDX-License-Identifier: MIT
// expect-error: pardl: an observer needs at least one of on_batch(pardl::BatchEvent const&)
#include "pardl/train/observer.hpp"

namespace {

struct Watches {
  void on_epoch(pardl::EpochEvent const&) {}
};
struct Misspelt {
  void on_epcoh(pardl::EpochEvent const&) {}
};

}  // namespace

void tell() {
  Watches watches;
  pardl::observe(pardl::EpochEvent{}, watches);
#ifdef PARDL_COMPILE_FAIL
  Misspelt misspelt;
  pardl::observe(pardl::EpochEvent{}, watches, misspelt);
#endif
}
