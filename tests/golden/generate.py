#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the golden vectors beside this file: what Python's PyTorch does, for pardl's tests to reproduce.

    python tests/golden/generate.py        (any torch from 2.11 on; the files do not depend on the version)

A line is a record: words, a colon, values. Floating-point values are hexadecimal, so they are exact. The last line of each
file counts its records, so a truncated file does not pass for a short one.
"""
import math
import pathlib
import random
import warnings

import torch
from torch.optim import lr_scheduler
from torch.utils.data import DistributedSampler, RandomSampler

HERE = pathlib.Path(__file__).resolve().parent


def write(name, what, records):
    lines = [f"# {what}", "# Written by generate.py; do not edit."]
    lines += [" ".join(map(str, words)) + " : " + " ".join(map(str, values)) for words, values in records]
    lines.append(f"records {len(records)} :")
    (HERE / name).write_text("\n".join(lines) + "\n")


def hexes(values):
    return [float(v).hex() for v in values]


def fnv(values):
    """FNV-1a over the little-endian bytes of 64-bit integers: stands for a list too long to keep."""
    h = 0xCBF29CE484222325
    for v in values:
        for byte in int(v).to_bytes(8, "little"):
            h = ((h ^ byte) * 0x100000001B3) % 2**64
    return h


# ---- samplers -------------------------------------------------------------------------------------------------------


def distributed(size, ranks, shuffle, drop_last, seed, epoch):
    for rank in range(ranks):
        sampler = DistributedSampler(range(size), num_replicas=ranks, rank=rank, shuffle=shuffle, drop_last=drop_last, seed=seed)
        sampler.set_epoch(epoch)
        indices = list(sampler)
        assert len(indices) == len(sampler)
        yield rank, indices


def samplers():
    records = []
    for shuffle in (0, 1):
        for drop_last in (0, 1):
            for seed, epoch in ((0, 0), (0, 1), (7, 0), (7, 5), (2**40 + 3, 2)) if shuffle else ((0, 3),):
                for size in (0, 1, 2, 3, 7, 10, 100, 1000, 70001):
                    if size == 70001 and seed != 7:
                        continue
                    for ranks in (1, 2, 3, 4, 5, 8):
                        for rank, indices in distributed(size, ranks, bool(shuffle), bool(drop_last), seed, epoch):
                            words = [shuffle, drop_last, seed, epoch, size, ranks, rank]
                            if size < 100 or (size == 100 and seed == 7):
                                records.append((["distributed", *words], indices))
                            else:
                                records.append((["distributed_hash", *words], [len(indices), fnv(indices)]))
    for replacement in (0, 1):
        for seed, epoch in ((0, 0), (7, 3)):
            for size in (1, 2, 10, 50):
                for draws in sorted({size, 1, 31, 33, 100}):
                    generator = torch.Generator().manual_seed(seed + epoch)
                    sampler = RandomSampler(range(size), replacement=bool(replacement), num_samples=draws, generator=generator)
                    records.append((["random", replacement, seed, epoch, size, draws], list(sampler)))
    write("sampler.txt", "distributed[_hash] shuffle drop_last seed epoch size ranks rank; random replacement seed epoch size draws", records)


# ---- learning rates -------------------------------------------------------------------------------------------------


def rates(base, make, steps, momentum=False):
    parameter = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=base, momentum=0.9)
    schedule = make(sgd)
    seen = []
    for _ in range(steps):
        group = sgd.param_groups[0]
        seen.append(group["momentum"] if momentum else group["lr"])
        sgd.step()
        schedule.step()
    return seen


def warm(steps, start, end=1.0):
    return lambda sgd: lr_scheduler.LinearLR(sgd, start_factor=start, end_factor=end, total_iters=steps)


def schedules():
    records = []
    for base in (1.0, 0.1, 0.04):
        for steps, start, end in ((5, 1 / 3, 1.0), (20, 0.01, 1.0), (1, 0.5, 1.0), (10, 1.0, 0.25)):
            records.append((["warmup", *hexes([base, start, end]), steps], rates(base, warm(steps, start, end), steps + 8)))
        for steps, share in ((20, 0.0), (20, 0.05), (7, 0.5), (1, 0.1)):
            make = lambda sgd: lr_scheduler.CosineAnnealingLR(sgd, T_max=steps, eta_min=base * share)
            records.append((["cosine", *hexes([base, share]), steps], rates(base, make, 2 * steps + 6)))
        for gamma, milestones in ((0.1, (3, 8)), (0.2, (6, 2, 2, 11)), (0.5, (0, 1, 40)), (0.1, ())):
            make = lambda sgd: lr_scheduler.MultiStepLR(sgd, list(milestones), gamma=gamma)
            records.append((["multi_step", *hexes([base, gamma]), *milestones], rates(base, make, 16)))
        for up, down in ((5, 20), (1, 3), (8, 8)):
            make = lambda sgd: lr_scheduler.SequentialLR(
                sgd, [warm(up, 0.1)(sgd), lr_scheduler.CosineAnnealingLR(sgd, T_max=down)], milestones=[up])
            records.append((["warmup_cosine", *hexes([base, 0.1]), up, down], rates(base, make, up + down)))
        for three in (0, 1):
            for strategy in ("cos", "linear"):
                for steps, share, div, final in ((30, 0.3, 25.0, 1e4), (17, 0.45, 10.0, 100.0), (12, 0.0, 25.0, 1e4), (1, 0.3, 25.0, 1e4), (6, 0.1, 4.0, 2.0)):
                    make = lambda sgd: lr_scheduler.OneCycleLR(
                        sgd, max_lr=base, total_steps=steps, pct_start=share, anneal_strategy=strategy, div_factor=div,
                        final_div_factor=final, three_phase=bool(three))
                    words = [three, strategy, *hexes([base, share, div, final]), steps]
                    records.append((["one_cycle", *words], rates(base, make, steps)))
                    if base == 1.0:
                        records.append((["one_cycle_momentum", *words], rates(base, make, steps, momentum=True)))
    write("lr_schedule.txt", "schedule, its settings (base rate first) : the rate before each step", [(w, hexes(v)) for w, v in records])


# ---- loss scale -----------------------------------------------------------------------------------------------------


def scale_trace(init, growth, backoff, interval, overflows):
    parameter = torch.nn.Parameter(torch.zeros(2))
    sgd = torch.optim.SGD([parameter], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=init, growth_factor=growth, backoff_factor=backoff, growth_interval=interval)
    trace = []
    for bad in overflows:
        scaler.scale(torch.ones(()))
        parameter.grad = torch.tensor([1.0, random.choice([math.inf, -math.inf, math.nan]) if bad else 2.0])
        scaler.step(sgd)
        scaler.update()
        trace += [bad, float(scaler.get_scale()).hex(), scaler._get_growth_tracker()]
    return trace


def loss_scales():
    random.seed(1)
    records = []
    for init, growth, backoff, interval in (
        (65536.0, 2.0, 0.5, 3), (65536.0, 2.0, 0.5, 1), (1000.0, 1.7, 0.3, 2), (3.0, 1.001, 0.999, 2), (2.0**126, 2.0, 0.5, 1),
        (3e38, 1.1, 0.9, 1), (2.0**-140, 2.0, 0.5, 2), (65536.0, 2.0, 0.5, 2000)):
        for chance in (0.0, 0.1, 0.5, 1.0):
            overflows = [int(random.random() < chance) for _ in range(40)]
            words = [*hexes([init, growth, backoff]), interval]
            records.append((words, scale_trace(init, growth, backoff, interval, overflows)))
    write("loss_scale.txt", "init growth backoff interval : overflow scale tracker, after each update", records)


# ---- early stopping -------------------------------------------------------------------------------------------------


def reached(values, maximize, target, patience):
    """The seed's rule, asked after every epoch: enough epochs, and the last `patience` all at or beyond the target."""
    hit = (lambda v: v >= target) if maximize else (lambda v: v <= target)
    return [len(values[:n]) >= patience and all(map(hit, values[:n][-patience:])) for n in range(1, len(values) + 1)]


