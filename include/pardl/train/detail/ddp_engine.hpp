// SPDX-License-Identifier: MIT
/// \file   What DistributedDataParallel does around each forward, whatever the wrapped module's type.
/// \layer  train, private.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/collectives.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/comm_hooks.hpp"
#include "pardl/train/detail/model_check.hpp"
#include "pardl/train/detail/model_state.hpp"
#include "pardl/train/detail/reducer.hpp"
#include "pardl/train/detail/sink.hpp"
#include "pardl/train/distributed_data_parallel_options.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// The wrapped module as the engine sees it. The buffers are asked for anew, since a module may replace them.
struct ModuleView {
  std::vector<NamedTensor> parameters;
  std::function<std::vector<NamedTensor>()> buffers;
};

class DdpEngine {
 public:
  /// Every rank must call it.
  DdpEngine(ModuleView module, ProcessGroup world, DistributedDataParallelOptions options)
      : module_(std::move(module)), world_(std::move(world)), options_(std::move(options)) {
    auto const all = module_.parameters;
    module_.parameters = distinct(std::move(module_.parameters), options_.params_to_ignore);
    std::string const problem = local_problem(all);
    auto const buffers = own_buffers();
    if (options_.init_sync) {
      ModelDescription mine{.problem = problem, .options = options_text(), .names = {}, .kinds = {}};
      describe(mine, module_.parameters, "parameter");
      describe(mine, buffers, "buffer");
      check_models(world_, mine);
      broadcast_model(0, /*with_buffers=*/true);
    } else if (!problem.empty()) {
      throw ConfigError(sentence("ddp", world_.rank(), world_.size(), problem));
    }
    has_buffers_ = !buffers.empty();
    pair_ = make_reducer(plan(), world_);
    sink_->reducer = pair_.reducer;
    sink_->static_graph = options_.static_graph;
  }

  DdpEngine(DdpEngine const&) = delete;
  DdpEngine& operator=(DdpEngine const&) = delete;

  [[nodiscard]] ProcessGroup const& world() const noexcept { return world_; }
  [[nodiscard]] DistributedDataParallelOptions const& options() const noexcept { return options_; }
  [[nodiscard]] OpenReducer& reducer() const noexcept { return *pair_.reducer; }
  [[nodiscard]] std::vector<NamedTensor> const& parameters() const noexcept { return module_.parameters; }

  /// Everything that precedes the module's own forward. Every rank must call it where gradients will be reduced or
  /// buffers broadcast.
  void before_forward() {
    check_alive();
    bool const grad = torch::GradMode::is_enabled();
    if (grad && backward_sync_) {
      pair_.reducer->prepare_for_forward();
      ++synced_forwards_;
    }
    if (joining_) notify_joined_ranks();
    // Before the forward, and so before its memory peak: this may allocate new buckets while the old ones exist.
    if (grad) translated([this] { pair_.reducer->rebuild_buckets(); });
    if (will_sync_buffers()) sync_buffers(joining_ ? common_rank(true) : 0);
    if (joining_) tell_joined_ranks_of_sync();
  }

  /// True where a forward's outputs must be known: searched for parameters, or sent through the sink.
  [[nodiscard]] bool wants_outputs() const { return searches_graph() || sink_->wanted(); }

  /// Everything that follows the module's own forward; may replace the outputs.
  void after_forward(std::vector<torch::Tensor*> const& outputs) {
    bool const sync = torch::GradMode::is_enabled() && backward_sync_;
    forward_sync_ = sync;
    if (sync) {
      pair_.reducer->forget_marks();
      std::vector<torch::Tensor> roots;
      if (searches_graph())
        for (auto const* output : outputs) roots.push_back(*output);
      pair_.reducer->prepare_for_backward(roots);
    }
    if (searches_graph() || (sync && sink_->wanted())) pass_through_sink(sink_, outputs);
  }

  template <comm_hook H>
  void register_comm_hook(H hook) {
    check_alive();
    auto const refuse = [this](std::string const& what, std::string const& remedy) {
      throw ConfigError(sentence("ddp", world_.rank(), world_.size(), what, remedy));
    };
    if (hooked_) refuse("there is a communication hook already", "compose hooks, such as fp16_compress(your_hook)");
    if (synced_forwards_ > 0) refuse("a communication hook after the first forward", "register it before training");
    pair_.reducer->register_comm_hook(std::make_unique<HookAdapter<H>>(std::move(hook), world_, note_));
    hooked_ = true;
  }

