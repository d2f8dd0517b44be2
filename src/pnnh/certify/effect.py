"""The path effect: what the activations on the path of the signal do to real images.

*The path* is the easiest way from the input to the output: the route that passes the fewest weighted maps
(convolutions, linear layers, matrix products), and of these the fewest activations; all such routes, if several are
equal. In a chain it is the only route, in a residual net the shortcuts and the activations after their sums, in a plain
net with a coder the stream. The path *crosses* an activation that lies on it. Source: the definition is ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from pnnh._errors import UsageError
from pnnh._html import table
from pnnh._modules import unwrap
from pnnh.certify import ops
from pnnh.certify.trace import Trace, module_path, tensors, trace
from pnnh.certify.values import Values, values_of

BATCH = 64


@dataclass(frozen=True)
class Crossing:
    """An activation on the path: its module, its function, and the relative change |act(z) - z| / |z| over all images.

    channels: over how many channels; where z is a sum, those into which the path carries anything but zeros.
    """

    module: str
    op: str
    change: float
    channels: int


@dataclass(frozen=True)
class PathEffect:
    """What the path's activations do: `crossings` from input to output, on `images` images.

    accuracy: share of images whose largest output is their label; accuracy_without: the same with every activation on
    the path replaced by the identity, without retraining. None without labels.
    """

    crossings: tuple[Crossing, ...]
    images: int
    accuracy: float | None = None
    accuracy_without: float | None = None

    @property
    def median(self) -> float:
        """Median relative change over the crossed activations; 0 if the path crosses none."""
        return statistics.median([item.change for item in self.crossings]) if self.crossings else 0.0

    def rows(self) -> list[dict]:
        return [{"crossed": number, **vars(item)} for number, item in enumerate(self.crossings, 1)]

    def __str__(self) -> str:
        text = f"the path crosses {len(self.crossings)} activations, median change {self.median:.1%}"
        if self.accuracy is None or self.accuracy_without is None:
            return text
        return f"{text}; accuracy {self.accuracy:.1%}, without them {self.accuracy_without:.1%}"

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>{table(self.rows())}"


def path_effect(
    model: nn.Module, data: Tensor, labels: Tensor | None = None, *, activations: Collection[str] = ()
) -> PathEffect:
    """Measure the path effect of `model` in eval mode on `data` [N, ...]; `labels` [N] add the accuracies.

    Raises:
        UsageError: data or labels are no tensors of matching length, or the model cannot be traced.
    """
    inner = unwrap(model)
    data = _checked(inner, data, labels)
    batch = min(BATCH, len(data))
    module, traced = trace(inner, data[:batch]).runnable()
    values = values_of(traced, activations=activations)
    ways = path(traced, values)
    crossed = [node for node in traced.graph.nodes if node in ways and _replaceable(node, values)]
    sums = {node: node.all_input_nodes[0] for node in crossed}
    run = _Run(module, crossed, {z: ways[z][0] for z in sums.values() if values[z].kind == "join"})
    outputs, bare = [], []
    for part in data.split(batch):
        whole = torch.cat([part, data[: batch - len(part)]])  # the graph holds for one batch size
        outputs.append(run.first(whole, len(part)))
        if labels is not None:
            bare.append(run.first(whole, len(part), replaced=True))
    found = tuple(run.crossing(node) for node in crossed)
    if labels is None:
        return PathEffect(found, len(data))
    return PathEffect(found, len(data), _accuracy(outputs, labels), _accuracy(bare, labels))


def path(traced: Trace, values: Values) -> dict[fx.Node, list[fx.Node]]:
    """The nodes on the path to the first floating point output, each with the operands that the path takes."""
    effort: dict[fx.Node, tuple[int, int]] = {}
    ways: dict[fx.Node, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "output" or values[node].kind == "constant":
            continue
        sources = [item for item in node.all_input_nodes if item in effort]
        least = min((effort[item] for item in sources), default=(0, 0))
        ways[node] = [item for item in sources if effort[item] == least]
        effort[node] = least[0] + _is_weighted(node), least[1] + (values[node].kind == "activation")
    output = next(node for node in traced.graph.nodes if node.op == "output")
    ends = [item for item in output.all_input_nodes if item in effort and _shape(item)]
    found, stack = {}, ends[:1]
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = ways[node]
            stack += ways[node]
    return found


def _is_weighted(node: fx.Node) -> bool:
    name = ops.base_name(node.target)
    return name in ops.CONTRACTIONS or name in ("linear", "bilinear", "addmv") or "conv" in name


def _shape(node: fx.Node) -> torch.Size | None:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) and value.is_floating_point() else None


def _replaceable(node: fx.Node, values: Values) -> bool:
    """A function of each value by itself: its result is as large as its operand."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    return values[node].kind == "activation" and source is not None and _shape(node) == _shape(source) is not None


