# SPDX-License-Identifier: MIT
"""The job of federated_job.py in Flower's simulation (pip install "flwr[simulation]" torch): message API, FedAvg, one
CPU for each client at work. Each actor keeps one model; Flower's default would be a new one for each message."""
import os
import sys
import time

import federated_job as job
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

client_app = ClientApp()
server_app = ServerApp()


def resident(message, context):
    """The actor's model with the message's weights, and the client's data."""
    if not hasattr(job, "resident_model"):
        torch.set_num_threads(1)
        job.resident_model = job.ConvNet2()
        job.resident_data = [job.client_data(client) for client in range(job.CLIENTS)]
    job.resident_model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return job.resident_model, job.resident_data[context.node_config["partition-id"]]


@client_app.train()
def train(message, context):
    model, data = resident(message, context)
    steps, seconds, loss = job.train(model, data)
    metrics = {"num-examples": len(data[1]), "loss": loss / steps, "steps": steps, "seconds": seconds}
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}),
                   reply_to=message)


@client_app.evaluate()
def evaluate(message, context):
    model, data = resident(message, context)
    right, _ = job.evaluate(model, data)
    metrics = {"num-examples": len(data[1]), "accuracy": right / len(data[1])}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


class TimedFedAvg(FedAvg):
    """Notes how long rounds take, and evaluates in the last one only."""

    def __init__(self, rounds, **options):
        super().__init__(**options)
        self.rounds, self.begins, self.ends, self.step_ms = rounds, [], [], 0.0

    def configure_train(self, server_round, *rest):
        self.begins.append(time.perf_counter())
        return super().configure_train(server_round, *rest)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.ends.append(time.perf_counter())
        self.step_ms = metrics["seconds"] / metrics["steps"] * 1e3
        return arrays, metrics

    def configure_evaluate(self, server_round, *rest):
        return super().configure_evaluate(server_round, *rest) if server_round == self.rounds else []


@server_app.main()
def main(grid, context):
    torch.manual_seed(1)
    strategy = TimedFedAvg(args.rounds, fraction_train=job.SAMPLED / job.CLIENTS, fraction_evaluate=1.0,
                           min_train_nodes=2, min_evaluate_nodes=2, min_available_nodes=job.CLIENTS)
    result = strategy.start(grid, ArrayRecord(job.ConvNet2().state_dict()), num_rounds=args.rounds)
    print("accuracy", result.evaluate_metrics_clientapp[args.rounds]["accuracy"], file=sys.stderr)
    measured["rounds"] = [end - begin for begin, end in zip(strategy.begins, strategy.ends)]
    measured["step_ms"] = strategy.step_ms


if __name__ == "__main__":
    args = job.parser(__doc__, rounds=3).parse_args()
    job.keep_freed_memory(args)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    measured = {}
    with job.PeakMemory() as peak:
        start = time.perf_counter()
        run_simulation(server_app, client_app, num_supernodes=job.CLIENTS, backend_config={
            "init_args": {"num_cpus": args.workers, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
        wall = time.perf_counter() - start
    job.report(args, "flower", wall, measured["rounds"], measured["step_ms"], peak.mib)
