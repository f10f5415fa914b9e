# SPDX-License-Identifier: MIT
"""optim_parity.py OUT: torch.optim.SGD and the gradient clippers at work, for optim.test.cpp to repeat.

Everything that the repetition needs is in the trace: parameters, gradients of each step, settings, and what came out.
"""
import itertools
import sys

import torch

SHAPES = [(7, 13), (33,), (1003,), ()]


def sgd_case(generator, settings, fused, dtype, late=False):
    def random(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    start = [random(shape) for shape in SHAPES]
    start.append(random((4, 3, 5, 5)).to(memory_format=torch.channels_last))
    params = [p.clone(memory_format=torch.preserve_format).requires_grad_() for p in start]
    optimizer = torch.optim.SGD(params, lr=0.1, fused=fused, foreach=False, **settings)
    grads, after = [], []
    for step in range(6):
        if step == 4:
            optimizer.param_groups[0]["lr"] = 0.025
        now = [random(p.shape).contiguous(memory_format=torch.channels_last) if p.dim() == 4 else random(p.shape)
               for p in params]
        if late and step < 2:
            now[1] = None  # this one has no gradient until the third step
        for p, g in zip(params, now):
            p.grad = None if g is None else g.clone(memory_format=torch.preserve_format)
        optimizer.step()
        grads.append(now)
        after.append([p.detach().clone(memory_format=torch.preserve_format) for p in params])
    state = optimizer.state_dict()["state"]
    buffers = [state.get(i, {}).get("momentum_buffer") for i in range(len(params))]
    defaults = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False}
    return {"name": f"{settings} fused={fused} {dtype} late={late}", "settings": {**defaults, **settings},
            "fused": fused, "start": start, "grads": grads, "after": after, "buffers": buffers}


def sgd_cases():
    generator = torch.Generator().manual_seed(1)
    settings = [{}, {"weight_decay": 5e-4}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 5e-4},
                {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}, {"momentum": 0.8, "dampening": 0.3},
                {"momentum": 0.9, "weight_decay": 1e-2, "maximize": True}]
    for kind, fused in itertools.product(settings, (True, False)):
        for dtype in (torch.float32, torch.float64):
            yield sgd_case(generator, kind, fused, dtype)
        if not fused:
            yield sgd_case(generator, kind, fused, torch.bfloat16)
            yield sgd_case(generator, kind, fused, torch.float32, late=True)


def clip_cases():
    generator = torch.Generator().manual_seed(2)
    kinds = [(norm, limit, size) for norm in (2.0, 1.0, 3.0, float("inf")) for limit in (0.5, 1e6) for size in (1.0, 1e-3)]
    for norm, limit, size in kinds:
        grads = [torch.randn(shape, generator=generator) * size for shape in SHAPES]
        params = [torch.zeros_like(g).requires_grad_() for g in grads]
        for p, g in zip(params, grads):
            p.grad = g.clone()
        total = torch.nn.utils.clip_grad_norm_(params, limit, norm)
        by_norm = [p.grad.clone() for p in params]
        for p, g in zip(params, grads):
            p.grad = g.clone()
        torch.nn.utils.clip_grad_value_(params, limit * size)
        yield {"norm_type": norm, "max_norm": limit, "limit": limit * size, "grads": grads, "total": total,
               "by_norm": by_norm, "by_value": [p.grad.clone() for p in params]}


torch.save({"version": str(torch.__version__), "sgd": list(sgd_cases()), "clip": list(clip_cases())}, sys.argv[1])
