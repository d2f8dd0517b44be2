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


KINDS = ("linear", "linear", "activation", "activation", "pool", "join", "join", "gate", "weighing")


def random_graph(rng: random.Random, size: int, kinds=KINDS) -> dict[int, Value]:
    graph = {0: Value("input"), 1: Value("constant")}
    if rng.random() < 0.3:
        graph[2] = Value("input")
    while len(graph) < size:
        kind = rng.choice(kinds)
        count = 1 if kind in ("linear", "activation", "pool") else rng.choice([2, 2, 3])
        recent = list(graph)[-4:] if rng.random() < 0.7 else list(graph)
        graph[len(graph)] = Value(kind, [rng.choice(recent) for _ in range(count)])
    return graph


def path_counts(graph: dict[int, Value], name: int, counted: str) -> list[int]:
    """Number of crossings on each single path from an input to `name`, one entry per path."""
    value = graph[name]
    if value.kind in ("input", "constant"):
        return [0] if value.kind == "input" else []
    before = [path_counts(graph, operand, counted) for operand in value.operands]
    step = int(value.kind == counted)
    if value.kind == "gate" and counted == "activation":  # a product that adds no path of another length is one itself
        spans = [(min(counts), max(counts)) for counts in before if counts]
        whole = [count for counts in before for count in counts]
        step = int(len(spans) > 1 and (min(whole), max(whole)) in spans)
    return [count + step for counts in before for count in counts]


def brute_force_breaks(graph: dict[int, Value], counted: str) -> set[int]:
    broken = set()
    for name, value in graph.items():
        if value.kind == "join":
            spans = [path_counts(graph, operand, counted) for operand in value.operands]
            if len({(min(counts), max(counts)) for counts in spans if counts}) > 1:
                broken.add(name)
    return broken


@pytest.mark.parametrize("counted", ["activation", "pool"])
def test_grading_equals_path_enumeration_on_1500_random_graphs(counted):
    rng, plain, broken = random.Random(0), 0, 0
    for case in range(1500):
        graph = random_graph(rng, rng.randint(3, 13))
        intervals = grade(graph, counted)
        for name in graph:
            counts = path_counts(graph, name, counted)
            assert intervals[name] == ((min(counts), max(counts)) if counts else None), (case, graph)
        found = {name for name, value in graph.items() if differ(operand_groups(value, intervals)[0])}
        assert found == brute_force_breaks(graph, counted), (case, graph)
        plain, broken = plain + (not found), broken + bool(found)
    assert plain > 50
    assert broken > 50


def test_without_gates_a_plain_graph_is_graded_by_single_numbers():
    rng, plain = random.Random(1), 0
    for _ in range(500):
        graph = random_graph(rng, 10, ("linear", "activation", "join"))
        intervals = grade(graph)
        if not any(differ(operand_groups(value, intervals)[0]) for value in graph.values()):
            plain += 1
            assert all(interval is None or interval[0] == interval[1] for interval in intervals.values())
    assert plain > 50


# --- the same through real networks: a function drawn at random for every value ---------------------------------------


def swish(x):
    return torch.ops.pnnh_test.swish(x)


@torch.library.custom_op("pnnh_test::swish", mutates_args=())
def _swish(x: torch.Tensor) -> torch.Tensor:
    return x * x.sigmoid()


@_swish.register_fake
def _(x):
    return torch.empty_like(x)


