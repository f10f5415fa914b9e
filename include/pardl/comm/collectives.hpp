// SPDX-License-Identifier: MIT
/// \file   The collectives of c10d as free functions, group first; each returns the Work that must be waited for.
/// \layer  comm.
///
/// Unless it says otherwise, a function here must be called by every rank of the group, with the same shapes and dtypes
/// and in the same order as the group's other collectives; tensors are contiguous, on world.device() or where the
/// backend can read them, and neither read nor written until wait(). Results carry no gradient.
/// All of them throw ConfigError for arguments that cannot be right, before anything is sent; wait() throws CommError
/// or CommTimeout. n is the number of ranks; costs are messages that a rank sends, as Gloo's and NCCL's rings do it.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <type_traits>
#include <utility>
#include <vector>

#include "pardl/comm/detail/c10d_version.hpp"
#include "pardl/comm/detail/checks.hpp"
#include "pardl/comm/detail/start.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/comm/work.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {
// ---- reductions ----

/// Combines `tensor` over all ranks, in place. Any dense layout, if it is the same on all ranks.
/// \cost 2(n-1) messages of 1/n of the tensor.
inline Work all_reduce(ProcessGroup const& world, torch::Tensor const& tensor, ReduceOp op = ReduceOp::sum) {
  detail::check_tensor(world, "all_reduce", tensor, detail::Layout::dense);
  detail::check_op(world, "all_reduce", tensor, op);
  c10d::AllreduceOptions options;
  options.reduceOp = detail::wire_op(op);
  detail::Tensors t{detail::detached(tensor)};
  return detail::started(
      world, tensor, [&](auto& by) { return by.allreduce(t, options); }, t, detail::division(world, op, t));
}

/// all_reduce of many tensors of one dtype as one operation. \cost one all_reduce of all their elements.
inline Work all_reduce_coalesced(ProcessGroup const& world, std::vector<torch::Tensor> const& tensors,
                                 ReduceOp op = ReduceOp::sum) {
  if (tensors.empty()) return Work();
  for (auto const& tensor : tensors) {
    detail::check_tensor(world, "all_reduce_coalesced", tensor, detail::Layout::dense);
    detail::check_op(world, "all_reduce_coalesced", tensor, op);
    detail::check_same_dtype(world, "all_reduce_coalesced", tensors.front(), tensor);
  }
  c10d::AllreduceCoalescedOptions options;
  options.reduceOp = detail::wire_op(op);
  auto t = detail::detached(tensors);
  return detail::started(
      world, tensors.front(), [&](auto& by) { return by.allreduce_coalesced(t, options); }, t,
      detail::division(world, op, t));
}

/// Combines `tensor` over all ranks into the root's; the other ranks' hold nothing of use afterwards.
/// \cost n-1 messages of 1/n of the tensor, then one to the root.
inline Work reduce(ProcessGroup const& world, torch::Tensor const& tensor, int root = 0, ReduceOp op = ReduceOp::sum) {
  detail::check_tensor(world, "reduce", tensor, detail::Layout::dense);
  detail::check_rank(world, "reduce", root, "the root");
  detail::check_op(world, "reduce", tensor, op);
  c10d::ReduceOptions options;
  options.reduceOp = detail::wire_op(op);
  options.rootRank = root;
  detail::Tensors t{detail::detached(tensor)};
  return detail::started(
      world, tensor, [&](auto& by) { return by.reduce(t, options); }, t,
      world.rank() == root ? detail::division(world, op, t) : nullptr);
}

/// Combines the ranks' lists place by place; rank r gets the combined r-th tensor.
/// \param inputs  n tensors of output's size.
/// \cost n-1 messages of one tensor.
inline Work reduce_scatter(ProcessGroup const& world, torch::Tensor const& output,
                           std::vector<torch::Tensor> const& inputs, ReduceOp op = ReduceOp::sum) {
  detail::check_tensor(world, "reduce_scatter", output, detail::Layout::contiguous, "the output");
  detail::check_list(world, "reduce_scatter", inputs, output, "the list of inputs");
  detail::check_op(world, "reduce_scatter", output, op);
  c10d::ReduceScatterOptions options;
  options.reduceOp = detail::wire_op(op);
  detail::Tensors out{detail::detached(output)};
  std::vector<detail::Tensors> in{detail::detached(inputs)};
  return detail::started(
      world, output, [&](auto& by) { return by.reduce_scatter(out, in, options); }, detail::joined(in[0], out[0]),
      detail::division(world, op, out));
}

