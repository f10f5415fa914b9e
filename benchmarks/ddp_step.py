# SPDX-License-Identifier: MIT
"""Python's side of ddp_step.cpp: a step of DDP beside the same step without it, in alternating blocks; by torchrun."""
import argparse
import copy
import statistics

import common
import torch
import torch.distributed as dist
from federated_job import ConvNet2
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from wide_resnet import WideResNet, mlp

parser = argparse.ArgumentParser()
parser.add_argument("--model", choices=["mlp", "convnet2", "wrn"], default="mlp")
parser.add_argument("--blocks", type=int, default=0, help="of each kind; medians are over them; 0: by the model")
parser.add_argument("--steps", type=int, default=0, help="of a block; 0: by the model")
parser.add_argument("--repeat", type=int, default=1, help="number of this repetition, for the CSV line")
args = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(1)
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()

if args.model == "mlp":
    net, inputs, steps, blocks = mlp(), torch.rand(32, 784), 400, 10
elif args.model == "convnet2":
    net, inputs, steps, blocks = ConvNet2(), torch.rand(32, 1, 28, 28), 4, 10
else:
    net, steps, blocks = WideResNet().to(memory_format=torch.channels_last), 2, 6
    inputs = torch.rand(256, 3, 32, 32).contiguous(memory_format=torch.channels_last)
steps, blocks = args.steps or steps, args.blocks or blocks
targets = torch.arange(len(inputs)) % 10


def trainer(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)

    def block():
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    return block


def slowest(block):
    """Microseconds a step, of the slowest rank; all ranks begin together."""
    dist.barrier()
    elapsed = torch.tensor(common.seconds(block), dtype=torch.float64)
    dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
    return elapsed.item() / steps * 1e6


trainers = {"plain": trainer(copy.deepcopy(net)), "ddp": trainer(DDP(copy.deepcopy(net))),
            "view": trainer(DDP(copy.deepcopy(net), gradient_as_bucket_view=True))}
times = [{name: slowest(block) for name, block in trainers.items()} for _ in range(blocks + 1)]
times = times[1:]  # the first was the warm-up: kernels chosen, buckets rebuilt
if rank == 0:
    for name in trainers:
        common.report("ddp_step", f"{args.model}-{name}", ranks, statistics.median(t[name] for t in times), "us",
                      args.repeat)
        if name != "plain":
            common.report("ddp_step", f"{args.model}-{name}-overhead", ranks,
                          statistics.median(t[name] / t["plain"] for t in times), "ratio", args.repeat)
dist.destroy_process_group()