SPELLINGS = {
    "linear": [
        lambda x: x.flip(1),
        lambda x: x @ torch.full((4, 4), 0.3),
        lambda x: F.linear(x, torch.eye(4), torch.ones(4)),
        lambda x: x.cumsum(1) / 2,
        lambda x: torch.nan_to_num(x).double().float(),
        lambda x: F.normalize(x, dim=1),
        lambda x: F.layer_norm(x, (4,)),
        lambda x: torch.where(torch.tensor([True, False, True, True]), x, 0.0),
        lambda x: x**1 - x.mean(1, keepdim=True),
        lambda x: F.dropout(x, 0.5, training=True),
    ],
    "activation": [
        F.silu,
        torch.atan,
        torch.exp,
        lambda x: x**3,
        lambda x: x * x,
        lambda x: 2.0**x,
        lambda x: x.mul(x.clone()),
        lambda x: 1 / (x + 3),
        lambda x: x.clamp(-1, 1),
        lambda x: torch.max(x, torch.zeros(1)),
        lambda x: x.unflatten(1, (2, 2)).amax(2).repeat(1, 2),
        lambda x: x.sort(dim=1).values,
        lambda x: x.int().float(),
        lambda x: (x > 0).float(),
        lambda x: x.softmax(1),
        lambda x: x.logsumexp(1, keepdim=True).expand(-1, 4),
        lambda x: x.norm(dim=1, keepdim=True).expand(-1, 4),
        lambda x: (x[:, :, None] @ x[:, :, None].mT).sum(2),
        lambda x: F.normalize(x[..., None], dim=2)[..., 0],
        lambda x: torch.maximum(x, -x),
        swish,
    ],
    "pool": [lambda x: F.max_pool1d(x[:, None], 3, 1, 1)[:, 0]],
    "join": [
        lambda *x: sum(x[1:], start=x[0]),
        lambda *x: torch.stack(x).sum(0),
        lambda *x: torch.cat([item[:, :2] for item in x], 1)[:, :4],
        lambda x, *rest: F.linear(torch.ones(1, 4), torch.eye(4), sum(rest).mean(0)) + x,
        lambda x, *rest: x.index_put((torch.tensor([0]),), sum(rest)[:1]),
        lambda x, *rest: x.masked_fill(torch.eye(4)[:2].bool(), sum(rest)[0, 0]),
        lambda x, *rest: torch.addcmul(x, sum(rest), torch.ones(4)),
        lambda x, *rest: torch.where(torch.tensor([True, False, True, True]), x, sum(rest)),
        lambda x, *rest: x.scatter(1, torch.zeros(2, 1, dtype=torch.long), sum(rest)),
        lambda x, *rest: F.layer_norm(torch.ones(2, 4), (4,), None, sum(rest)[0]) + x,
        lambda x, *rest: torch.lerp(x, sum(rest), 0.3),
    ],
}


class RandomNet(nn.Module):
    """A random abstract graph as a real network on [2, 4] values, every value in a spelling drawn at random."""

    def __init__(self, graph, rng):
        super().__init__()
        self.graph = graph
        self.functions = {n: rng.choice(SPELLINGS[v.kind]) for n, v in graph.items() if v.kind in SPELLINGS}
        self.constant = nn.Parameter(torch.ones(2, 4))

    def forward(self, *inputs):
        values, waiting = {}, list(inputs)
        for name, value in self.graph.items():
            operands = [values[operand] for operand in value.operands]
            if value.kind == "input":
                values[name] = waiting.pop(0)
            else:
                values[name] = self.functions[name](*operands) if operands else self.constant
        return tuple(values.values())


