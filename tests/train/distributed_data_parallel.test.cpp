// SPDX-License-Identifier: MIT
#include "pardl/train/distributed_data_parallel.hpp"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include "ddp_support.hpp"

using namespace ddp_test;
using pardl::DistributedDataParallel;
using pardl::ProcessGroup;
using pardl::testing::with_ranks;
using Options = pardl::DistributedDataParallelOptions;

namespace {

/// Takes four steps and compares each gradient with the mean of the ranks' own, bit for bit.
void check_exact_mean(Options const& options, int ranks = 2) {
  with_ranks(ranks, [&](ProcessGroup world) {
    Mlp net(1), alone(1);
    DistributedDataParallel model{net, world, options};
    for (int s = 0; s < 4; ++s) {
      auto const expected = mean_of_own(*alone, ranks, s);
      model.zero_grad();
      loss_of(model(batch_of(world.rank(), s))).backward();
      CHECK_MESSAGE(same_bits(gradients(*net), expected), "step " << s << " rank " << world.rank());
      step(model.parameters(), gradients(*net), 0.1);
      step(alone->parameters(), expected, 0.1);
    }
  });
}

}  // namespace

TEST_CASE("gradients are bitwise the mean of two ranks' own, whatever the options") {
  SUBCASE("defaults") { check_exact_mean({}); }
  SUBCASE("gradients as views of the buckets") { check_exact_mean({.gradient_as_bucket_view = true}); }
  SUBCASE("tiny buckets, rebuilt after the first step") { check_exact_mean({.bucket_cap_mib = 0.0005}); }
  SUBCASE("bucket sizes one by one") { check_exact_mean({.bucket_cap_mib_list = {0.0001, 0.0005}}); }
  SUBCASE("search for unused parameters") { check_exact_mean({.find_unused_parameters = true}); }
  SUBCASE("static graph") { check_exact_mean({.static_graph = true}); }
  SUBCASE("static graph, tiny buckets, views") {
    check_exact_mean({.bucket_cap_mib = 0.0005, .gradient_as_bucket_view = true, .static_graph = true});
  }
  SUBCASE("a world of one") { check_exact_mean({}, 1); }
  if (pardl::detail::has_batched_grad_copy) {
    SUBCASE("batched copies") { check_exact_mean({.batched_grad_copy = true}); }
  }
  if (pardl::detail::has_lazy_bucket_allocation) {
    SUBCASE("lazy buckets") { check_exact_mean({.bucket_cap_mib = 0.0005, .lazy_bucket_allocation = true}); }
  }
}

TEST_CASE("options that this LibTorch lacks are refused and not ignored") {
  Mlp net;
  if (!pardl::detail::has_batched_grad_copy)
    CHECK(contains(message_of([&] { DistributedDataParallel model(net, ProcessGroup{}, {.batched_grad_copy = true}); }),
                   "batched_grad_copy"));
  if (!pardl::detail::has_lazy_bucket_allocation)
    CHECK(contains(
        message_of([&] { DistributedDataParallel model(net, ProcessGroup{}, {.lazy_bucket_allocation = true}); }),
        "lazy_bucket_allocation"));
}

namespace {

/// Wraps what `make(rank)` builds on two ranks; both must throw ConfigError with all of `parts` in it.
template <class Make>
void check_mismatch(Make make, std::vector<std::string> const& parts) {
  with_ranks(2, [&](ProcessGroup world) {
    std::string text;
    try {
      make(world);
    } catch (pardl::ConfigError const& error) {
      text = error.what();
    }
    CHECK(contains(text, "[ddp] rank " + std::to_string(world.rank()) + "/2: "));
    for (auto const& part : parts) CHECK_MESSAGE(contains(text, part), text);
  });
}

auto wrap_sequential(std::vector<torch::nn::Linear> (*layers)(int), Options options = {}) {
  return [layers, options](ProcessGroup world) {
    torch::nn::Sequential net;
    for (auto const& layer : layers(world.rank())) net->push_back(layer);
    DistributedDataParallel model{net, world, options};
  };
}

}  // namespace

