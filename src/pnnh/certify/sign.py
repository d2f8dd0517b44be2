"""The range [low, high] of every value of a traced graph, whatever the input, and which activations change nothing."""

# ruff: noqa: SIM905  (tables of words read best as words)

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import fx

from pnnh.certify import ops
from pnnh.certify.trace import Trace

Range = tuple[float, float]
INF = math.inf
ANY: Range = (-INF, INF)
_FIXED: dict[str, Range] = {  # whatever the operand
    **dict.fromkeys(("sigmoid", "hardsigmoid", "softmax", "_softmax", "_safe_softmax"), (0.0, 1.0)),
    **dict.fromkeys(("softplus", "square", "exp", "abs", "sqrt", "softmin"), (0.0, INF)),
    "relu6": (0.0, 6.0),
    **dict.fromkeys(("tanh", "sin", "cos", "erf"), (-1.0, 1.0)),
    **dict.fromkeys(("gelu", "silu", "mish", "hardswish"), (-0.376, INF)),
}
_GROWING = frozenset("abs tanh gelu silu mish hardswish".split())  # 0 <= f(x) <= x for x >= 0
_SELECTS = frozenset(  # every output is one of the operands' values or an average of them
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices adaptive_max_pool1d adaptive_max_pool2d amax amin mean "
    "adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d view reshape _unsafe_view flatten unflatten permute "
    "transpose t squeeze unsqueeze select slice expand alias clone contiguous split split_with_sizes chunk unbind "
    "getitem detach cat stack upsample_nearest2d upsample_bilinear2d roll flip repeat pixel_shuffle pixel_unshuffle "
    "index_select lift_fresh_copy".split()
)
_SELECTS_OR_ZERO = frozenset("avg_pool1d avg_pool2d avg_pool3d constant_pad_nd".split())


def ranges(traced: Trace) -> dict[fx.Node, Range]:
    """Bounds on every entry of every node (interval arithmetic; sound, not tight; parameters may be anything)."""
    found: dict[fx.Node, Range] = {}
    for node in traced.graph.nodes:
        found[node] = _range(node, found) if node.op == "call_function" else ANY
    return found


def non_negative(traced: Trace) -> set[fx.Node]:
    """Nodes whose every entry is >= 0 for every input."""
    return {node for node, (low, _) in ranges(traced).items() if low >= 0}


def _range(node: fx.Node, found: Mapping[fx.Node, Range]) -> Range:
    name = ops.base_name(node.target)
    operands = [found[item] for item in node.all_input_nodes]
    if not operands:
        return ANY
    low, high = operands[0]
    if name in _GROWING and low >= 0:
        return 0.0, high
    if name in _FIXED:
        return _FIXED[name]
    if name in _SELECTS or (name in ("dropout", "_to_copy", "to") and _keeps_values(name, node)):
        return min(item[0] for item in operands), max(item[1] for item in operands)
    if name in _SELECTS_OR_ZERO:
        value = _number(node, 2, "value", 0.0) if name == "constant_pad_nd" else 0.0
        return min(low, value), max(high, value)
    if name == "neg":
        return -high, -low
    if name in ("add", "sub", "mul"):
        return _arithmetic(name, node, found)
    bounds = clamped(name, node)
    if bounds is not None:
        return min(max(low, bounds[0]), bounds[1]), max(min(high, bounds[1]), bounds[0])
    if name in ("leaky_relu", "prelu") and low >= 0:
        return low, high
    if name == "sum":
        return (0.0 if low >= 0 else -INF), (0.0 if high <= 0 else INF)
    return ANY


def clamped(name: str, node: fx.Node) -> Range | None:
    """(low, high) that a relu, clamp or hardtanh clips to; None for others and for bounds that are tensors."""
    if name in ("relu", "relu6"):
        return 0.0, (6.0 if name == "relu6" else INF)
    if name == "hardtanh":
        return _number(node, 1, "min_val", -1.0), _number(node, 2, "max_val", 1.0)
    if name in ("clamp", "clip", "clamp_min", "clamp_max"):
        low = -INF if name == "clamp_max" else _number(node, 1, "min", -INF)
        high = INF if name == "clamp_min" else _number(node, 1 if name == "clamp_max" else 2, "max", INF)
        return None if math.isnan(low + high) and not (low == -INF and high == INF) else (low, high)
    return None


def _number(node: fx.Node, place: int, key: str, default: float) -> float:
    """A numeric argument; NaN where a tensor stands in its place."""
    held = node.args[place] if len(node.args) > place else node.kwargs.get(key)
    return default if held is None else float(held) if isinstance(held, (int, float)) else math.nan


def _keeps_values(name: str, node: fx.Node) -> bool:
    """Dropout outside training returns its operand; a cast between floating point types rounds it."""
    if name == "dropout":
        return node.args[2] is False
    after = node.meta.get("val")
    return after is not None and after.is_floating_point()


def _arithmetic(name: str, node: fx.Node, found: Mapping[fx.Node, Range]) -> Range:
    first, second = (_operand(item, found) for item in node.args[:2])
    if name == "mul":
        corners = [0.0 if 0.0 in (a, b) else a * b for a in first for b in second]
        same = node.args[0] is node.args[1]
        return (0.0 if same else min(corners)), max(corners)
    scale = node.kwargs.get("alpha", 1) * (-1 if name == "sub" else 1)
    if not isinstance(scale, (int, float)):
        return ANY
    ends = sorted(0.0 if scale == 0 else end * scale for end in second)
    return first[0] + ends[0], first[1] + ends[1]


def _operand(item: object, found: Mapping[fx.Node, Range]) -> Range:
    if isinstance(item, fx.Node):
        return found[item]
    return (float(item), float(item)) if isinstance(item, (int, float)) else ANY


def redundant_activations(traced: Trace, values: Mapping) -> list[fx.Node]:
    """Activations that return their operand: clips outside its range, leaky ones of slope 1 or above zero."""
    found = ranges(traced)
    calls = [node for node, value in values.items() if isinstance(node, fx.Node) and value.kind == "activation"]
    return [node for node in calls if node.args and isinstance(node.args[0], fx.Node) and _returns(node, found)]


def _returns(node: fx.Node, found: Mapping[fx.Node, Range]) -> bool:
    name = ops.base_name(node.target)
    low, high = found[node.args[0]]
    bounds = clamped(name, node)
    if bounds is not None:
        return bounds[0] <= low and high <= bounds[1]
    if name == "leaky_relu":
        return low >= 0 or _number(node, 1, "negative_slope", 0.01) == 1
    if name == "threshold":
        limit, value = _number(node, 1, "threshold", 0.0), _number(node, 2, "value", 0.0)
        return low > limit or (low == limit == value)
    return name in ("prelu", "_prelu_kernel", "abs") and low >= 0
