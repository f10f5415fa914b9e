# SPDX-License-Identifier: MIT
"""comm_hooks_parity.py OUT: PyTorch's own hooks and averagers at work, for comm_hooks_parity.test.cpp to repeat.

Each case trains one small model on several ranks over Gloo, in processes of this script. Everything that the repetition
needs is in the trace: weights, inputs, options, and each rank's gradients and parameters after every step.
"""
import contextlib
import importlib.util
import multiprocessing
import random
import sys
import tempfile
import types
import unittest.mock

import torch
import torch._dynamo  # DistributedDataParallel imports it: once here, not once for each rank
import torch.distributed as dist
from torch import nn


def numpy_or_stand_in():
    """PowerSGDState asks NumPy for numbers; where it is missing, the same Mersenne Twister is Python's own.

    Only while PowerSGDState is made: other parts of torch would believe that all of NumPy is there.
    """
    if importlib.util.find_spec("numpy") is not None:
        return contextlib.nullcontext()

    class RandomState:
        def __init__(self, seed):
            words = [seed]
            for i in range(1, 624):
                words.append((1812433253 * (words[-1] ^ words[-1] >> 30) + i) & 0xFFFFFFFF)
            self.twister = random.Random()
            self.twister.setstate((3, (*words, 624), None))

        def randint(self, end):
            mask = (1 << (end - 1).bit_length()) - 1
            while (value := self.twister.getrandbits(32) & mask) >= end:
                pass
            return value

    numpy = types.ModuleType("numpy")
    numpy.random = types.SimpleNamespace(RandomState=RandomState)
    return unittest.mock.patch.dict(sys.modules, {"numpy": numpy})


STEPS, BATCH, LR = 9, 4, 0.1
# A rate of 0.5 has every gradient compressed. Those that are sent whole differ from PyTorch's in the last bits.
POWER_SGD = {
    "default": {"start_powerSGD_iter": 3},
    "rank_2": {"matrix_approximation_rank": 2, "start_powerSGD_iter": 2, "min_compression_rate": 0.5, "random_seed": 7},
    "rank_4": {"matrix_approximation_rank": 4, "start_powerSGD_iter": 2, "min_compression_rate": 0.5},
    "batched": {"start_powerSGD_iter": 2, "min_compression_rate": 0.5, "batch_tensors_with_same_shape": True},
    "batched_default": {"start_powerSGD_iter": 2, "batch_tensors_with_same_shape": True},
    "no_feedback": {"start_powerSGD_iter": 2, "use_error_feedback": False},
    "cold": {"start_powerSGD_iter": 2, "min_compression_rate": 0.5, "warm_start": False},
    "bare": {"start_powerSGD_iter": 0, "use_error_feedback": False, "warm_start": False},
    "epsilon": {"matrix_approximation_rank": 2, "start_powerSGD_iter": 2, "min_compression_rate": 0.5,
                "orthogonalization_epsilon": 1e-4},
}
CASES = ([("power_sgd", name, options) for name, options in POWER_SGD.items()]
         + [("power_sgd_fp16", "default", {"start_powerSGD_iter": 3}),
            ("power_sgd_fp16", "compressed", {"start_powerSGD_iter": 3, "min_compression_rate": 0.5})]
         + [("per_tensor", "default", {}), ("per_channel", "default", {}), ("per_channel", "128", {"bucket_size": 128})]
         + [("post_local", "alone", {"period": 3, "warmup_steps": 2})])
# A bucket for each parameter, biases too. On one rank: over Gloo, PyTorch's buckets send in an order of chance. And
# warm: else the first bucket to end clears the memory of those that are still under way.
BUCKETS = [("power_sgd", "buckets", {"start_powerSGD_iter": 2, "bucket_cap_mb": 0.0005})]
RUNS = [(1, CASES[:2] + BUCKETS), (2, CASES), (3, CASES)]


def make_model():
    return nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(),
                         nn.Linear(64, 10))


