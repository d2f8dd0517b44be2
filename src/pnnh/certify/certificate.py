"""`certify`: is this network plain, and if not, exactly where? The definition is in `grading`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pnnh.certify.grading import Interval, differ, grade, operand_groups
from pnnh.certify.sign import redundant_activations
from pnnh.certify.trace import Example, Trace, module_path, source_line, trace
from pnnh.certify.values import values_of


@dataclass(frozen=True)
class Join:
    """A place where values meet: module path, operator, activations before each operand ([low, high]), source line."""

    path: str
    op: str
    operands: tuple[Interval, ...]
    source: str

    def row(self, kind: str) -> dict:
        shown = " ".join("const" if item is None else f"[{item[0]}, {item[1]}]" for item in self.operands)
        return {
            "kind": kind,
            "module": self.path or "(top)",
            "op": self.op,
            "activations": shown,
            "source": self.source,
        }


@dataclass(frozen=True)
class Certificate:
    """What `certify` found.

    joins: the additive or concatenating joins that break plainness (none: the net is plain).
    gates: every multiplicative join of two data-dependent values; they take the union and break nothing by themselves.
    num_activations: activation calls in the graph. depth: the largest number of them on one path.
    num_redundant: activations whose operand is provably what they would return (a ReLU on a non-negative value).
    strict: whether softmax was counted. traced_by: `export`, or `make_fx` (holds for the operators the example ran).
    """

    joins: tuple[Join, ...]
    gates: tuple[Join, ...]
    num_activations: int
    depth: int
    num_redundant: int
    strict: bool
    traced_by: str

    @property
    def plain(self) -> bool:
        """No join mixes paths that crossed different numbers of activations."""
        return not self.joins

    def rows(self) -> list[dict]:
        """One row per breaking join, then one per gate whose operands differ."""
        uneven = [gate for gate in self.gates if differ(gate.operands)]
        return [join.row("join") for join in self.joins] + [gate.row("gate") for gate in uneven]

    def __str__(self) -> str:
        if self.plain:
            return f"plain: {self.num_activations} activations, {self.depth} on every path to the end, no shortcut"
        first = self.joins[0]
        return (
            f"not plain: {len(self.joins)} joins mix depths, the first in {first.path or 'the top module'} ({first.op})"
        )


def certify(model: nn.Module, example: Example, strict: bool = False) -> Certificate:
    """Certify that `model` has no path around an activation, or list every place where it has one.

    The graph is judged as written: an activation that changes nothing still counts as crossed, and is reported in
    `num_redundant`. Source of the definition and its proof: derived, see docs/is-my-network-plain.md.

    Args:
        model: any nn.Module; looked at in eval mode, not changed.
        example: one input tensor (or a sequence of them for several inputs), batch first.
        strict: count softmax as an activation.

    Raises:
        UsageError: the model cannot be traced on `example`.
    """
    return certify_trace(trace(model, example), strict=strict)


def certify_trace(traced: Trace, *, strict: bool = False) -> Certificate:
    """The same for a graph at hand."""
    values = values_of(traced, strict=strict)
    intervals = grade(values)
    joins, gates = [], []
    for name, value in values.items():
        added, multiplied = operand_groups(value, intervals)
        node = name if isinstance(name, torch.fx.Node) else name[0]
        if differ(added):
            joins.append(_join(node, added))
        if sum(item is not None for item in multiplied) > 1:
            gates.append(_join(node, multiplied))
    highs = [interval[1] for interval in intervals.values() if interval is not None]
    return Certificate(
        joins=tuple(joins),
        gates=tuple(gates),
        num_activations=sum(value.kind == "activation" for value in values.values()),
        depth=max(highs, default=0),
        num_redundant=len(redundant_activations(traced, values)),
        strict=strict,
        traced_by=traced.how,
    )


def _join(node: torch.fx.Node, operands: list[Interval]) -> Join:
    return Join(module_path(node), str(node.target).removeprefix("aten."), tuple(operands), source_line(node))
