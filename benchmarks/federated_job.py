# SPDX-License-Identifier: MIT
"""The job that federated_plain.py, federated_flower.py and federated_nvflare.py all run, and how they are measured.

The use case of FederatedScope's multi-GPU page on data made in memory in FEMNIST's shape: 100 clients of 100 samples,
40 of them in each round, convnet2 with batch normalisation and dropout 0.5, one local epoch of batches of 10, SGD with
lr 0.01 and gradients clipped at 5.0, weights averaged by samples; at the end the model is evaluated on every client.
"""
import argparse
import os
import statistics
import sys
import threading
import time

import common
import torch
from torch import nn
from torch.nn import functional as F

CLIENTS, SAMPLES, SAMPLED, CLASSES, BATCH = 100, 100, 40, 62, 10
LR, CLIP, MEAN, STDDEV = 0.01, 5.0, 0.1307, 0.3081


class ConvNet2(nn.Module):
    """examples/models/convnet2.hpp, layer for layer."""

    def __init__(self, hidden=2048, dropout=0.5):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 5, padding=2), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 5, padding=2), nn.BatchNorm2d(64)
        self.fc1, self.fc2 = nn.Linear(3136, hidden), nn.Linear(hidden, CLASSES)
        self.dropout = dropout

    def forward(self, x):
        x = F.max_pool2d(F.relu_(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu_(self.bn2(self.conv2(x))), 2)
        x = F.relu_(self.fc1(F.dropout(x.flatten(1), self.dropout, self.training)))
        return self.fc2(F.dropout(x, self.dropout, self.training))


def client_data(client):
    """Images uint8 [100, 1, 28, 28] and labels: a pattern for each class, a brightness for each client, noise."""
    common = torch.Generator().manual_seed(1)
    patterns = F.interpolate(torch.rand(CLASSES, 1, 7, 7, generator=common), scale_factor=4)
    own = torch.Generator().manual_seed(1000 + client)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=own)
    images = patterns[labels] * (0.5 + 0.5 * torch.rand(1, generator=own))
    images = images + 0.2 * torch.randn(images.shape, generator=own)
    return images.clamp_(0, 1).mul_(255).to(torch.uint8), labels


def batches(data, order):
    """A client's samples as normalised batches; the whole client is converted at once."""
    images, labels = data
    images = images.float().div_(255).sub_(MEAN).div_(STDDEV)
    for index in order.split(BATCH):
        yield images[index], labels[index]


def train(model, data, generator=None):
    """One local epoch. Returns the number of steps, the seconds they took, and the sum of the losses."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    steps, loss_sum, start = 0, 0.0, time.perf_counter()
    for images, labels in batches(data, torch.randperm(len(data[1]), generator=generator)):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        steps, loss_sum = steps + 1, loss_sum + loss.item()
    return steps, time.perf_counter() - start, loss_sum


@torch.no_grad()
def evaluate(model, data):
    """Samples that are right, and the sum of the losses."""
    model.eval()
    right, loss_sum = 0, 0.0
    for images, labels in batches(data, torch.arange(len(data[1]))):
        logits = model(images)
        right += (logits.argmax(1) == labels).sum().item()
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
    return right, loss_sum


def parser(description, rounds):
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--workers", type=int, default=1, help="of one thread each")
    made.add_argument("--repeat", type=int, default=1, help="number of this repetition, for the CSV line")
    made.add_argument("--malloc", action="store_true",
                      help="start again with glibc told to keep freed memory (MALLOC_MMAP_MAX_=0, no trimming)")
    return made


def keep_freed_memory(args):
    """With --malloc: glibc reads its settings when a process starts, so the process starts again with them."""
    wanted = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    if args.malloc and any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


class PeakMemory:
    """The largest resident memory, in MiB, of this process and all its descendants, looked at 4 times a second.

    Memory that two processes share counts twice, as in `ps`.
    """

    def __init__(self):
        self.mib = 0.0
        self._page = os.sysconf("SC_PAGE_SIZE") / 2**20
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _look(self):
        parents, pages = {}, {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as stat:
                        fields = stat.read().rsplit(")", 1)[1].split()
                except OSError:
                    continue  # it has ended
                parents[int(entry)], pages[int(entry)] = int(fields[1]), int(fields[21])
        total = 0
        for process in pages:
            ancestor = process
            while ancestor not in (0, 1, os.getpid()):
                ancestor = parents.get(ancestor, 0)
            if ancestor == os.getpid():
                total += pages[process]
        self.mib = max(self.mib, total * self._page)

    def _watch(self):
        while not self._stop.wait(0.25):
            self._look()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def report(args, system, wall, round_seconds, step_ms, peak):
    """A CSV line for each figure. Steady: the median of all rounds but the first, where there are others."""
    name = f"{system}-malloc" if args.malloc else system
    figures = {"step": (step_ms, "ms"), "round": (statistics.median(round_seconds[1:] or round_seconds), "s"),
               "wall": (wall, "s"), "peak": (peak, "MiB")}
    for figure, (value, unit) in figures.items():
        if value is not None:
            common.report("federated", f"{name}-{figure}", args.workers, value, unit, args.repeat)
