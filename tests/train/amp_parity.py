# SPDX-License-Identifier: MIT
"""amp_parity.py OUT: torch.amp.GradScaler at work with one and two optimizers, for amp.test.cpp to repeat.

The loss is (w * x).sum(), so that gradients are x times the scale and no sum's order matters. Where x is large the scaled
gradient overflows float32, as in half precision it would sooner.
"""
import sys

import torch


def case(name, overflows, fused, momentum, dampening=0.0, optimizers=1, unscale=(), new_scale=None, init=2.0**16, interval=3):
    generator = torch.Generator().manual_seed(3)
    starts = [torch.randn(37, generator=generator) for _ in range(optimizers)]
    params = [s.clone().requires_grad_() for s in starts]
    sgds = [torch.optim.SGD([p], lr=0.05, momentum=momentum, dampening=dampening, fused=fused, foreach=False) for p in params]
    scaler = torch.amp.GradScaler("cpu", init_scale=init, growth_interval=interval)
    steps = []
    for step, overflow in enumerate(overflows):
        xs = [torch.randn(37, generator=generator) for _ in params]
        if overflow:
            xs[(overflow - 1) % optimizers][5] = 1e37
        for p, x in zip(params, xs):
            p.grad = None
            scaler.scale((p * x).sum()).backward()
        norms = []
        for p, sgd in zip(params, sgds):
            if step in unscale:
                scaler.unscale_(sgd)
                norms.append(torch.nn.utils.clip_grad_norm_([p], 1.5))
            scaler.step(sgd)
        scaler.update(new_scale if step == 4 and new_scale else None)
        steps.append({"xs": xs, "norms": norms, "params": [p.detach().clone() for p in params],
                      "grads": [p.grad.clone() for p in params], "state": {k: float(v) for k, v in scaler.state_dict().items()}})
    return {"name": name, "starts": starts, "fused": fused, "momentum": momentum, "dampening": dampening, "init": init,
            "interval": interval, "unscale": list(unscale), "new_scale": new_scale or 0.0, "steps": steps}


QUIET = [0] * 10
ROUGH = [0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0]
FIRST = [1, 1, 0, 0, 0, 0, 1, 0]
cases = []
for fused in (False, True):
    for momentum in (0.0, 0.9):
        kind = f"fused={fused} momentum={momentum}"
        cases.append(case(f"growth {kind}", QUIET, fused, momentum))
        cases.append(case(f"growth to the end of float32 {kind}", QUIET, fused, momentum, init=2.0**126, interval=1)
                     if not fused and momentum == 0.0 else case(f"an odd scale {kind}", ROUGH, fused, momentum, init=1000.0))
        cases.append(case(f"back-off {kind}", ROUGH, fused, momentum))
        cases.append(case(f"unscale and clip {kind}", ROUGH, fused, momentum, unscale=(1, 2, 5, 7)))
        cases.append(case(f"a new scale {kind}", QUIET, fused, momentum, new_scale=512.0))
        cases.append(case(f"two optimizers {kind}", [0, 1, 2, 0, 0, 0, 2, 0], fused, momentum, optimizers=2))
    # With momentum and fused=True Python itself reads an unwritten buffer after a first overflow; see optim.test.cpp.
    cases.append(case(f"a first overflow fused={fused}", FIRST, fused, 0.0))
cases.append(case("a first overflow with momentum", FIRST, False, 0.9))
cases.append(case("a first overflow with dampening", FIRST, False, 0.9, dampening=0.25))
torch.save({"version": str(torch.__version__), "cases": cases}, sys.argv[1])