/// reduce_scatter of one tensor in n equal pieces, in memory order.
/// \param input  n times as many elements as output.
inline Work reduce_scatter_into(ProcessGroup const& world, torch::Tensor const& output, torch::Tensor const& input,
                                ReduceOp op = ReduceOp::sum) {
  detail::check_tensor(world, "reduce_scatter_into", output, detail::Layout::contiguous, "the output");
  detail::check_tensor(world, "reduce_scatter_into", input, detail::Layout::contiguous, "the input");
  detail::check_same_dtype(world, "reduce_scatter_into", input, output);
  detail::check_elements(world, "reduce_scatter_into", "the input", input.numel(), output.numel() * world.size());
  detail::check_op(world, "reduce_scatter_into", output, op);
  c10d::ReduceScatterOptions options;
  options.reduceOp = detail::wire_op(op);
  torch::Tensor out = output.detach(), in = input.detach();
  return detail::started([&] { return detail::reduce_scatter_into(*world.c10d(), out, in, options); }, {out, in},
                         detail::division(world, op, {out}));
}

// ---- copies ----

/// Copies the root's `tensor` into every rank's. Any dense layout, if it is the same on all ranks.
/// \cost log2(n) messages of the tensor at most.
inline Work broadcast(ProcessGroup const& world, torch::Tensor const& tensor, int root = 0) {
  detail::check_tensor(world, "broadcast", tensor, detail::Layout::dense);
  detail::check_rank(world, "broadcast", root, "the root");
  c10d::BroadcastOptions options;
  options.rootRank = root;
  detail::Tensors t{detail::detached(tensor)};
  return detail::started(
      world, tensor, [&](auto& by) { return by.broadcast(t, options); }, t);
}

/// Collects every rank's `input`: outputs[r] gets rank r's.
/// \param outputs  n tensors of input's size.
/// \cost n-1 messages of one tensor.
inline Work all_gather(ProcessGroup const& world, std::vector<torch::Tensor> const& outputs,
                       torch::Tensor const& input) {
  detail::check_tensor(world, "all_gather", input, detail::Layout::contiguous, "the input");
  detail::check_list(world, "all_gather", outputs, input, "the list of outputs");
  std::vector<detail::Tensors> out{detail::detached(outputs)};
  detail::Tensors in{detail::detached(input)};
  return detail::started(
      world, input, [&](auto& by) { return by.allgather(out, in); }, detail::joined(out[0], in[0]));
}

/// Collects every rank's `input` into one tensor, one rank's after the other's.
/// \param output  n times as many elements as input.
inline Work all_gather_into(ProcessGroup const& world, torch::Tensor const& output, torch::Tensor const& input) {
  detail::check_tensor(world, "all_gather_into", output, detail::Layout::contiguous, "the output");
  detail::check_tensor(world, "all_gather_into", input, detail::Layout::contiguous, "the input");
  detail::check_same_dtype(world, "all_gather_into", input, output);
  detail::check_elements(world, "all_gather_into", "the output", output.numel(), input.numel() * world.size());
  torch::Tensor out = output.detach(), in = input.detach();
  return detail::started([&] { return detail::all_gather_into(*world.c10d(), out, in); }, {out, in});
}

/// Collects every rank's `input` on the root.
/// \param outputs  on the root n tensors of input's size; elsewhere empty.
inline Work gather(ProcessGroup const& world, std::vector<torch::Tensor> const& outputs, torch::Tensor const& input,
                   int root = 0) {
  detail::check_tensor(world, "gather", input, detail::Layout::contiguous, "the input");
  detail::check_rank(world, "gather", root, "the root");
  std::vector<detail::Tensors> out;
  if (world.rank() == root) {
    detail::check_list(world, "gather", outputs, input, "the list of outputs");
    out.push_back(detail::detached(outputs));
  } else if (!outputs.empty()) {
    detail::refuse_argument(world, "gather", "this rank is not the root but gave outputs", "pass {} here");
  }
  c10d::GatherOptions options;
  options.rootRank = root;
  detail::Tensors in{detail::detached(input)};
  return detail::started(
      world, input, [&](auto& by) { return by.gather(out, in, options); },
      detail::joined(out.empty() ? detail::Tensors{} : out[0], in[0]));
}

/// Deals out the root's list: rank r gets the r-th tensor.
/// \param inputs  on the root n tensors of output's size; elsewhere empty.
inline Work scatter(ProcessGroup const& world, torch::Tensor const& output, std::vector<torch::Tensor> const& inputs,
                    int root = 0) {
  detail::check_tensor(world, "scatter", output, detail::Layout::contiguous, "the output");
  detail::check_rank(world, "scatter", root, "the root");
  std::vector<detail::Tensors> in;
  if (world.rank() == root) {
    detail::check_list(world, "scatter", inputs, output, "the list of inputs");
    in.push_back(detail::detached(inputs));
  } else if (!inputs.empty()) {
    detail::refuse_argument(world, "scatter", "this rank is not the root but gave inputs", "pass {} here");
  }
  c10d::ScatterOptions options;
  options.rootRank = root;
  detail::Tensors out{detail::detached(output)};
  return detail::started(
      world, output, [&](auto& by) { return by.scatter(out, in, options); },
      detail::joined(in.empty() ? detail::Tensors{} : in[0], out[0]));
}

