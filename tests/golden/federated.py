#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the golden vectors of FederatedScope's arithmetic: batch counts, early stopping, how many clients a round has.

    python tests/golden/federated.py        (standard library only)

Its rules are stated here once more, as loops that do what its trainer does rather than as formulas. Two things differ
from it on purpose, as the headers say: a value that is not a number never is an improvement, and does not count in a
mean. The files are in generate.py's format: words, a colon, values; floating-point values are hexadecimal.
"""
import math
import pathlib
import random

HERE = pathlib.Path(__file__).resolve().parent


def write(name, what, records):
    lines = [f"# {what}", "# Written by federated.py; do not edit."]
    lines += [" ".join(map(str, words)) + " : " + " ".join(map(str, values)) for words, values in records]
    lines.append(f"records {len(records)} :")
    (HERE / name).write_text("\n".join(lines) + "\n")


def hexes(values):
    return [float(v).hex() for v in values]


# ---- batches --------------------------------------------------------------------------------------------------------


def batch_sizes(samples, batch_size, drop_last):
    """One pass over the data: the size of each batch."""
    sizes = []
    while samples > 0:
        size = min(samples, batch_size)
        if size == batch_size or not drop_last:
            sizes.append(size)
        samples -= size
    return sizes


def train(samples, batch_size, drop_last, steps, unit, accumulate):
    """Trains as the trainer's loops do, and counts: passes, batches of the last one, all batches, samples."""
    one_pass = batch_sizes(samples, batch_size, drop_last)
    if not one_pass:
        return None
    wanted = steps * accumulate
    passes = batches = in_pass = processed = 0
    while (passes < wanted) if unit == "epoch" else (batches < wanted):
        passes, in_pass = passes + 1, 0
        for size in one_pass:
            if unit == "batch" and batches == wanted:
                break
            batches, in_pass, processed = batches + 1, in_pass + 1, processed + size
    return [len(one_pass), passes, in_pass, batches, processed]


def batches():
    records = []
    for samples in (0, 1, 7, 9, 10, 11, 19, 20, 23, 60, 100, 128, 1001):
        for batch_size in (1, 3, 10, 64, 200):
            for drop_last in (0, 1):
                for unit in ("batch", "epoch"):
                    for steps, accumulate in ((1, 1), (2, 1), (3, 1), (5, 1), (1, 2), (3, 4), (10, 1), (17, 3)):
                        if samples == 1001 and (batch_size < 10 or steps > 5):
                            continue
                        counts = train(samples, batch_size, bool(drop_last), steps, unit, accumulate)
                        words = [samples, batch_size, drop_last, unit, steps, accumulate]
                        records.append((words, counts or ["none"]))
    write("batch_plan.txt",
          "samples batch_size drop_last unit steps accumulate : batches of a pass, passes, batches of the last, batches, samples", records)


# ---- early stopping -------------------------------------------------------------------------------------------------


def worse(new, than, larger_is_better, delta):
    return new < than + delta if larger_is_better else than - delta < new


def best_rule(history, larger_is_better, delta, patience):
    best, without, said = None, 0, ""
    for new in history:
        if not math.isnan(new) and (best is None or not worse(new, best, larger_is_better, delta)):
            best, without = new, 0
        else:
            without += 1
        said += "S" if patience and without >= patience else "."
    return said


def mean_rule(history, larger_is_better, delta, patience):
    said = ""
    for n, new in enumerate(history):
        stop = False
        if patience and n >= patience:
            before = [v for v in history[n - patience:n] if not math.isnan(v)]
            stop = math.isnan(new) or (bool(before) and worse(new, sum(before) / len(before), larger_is_better, delta))
        said += "S" if stop else "."
    return said


def early_stopping():
    random.seed(3)
    records = []
    for trial in range(16):
        # Multiples of 1/16 that drift: ties, and differences of exactly delta, are common.
        level, values = 8, []
        for _ in range(24):
            level = min(16, max(0, level + random.choice([-2, -1, 0, 0, 1, 2])))
            values.append(level / 16)
        if trial % 4 == 0:
            for _ in range(2):
                values[random.randrange(24)] = random.choice([math.nan, math.inf, -math.inf])
        if trial % 10 == 0:
            values[0] = math.nan
        for larger in (0, 1):
            for rule, name in ((best_rule, "best"), (mean_rule, "mean")):
                for patience in (0, random.choice([1, 2]), random.choice([3, 5])):
                    delta = random.choice([0.0, 0.0, 1 / 16, 1 / 8])
                    words = [name, "maximize" if larger else "minimize", *hexes([delta]), patience]
                    records.append(([*words, rule(values, larger, delta, patience)], hexes(values)))
    write("evaluation_patience.txt", "mode goal delta patience verdicts : values", records)


# ---- clients of a round ---------------------------------------------------------------------------------------------


def client_counts():
    records = []
    for clients in (1, 2, 3, 7, 10, 50, 99, 100, 101, 1000, 3550):
        for unseen in (0.0, 0.1, 0.2, 0.3, 0.7, 0.99):
            participants = max(1, int((1 - unseen) * clients))
            rates = [percent / 100 for percent in range(1, 101)]
            counts = [max(1, int(rate * participants)) for rate in rates]
            records.append(([clients, *hexes([unseen]), participants], counts))
    write("client_count.txt", "clients unseen_rate participants : how many a round has, at rates of 0.01, 0.02, … 1.00", records)


if __name__ == "__main__":
    batches()
    early_stopping()
    client_counts()
