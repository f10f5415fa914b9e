// SPDX-License-Identifier: MIT
/// The README's program: a small net learns synthetic images over --nproc ranks.
// [readme]
#include <torch/torch.h>
#include <pardl/ddp.hpp>

int main(int argc, char** argv) {
  return pardl::launch(argc, argv, [](pardl::ProcessGroup world) {  // alone, --nproc N, torchrun, srun or mpirun
    torch::manual_seed(1);
    torch::nn::Sequential net{torch::nn::Flatten{}, torch::nn::Linear{3 * 8 * 8, 64}, torch::nn::ReLU{},
                              torch::nn::Linear{64, 10}};
    net->to(world.device());
    pardl::DistributedDataParallel model{net, world};
    pardl::data::Synthetic const images{
        {.samples = 4096, .classes = 10, .height = 8, .width = 8, .noise = 1.0, .seed = 7}};
    pardl::DistributedSampler sampler{images.size(), world, {.seed = 7}};
    pardl::DataLoader loader{images,
                             sampler,
                             pardl::Normalize{images.mean(), images.stddev()},
                             {.batch_size = 64 / world.size(), .device = world.device()}};
    pardl::optim::SGD sgd{model.parameters(), {.lr = 0.005, .momentum = 0.9}};
    for (int epoch = 1; epoch <= 3; ++epoch) {
      for (auto [input, target] : loader.epoch(epoch)) {
        sgd.zero_grad();
        torch::nn::functional::cross_entropy(model(input), target).backward();  // gradients are averaged meanwhile
        sgd.step();
      }
      auto const seen = pardl::evaluate(model, loader, world);  // counts summed over ranks, divided once
      if (world.rank() == 0)
        std::printf("epoch %d  loss %.4f  accuracy %.4f  ranks %d\n", epoch, seen.loss, seen.accuracy, world.size());
    }
  });
}
// [/readme]
