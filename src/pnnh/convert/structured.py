"""The structured plain twin: every shortcut crosses the activations it used to go around, through a frozen coder.

The coder is a Dirac that is applied, not stored or multiplied: the twin has the source's parameters, names and MACs,
and a state of two tensors, features and code, that cross every activation side by side. Source: derived.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from pnnh._errors import UsageError
from pnnh.certify import ops
from pnnh.certify.sign import non_negative
from pnnh.certify.trace import Trace, module_path
from pnnh.certify.values import Values, values_of
from pnnh.convert.codes import RELU, Code, code_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Carry:
    """A value taken across activations: the module where it joins, activations crossed, code, copies and channels."""

    path: str
    crossed: int
    code: str
    copies: int
    channels: int


class PlainTwin(fx.GraphModule):
    """The rewritten graph as a module; its copies keep the hook that refuses other image sizes."""

    def __deepcopy__(self, memo: dict) -> fx.GraphModule:
        twin = super().__deepcopy__(memo)
        twin._forward_pre_hooks.update(self._forward_pre_hooks)
        twin._forward_pre_hooks_with_kwargs.update(self._forward_pre_hooks_with_kwargs)
        return twin


def structured_twin(traced: Trace) -> tuple[fx.GraphModule, tuple[Carry, ...]]:
    """Rewrite the exported graph so that it is plain, computing exactly the same function.

    Raises:
        UsageError: an uneven gate or concatenation (no exact plain form is built), with its module.
    """
    module = traced.program.module(check_guards=False)
    graph = module.graph
    inputs = frozenset(node.name for node in graph.nodes if node.op == "placeholder")
    flat = Trace(graph, inputs, traced.how)
    values, positive = values_of(flat), non_negative(flat)
    levels = levels_of(values)
    carries: list[Carry] = []
    for join in uneven_sums(values, levels):
        carries += _level(graph, join, values, levels, positive)
    graph.lint()
    return PlainTwin(module, graph, "PlainTwin"), tuple(carries)


def refuse_inconvertible(traced: Trace) -> None:
    """Raise UsageError now, before anything is built, if a join has no exact plain twin."""
    values = values_of(traced)
    uneven_sums(values, levels_of(values))


def levels_of(values: Values) -> dict:
    """The largest number of activations on a path from the input to each value (None: constant)."""
    levels: dict = {}
    for name, value in values.items():
        found = [levels[operand] for operand in value.operands if levels[operand] is not None]
        levels[name] = max(found) + (value.kind == "activation") if found else None
        if value.kind == "input":
            levels[name] = 0
    return levels


def uneven_sums(values: Values, levels: dict) -> list[fx.Node]:
    """The sums of values of different levels: what there is to convert.

    Raises:
        UsageError: an uneven product or concatenation, which has no exact plain twin here.
    """
    sums = []
    for name, value in values.items():
        found = {levels[operand] for operand in value.operands} - {None}
        if len(found) < 2:
            continue
        node = name if isinstance(name, fx.Node) else name[0]
        kind, where = ops.base_name(node.target), module_path(node) or "the top module"
        if value.kind != "join" or name is not node:
            raise UsageError(
                f"{where}: a gate multiplies values of different depths ({kind}); a product has no exact plain twin, "
                "remove the gate (squeeze-excite, gated unit) and retrain, or keep the residual net"
            )
        if kind not in ("add", "sub"):
            raise UsageError(
                f"{where}: {kind} joins values of different depths; only sums are converted, dense connections would "
                "carry every earlier feature across every later activation"
            )
        sums.append(node)
    return sums


def _level(graph, join: fx.Node, values, levels, positive) -> list[Carry]:
    """Take each shallower operand of `join` across the activations that the deepest one has crossed."""
    value = values[join]
    deepest = max(value.operands, key=lambda operand: levels[operand] if levels[operand] is not None else -1)
    carried = []
    for operand in value.operands:
        if levels[operand] is None or levels[operand] == levels[deepest]:
            continue
        codes = _codes_on_path(deepest, levels[operand], levels, values)
        tap = _cheapest_tap(operand, values, positive, codes)
        after = list(tap.users)
        with graph.inserting_before(_first_user(graph, operand, join, tap)):
            decoded, copies = _through(graph, tap, tap in positive, codes)
        if tap is operand:
            join.replace_input_with(operand, decoded)
        else:
            following = next(user for user in after if _leads_to(user, operand))
            following.replace_input_with(tap, decoded)
        names = "+".join(dict.fromkeys(code.name for code in codes))
        carried.append(Carry(module_path(join), len(codes), names, copies, tap.meta["val"].shape[1]))
    return carried


def _codes_on_path(node: fx.Node, low: int, levels, values) -> list[Code]:
    """Codes of the activations that a deepest path to `node` crosses above level `low`, in the order of crossing."""
    codes: list[Code] = []
    while levels[node] > low:
        if values[node].kind == "activation":
            codes.append(code_of(node) or RELU)
        operands = [operand for operand in values[node].operands if levels[operand] is not None]
        node = max(operands, key=lambda operand: levels[operand])
    return codes[::-1]


def chain_up(node: fx.Node, values) -> list[fx.Node]:
    """`node` and the values it is a linear function of, while nothing else uses them; the last one may be shared."""
    chain = [node]
    while values[chain[-1]].kind == "linear" and len(chain[-1].users) == 1:
        chain.append(values[chain[-1]].operands[0])
    return chain


def _cheapest_tap(node: fx.Node, values, positive, codes: list[Code]) -> fx.Node:
    """The value on the way to `node` that costs the fewest entries to carry; a non-negative one on a tie."""

    def cost(tap: fx.Node):
        copies = 1 if tap in positive and all(code.keeps_positive for code in codes) else 2
        sizes = [int(size) for size in tap.meta["val"].shape[1:]]
        return copies * torch.Size(sizes).numel(), copies

    candidates = [tap for tap in chain_up(node, values) if isinstance(tap.meta.get("val"), torch.Tensor)]
    return min(candidates, key=cost)


def _first_user(graph, operand: fx.Node, join: fx.Node, tap: fx.Node) -> fx.Node:
    if tap is operand:
        return join
    return next(user for user in graph.nodes if user in tap.users and _leads_to(user, operand))


def _leads_to(node: fx.Node, target: fx.Node) -> bool:
    """Is `target` reached from `node` by single uses?"""
    while node is not target:
        if len(node.users) != 1:
            return False
        node = next(iter(node.users))
    return True


def _through(graph: fx.Graph, value: fx.Node, positive: bool, codes: list[Code]) -> tuple[fx.Node, int]:
    """Encode, cross and decode once per activation; returns the value on the far side and the copies it took."""
    copies = 1
    for code in codes:
        if positive and code.keeps_positive:
            value = code.apply(graph, value)
            continue
        copies = 2
        up = code.apply(graph, value)
        down = code.apply(graph, graph.call_function(aten.neg.default, (value,)))
        value = graph.call_function(aten.sub.Tensor, (up, down))
        if code.gain != 1:
            value = graph.call_function(aten.mul.Tensor, (value, 1 / code.gain))
    return value, copies
