// SPDX-License-Identifier: MIT
// Parity with Python, live: a script next to the test does the work with the same LibTorch and leaves what it saw, and
// the test does the same in C++ and compares. $PARDL_PYTHON names the interpreter.
#pragma once

#include <doctest/doctest.h>
#include <torch/csrc/api/include/torch/serialize.h>
#include <torch/types.h>
#include <torch/version.h>

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "support/temporary_folder.hpp"

namespace pardl::testing {

using Trace = c10::impl::GenericDict;

/// Runs `script OUT`, which leaves torch.save({"version": torch.__version__, ...}) in OUT, and reads that. Nothing, and
/// a message, where there is no Python or its torch is another than ours.
inline std::optional<Trace> python_trace(std::filesystem::path const& script) {
  char const* const python = std::getenv("PARDL_PYTHON");
  if (!python || !*python) {
    MESSAGE("skipped: PARDL_PYTHON names no Python with torch");
    return {};
  }
  TemporaryFolder const folder;
  auto const out = folder / "trace.pt";
  std::string const command =
      "OMP_NUM_THREADS=1 '" + std::string(python) + "' '" + script.string() + "' '" + out.string() + "'";
  auto const code = std::system(command.c_str());
  REQUIRE_MESSAGE(code == 0, command);
  auto const text = read_text(out);
  auto const trace = torch::pickle_load(std::vector<char>(text.begin(), text.end())).toGenericDict();
  auto const version = trace.at("version").toStringRef();
  if (version.rfind(TORCH_VERSION, 0) != 0 &&
      std::string(TORCH_VERSION).rfind(version.substr(0, version.find('+')), 0) != 0) {
    MESSAGE("skipped: Python has torch ", version, ", this program LibTorch ", TORCH_VERSION);
    return {};
  }
  return trace;
}

inline std::vector<torch::Tensor> tensors(c10::IValue const& list) {
  std::vector<torch::Tensor> all;
  for (c10::IValue const& item : list.toList()) all.push_back(item.isNone() ? torch::Tensor() : item.toTensor());
  return all;
}

}  // namespace pardl::testing
