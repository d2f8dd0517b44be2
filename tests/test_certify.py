"""The certificate against brute-force path enumeration, on known networks, and on the awkward ways to write them."""

import random

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from pnnh._errors import UsageError
from pnnh.certify import certify
from pnnh.certify.grading import Value, differ, grade, operand_groups

# --- the definition, independently: list every path -------------------------------------------------------------------


def random_graph(rng: random.Random, size: int) -> dict[int, Value]:
    graph = {0: Value("input"), 1: Value("constant")}
    if rng.random() < 0.3:
        graph[2] = Value("input")
    while len(graph) < size:
        kind = rng.choice(["linear", "linear", "activation", "activation", "join", "join", "gate", "affine_gate"])
        count = {"linear": 1, "activation": 1, "affine_gate": 3}.get(kind, rng.choice([2, 2, 3]))
        recent = list(graph)[-4:] if rng.random() < 0.7 else list(graph)
        graph[len(graph)] = Value(kind, [rng.choice(recent) for _ in range(count)])
    return graph


def path_counts(graph: dict[int, Value], name: int) -> list[int]:
    """Number of activations on each single path from an input to `name`, one entry per path."""
    value = graph[name]
    if value.kind in ("input", "constant"):
        return [0] if value.kind == "input" else []
    step = int(value.kind == "activation")
    return [count + step for operand in value.operands for count in path_counts(graph, operand)]


def brute_force_breaks(graph: dict[int, Value]) -> set[int]:
    def span(names):
        counts = [count for name in names for count in path_counts(graph, name)]
        return (min(counts), max(counts)) if counts else None

    broken = set()
    for name, value in graph.items():
        groups = {"join": [[item] for item in value.operands]}.get(value.kind, [])
        if value.kind == "affine_gate":
            groups = [[value.operands[0]], list(value.operands[1:])]
        if len({span(group) for group in groups} - {None}) > 1:
            broken.add(name)
    return broken


def test_grading_equals_path_enumeration_on_1500_random_graphs():
    rng, plain, broken = random.Random(0), 0, 0
    for case in range(1500):
        graph = random_graph(rng, rng.randint(3, 13))
        intervals = grade(graph)
        for name in graph:
            counts = path_counts(graph, name)
            assert intervals[name] == ((min(counts), max(counts)) if counts else None), (case, graph)
        found = {name for name, value in graph.items() if differ(operand_groups(value, intervals)[0])}
        assert found == brute_force_breaks(graph), (case, graph)
        plain, broken = plain + (not found), broken + bool(found)
    assert plain > 200
    assert broken > 200


def test_without_gates_a_plain_graph_is_graded_by_single_numbers():
    rng = random.Random(1)
    for _ in range(500):
        graph = {n: v for n, v in random_graph(rng, 10).items() if v.kind not in ("gate", "affine_gate")}
        graph = {n: v for n, v in graph.items() if all(o in graph for o in v.operands)}
        graph = {n: v for n, v in graph.items() if all(o in graph for o in v.operands)}
        try:
            intervals = grade(graph)
        except KeyError:  # an operand was dropped with its gate
            continue
        if not any(differ(operand_groups(value, intervals)[0]) for value in graph.values()):
            assert all(interval is None or interval[0] == interval[1] for interval in intervals.values())


class RandomNet(nn.Module):
    """A random abstract graph as a real network on [B, 4] values."""

    def __init__(self, graph):
        super().__init__()
        self.graph = graph
        self.linears = nn.ModuleDict({str(n): nn.Linear(4, 4) for n, v in graph.items() if v.kind == "linear"})
        self.constant = nn.Parameter(torch.ones(1, 4))

    def forward(self, *inputs):
        values, waiting = {}, list(inputs)
        for name, value in self.graph.items():
            operands = [values[operand] for operand in value.operands]
            if value.kind == "input":
                values[name] = waiting.pop(0)
            elif value.kind == "constant":
                values[name] = self.constant
            elif value.kind == "linear":
                values[name] = self.linears[str(name)](operands[0])
            elif value.kind == "activation":
                values[name] = F.silu(operands[0])
            elif value.kind == "join":
                values[name] = sum(operands[1:], start=operands[0])
            elif value.kind == "gate":
                values[name] = operands[0] * operands[1] * operands[-1]
            else:
                values[name] = torch.addcmul(operands[0], operands[1], operands[2])
        return tuple(values.values())


def test_certificate_of_random_networks_equals_path_enumeration():
    rng, wanted = random.Random(2), {True: 6, False: 6}
    while any(wanted.values()):
        graph = random_graph(rng, rng.randint(5, 10))
        expected = not brute_force_breaks(graph)
        if wanted[expected]:
            wanted[expected] -= 1
            inputs = [torch.randn(2, 4) for value in graph.values() if value.kind == "input"]
            assert certify(RandomNet(graph), inputs).plain is expected, graph


