// SPDX-License-Identifier: MIT
/// \file   A federated job's settings: FederatedScope's keys as plain nested aggregates, with its names and defaults.
/// \layer  fed (std only).
///
/// `federate.client_num` of a YAML file is `config.federate.client_num` here. A default-constructed Config is what an
/// empty file would mean. Reading and writing: fed/config_keys.hpp (command line, help, YAML out) and
/// fed/config_yaml.hpp (YAML in). What follows from the settings, such as the clients of a round: fed/config_rules.hpp.
/// Keys of sections that are known and not built have no member: they may only hold their default.
/// \source FederatedScope's key names and defaults: https://github.com/alibaba/FederatedScope, core/configs.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

// ---- named things with arguments -----------------------------------------------------------------------------------

/// One argument's value. A list of numbers is always doubles; an empty list is one too.
using ArgumentValue =
    std::variant<bool, std::int64_t, double, std::string, std::vector<double>, std::vector<std::string>>;

struct Argument {
  std::string name;
  ArgumentValue value;
  friend bool operator==(Argument const&, Argument const&) = default;
};
using Arguments = std::vector<Argument>;  ///< in the order they were given; no name twice

/// A thing to make and what to make it with: `['Normalize', {'mean': [0.1307], 'std': [0.3081]}]`.
struct Call {
  std::string name;
  Arguments args{};
  friend bool operator==(Call const&, Call const&) = default;
};
using Calls = std::vector<Call>;

/// The argument of that name, or null.
[[nodiscard]] inline ArgumentValue const* find_argument(Arguments const& args, std::string_view name) {
  for (Argument const& arg : args)
    if (arg.name == name) return &arg.value;
  return nullptr;
}

namespace detail {

/// As a function and not an initialiser: g++ 12 crashes over `Config{}` in a template where a member's default is a
/// list of strings.
[[nodiscard]] inline std::vector<std::string> texts(std::initializer_list<char const*> words) {
  return {words.begin(), words.end()};
}

[[noreturn]] inline void refuse_argument(std::string_view owner, std::string_view name, char const* what,
                                         char const* remedy) {
  throw ConfigError(sentence("config", std::string(owner) + "'s argument '" + std::string(name) + "' " + what, remedy));
}

}  // namespace detail

/// A number among the arguments, or `otherwise` if it is not given. `owner` is who takes it, for the message.
/// \throws ConfigError if it is given and is no number.
[[nodiscard]] inline double number_argument(Arguments const& args, std::string_view owner, std::string_view name,
                                            double otherwise) {
  ArgumentValue const* value = find_argument(args, name);
  if (value == nullptr) return otherwise;
  if (auto const* real = std::get_if<double>(value)) return *real;
  if (auto const* whole = std::get_if<std::int64_t>(value)) return static_cast<double>(*whole);
  detail::refuse_argument(owner, name, "is no number", "give a number such as 0.5");
}

/// Numbers among the arguments; one number counts as a list of one; empty if not given.
/// \throws ConfigError if it is given and is not numbers.
[[nodiscard]] inline std::vector<double> numbers_argument(Arguments const& args, std::string_view owner,
                                                          std::string_view name) {
  ArgumentValue const* value = find_argument(args, name);
  if (value == nullptr) return {};
  if (auto const* list = std::get_if<std::vector<double>>(value)) return *list;
  if (auto const* real = std::get_if<double>(value)) return {*real};
  if (auto const* whole = std::get_if<std::int64_t>(value)) return {static_cast<double>(*whole)};
  detail::refuse_argument(owner, name, "is no list of numbers", "give a list such as [0.1307]");
}

/// A true or false among the arguments, or `otherwise` if it is not given.
/// \throws ConfigError if it is given and is neither.
[[nodiscard]] inline bool flag_argument(Arguments const& args, std::string_view owner, std::string_view name,
                                        bool otherwise) {
  ArgumentValue const* value = find_argument(args, name);
  if (value == nullptr) return otherwise;
  if (auto const* flag = std::get_if<bool>(value)) return *flag;
  detail::refuse_argument(owner, name, "is neither True nor False", "give True or False");
}

