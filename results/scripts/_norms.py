"""Norms as training leaves them, for conversions that are to be proved on nets nobody has trained."""

from __future__ import annotations

import torch
from torch import nn


def with_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random, non-trivial norm statistics, scales and shifts; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
            module.num_batches_tracked.fill_(1)
    return model.eval()
