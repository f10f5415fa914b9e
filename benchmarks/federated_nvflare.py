# SPDX-License-Identifier: MIT
"""The job of federated_job.py in NVFlare's simulator (pip install nvflare torch); one round unless told otherwise.

As its users do: FedAvgRecipe and the Client API, one process for each site that is at work. This file is both the job
and, with --site, the clients' script. The final model is evaluated on all clients by this process, outside NVFlare.
"""
import os
import sys
import tempfile
import time

import federated_job as job
import torch


def site():
    """Runs in each site's process."""
    import nvflare.client as flare
    torch.set_num_threads(1)
    flare.init()
    client = int(flare.get_site_name().rsplit("-", 1)[1]) - 1
    model, data = job.ConvNet2(), job.client_data(client)
    while flare.is_running():
        received = flare.receive()
        model.load_state_dict(received.params)
        steps, seconds, loss = job.train(model, data)
        metrics = {"loss": loss / steps, "step_ms": seconds / steps * 1e3}
        flare.send(flare.FLModel(params=model.state_dict(), metrics=metrics,
                                 meta={"NUM_STEPS_CURRENT_ROUND": len(data[1])}))


def main():
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe import SimEnv
    args = job.parser(__doc__, rounds=1).parse_args()
    job.keep_freed_memory(args)
    here = os.path.dirname(os.path.abspath(__file__))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as workspace, job.PeakMemory() as peak:
        start = time.perf_counter()
        recipe = FedAvgRecipe(name="femnist", min_clients=job.SAMPLED, num_rounds=args.rounds, model=job.ConvNet2(),
                              train_script=os.path.abspath(__file__), train_args="--site")
        run = recipe.execute(SimEnv(num_clients=job.CLIENTS, num_threads=args.workers, workspace_root=workspace))
        trained = time.perf_counter() - start
        files = [os.path.join(folder, name) for folder, _, names in os.walk(run.get_result() or workspace)
                 for name in names if name == "FL_global_model.pt"]
        if not files:
            sys.exit("NVFlare left no model behind: its log stands above")
        model = job.ConvNet2()
        state = torch.load(files[0], weights_only=False)
        model.load_state_dict({name: torch.as_tensor(value) for name, value in state.get("model", state).items()})
        right = sum(job.evaluate(model, job.client_data(client))[0] for client in range(job.CLIENTS))
        wall = time.perf_counter() - start
    print("accuracy", right / (job.CLIENTS * job.SAMPLES), file=sys.stderr)
    job.report(args, "nvflare", wall, [trained / args.rounds] * args.rounds, None, peak.mib)


if __name__ == "__main__":
    site() if "--site" in sys.argv else main()
