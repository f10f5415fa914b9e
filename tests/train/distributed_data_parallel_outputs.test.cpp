// SPDX-License-Identifier: MIT
// What a forward may return, and what happens to parameters that the loss does not reach.
#include <doctest/doctest.h>
#include <torch/torch.h>

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "ddp_support.hpp"
#include "pardl/train/comm_hooks.hpp"
#include "pardl/train/distributed_data_parallel.hpp"
#include "pardl/train/for_each_tensor.hpp"

using namespace ddp_test;
using pardl::DistributedDataParallel;
using pardl::ProcessGroup;
using pardl::testing::with_ranks;
using Options = pardl::DistributedDataParallelOptions;

namespace outputs {

struct Heads {  // an aggregate, with a label that holds no tensor and another aggregate inside
  torch::Tensor first;
  struct {
    std::string label;
    std::vector<torch::Tensor> rest;
  } inner;
};

class Sealed {  // its tensors are found by the function beside it
 public:
  explicit Sealed(torch::Tensor first, torch::Tensor second) : first_(std::move(first)), second_(std::move(second)) {}
  torch::Tensor& first() { return first_; }
  torch::Tensor& second() { return second_; }

 private:
  torch::Tensor first_, second_;
};
template <class F>
void for_each_tensor(Sealed& value, F&& f) {
  f(value.first());
  f(value.second());
}

struct WithParts {
  torch::Tensor logits;
  std::optional<torch::Tensor> hidden;
  std::variant<int, torch::Tensor> either;
  std::array<torch::Tensor, 2> pair;
};
struct WithBase : WithParts {
  torch::Tensor more;
};
struct WithArray {
  torch::Tensor logits;
  torch::Tensor pair[2];
};

class Opaque {  // nobody can look into it
 public:
  explicit Opaque(torch::Tensor inside) : inside_(std::move(inside)) {}
  torch::Tensor const& inside() const { return inside_; }

 private:
  torch::Tensor inside_;
};

/// Two branches; how they are handed out is the template's business.
template <class Wrap>
struct TwoBranchesImpl : torch::nn::Module {
  TwoBranchesImpl() {
    left = register_module("left", torch::nn::Linear(6, 2));
    right = register_module("right", torch::nn::Linear(6, 2));
    never = register_module("never", torch::nn::Linear(6, 2));
    fill(*this, 7);
  }
  auto forward(torch::Tensor const& x) { return Wrap{}(left(x), right(x)); }
  torch::nn::Linear left = nullptr, right = nullptr, never = nullptr;
};

}  // namespace outputs

using namespace outputs;

namespace {

/// Branch `right` is computed but takes no part in the loss, `never` is not even computed. Both keep their gradients.
template <class Wrap, class First>
void check_output(Wrap, First first) {
  for (bool const is_static : {false, true})
    with_ranks(2, [&](ProcessGroup world) {
      auto net = std::make_shared<TwoBranchesImpl<Wrap>>();
      TwoBranchesImpl<Wrap> alone;
      net->never->weight.mutable_grad() = torch::full_like(net->never->weight, 5.0 + world.rank());
      DistributedDataParallel model{net, world, {.find_unused_parameters = !is_static, .static_graph = is_static}};
      for (int s = 0; s < 3; ++s) {
        net->left->zero_grad();
        auto output = model(batch_of(world.rank(), s));
        static_assert(std::is_same_v<decltype(output), decltype(alone.forward(torch::Tensor()))>);
        first(output).pow(2).sum().backward();
        torch::Tensor mean = torch::zeros_like(alone.left->weight);
        for (int rank = 0; rank < 2; ++rank) {
          alone.left->zero_grad();
          auto own = alone.forward(batch_of(rank, s));
          first(own).pow(2).sum().backward();
          mean += alone.left->weight.grad() * 0.5;
        }
        CHECK(torch::equal(net->left->weight.grad(), mean));
        CHECK_FALSE(net->right->weight.grad().defined());
        CHECK(torch::equal(net->never->weight.grad(), torch::full_like(net->never->weight, 5.0 + world.rank())));
      }
    });
}

}  // namespace

