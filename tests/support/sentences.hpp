// SPDX-License-Identifier: MIT
// What a call throws, in words, and what those words say.
#pragma once

#include <exception>
#include <string>
#include <string_view>

#include "pardl/policy/error.hpp"

namespace pardl::testing {

inline bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// "CommTimeout: text" of what f throws, "other: text" of what is none of the group's errors; "nothing".
template <class F>
std::string outcome(F&& f) {
  try {
    f();
  } catch (CommTimeout const& e) {
    return std::string("CommTimeout: ") + e.what();
  } catch (CommError const& e) {
    return std::string("CommError: ") + e.what();
  } catch (std::exception const& e) {
    return std::string("other: ") + e.what();
  }
  return "nothing";
}

}  // namespace pardl::testing
