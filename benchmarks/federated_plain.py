# SPDX-License-Identifier: MIT
"""The job of federated_job.py as a loop that a careful user would write in plain PyTorch: one resident model for each
worker, weights copied in, updates added up in place. Two workers are processes that share the global weights and their
sums through shared memory and take clients from one counter."""
import sys
import time

import federated_job as job
import torch
import torch.multiprocessing as mp


def tensors(model):
    """All that is averaged: parameters and running statistics (not the integer counters)."""
    return [t.detach() for t in model.state_dict().values() if t.is_floating_point()]


def sampled(number):
    generator = torch.Generator().manual_seed(10_000 + number)
    return torch.randperm(job.CLIENTS, generator=generator)[:job.SAMPLED].tolist()


def local_round(model, data, shared, sums, clients, number):
    """Trains the clients that `clients` yields; adds their weighted tensors to `sums`."""
    own = tensors(model)
    for total in sums:
        total.zero_()
    steps, seconds, weight = 0, 0.0, 0
    for client in clients:
        for mine, theirs in zip(own, shared):
            mine.copy_(theirs)
        generator = torch.Generator().manual_seed(number * job.CLIENTS + client)
        done, taken, _ = job.train(model, data[client], generator)
        count = len(data[client][1])
        for total, mine in zip(sums, own):
            total.add_(mine, alpha=count)
        steps, seconds, weight = steps + done, seconds + taken, weight + count
    return steps, seconds, weight


def local_evaluation(model, data, shared, clients):
    for mine, theirs in zip(tensors(model), shared):
        mine.copy_(theirs)
    return sum(job.evaluate(model, data[client])[0] for client in clients)


def taken_from(counter, clients):
    """The next client that no worker has, until there is none."""
    while True:
        with counter.get_lock():
            position = counter.value
            counter.value += 1
        if position >= len(clients):
            return
        yield clients[position]


def worker(data, shared, sums, counter, orders, answers):
    torch.set_num_threads(1)
    torch.manual_seed(2)
    model = job.ConvNet2()
    for kind, number, clients in iter(orders.get, None):
        mine = taken_from(counter, clients)
        if kind == "train":
            answers.put(local_round(model, data, shared, sums, mine, number))
        else:
            answers.put(local_evaluation(model, data, shared, mine))


class Workers:
    """Two processes with the interface of one."""

    def __init__(self, count, data, shared):
        context = mp.get_context("spawn")
        self.counter = context.Value("q", 0)
        self.answers = context.Queue()
        self.sums = [[torch.zeros_like(t).share_memory_() for t in shared] for _ in range(count)]
        self.orders = [context.Queue() for _ in range(count)]
        self.processes = [context.Process(target=worker, args=(data, shared, sums, self.counter, orders, self.answers))
                          for sums, orders in zip(self.sums, self.orders)]
        for process in self.processes:
            process.start()

    def all(self, kind, number, clients):
        self.counter.value = 0
        for orders in self.orders:
            orders.put((kind, number, clients))
        return [self.answers.get() for _ in self.orders]

    def end(self):
        for orders in self.orders:
            orders.put(None)
        for process in self.processes:
            process.join()


def main():
    args = job.parser(__doc__, rounds=3).parse_args()
    job.keep_freed_memory(args)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    data = [job.client_data(client) for client in range(job.CLIENTS)]
    model = job.ConvNet2()
    shared = [t.clone() for t in tensors(model)]
    sums = [torch.zeros_like(t) for t in shared]
    workers = None
    steps, seconds, rounds = 0, 0.0, []
    with job.PeakMemory() as peak:
        start = time.perf_counter()
        if args.workers > 1:
            for images, labels in data:
                images.share_memory_(), labels.share_memory_()
            for tensor in shared:
                tensor.share_memory_()
            workers = Workers(args.workers, data, shared)
        for number in range(args.rounds):
            begin = time.perf_counter()
            if workers is None:
                answers, totals = [local_round(model, data, shared, sums, sampled(number), number)], [sums]
            else:
                answers, totals = workers.all("train", number, sampled(number)), workers.sums
            weight = sum(answer[2] for answer in answers)
            for position, tensor in enumerate(shared):
                tensor.copy_(totals[0][position])
                for other in totals[1:]:
                    tensor.add_(other[position])
                tensor.div_(weight)
            rounds.append(time.perf_counter() - begin)
            steps, seconds = steps + sum(a[0] for a in answers), seconds + sum(a[1] for a in answers)
        everyone = list(range(job.CLIENTS))
        if workers is None:
            right = local_evaluation(model, data, shared, everyone)
        else:
            right = sum(workers.all("evaluate", 0, everyone))
        wall = time.perf_counter() - start
        if workers is not None:
            workers.end()
    print(f"plain, {args.workers} workers: accuracy {right / (job.CLIENTS * job.SAMPLES):.4f}", file=sys.stderr)
    assert steps == args.rounds * job.SAMPLED * job.SAMPLES // job.BATCH, steps
    job.report(args, "plain", wall, rounds, seconds / steps * 1e3, peak.mib)


if __name__ == "__main__":
    main()
