"""A traced graph -> the abstract values that `grading` works on."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from pnnh._errors import UsageError
from pnnh.certify import ops
from pnnh.certify.grading import Value
from pnnh.certify.trace import Trace, module_path

Values = dict[Hashable, Value]


def values_of(traced: Trace, *, strict: bool = False) -> Values:
    """One abstract value per node, in order; attention and the like add named inner values `(node, part)`.

    Args:
        strict: count softmax as an activation.
    """
    values: Values = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            values[node] = Value("input" if node.name in traced.inputs else "constant")
        elif node.op == "get_attr":
            values[node] = Value("constant")
        elif node.op == "call_function":
            _add(values, node, strict)
    return values


def _add(values: Values, node: torch.fx.Node, strict: bool) -> None:
    """Describe one operator call. Constants among its operands are dropped first: they join and gate freely."""
    name = ops.base_name(node.target)
    data = [operand for operand in node.all_input_nodes if values[operand].kind != "constant"]
    if name in ops.OPAQUE:
        raise UsageError(
            f"{module_path(node) or 'the model'} runs {name}, a recurrent operator; no graph shows its inner "
            "activations; write it as a loop over cells of Linear and activations to certify it"
        )
    if not data or name in ops.SHAPE_ONLY:
        values[node] = Value("constant")
    elif name in ops.ATTENTION:
        _attention(values, node, strict)
    elif name == "glu":
        values[node, "sigmoid"] = Value("activation", data)
        values[node] = Value("gate", [*data, (node, "sigmoid")])
    elif name == "where":
        values[node, "branches"] = Value("join", node.all_input_nodes[1:])
        values[node] = Value("gate", [node.args[0], (node, "branches")])
    elif name == "copy":
        values[node] = Value("linear", [node.args[1]])
    elif name in ops.FIRST_ONLY:
        values[node] = Value("linear", [node.args[0]])
    elif name in ops.AFFINE_GATES and len(data) > 1 and node.args[0] in data:
        values[node] = Value("affine_gate", [node.args[0], *(item for item in node.args[1:3] if item in data)])
    elif _is_activation(name, node, data, strict):
        values[node] = Value("activation", data)
    elif len(data) == 1:
        values[node] = Value("linear", data)
    else:
        values[node] = Value("gate" if name in ops.GATES | ops.AFFINE_GATES else "join", data)


def _is_activation(name: str, node: torch.fx.Node, data: list, strict: bool) -> bool:
    if name in ops.PAIRWISE_EXTREMA:
        return len(data) == 1 and len(node.all_input_nodes) == 2
    return name in ops.ACTIVATIONS or (strict and name in ops.SOFTMAX)


def _attention(values: Values, node: torch.fx.Node, strict: bool) -> None:
    """softmax(q k^T + mask) v, part by part."""
    query, key, value, *rest = node.args
    mask = node.kwargs.get("attn_mask", rest[0] if rest else None)
    values[node, "logits"] = Value("gate", [query, key])
    masked = [(node, "logits"), *([mask] if isinstance(mask, torch.fx.Node) else [])]
    values[node, "masked"] = Value("join", masked)
    values[node, "weights"] = Value("activation" if strict else "linear", [(node, "masked")])
    values[node] = Value("gate", [(node, "weights"), value])