TEST_CASE("models that differ between ranks make all ranks throw and name the first difference and both sides") {
  using Linear = torch::nn::Linear;
  using Layers = std::vector<Linear>;
  SUBCASE("shape") {
    check_mismatch(wrap_sequential([](int rank) {
                     return Layers{Linear(4, 3), Linear(3, 2 + rank)};
                   }),
                   {"parameter '1.weight' is Float [2, 3]", "on rank 0, but Float [3, 3]", "on rank 1"});
  }
  SUBCASE("dtype") {
    check_mismatch(wrap_sequential([](int rank) {
                     Linear layer(4, 3);
                     if (rank == 1) layer->to(torch::kFloat64);
                     return Layers{layer};
                   }),
                   {"parameter '0.weight' is Float [3, 4]", "but Double [3, 4]"});
  }
  SUBCASE("strides") {
    check_mismatch(
        [](ProcessGroup world) {
          torch::nn::Conv2d net(2, 3, 2);
          torch::NoGradGuard no_grad;
          if (world.rank() == 1) net->weight.set_data(net->weight.contiguous(torch::MemoryFormat::ChannelsLast));
          DistributedDataParallel model{net, world};
        },
        {"parameter 'weight'", "with strides [8, 4, 2, 1] on rank 0", "with strides [8, 1, 4, 2] on rank 1"});
  }
  SUBCASE("number, rank 1 has more") {
    check_mismatch(wrap_sequential([](int rank) {
                     return rank ? Layers{Linear(2, 2), Linear(2, 2)} : Layers{Linear(2, 2)};
                   }),
                   {"rank 0 has 2 parameters and buffers and rank 1 has 4: rank 0 lacks parameter '1.weight'"});
  }
  SUBCASE("number, rank 0 has more") {
    check_mismatch(wrap_sequential([](int rank) {
                     return rank ? Layers{Linear(2, 2)} : Layers{Linear(2, 2), Linear(2, 2)};
                   }),
                   {"rank 1 lacks parameter '1.weight'"});
  }
  SUBCASE("name") {
    check_mismatch(
        [](ProcessGroup world) {
          torch::nn::Module net;
          net.register_parameter(world.rank() ? "beta" : "alpha", torch::ones({2}));
          DistributedDataParallel model{net, world};
        },
        {"parameter 'alpha' (Float [2] with strides [1]) on rank 0, but parameter 'beta'"});
  }
  SUBCASE("frozen on one rank") {
    check_mismatch(wrap_sequential([](int rank) {
                     Linear layer(2, 2);
                     layer->bias.set_requires_grad(rank == 0);
                     return Layers{layer};
                   }),
                   {"parameter '0.bias'", "frozen on rank 1"});
  }
  SUBCASE("a buffer's shape") {
    check_mismatch(
        [](ProcessGroup world) {
          torch::nn::Linear net(2, 2);
          net->register_buffer("table", torch::ones({2 + world.rank()}));
          DistributedDataParallel model{net, world};
        },
        {"buffer 'table' is Float [2] on rank 0, but Float [3] on rank 1"});
  }
  SUBCASE("options") {
    check_mismatch(
        [](ProcessGroup world) {
          torch::nn::Linear net(2, 2);
          DistributedDataParallel model{net, world, {.static_graph = world.rank() == 1}};
        },
        {"the options differ", "static_graph false", "static_graph true"});
  }
  SUBCASE("something only one rank can know is wrong") {
    check_mismatch(
        [](ProcessGroup world) {
          torch::nn::Linear net(2, 2);
          if (world.rank() == 1)
            for (auto& parameter : net->parameters()) parameter.set_requires_grad(false);
          DistributedDataParallel model{net, world};
        },
        {"no parameter requires a gradient"});
  }
  SUBCASE("ignored parameters may differ, and stay each rank's own") {
    with_ranks(2, [](ProcessGroup world) {
      torch::nn::Sequential net(Linear(6, 2), Linear(2, 2 + world.rank()));
      net->to(torch::kFloat32);
      fill(*net, static_cast<uint64_t>(5 + world.rank()));
      DistributedDataParallel model{net, world, {.params_to_ignore = {"1.weight", "1.bias"}}};
      model(batch_of(world.rank(), 0)).sum().backward();
      auto const sums = [&](std::size_t i) {
        return pardl::all_sum(world, net->parameters()[i].grad().sum().item<double>());
      };
      CHECK(sums(0) == doctest::Approx(2 * net->parameters()[0].grad().sum().item<double>()));
      CHECK(net->parameters()[3].grad().sum().item<double>() == doctest::Approx(5 * (2 + world.rank())));
    });
  }
}

