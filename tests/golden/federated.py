#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the golden vectors of FederatedScope's arithmetic: batch counts, early stopping, how many clients a round has;
and of the server optimizers.

    python tests/golden/federated.py        (any torch from 2.11 on, as a second witness of the server optimizers only)

FederatedScope's rules are stated here once more, as loops that do what its trainer does rather than as formulas. Two
things differ from it on purpose, as the headers say: a value that is not a number never is an improvement, and does
not count in a mean. The files are in generate.py's format: words, a colon, values; floating-point values are
hexadecimal.
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


# ---- server optimizers ----------------------------------------------------------------------------------------------


def adaptive_trace(kind, lr, beta1, beta2, tau, corrected, start, changes, seen):
    """Algorithm 2 of "Adaptive federated optimization" (Reddi et al., 2021) for each weight, in Python's floats, with
    second moments that start at 0; `changes[t][i]` is what the clients' mean adds to weight i. FedAdagrad there has no
    memory of the direction (beta1 0), and bias correction is Adam's own. Returns the means and weights of each step."""
    x, m, v = list(start), [0.0] * len(start), [0.0] * len(start)
    trace = []
    for t, change in enumerate(changes, 1):
        means = [weight + delta for weight, delta in zip(x, change)]
        for i, mean in enumerate(means):
            delta = mean - x[i]
            if kind == "sgd":
                m[i] = beta1 * m[i] + delta
                x[i] += lr * m[i]
                continue
            m[i] = beta1 * m[i] + (1 - beta1) * delta
            if kind == "adagrad":
                v[i] = v[i] + delta**2
            elif kind == "adam":
                v[i] = beta2 * v[i] + (1 - beta2) * delta**2
            elif kind == "yogi":
                # Rounding to float must not choose the branch.
                assert v[i] == delta == 0 or abs(v[i] / delta**2 - 1) > 1e-3
                seen.append(math.copysign(1, v[i] - delta**2) if delta else 0)
                v[i] = v[i] - (1 - beta2) * delta**2 * seen[-1]
            direction, scale = m[i], v[i]
            if corrected:
                direction, scale = direction / (1 - beta1**t), scale / (1 - beta2**t)
            x[i] += lr * direction / (math.sqrt(scale) + tau)
        trace.append((means, list(x)))
    return trace


def torch_trace(optimizer, start, trace):
    """The same with one of PyTorch's optimizers, its gradient being what the weights are ahead of the clients' mean."""
    import torch

    weights = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    step = optimizer(torch.optim, [weights])
    for means, expected in trace:
        weights.grad = weights.detach() - torch.tensor(means, dtype=torch.float64)
        step.step()
        wanted = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(weights.detach(), wanted, rtol=1e-11, atol=1e-12)


def server_optimizers():
    draw = random.Random(4)
    start = [0.5, -1.25, 3.0, -0.0625, 20.0, 0.0]
    scales = [0.5, 1.0, 0.1, 0.05, 5.0, 2.0]
    # Sizes over more than a decade, both signs: second moments rise and fall. The clients of the first step leave one
    # weight where it is.
    changes = [[scale * draw.choice([-1, 1]) * 10 ** draw.uniform(-1.3, 0) for scale in scales] for _ in range(8)]
    changes[0][2] = 0.0
    cases = [  # kind, lr, beta1 (momentum), beta2, tau, corrected, PyTorch's
        ("sgd", 1.0, 0.0, 0.0, 0.0, 0, lambda o, w: o.SGD(w, lr=1.0)),
        ("sgd", 0.7, 0.0, 0.0, 0.0, 0, lambda o, w: o.SGD(w, lr=0.7)),
        ("sgd", 0.7, 0.9, 0.0, 0.0, 0, lambda o, w: o.SGD(w, lr=0.7, momentum=0.9)),
        ("adagrad", 0.1, 0.0, 0.0, 1e-3, 0, lambda o, w: o.Adagrad(w, lr=0.1, eps=1e-3)),
        ("adagrad", 0.4, 0.0, 0.0, 0.25, 0, lambda o, w: o.Adagrad(w, lr=0.4, eps=0.25)),
        ("adam", 0.01, 0.9, 0.99, 1e-3, 0, None),
        ("adam", 0.3, 0.8, 0.95, 0.125, 0, None),
        ("adam", 0.01, 0.9, 0.99, 1e-3, 1, lambda o, w: o.Adam(w, lr=0.01, betas=(0.9, 0.99), eps=1e-3)),
        ("adam", 0.3, 0.8, 0.95, 0.125, 1, lambda o, w: o.Adam(w, lr=0.3, betas=(0.8, 0.95), eps=0.125)),
        ("yogi", 0.01, 0.9, 0.99, 1e-3, 0, None),
        ("yogi", 0.3, 0.7, 0.6, 0.125, 0, None),
    ]
    records, seen = [], []
    for kind, lr, beta1, beta2, tau, corrected, witness in cases:
        trace = adaptive_trace(kind, lr, beta1, beta2, tau, corrected, start, changes, seen)
        if witness:
            torch_trace(witness, start, trace)
        words = [kind, *hexes([lr, beta1, beta2, tau]), corrected]
        records.append(([*words, 0], hexes(start)))
        for step, (means, weights) in enumerate(trace, 1):
            records.append(([*words, step, *hexes(means)], hexes(weights)))
    assert all(seen.count(sign) > 2 for sign in (-1, 1)) and 0 in seen
    write("server_optimizer.txt",
          "kind lr beta1 beta2 tau bias_correction step means : weights after it (step 0: the first ones)", records)


if __name__ == "__main__":
    batches()
    early_stopping()
    client_counts()
    server_optimizers()