def patience_rule(values, maximize, min_delta, patience):
    """Lightning's rule: an improvement beats the best by more than min_delta; stop after `patience` checks without one."""
    best, wait, stops = -math.inf if maximize else math.inf, 0, []
    for v in values:
        if (v - min_delta > best) if maximize else (v + min_delta < best):
            best, wait = v, 0
        else:
            wait += 1
        stops.append(wait >= patience)
    return stops, best


def early_stopping():
    random.seed(2)
    records = []
    for trial in range(60):
        # Multiples of 1/16: equal values and values exactly on the target are common.
        values = [random.randrange(16) / 16 for _ in range(24)]
        if trial % 5 == 0:
            values[random.randrange(24)] = random.choice([math.nan, math.inf, -math.inf])
        maximize, patience = trial % 2, random.choice([1, 1, 2, 3, 4])
        goal = "maximize" if maximize else "minimize"
        target, min_delta = random.randrange(4, 12) / 16, random.choice([0.0, 1 / 16, 1 / 8])
        said = "".join(".S"[s] for s in reached(values, maximize, target, patience))
        records.append((["target", goal, *hexes([target]), patience, said], hexes(values)))
        stops, best = patience_rule(values, maximize, min_delta, patience)
        said = "".join(".S"[s] for s in stops)
        records.append((["patience", goal, *hexes([min_delta]), patience, said, *hexes([best])], hexes(values)))
    write("early_stopping.txt", "target goal target patience verdicts : values; patience goal min_delta patience verdicts best : values", records)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    samplers()
    schedules()
    loss_scales()
    early_stopping()
