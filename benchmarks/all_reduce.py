# SPDX-License-Identifier: MIT
"""Python's side of all_reduce.cpp: torch.distributed's all_reduce of float32 over Gloo; by torchrun. Buffers, blocks and
quartiles as in rotation.hpp."""
import argparse
import mmap
import statistics
import time

import torch
import torch.distributed as dist

parser = argparse.ArgumentParser()
parser.add_argument("--min-kib", type=int, default=1, help="smallest size")
parser.add_argument("--max-kib", type=int, default=256 << 10, help="largest size; each is 4 times the last")
parser.add_argument("--arena-mib", type=int, default=128, help="memory that a rank's buffers rotate through")
parser.add_argument("--seconds", type=float, default=0.4, help="of one size, about")
parser.add_argument("--repeat", type=int, default=1, help="number of this repetition, for the CSV line")
args = parser.parse_args()

FEWEST_BLOCKS, MOST_BLOCKS, MOST_CALLS = 7, 200, 1000

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()

# Every page is written once, and huge where the kernel gives them, as on the other sides.
size = max(args.arena_mib << 20, 2 * (args.max_kib << 10))
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
arena = torch.frombuffer(memory, dtype=torch.float32).zero_()


def check(buffer):
    """A sum of small whole numbers, which is exact; leaves zeros."""
    pattern = torch.arange(len(buffer), dtype=torch.int32) % 251
    buffer.copy_(pattern + rank)
    dist.all_reduce(buffer)
    if not torch.equal(buffer, (pattern * ranks + ranks * (ranks - 1) // 2).float()):
        raise RuntimeError(f"all_reduce of {4 * len(buffer)} bytes: rank {rank} has a wrong sum")
    buffer.zero_()


def measure(buffers):
    """Microseconds of a call, one number for each block; the slowest rank counts."""
    at = 0

    def block(calls):
        nonlocal at
        tensors = [buffers[(at + i) % len(buffers)] for i in range(calls)]
        at = (at + calls) % len(buffers)
        dist.barrier()
        start = time.perf_counter()
        for tensor in tensors:
            dist.all_reduce(tensor)
        taken = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        dist.all_reduce(taken, op=dist.ReduceOp.MAX)
        return taken.item()

    def whole(number, least, most):
        return int(min(max(number, least), most))

    block(1)
    first = whole(args.seconds / FEWEST_BLOCKS / block(1), 1, 16)
    call = block(first) / first
    calls = whole(args.seconds / FEWEST_BLOCKS / call, 1, MOST_CALLS)
    blocks = whole(args.seconds / call / calls, FEWEST_BLOCKS, MOST_BLOCKS)
    return [block(calls) / calls * 1e6 for _ in range(blocks)]


size = args.min_kib << 10
while size <= args.max_kib << 10:
    buffers = arena[:arena.numel() // (size // 4) * (size // 4)].view(-1, size // 4)
    check(buffers[0])
    low, median, high = statistics.quantiles(measure(buffers), n=4, method="inclusive")
    if rank == 0:
        name = f"gloo-{size >> 10}KiB" if size < 1 << 20 else f"gloo-{size >> 20}MiB"
        for which, value in (("", median), ("-q1", low), ("-q3", high)):
            print(f"all_reduce,python,{name}{which},{ranks},{value:.6g},us,{args.repeat}", flush=True)
    size *= 4
dist.destroy_process_group()