/// So that no argument is silently ignored: all must be among `known`.
/// \throws ConfigError that names the first other one.
inline void require_known_arguments(Arguments const& args, std::string_view owner,
                                    std::vector<std::string_view> const& known) {
  for (Argument const& arg : args) {
    bool found = false;
    std::string names;
    for (std::string_view const name : known) {
      found = found || name == arg.name;
      names.append(names.empty() ? "" : ", ").append(name);
    }
    if (found) continue;
    throw ConfigError(sentence("config", std::string(owner) + " takes no argument '" + arg.name + "'",
                               known.empty() ? "it takes none" : "it takes " + names));
  }
}

// ---- the sections --------------------------------------------------------------------------------------------------

struct FederateConfig {
  std::int64_t client_num = 0;          ///< clients; 0: as many as the data has
  std::int64_t sample_client_num = -1;  ///< clients trained in a round; -1: see sample_client_rate
  double sample_client_rate = -1.0;     ///< share of the clients trained in a round; goes before the number; -1: all
  double unseen_clients_rate = 0.0;     ///< share of the clients that are evaluated and never trained
  std::int64_t total_round_num = 50;    ///< rounds at most
  std::string mode = "standalone";      ///< all clients on this machine
  bool share_local_model = false;       ///< FederatedScope's saving of memory; always so here
  bool data_weighted_aggr = false;  ///< weigh clients by the size of their training data, not by what they processed
  bool online_aggr = false;         ///< add updates as they arrive; always so here where the rule allows it
  bool make_global_eval = false;    ///< the server evaluates the global model, and no client does
  bool merge_test_data = false;     ///< it does, on all clients' test data together
  bool merge_val_data = false;      ///< and on their validation data; only beside merge_test_data
  std::string method = "FedAvg";    ///< the algorithm
  bool ignore_weight = false;       ///< all clients count the same in the mean
  bool use_ss = false;              ///< secret sharing
  std::string restore_from{};       ///< file of weights to start from; empty: none
  std::string save_to{};            ///< file for the final weights; empty: none
  std::string sampler = "uniform";  ///< how the clients of a round are drawn
  std::int64_t process_num = 1;     ///< workers that train clients at the same time
  friend bool operator==(FederateConfig const&, FederateConfig const&) = default;
};

struct DataConfig {
  std::string root = "data";                   ///< folder of the data
  std::string type = "toy";                    ///< data set
  Arguments args{};                            ///< for the data set's reader
  std::string splitter{};                      ///< partitioner, for data without owners; empty: by owner
  Arguments splitter_args{};                   ///< for the partitioner
  double subsample = 1.0;                      ///< share of the data that is used (LEAF: of its files)
  std::vector<double> splits{0.8, 0.1, 0.1};   ///< train, validation and test shares of each client's samples
  bool consistent_label_distribution = false;  ///< keep each client's label mix over its three splits
  Calls transform{};                           ///< for the inputs, in order
  Calls target_transform{};                    ///< for the targets
  Calls val_transform{};                       ///< for the validation inputs; empty: transform without what is random
  Calls test_transform{};                      ///< for the test inputs; empty: transform without what is random
  friend bool operator==(DataConfig const&, DataConfig const&) = default;
};

struct DataloaderConfig {
  std::string type = "base";     ///< kind of loader
  std::int64_t batch_size = 64;  ///< samples
  bool shuffle = true;           ///< a new order each epoch
  std::int64_t num_workers = 0;  ///< threads that prepare batches ahead
  bool drop_last = false;        ///< leave out a last batch that is not full
  bool pin_memory = false;       ///< page-locked batches, for copies to a GPU
  friend bool operator==(DataloaderConfig const&, DataloaderConfig const&) = default;
};

struct ModelConfig {
  std::string type = "lr";        ///< architecture
  std::string task = "node";      ///< kind of task
  bool use_bias = true;           ///< biases in linear layers
  std::int64_t hidden = 256;      ///< width of the hidden layer
  double dropout = 0.5;           ///< probability that a unit is dropped
  std::int64_t in_channels = 0;   ///< input channels or features; 0: by the data
  std::int64_t out_channels = 1;  ///< outputs (classes)
  std::int64_t layer = 2;         ///< layers
  friend bool operator==(ModelConfig const&, ModelConfig const&) = default;
};

