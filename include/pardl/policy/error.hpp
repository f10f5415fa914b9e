// SPDX-License-Identifier: MIT
/// \file   What goes wrong, said in one sentence: `[room] rank 3/8: what happened; what to do.`
/// \layer  policy (std only).
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Every exception of this library. what() is a complete sentence that names the room, the rank where one is known,
/// what happened, and what to do about it.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A peer, a transport or a store failed.
class CommError : public Error {
 public:
  using Error::Error;
};

/// Ranks did not come within the group's timeout.
class CommTimeout : public CommError {
 public:
  using CommError::CommError;
};

/// An option, an environment variable or an argument that cannot be right.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A data file or a batch that is not what it should be.
class DataError : public Error {
 public:
  using Error::Error;
};

/// A checkpoint or a state that does not fit.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

/// "[room] what; remedy." — the shape of every message; the remedy may be empty.
[[nodiscard]] inline std::string sentence(std::string_view room, std::string_view what, std::string_view remedy = {}) {
  std::string text;
  text.append("[").append(room).append("] ").append(what);
  if (!remedy.empty()) text.append("; ").append(remedy);
  if (text.back() != '.') text.push_back('.');
  return text;
}

/// "[room] rank r/n: what; remedy." where the rank is known.
[[nodiscard]] inline std::string sentence(std::string_view room, int rank, int size, std::string_view what,
                                          std::string_view remedy = {}) {
  std::string const where = "rank " + std::to_string(rank) + "/" + std::to_string(size) + ": ";
  return sentence(room, where + std::string(what), remedy);
}

}  // namespace pardl::inline PARDL_ABI
