"""The definition of a plain network, as arithmetic on an abstract graph: no torch here.

Every value carries the interval [low, high] of the number of activations on paths from the input to it (None: no such
path, a constant), and the same for max pools. A network is plain iff at no additive join two operands carry different
intervals of either. Source: derived.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["input", "constant", "linear", "activation", "pool", "join", "gate", "weighing"]
Interval = tuple[int, int] | None


@dataclass(frozen=True)
class Value:
    """One value: how it is made and from which others.

    kind: `input` starts paths; `constant` starts none; `linear` passes its operand on; `activation` and `pool` add one;
    `join` adds, concatenates or selects among its operands; `gate` multiplies them; `weighing` multiplies values by
    attention weights, and counts as a gate that is never an activation.
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


def grade(graph: Mapping[Hashable, Value], counted: Kind = "activation") -> dict[Hashable, Interval]:
    """Interval of every value; `graph` lists each value after its operands. One pass, linear in the edges.

    A gate whose union is the interval of one of its operands leaves no trace, as h * h; it counts as an activation.
    """
    intervals: dict[Hashable, Interval] = {}
    for name, value in graph.items():
        if value.kind in ("constant", "input"):
            intervals[name] = None if value.kind == "constant" else (0, 0)
            continue
        known = [interval for interval in (intervals[operand] for operand in value.operands) if interval is not None]
        union = hull(known)
        traceless = value.kind == "gate" and counted == "activation" and len(known) > 1 and union in known
        step = 1 if value.kind == counted or traceless else 0
        intervals[name] = None if union is None else (union[0] + step, union[1] + step)
    return intervals


def operand_groups(value: Value, intervals: Mapping[Hashable, Interval]) -> tuple[list[Interval], list[Interval]]:
    """(what is added, what is multiplied) among the operands of one value, as intervals."""
    operands = [intervals[operand] for operand in value.operands]
    if value.kind == "join":
        return operands, []
    return [], operands if value.kind in ("gate", "weighing") else []