  /// Copies this root's buffers to every rank. Every rank must call it.
  void sync_buffers(int root) {
    auto const buffers = tensors_of(own_buffers());
    if (buffers.empty()) return;
    torch::NoGradGuard no_grad;
    std::vector<std::int64_t> versions;
    // A forward before this one may have saved a buffer for its backward. Values that come from rank 0 are not a change
    // that autograd should complain of, so versions are put back, as in Python.
    for (auto const& buffer : buffers) versions.push_back(buffer.is_inference() ? 0 : buffer._version());
    translated([&] { c10d::broadcast_coalesced(world_.c10d(), buffers, broadcast_chunk_bytes, root); });
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      if (buffers[i].is_inference()) continue;
      auto counter = buffers[i].unsafeGetTensorImpl()->version_counter();  // a handle to the one shared counter
      counter.set_version(versions[i]);
    }
  }

  /// Copies this root's parameters, and its buffers where asked, to every rank. Every rank must call it.
  void broadcast_model(int root, bool with_buffers) {
    torch::NoGradGuard no_grad;
    auto tensors = tensors_of(module_.parameters);
    if (with_buffers)
      for (auto& buffer : tensors_of(own_buffers())) tensors.push_back(std::move(buffer));
    if (tensors.empty()) return;
    translated([&] { c10d::broadcast_coalesced(world_.c10d(), tensors, broadcast_chunk_bytes, root); });
  }

  /// \throws Error  when a backward before this did not end: no step after it can be right.
  void check_alive() {
    if (dead_.empty()) find_out_whether_dead();
    if (!dead_.empty()) throw Error(dead_);
  }

  /// Whether backward reduces, from the next forward on; returns what was set before.
  bool exchange_backward_sync(bool on) { return std::exchange(backward_sync_, on); }

 private:
  friend class JoinGuard;

  static constexpr std::size_t broadcast_chunk_bytes = std::size_t{250} << 20;

  [[nodiscard]] bool searches_graph() const { return options_.find_unused_parameters && !options_.static_graph; }

  [[nodiscard]] std::vector<NamedTensor> own_buffers() const {
    return distinct(module_.buffers(), options_.params_to_ignore);
  }

  /// What is wrong without asking another rank; empty where nothing is. One line: it travels.
  [[nodiscard]] std::string local_problem(std::vector<NamedTensor> const& all) const {
    auto const& o = options_;
    auto const not_positive = [](double cap) { return !(cap > 0); };
    if ((o.bucket_cap_mib && not_positive(*o.bucket_cap_mib)) ||
        std::any_of(o.bucket_cap_mib_list.begin(), o.bucket_cap_mib_list.end(), not_positive))
      return "a bucket size is not positive; give MiB";
    if (o.bucket_cap_mib && !o.bucket_cap_mib_list.empty())
      return "bucket_cap_mib and bucket_cap_mib_list are both set; set one";
    if (o.batched_grad_copy && !has_batched_grad_copy)
      return "this LibTorch has no batched_grad_copy; use 2.15, or leave the option out";
    if (o.lazy_bucket_allocation && !has_lazy_bucket_allocation)
      return "this LibTorch has no lazy_bucket_allocation; use 2.15, or leave the option out";
    if (o.skip_all_reduce_unused_params && !o.find_unused_parameters && !o.static_graph)
      return "skip_all_reduce_unused_params does nothing by itself; set find_unused_parameters or static_graph too";
    std::set<std::string> names;
    for (auto const& parameter : all) names.insert(parameter.name);
    for (auto const& buffer : module_.buffers()) names.insert(buffer.name);
    for (auto const& name : o.params_to_ignore)
      if (!names.contains(name)) return "params_to_ignore names '" + name + "', which the model does not have";
    bool trains = false;
    auto shared = own_buffers();
    shared.insert(shared.begin(), module_.parameters.begin(), module_.parameters.end());
    for (auto const& [name, tensor, sparse] : shared) {
      trains = trains || tensor.requires_grad();
      if (tensor.device().type() != world_.device().type())
        return "'" + name + "' is on " + tensor.device().str() + " and this rank computes on " + world_.device().str() +
               "; move the model with to(world.device()) before wrapping it";
    }
    return trains ? "" : "no parameter requires a gradient; there is nothing to train";
  }

  [[nodiscard]] std::string options_text() const {
    auto const& o = options_;
    std::string caps = o.bucket_cap_mib ? std::to_string(*o.bucket_cap_mib) : "default";
    for (double const cap : o.bucket_cap_mib_list) caps += "," + std::to_string(cap);
    auto const flag = [](bool on) { return on ? "true" : "false"; };
    return std::string("bucket_cap_mib ") + caps + " forward_sync_buffers " + flag(o.forward_sync_buffers) +
           " find_unused_parameters " + flag(o.find_unused_parameters) + " static_graph " + flag(o.static_graph) +
           " skip_all_reduce_unused_params " + flag(o.skip_all_reduce_unused_params);
  }

  [[nodiscard]] ReducerPlan plan() const {
    constexpr double mib = 1024.0 * 1024.0;
    ReducerPlan plan;
    for (auto const& [name, tensor, sparse] : module_.parameters) {
      if (!tensor.requires_grad()) continue;
      plan.parameters.push_back(tensor);
      plan.names.push_back(name);
      plan.sparse.push_back(sparse);
    }
    auto const bytes = [](double cap) { return std::max<std::int64_t>(1, static_cast<std::int64_t>(cap * mib)); };
    if (options_.bucket_cap_mib) plan.bucket_cap_bytes = plan.first_bucket_cap_bytes = bytes(*options_.bucket_cap_mib);
    for (double const cap : options_.bucket_cap_mib_list) plan.bucket_caps_bytes.push_back(bytes(cap));
    if (!plan.bucket_caps_bytes.empty())
      plan.bucket_cap_bytes = plan.first_bucket_cap_bytes =
          *std::max_element(plan.bucket_caps_bytes.begin(), plan.bucket_caps_bytes.end());
    plan.find_unused_parameters = options_.find_unused_parameters;
    plan.gradient_as_bucket_view = options_.gradient_as_bucket_view;
    plan.static_graph = options_.static_graph;
    plan.skip_all_reduce_unused_params = options_.skip_all_reduce_unused_params;
    plan.batched_grad_copy = options_.batched_grad_copy;
    plan.lazy_bucket_allocation = options_.lazy_bucket_allocation;
    return plan;
  }

  [[nodiscard]] bool will_sync_buffers() const {
    return forward_sync_ && options_.forward_sync_buffers && has_buffers_;
  }

  /// The largest rank among the candidates. Every rank must call it, and one must be a candidate.
  [[nodiscard]] int common_rank(bool candidate) const {
    auto rank = torch::full({1}, candidate ? world_.rank() : -1, torch::dtype(torch::kInt64).device(world_.device()));
    all_reduce(world_, rank, ReduceOp::max).wait();
    return static_cast<int>(rank.item<std::int64_t>());
  }

  [[nodiscard]] torch::Tensor flag_tensor(bool on) const {
    return torch::full({1}, on ? 1.0 : 0.0, torch::dtype(torch::kFloat32).device(world_.device()));
  }

  /// Under join(): one more rank that still has batches. The sum may become the divisor of this step's gradients.
  void notify_joined_ranks() {
    wait_for_notices();
    auto alive = all_reduce(world_, flag_tensor(true));
    if (join_options_.throw_on_early_termination) {
      auto finished = flag_tensor(false);
      all_reduce(world_, finished).wait();
      if (finished.item<float>() != 0)
        throw DataError(sentence("ddp", world_.rank(), world_.size(), "another rank has no batch left",
                                 "give every rank the same number, or join without throw_on_early_termination"));
    }
    pair_.reducer->set_forward_pass_work_handle(alive.c10d(), join_options_.divide_by_initial_world_size);
    notices_.push_back(std::move(alive));
  }

  /// Reductions that nobody reads, but whose failure must be heard.
  void wait_for_notices() {
    for (auto& notice : notices_) notice.wait();
    notices_.clear();
  }

  void tell_joined_ranks_of_sync() { notices_.push_back(all_reduce(world_, flag_tensor(backward_sync_))); }

  void find_out_whether_dead() {
    auto const unfinished = pair_.reducer->unfinished();
    auto cause = note_->first();
    if (!cause && unfinished) cause = unfinished->cause;
    if (!cause && !unfinished) return;
    auto const say = [this](std::string const& what, std::string const& remedy) {
      dead_ = sentence("ddp", world_.rank(), world_.size(), what, remedy);
    };
    if (cause)
      return say("the last backward failed and its gradients were not reduced: " + reason_of(cause),
                 "end the run, or build the model and its DistributedDataParallel again on every rank");
    auto const& missing = unfinished->without_gradient;
    if (missing.empty())
      return say("the last backward was cut short by an exception and its gradients were not reduced",
                 "end the run, or build the DistributedDataParallel again on every rank");
    std::string names;
    for (std::size_t i = 0; i < missing.size() && i < 5; ++i)
      names += (i ? ", '" : "'") + trainable_name(missing[i]) + "'";
    if (missing.size() > 5) names += " and " + std::to_string(missing.size() - 5) + " more";
    std::string const what = "the last backward gave no gradient to " + names + ", so the ranks could not finish";
    if (options_.static_graph)
      say(what, "with static_graph every backward must reach the parameters that the first one reached");
    else if (options_.find_unused_parameters)
      say(what,
          "let every tensor that forward returns take part in the loss, or return it in a type that "
          "for_each_tensor can look into; an exception that cut that backward short has the same effect");
    else
      say(what,
          "set find_unused_parameters = true if they take no part in the loss; an exception that cut that "
          "backward short has the same effect");
  }

  [[nodiscard]] std::string trainable_name(std::size_t index) const {
    for (auto const& [name, tensor, sparse] : module_.parameters)
      if (tensor.requires_grad() && index-- == 0) return name;
    return "?";
  }

  ModuleView module_;
  ProcessGroup world_;
  DistributedDataParallelOptions options_;
  ReducerPair pair_;
  std::shared_ptr<SinkState> sink_ = std::make_shared<SinkState>();
  std::shared_ptr<FailureNote> note_ = std::make_shared<FailureNote>();
  std::vector<Work> notices_;
  JoinOptions join_options_{};
  bool joining_ = false;
  bool backward_sync_ = true;  ///< Python's require_backward_grad_sync
  bool forward_sync_ = true;   ///< Python's require_forward_param_sync
  std::int64_t synced_forwards_ = 0;
  std::string dead_;
  bool has_buffers_ = false;
  bool hooked_ = false;
};

}  // namespace pardl::inline PARDL_ABI::detail