/// Rank r's inputs[q] becomes rank q's outputs[r]. Sizes may differ from pair to pair, as long as both ends agree.
/// \cost n-1 messages.
inline Work all_to_all(ProcessGroup const& world, std::vector<torch::Tensor> const& outputs,
                       std::vector<torch::Tensor> const& inputs) {
  for (auto const* list : {&outputs, &inputs}) {
    if (list->size() != static_cast<std::size_t>(world.size()))
      detail::refuse_argument(world, "all_to_all",
                              std::to_string(list->size()) + " tensors for " + std::to_string(world.size()) + " ranks",
                              "pass one input and one output for each rank");
    for (auto const& tensor : *list) {
      detail::check_tensor(world, "all_to_all", tensor, detail::Layout::contiguous);
      detail::check_same_dtype(world, "all_to_all", tensor, inputs.front());
    }
  }
  auto const self = static_cast<std::size_t>(world.rank());
  detail::check_elements(world, "all_to_all", "this rank's output for itself", outputs[self].numel(),
                         inputs[self].numel());
  auto out = detail::detached(outputs), in = detail::detached(inputs);
  // Gloo's own takes equal sizes only, so there the lists travel as one tensor.
  if (world.backend() == "gloo") return detail::all_to_all_joined(world, std::move(out), in);
  auto kept = out;
  kept.insert(kept.end(), in.begin(), in.end());
  return detail::started(
      world, inputs[self], [&](auto& by) { return by.alltoall(out, in); }, std::move(kept));
}

/// all_to_all of one tensor, cut along its first dimension.
/// \param takes  rows that come from each rank; empty: equally many from each. \param gives  rows that go to each.
inline Work all_to_all_single(ProcessGroup const& world, torch::Tensor const& output, torch::Tensor const& input,
                              std::vector<std::int64_t> takes = {}, std::vector<std::int64_t> gives = {}) {
  detail::check_tensor(world, "all_to_all_single", output, detail::Layout::contiguous, "the output");
  detail::check_tensor(world, "all_to_all_single", input, detail::Layout::contiguous, "the input");
  detail::check_same_dtype(world, "all_to_all_single", input, output);
  detail::check_split(world, "all_to_all_single", output, takes, "the output");
  detail::check_split(world, "all_to_all_single", input, gives, "the input");
  if (takes.empty() && gives.empty())
    detail::check_elements(world, "all_to_all_single", "the output", output.numel(), input.numel());
  torch::Tensor out = output.detach(), in = input.detach();
  return detail::started([&] { return detail::all_to_all_into(*world.c10d(), out, in, takes, gives); }, {out, in});
}

// ---- messages: called by the two ranks concerned ----

/// Sends `tensor` to a rank, which must receive as many elements with the same tag. NCCL pays no heed to tags.
/// \cost one message. Over Gloo, done() becomes true in wait() only.
inline Work send(ProcessGroup const& world, torch::Tensor const& tensor, int to, int tag = 0) {
  detail::check_tensor(world, "send", tensor, detail::Layout::contiguous);
  detail::check_rank(world, "send", to, "the receiver");
  detail::Tensors t{detail::detached(tensor)};
  return detail::started(
      world, tensor, [&](auto& by) { return by.send(t, to, tag); }, t);
}

/// Receives into `tensor` what a rank sends with the same tag.
inline Work recv(ProcessGroup const& world, torch::Tensor const& tensor, int from, int tag = 0) {
  detail::check_tensor(world, "recv", tensor, detail::Layout::contiguous);
  detail::check_rank(world, "recv", from, "the sender");
  detail::Tensors t{detail::detached(tensor)};
  return detail::started(
      world, tensor, [&](auto& by) { return by.recv(t, from, tag); }, t);
}

/// Receives from whoever sends with this tag first, and waits for it. Not over NCCL. \returns the sender.
inline int recv_any(ProcessGroup const& world, torch::Tensor const& tensor, int tag = 0) {
  detail::check_tensor(world, "recv_any", tensor, detail::Layout::contiguous);
  detail::Tensors t{detail::detached(tensor)};
  return detail::translated([&] {
    auto const work = world.c10d()->recvAnysource(t, tag);
    work->wait();
    return work->sourceRank();
  });
}