/// `train.optimizer` and `fedopt.optimizer`; the defaults but lr are PyTorch's.
struct OptimizerConfig {
  std::string type = "SGD";               ///< torch.optim's name
  double lr = 0.1;                        ///< learning rate
  double weight_decay = 0.0;              ///< L2 penalty
  double momentum = 0.0;                  ///< SGD
  double dampening = 0.0;                 ///< SGD
  bool nesterov = false;                  ///< SGD
  std::vector<double> betas{0.9, 0.999};  ///< Adam, AdamW, Yogi
  double eps = 1e-8;                      ///< added to the denominator: Adam, AdamW, Adagrad, Yogi
  bool amsgrad = false;                   ///< Adam, AdamW
  friend bool operator==(OptimizerConfig const&, OptimizerConfig const&) = default;
};

/// `train.scheduler`: learning rate over the batches of one local training. Empty type: constant.
struct SchedulerConfig {
  std::string type{};                      ///< torch.optim.lr_scheduler's name; empty: none
  double warmup_ratio = 0.0;               ///< share of the steps that warm up
  std::int64_t step_size = 0;              ///< StepLR: steps between two decays; 0: not given
  double gamma = 0.1;                      ///< StepLR, MultiStepLR, ExponentialLR: factor of a decay
  std::vector<std::int64_t> milestones{};  ///< MultiStepLR: steps of the decays
  std::int64_t T_max = 0;                  ///< CosineAnnealingLR: steps to the lowest rate; 0: not given
  double eta_min = 0.0;                    ///< CosineAnnealingLR: lowest rate
  friend bool operator==(SchedulerConfig const&, SchedulerConfig const&) = default;
};

struct TrainConfig {
  std::int64_t local_update_steps = 1;   ///< batches or epochs of one local training
  std::string batch_or_epoch = "batch";  ///< what they count
  OptimizerConfig optimizer{};
  SchedulerConfig scheduler{};
  bool is_enable_half = false;  ///< half precision
  friend bool operator==(TrainConfig const&, TrainConfig const&) = default;
};

struct GradConfig {
  double grad_clip = -1.0;            ///< largest norm of a gradient; negative: no clipping
  std::int64_t grad_accum_count = 1;  ///< batches whose gradients are added before a step
  friend bool operator==(GradConfig const&, GradConfig const&) = default;
};

struct CriterionConfig {
  std::string type = "MSELoss";  ///< torch.nn's name
  friend bool operator==(CriterionConfig const&, CriterionConfig const&) = default;
};

struct RegularizerConfig {
  std::string type{};  ///< proximal_regularizer, or none
  double mu = 0.0;     ///< its weight
  friend bool operator==(RegularizerConfig const&, RegularizerConfig const&) = default;
};

struct TrainerConfig {
  std::string type = "general";  ///< kind of data the trainer is for
  friend bool operator==(TrainerConfig const&, TrainerConfig const&) = default;
};

struct EvalConfig {
  std::int64_t freq = 1;                                            ///< rounds between two evaluations
  std::vector<std::string> metrics{};                               ///< beside loss, avg_loss and total
  std::vector<std::string> split = detail::texts({"test", "val"});  ///< of each client's data
  std::vector<std::string> report =
      detail::texts({"weighted_avg", "avg", "fairness", "raw"});  ///< forms of the results
  std::string best_res_update_round_wise_key = "val_loss";        ///< what early stopping and the best model watch
  bool count_flops = true;                                        ///< of training's forwards, for system_metrics.log
  friend bool operator==(EvalConfig const&, EvalConfig const&) = default;
};

struct EarlyStopConfig {
  std::int64_t patience = 5;                    ///< evaluations without improvement; 0: never stop
  double delta = 0.0;                           ///< an improvement is at least this
  std::string improve_indicator_mode = "best";  ///< against the best, or the mean of the last `patience`
  friend bool operator==(EarlyStopConfig const&, EarlyStopConfig const&) = default;
};

