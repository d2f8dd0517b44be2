"""The dense plain twin: one chain of single convolutions and activations, nothing else, for chain-only hardware.

Between two activations the source is an affine map of the state before; here each such map, together with a lossless
code of every value that is needed later, becomes one convolution. The cost is in the report. Source: derived (for
ReLU ResNets known as the RM operation, arXiv 2111.00687).
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from pnnh._errors import UsageError
from pnnh.certify.ops import base_name
from pnnh.certify.trace import Trace, module_path
from pnnh.certify.values import values_of
from pnnh.convert.affine import Affine, centred, composed, identity, stacked
from pnnh.convert.codes import RELU, Code, code_of
from pnnh.convert.structured import chain_up, levels_of, uneven_sums

_PASS = frozenset(["dropout", "alias", "clone", "contiguous", "detach", "getitem"])
_FLAT = frozenset(["view", "reshape", "flatten", "squeeze", "dropout", "alias", "clone", "contiguous", "mean"])


class PlainChain(nn.Sequential):
    """A chain of Conv2d, activation and pooling, a linear classifier at the end."""


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
class _Builder:
    """State of one conversion. `layers` is the chain so far, `exprs` the value of every node over the newest state."""

    module: fx.GraphModule
    device: str
    layers: OrderedDict = field(default_factory=OrderedDict)
    exprs: dict = field(default_factory=dict)
    channels: list[int] = field(default_factory=list)

    def tensor(self, node) -> torch.Tensor | None:
        """The float64 value of a parameter, buffer or folded constant of the graph."""
        if node is None:
            return None
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(self.module).detach().to(self.device, torch.float64)
        raise UsageError(
            f"{_where(node)}: {base_name(node.target)} of constants is not folded; use the structured form"
        )

    def new_state(self, channels: int) -> int:
        self.channels.append(channels)
        return len(self.channels) - 1

    def part(self, start: int, count: int, positive: bool) -> Affine:
        """Some channels of the newest state."""
        like = torch.empty(0, dtype=torch.float64, device=self.device)
        state = len(self.channels) - 1
        return identity(state, self.channels[-1], start=start, count=count, like=like, positive=positive)

    def emit(self, name: str, value: Affine) -> None:
        """Append `value` as a Conv2d."""
        out, inner, side, _ = value.kernel.shape
        conv = nn.Conv2d(inner, out, side, value.stride, (side - 1) // 2, dtype=torch.float64, device="meta")
        bias = value.kernel.new_zeros(out) if value.bias is None else value.bias
        weights = {"weight": nn.Parameter(value.kernel), "bias": nn.Parameter(bias)}
        for key, parameter in weights.items():
            setattr(conv, key, parameter)
        self.layers[name] = conv


def dense_twin(traced: Trace, device: str = "cpu") -> PlainChain:
    """Build the chain (on the meta device: its sizes only).

    Raises:
        UsageError: an operator that no chain of convolutions has, with its module and the way out.
    """
    module = traced.program.module(check_guards=False)
    nodes = list(module.graph.nodes)
    inputs = frozenset(node.name for node in nodes if node.op == "placeholder")
    values = values_of(Trace(module.graph, inputs, traced.how))
    levels = levels_of(values)
    data = [node for node in nodes if levels.get(node) is not None]
    build = _Builder(module, device)
    image = data[0]
    build.new_state(image.meta["val"].shape[1])
    build.exprs[image] = build.part(0, build.channels[-1], positive=False)
    carries = _carries(values, levels)
    for level in range(max(levels[node] for node in data) + 1):
        here = [node for node in data if levels[node] == level and node not in build.exprs]
        _linear_part(build, here, carries, level)
        next_up = [node for node in data if values[node].kind == "activation" and levels[node] == level + 1]
        _next_state(build, next_up, [carry for carry in carries if carry.low <= level < carry.high])
    return PlainChain(build.layers)


def _where(node: fx.Node) -> str:
    return module_path(node) or "the top module"


def _carries(values, levels) -> list[_Carry]:
    """Every operand of a sum that is shallower than the sum."""
    found = []
    for join in uneven_sums(values, levels):
        for operand in values[join].operands:
            if levels[operand] is None or levels[operand] == levels[join]:
                continue
            chain = chain_up(operand, values)
            rest = [(node, None) for node in chain[:-1] if node.target is not operator.getitem][::-1]
            found.append(_Carry(operand, chain[-1], levels[operand], levels[join], rest))
    return found


def _linear_part(build: _Builder, nodes: list[fx.Node], carries: list[_Carry], level: int) -> None:
    """Evaluate all values of one level over its state; what a carry still has to apply waits for its join."""
    waiting = {node for carry in carries for node, _ in carry.rest if carry.low == level}
    for carry in carries:
        if carry.high == level:
            build.exprs[carry.operand] = _applied(build, carry.now, carry.rest)
    for node in nodes:
        selects_waiting = node.target is operator.getitem and node.args[0] in waiting
        if node not in waiting and not selects_waiting:
            build.exprs[node] = _value(build, node)


def _value(build: _Builder, node: fx.Node) -> Affine | None:
    """The affine map of one operator; pooling and the classifier append to the chain (None: the value is a vector)."""
    name = base_name(node.target)
    source = build.exprs.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    if source is None:
        return _vector(build, node, name)
    if name in ("adaptive_avg_pool2d", "mean"):
        return _global_pool(build, node, name, source)
    if name == "max_pool2d":
        return _max_pool(build, node, source)
    if name in ("add", "sub") and isinstance(node.args[1], fx.Node) and build.exprs.get(node.args[1]) is not None:
        other = build.exprs[node.args[1]]
        return source.plus(other if name == "add" else other.negative(), _where(node))
    return _applied_one(build, source, node)


def _applied(build: _Builder, value: Affine, rest: list[tuple[fx.Node, int | None]]) -> Affine:
    for node, stride in rest:
        value = _applied_one(build, value, node, stride=stride)
    return value


def _applied_one(build: _Builder, value: Affine, node: fx.Node, *, stride: int | None = None) -> Affine:
    """One linear operator of one operand after `value`."""
    name = base_name(node.target)
    if name in _PASS:
        return value
    if name == "conv2d":
        kernel, bias, own = _conv(build, node)
        return composed(value, kernel, bias, own if stride is None else stride, _where(node))
    if name in ("_native_batch_norm_legit_no_training", "batch_norm"):
        return value.scaled(*_norm(build, node, name))
    if name == "avg_pool2d":
        kernel, own = _average(node, value)
        return replace(composed(value, kernel, None, own, _where(node)), positive=value.positive)
    raise UsageError(
        f"{_where(node)}: {name} cannot be part of a chain of convolutions; use the structured form, which keeps it"
    )


def _conv(build: _Builder, node: fx.Node):
    """(dense centred kernel, bias, stride) of a conv2d node; refuses what is not square and symmetric."""
    arguments = [*node.args, *[None, [1, 1], [0, 0], [1, 1], 1][len(node.args) - 2 :]]
    _, weight, bias, stride, padding, dilation, groups = arguments
    pairs = [stride, padding, dilation, list(node.args[1].meta["val"].shape[2:])]
    if isinstance(padding, str) or any(len(set(pair)) > 1 for pair in pairs):
        raise UsageError(f"{_where(node)}: a convolution that is not square and symmetric; use the structured form")
    kernel = centred(build.tensor(weight), padding[0], dilation[0], groups)
    _check_size(node, stride[0])
    return kernel, build.tensor(bias), stride[0]


def _check_size(node: fx.Node, stride: int) -> None:
    """The centred kernel yields ceil(size / stride) outputs; the source must too."""
    before, after = node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
    if any(-(-int(size) // stride) != int(out) for size, out in zip(before, after, strict=True)):
        raise UsageError(
            f"{_where(node)}: {tuple(before)} -> {tuple(after)} is not a centred stride; use the structured form"
        )


def _norm(build: _Builder, node: fx.Node, name: str):
    """(scale, shift) of a batch norm with frozen statistics."""
    _, weight, bias, mean, variance, *rest = node.args
    eps = rest[1] if name.startswith("_") else rest[2]
    mean, variance = build.tensor(mean), build.tensor(variance)
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * build.tensor(weight)
    shift = -mean * scale
    return scale, shift if bias is None else shift + build.tensor(bias)


def _average(node: fx.Node, value: Affine):
    """(kernel, stride) of an average pooling whose windows never touch the border."""
    size, stride, padding, *_ = [*node.args[1:], *[None, [0, 0]][max(len(node.args) - 2, 0) :]]
    stride = stride or size
    height, width = (int(item) for item in node.args[0].meta["val"].shape[2:])
    if size[0] != size[1] or stride != size or any(padding) or height % size[0] or width % size[0]:
        raise UsageError(f"{_where(node)}: an average pooling that meets the border; use the structured form")
    weight = torch.full((value.channels, 1, *size), 1 / size[0] ** 2, dtype=torch.float64, device=value.kernel.device)
    return centred(weight, 0, 1, value.channels), stride[0]


def _whole(build: _Builder, node: fx.Node, value: Affine) -> None:
    """Make `value` the newest state itself; a map that is not the identity becomes a Conv2d without activation."""
    unit = build.part(0, build.channels[-1], False).kernel
    if value.kernel.shape == unit.shape and value.stride == 1 and value.bias is None and _equal(value.kernel, unit):
        return
    build.emit(f"conv{len(build.layers)}", value)
    build.new_state(value.channels)


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.device.type == "meta" or torch.equal(first, second)


def _max_pool(build: _Builder, node: fx.Node, value: Affine) -> Affine:
    size, stride, padding, dilation, ceil = [*node.args[1:], *[None, [0, 0], [1, 1], False][len(node.args) - 2 :]]
    if len(node.args[0].users) > 1:
        raise UsageError(f"{_where(node)}: a pooled value is also used unpooled; use the structured form")
    _whole(build, node, value)
    build.layers[f"pool{len(build.layers)}"] = nn.MaxPool2d(size, stride or size, padding, dilation, ceil_mode=ceil)
    build.new_state(value.channels)
    return build.part(0, value.channels, value.positive)


def _global_pool(build: _Builder, node: fx.Node, name: str, value: Affine) -> None:
    wanted = list(node.args[1]) if len(node.args) > 1 and node.args[1] is not None else None
    if wanted not in ([1, 1], [2, 3], [-1, -2], [-2, -1]):
        raise UsageError(f"{_where(node)}: {name}{wanted} is no global average; use the structured form")
    _whole(build, node, value)
    build.layers["pool"] = nn.AdaptiveAvgPool2d(1)
    build.layers["flatten"] = nn.Flatten()


def _vector(build: _Builder, node: fx.Node, name: str) -> None:
    """After the global pooling: reshaping is done already, linear maps (or 1 x 1 convolutions) follow."""
    if name == "linear" or (name == "conv2d" and node.args[1].meta["val"].shape[2:] == (1, 1)):
        weight = build.tensor(node.args[1]).flatten(1)
        bias = build.tensor(node.args[2]) if len(node.args) > 2 else None
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=torch.float64, device="meta")
        linear.weight = nn.Parameter(weight)
        linear.bias = None if bias is None else nn.Parameter(bias)
        build.layers[f"linear{len(build.layers)}"] = linear
    elif name not in _FLAT:
        raise UsageError(f"{_where(node)}: {name} cannot be part of a chain of convolutions; use the structured form")


def _next_state(build: _Builder, activations: list[fx.Node], carries: list[_Carry]) -> None:
    """One convolution for everything that crosses the next activation, then the activation."""
    if not activations:
        return
    where = _where(activations[0])
    rows = [build.exprs.get(node.args[0]) for node in activations]
    if any(row is None for row in rows):
        raise UsageError(f"{where}: an activation after the global pooling is not converted; use the structured form")
    stride = rows[0].stride
    code, slopes = _activation(build, activations)
    encoded = []
    for carry in carries:
        _advance(build, carry, stride)
        single = carry.now.positive and code.keeps_positive
        encoded.append([carry.now] if single else [carry.now, carry.now.negative()])
    parts = [*rows, *(part for pair in encoded for part in pair)]
    build.emit(f"conv{len(build.layers)}", stacked(parts, where))
    build.new_state(sum(part.channels for part in parts))
    build.layers[f"act{len(build.layers)}"] = _act_module(build, code, slopes)
    start = 0
    for node, row in zip(activations, rows, strict=True):
        build.exprs[node] = build.part(start, row.channels, code.name == "relu" and slopes is None)
        start += row.channels
    for carry, pair in zip(carries, encoded, strict=True):
        start = _decode(build, carry, pair, start, code)


def _advance(build: _Builder, carry: _Carry, stride: int) -> None:
    """The carried value at the stride of the coming layer: subsample before a strided 1 x 1 map, else apply the map."""
    carry.now = build.exprs[carry.tap] if carry.now is None else carry.now
    if stride == carry.now.stride:
        return
    first = carry.rest[0][0] if carry.rest else None
    name = base_name(first.target) if first is not None else ""
    if name == "conv2d" and _conv(build, first)[0].shape[-1] == 1 and _conv(build, first)[2] == stride:
        carry.now, carry.rest = carry.now.subsampled(stride), [(first, 1), *carry.rest[1:]]
    elif name == "avg_pool2d":
        carry.now, carry.rest = _applied_one(build, carry.now, first), carry.rest[1:]
    else:
        carry.now, carry.rest = _applied(build, carry.now, carry.rest), []


def _decode(build: _Builder, carry: _Carry, pair: list[Affine], start: int, code: Code) -> int:
    count = pair[0].channels
    up = build.part(start, count, positive=len(pair) == 1)
    if len(pair) == 1:
        carry.now = up
        return start + count
    down = build.part(start + count, count, positive=False)
    signed = up.plus(down.negative(), "decoder")
    gain = torch.full((count,), 1 / code.gain, dtype=torch.float64, device=build.device)
    carry.now = signed.scaled(gain) if code.gain != 1 else signed
    return start + 2 * count


def _activation(build: _Builder, nodes: list[fx.Node]) -> tuple[Code, torch.Tensor | None]:
    """The one code of a layer, and the slopes of its PReLUs, one per channel of the rows."""
    codes = [code_of(node) for node in nodes]
    names = sorted({base_name(node.target) for node in nodes})
    if None in codes:
        raise UsageError(
            f"{_where(nodes[0])}: no value survives {names[0]} losslessly; use the structured form (ReLU code)"
        )
    if len(set(codes)) > 1 or len(names) > 1:
        raise UsageError(
            f"{_where(nodes[0])}: one layer has the activations {', '.join(names)}; use the structured form"
        )
    if names != ["prelu"]:
        return codes[0], None
    slopes = [build.tensor(node.args[1]).expand(build.exprs[node.args[0]].channels) for node in nodes]
    return RELU, torch.cat(slopes)


def _act_module(build: _Builder, code: Code, slopes: torch.Tensor | None) -> nn.Module:
    """The activation; carried channels of a PReLU have slope 0."""
    if slopes is None:
        return code.module()
    module = nn.PReLU(build.channels[-1], dtype=torch.float64, device=build.device)
    extra = slopes.new_zeros(build.channels[-1] - len(slopes))
    module.weight = nn.Parameter(torch.cat([slopes, extra]))
    return module
