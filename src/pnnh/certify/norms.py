"""Normalisations written out: x / norm(x), x * rsqrt(mean(x^2)), (x - mean) / std. They rescale x and do not count.

A *statistic* of x is one number for two or more of its values: a norm, a deviation, a mean square, and what positive
powers, added constants and reshaping make of it. x over its statistic is taken for a norm layer, which computes the
same. With one value per statistic it would be the sign of x, and counts.
"""

# ruff: noqa: SIM905  (tables of words read best as words)

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import fx

from pnnh.certify import ops

_KEEPS = ops.LINEAR | frozenset("mul div sqrt clamp clamp_min maximum abs pow".split())
_FLIPS = frozenset("rsqrt reciprocal".split())


class Norms:
    """Which values are statistics, and of what. `note` is told of every value in order."""

    def __init__(self):
        self.roots: dict[Hashable, Hashable] = {}  # the value that a value is a linear function of
        self.statistics: dict[fx.Node, tuple[Hashable, bool]] = {}  # (its root, is it inverted?)
        self.squares: dict[fx.Node, fx.Node] = {}

    def note(self, node: fx.Node, data: dict[str, list[fx.Node]], values: dict) -> None:
        name, value = ops.base_name(node.target), values[node]
        roots = {self.root(operand) for operand in value.operands} if value.kind in ("linear", "join") else set()
        self.roots[node] = roots.pop() if len(roots) == 1 else node
        operands = [operand for held in data.values() for operand in held]
        base = operands[0]
        if _is_square(node, name, operands):
            self.squares[node] = base
        elif name in ops.STATISTICS and _several(base, node):
            self.statistics[node] = self.root(base), False
        elif name in ("mean", "sum") and base in self.squares and _several(base, node):
            self.statistics[node] = self.root(self.squares[base]), False
        elif len(operands) == 1 and base in self.statistics and name in _KEEPS | _FLIPS:
            root, inverted = self.statistics[base]
            power = node.args[1] if name == "pow" else 1
            flips = name in _FLIPS or (name == "div" and "other" in data)
            flips ^= isinstance(power, (int, float)) and power < 0
            self.statistics[node] = root, inverted ^ flips

    def root(self, name: Hashable) -> Hashable:
        return self.roots.get(name, name)

    def rescaled(self, node: fx.Node, data: dict[str, list[fx.Node]], name: str) -> fx.Node | None:
        """x of x / statistic(x) or x * (1 / statistic(x)); None for any other operator."""
        operands = [operand for held in data.values() for operand in held]
        if len(operands) != 2 or name not in ("mul", "div"):
            return None
        for value, scale in (operands, operands[::-1])[: 2 if name == "mul" else 1]:
            root, inverted = self.statistics.get(scale, (None, False))
            if root is not None and root == self.root(value) and inverted == (name == "mul"):
                return value
        return None


def lone(node: fx.Node, name: str) -> bool:
    """A norm layer over groups of a single value, which returns its sign."""
    if name not in ops.NORMS:
        return False
    shape = node.args[0].meta["val"].shape
    if "group" in name:
        groups = node.args[6] if name.startswith("native") else node.args[1]
        return math.prod(shape[1:]) // groups < 2
    return math.prod(shape[2:] if name == "instance_norm" else node.args[1]) < 2


def _is_square(node: fx.Node, name: str, operands: list[fx.Node]) -> bool:
    power = name == "pow" and node.args[1] == 2
    return name == "square" or power or (name == "mul" and len(operands) == 2 and operands[0] is operands[1])


def _several(before: fx.Node, after: fx.Node) -> bool:
    """Does each number of `after` stand for two or more of `before`?"""
    held = after.meta.get("val")
    held = held[0] if isinstance(held, (tuple, list)) else held
    whole = before.meta.get("val")
    return isinstance(held, torch.Tensor) and isinstance(whole, torch.Tensor) and whole.numel() >= 2 * held.numel()
