// SPDX-License-Identifier: MIT
/// \file   The door for federated learning: clients' data, sampling, local training, server optimizers, the simulator.
/// \layer  door: programs include it, the library does not. Reading YAML is fed/config_yaml.hpp's, LEAF files are
///         data/leaf.hpp's; both need a CMake target of their own.
#pragma once

#include "pardl/data/synthetic_writers.hpp"      // IWYU pragma: export
#include "pardl/data/toy.hpp"                    // IWYU pragma: export
#include "pardl/data/transforms.hpp"             // IWYU pragma: export
#include "pardl/fed/any_client_sampler.hpp"      // IWYU pragma: export
#include "pardl/fed/any_partitioner.hpp"         // IWYU pragma: export
#include "pardl/fed/any_server_optimizer.hpp"    // IWYU pragma: export
#include "pardl/fed/clients.hpp"                 // IWYU pragma: export
#include "pardl/fed/evaluation.hpp"              // IWYU pragma: export
#include "pardl/fed/local_training.hpp"          // IWYU pragma: export
#include "pardl/fed/one_of.hpp"                  // IWYU pragma: export
#include "pardl/fed/partition_picture.hpp"       // IWYU pragma: export
#include "pardl/fed/partition_report.hpp"        // IWYU pragma: export
#include "pardl/fed/personal.hpp"                // IWYU pragma: export
#include "pardl/fed/runner.hpp"                  // IWYU pragma: export
#include "pardl/fed/schedule.hpp"                // IWYU pragma: export
#include "pardl/policy/evaluation_patience.hpp"  // IWYU pragma: export
#include "pardl/train/any_module.hpp"            // IWYU pragma: export
#include "pardl/train/summary_writer.hpp"        // IWYU pragma: export
#include "pardl/version.hpp"                     // IWYU pragma: export
