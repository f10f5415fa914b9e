# SPDX-License-Identifier: MIT
"""Python's side of wrn_train.cpp, started by torchrun.

--config cpu, one thread for each rank, over Gloo:
--style seed   as the multi-GPU guide's script is written: float32, NCHW, a DataLoader with workers and per-sample
               transforms, DDP, torch.optim.SGD as it comes.
--style equal  the hardest peer: precision, layout and DDP options of the C++ side, fused SGD, and batches that lie ready
               in memory, so that loading and augmenting, which the C++ side does, cost nothing here.

--config seed, a GPU for each rank, over NCCL; the guide's network, batch, precision and number of workers:
--style seed   again as the guide's script is written, with float16 autocast and GradScaler. Of its loader the guide
               shows the call only; it pins memory here, without which the guide's non_blocking copies would block.
--style equal  the settings of the C++ side, and no loader: the images are on the GPU, which gathers, crops, flips and
               normalises each batch.
"""
import argparse
import contextlib
import math
import os

import common
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from wide_resnet import GuideWideResNet, WideResNet

parser = argparse.ArgumentParser()
parser.add_argument("--config", choices=["cpu", "seed"], default="cpu")
parser.add_argument("--device", choices=["cpu", "cuda"], help="[cpu: cpu, seed: cuda]; cpu with seed is a trial")
parser.add_argument("--style", choices=["seed", "equal"], default="seed")
parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], help="[GPU: fp16, CPU: fp32]")
parser.add_argument("--batch-size", type=int, default=512, help="of all ranks together")
parser.add_argument("--images", type=int, help="[cpu: 8192, seed: 50000]")
parser.add_argument("--workers", type=int, help="loader processes of each rank [cpu: 1, seed: 8]")
parser.add_argument("--torchvision", action="store_true", help="torchvision's own transforms, where it is installed")
parser.add_argument("--warm-up", type=int, help="steps before the clock starts [cpu: 3, seed: an epoch]")
parser.add_argument("--steps", type=int, help="steps that are timed [cpu: 12, seed: two epochs]")
parser.add_argument("--repeat", type=int, default=1, help="number of this repetition, for the CSV line")
args = parser.parse_args()

guide = args.config == "seed"
gpu = (args.device or ("cuda" if guide else "cpu")) == "cuda"
precision = args.precision or ("fp16" if gpu else "fp32")
if gpu and not guide:
    parser.error("--config cpu runs on the CPU")
if precision == "fp16" and not gpu:
    parser.error("--precision fp16 needs a GPU")
if gpu and not torch.cuda.is_available():
    parser.error("no GPU is visible here; --device cpu is a trial")


def default(value, otherwise):
    return otherwise if value is None else value


local_rank = int(os.environ["LOCAL_RANK"])
device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
torch.set_num_threads(1)
torch.manual_seed(1)
if gpu:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if gpu else "gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
batch_size = args.batch_size // ranks
count = default(args.images, 50_000 if guide else 8192)
per_epoch = math.ceil(count / ranks) // batch_size
if per_epoch < 1:
    parser.error("fewer images than one step takes")


def loaded():
    """The guide's loader: per-sample transforms in worker processes."""
    data = common.TorchvisionImages(count) if args.torchvision else common.AugmentedImages(count)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=batch_size, sampler=sampler, drop_last=True, pin_memory=gpu,
                        num_workers=default(args.workers, 8 if guide else 1))

    def epoch(number):
        sampler.set_epoch(number)
        return loader

    return epoch


def ready():
    """Four batches, made beforehand."""
    pixels, labels = common.images(4 * args.batch_size)
    batches = [(common.augment_batch(pixels[i::ranks][:batch_size]).contiguous(memory_format=torch.channels_last),
                labels[i::ranks][:batch_size]) for i in range(4)]
    return lambda number: batches


def resident():
    """Padded bytes on the device, channels last; crop and flip are one gather, and only numbers are drawn for them."""
    pixels, labels = common.images(count)
    pixels = F.pad(pixels, (4, 4, 4, 4)).permute(0, 2, 3, 1).contiguous().to(device)
    labels = labels.to(device)
    mean, stddev = torch.tensor(common.MEAN, device=device), torch.tensor(common.STDDEV, device=device)
    ahead = torch.arange(32, device=device)
    back = ahead.flip(0)

    def epoch(number):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(number))
        order = torch.cat([order, order[:-count % ranks]])[rank::ranks].to(device)
        for index in order[:per_epoch * batch_size].split(batch_size):
            top, left = torch.randint(0, 9, (2, batch_size, 1), device=device)
            rows = top + ahead
            columns = left + torch.where(torch.rand(batch_size, 1, device=device) < 0.5, back, ahead)
            batch = pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield batch.float().div_(255).sub_(mean).div_(stddev).permute(0, 3, 1, 2), labels[index]

    return epoch


model = (GuideWideResNet() if guide else WideResNet()).to(device)
optimizer_options = dict(lr=0.01, momentum=0.9, weight_decay=5e-4)
if args.style == "seed":
    batches = common.forever(loaded())
else:
    torch.backends.cudnn.benchmark = True
    model = model.to(memory_format=torch.channels_last)
    optimizer_options["fused"] = True
    batches = common.forever(resident() if guide else ready())

model = DDP(model, device_ids=[local_rank] if gpu else None, gradient_as_bucket_view=args.style == "equal")
optimizer = torch.optim.SGD(model.parameters(), **optimizer_options)
scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
loss_fn = nn.CrossEntropyLoss()
half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)


def train(steps):
    for _ in range(steps):
        images, labels = next(batches)
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=half) if half else contextlib.nullcontext():
            loss = loss_fn(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    dist.barrier()
    if gpu:
        torch.cuda.synchronize()  # so far the work is queued, not done


model.train()
train(default(args.warm_up, per_epoch if guide else 3))
timed = default(args.steps, 2 * per_epoch if guide else 12)
elapsed = common.seconds(lambda: train(timed))
if rank == 0:
    benchmark = "wrn_train" if not guide else "wrn_train_gpu" if gpu else "wrn_train_trial"
    name = "seed" if args.style == "seed" and not guide else f"{args.style}-{precision}"
    common.report(benchmark, name, ranks, timed * batch_size * ranks / elapsed, "images/s", args.repeat)
dist.destroy_process_group()