// ---- meetings ----

/// Returns when every rank has called it. On CUDA it also waits for the device.
inline void barrier(ProcessGroup const& world) {
  c10d::BarrierOptions options;
  options.device = world.backend() == "nccl" ? world.device() : torch::Device(torch::kCPU);
  if (options.device->is_cuda()) options.device_ids = {options.device->index()};
  detail::translated([&] {
    if (auto const work = world.c10d()->barrier(options)) work->wait();
  });
}

/// barrier() with a time limit of its own, in which rank 0 hears from every other rank. Where the backend has none
/// (NCCL) it is barrier().
inline void monitored_barrier(ProcessGroup const& world, std::chrono::milliseconds limit) {
  if (world.backend() != "gloo" && world.backend() != "shm") return barrier(world);
  c10d::BarrierOptions options;
  options.timeout = limit;
  detail::translated([&] { world.c10d()->monitoredBarrier(options, /*waitAllRanks=*/true); });
}
inline void monitored_barrier(ProcessGroup const& world) { monitored_barrier(world, world.timeout()); }

// ---- small things that ranks tell each other, waited for at once ----

namespace detail {

/// Where a number must be for the backend to send it: Gloo saves the way to the GPU and back.
inline torch::Device small_device(ProcessGroup const& world) {
  return world.backend() == "nccl" ? world.device() : torch::Device(torch::kCPU);
}

}  // namespace detail

/// A number of each rank, combined over all: the same value on every rank, so the same decisions. Every rank must call
/// it. \cost one all_reduce of 8 bytes.
template <class Number>
  requires(std::floating_point<Number> || std::integral<Number>)
[[nodiscard]] Number all_reduce_value(ProcessGroup const& world, Number value, ReduceOp op) {
  using Wire = std::conditional_t<std::floating_point<Number>, double, std::int64_t>;
  auto const tensor =
      torch::full({1}, static_cast<Wire>(value), std::floating_point<Number> ? torch::kFloat64 : torch::kInt64)
          .to(detail::small_device(world));
  all_reduce(world, tensor, op).wait();
  return static_cast<Number>(tensor.template item<Wire>());
}

template <class Number>
  requires(std::floating_point<Number> || std::integral<Number>)
[[nodiscard]] Number all_sum(ProcessGroup const& world, Number value) {
  return all_reduce_value(world, value, ReduceOp::sum);
}

/// Every rank's text, by rank. Every rank must call it. \cost two all-gathers: of 8 bytes, and of the longest text.
[[nodiscard]] inline std::vector<std::string> all_gather_strings(ProcessGroup const& world, std::string_view text) {
  auto const device = detail::small_device(world);
  auto const n = world.size();
  auto const length = torch::full({1}, static_cast<std::int64_t>(text.size()), torch::kInt64).to(device);
  auto lengths = torch::empty({n}, length.options());
  all_gather_into(world, lengths, length).wait();
  lengths = lengths.cpu();
  auto const longest = std::max<std::int64_t>(1, lengths.max().item<std::int64_t>());

  auto mine = torch::zeros({longest}, torch::kUInt8);
  if (!text.empty()) std::memcpy(mine.data_ptr(), text.data(), text.size());
  auto all = torch::empty({n * longest}, mine.options()).to(device);
  all_gather_into(world, all, mine.to(device)).wait();
  all = all.cpu();

  auto const* bytes = static_cast<char const*>(all.const_data_ptr());
  auto const* sizes = lengths.const_data_ptr<std::int64_t>();
  std::vector<std::string> texts;
  for (std::int64_t r = 0; r < n; ++r) texts.emplace_back(bytes + r * longest, static_cast<std::size_t>(sizes[r]));
  return texts;
}

/// Every rank's 64 bits, by rank: hashes to compare before ranks rely on being alike. Every rank must call it.
/// \cost one all-gather of 8 bytes.
[[nodiscard]] inline std::vector<std::uint64_t> all_gather_digest(ProcessGroup const& world, std::uint64_t digest) {
  auto const device = detail::small_device(world);
  std::int64_t bits;
  std::memcpy(&bits, &digest, sizeof bits);
  auto const mine = torch::full({1}, bits, torch::kInt64).to(device);
  auto all = torch::empty({world.size()}, mine.options());
  all_gather_into(world, all, mine).wait();
  all = all.cpu();
  std::vector<std::uint64_t> digests(static_cast<std::size_t>(world.size()));
  std::memcpy(digests.data(), all.const_data_ptr(), digests.size() * sizeof(std::uint64_t));
  return digests;
}

}  // namespace pardl::inline PARDL_ABI
