// SPDX-License-Identifier: MIT
/// \file   Which images cifar100_wrn trains on, and how to get others.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>

#include "options.hpp"
#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/data/cifar.hpp"
#include "pardl/data/cifar_download.hpp"
#include "pardl/data/idx.hpp"
#include "pardl/data/synthetic.hpp"

namespace cifar100_wrn {

struct Images {
  pardl::data::ImageDataset train, test;
  std::string hint;  ///< how to get CIFAR-100, where this is something else
};

/// What `auto` means here and now.
inline std::string choose_data(std::filesystem::path const& folder) {
  using namespace pardl::data;
  return Cifar100::found(folder) ? "cifar100" : FashionMnist::found(folder) ? "fashion-mnist" : "synthetic";
}

/// Reads, on every rank, what the options name. With --download the first rank of each host fetches, and all others
/// wait. \throws pardl::DataError where files are missing or not what they should be.
inline Images load(Options const& options, pardl::ProcessGroup const& world) {
  using namespace pardl::data;
  std::filesystem::path const folder = options.data_dir;
  std::string name = options.data;
  if (options.download) {
    if (name == "auto") name = "cifar100";
    if (name != "cifar100" && name != "cifar10")
      throw pardl::ConfigError(pardl::sentence("cifar100_wrn", "--download with --data " + name,
                                               "only cifar100 and cifar10 can be fetched"));
    // Once on each host, whose folder may be its own; where it is shared, a lock lets one fetch.
    auto patient = world;  // a line may be slow; a rank that fails says so at once
    auto const usual = world.timeout();
    patient.set_timeout(std::chrono::hours(24));
    if (world.local_rank() == 0) name == "cifar100" ? download_cifar100(folder) : download_cifar10(folder);
    pardl::barrier(patient);
    patient.set_timeout(usual);
  }
  if (name == "auto") name = choose_data(folder);
  std::string const hint = name == "cifar100" ? ""
                                              : " (for CIFAR-100: --data cifar100 --download, or its binary version "
                                                "unpacked in --data-dir " +
                                                    folder.string() + ")";
  if (name == "cifar100") return {Cifar100{folder, Split::train}, Cifar100{folder, Split::test}, hint};
  if (name == "cifar10") return {Cifar10{folder, Split::train}, Cifar10{folder, Split::test}, hint};
  if (name == "fashion-mnist")
    return {FashionMnist{folder, Split::train}.padded(32), FashionMnist{folder, Split::test}.padded(32), hint};
  SyntheticOptions const made{.samples = 10'000, .seed = 1};
  auto unseen = made;
  unseen.samples = 2'000;
  unseen.split = Split::test;
  return {Synthetic{made}, Synthetic{unseen}, hint};
}

}  // namespace cifar100_wrn