TEST_CASE("options that cannot be right are refused by name") {
  Mlp net(1);
  auto const refusal = [&](Options options) {
    return message_of([&] { DistributedDataParallel model(net, ProcessGroup{}, std::move(options)); });
  };
  CHECK(contains(refusal({.bucket_cap_mib = 0}), "bucket size"));
  CHECK(contains(refusal({.bucket_cap_mib_list = {25, -1}}), "bucket size"));
  CHECK(contains(refusal({.bucket_cap_mib = 1, .bucket_cap_mib_list = {1}}), "both set"));
  CHECK(contains(refusal({.skip_all_reduce_unused_params = true}), "skip_all_reduce_unused_params"));
  CHECK(contains(refusal({.params_to_ignore = {"a.wait"}}), "'a.wait'"));
  CHECK(contains(refusal({.init_sync = false, .params_to_ignore = {"a.wait"}}), "'a.wait'"));
}

TEST_CASE("three ranks' gradients are the mean of their own within rounding") {
  with_ranks(3, [](ProcessGroup world) {
    Mlp net(1), alone(1);
    DistributedDataParallel model{net, world};
    auto const expected = mean_of_own(*alone, 3, 0);
    loss_of(model(batch_of(world.rank(), 0))).backward();
    auto const got = gradients(*net);
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(torch::allclose(got[i], expected[i], 1e-5, 1e-7));
  });
}

