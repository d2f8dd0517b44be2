"""`certify`: is this network plain, and if not, exactly where? The definition is in `grading`."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, fx, nn

from pnnh._errors import UsageError
from pnnh._html import table
from pnnh.certify.effect import PathEffect, path_effect
from pnnh.certify.grading import Interval, Kind, Value, differ, grade, hull, operand_groups
from pnnh.certify.sign import redundant_activations
from pnnh.certify.trace import Example, Trace, module_path, source_line, trace
from pnnh.certify.values import values_of


@dataclass(frozen=True)
class Join:
    """A place where values meet: module path, operator, crossings before each operand ([low, high]), source line.

    counted: what is crossed: `activation`, or `pool` where the operands differ only in max pools.
    """

    path: str
    op: str
    operands: tuple[Interval, ...]
    source: str
    counted: Kind = "activation"

    def row(self, kind: str) -> dict:
        shown = " ".join("const" if item is None else f"[{item[0]}, {item[1]}]" for item in self.operands)
        return {
            "kind": kind,
            "module": self.path or "(top)",
            "op": self.op,
            "activations": shown if self.counted == "activation" else f"max pools {shown}",
            "source": self.source,
        }


@dataclass(frozen=True)
class Certificate:
    """What `certify` found. True where a truth value is asked for if the network is plain.

    joins: the additive or concatenating joins that break plainness (none: the net is plain).
    gates: every multiplicative join of two data-dependent values; they take the union and break nothing by themselves.
    num_activations: activation calls in the graph. depth: the largest number of them on one path.
    num_redundant: activations whose operand is provably what they would return (a ReLU on a non-negative value).
    strict: whether softmax and the products of attention were counted. traced_by: `export`, or `make_fx` (holds for the
    operators the example ran). Always of the network in eval mode: what a layer does only in training is not looked at.
    effect: what the activations on the path do to real images, if images were given.
    """

    joins: tuple[Join, ...]
    gates: tuple[Join, ...]
    num_activations: int
    depth: int
    num_redundant: int
    strict: bool
    traced_by: str
    effect: PathEffect | None = field(default=None, compare=False)

    @property
    def plain(self) -> bool:
        """No join mixes paths that crossed different numbers of activations."""
        return not self.joins

    def __bool__(self) -> bool:
        return self.plain

    def rows(self) -> list[dict]:
        """One row per breaking join, then one per gate whose operands differ."""
        uneven = [gate for gate in self.gates if differ(gate.operands)]
        return [join.row("join") for join in self.joins] + [gate.row("gate") for gate in uneven]

    def __str__(self) -> str:
        if self.plain:
            text = f"plain: {self.num_activations} activations, {self.depth} on every path to the end, no shortcut"
        else:
            place = self.joins[0].path or "the top module"
            text = f"not plain: {len(self.joins)} joins mix depths, the first in {place} ({self.joins[0].op})"
        return f"{text} (eval mode)" + (f"; {self.effect}" if self.effect else "")

    def __repr__(self) -> str:
        return f"<Certificate: {self}>"

    def _repr_html_(self) -> str:
        effect = self.effect._repr_html_() if self.effect else ""
        return f"<p>{table([{'certificate': str(self)}])}</p>{table(self.rows())}{effect}"


def certify(
    model: nn.Module,
    example: Example,
    strict: bool = False,
    *,
    data: Tensor | None = None,
    labels: Tensor | None = None,
    activations: Collection[str] = (),
) -> Certificate:
    """Certify that `model` has no path around an activation, or list every place where it has one.

    The graph is judged as written: an activation that changes nothing still counts as crossed, and is reported in
    `num_redundant`; what the activations do to real images is in `effect`. Source of the definition and its proof:
    derived, see docs/is-my-network-plain.md.

    Args:
        model: any nn.Module; looked at in eval mode, left as found.
        example: one input tensor (or a sequence of them for several inputs), batch first.
        strict: count softmax and the products of attention as activations.
        data: [N, ...] images as the model takes them; adds the path effect, measured in eval mode.
        labels: [N] their classes; adds the accuracy with and without the path's activations.
        activations: operators outside torch to count as activations, by name (`mylib::swish`).

    Raises:
        UsageError: the model cannot be traced on `example`, or runs an operator that is not known; bad data or labels.
    """
    certificate = certify_trace(trace(model, example), strict=strict, activations=activations)
    if data is None:
        return certificate
    return replace(certificate, effect=path_effect(model, data, labels, activations=activations))


def certify_trace(traced: Trace, *, strict: bool = False, activations: Collection[str] = ()) -> Certificate:
    """The same for a graph at hand. An operator that is not known can only make it not plain, or is refused."""
    unknown: list[str] = []
    values = values_of(traced, strict=strict, activations=activations, unknown=unknown)
    crossed, pooled = grade(values), grade(values, "pool")
    joins, gates = [], []
    for name, value in values.items():
        added, multiplied = operand_groups(value, crossed)
        pools, _ = operand_groups(value, pooled)
        node = name if isinstance(name, fx.Node) else name[0]
        if differ(added):
            joins.append(_join(node, added, "activation"))
        elif differ(pools):
            joins.append(_join(node, pools, "pool"))
        if sum(item is not None for item in multiplied) > 1:
            gates.append(_join(node, multiplied, "activation"))
    if unknown and not joins:
        raise UsageError(unknown[0])  # what is not known may hide a way around an activation
    highs = [interval[1] for interval in crossed.values() if interval is not None]
    return Certificate(
        joins=tuple(joins),
        gates=tuple(gates),
        num_activations=sum(_counts(name, value, crossed) for name, value in values.items()),
        depth=max(highs, default=0),
        num_redundant=len(redundant_activations(traced, values)),
        strict=strict,
        traced_by=traced.how,
    )


def _counts(name: Hashable, value: Value, crossed: Mapping[Hashable, Interval]) -> bool:
    """Is this value an activation, or a product that counts as one?"""
    union = hull([crossed[operand] for operand in value.operands])
    return value.kind in ("activation", "gate") and crossed[name] != union


def _join(node: fx.Node, operands: list[Interval], counted: Kind) -> Join:
    op = str(node.target).removeprefix("aten.")
    return Join(module_path(node), op, tuple(operands), source_line(node), counted)
