# SPDX-License-Identifier: MIT
"""Python's side of wrn_train.cpp, started by torchrun, one thread per rank.

--style seed   as the multi-GPU guide's script is written: float32, NCHW, a DataLoader with workers and per-sample
               transforms, DDP, torch.optim.SGD as it comes.
--style equal  the hardest peer: precision, layout and DDP options of the C++ side, fused SGD, and batches that lie ready
               in memory, so that loading and augmenting, which the C++ side does, cost nothing here.
"""
import argparse
import contextlib

import common
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from wide_resnet import WideResNet

parser = argparse.ArgumentParser()
parser.add_argument("--style", choices=["seed", "equal"], default="seed")
parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
parser.add_argument("--batch-size", type=int, default=512, help="of all ranks together")
parser.add_argument("--images", type=int, default=8192)
parser.add_argument("--workers", type=int, default=1, help="loader processes of each rank")
parser.add_argument("--torchvision", action="store_true", help="torchvision's own transforms, where it is installed")
parser.add_argument("--warm-up", type=int, default=3, help="steps before the clock starts")
parser.add_argument("--steps", type=int, default=12, help="steps that are timed")
parser.add_argument("--repeat", type=int, default=1, help="number of this repetition, for the CSV line")
args = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(1)
dist.init_process_group("gloo")
ranks = dist.get_world_size()
batch_size = args.batch_size // ranks

model = WideResNet()
optimizer_options = dict(lr=0.01, momentum=0.9, weight_decay=5e-4)
if args.style == "seed":
    data = common.TorchvisionImages(args.images) if args.torchvision else common.AugmentedImages(args.images)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=batch_size, sampler=sampler, num_workers=args.workers, drop_last=True)

    def epoch(number):
        sampler.set_epoch(number)
        return loader

    batches = common.forever(epoch)
else:
    model = model.to(memory_format=torch.channels_last)
    optimizer_options["fused"] = True
    pixels, labels = common.images(4 * args.batch_size)
    ready = [(common.augment_batch(pixels[i::ranks][:batch_size]).contiguous(memory_format=torch.channels_last),
              labels[i::ranks][:batch_size]) for i in range(4)]
    batches = common.forever(lambda number: ready)

model = DDP(model, gradient_as_bucket_view=args.style == "equal")
optimizer = torch.optim.SGD(model.parameters(), **optimizer_options)
loss_fn = nn.CrossEntropyLoss()
bf16 = args.precision == "bf16"


def train(steps):
    for _ in range(steps):
        images, labels = next(batches)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = loss_fn(model(images), labels)
        loss.backward()
        optimizer.step()
    dist.barrier()


model.train()
train(args.warm_up)
elapsed = common.seconds(lambda: train(args.steps))
if dist.get_rank() == 0:
    name = "seed" if args.style == "seed" else f"equal-{args.precision}"
    common.report("wrn_train", name, ranks, args.steps * batch_size * ranks / elapsed, "images/s", args.repeat)
dist.destroy_process_group()