def register(model, kind, options):
    from torch.distributed.algorithms.ddp_comm_hooks import (
        default_hooks, post_localSGD_hook, powerSGD_hook, quantization_hooks)
    group = dist.group.WORLD
    if kind.startswith("power_sgd"):
        hook = powerSGD_hook.powerSGD_hook
        if kind.endswith("fp16"):
            hook = default_hooks.fp16_compress_wrapper(hook)
        with numpy_or_stand_in():
            state = powerSGD_hook.PowerSGDState(None, **options)
        model.register_comm_hook(state, hook)
    elif kind == "per_tensor":
        model.register_comm_hook(group, quantization_hooks.quantization_pertensor_hook)
    elif kind == "per_channel":
        def hook(state, bucket) -> torch.futures.Future[torch.Tensor]:
            return quantization_hooks.quantization_perchannel_hook(state, bucket, **options)
        model.register_comm_hook(group, hook)
    else:
        state = post_localSGD_hook.PostLocalSGDState(None, None, options["warmup_steps"], False)
        model.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)


def run(kind, options, weights, inputs):
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer
    model = make_model()
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights):
            parameter.copy_(weight)
    options = dict(options)
    ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=options.pop("bucket_cap_mb", None))
    register(ddp, kind, options)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, foreach=False)
    if kind == "post_local":
        optimizer = PostLocalSGDOptimizer(optimizer, PeriodicModelAverager(**options))
    targets = torch.arange(BATCH) % 10
    gradients, after = [], []
    for x in inputs:
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(x), targets).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        optimizer.step()
        after.append([p.detach().clone() for p in model.parameters()])
    return {"gradients": gradients, "after": after}


def data(number, rank):
    generator = torch.Generator().manual_seed(1000 + number)
    weights = [torch.randn(p.shape, generator=generator) * 0.2 for p in make_model().parameters()]
    generator.manual_seed(5000 + 100 * number + rank)
    return weights, torch.randn(STEPS, BATCH, 20, generator=generator)


def roomy_gloo(store, rank, size, timeout):
    """Gloo with a thread to spare for every bucket.

    PowerSGD waits for its sums inside callbacks, which run on Gloo's threads: with its two, buckets whose callbacks
    hold both wait for ever for a sum that nobody is left to make.
    """
    options = dist.ProcessGroupGloo._Options()
    options._threads = 16
    options._timeout = timeout
    options._devices = [dist.ProcessGroupGloo.create_device(interface="lo")]
    return dist.ProcessGroupGloo(store, rank, size, options)


def rank_main(folder, rank, ranks, cases):
    torch.set_num_threads(1)
    dist.Backend.register_backend("roomy_gloo", roomy_gloo, devices=["cpu"])
    dist.init_process_group("roomy_gloo", init_method=f"file://{folder}/store_{ranks}", rank=rank, world_size=ranks)
    results = [run(kind, options, *data(number, rank)) for number, (kind, _, options) in enumerate(cases)]
    torch.save(results, f"{folder}/rank_{ranks}_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main():
    fork = multiprocessing.get_context("fork")
    trace = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks, cases in RUNS:
            processes = [fork.Process(target=rank_main, args=(folder, rank, ranks, cases)) for rank in range(ranks)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            if any(process.exitcode for process in processes):
                sys.exit("a rank failed")
            seen = [torch.load(f"{folder}/rank_{ranks}_{rank}.pt") for rank in range(ranks)]
            for number, (kind, name, options) in enumerate(cases):
                trace.append({
                    "kind": kind, "name": name, "ranks": ranks, "lr": LR,
                    "options": {key: float(value) for key, value in options.items()},
                    "weights": data(number, 0)[0], "inputs": [data(number, rank)[1] for rank in range(ranks)],
                    "gradients": [each[number]["gradients"] for each in seen],
                    "after": [each[number]["after"] for each in seen]})
    torch.save({"version": str(torch.__version__), "cases": trace}, sys.argv[1])


if __name__ == "__main__":
    main()
