"""The dense plain twin: one chain of single convolutions and activations, nothing else, for chain-only hardware.

Between two activations the source is an affine map of the state before; here each such map, together with a lossless
code of every value that is needed later, becomes one convolution. The cost is in the report. Source: derived (for
ReLU ResNets known as the RM operation, arXiv 2111.00687).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from pnnh._errors import UsageError
from pnnh.certify.ops import base_name
from pnnh.certify.trace import Trace
from pnnh.certify.values import values_of
from pnnh.convert.affine import Affine, Chain, composed
from pnnh.convert.codes import RELU, Code, code_of
from pnnh.convert.operators import averaged, conv_map, covers, norm_of, padded, same_precision, sliced, where_of
from pnnh.convert.structured import chain_up, levels_of, uneven_sums

_PASS = frozenset(["dropout", "alias", "clone", "contiguous", "detach", "getitem", "_to_copy", "to", "lift_fresh_copy"])
_FLAT = frozenset(["view", "reshape", "flatten", "squeeze", "dropout", "alias", "clone", "contiguous", "mean"])


class PlainChain(nn.Sequential):
    """A chain of Conv2d, activation and pooling, with a linear classifier at the end where the source has one."""


@dataclass
class _Carry:
    """A value on its way to a join: what is left to apply to its expression `now`: (graph node, stride override)."""

    operand: fx.Node
    tap: fx.Node
    low: int
    high: int
    rest: list[tuple[fx.Node, int | None]]
    now: Affine | None = None


@dataclass
class _Build:
    """One conversion: the chain so far, and the value of every node as an affine map of one of its states.

    The value of a node is None after the global pooling, when there are vectors and no images.
    """

    module: fx.GraphModule
    chain: Chain
    exprs: dict[fx.Node, Affine | None] = field(default_factory=dict)

    def tensor(self, node) -> torch.Tensor | None:
        """The float64 value of a parameter, buffer or folded constant of the graph."""
        if node is None:
            return None
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(self.module).detach().to(self.chain.device, torch.float64)
        raise UsageError(
            f"{where_of(node)}: {base_name(node.target)} of constants is not folded; use the structured form"
        )


def dense_twin(traced: Trace, device: str = "cpu") -> PlainChain:
    """Build the chain (on the meta device: its sizes only).

    Raises:
        UsageError: an operator that no chain of convolutions has, or several outputs, with the way out.
    """
    module = traced.program.module(check_guards=False)
    nodes = list(module.graph.nodes)
    inputs = frozenset(node.name for node in nodes if node.op == "placeholder")
    values = values_of(Trace(module.graph, inputs, traced.how))
    levels = levels_of(values)
    data = [node for node in nodes if levels.get(node) is not None]
    image, result = data[0], _only_output(traced, nodes[-1], levels)
    if len(inputs) > 1 or image.meta["val"].ndim != 4:
        raise UsageError("a chain of convolutions reads one batch of images [B, C, H, W]; use the structured form")
    build = _Build(module, Chain(image.meta["val"].shape[1], device))
    build.exprs[image] = build.chain.part(0, build.chain.channels[0])
    carries = _carries(values, levels)
    for level in range(max(levels[node] for node in data) + 1):
        here = [node for node in data if levels[node] == level and node not in build.exprs]
        _linear_part(build, here, carries, level)
        next_up = [node for node in data if values[node].kind == "activation" and levels[node] == level + 1]
        _next_state(build, next_up, [carry for carry in carries if carry.low <= level < carry.high])
    if build.exprs[result] is not None:
        build.chain.whole(build.exprs[result])
    return PlainChain(build.chain.layers)


def _only_output(traced: Trace, output: fx.Node, levels) -> fx.Node:
    (result, *more) = output.args[0] if isinstance(output.args[0], (tuple, list)) else [output.args[0]]
    spec = traced.program.call_spec.out_spec
    if more or not (spec is None or spec.is_leaf()):
        raise UsageError(
            f"the net returns {1 + len(more)} output(s) in a {getattr(spec.type, '__name__', 'structure')}, "
            "a chain one tensor; use the structured form"
        )
    if levels.get(result) is None or levels[result] < max(level for level in levels.values() if level is not None):
        raise UsageError("the net's output is not its last value; use the structured form")
    return result


def _carries(values, levels) -> list[_Carry]:
    """Every operand of a sum that is shallower than the sum."""
    carries = []
    for join in uneven_sums(values, levels):
        for operand in values[join].operands:
            if levels[operand] is None or levels[operand] == levels[join]:
                continue
            chain = chain_up(operand, values)
            rest = [(node, None) for node in chain[:-1] if node.target is not operator.getitem][::-1]
            carries.append(_Carry(operand, chain[-1], levels[operand], levels[join], rest))
    return carries


def _linear_part(build: _Build, nodes: list[fx.Node], carries: list[_Carry], level: int) -> None:
    """Evaluate all values of one level over its state; what a carry still has to apply waits for its join."""
    waiting = {node for carry in carries for node, _ in carry.rest if carry.low == level}
    for carry in carries:
        if carry.high == level:
            build.exprs[carry.operand] = _applied(build, carry.now, carry.rest)
    for node in nodes:
        selects_waiting = node.target is operator.getitem and node.args[0] in waiting
        if node not in waiting and not selects_waiting:
            build.exprs[node] = _value(build, node)


def _value(build: _Build, node: fx.Node) -> Affine | None:
    """The affine map of one operator; pooling and the classifier append to the chain (None: the value is a vector)."""
    name = base_name(node.target)
    source = build.exprs.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    if source is None:
        return _vector(build, node, name)
    if name in ("adaptive_avg_pool2d", "mean") or (name == "avg_pool2d" and covers(node)):
        return _global_pool(build, node, name, source)
    if name == "max_pool2d":
        return _max_pool(build, node, source)
    if name in ("add", "sub") and isinstance(node.args[1], fx.Node) and build.exprs.get(node.args[1]) is not None:
        other, factor = build.exprs[node.args[1]], node.kwargs.get("alpha", 1) * (1 if name == "add" else -1)
        scale = torch.full((other.channels,), float(factor), dtype=torch.float64, device=build.chain.device)
        return source.plus(other if factor == 1 else other.scaled(scale), where_of(node))
    return _applied_one(build, source, node)


def _applied(build: _Build, value: Affine, rest: list[tuple[fx.Node, int | None]]) -> Affine:
    for node, stride in rest:
        value = _applied_one(build, value, node, stride=stride)
    return value


def _applied_one(build: _Build, value: Affine, node: fx.Node, *, stride: int | None = None) -> Affine:
    """One linear operator of one operand after `value`."""
    name = base_name(node.target)
    if name in _PASS and same_precision(node):
        return value
    if name == "conv2d":
        kernel, bias, own = conv_map(build.tensor, node)
        return composed(value, kernel, bias, own if stride is None else stride, where_of(node))
    if name in ("_native_batch_norm_legit_no_training", "batch_norm"):
        return value.scaled(*norm_of(build.tensor, node, name))
    if name == "avg_pool2d":
        return averaged(node, value)
    if name == "slice":
        return sliced(node, value)
    if name in ("pad", "constant_pad_nd"):
        return padded(node, value)
    raise UsageError(
        f"{where_of(node)}: {name} cannot be part of a chain of convolutions; use the structured form, which keeps it"
    )


def _max_pool(build: _Build, node: fx.Node, value: Affine) -> Affine:
    size, stride, padding, dilation, ceil = [*node.args[1:], *[None, [0, 0], [1, 1], False][len(node.args) - 2 :]]
    if len(node.args[0].users) > 1:
        raise UsageError(f"{where_of(node)}: a pooled value is also used unpooled; use the structured form")
    build.chain.whole(value)
    pool = nn.MaxPool2d(size, stride or size, padding, dilation, ceil_mode=ceil)
    build.chain.append("pool", pool, value.channels)
    return build.chain.part(0, value.channels, value.positive)


def _global_pool(build: _Build, node: fx.Node, name: str, value: Affine) -> None:
    wanted = list(node.args[1]) if len(node.args) > 1 and node.args[1] is not None else None
    if name != "avg_pool2d" and wanted not in ([1, 1], [2, 3], [-1, -2], [-2, -1], [3, 2]):
        raise UsageError(f"{where_of(node)}: {name}{wanted} is no global average; use the structured form")
    build.chain.whole(value)
    build.chain.append("pool", nn.AdaptiveAvgPool2d(1))
    if not _keeps_images(node):
        build.chain.append("flatten", nn.Flatten())


def _keeps_images(node: fx.Node) -> bool:
    """Is the pooled value returned as [B, C, 1, 1]?"""
    users = list(node.users)
    return node.meta["val"].ndim == 4 and len(users) == 1 and users[0].op == "output"


def _vector(build: _Build, node: fx.Node, name: str) -> None:
    """After the global pooling: reshaping is done already, linear maps (or 1 x 1 convolutions) follow."""
    if name == "linear" or (name == "conv2d" and node.args[1].meta["val"].shape[2:] == (1, 1)):
        weight = build.tensor(node.args[1]).flatten(1)
        bias = build.tensor(node.args[2]) if len(node.args) > 2 else None
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=torch.float64, device="meta")
        linear.weight = nn.Parameter(weight)
        linear.bias = None if bias is None else nn.Parameter(bias)
        build.chain.append("linear", linear)
    elif name not in _FLAT:
        raise UsageError(f"{where_of(node)}: {name} cannot be part of a chain of convolutions; use the structured form")


def _next_state(build: _Build, activations: list[fx.Node], carries: list[_Carry]) -> None:
    """One convolution for everything that crosses the next activation, then the activation."""
    if not activations:
        return
    where = where_of(activations[0])
    rows = [build.exprs.get(node.args[0]) for node in activations]
    if any(row is None for row in rows):
        raise UsageError(f"{where}: an activation after the global pooling is not converted; use the structured form")
    code, slopes = _activation(build, activations)
    encoded = []
    for carry in carries:
        _advance(build, carry, rows[0].stride)
        single = carry.now.positive and code.keeps_positive
        encoded.append([carry.now] if single else [carry.now, carry.now.negative()])
    parts = [*rows, *(part for pair in encoded for part in pair)]
    act = _act_module(build, code, slopes, sum(part.channels for part in parts))
    made = iter(build.chain.activated(parts, act, where))
    for node in activations:
        build.exprs[node] = replace(next(made), positive=code.name == "relu" and slopes is None)
    for carry, pair in zip(carries, encoded, strict=True):
        up, *down = [next(made) for _ in pair]
        carry.now = _decoded(up, down[0], code) if down else replace(up, positive=True)


def _advance(build: _Build, carry: _Carry, stride: int) -> None:
    """The carried value at the stride of the coming layer.

    It is subsampled before a strided 1 x 1 map, which then waits; else operators are applied until the stride fits.
    """
    carry.now = build.exprs[carry.tap] if carry.now is None else carry.now
    while carry.now.stride != stride and carry.rest:
        (node, override), *rest = carry.rest
        if base_name(node.target) == "conv2d":
            kernel, _, own = conv_map(build.tensor, node)
            if kernel.shape[-1] == 1 and carry.now.stride * own == stride:
                carry.now, carry.rest = carry.now.subsampled(own), [(node, 1), *rest]
                return
        carry.now, carry.rest = _applied_one(build, carry.now, node, stride=override), rest


def _decoded(up: Affine, down: Affine, code: Code) -> Affine:
    """(up - down) / gain: the value whose code the two are."""
    signed = up.plus(down.negative(), "decoder")
    gain = torch.full((up.channels,), 1 / code.gain, dtype=torch.float64, device=up.kernel.device)
    return signed.scaled(gain) if code.gain != 1 else signed


def _activation(build: _Build, nodes: list[fx.Node]) -> tuple[Code, torch.Tensor | None]:
    """The one code of a layer, and the slopes of its PReLUs, one per channel of the rows."""
    codes = [code_of(node) for node in nodes]
    names = sorted({base_name(node.target) for node in nodes})
    if None in codes:
        raise UsageError(
            f"{where_of(nodes[0])}: no value survives {names[0]} losslessly; use the structured form (ReLU code)"
        )
    if len(set(codes)) > 1 or len(names) > 1:
        raise UsageError(
            f"{where_of(nodes[0])}: one layer has the activations {', '.join(names)}; use the structured form"
        )
    if names != ["prelu"]:
        return codes[0], None
    slopes = [build.tensor(node.args[1]).expand(build.exprs[node.args[0]].channels) for node in nodes]
    return RELU, torch.cat(slopes)


def _act_module(build: _Build, code: Code, slopes: torch.Tensor | None, channels: int) -> nn.Module:
    """The activation; carried channels of a PReLU have slope 0."""
    if slopes is None:
        return code.module()
    module = nn.PReLU(channels, dtype=torch.float64, device=build.chain.device)
    module.weight = nn.Parameter(torch.cat([slopes, slopes.new_zeros(channels - len(slopes))]))
    return module
