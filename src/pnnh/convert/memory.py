"""How much activation memory one inference needs, step by step: which buffers are live while each operator runs.

A buffer is born when its operator runs and freed after its last use. Views share their operand's buffer; an elementwise
operator writes over an operand of the same size that dies with it, as inference runtimes do. Weights are not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx, nn

from pnnh.certify.ops import ACTIVATIONS, SHAPE_ONLY, base_name
from pnnh.certify.trace import Example, Trace, module_path, trace

_VIEWS = frozenset(
    ["view", "reshape", "flatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "alias"]
)
_VIEWS |= {
    "slice",
    "select",
    "getitem",
    "split",
    "chunk",
    "unbind",
    "split_with_sizes",
    "detach",
    "dropout",
    "_unsafe_view",
}
_ELEMENTWISE = ACTIVATIONS | {"add", "sub", "mul", "div", "neg", "batch_norm", "_native_batch_norm_legit_no_training"}


@dataclass(frozen=True)
class Step:
    """One operator: what it allocates, and all that is live while it runs (bytes, for the example's batch)."""

    module: str
    op: str
    new_bytes: int
    live_bytes: int
    live_buffers: int


@dataclass(frozen=True)
class MemoryPlan:
    """All steps in order. `peak_bytes` and `peak_buffers` are the largest of each."""

    steps: tuple[Step, ...]

    @property
    def peak_bytes(self) -> int:
        return max(step.live_bytes for step in self.steps)

    @property
    def peak_buffers(self) -> int:
        return max(step.live_buffers for step in self.steps)

    def rows(self) -> list[dict]:
        return [vars(step) for step in self.steps]


def plan_memory(model: nn.Module, example: Example) -> MemoryPlan:
    """Activation memory of one inference of `model` on `example`, operator by operator.

    Norms count as folded (they write in place). Only buffers larger than 1 / 1000 of the largest count as live buffers.
    """
    return plan_memory_of(trace(model, example))


def plan_memory_of(traced: Trace) -> MemoryPlan:
    """The same for a graph at hand."""
    nodes = [node for node in traced.graph.nodes if _carries_data(node, traced)]
    last = _last_readers(nodes)
    owner: dict[fx.Node, fx.Node] = {}
    death: dict[fx.Node, int] = {}  # of a buffer: the last step that reads any value in it
    size: dict[fx.Node, int] = {}
    for index, node in enumerate(nodes):
        operands = [item for item in node.all_input_nodes if item in owner]
        buffer = owner[node] = _buffer(node, operands, owner, death, index)
        death[buffer] = max(death.get(buffer, index), last[node])
        size[buffer] = max(size.get(buffer, 0), _bytes(node))
    birth = {buffer: index for index, buffer in enumerate(nodes) if owner[buffer] is buffer}
    floor = max(size.values()) / 1000
    steps = []
    for index, node in enumerate(nodes):
        live = [size[buffer] for buffer, start in birth.items() if start <= index <= death[buffer]]
        new = size[node] if owner[node] is node else 0
        steps.append(
            Step(module_path(node), base_name(node.target), new, sum(live), sum(item > floor for item in live))
        )
    return MemoryPlan(tuple(steps))


def _carries_data(node: fx.Node, traced: Trace) -> bool:
    if node.op == "placeholder":
        return node.name in traced.inputs
    return node.op == "call_function" and base_name(node.target) not in SHAPE_ONLY and _bytes(node) > 0


def _last_readers(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """Position of the last operator that reads each value; the graph's output reads at the very end."""
    position = {node: index for index, node in enumerate(nodes)}
    return {
        node: max(
            [len(nodes) if user.op == "output" else position.get(user, index) for user in node.users], default=index
        )
        for node, index in position.items()
    }


def _buffer(node, operands, owner, death, index) -> fx.Node:
    """The node whose buffer `node` writes to: its own, or an operand's that it views or overwrites."""
    name = base_name(node.target)
    if name in _VIEWS and operands:
        return owner[operands[0]]
    if name in _ELEMENTWISE:
        for item in operands:
            if _bytes(item) == _bytes(node) and death[owner[item]] <= index:
                return owner[item]
    return node


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        value = value[0] if value and isinstance(value[0], torch.Tensor) else None
    if not isinstance(value, torch.Tensor):
        return 0
    return math.prod(int(size) for size in value.shape) * value.element_size()
