// SPDX-License-Identifier: MIT
// ddp_parity: the same training by this library and by Python's DistributedDataParallel, live, on the same LibTorch,
// machine and threads. Two ranks must agree in every bit, three and four within 1e-6 of each tensor's largest value.
//
// Ranks are real processes: children of this one in C++, `$PARDL_PYTHON ddp_parity.py FOLDER RANK RANKS` beside them.
// Exits with 77, and says why, where there is no Python with the same torch.
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <vector>

#include "pardl/comm/process_group.hpp"
#include "pardl/train/comm_hooks.hpp"
#include "pardl/train/distributed_data_parallel.hpp"
#include "support/temporary_folder.hpp"

#ifndef PARDL_DDP_PARITY_SCRIPT
#error "define PARDL_DDP_PARITY_SCRIPT: the path of ddp_parity.py"
#endif

namespace {

namespace fs = std::filesystem;

struct Case {
  std::string model, option;
  int steps = 5, batch = 4;
};

std::vector<Case> cases_for(int ranks) {
  std::vector<Case> cases{{"mlp", "default"}, {"mlp", "small_buckets"}, {"conv", "default"}, {"conv", "bucket_view"}};
  if (ranks == 2)
    for (auto const* option : {"bucket_list", "find_unused", "static_graph", "hook_all_reduce", "hook_fp16"})
      cases.push_back({"mlp", option});
  if (ranks == 2) cases.insert(cases.end(), {{"conv", "own_buffers"}, {"conv", "no_sync"}, {"mlp", "hook_bf16"}});
  if (ranks == 2 && pardl::detail::has_lazy_bucket_allocation)
    cases.insert(cases.end(), {{"mlp", "batched"}, {"mlp", "lazy"}});
  if (ranks == 3) cases.insert(cases.end(), {{"mlp", "hook_fp16"}, {"conv", "join"}, {"mlp", "join_alive"}});
  return cases;
}

pardl::DistributedDataParallelOptions options_of(std::string const& name) {
  if (name == "small_buckets") return {.bucket_cap_mib = 0.004};
  if (name == "bucket_view") return {.bucket_cap_mib = 0.004, .gradient_as_bucket_view = true};
  if (name == "bucket_list") return {.bucket_cap_mib_list = {0.001, 0.008}};
  if (name == "find_unused") return {.bucket_cap_mib = 0.004, .find_unused_parameters = true};
  if (name == "static_graph") return {.bucket_cap_mib = 0.004, .static_graph = true};
  if (name == "own_buffers") return {.forward_sync_buffers = false};
  if (name == "batched") return {.bucket_cap_mib = 0.004, .batched_grad_copy = true};
  if (name == "lazy") return {.bucket_cap_mib = 0.004, .lazy_bucket_allocation = true};
  return {};
}

torch::nn::Sequential make_model(std::string const& name) {
  using namespace torch::nn;
  if (name == "mlp") return Sequential(Linear(20, 64), Tanh(), Linear(64, 64), ReLU(), Linear(64, 10));
  return Sequential(Conv2d(Conv2dOptions(3, 8, 3).padding(1)), BatchNorm2d(8), ReLU(),
                    Conv2d(Conv2dOptions(8, 16, 3).stride(2)), BatchNorm2d(16), ReLU(), Flatten(),
                    Linear(16 * 7 * 7, 10));
}

std::vector<int64_t> input_shape(Case const& c) {
  if (c.model == "mlp") return {c.steps, c.batch, 20};
  return {c.steps, c.batch, 3, 16, 16};
}

/// Uniform in [-1, 1); of no library, so that both sides can only read what was written.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 2654435769u + 1) {}
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<double>(state_ >> 40) / (1u << 23) - 1.0);
  }

 private:
  uint64_t state_;
};

void write_numbers(fs::path const& path, int64_t count, uint64_t seed, float scale) {
  std::ofstream file(path, std::ios::binary);
  Numbers numbers(seed);
  for (int64_t i = 0; i < count; ++i) {
    float const value = numbers.next() * scale;
    file.write(reinterpret_cast<char const*>(&value), sizeof value);
  }
}