TEST_CASE("a tensor, pair, tuple, vector, array, map, optional, variant, struct or a type of one's own may come out") {
  using T = torch::Tensor;
  SUBCASE("tensor") {
    check_output([](T a, T) { return a; }, [](T& out) { return out; });
  }
  SUBCASE("pair") {
    check_output([](T a, T b) { return std::pair{a, b}; }, [](auto& out) { return out.first; });
  }
  SUBCASE("nested tuple") {
    check_output(
        [](T a, T b) {
          return std::tuple{b, std::tuple{1, a}};
        },
        [](auto& out) { return std::get<1>(std::get<1>(out)); });
  }
  SUBCASE("vector") {
    check_output([](T a, T b) { return std::vector<T>{b, a}; }, [](auto& out) { return out[1]; });
  }
  SUBCASE("array") {
    check_output([](T a, T b) { return std::array<T, 2>{b, a}; }, [](auto& out) { return out[1]; });
  }
  SUBCASE("map") {
    check_output(
        [](T a, T b) {
          return std::map<std::string, T>{{"a", a}, {"b", b}};
        },
        [](auto& out) { return out.at("a"); });
  }
  SUBCASE("unordered_map of vectors") {
    check_output(
        [](T a, T b) {
          return std::unordered_map<int, std::vector<T>>{{1, {a}}, {2, {b}}};
        },
        [](auto& out) { return out.at(1)[0]; });
  }
  SUBCASE("OrderedDict") {
    check_output(
        [](T a, T b) {
          torch::OrderedDict<std::string, T> both;
          both.insert("a", a);
          both.insert("b", b);
          return both;
        },
        [](auto& out) { return out["a"]; });
  }
  SUBCASE("optional and variant") {
    check_output(
        [](T a, T b) {
          return std::pair<std::optional<T>, std::variant<int, T>>{a, b};
        },
        [](auto& out) { return *out.first; });
  }
  SUBCASE("struct") {
    check_output([](T a, T b) { return Heads{b, {"x", {a}}}; }, [](auto& out) { return out.inner.rest[0]; });
  }
  SUBCASE("a type with for_each_tensor") {
    check_output([](T a, T b) { return Sealed{a, b}; }, [](auto& out) { return out.first(); });
  }
}

TEST_CASE("the visitor finds each tensor once, in order, and knows what it cannot look into") {
  Heads heads{torch::tensor(1), {"x", {torch::tensor(2), torch::tensor(3)}}};
  std::vector<int> seen;
  pardl::for_each_tensor(heads, [&](torch::Tensor& tensor) {
    seen.push_back(tensor.item<int>());
    tensor = tensor * 10;
  });
  CHECK(seen == std::vector<int>{1, 2, 3});
  CHECK(heads.inner.rest[1].item<int>() == 30);
  static_assert(pardl::tensors_visitable<std::vector<bool>>);
  static_assert(pardl::tensors_visitable<Sealed>);
  static_assert(!pardl::tensors_visitable<Opaque>);
  static_assert(!pardl::tensors_visitable<std::map<int, Opaque>>);
  static_assert(pardl::tensors_visitable<WithParts>);
  static_assert(!pardl::tensors_visitable<WithBase>);   // C++ cannot take these apart, so the user
  static_assert(!pardl::tensors_visitable<WithArray>);  // is asked for a for_each_tensor
}

TEST_CASE("an output that cannot be looked into is refused only where it must be") {
  auto const wrap = [](torch::Tensor a, torch::Tensor b) { return Opaque{a + b}; };
  TwoBranchesImpl<decltype(wrap)> net;
  CHECK(message_of([&] {
          DistributedDataParallel model{net, ProcessGroup{}, {.params_to_ignore = {"never.weight", "never.bias"}}};
          model(batch_of(0, 0)).inside().sum().backward();
          (void)model(batch_of(0, 0));
        }) == "");
  DistributedDataParallel model{net, ProcessGroup{}, {.find_unused_parameters = true}};
  CHECK(contains(message_of([&] { (void)model(batch_of(0, 0)); }), "for_each_tensor"));
}

