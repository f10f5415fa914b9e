// SPDX-License-Identifier: MIT
/// \file   Turns what c10d throws into our sentences, and a few helpers that Work needs.
/// \layer  comm, private.
#pragma once

#include <c10/core/Device.h>
#include <c10/util/Exception.h>
#include <torch/types.h>

#include <algorithm>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Runs a function at most once, whichever of several threads asks first; the others wait until it has run.
class Once {
 public:
  explicit Once(std::function<void()> action) : action_(std::move(action)) {}
  void run() {
    std::call_once(flag_, [&] { action_(); });
  }

 private:
  std::once_flag flag_;
  std::function<void()> action_;
};

/// The accelerators that hold these tensors, each once: what a Future must know to keep streams in order.
inline std::vector<c10::Device> devices_of(std::vector<torch::Tensor> const& tensors) {
  std::vector<c10::Device> devices;
  for (auto const& tensor : tensors) {
    if (!tensor.defined() || tensor.is_cpu()) continue;
    if (std::find(devices.begin(), devices.end(), tensor.device()) == devices.end()) devices.push_back(tensor.device());
  }
  return devices;
}

/// The first line of a message, without the call stack that c10 appends.
inline std::string first_line(std::string_view text) {
  text = text.substr(0, text.find('\n'));
  while (!text.empty() && (text.back() == '.' || text.back() == ' ')) text.remove_suffix(1);
  return std::string(text);
}

/// What an exception says, in one line.
inline std::string reason_of(std::exception_ptr const& error) {
  try {
    std::rethrow_exception(error);
  } catch (c10::Error const& e) {
    return first_line(e.what_without_backtrace());
  } catch (std::exception const& e) {
    return first_line(e.what());
  } catch (...) {
    return "an unknown failure";
  }
}

/// Calls f; an error of c10 becomes a CommError (CommTimeout where it tells of time), ours passes unchanged.
template <class F>
decltype(auto) translated(F&& f) {
  try {
    return std::forward<F>(f)();
  } catch (Error const&) {
    throw;
  } catch (c10::Error const& e) {
    std::string const reason = first_line(e.what_without_backtrace());
    bool const late = reason.find("imed out") != std::string::npos || reason.find("imeout") != std::string::npos;
    std::string const text = sentence("comm", reason, "look at the other ranks' first message");
    if (late) throw CommTimeout(text);
    throw CommError(text);
  }
}

}  // namespace pardl::inline PARDL_ABI::detail