class _Run(fx.Interpreter):
    """Runs the graph; sums up the squares of z and of act(z) - z by channel, or leaves the activations out."""

    def __init__(self, module: fx.GraphModule, crossed: list[fx.Node], carriers: dict[fx.Node, fx.Node]):
        super().__init__(module, garbage_collect_values=True)
        self.crossed, self.carriers = frozenset(crossed), carriers
        self.sums: dict[fx.Node, Tensor] = {}  # of an activation, [2, channels]: |act(z) - z|^2 and |z|^2
        self.carried: dict[fx.Node, Tensor] = {}  # of a sum, [channels]: |what the path adds to it|
        self.replaced, self.count = False, 0

    def first(self, batch: Tensor, count: int, replaced: bool = False) -> Tensor:
        """The first output of the first `count` inputs of `batch`."""
        self.replaced, self.count = replaced, count
        with torch.no_grad():
            return next(tensors(self.run(batch)))[:count]

    def run_node(self, n: fx.Node) -> object:
        if n in self.crossed:
            return self._activation(n)
        result = super().run_node(n)
        if n in self.carriers and not self.replaced:
            carried = _by_channel(self.env[self.carriers[n]].expand_as(result)[: self.count].abs().double())
            self.carried[n] = self.carried.get(n, torch.zeros_like(carried)) + carried
        return result

    def _activation(self, n: fx.Node) -> Tensor:
        before: Tensor = self.env[n.all_input_nodes[0]]
        if self.replaced:
            return before
        after = super().run_node(n)
        z, change = before[: self.count].double(), (after - before)[: self.count].double()
        squares = torch.stack([_by_channel(change.square()), _by_channel(z.square())])
        self.sums[n] = self.sums.get(n, torch.zeros_like(squares)) + squares
        return after

    def crossing(self, node: fx.Node) -> Crossing:
        change, whole = self.sums[node]
        carried = self.carried.get(node.all_input_nodes[0])
        stream = torch.ones_like(whole, dtype=torch.bool) if carried is None else carried > 0
        size = whole[stream].sum().clamp(min=torch.finfo(torch.float64).tiny)
        relative = (change[stream].sum() / size).sqrt().item()
        return Crossing(module_path(node) or "(top)", ops.base_name(node.target), relative, int(stream.sum()))


def _by_channel(values: Tensor) -> Tensor:
    """Sums by channel: the second axis of maps [N, C, H, W] and vectors [N, C], the last one of tokens [N, T, C]."""
    channels = -1 if values.dim() == 3 else min(1, values.dim() - 1)
    return values.movedim(channels, 0).flatten(1).sum(1)


def _accuracy(outputs: list[Tensor], labels: Tensor) -> float:
    scores = torch.cat(outputs)
    if scores.dim() != 2:
        raise UsageError(f"labels given, but the first output has shape {list(scores.shape)}, not [images, classes]")
    return (scores.argmax(1) == labels.to(scores.device)).double().mean().item()


def _checked(model: nn.Module, data: Tensor, labels: Tensor | None) -> Tensor:
    if not isinstance(data, Tensor) or not data.is_floating_point() or data.dim() < 2 or not len(data):
        raise UsageError("data must be a floating point tensor [N, ...] of images as the model takes them")
    if labels is not None and (not isinstance(labels, Tensor) or labels.shape != (len(data),)):
        raise UsageError(f"labels must be a tensor of {len(data)} class numbers, one for each image of data")
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    return data if like is None else data.to(like.device, like.dtype)
