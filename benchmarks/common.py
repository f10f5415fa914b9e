# SPDX-License-Identifier: MIT
"""What the Python sides share: the same images as common.hpp makes, the transforms of the guide, the CSV line."""
import random
import time

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

MEAN, STDDEV = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def images(count):
    """CIFAR-shaped bytes and labels, byte for byte those of synthetic_images() in common.hpp."""
    words = torch.arange(count * 3 * 32 * 32, dtype=torch.int64)
    words = (words * 2654435761) & 0xFFFFFFFF
    words ^= words >> 15
    words = (words * 2246822519) & 0xFFFFFFFF
    pixels = (words >> 24).to(torch.uint8).view(count, 3, 32, 32)
    return pixels, torch.arange(count) * 7 % 10


class AugmentedImages(Dataset):
    """One sample at a time, as torchvision does it for the guide: flip, pad and crop, to float, normalise.

    torchvision itself is not needed. These transforms do less than its own (no PIL image is made, tensors are sliced),
    so the peer is a little faster than a script that uses it.
    """

    def __init__(self, count):
        self.pixels, self.labels = images(count)
        self.labels = self.labels.tolist()
        self.mean = torch.tensor(MEAN).view(3, 1, 1)
        self.stddev = torch.tensor(STDDEV).view(3, 1, 1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.pixels[index]
        if random.random() < 0.5:
            image = image.flip(-1)
        top, left = random.randint(0, 8), random.randint(0, 8)
        image = F.pad(image, (4, 4, 4, 4))[:, top:top + 32, left:left + 32]
        return image.float().div_(255).sub_(self.mean).div_(self.stddev), self.labels[index]


class TorchvisionImages(Dataset):
    """The same through torchvision's datasets' way: bytes to PIL, PIL transforms, ToTensor. Only where it is installed."""

    def __init__(self, count):
        from PIL import Image
        from torchvision import transforms
        pixels, labels = images(count)
        self.pixels, self.labels = pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        self.from_array = Image.fromarray
        self.transform = transforms.Compose([
            transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, padding=4), transforms.ToTensor(),
            transforms.Normalize(MEAN, STDDEV)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.from_array(self.pixels[index])), self.labels[index]


def augment_batch(pixels):
    """What a Python user can do best on a CPU: whole batches, no workers, vectorised operations."""
    count = len(pixels)
    flipped = torch.where(torch.rand(count, 1, 1, 1) < 0.5, pixels.flip(-1), pixels)
    windows = F.pad(flipped, (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)
    top, left = torch.randint(0, 9, (2, count))
    cropped = windows.permute(0, 2, 3, 1, 4, 5)[torch.arange(count), top, left]
    mean, stddev = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STDDEV).view(1, 3, 1, 1)
    return cropped.float().div_(255).sub_(mean).div_(stddev)


def forever(epoch):
    """Batches of epoch(0), epoch(1), … without an end."""
    number = 0
    while True:
        yield from epoch(number)
        number += 1


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def report(benchmark, variant, ranks, value, unit, repeat):
    print(f"{benchmark},python,{variant},{ranks},{value:.6g},{unit},{repeat}", flush=True)
