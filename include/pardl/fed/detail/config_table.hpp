// SPDX-License-Identifier: MIT
/// \file   The table of keys, first part: those whose value is kept in a Config. The order is that of the written file.
/// \layer  fed (std only).
///
/// From these rows come reading, checking, help and writing. To build a key that is known only, take `Status::known`
/// off its row, or move a word from a rule's second list to its first.
#pragma once

#include <span>

#include "pardl/fed/config.hpp"
#include "pardl/fed/detail/config_key.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed::config_detail {

inline std::span<Key const> job_keys() {
  constexpr auto known = Status::known;
  static constexpr Key keys[] = {
      {"use_gpu", [](Config& c) -> Field { return &c.use_gpu; }, any_value, "train on GPUs where there are any"},
      {"device", [](Config& c) -> Field { return &c.device; }, at_least(-1),
       "first GPU to use; -1: the first there is"},
      {"backend", [](Config& c) -> Field { return &c.backend; }, one_of("torch", "tensorflow"),
       "library that computes"},
      {"seed", [](Config& c) -> Field { return &c.seed; }, at_least(0), "seed of everything random"},
      {"outdir", [](Config& c) -> Field { return &c.outdir; }, any_value, "folder for logs and results"},
      {"expname", [](Config& c) -> Field { return &c.expname; }, any_value,
       "name of this run's folder in outdir; empty: made from method, model, data, rate and steps"},
      {"expname_tag", [](Config& c) -> Field { return &c.expname_tag; }, any_value, "appended to that name"},
      {"verbose", [](Config& c) -> Field { return &c.verbose; }, at_least(0), "how much is logged", known},
      {"print_decimal_digits", [](Config& c) -> Field { return &c.print_decimal_digits; }, between(0, 17),
       "decimals of numbers in the logs", known},

      {"federate.client_num", [](Config& c) -> Field { return &c.federate.client_num; }, at_least(0),
       "clients; 0: as many as the data has"},
      {"federate.sample_client_num", [](Config& c) -> Field { return &c.federate.sample_client_num; },
       or_unset(at_least(1), -1), "clients trained in a round"},
      {"federate.sample_client_rate", [](Config& c) -> Field { return &c.federate.sample_client_rate; },
       or_unset(rate(), -1), "share of the clients trained in a round, rounded down; goes before sample_client_num"},
      {"federate.unseen_clients_rate", [](Config& c) -> Field { return &c.federate.unseen_clients_rate; }, below_one(),
       "share of the clients that are evaluated and never trained"},
      {"federate.total_round_num", [](Config& c) -> Field { return &c.federate.total_round_num; }, at_least(1),
       "rounds at most"},
      {"federate.mode", [](Config& c) -> Field { return &c.federate.mode; }, one_of("standalone", "distributed"),
       "where clients run"},
      {"federate.share_local_model", [](Config& c) -> Field { return &c.federate.share_local_model; }, any_value,
       "clients take turns on one model in memory; here they always do, one model a worker"},
      {"federate.data_weighted_aggr", [](Config& c) -> Field { return &c.federate.data_weighted_aggr; }, any_value,
       "weigh clients by the size of their training data, not by what they processed", known},
      {"federate.online_aggr", [](Config& c) -> Field { return &c.federate.online_aggr; }, any_value,
       "add updates as they arrive; here that is always so where the rule allows it"},
      {"federate.make_global_eval", [](Config& c) -> Field { return &c.federate.make_global_eval; }, any_value,
       "the server evaluates the global model, on its own data or, with merge_test_data, on the clients'"},
      {"federate.merge_test_data", [](Config& c) -> Field { return &c.federate.merge_test_data; }, any_value,
       "the server evaluates, on all clients' test data as one set"},
      {"federate.merge_val_data", [](Config& c) -> Field { return &c.federate.merge_val_data; }, any_value,
       "and on their validation data; only beside merge_test_data"},
      {"federate.method", [](Config& c) -> Field { return &c.federate.method; },
       one_of("FedAvg FedProx FedOpt FedNova SCAFFOLD Ditto FedBN FedRep",
              "local global pFedMe FedEM FedSageplus GCFLplus FLITplus fedswa nbafl "
              "sgdmf gradascent simple_tuning"),
       "algorithm"},
      {"federate.ignore_weight", [](Config& c) -> Field { return &c.federate.ignore_weight; }, any_value,
       "all clients count the same in the mean"},
      {"federate.use_ss", [](Config& c) -> Field { return &c.federate.use_ss; }, any_value, "secret sharing", known},
      {"federate.restore_from", [](Config& c) -> Field { return &c.federate.restore_from; }, any_value,
       "file of weights to start from"},
      {"federate.save_to", [](Config& c) -> Field { return &c.federate.save_to; }, any_value,
       "file for the final weights"},
      {"federate.sampler", [](Config& c) -> Field { return &c.federate.sampler; },
       one_of("uniform", "group responsiveness"), "how the clients of a round are drawn"},
      {"federate.process_num", [](Config& c) -> Field { return &c.federate.process_num; }, between(1, 4096),
       "workers that train clients at the same time"},

      {"data.root", [](Config& c) -> Field { return &c.data.root; }, any_value, "folder of the data"},
      {"data.type", [](Config& c) -> Field { return &c.data.type; },
       one_of("toy femnist FashionMNIST@torchvision synthetic_femnist",
              "celeba shakespeare twitter synthetic quadratic movielens1m netflix cora citeseer pubmed "
              "MNIST@torchvision EMNIST@torchvision CIFAR10@torchvision CIFAR100@torchvision"),
       "data set"},
      {"data.args", [](Config& c) -> Field { return &c.data.args; }, any_value, "for its reader, as [{'key': value}]",
       known},
      {"data.splitter", [](Config& c) -> Field { return &c.data.splitter; },
       one_of("'' iid lda dirichlet dirichlet-quantity log-normal pathological shards",
              "louvain random rel_type scaffold scaffold_lda"),
       "partitioner, for data without owners"},
      {"data.splitter_args", [](Config& c) -> Field { return &c.data.splitter_args; }, any_value,
       "for the partitioner, as [{'alpha': 0.5}]"},
      {"data.subsample", [](Config& c) -> Field { return &c.data.subsample; }, rate(),
       "share of the data that is used; of LEAF data, of its files"},
      {"data.splits", [](Config& c) -> Field { return &c.data.splits; }, between(0, 1),
       "train, validation and test share of each client's samples"},
      {"data.consistent_label_distribution", [](Config& c) -> Field { return &c.data.consistent_label_distribution; },
       any_value, "keep a client's mix of labels over its splits", known},
      {"data.transform", [](Config& c) -> Field { return &c.data.transform; },
       one_of("ToTensor Normalize RandomCrop RandomHorizontalFlip",
              "Resize CenterCrop RandomResizedCrop RandomRotation Grayscale "
              "ColorJitter RandomVerticalFlip Pad "
              "Lambda Compose"),
       "for the inputs, as [['ToTensor'], ['Normalize', {'mean': [0.5], 'std': [0.5]}]]"},
      {"data.target_transform", [](Config& c) -> Field { return &c.data.target_transform; }, any_value,
       "the same for the targets", known},
      {"data.val_transform", [](Config& c) -> Field { return &c.data.val_transform; }, any_value,
       "for validation inputs; empty: transform without what is random", known},
      {"data.test_transform", [](Config& c) -> Field { return &c.data.test_transform; }, any_value,
       "for test inputs; empty: transform without what is random", known},

      {"dataloader.type", [](Config& c) -> Field { return &c.dataloader.type; },
       one_of("base", "raw pyg graphsaint-rw neighbor mf"), "kind of loader"},
      {"dataloader.batch_size", [](Config& c) -> Field { return &c.dataloader.batch_size; }, between(1, 2147483648.0),
       "samples of a batch"},
      {"dataloader.shuffle", [](Config& c) -> Field { return &c.dataloader.shuffle; }, any_value,
       "a new order for each pass over the data"},
      {"dataloader.num_workers", [](Config& c) -> Field { return &c.dataloader.num_workers; }, between(0, 1024),
       "threads that prepare batches ahead", known},
      {"dataloader.drop_last", [](Config& c) -> Field { return &c.dataloader.drop_last; }, any_value,
       "leave out a last batch that is not full"},
      {"dataloader.pin_memory", [](Config& c) -> Field { return &c.dataloader.pin_memory; }, any_value,
       "page-locked batches, for copies to a GPU", known},

      {"model.type", [](Config& c) -> Field { return &c.model.type; },
       one_of("lr convnet2", "convnet5 vgg11 mlp lenet lstm quadratic resnet"), "architecture"},
      {"model.task", [](Config& c) -> Field { return &c.model.task; }, any_value, "kind of task", known},
      {"model.use_bias", [](Config& c) -> Field { return &c.model.use_bias; }, any_value, "biases in linear layers"},
      {"model.hidden", [](Config& c) -> Field { return &c.model.hidden; }, at_least(1), "width of the hidden layer"},
      {"model.dropout", [](Config& c) -> Field { return &c.model.dropout; }, below_one(),
       "probability that a unit is dropped"},
      {"model.in_channels", [](Config& c) -> Field { return &c.model.in_channels; }, at_least(0),
       "input channels or features; 0: by the data"},
      {"model.out_channels", [](Config& c) -> Field { return &c.model.out_channels; }, at_least(1), "outputs, classes"},
      {"model.layer", [](Config& c) -> Field { return &c.model.layer; }, at_least(1), "layers", known},
  };
  return keys;
}

}  // namespace pardl::inline PARDL_ABI::fed::config_detail
