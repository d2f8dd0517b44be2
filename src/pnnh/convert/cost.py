"""What a network costs: parameters, MACs and peak activation memory of one inference."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pnnh.certify.trace import Example, Trace, as_arguments, trace
from pnnh.convert.memory import plan_memory_of


@dataclass(frozen=True)
class Cost:
    """Of one image: parameters (count), macs (multiply-accumulates; FLOPs are twice that), activation_bytes (peak)."""

    parameters: int
    macs: int
    activation_bytes: int

    def row(self, net: str) -> dict:
        return {"net": net, **vars(self)}


def measure_cost(model: nn.Module, example: Example) -> Cost:
    """Cost of one image like those of `example`; shared parameters count once, work every time."""
    return cost_of(model, trace(model, example), example)


def cost_of(model: nn.Module, traced: Trace, example: Example) -> Cost:
    """The same, given the trace of `model` on `example`."""
    arguments = as_arguments(example)
    batch = arguments[0].shape[0]
    peak = plan_memory_of(traced).peak_bytes
    parameters = sum(item.numel() for item in dict.fromkeys(model.parameters()))
    return Cost(parameters, count_macs(model, arguments) // batch, peak // batch)


def count_macs(model: nn.Module, arguments: tuple[torch.Tensor, ...]) -> int:
    """Multiply-accumulates of one call, of all convolutions and matrix products (torch's own counter, halved)."""
    try:
        light = copy.deepcopy(model).to("meta").eval()
        return _flops(light, [item.to("meta") for item in arguments]) // 2
    except (RuntimeError, NotImplementedError):  # an operator without a meta kernel, or a constant on its own device
        return _flops(copy.deepcopy(model).eval(), arguments) // 2


def _flops(model: nn.Module, arguments) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*arguments)
    return counter.get_total_flops()
