// SPDX-License-Identifier: MIT
/// \file   Collectives and messages over memory that the ranks of one host share: the backend of CPU ranks on a host.
/// \layer  comm.
///
/// init() takes it by itself for CPU ranks of one host. By hand, for a c10d::ProcessGroup of your own:
/// ```
/// auto backend = pardl::backend::shm(store, rank, size);  // every rank; the store is this group's alone
/// ```
/// Every collective of c10d, for tensors of any dtype and layout; ranks are processes or threads. What is promised:
/// - Reductions combine the ranks' values in the order of ranks, element by element, half and bfloat16 in float and
///   rounded once, an average after its division. So results are bitwise the same on all ranks, and for any size,
///   layout or timing.
/// - Nothing is left on the machine however ranks end: the memory has no name. A death is noticed while others wait for
///   the dead rank, within a tenth of a second, and named; timeouts name the operation and the ranks that have not
///   come.
/// - A different operation, root, dtype or size on two ranks is an error on all, with both sides in the sentence; on a
///   rank that only sends (the root of a broadcast) it may be its next operation that says so. Not seen: an average
///   beside a sum (pardl::all_reduce divides after it), rings that combine otherwise, and lists of equal bytes in all
///   that are cut otherwise.
///
/// Collectives of a group go one after the other, in the order of the calls: each reads what those before it have
/// written (tensors on other devices are copied at the call). Messages go beside them, those to one rank in the order
/// of the calls. Operations of several groups over shared memory may be waited for in any order, another one on each
/// rank; callbacks of a future run in the grad and inference mode of who asked for it. A process forked from a rank
/// keeps the rank's connection open: while it lives, the rank's death goes unnoticed where pidfds (Linux 5.3) cannot be
/// had.
///
/// \cost for n ranks and b bytes a rank: all_reduce writes b/n (n-1) bytes to slots and reads b/n (n-1) to sum and as
/// many to collect, in two meetings; up to ShmOptions::read_all bytes every rank reads all n tensors in one meeting.
/// reduce is all_reduce without the last copy on ranks but the root. Everything else (broadcast, gathers, scatters,
/// all_to_all, reduce_scatter) writes each byte to a slot once and reads it once per receiver, in one meeting; barrier
/// is such a meeting without bytes. A message is written to a channel once and read from there once, and once more if
/// nobody had asked for it.
///
/// Who waits looks at memory for a fraction of a millisecond, since to sleep and be woken costs as much as many small
/// sums, then sleeps on a futex; where ranks outnumber the cores it sleeps at once, so that the rank it waits for gets
/// the core. Who calls or waits moves its operations on; where a rank has two cores or more to itself a thread does so
/// too, which overlaps the sum with what the caller computes, and with fewer cores would only take turns with it; who
/// sleeps for one group lets a thread move on what nobody waits for in others. A rank writes its own slots first, so
/// that their pages lie on its NUMA node; the others read them from there.
///
/// \source The slots and the sum of slices are the reduce-scatter and all-gather of Thakur, Rabenseifner & Gropp, 2005.
#pragma once

#include <ATen/Parallel.h>
#include <sched.h>
#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>
#include <vector>

#include "pardl/comm/backend/self.hpp"
#include "pardl/comm/detail/shm/call.hpp"
#include "pardl/comm/detail/shm/engine.hpp"
#include "pardl/comm/detail/shm/many_works.hpp"
#include "pardl/comm/detail/shm/parcel.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

struct ShmOptions {
  std::chrono::milliseconds timeout{600'000};  ///< of one operation
  detail::shm::Progress progress = detail::shm::Progress::automatic;
  std::size_t slot = 256 << 10;     ///< bytes that a rank puts down at a time; 4 slots a rank should stay in cache
  std::size_t read_all = 16 << 10;  ///< up to so many bytes of a reduction, divided by n-1, every rank reads all
  int host_ranks = 0;               ///< that share the cores, whatever their group; 0: those of this group
};

namespace detail {

class ShmBackend final : public c10d::Backend {
  using Tensors = std::vector<at::Tensor>;
  using Lists = std::vector<std::vector<at::Tensor>>;
  using Sizes = std::vector<std::int64_t>;
  using Started = c10::intrusive_ptr<c10d::Work>;
  using Op = c10d::OpType;
  using Parcel = shm::Parcel;

