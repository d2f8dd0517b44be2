"""What a forward pass costs: parameters counted once where shared, multiply-accumulates counted at every use."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Cost:
    """num_params: parameters, shared ones once. macs: multiply-accumulates of one image (FLOPs are twice that)."""

    num_params: int
    macs: int

    def rows(self) -> list[dict]:
        return [asdict(self)]


def count_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def cost(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Cost of `model` on one image [C, H, W] = `input_size`, counted on the meta device: no arithmetic, no memory."""
    from torch.utils.flop_counter import FlopCounterMode

    ghost = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.empty(1, *input_size, device="meta"))
    return Cost(count_params(model), counter.get_total_flops() // 2)
