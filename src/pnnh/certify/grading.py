"""The definition of a plain network, as arithmetic on an abstract graph: no torch here.

Every value carries the interval [low, high] of the number of activations on paths from the input to it (None: no such
path, a constant). A network is plain iff at no additive join two operands carry different intervals. Source: derived.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["input", "constant", "linear", "activation", "join", "gate", "affine_gate"]
Interval = tuple[int, int] | None


@dataclass(frozen=True)
class Value:
    """One value: how it is made and from which others.

    kind: `input` starts paths; `constant` starts none; `linear` passes its operand on; `activation` adds one; `join`
    adds, concatenates or selects among its operands; `gate` multiplies them; `affine_gate` adds its first operand to
    the product of the others (addmm with data on both sides).
    """

    kind: Kind
    operands: Sequence[Hashable] = ()


def hull(intervals: Sequence[Interval]) -> Interval:
    """The smallest interval that holds all; constants have none."""
    known = [interval for interval in intervals if interval is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def differ(intervals: Sequence[Interval]) -> bool:
    """Do two operands with a path from the input carry different intervals?"""
    return len({interval for interval in intervals if interval is not None}) > 1


def grade(graph: Mapping[Hashable, Value]) -> dict[Hashable, Interval]:
    """Interval of every value; `graph` lists each value after its operands. One pass, linear in the edges."""
    intervals: dict[Hashable, Interval] = {}
    for name, value in graph.items():
        if value.kind == "constant":
            intervals[name] = None
            continue
        if value.kind == "input":
            intervals[name] = (0, 0)
            continue
        union = hull([intervals[operand] for operand in value.operands])
        step = 1 if value.kind == "activation" and union is not None else 0
        intervals[name] = (union[0] + step, union[1] + step) if union is not None else None
    return intervals


def operand_groups(value: Value, intervals: Mapping[Hashable, Interval]) -> tuple[list[Interval], list[Interval]]:
    """(what is added, what is multiplied) among the operands of one value, as intervals."""
    found = [intervals[operand] for operand in value.operands]
    if value.kind == "join":
        return found, []
    if value.kind == "gate":
        return [], found
    if value.kind == "affine_gate":
        return [found[0], hull(found[1:])], found[1:]
    return [], []