def test_no_random_network_with_a_way_around_is_called_plain_whatever_its_spelling():
    """Against the enumeration of all paths. Unknown operators may be refused, and inner parts may break more."""
    rng, plain, broken, refused = random.Random(3), 0, 0, 0
    while min(plain, broken, refused) < 3 or plain + broken + refused < 30:
        graph = random_graph(rng, rng.randint(4, 8), ("linear", "activation", "activation", "pool", "join"))
        way_around = any(brute_force_breaks(graph, counted) for counted in ("activation", "pool"))
        net = RandomNet(graph, rng)
        inputs = [torch.rand(2, 4) for value in graph.values() if value.kind == "input"]
        try:
            certificate = certify(net, inputs)
        except UsageError:  # swish, the operator of our own
            refused += 1
            continue
        assert certificate.plain is not way_around, graph
        plain, broken = plain + certificate.plain, broken + (not certificate.plain)


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
    "bias from data": lambda x: F.linear(x.relu(), torch.eye(4), x[0]),
    "norm's shift from data": lambda x: F.layer_norm(x.relu(), (4,), None, x[0]),
    "bounds from data": lambda x: x.relu().clamp(max=x),
    "filled with data": lambda x: x.relu().masked_fill(torch.eye(4)[:2].bool(), x[0, 0]),
    "put by index": lambda x: x.relu().index_put((torch.tensor([0]),), x[:1]),
    "scattered": lambda x: x.relu().scatter(1, torch.zeros(2, 4, dtype=torch.long), x),
    "a full tensor of a number read from the data": lambda x: x.relu() + torch.full((4,), x.sum().item()),
    "a number read from the data": lambda x: x.relu() + x.sum().item(),
    "a max pool": lambda x: F.max_pool1d(x[:, None], 3, 1, 1)[:, 0] + x,
    "product of two linear maps": lambda x: x + x.flip(1) * x.cumsum(1),
    "square": lambda x: x + x * x,
    "a softmax that weights nothing": lambda x: x + x.softmax(1),
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
    "normalised in one branch": lambda x: x + F.normalize(x),
    "root mean square norm written out": lambda x: x + x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "layer norm written out": lambda x: x + (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-6).sqrt(),
    "power one": lambda x: x + x**1,
    "always-on dropout": lambda x: x + F.dropout(x, 0.5, training=True),
    "casts": lambda x: x + x.half().double().bfloat16().float(),
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


def leaves_by_numpy(x):
    return x.relu() + torch.from_numpy(x.detach().numpy() * 2)


def leaves_by_list(x):
    return x.relu() + torch.tensor(x.tolist()) if x.sum() > -99 else x


@pytest.mark.parametrize("body", [leaves_by_numpy, leaves_by_list])
def test_values_that_left_torch_are_refused(body):
    with pytest.raises(UsageError, match=r"left torch|tolist"):
        certify(Written(body), torch.randn(2, 4))


def test_an_unknown_operator_is_refused_by_name_unless_the_user_says_what_it_is():
    chain = Written(lambda x: swish(x).relu())
    with pytest.raises(UsageError, match=r"pnnh_test::swish.*activations=\['pnnh_test::swish'\]"):
        certify(chain, torch.randn(2, 4))
    assert certify(chain, torch.randn(2, 4), activations=["pnnh_test::swish"]).num_activations == 2
    assert not certify(Written(lambda x: swish(x) + x), torch.randn(2, 4)).plain
    with pytest.raises(UsageError, match="special_chebyshev"):  # of degree 1 it is the identity
        certify(Written(lambda x: x.relu() + torch.special.chebyshev_polynomial_t(x, 1)), torch.randn(2, 4))


def test_a_certificate_is_a_value():
    certificate = certify(Written(lambda x: x + x.relu()), torch.randn(2, 4))
    assert not certificate
    assert bool(certify(nn.ReLU(), torch.randn(2, 4)))
    assert (
        repr(certificate)
        == "<Certificate: not plain: 1 joins mix depths, the first in the top module (add.Tensor) (eval mode)>"
    )
    assert "<td>[0, 0] [1, 1]</td>" in certificate._repr_html_()
    with pytest.raises(AttributeError):
        certificate.joins = ()


def test_refusals_are_one_clear_line():
    with pytest.raises(UsageError, match="check that model"):
        certify(nn.Linear(3, 3), torch.randn(2, 4))
    with pytest.raises(UsageError, match="example must be"):
        certify(nn.Linear(3, 3), [3.0])
    with pytest.raises(UsageError, match="recurrent operator"):
        certify(nn.LSTM(3, 3), torch.randn(2, 2, 3))