TEST_CASE("N ranks of batch B/N follow one rank of batch B over 50 steps") {
  for (int const ranks : {2, 4})
    with_ranks(ranks, [&](ProcessGroup world) {
      Mlp net(1), one(1);
      DistributedDataParallel model{net, world, {.bucket_cap_mib = 0.0005}};
      torch::optim::SGD sgd(model.parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
      torch::optim::SGD sgd_one(one->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
      int64_t const share = 8 / ranks;
      for (int s = 0; s < 50; ++s) {
        auto const batch = batch_of(0, s, 8);
        sgd.zero_grad();
        loss_of(model(batch.narrow(0, world.rank() * share, share))).backward();
        sgd.step();
        sgd_one.zero_grad();
        loss_of(one(batch)).backward();
        sgd_one.step();
      }
      auto const many = net->parameters();
      auto const single = one->parameters();
      for (std::size_t i = 0; i < many.size(); ++i) CHECK(torch::allclose(many[i], single[i], 1e-4, 1e-5));
      CHECK_FALSE(torch::allclose(many[0], Mlp(1)->parameters()[0], 1e-2, 1e-2));  // it did train
    });
}

TEST_CASE("every rank starts from rank 0's parameters and buffers") {
  with_ranks(3, [](ProcessGroup world) {
    WithBatchNorm net(static_cast<uint64_t>(1 + world.rank()));
    net->norm->running_mean.fill_(world.rank() + 4.0);
    bool const share = true;
    DistributedDataParallel model{net, world, {.init_sync = share}};
    CHECK(torch::equal(net->a->weight, WithBatchNorm(1)->a->weight));
    CHECK(net->norm->running_mean[0].item<double>() == 4.0);

    WithBatchNorm own(static_cast<uint64_t>(1 + world.rank()));
    DistributedDataParallel apart{own, world, {.init_sync = false, .forward_sync_buffers = false}};
    CHECK(torch::equal(own->a->weight, WithBatchNorm(static_cast<uint64_t>(1 + world.rank()))->a->weight));
  });
}

TEST_CASE("buckets follow the sizes asked for, once the order of gradients is known") {
  with_ranks(2, [](ProcessGroup world) {
    auto const buckets_after = [&](Options options, int steps) {
      Mlp net(1);
      DistributedDataParallel model{net, world, std::move(options)};
      for (int s = 0; s < steps; ++s) loss_of(model(batch_of(world.rank(), s))).backward();
      return model.reducer().get_grad_buckets().size();
    };
    CHECK(buckets_after({.bucket_cap_mib = 0.0005}, 0) == 1);  // at first one bucket holds all
    CHECK(buckets_after({.bucket_cap_mib = 0.0005}, 2) > 1);
    CHECK(buckets_after({.bucket_cap_mib = 0.0005, .find_unused_parameters = true}, 0) > 1);
    CHECK(buckets_after({}, 2) == 1);
    Mlp net(1);
    DistributedDataParallel model{net, world, {.bucket_cap_mib = 0.0005, .find_unused_parameters = true}};
    auto const first = model.reducer().get_grad_buckets().front().getParameters();
    CHECK(first.back().is_same(net->c->bias));  // what was registered last is ready first
    CHECK(buckets_after({.bucket_cap_mib_list = {0.00001, 25}}, 0) == 2);
  });
}

TEST_CASE("gradients live in the buckets where asked, and nowhere else") {
  for (bool const view : {false, true}) {
    Mlp net(1);
    DistributedDataParallel model{net, ProcessGroup{}, {.gradient_as_bucket_view = view}};
    for (int s = 0; s < 2; ++s) loss_of(model(batch_of(0, s))).backward();
    auto const bucket = model.reducer().get_grad_buckets(/*return_zero_tensors=*/false).front();
    CHECK(net->a->weight.grad().is_alias_of(bucket.getBuffer()) == view);
  }
}

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 15
namespace {
struct ReducerOptions : pardl::detail::OpenReducer {  // reads what the reducer was told
  static bool batched(c10d::Reducer const& reducer) { return reducer.*(&ReducerOptions::batched_grad_copy_); }
  static bool lazy(c10d::Reducer const& reducer) { return reducer.*(&ReducerOptions::lazy_bucket_allocation_); }
};
}  // namespace

TEST_CASE("how gradients are copied and buckets allocated reaches the reducer, and changes no gradient") {
  std::vector<torch::Tensor> plain;
  for (bool const on : {false, true})
    for (bool const off : {false, true}) {
      Mlp net(1);
      DistributedDataParallel model{net, ProcessGroup{}, {.batched_grad_copy = on, .lazy_bucket_allocation = off}};
      CHECK(ReducerOptions::batched(model.reducer()) == on);
      CHECK(ReducerOptions::lazy(model.reducer()) == off);
      for (int s = 0; s < 2; ++s) loss_of(model(batch_of(0, s))).backward();
      if (plain.empty())
        for (auto const& parameter : net->parameters()) plain.push_back(parameter.grad().clone());
      for (std::size_t i = 0; i < plain.size(); ++i) CHECK(torch::equal(net->parameters()[i].grad(), plain[i]));
    }
}
#endif

TEST_CASE("under no_sync gradients add up alone, and the next backward reduces their sum") {
  for (bool const is_static : {false, true})
    with_ranks(2, [&](ProcessGroup world) {
      Mlp net(1), alone(1);
      DistributedDataParallel model{net, world, {.static_graph = is_static}};
      {
        auto const apart = model.no_sync();
        loss_of(model(batch_of(world.rank(), 0))).backward();
        loss_of(model(batch_of(world.rank(), 1))).backward();
      }
      loss_of(alone->forward(batch_of(world.rank(), 0))).backward();
      loss_of(alone->forward(batch_of(world.rank(), 1))).backward();
      CHECK(same_bits(gradients(*net), gradients(*alone)));

      loss_of(model(batch_of(world.rank(), 2))).backward();
      std::vector<torch::Tensor> mean;
      for (int rank = 0; rank < 2; ++rank) {
        for (auto& parameter : alone->parameters()) parameter.mutable_grad() = torch::Tensor();
        for (int s = 0; s < 3; ++s) loss_of(alone->forward(batch_of(rank, s))).backward();
        auto own = copies(gradients(*alone));
        for (std::size_t i = 0; i < own.size(); ++i) {
          own[i].mul_(0.5);
          rank == 0 ? mean.push_back(own[i]) : static_cast<void>(mean[i].add_(own[i]));
        }
      }
      CHECK(same_bits(gradients(*net), mean));
    });
}

TEST_CASE("buffers are rank 0's on the forward after a synchronised one, and only then") {
  with_ranks(2, [](ProcessGroup world) {
    WithBatchNorm net(1);
    DistributedDataParallel model{net, world};
    auto const mark = [&] { net->norm->running_var.fill_(10.0 + world.rank()); };
    auto const marked = [&] { return net->norm->running_var[0].item<double>(); };
    model.eval();  // so that forward itself leaves the statistics alone
    mark();
    model(batch_of(world.rank(), 0)).sum().backward();
    CHECK(marked() == 10.0);  // the first forward always synchronises
    mark();
    {
      torch::NoGradGuard no_grad;
      (void)model(batch_of(world.rank(), 0));  // follows a synchronised one
      CHECK(marked() == 10.0);
      mark();
      (void)model(batch_of(world.rank(), 0));  // follows one without gradients
      CHECK(marked() == 10.0 + world.rank());
    }
    model.sync_buffers();
    CHECK(marked() == 10.0);

    DistributedDataParallel own{net, world, {.forward_sync_buffers = false}};
    mark();
    own(batch_of(world.rank(), 0)).sum().backward();
    CHECK(marked() == 10.0 + world.rank());
  });
}

TEST_CASE("two forwards before one backward survive the broadcast of buffers between them") {
  with_ranks(2, [](ProcessGroup world) {
    WithBatchNorm net(1);
    DistributedDataParallel model{net, world};
    model.eval();  // the backward of batch norm then reads the running statistics
    auto const first = model(batch_of(world.rank(), 0));
    auto const second = model(batch_of(world.rank(), 1));
    CHECK(message_of([&] { (first.sum() + second.sum()).backward(); }) == "");
  });
}

namespace {

struct Tied : torch::nn::Module {  // plain, without a holder; two arguments
  Tied() {
    a = register_module("a", torch::nn::Linear(torch::nn::LinearOptions(6, 6).bias(false)));
    b = register_module("b", torch::nn::Linear(torch::nn::LinearOptions(6, 6).bias(false)));
    b->weight = b->register_parameter("tied", a->weight);
    scale = register_parameter("scale", torch::ones({1}));
    frozen = register_parameter("frozen", torch::ones({1}), /*requires_grad=*/false);
    fill(*a, 5);
    torch::NoGradGuard no_grad;
    for (auto& parameter : b->parameters()) parameter.copy_(a->weight);
  }
  std::pair<torch::Tensor, int> forward(torch::Tensor const& x, int times) {
    return {torch::linear(torch::linear(x, a->weight), a->weight) * scale * frozen * times, times};
  }
  torch::nn::Linear a = nullptr, b = nullptr;
  torch::Tensor scale, frozen;
};

}  // namespace

TEST_CASE("shared and frozen parameters, a plain module by reference, several arguments") {
  with_ranks(2, [](ProcessGroup world) {
    Tied net;
    // b's own weight takes no part in forward; the tied name belongs to a's tensor and must count once.
    DistributedDataParallel model{net, world, {.find_unused_parameters = true}};
    static_assert(std::is_same_v<decltype(model(torch::Tensor(), 2)), std::pair<torch::Tensor, int>>);
    auto [y, times] = model(batch_of(world.rank(), 0), 2);
    CHECK(times == 2);
    y.sum().backward();
    auto const total = pardl::all_sum(world, net.a->weight.grad().sum().item<double>());
    CHECK(total == doctest::Approx(2 * net.a->weight.grad().sum().item<double>()));
    CHECK_FALSE(net.frozen.grad().defined());
    std::size_t reduced = 0;
    for (auto const& bucket : model.reducer().get_grad_buckets()) reduced += bucket.getParameters().size();
    CHECK(reduced == 3);  // a's and b's own weight and the scale
  });
}

TEST_CASE("a shared_ptr, a holder and Sequential are wrapped alike, and their members reached") {
  with_ranks(2, [](ProcessGroup world) {
    auto shared = std::make_shared<MlpImpl>(1);
    torch::nn::Sequential row(torch::nn::Linear(6, 4), torch::nn::ReLU(), torch::nn::Linear(4, 1));
    fill(*row, 3);
    DistributedDataParallel a{shared, world};
    DistributedDataParallel b{row, world};
    DistributedDataParallel c = DistributedDataParallel{Mlp(1), world};  // a temporary holder is kept
    a.forward(batch_of(world.rank(), 0)).sum().backward();
    b(batch_of(world.rank(), 0)).sum().backward();
    c(batch_of(world.rank(), 0)).sum().backward();
    CHECK(torch::equal(a->a->weight.grad(), c.module().a->weight.grad()));
    CHECK(b.parameters().size() == 4);
    b.eval();
    CHECK_FALSE(row->is_training());
    b.train();
    CHECK(b.is_training());
    b.zero_grad();
    CHECK_FALSE(row->parameters()[0].grad().defined());
  });
}

TEST_CASE("an embedding's sparse gradients are averaged") {
  with_ranks(2, [](ProcessGroup world) {
    torch::nn::Embedding table(torch::nn::EmbeddingOptions(4, 2).sparse(true));
    fill(*table, 2);
    DistributedDataParallel model{table, world};
    model(torch::tensor({world.rank(), 3})).sum().backward();
    CHECK(table->weight.grad().is_sparse());
    CHECK(torch::equal(table->weight.grad().to_dense(),
                       torch::tensor({{.5, .5}, {.5, .5}, {0., 0.}, {1., 1.}}).to(torch::kFloat32)));
  });
}

TEST_CASE("a state goes out without a prefix and comes back only whole") {
  WithBatchNorm net(1), other(2);
  DistributedDataParallel model{net, ProcessGroup{}};
  auto state = model.state_dict();
  CHECK(state.keys() == std::vector<std::string>{"a.weight", "a.bias", "norm.weight", "norm.bias", "norm.running_mean",
                                                 "norm.running_var", "norm.num_batches_tracked"});
  DistributedDataParallel{other, ProcessGroup{}}.load_state_dict(state);
  CHECK(torch::equal(other->a->weight, net->a->weight));

  pardl::StateDict prefixed("name"), missing("name"), misshapen("name"), surplus("name");
  for (auto const& item : state) {
    prefixed.insert("module." + item.key(), item.value() + 1);
    if (item.key() != "norm.bias") missing.insert(item.key(), item.value() + 1);
    misshapen.insert(item.key(), item.key() == "a.bias" ? torch::zeros({3}) : item.value() + 1);
    surplus.insert(item.key(), item.value() + 1);
  }
  surplus.insert("extra", torch::ones({1}));
  auto const before = other->a->weight.detach().clone();
  CHECK(contains(message_of([&] { pardl::load_state_dict(other, missing); }), "'norm.bias'"));
  CHECK(contains(message_of([&] { pardl::load_state_dict(other, misshapen); }), "'a.bias' has shape [3]"));
  CHECK(contains(message_of([&] { pardl::load_state_dict(other, surplus); }), "'extra'"));
  CHECK_THROWS_AS(pardl::load_state_dict(other, missing), pardl::CheckpointError);
  CHECK(torch::equal(other->a->weight, before));  // nothing was half-written
  pardl::load_state_dict(other, prefixed);        // as Python's DDP writes it
  CHECK(torch::equal(other->a->weight, before + 1));
}
