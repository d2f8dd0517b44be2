"""Leave a model exactly as found: buffers, mode of every module, random state, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pnnh import _tree


@contextmanager
def intact(model: nn.Module, training: bool | None = None) -> Iterator[None]:
    """Run the block with `model` in the given mode (None: as found) and put everything back, also when it raises."""
    modules = list(_tree.paths(model))
    modes = [module.training for module in modules]
    buffers = [(module, dict(module._buffers)) for module in modules]
    contents = {id(b): (b, b.detach().clone()) for _, held in buffers for b in held.values() if b is not None}
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            if training is not None:
                model.train(training)
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for module, held in buffers:
                module._buffers.clear()
                module._buffers.update(held)
            with torch.no_grad():
                for buffer, content in contents.values():
                    if not torch.equal(buffer, content):
                        buffer.copy_(content)
            for parameter, grad in grads:
                parameter.grad = grad
