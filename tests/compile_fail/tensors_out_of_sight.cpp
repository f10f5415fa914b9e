// SPDX-License-Identifier: MIT
// expect-error: pardl::for_each_tensor cannot look into this type; write for_each_tensor(T&, f) beside it
#include "pardl/train/for_each_tensor.hpp"

class Opaque {
 public:
  explicit Opaque(torch::Tensor inside) : inside_(inside) {}

 private:
  torch::Tensor inside_;
};

void use(std::tuple<int, torch::Tensor>& seen, Opaque& unseen) {
  pardl::for_each_tensor(seen, [](torch::Tensor&) {});
  (void)unseen;
#ifdef PARDL_COMPILE_FAIL
  pardl::for_each_tensor(unseen, [](torch::Tensor&) {});
#endif
}
