// SPDX-License-Identifier: MIT
/// \file   The door for data-parallel training: launch, groups, samplers, loaders, DistributedDataParallel,
///         DataParallel, ParameterServer, mixed precision, optimizers, schedules, early stopping, metrics and progress.
/// \layer  door: programs include it, the library does not.
#pragma once

#include "pardl/comm/collectives.hpp"                 // IWYU pragma: export
#include "pardl/comm/launch.hpp"                      // IWYU pragma: export
#include "pardl/comm/process_group.hpp"               // IWYU pragma: export
#include "pardl/comm/ring_all_reduce.hpp"             // IWYU pragma: export
#include "pardl/data/cifar.hpp"                       // IWYU pragma: export
#include "pardl/data/data_loader.hpp"                 // IWYU pragma: export
#include "pardl/data/distributed_sampler.hpp"         // IWYU pragma: export
#include "pardl/data/synthetic.hpp"                   // IWYU pragma: export
#include "pardl/data/transforms.hpp"                  // IWYU pragma: export
#include "pardl/policy/any_lr_schedule.hpp"           // IWYU pragma: export
#include "pardl/policy/early_stopping.hpp"            // IWYU pragma: export
#include "pardl/policy/lr_schedule.hpp"               // IWYU pragma: export
#include "pardl/train/amp.hpp"                        // IWYU pragma: export
#include "pardl/train/comm_hooks.hpp"                 // IWYU pragma: export
#include "pardl/train/data_parallel.hpp"              // IWYU pragma: export
#include "pardl/train/distributed_data_parallel.hpp"  // IWYU pragma: export
#include "pardl/train/evaluate.hpp"                   // IWYU pragma: export
#include "pardl/train/flop_counter.hpp"               // IWYU pragma: export
#include "pardl/train/memory_format.hpp"              // IWYU pragma: export
#include "pardl/train/metrics.hpp"                    // IWYU pragma: export
#include "pardl/train/optim.hpp"                      // IWYU pragma: export
#include "pardl/train/parameter_server.hpp"           // IWYU pragma: export
#include "pardl/train/progress.hpp"                   // IWYU pragma: export
#include "pardl/train/ring_hook.hpp"                  // IWYU pragma: export
#include "pardl/version.hpp"                          // IWYU pragma: export
