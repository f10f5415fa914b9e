// SPDX-License-Identifier: MIT
/// \file   A training rank of a parameter server: gives gradients, gets parameters.
/// \layer  train, private.
#pragma once

#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "pardl/comm/process_group.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/train/detail/ps_link.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::ps {

class Worker {
 public:
  Worker(ProcessGroup world, Model model, int server, Link link)
      : world_(std::move(world)),
        model_(std::move(model)),
        shape_(model_.shape()),
        server_(server),
        link_(std::move(link)),
        row_(shape_.row()) {}

  [[nodiscard]] std::int64_t clock() const noexcept { return clock_; }
  [[nodiscard]] std::int64_t version() const noexcept { return version_; }

  void step() {
    check_open("step()");
    pack();
    talk([&] {
      link_.send({Kind::push, clock_, version_, shape_.push()}, row_);
      receive(Kind::answer, shape_.answer());
    });
    ++clock_;
    shape_.parameters.unpack(row_, model_.parameters);
  }

  void finish() {
    check_open("finish()");
    finished_ = true;
    talk([&] {
      link_.send({Kind::leave, clock_, version_, 0});
      receive(Kind::model, shape_.model());
      link_.send({Kind::bye, clock_, version_, 0});
    });
    shape_.parameters.unpack(row_, model_.parameters);
    shape_.buffers.unpack(row_, model_.buffers());
  }

 private:
  void check_open(char const* what) const {
    if (finished_)
      throw ConfigError(sentence(room, world_.rank(), world_.size(), std::string(what) + " after finish()",
                                 "make a new ParameterServer, on every rank, for another training"));
  }

  void pack() {
    std::vector<torch::Tensor> gradients;
    auto const used = shape_.used(row_);
    auto* const has_gradient = used.mutable_data_ptr<std::uint8_t>();
    for (std::size_t i = 0; i < model_.parameters.size(); ++i) {
      auto const& gradient = model_.parameters[i].grad();
      if (gradient.defined() && gradient.layout() != torch::kStrided)
        throw ConfigError(sentence(room, world_.rank(), world_.size(),
                                   "parameter number " + std::to_string(i) + " has a sparse gradient",
                                   "use dense embeddings; nothing was sent"));
      has_gradient[i] = gradient.defined() ? 1 : 0;
      gradients.push_back(gradient);
    }
    shape_.parameters.pack(gradients, row_);
    shape_.buffers.pack(model_.buffers(), row_);
  }

  /// The row that is due, however often the server asks for patience.
  void receive(Kind kind, std::int64_t bytes) {
    for (;;) {
      auto const head = link_.receive(clock_, {{kind, bytes}, {Kind::wait, 0}});
      if (head.kind == Kind::wait) continue;
      link_.receive_row(row_, bytes);
      version_ = head.version;
      return;
    }
  }

  template <class F>
  void talk(F&& f) const {
    auto const text = [this](Error const& error) {
      return sentence(room, world_.rank(), world_.size(),
                      "the server, rank " + std::to_string(server_) + ", was lost after " + std::to_string(clock_) +
                          (clock_ == 1 ? " step" : " steps") + " of this worker" +
                          as_the_pair_says(first_line(error.what())),
                      "see what rank " + std::to_string(server_) + " said last");
    };
    try {
      f();
    } catch (CommTimeout const& error) {
      throw CommTimeout(text(error));
    } catch (CommError const& error) {
      throw CommError(text(error));
    }
  }

  ProcessGroup world_;
  Model model_;
  Shape const shape_;
  int server_;
  Link link_;
  torch::Tensor row_;
  std::int64_t clock_ = 0;    ///< gradients given
  std::int64_t version_ = 0;  ///< of the parameters in the module
  bool finished_ = false;
};

}  // namespace pardl::inline PARDL_ABI::detail::ps
