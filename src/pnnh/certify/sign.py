"""Which values of a traced graph are provably non-negative, and which activations therefore change nothing."""

# ruff: noqa: SIM905  (tables of words read best as words)

from __future__ import annotations

from collections.abc import Mapping

import torch

from pnnh.certify import ops
from pnnh.certify.grading import Value
from pnnh.certify.trace import Trace

_MAKES = frozenset("relu relu6 sigmoid hardsigmoid softplus abs softmax _softmax square exp".split())
_KEEPS = frozenset(  # every output is a selection, average or reshaping of the operand's entries
    "max_pool1d max_pool2d max_pool2d_with_indices avg_pool1d avg_pool2d adaptive_avg_pool2d adaptive_avg_pool1d mean "
    "adaptive_max_pool2d _adaptive_avg_pool2d amax amin view reshape _unsafe_view flatten permute transpose t squeeze "
    "unsqueeze select slice expand alias clone contiguous dropout split split_with_sizes chunk unbind getitem detach "
    "cat stack add upsample_nearest2d upsample_bilinear2d roll flip _to_copy to repeat mul relu relu6 leaky_relu prelu "
    "sqrt hardtanh clamp pixel_shuffle pixel_unshuffle avg_pool3d max_pool3d index_select lift_fresh_copy sum".split()
)
_IDENTITY_ABOVE_ZERO = frozenset("relu leaky_relu prelu _prelu_kernel threshold".split())


def non_negative(traced: Trace) -> set[torch.fx.Node]:
    """Nodes whose every entry is >= 0 for every input (sound, not complete)."""
    found: set[torch.fx.Node] = set()
    for node in traced.graph.nodes:
        if node.op == "call_function" and _is_non_negative(node, found):
            found.add(node)
    return found


def _is_non_negative(node: torch.fx.Node, found: set[torch.fx.Node]) -> bool:
    name = ops.base_name(node.target)
    if name in _MAKES:
        return True
    if name in ("clamp", "hardtanh", "clamp_min") and _lower_bound(name, node) >= 0:
        return True
    if name == "max_pool2d_with_indices" or name == "getitem":
        return node.args[0] in found
    scalars = [item for item in node.args[1:] if isinstance(item, (int, float))] if name in ("add", "mul") else []
    operands = node.all_input_nodes
    if name in ("prelu", "leaky_relu"):
        operands = operands[:1]
    return (
        name in _KEEPS and bool(operands) and all(item in found for item in operands) and all(s >= 0 for s in scalars)
    )


def _lower_bound(name: str, node: torch.fx.Node) -> float:
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min", -1.0 if name == "hardtanh" else None)
    return low if isinstance(low, (int, float)) else float("-inf")


def redundant_activations(traced: Trace, values: Mapping) -> list[torch.fx.Node]:
    """Activations that return their operand: ReLU-like ones on a value that is provably non-negative."""
    positive = non_negative(traced)
    return [
        node
        for node, value in values.items()
        if isinstance(value, Value)
        and value.kind == "activation"
        and isinstance(node, torch.fx.Node)
        and ops.base_name(node.target) in _IDENTITY_ABOVE_ZERO
        and node.args[0] in positive
    ]