struct PersonalizationConfig {
  std::vector<std::string> local_param{};  ///< parameters whose name has one of these words stay with the client
  bool share_non_trainable_para = false;   ///< buffers (batch norm's statistics) travel too
  std::int64_t local_update_steps = -1;    ///< of the personal model; -1: train.local_update_steps
  double regular_weight = 0.1;             ///< Ditto: pull of the personal model to the global one
  double lr = 0.0;                         ///< of the personal model; 0: train.optimizer.lr
  double lr_feature = 0.1;                 ///< FedRep: learning rate of the body
  double lr_linear = 0.1;                  ///< FedRep: learning rate of the head
  std::int64_t epoch_feature = 1;          ///< FedRep: epochs of the body
  std::int64_t epoch_linear = 2;           ///< FedRep: epochs of the head
  double weight_decay = 0.0;               ///< FedRep: of both
  friend bool operator==(PersonalizationConfig const&, PersonalizationConfig const&) = default;
};

struct FedOptConfig {
  bool use = false;  ///< a server optimizer on the averaged update
  OptimizerConfig optimizer{.lr = 0.01};
  bool annealing = false;                   ///< decay the server's learning rate
  std::int64_t annealing_step_size = 2000;  ///< rounds between two decays
  double annealing_gamma = 0.5;             ///< factor of a decay
  friend bool operator==(FedOptConfig const&, FedOptConfig const&) = default;
};

struct FedProxConfig {
  bool use = false;  ///< a proximal term in the clients' loss
  double mu = 0.0;   ///< its weight
  friend bool operator==(FedProxConfig const&, FedProxConfig const&) = default;
};

/// `aggregator.BFT_args`.
struct BftArgsConfig {
  std::int64_t krum_agg_num = 1;             ///< krum: updates that are averaged; more than 1 is multi-Krum
  double trimmedmean_excluded_ratio = -1.0;  ///< trimmedmean: share cut off at each end; -1: not given
  double normbounding_norm_bound = -1.0;     ///< normbounding: largest norm of an update; -1: not given
  friend bool operator==(BftArgsConfig const&, BftArgsConfig const&) = default;
};

struct AggregatorConfig {
  std::string robust_rule = "fedavg";   ///< how updates become one
  std::int64_t byzantine_node_num = 0;  ///< clients that may lie
  BftArgsConfig BFT_args{};
  friend bool operator==(AggregatorConfig const&, AggregatorConfig const&) = default;
};

struct QuantizationConfig {
  std::string method = "none";  ///< none or uniform
  std::int64_t nbits = 8;       ///< 8 or 16
  friend bool operator==(QuantizationConfig const&, QuantizationConfig const&) = default;
};

struct AsynConfig {
  bool use = false;                                    ///< asynchronous rounds
  double time_budget = 0.0;                            ///< seconds of a round
  std::int64_t min_received_num = 2;                   ///< updates that end a round
  double min_received_rate = -1.0;                     ///< the same as a share
  std::int64_t staleness_toleration = 0;               ///< rounds that an update may be late
  double staleness_discount_factor = 1.0;              ///< exponent of the discount
  std::string aggregator = "goal_achieved";            ///< or time_up
  std::string broadcast_manner = "after_aggregating";  ///< or after_receiving
  bool overselection = false;                          ///< ask more clients than are needed
  friend bool operator==(AsynConfig const&, AsynConfig const&) = default;
};

/// The whole job.
struct Config {
  bool use_gpu = false;                   ///< on GPUs where there are any
  std::int64_t device = -1;               ///< the first GPU that is used; -1: the first there is
  std::string backend = "torch";          ///< LibTorch
  std::int64_t seed = 0;                  ///< of everything random
  std::string outdir = "exp";             ///< folder for logs and results
  std::string expname{};                  ///< name of this run's folder in it; empty: made from the settings
  std::string expname_tag{};              ///< appended to that name
  std::int64_t verbose = 1;               ///< 0: warnings only
  std::int64_t print_decimal_digits = 6;  ///< of numbers in the logs
  FederateConfig federate{};
  DataConfig data{};
  DataloaderConfig dataloader{};
  ModelConfig model{};
  TrainConfig train{};
  GradConfig grad{};
  CriterionConfig criterion{};
  RegularizerConfig regularizer{};
  TrainerConfig trainer{};
  EvalConfig eval{};
  EarlyStopConfig early_stop{};
  PersonalizationConfig personalization{};
  FedOptConfig fedopt{};
  FedProxConfig fedprox{};
  AggregatorConfig aggregator{};
  QuantizationConfig quantization{};
  AsynConfig asyn{};
  friend bool operator==(Config const&, Config const&) = default;
};

}  // namespace pardl::inline PARDL_ABI::fed
