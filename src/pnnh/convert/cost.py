"""What an inference costs: parameters, MACs and peak activation memory of one image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pnnh._cost import Cost, count_macs, count_params
from pnnh.certify.trace import Example, Trace, as_arguments, trace
from pnnh.convert.memory import plan_memory_of


@dataclass(frozen=True)
class InferenceCost(Cost):
    """Also activation_bytes: the peak of live activation memory of one image."""

    activation_bytes: int

    def row(self, net: str) -> dict:
        return {"net": net, **vars(self)}


def measure_cost(model: nn.Module, example: Example) -> InferenceCost:
    """Cost of one image like those of `example`; shared parameters count once, work every time."""
    return cost_of(model, trace(model, example), example)


def cost_of(model: nn.Module, traced: Trace, example: Example) -> InferenceCost:
    """The same, given the trace of `model` on `example`."""
    arguments = as_arguments(example)
    batch = arguments[0].shape[0]
    peak = plan_memory_of(traced).peak_bytes
    return InferenceCost(count_params(model), count_macs(model, arguments) // batch, peak // batch)