 public:
  ShmBackend(c10d::Store& store, int rank, int size, ShmOptions const& options)
      : Backend(rank, size), read_all_(options.read_all / static_cast<std::size_t>(std::max(1, size - 1))) {
    auto const sizes = shm::Sizes::of(static_cast<std::size_t>(size), options.slot);
    shm::Engine::move_on_all_but(nullptr);  // the others may wait for those before they come here
    auto meeting = shm::gather_at(
        store, rank, sizes,
        shm::Clock::now() + std::min<std::chrono::milliseconds>(options.timeout, std::chrono::minutes(5)));
    int const cores = cores_here();
    int const ranks = std::max(size, options.host_ranks);
    bool const spare = cores >= ranks * (at::get_num_threads() + 1);
    auto progress = options.progress;
    if (progress == shm::Progress::automatic) progress = spare ? shm::Progress::thread : shm::Progress::caller;
    engine_ =
        std::make_shared<shm::Engine>(std::move(meeting), shm::Engine::Plan{.rank = rank,
                                                                            .size = size,
                                                                            .timeout = options.timeout,
                                                                            .progress = progress,
                                                                            .looks = cores >= ranks ? 4'000 : 10});
    engine_->enrol();
  }
  ShmBackend(ShmBackend const&) = delete;
  ShmBackend& operator=(ShmBackend const&) = delete;
  ~ShmBackend() override { engine_->shutdown(std::chrono::seconds(10)); }

  [[nodiscard]] shm::Engine& engine() const noexcept { return *engine_; }

  const std::string getBackendName() const override { return "shm"; }
  /// What is coalesced is carried out, and waited for as one; but it is one list to a group, which threads cannot
  /// share, and buys nothing here, so nobody needs to.
  bool supportsCoalescing() const override { return false; }
  void startCoalescing() override { coalesced_.emplace(); }
  Started endCoalescing() override {
    auto works = std::exchange(coalesced_, std::nullopt).value_or(std::vector<Started>{});
    return c10::make_intrusive<shm::ManyWorks>(std::move(works));
  }
  void setTimeout(std::chrono::milliseconds timeout) override { engine_->set_timeout(timeout); }
  void setSequenceNumberForGroup() override {}
  std::uint64_t getSequenceNumberForGroup() override { return engine_->issued(); }
  c10d::ErrorType getError() override {
    return engine_->failed() ? c10d::ErrorType::COMM_ERROR : c10d::ErrorType::SUCCESS;
  }
  void shutdown() override { engine_->shutdown(std::chrono::seconds(10)); }
  void abort() override {
    engine_->announce("the group was aborted");
    engine_->shutdown(std::chrono::milliseconds(0));
  }

  // ---- reductions ----

  Started allreduce(Tensors& t, c10d::AllreduceOptions const& o) override {
    if (t.size() == 1 && t[0].layout() != c10::kStrided) return sparse_sum(t, o);
    return reduction(Op::ALLREDUCE, Stamp("all_reduce", t).alike().within(o.timeout), t, o.reduceOp);
  }
  Started allreduce_sparse(Tensors& t, c10d::AllreduceOptions const& o) override { return allreduce(t, o); }
  Started allreduce_coalesced(Tensors& t, c10d::AllreduceCoalescedOptions const& o) override {
    return reduction(Op::ALLREDUCE_COALESCED, Stamp("all_reduce_coalesced", t).alike().within(o.timeout), t,
                     o.reduceOp);
  }
  Started reduce(Tensors& t, c10d::ReduceOptions const& o) override {
    return reduction(Op::REDUCE, Stamp("reduce", t).from(o.rootRank).alike().within(o.timeout), t, o.reduceOp);
  }
  Started reduce_scatter(Tensors& out, Lists& in, c10d::ReduceScatterOptions const& o) override {
    return scattered(Op::REDUCE_SCATTER, Parcel(Stamp("reduce_scatter", out).within(o.timeout)), out, in.at(0),
                     o.reduceOp);
  }
  Started _reduce_scatter_base(at::Tensor& out, at::Tensor& in, c10d::ReduceScatterOptions const& o) override {
    Parcel parcel(Stamp("reduce_scatter_into", in).alike().within(o.timeout));
    auto const shares = pieces(parcel.plain(in, true, false));
    return scattered(Op::_REDUCE_SCATTER_BASE, std::move(parcel), {out}, shares, o.reduceOp);
  }
  Started reduce_scatter_tensor_coalesced(Tensors& out, Tensors& in, c10d::ReduceScatterOptions const& o) override {
    return each(out.size(), [&](std::size_t i) { return _reduce_scatter_base(out[i], in.at(i), o); });
  }

  // ---- copies ----

  Started broadcast(Tensors& t, c10d::BroadcastOptions const& o) override {
    Parcel parcel(Stamp("broadcast", t).from(o.rootRank).alike().within(o.timeout));
    bool const gives = o.rootRank == rank_;
    (gives ? parcel.give : parcel.take).push_back(parcel.row(t, gives, !gives));
    return start(Op::BROADCAST, std::move(parcel), shm::Way::whole, t, bytes_of(t));
  }
  Started allgather(Lists& out, Tensors& in, c10d::AllgatherOptions const& o) override {
    return gathered(Op::ALLGATHER, Parcel(Stamp("all_gather", in).within(o.timeout)), out.at(0), in);
  }
  Started _allgather_base(at::Tensor& out, at::Tensor& in, c10d::AllgatherOptions const& o) override {
    Parcel parcel(Stamp("all_gather_into", in).alike().within(o.timeout));
    auto const places = pieces(parcel.plain(out, false, true));
    return gathered(Op::_ALLGATHER_BASE, std::move(parcel), places, {in});
  }
  Started allgather_coalesced(Lists& out, Tensors& in, c10d::AllgatherOptions const& o) override {
    return each(in.size(), [&](std::size_t i) {  // out[r] holds what rank r brings, tensor by tensor
      Tensors one{in[i]}, all;
      for (auto& list : out) all.push_back(list.at(i));
      return gathered(Op::ALLGATHER_COALESCED, Parcel(Stamp("all_gather_coalesced", one).within(o.timeout)), all, one);
    });
  }
  Started allgather_into_tensor_coalesced(Tensors& out, Tensors& in, c10d::AllgatherOptions const& o) override {
    return each(out.size(), [&](std::size_t i) { return _allgather_base(out[i], in.at(i), o); });
  }
  Started gather(Lists& out, Tensors& in, c10d::GatherOptions const& o) override {
    bool const root = o.rootRank == rank_;
    return gathered(Op::GATHER, Parcel(Stamp("gather", in).from(o.rootRank).within(o.timeout)),
                    root ? out.at(0) : Tensors{}, in);
  }
  Started scatter(Tensors& out, Lists& in, c10d::ScatterOptions const& o) override {
    Parcel parcel(Stamp("scatter", out).from(o.rootRank).within(o.timeout));
    if (o.rootRank == rank_) {
      check_list(parcel.stamp, in.at(0), out.at(0));
      for (auto& piece : in[0]) parcel.give.push_back(parcel.row({piece}, true, false));
      parcel.copy(in[0][static_cast<std::size_t>(rank_)], out[0]);
    } else {
      parcel.take.push_back(parcel.row(out, false, true));
    }
    return start(Op::SCATTER, std::move(parcel), shm::Way::dealt, out, bytes_of(out));
  }
  Started alltoall(Tensors& out, Tensors& in, c10d::AllToAllOptions const& o) override {
    return exchanged(Op::ALLTOALL, Parcel(Stamp("all_to_all", in).within(o.timeout)), out, in, out);
  }
  Started alltoall_base(at::Tensor& out, at::Tensor& in, Sizes& takes, Sizes& gives,
                        c10d::AllToAllOptions const& o) override {
    Parcel parcel(Stamp("all_to_all_single", in).within(o.timeout));
    auto const into = parcel.plain(out.detach(), false, true), from = parcel.plain(in.detach(), true, false);
    auto const places = takes.empty() ? pieces(into) : into.split_with_sizes(takes);
    auto const shares = gives.empty() ? pieces(from) : from.split_with_sizes(gives);
    return exchanged(Op::ALLTOALL_BASE, std::move(parcel), places, shares, {out});
  }

  // ---- meetings ----

  Started barrier(c10d::BarrierOptions const& o) override {
    Parcel parcel(Stamp("barrier").within(o.timeout));
    parcel.give.emplace_back();
    parcel.take.resize(static_cast<std::size_t>(size_));
    return start(Op::BARRIER, std::move(parcel), shm::Way::whole, {}, 0);
  }
  void monitoredBarrier(c10d::BarrierOptions const& o, bool) override { barrier(o)->wait(); }

  // ---- messages ----

  Started send(Tensors& t, int to, int tag) override { return message(Op::SEND, "send", t, to, tag); }
  Started recv(Tensors& t, int from, int tag) override { return message(Op::RECV, "recv", t, from, tag); }
  Started recvAnysource(Tensors& t, int tag) override { return message(Op::RECVANYSOURCE, "recv_any", t, -1, tag); }

 private:
  static int cores_here() {
    ::cpu_set_t set;
    CPU_ZERO(&set);
    return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  }
  static std::size_t bytes_of(Tensors const& tensors) {
    std::size_t bytes = 0;
    for (auto const& tensor : tensors) bytes += tensor.nbytes();
    return bytes;
  }
  [[noreturn]] void refuse(Stamp const& stamp, std::string const& what) const {
    throw ConfigError(sentence("comm", rank_, size_, std::string(stamp.name) + ": " + what,
                               "give each rank a tensor, alike in size and dtype"));
  }
  /// As many equal pieces of its memory, which is plain, as there are ranks.
  [[nodiscard]] Tensors pieces(at::Tensor const& whole) const {
    if (whole.numel() % size_ != 0)
      throw ConfigError(sentence("comm", rank_, size_,
                                 std::to_string(whole.numel()) + " elements cannot be divided among the ranks",
                                 "give a multiple of their number"));
    return whole.detach().view({size_, whole.numel() / size_}).unbind();
  }
  void check_list(Stamp const& stamp, Tensors const& list, at::Tensor const& like) const {
    if (list.size() != static_cast<std::size_t>(size_))
      refuse(stamp, std::to_string(list.size()) + " tensors for " + std::to_string(size_) + " ranks");
    for (auto const& tensor : list)
      if (tensor.numel() != like.numel() || tensor.scalar_type() != like.scalar_type())
        refuse(stamp, "the list holds tensors that differ");
  }

  Started reduction(Op type, Stamp const& stamp, Tensors const& t, c10d::ReduceOp const& op) {
    Parcel parcel(stamp);
    set_operation(parcel, t, op);
    bool const result = stamp.peer < 0 || stamp.peer == rank_;
    auto row = parcel.row(t, true, result);
    bool const all_read_all = row.size() <= read_all_ || size_ == 1;
    if (result && size_ > 1) parcel.take.push_back(row);
    parcel.give.push_back(std::move(row));
    return start(type, std::move(parcel), all_read_all ? shm::Way::whole : shm::Way::sliced, t, bytes_of(t),
                 op.op_ + 1);
  }
  Started scattered(Op type, Parcel&& parcel, Tensors const& out, Tensors const& in, c10d::ReduceOp const& op) {
    check_list(parcel.stamp, in, out.at(0));
    set_operation(parcel, out, op);
    if (size_ == 1) {
      parcel.copy(in[0], out[0]);
      parcel.give.emplace_back();
    } else {
      for (auto const& piece : in) parcel.give.push_back(parcel.row({piece}, true, false));
      parcel.take.push_back(parcel.row(out, false, true));
    }
    return start(type, std::move(parcel), size_ == 1 ? shm::Way::whole : shm::Way::dealt, out, bytes_of(out),
                 op.op_ + 1);
  }
  Started gathered(Op type, Parcel&& parcel, Tensors const& out, Tensors const& in) {
    auto const& stamp = parcel.stamp;
    bool const takes = stamp.peer < 0 || stamp.peer == rank_;
    std::size_t const bytes = bytes_of(in);
    bool even = true;
    std::uint64_t sizes = 0;
    if (takes) {
      if (out.size() != static_cast<std::size_t>(size_))
        refuse(stamp, std::to_string(out.size()) + " outputs for " + std::to_string(size_) + " ranks");
      auto const me = static_cast<std::size_t>(rank_);
      if (out[me].nbytes() != bytes) refuse(stamp, "this rank's output is not as large as its input");
      for (auto const& place : out)
        if (place.scalar_type() != in.at(0).scalar_type()) refuse(stamp, "outputs of another dtype than the input");
      for (std::size_t r = 0; r < out.size(); ++r) {
        even = even && out[r].nbytes() == bytes;
        sizes = shm::Call::mixed(sizes, out[r].nbytes());
        parcel.take.push_back(r == me ? shm::Row() : parcel.row({out[r]}, false, true));
      }
      if (stamp.peer >= 0 && !even) refuse(stamp, "the root's outputs differ in size");
      parcel.copy(in.at(0), out[me]);
    }
    if (stamp.peer < 0 || !takes) parcel.give.push_back(parcel.row(in, true, false));
    return start(type, std::move(parcel), shm::Way::whole, out, even ? bytes : sizes);
  }
  Started exchanged(Op type, Parcel&& parcel, Tensors const& out, Tensors const& in, Tensors const& result) {
    auto const me = static_cast<std::size_t>(rank_), n = static_cast<std::size_t>(size_);
    if (out.size() != n || in.size() != n)
      refuse(parcel.stamp, std::to_string(in.size()) + " inputs and " + std::to_string(out.size()) + " outputs");
    for (std::size_t r = 0; r < n; ++r) {
      if (in[r].scalar_type() != out[r].scalar_type() || in[r].scalar_type() != in[0].scalar_type())
        refuse(parcel.stamp, "inputs and outputs of several dtypes");
      parcel.give.push_back(r == me ? shm::Row() : parcel.row({in[r]}, true, false));
      parcel.take.push_back(r == me ? shm::Row() : parcel.row({out[r]}, false, true));
    }
    if (in[me].numel() != out[me].numel()) refuse(parcel.stamp, "what this rank sends itself is not what it takes");
    parcel.copy(in[me], out[me]);
    return start(type, std::move(parcel), shm::Way::dealt, result, 0, 0, /*first_sizes=*/true);
  }

  void set_operation(Parcel& parcel, Tensors const& t, c10d::ReduceOp const& op) const {
    if (t.empty()) refuse(parcel.stamp, "no tensor");
    auto const dtype = t[0].scalar_type();
    for (auto const& tensor : t)
      if (tensor.scalar_type() != dtype) refuse(parcel.stamp, "tensors of several dtypes");
    parcel.combine = shm::combine_of(op.op_, dtype);
    parcel.element = static_cast<std::size_t>(t[0].element_size());
    if (parcel.combine == nullptr)
      throw ConfigError(sentence("comm", rank_, size_,
                                 std::string(parcel.stamp.name) + ": numbers of " +
                                     std::string(c10::getDtypeNames(dtype).first) + " have no such operation",
                                 "choose another ReduceOp, or convert the tensor"));
  }

  Started start(Op type, Parcel&& parcel, shm::Way way, Tensors const& result, std::size_t bytes,
                std::uint8_t operation = 0, bool first_sizes = false) {
    auto const work = c10::make_intrusive<shm::ShmWork>(engine_, type, parcel.stamp, result);
    work->before = parcel.before();
    work->after = parcel.after();
    auto& c = work->collective.emplace();
    c.call = shm::call_of(parcel.stamp, bytes, operation);
    c.way = way;
    c.call.way = static_cast<std::uint8_t>(way);
    c.combine = parcel.combine;
    c.element = parcel.element;
    c.first_sizes = first_sizes;
    std::size_t most = 0;
    for (auto const* rows : {&parcel.give, &parcel.take})
      for (auto const& row : *rows) most = std::max(most, row.size());
    c.give = std::move(parcel.give);
    c.take = std::move(parcel.take);
    auto const& sizes = engine_->sizes();
    auto const ranks = static_cast<std::size_t>(size_);
    // A reduction in slices has several ticks as soon as that pays, so that its phases overlap.
    if (way == shm::Way::sliced)
      c.chunk =
          std::clamp(shm::rounded_up(most / (ranks * 4)), std::min<std::size_t>(4096, sizes.part()), sizes.part());
    else
      c.chunk = way == shm::Way::whole ? sizes.slot : sizes.part();
    auto const tick = way == shm::Way::sliced ? c.chunk * ranks : c.chunk;
    if (!first_sizes) c.ticks = std::max<std::size_t>(1, (most + tick - 1) / tick);
    work->kept = std::move(parcel).kept();
    return started(work);
  }

  Started message(Op type, char const* name, Tensors const& t, int peer, int tag) {
    Parcel parcel(Stamp(name, t).message(peer, tag).within(c10d::kUnsetTimeout));
    bool const sends = type == Op::SEND;
    auto const letter = std::make_shared<shm::Message>();
    letter->row = parcel.row(t, sends, !sends);
    letter->peer = peer;
    letter->tag = tag;
    letter->dtype = t.empty() ? 0 : static_cast<std::uint8_t>(t[0].scalar_type());
    if (peer >= size_ || (sends && peer < 0)) refuse(parcel.stamp, "there is no rank " + std::to_string(peer));
    auto const work = c10::make_intrusive<shm::ShmWork>(engine_, type, parcel.stamp, t);
    work->before = parcel.before();
    work->after = parcel.after();
    work->message = letter;
    work->kept = std::move(parcel).kept();
    return started(work);
  }

  Started started(shm::WorkHandle const& work) {
    engine_->start(work);
    if (coalesced_) coalesced_->push_back(work);
    return work;
  }
  template <class F>
  Started each(std::size_t count, F&& f) {
    std::vector<Started> works;
    for (std::size_t i = 0; i < count; ++i) works.push_back(f(i));
    return c10::make_intrusive<shm::ManyWorks>(std::move(works));
  }

  /// Sparse COO: all ranks' entries, in the order of ranks, then summed, half and bfloat16 in float. Blocks, since how
  /// much comes is known only after a first meeting. \cost three all-gathers: of a shape, and of as many entries as the
  /// fullest rank has. \throws CommError on all ranks where shapes differ.
  Started sparse_sum(Tensors& t, c10d::AllreduceOptions const& o) {
    if (t[0].layout() != c10::kSparse || o.reduceOp.op_ != c10d::ReduceOp::SUM)
      refuse(Stamp("all_reduce", t), "sparse tensors of the layout COO can be summed, and nothing else");
    torch::NoGradGuard const no_grad;
    auto const dtype = t[0].scalar_type();
    bool const narrow = dtype == torch::kHalf || dtype == torch::kBFloat16;
    auto const mine = (narrow ? t[0].detach().to(torch::kFloat) : t[0].detach()).coalesce();
    std::vector<std::int64_t> about{mine._nnz(), mine.sparse_dim(), static_cast<std::int64_t>(dtype)};
    about.insert(about.end(), mine.sizes().begin(), mine.sizes().end());
    auto const counts = gather_equal(torch::tensor(about, torch::kInt64), o.timeout);
    std::int64_t most = 0;
    for (std::size_t r = 0; r < counts.size(); ++r) {
      most = std::max(most, counts[r][0].item<std::int64_t>());
      if (!torch::equal(counts[r].slice(0, 1), counts[static_cast<std::size_t>(rank_)].slice(0, 1)))
        throw CommError(sentence("comm", rank_, size_,
                                 "all_reduce: rank " + std::to_string(r) +
                                     " has a sparse tensor of another shape or dtype than this one, " +
                                     c10::str(mine.sizes()),
                                 "give all ranks alike"));
    }
    auto const padded = [most](at::Tensor const& rows) {  // the entries come first
      auto shape = rows.sizes().vec();
      shape[0] = most;
      auto whole = torch::zeros(shape, rows.options());
      whole.narrow(0, 0, rows.size(0)).copy_(rows);
      return whole;
    };
    auto const indices = gather_equal(padded(mine.indices().t().contiguous()), o.timeout);
    auto const values = gather_equal(padded(mine.values().contiguous()), o.timeout);
    Tensors all_indices, all_values;
    for (std::size_t r = 0; r < counts.size(); ++r) {
      auto const count = counts[r][0].item<std::int64_t>();
      all_indices.push_back(indices[r].narrow(0, 0, count));
      all_values.push_back(values[r].narrow(0, 0, count));
    }
    auto const sum =
        torch::sparse_coo_tensor(torch::cat(all_indices).t(), torch::cat(all_values), mine.sizes()).coalesce();
    t[0].copy_(narrow ? sum.to(dtype) : sum);
    return c10::make_intrusive<DoneWork>(Op::_ALLREDUCE_SPARSE, t);
  }
  Tensors gather_equal(at::Tensor const& mine, std::chrono::milliseconds timeout) {
    Tensors all, in{mine};
    for (int r = 0; r < size_; ++r) all.push_back(torch::empty_like(mine));
    gathered(Op::ALLGATHER, Parcel(Stamp("all_gather", in).within(timeout)), all, in)->wait();
    return all;
  }

  std::shared_ptr<shm::Engine> engine_;
  std::size_t read_all_;
  std::optional<std::vector<Started>> coalesced_;
};

}  // namespace detail

namespace backend {

/// Every rank must call it, on one host: it returns when all have the memory.
/// \param store  private to this group. \throws CommTimeout, CommError where ranks do not come.
inline c10::intrusive_ptr<c10d::Backend> shm(c10::intrusive_ptr<c10d::Store> const& store, int rank, int size,
                                             ShmOptions const& options = {}) {
  return detail::translated([&]() -> c10::intrusive_ptr<c10d::Backend> {
    return c10::make_intrusive<detail::ShmBackend>(*store, rank, size, options);
  });
}

}  // namespace backend
}  // namespace pardl::inline PARDL_ABI