namespace {

struct SwitchedImpl : torch::nn::Module {  // uses the one branch or the other
  SwitchedImpl() {
    left = register_module("left", torch::nn::Linear(6, 2));
    right = register_module("right", torch::nn::Linear(6, 2));
    fill(*this, 7);
  }
  torch::Tensor forward(torch::Tensor const& x, bool use_left) { return use_left ? left(x) : right(x); }
  torch::nn::Linear left = nullptr, right = nullptr;
};
TORCH_MODULE(Switched);

}  // namespace

TEST_CASE("a parameter used on one rank only receives that rank's share on all") {
  with_ranks(2, [](ProcessGroup world) {
    Switched net;
    DistributedDataParallel model{net, world, {.find_unused_parameters = true}};
    for (int s = 0; s < 3; ++s) {
      model.zero_grad();
      model(torch::ones({1, 6}), world.rank() == 0).sum().backward();
      CHECK(torch::equal(net->left->bias.grad(), torch::full({2}, 0.5)));
      CHECK(torch::equal(net->right->bias.grad(), torch::full({2}, 0.5)));
    }
  });
}

TEST_CASE("buckets of unused parameters are skipped where asked, and gradients stay right") {
  with_ranks(2, [](ProcessGroup world) {
    Switched net;
    DistributedDataParallel model{
        net, world, {.bucket_cap_mib = 0.00001, .find_unused_parameters = true, .skip_all_reduce_unused_params = true}};
    for (int s = 0; s < 3; ++s) {
      model.zero_grad();
      model(torch::full({1, 6}, 1.0 + world.rank()), true).sum().backward();
      CHECK(torch::equal(net->left->weight.grad(), torch::full({2, 6}, 1.5)));
      CHECK_FALSE(net->right->weight.grad().defined());
    }
  });
}

TEST_CASE("a bucket of unused parameters is not reduced where it is to be skipped") {
  auto const reduced_with = [](bool skip) {
    Switched net;
    DistributedDataParallel model{
        net,
        ProcessGroup{},
        {.bucket_cap_mib = 0.00001, .find_unused_parameters = true, .skip_all_reduce_unused_params = skip}};
    int buckets = 0;
    model.register_comm_hook(pardl::comm_hooks::returning_mean([&](ProcessGroup const&, c10d::GradBucket& bucket) {
      ++buckets;
      return pardl::comm_hooks::completed(bucket.getBuffer());
    }));
    model(torch::ones({1, 6}), true).sum().backward();  // never reaches `right`
    return buckets;
  };
  CHECK(reduced_with(true) < reduced_with(false));
}

TEST_CASE("a backward that left parameters out is told by name, with the option to set") {
  with_ranks(2, [](ProcessGroup world) {
    Switched net;
    DistributedDataParallel model{net, world};
    model(torch::ones({1, 6}), true).sum().backward();  // never reaches `right`
    std::string const first = message_of([&] { (void)model(torch::ones({1, 6}), true); });
    CHECK(contains(first, "'right.weight', 'right.bias'"));
    CHECK_FALSE(contains(first, "left"));
    CHECK(contains(first, "find_unused_parameters = true"));
    CHECK(contains(first, "[ddp] rank " + std::to_string(world.rank()) + "/2: "));
    CHECK(message_of([&] { (void)model(torch::ones({1, 6}), true); }) == first);  // and it stays so
  });
}

TEST_CASE("a static graph that changes is an error that says so") {
  with_ranks(2, [](ProcessGroup world) {
    Switched net;
    DistributedDataParallel model{net, world, {.static_graph = true}};
    model(torch::ones({1, 6}), true).sum().backward();
    auto const output = model(torch::ones({1, 6}), false);
    CHECK(message_of([&] { output.sum().backward(); }) != "");
    CHECK(contains(message_of([&] { (void)model(torch::ones({1, 6}), true); }), "static_graph"));
  });
}
