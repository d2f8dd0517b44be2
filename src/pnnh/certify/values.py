"""A traced graph -> the abstract values that `grading` works on."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator

import torch
from torch import fx

from pnnh._errors import UsageError
from pnnh.certify import ops
from pnnh.certify.grading import Value
from pnnh.certify.norms import Norms, lone
from pnnh.certify.trace import Trace, module_path

Values = dict[Hashable, Value]
Arguments = dict[str, list[fx.Node]]  # of one operator call: the values that depend on the input, by argument name


def values_of(
    traced: Trace, *, strict: bool = False, activations: Collection[str] = (), unknown: list[str] | None = None
) -> Values:
    """One abstract value per node, in order; an operator that does several things adds inner values `(node, part)`.

    Args:
        strict: count softmax and the products of attention.
        activations: operators outside torch that are activations, by name (`mylib::swish`).
        unknown: takes a sentence on every operator that is not known, each then counted as an activation of the sum of
            its operands; None: raise.

    Raises:
        UsageError: an operator is not known; the message names it.
    """
    arguments = _arguments(traced)
    weighing = set() if strict else _attention_parts(arguments)
    build = _Build(arguments, weighing, frozenset(activations), strict, unknown)
    for node in traced.graph.nodes:
        if node.op == "placeholder" and node.name in traced.inputs:
            build.values[node] = Value("input")
        elif node.op != "output":
            build.add(node)
    return build.values


class _Build:
    """Describes one operator call after another; `values` holds what is described so far."""

    def __init__(self, arguments, weighing: set[fx.Node], activations: frozenset[str], strict: bool, unknown):
        self.arguments, self.weighing, self.activations, self.strict = arguments, weighing, activations, strict
        self.unknown: list[str] | None = unknown
        self.values: Values = {}
        self.norms = Norms()

    def add(self, node: fx.Node) -> None:
        data = self.arguments.get(node, {})
        operands = [operand for held in data.values() for operand in held]
        if not operands:
            self.values[node] = Value("constant")
            return
        name = ops.base_name(node.target)
        if ops.full_name(node.target).removesuffix(".default") in self.activations:
            self._activation(node, operands)
        elif not ops.listed(node.target) or node.kwargs.get("reduce"):
            self._unknown(node, operands)
        elif name in ops.ATTENTION:
            self._attention(node, data)
        elif name == "glu":
            self.values[node, "sigmoid"] = Value("activation", operands)
            self.values[node] = Value("gate", [*operands, (node, "sigmoid")])
        elif name in ops.POOLS:
            self.values[node] = Value("pool", operands)
        elif self._is_activation(name, node):
            self._activation(node, operands)
        elif name in ops.CHOICES:
            self._chosen(node, data, ops.CHOICES[name])
        else:
            self._affine(node, data, name)
        self.norms.note(node, data, self.values)

    def _is_activation(self, name: str, node: fx.Node) -> bool:
        if name in ops.POWERS:
            return node.args[1] != 1
        if name in ops.SOFTMAX:
            return node not in self.weighing
        rounds = name in ops.INVERTED and node.kwargs.get("rounding_mode") is not None
        known = name in ops.ACTIVATIONS or name in ops.LOG_SOFTMAX
        return known or rounds or lone(node, name) or _rounds_to_integers(node)

    def _activation(self, node: fx.Node, operands: list) -> None:
        self.values[node] = Value("activation", [self._sum(node, operands)])

    def _sum(self, node: fx.Node, operands: list) -> Hashable:
        """The one operand, or the name of an inner join of several."""
        if len(operands) == 1:
            return operands[0]
        self.values[node, "sum"] = Value("join", operands)
        return node, "sum"

    def _chosen(self, node: fx.Node, data: Arguments, choices: tuple[str, ...]) -> None:
        """A sum of the operands, of which other operands choose the entries."""
        choosing = [operand for key in choices for operand in data.get(key, [])]
        added = [operand for key, held in data.items() if key not in choices for operand in held]
        if not choosing:
            self._joined(node, added)
        elif not added:
            self._joined(node, choosing)
        else:
            self.values[node] = Value("gate", [self._sum(node, added), *choosing])

    def _joined(self, node: fx.Node, operands: list) -> None:
        self.values[node] = Value("linear" if len(operands) == 1 else "join", operands)

    def _affine(self, node: fx.Node, data: Arguments, name: str) -> None:
        """A product of some operands (of one: linear), to which all others are added."""
        names = ops.FACTORS.get(name, ())
        factors: list = [operand for key in names for operand in data.get(key, [])]
        if rescaled := self.norms.rescaled(node, data, name):
            factors = [rescaled]
        elif inverted := data.get(ops.INVERTED.get(name, "")):
            self.values[node, "inverse"] = Value("activation", inverted)
            factors = [(node, "inverse") if factor is inverted[0] else factor for factor in factors]
        added = [operand for key, held in data.items() if key not in names for operand in held]
        if len(factors) < 2:
            self._joined(node, [*added, *factors])
            return
        product = (node, "product") if added else node
        self.values[product] = Value("weighing" if node in self.weighing else "gate", factors)
        if added:
            self.values[node] = Value("join", [*added, product])

    def _attention(self, node: fx.Node, data: Arguments) -> None:
        """softmax(q k^T + mask) v, part by part."""
        product = "gate" if self.strict else "weighing"
        read = [operand for key in ("query", "key") for operand in data.get(key, [])]
        self.values[node, "logits"] = Value(product, read)
        self.values[node, "masked"] = Value(
            "join", [(node, "logits"), *data.get("attn_mask", data.get("attn_bias", []))]
        )
        self.values[node, "weights"] = Value("activation" if self.strict else "linear", [(node, "masked")])
        self.values[node] = Value(product, [(node, "weights"), *data.get("value", [])])

    def _unknown(self, node: fx.Node, operands: list) -> None:
        name, where = ops.full_name(node.target).removesuffix(".default"), module_path(node) or "the model"
        if ops.base_name(node.target) in ops.OPAQUE:
            raise UsageError(
                f"{where} runs {name}, a recurrent operator; no graph shows its inner activations; write it as a loop "
                "over cells of Linear and activations to certify it"
            )
        message = (
            f"{where} runs {name}, an operator that certify does not know, so no answer would be a proof; write it "
            f"with torch's own functions, or, if it is an activation, say certify(..., activations=[{name!r}])"
        )
        if self.unknown is None:
            raise UsageError(message)
        self.unknown.append(message)
        self._activation(node, operands)


def _arguments(traced: Trace) -> dict[fx.Node, Arguments]:
    """Of every operator call, the operands that depend on the input; calls without any are left out."""
    depends = {node for node in traced.graph.nodes if node.op == "placeholder" and node.name in traced.inputs}
    found: dict[fx.Node, Arguments] = {}
    for node in traced.graph.nodes:
        if node.op != "call_function":
            continue
        ignored = ops.IGNORED.get(ops.base_name(node.target), ())
        data = {key: [item for item in _nodes(held) if item in depends] for key, held in _bound(node)}
        data = {key: held for key, held in data.items() if held and key not in ignored}
        if data:
            depends.add(node)
            found[node] = data
    return found


def _bound(node: fx.Node) -> Iterator[tuple[str, object]]:
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else ["self", "other", "third"]
    yield from zip(names, node.args, strict=False)
    yield from node.kwargs.items()


def _nodes(held: object) -> list[fx.Node]:
    """Every node in `held`, each as often as it occurs."""
    found: list[fx.Node] = []
    fx.node.map_arg(held, lambda node: found.append(node))
    return found


def _rounds_to_integers(node: fx.Node) -> bool:
    """Does a floating point operand become integers or booleans?"""
    after = node.meta.get("val")
    if not isinstance(after, torch.Tensor) or after.is_floating_point() or after.is_complex():
        return False
    before = [item.meta.get("val") for item in node.all_input_nodes]
    return any(isinstance(item, torch.Tensor) and item.is_floating_point() for item in before)


def _attention_parts(arguments: dict[fx.Node, Arguments]) -> set[fx.Node]:
    """Softmaxes that weight other data in a matrix product, these products, and those that make the logits."""
    found: set[fx.Node] = set()
    for node in arguments:
        if ops.base_name(node.target) in ops.SOFTMAX:
            weighs = _products(node, lambda item: item.users, arguments)
            logits = _products(node, lambda item: item.all_input_nodes, arguments)
            found |= {node, *weighs, *logits} if weighs else set()
    return found


_BETWEEN = ops.LINEAR | {"mul", "div", "where", "masked_fill"}


def _products(node: fx.Node, following, arguments: dict[fx.Node, Arguments]) -> set[fx.Node]:
    """The matrix products of data reached from `node` through scaling, masks and reshaping."""
    found, seen, stack = set(), {node}, list(following(node))
    while stack:
        item = stack.pop()
        if item in seen or item not in arguments:
            continue
        seen.add(item)
        name = ops.base_name(item.target)
        if name in ops.CONTRACTIONS and _sums_several(item) and len(_nodes(list(arguments[item].values()))) > 1:
            found.add(item)
        elif name in _BETWEEN:
            stack += following(item)
    return found


def _sums_several(node: fx.Node) -> bool:
    """A matrix product whose inner size is 1 is an elementwise product."""
    shapes = [item.meta["val"].shape for item in node.all_input_nodes if isinstance(item.meta.get("val"), torch.Tensor)]
    return all(math.prod(shape[-1:]) > 1 for shape in shapes[:1])
