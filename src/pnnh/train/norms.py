"""Statistics of batch norms taken anew, for evaluations after few steps.

Running averages lag behind the weights: with 10 % of each batch's statistics (PyTorch's default momentum), twenty
steps after the start an eighth of an average is still its initial value, and the weights have moved since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pnnh._modules import eval_mode


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of `model` that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def statistics(norms: Iterable[_BatchNorm]) -> list[Tensor]:
    """The running means and variances of `norms`."""
    return [value for norm in norms for value in (norm.running_mean, norm.running_var)]


@torch.no_grad()
def recompute(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by their mean over `batches` of normalised images [n, C, H, W].

    All other modules are in eval mode meanwhile (no dropout); modes and momenta are put back.
    """
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    try:
        with eval_mode(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
                norm.momentum = None  # a plain mean over the batches
            for images in batches:
                model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Afterwards the statistics of the batch norms, and their counts of batches, are what they were before."""
    buffers = [value for norm in batch_norms(model) for value in norm.buffers(recurse=False)]
    copies = [value.clone() for value in buffers]
    try:
        yield
    finally:
        for value, copy in zip(buffers, copies, strict=True):
            value.copy_(copy)
