// SPDX-License-Identifier: MIT
/// \file   Whether the server evaluates, and on which parts of the data.
/// \layer  fed (std only).
///
/// \source FederatedScope, core/configs/cfg_fl_setting.py (merge_test_data switches make_global_eval on, merge_val_data
/// counts beside it only) and core/data/base_data.py: preprocess (merged data takes the place of the server's own).
#pragma once

#include <string_view>

#include "pardl/fed/config.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::config_detail {

[[nodiscard]] inline bool server_evaluates(Config const& config) {
  return config.federate.make_global_eval || config.federate.merge_test_data;
}

/// Whether the server has a part (train, val, test) of the data: the clients' that are merged, or its own, where the
/// data has some. Data that comes with its clients, as LEAF's, has none.
[[nodiscard]] inline bool server_has(Config const& config, std::string_view split) {
  if (config.federate.merge_test_data) return split == "test" || (split == "val" && config.federate.merge_val_data);
  if (config.data.type == "toy") return split != "train";
  return config.data.type == "FashionMNIST@torchvision";
}

/// Whether data.splits leaves samples for a part; toy data has its own.
[[nodiscard]] inline bool is_shared_out(Config const& config, std::string_view split) {
  if (config.data.type == "toy") return true;
  return config.data.splits[split == "train" ? 0 : split == "val" ? 1 : 2] > 0.0;
}

}  // namespace pardl::inline PARDL_ABI::fed::config_detail
