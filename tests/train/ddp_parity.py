# SPDX-License-Identifier: MIT
"""ddp_parity.py FOLDER RANK RANKS: torch's DistributedDataParallel on the cases that ddp_parity.cpp left in FOLDER.

Rank RANK of RANKS over Gloo. Reads cases.txt and, per case, weights and this rank's inputs as raw float32; writes, as
raw float32, what ddp_parity.cpp writes: the gradients of every step, then the parameters and buffers at the end.
"""
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel


def make_model(name):
    if name == "mlp":
        return nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), (20,)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 7 * 7, 10)), (3, 16, 16)


def options_of(name):
    return {
        "default": {},
        "small_buckets": {"bucket_cap_mb": 0.004},
        "bucket_view": {"bucket_cap_mb": 0.004, "gradient_as_bucket_view": True},
        "bucket_list": {"bucket_cap_mb_list": [0.001, 0.008]},
        "find_unused": {"bucket_cap_mb": 0.004, "find_unused_parameters": True},
        "static_graph": {"bucket_cap_mb": 0.004, "static_graph": True},
        "own_buffers": {"broadcast_buffers": False},
        "batched": {"bucket_cap_mb": 0.004, "batched_grad_copy": True},
        "lazy": {"bucket_cap_mb": 0.004, "lazy_bucket_allocation": True},
    }.get(name, {})


def read(path):
    with open(path, "rb") as file:
        return torch.frombuffer(bytearray(file.read()), dtype=torch.float32)


def run(folder, rank, case):
    number, model_name, option, steps, batch = case.split()
    steps, batch = int(steps), int(batch)
    model, shape = make_model(model_name)
    weights = read(f"{folder}/weights_{number}.bin")
    at = 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(weights[at:at + parameter.numel()].view_as(parameter) + rank)  # rank 0's must win
            at += parameter.numel()
    inputs = read(f"{folder}/inputs_{number}_{rank}.bin").view(steps, batch, *shape)
    ddp = DistributedDataParallel(model, **options_of(option))
    hooks = {"hook_all_reduce": default_hooks.allreduce_hook, "hook_fp16": default_hooks.fp16_compress_hook,
             "hook_bf16": default_hooks.bf16_compress_hook}
    if option in hooks:
        ddp.register_comm_hook(None, hooks[option])
    targets = torch.arange(batch) % 10
    with open(f"{folder}/python_{number}_{rank}.bin", "wb") as out:

        def write(tensor):
            out.write(bytes(tensor.detach().float().contiguous().reshape(-1).view(torch.uint8).tolist()))

        def train(first, last):
            for step in range(first, last):
                for parameter in model.parameters():
                    parameter.grad = None
                if option == "no_sync":
                    with ddp.no_sync():
                        nn.functional.cross_entropy(ddp(inputs[step] * 0.5), targets).backward()
                nn.functional.cross_entropy(ddp(inputs[step]), targets).backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        write(parameter.grad)
                        parameter.add_(parameter.grad, alpha=-0.1)

        if option in ("join", "join_alive"):
            with ddp.join(divide_by_initial_world_size=option == "join"):
                train(0, min(steps, 1 + 2 * rank))
        else:
            train(0, steps)
        for tensor in list(model.parameters()) + list(model.buffers()):
            write(tensor)


def main():
    folder, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    with open(f"{folder}/python_version_{rank}.txt", "w") as file:
        file.write(torch.__version__)
    dist.init_process_group("gloo", init_method=f"file://{folder}/python_store", rank=rank, world_size=ranks)
    with open(f"{folder}/cases.txt") as file:
        for case in file.read().splitlines():
            run(folder, rank, case)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
