"""What a forward pass costs: parameters counted once where shared, multiply-accumulates counted at every use."""

from __future__ import annotations

import copy
from collections.abc import Sequence
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


def count_macs(model: nn.Module, arguments: Sequence[torch.Tensor]) -> int:
    """Multiply-accumulates of one call on `arguments`, of all convolutions and matrix products.

    Counted by torch on the meta device: no arithmetic, no memory; where an operator cannot run there, by running it.
    """
    try:
        return _counted(copy.deepcopy(model).to("meta").eval(), [item.to("meta") for item in arguments])
    except (RuntimeError, NotImplementedError):  # an operator without a meta kernel, or a constant on its own device
        return _counted(copy.deepcopy(model).eval(), arguments)


def _counted(model: nn.Module, arguments: Sequence[torch.Tensor]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*arguments)
    return counter.get_total_flops() // 2


def cost(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Cost of `model` on one image [C, H, W] = `input_size`."""
    return Cost(count_params(model), count_macs(model, [torch.empty(1, *input_size, device="meta")]))
