// SPDX-License-Identifier: MIT
#pragma once

#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <string>
#include <typeinfo>

#include "pardl/comm/process_group.hpp"
#include "pardl/policy/environment.hpp"

std::string type_with_all();
std::string type_without_backends();
std::string gloo_with_all();
std::string gloo_without_backends();

// What a unit says when it is asked for Gloo: the backend's name, or the sentence that names the target to link.
static inline std::string try_gloo() {
  try {
    return std::string(pardl::init({.backend = "gloo",
                                    .device = torch::Device(torch::kCPU),
                                    .store = c10::make_intrusive<c10d::HashStore>(),
                                    .environment = pardl::Environment{}})
                           .backend());
  } catch (pardl::ConfigError const& error) {
    return error.what();
  }
}