# --- known networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "joins"),
    [("resnet18", 32, 8), ("resnet50", 32, 16), ("vgg11", 224, 0), ("repvgg_a0", 32, 0), ("mobilenetv2_050", 32, 10)],
)
def test_known_networks(name, size, joins):
    certificate = certify(timm.create_model(name, num_classes=4), torch.randn(2, 3, size, size))
    assert len(certificate.joins) == joins
    assert certificate.plain is (joins == 0)
    assert certificate.traced_by == "export"


def test_a_join_names_its_module_operands_and_line():
    join = certify(timm.create_model("resnet18"), torch.randn(2, 3, 64, 64)).joins[0]
    assert join.path == "layer1.0"
    assert join.operands == ((2, 2), (1, 1))
    assert join.source.startswith("timm/models/resnet.py:")
    assert "shortcut" in join.source


def test_vit_has_its_mlp_joins_and_in_strict_mode_its_attention_too():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    assert len(certify(model, torch.randn(1, 3, 32, 32)).joins) == 2
    assert len(certify(model, torch.randn(1, 3, 32, 32), strict=True).joins) == 4


def test_the_model_keeps_its_mode():
    model = timm.create_model("resnet18").train()
    certify(model, torch.randn(2, 3, 64, 64))
    assert model.training


# --- awkward ways to write the same -----------------------------------------------------------------------------------


class Written(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)


def _slice_write(x):
    y = torch.zeros_like(x)
    y[:, :2] = x[:, :2].relu()
    y[:, 2:] = x[:, 2:]
    return y


SHORTCUTS = {
    "in place": lambda x: x.relu().add_(x),
    "concatenation": lambda x: torch.cat([x.relu(), x], 1),
    "stack": lambda x: torch.stack([x.relu(), x]).sum(0),
    "difference": lambda x: x.relu() - x,
    "written into slices": _slice_write,
    "maximum of two paths": lambda x: torch.maximum(x.tanh(), x),
    "select": lambda x: torch.where(x.sum() > 0, x.relu(), x),
    "fused multiply-add": lambda x: torch.addcmul(x, x.relu(), torch.ones(4)),
    "addmm": lambda x: torch.addmm(x, x.relu(), torch.ones(4, 4)),
}
PLAIN = {
    "one relu on both": lambda x: torch.cat([x, -x], 1).relu(),
    "same depth": lambda x: x.relu() + x.tanh(),
    "constant": lambda x: x.relu() + 1 + torch.ones(4),
    "zeros like": lambda x: x.relu() + torch.zeros_like(x),
    "clamp of a constant": lambda x: torch.maximum(x, torch.zeros(1)),
    "branches of one linear map": lambda x: (2 * x + x.flip(1)).relu(),
    "gate": lambda x: x * x.sigmoid(),
}


@pytest.mark.parametrize("name", SHORTCUTS)
def test_every_way_to_write_a_shortcut_is_found(name):
    assert not certify(Written(SHORTCUTS[name]), torch.randn(2, 4)).plain


@pytest.mark.parametrize("name", PLAIN)
def test_plain_ways_are_plain(name):
    assert certify(Written(PLAIN[name]), torch.randn(2, 4)).plain


def test_gates_are_reported_apart():
    certificate = certify(Written(lambda x: x * x.sigmoid()), torch.randn(2, 4))
    assert certificate.plain
    assert [gate.operands for gate in certificate.gates] == [((0, 0), (1, 1))]
    assert certificate.rows()[0]["kind"] == "gate"


def test_redundant_activations_are_counted():
    assert certify(Written(lambda x: x.relu().relu()), torch.randn(2, 4)).num_redundant == 1
    assert certify(Written(lambda x: x.tanh().relu()), torch.randn(2, 4)).num_redundant == 0


def test_value_dependent_python_falls_back_to_the_operators_that_ran():
    def body(x):
        y = x.relu()
        return y + x if float(x.sum()) > 0 else y

    assert not certify(Written(body), torch.ones(2, 4)).plain
    certificate = certify(Written(body), -torch.ones(2, 4))
    assert certificate.plain
    assert certificate.traced_by == "make_fx"


def test_refusals_are_one_clear_line():
    with pytest.raises(UsageError, match="check that model"):
        certify(nn.Linear(3, 3), torch.randn(2, 4))
    with pytest.raises(UsageError, match="example must be"):
        certify(nn.Linear(3, 3), [3.0])
    with pytest.raises(UsageError, match="recurrent operator"):
        certify(nn.LSTM(3, 3), torch.randn(2, 2, 3))
