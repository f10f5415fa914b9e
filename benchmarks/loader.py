# SPDX-License-Identifier: MIT
"""Python's side of loader.cpp: images/s of crop, flip, normalise into ready float batches, nothing trained.

--style workers  DataLoader with worker processes and per-sample transforms, as the guide's script loads.
--style batched  whole batches with vectorised operations in the calling process: the most that plain PyTorch gives.
"""
import argparse

import common
import torch
from torch.utils.data import DataLoader

parser = argparse.ArgumentParser()
parser.add_argument("--style", choices=["workers", "batched"], default="workers")
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--images", type=int, default=8192)
parser.add_argument("--workers", type=int, default=1, help="loader processes")
parser.add_argument("--torchvision", action="store_true", help="torchvision's own transforms, where it is installed")
parser.add_argument("--warm-up", type=int, default=4, help="batches before the clock starts")
parser.add_argument("--batches", type=int, default=64, help="batches that are timed")
parser.add_argument("--repeat", type=int, default=1, help="number of this repetition, for the CSV line")
args = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(1)
if args.style == "workers":
    data = common.TorchvisionImages(args.images) if args.torchvision else common.AugmentedImages(args.images)
    loader = DataLoader(data, batch_size=args.batch_size, shuffle=True, num_workers=args.workers, drop_last=True,
                        persistent_workers=args.workers > 0)
    batches = common.forever(lambda number: loader)
else:
    pixels, labels = common.images(args.images)

    def epoch(number):
        order = torch.randperm(args.images)
        for indices in order.split(args.batch_size):
            if len(indices) == args.batch_size:
                yield common.augment_batch(pixels[indices]), labels[indices]

    batches = common.forever(epoch)


def draw(count):
    for _ in range(count):
        next(batches)


draw(args.warm_up)
elapsed = common.seconds(lambda: draw(args.batches))
variant = args.style + ("-torchvision" if args.torchvision else "")
common.report("loader", variant, 1, args.batches * args.batch_size / elapsed, "images/s", args.repeat)
