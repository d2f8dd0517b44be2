"""Lossless codes through a non-linearity: what lets a value cross an activation and come out unchanged.

phi(x) - phi(-x) = (1 + a) x holds for phi(x) = x g(x) with g(x) + g(-x) = 1 (ReLU, GELU, SiLU, hard-swish; a = 0) and
for leaky ReLU of slope a. Where x >= 0 and phi(x) = x there, one copy is enough. Source: derived (the ReLU case is
known as the RM operation, arXiv 2111.00687).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from pnnh.certify.ops import base_name

aten = torch.ops.aten
_EXACT = frozenset(["relu", "leaky_relu", "gelu", "silu", "hardswish"])


@dataclass(frozen=True)
class Code:
    """An activation as a carrier of values.

    name: relu, leaky_relu, gelu, silu, hardswish. slope: of the leaky ReLU. approximate: of the GELU.
    """

    name: str
    slope: float = 0.0
    approximate: str = "none"

    @property
    def gain(self) -> float:
        """phi(x) - phi(-x) = gain * x."""
        return 1.0 + self.slope

    @property
    def keeps_positive(self) -> bool:
        """phi(x) = x for x >= 0: one copy carries a non-negative value."""
        return self.name in ("relu", "leaky_relu")

    def apply(self, graph: fx.Graph, value: fx.Node) -> fx.Node:
        """Insert phi(value) into `graph` at its insertion point."""
        if self.name == "leaky_relu":
            return graph.call_function(aten.leaky_relu.default, (value, self.slope))
        if self.name == "gelu":
            return graph.call_function(aten.gelu.default, (value,), {"approximate": self.approximate})
        return graph.call_function(getattr(aten, self.name).default, (value,))

    def module(self) -> torch.nn.Module:
        """The activation as a module."""
        if self.name == "leaky_relu":
            return torch.nn.LeakyReLU(self.slope)
        if self.name == "gelu":
            return torch.nn.GELU(self.approximate)
        return {"relu": torch.nn.ReLU, "silu": torch.nn.SiLU, "hardswish": torch.nn.Hardswish}[self.name]()


RELU = Code("relu")


def code_of(node: fx.Node) -> Code | None:
    """The code that the activation `node` offers, or None: it clips or bends for good (ReLU6, tanh, sigmoid, ...).

    PReLU and a leaky ReLU of slope -1 have none of their own; the ReLU is a PReLU of frozen slope 0.
    """
    name = base_name(node.target)
    if name in ("prelu", "_prelu_kernel"):
        return RELU
    if name not in _EXACT:
        return None
    if name == "leaky_relu":
        slope = float(node.args[1]) if len(node.args) > 1 else 0.01
        return Code(name, slope=slope) if slope != -1 else None
    return Code(name, approximate=node.kwargs.get("approximate", "none")) if name == "gelu" else Code(name)