std::vector<float> read_numbers(fs::path const& path) {
  std::ifstream file(path, std::ios::binary);
  std::string const bytes{std::istreambuf_iterator<char>(file), {}};
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

void train(fs::path const& folder, pardl::ProcessGroup const& world, Case const& c, int number) {
  std::string const name = std::to_string(number);
  std::string const rank = std::to_string(world.rank());
  auto net = make_model(c.model);
  auto weights = read_numbers(folder / ("weights_" + name + ".bin"));
  {
    torch::NoGradGuard no_grad;
    auto const all = torch::from_blob(weights.data(), {static_cast<int64_t>(weights.size())});
    int64_t at = 0;
    for (auto& parameter : net->parameters()) {
      parameter.copy_(all.narrow(0, at, parameter.numel()).view_as(parameter) + world.rank());  // rank 0's must win
      at += parameter.numel();
    }
  }
  auto numbers = read_numbers(folder / ("inputs_" + name + "_" + rank + ".bin"));
  auto const inputs = torch::from_blob(numbers.data(), input_shape(c));
  pardl::DistributedDataParallel model{net, world, options_of(c.option)};
  if (c.option == "hook_all_reduce") model.register_comm_hook(pardl::comm_hooks::all_reduce());
  if (c.option == "hook_fp16") model.register_comm_hook(pardl::comm_hooks::fp16_compress());
  if (c.option == "hook_bf16") model.register_comm_hook(pardl::comm_hooks::bf16_compress());
  auto const targets = torch::arange(c.batch, torch::kInt64) % 10;

  std::ofstream out(folder / ("cpp_" + name + "_" + rank + ".bin"), std::ios::binary);
  std::ofstream index(folder / ("index_" + name + "_" + rank + ".txt"));  // what each number is
  auto const write = [&](torch::Tensor const& tensor, std::string const& what) {
    auto const flat = tensor.detach().to(torch::kFloat32).contiguous();
    out.write(static_cast<char const*>(flat.data_ptr()), static_cast<std::streamsize>(flat.nbytes()));
    index << flat.numel() << " " << what << "\n";
  };
  auto const steps = [&](int count) {
    for (int s = 0; s < count; ++s) {
      model.zero_grad();
      if (c.option == "no_sync") {
        auto const alone = model.no_sync();
        torch::nn::functional::cross_entropy(model(inputs[s] * 0.5), targets).backward();
      }
      torch::nn::functional::cross_entropy(model(inputs[s]), targets).backward();
      torch::NoGradGuard no_grad;
      for (auto& item : model.named_parameters()) {
        write(item.value().grad(), "gradient of " + item.key() + " in step " + std::to_string(s));
        item.value().add_(item.value().grad(), -0.1);
      }
    }
  };
  if (c.option == "join" || c.option == "join_alive")
    model.join([&] { steps(std::min(c.steps, 1 + 2 * world.rank())); },
               {.divide_by_initial_world_size = c.option == "join"});
  else
    steps(c.steps);
  for (auto& item : model.named_parameters()) write(item.value(), "final " + item.key());
  for (auto& item : model.named_buffers()) write(item.value(), "final " + item.key());
}

int run_rank(fs::path const& folder, int rank, int ranks) {
  try {
    torch::set_num_threads(1);
    pardl::Environment environment;
    environment.rank = environment.local_rank = rank;
    environment.size = environment.local_size = ranks;
    auto const world =
        pardl::init({.backend = "gloo",
                     .device = torch::Device(torch::kCPU),
                     .timeout = std::chrono::seconds(60),
                     .store = c10::make_intrusive<c10d::FileStore>((folder / "cpp_store").string(), ranks),
                     .environment = environment});
    auto const cases = cases_for(ranks);
    for (std::size_t i = 0; i < cases.size(); ++i) train(folder, world, cases[i], static_cast<int>(i));
    return 0;
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

/// Runs `body(rank)` in a process per rank; true where all end well.
bool in_processes(int ranks, std::function<int(int)> const& body) {
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    pid_t const child = fork();
    if (child == 0) _exit(body(rank));
    children.push_back(child);
  }
  bool well = true;
  for (pid_t const child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    well = well && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  return well;
}

/// Compares what the two sides wrote for one rank, tensor by tensor; says what differs.
bool agree(fs::path const& folder, Case const& c, int number, int rank, int ranks) {
  std::string const id = "_" + std::to_string(number) + "_" + std::to_string(rank);
  auto const ours = read_numbers(folder / ("cpp" + id + ".bin"));
  auto const theirs = read_numbers(folder / ("python" + id + ".bin"));
  std::string const what = c.model + " " + c.option + ", rank " + std::to_string(rank) + " of " + std::to_string(ranks);
  if (ours.empty() || ours.size() != theirs.size()) {
    std::printf("FAIL %s: %zu numbers here, %zu in Python\n", what.c_str(), ours.size(), theirs.size());
    return false;
  }
  std::ifstream index(folder / ("index" + id + ".txt"));
  std::size_t at = 0, count = 0, differ = 0;
  double worst = 0;  // gap over the largest value of its tensor
  std::string tensor, where;
  while (index >> count && std::getline(index, tensor)) {
    double gap = 0, largest = 0;
    for (std::size_t i = at; i < at + count; ++i) {
      differ += std::memcmp(&ours[i], &theirs[i], sizeof(float)) != 0;
      double const here = ours[i], there = theirs[i];
      gap = std::isfinite(here) ? std::max(gap, std::abs(here - there)) : INFINITY;
      largest = std::max(largest, std::abs(there));
    }
    double const relative = gap == 0 ? 0 : gap / largest;
    if (relative > worst || (differ > 0 && where.empty())) where = ", worst in the" + tensor;
    worst = std::max(worst, relative);
    at += count;
  }
  bool const good = at == ours.size() && (ranks == 2 ? differ == 0 : worst <= 1e-6);
  std::printf("%s %s: %zu of %zu numbers differ, by %.3g of their tensor's largest at most%s\n", good ? "ok  " : "FAIL",
              what.c_str(), differ, ours.size(), worst, where.c_str());
  return good;
}

std::string read_line(fs::path const& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

}  // namespace

int main() {
  char const* const python = std::getenv("PARDL_PYTHON");
  if (!python || !*python) {
    std::puts("skipped: PARDL_PYTHON names no Python with torch");
    return 77;
  }
  setenv("OMP_NUM_THREADS", "1", 1);
  setenv("GLOO_SOCKET_IFNAME", "lo", 1);
  bool good = true;
  for (int const ranks : {2, 3, 4}) {
    pardl::testing::TemporaryFolder const holder;
    fs::path const folder = holder / "parity";
    fs::create_directory(folder);
    auto const cases = cases_for(ranks);
    std::ofstream list(folder / "cases.txt");
    for (std::size_t i = 0; i < cases.size(); ++i) {
      auto const& c = cases[i];
      list << i << " " << c.model << " " << c.option << " " << c.steps << " " << c.batch << "\n";
      int64_t numbers = 1;
      for (auto const size : input_shape(c)) numbers *= size;
      write_numbers(folder / ("weights_" + std::to_string(i) + ".bin"), 10'000, 17 + i, 0.2f);
      for (int rank = 0; rank < ranks; ++rank)
        write_numbers(folder / ("inputs_" + std::to_string(i) + "_" + std::to_string(rank) + ".bin"), numbers,
                      1000 * (i + 1) + static_cast<std::size_t>(rank), 1.0f);
    }
    list.close();
    if (!in_processes(ranks, [&](int rank) { return run_rank(folder, rank, ranks); })) {
      std::puts("FAIL the ranks of this program");
      return 1;
    }
    bool const ran = in_processes(ranks, [&](int rank) {
      auto const r = std::to_string(rank), n = std::to_string(ranks);
      execlp(python, python, PARDL_DDP_PARITY_SCRIPT, folder.c_str(), r.c_str(), n.c_str(), nullptr);
      return 127;
    });
    auto const version = read_line(folder / "python_version_0.txt");
    if (!version.empty() && version.substr(0, version.find('+')) != TORCH_VERSION) {
      std::printf("skipped: Python has torch %s, this program LibTorch %s\n", version.c_str(), TORCH_VERSION);
      return 77;
    }
    if (!ran) {
      std::puts("FAIL the ranks of Python");
      return 1;
    }
    for (std::size_t i = 0; i < cases.size(); ++i)
      for (int rank = 0; rank < ranks; ++rank) good = agree(folder, cases[i], static_cast<int>(i), rank, ranks) && good;
  }
  return good ? 0 : 1;
}
