"""What single operators are to the certificate: many of them in one network, so that one trace tests a whole table."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pnnh._errors import UsageError
from pnnh.certify import certify, ops
from pnnh.certify.sign import non_negative, ranges
from pnnh.certify.trace import trace

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


class Many(nn.Module):
    """Every function of x at once."""

    def __init__(self, functions):
        super().__init__()
        self.functions = functions

    def forward(self, x):
        return tuple(function(x) for function in self.functions)


ACTIVATIONS = {
    **{name: getattr(F, name) for name in ("relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus")},
    **{name: getattr(F, name) for name in ("hardswish", "hardsigmoid", "logsigmoid")},
    **{name: getattr(torch, name) for name in ("sigmoid", "tanh", "erf", "sin", "cos")},
    "leaky relu": F.leaky_relu,
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.2)),
    "rrelu": F.rrelu,
    "hardtanh": F.hardtanh,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp from below": lambda x: x.clamp_min(0),
    "clamp from above": lambda x: x.clamp_max(0),
    "minimum with a constant": lambda x: torch.minimum(x, torch.ones(1)),
    "absolute value": torch.abs,
    "sign": torch.sign,
    "step": lambda x: (x > 0).float(),
    **{
        name: getattr(torch, name)
        for name in ("atan", "asinh", "sinh", "exp", "expm1", "square", "tan", "erfc", "sinc")
    },
    **{name: getattr(torch, name) for name in ("trunc", "frac", "reciprocal", "rsqrt", "log1p", "sgn", "angle")},
    "expit": torch.special.expit,
    "power": lambda x: x**3,
    "number to a power": lambda x: 2**x,
    "maximum of two linear maps": lambda x: torch.maximum(x, -x),
    "logaddexp": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "remainder": lambda x: torch.remainder(x, 1),
    "division that rounds": lambda x: torch.div(x, 2, rounding_mode="floor"),
    "sort": lambda x: x.sort(dim=1)[0],
    "cumulative maximum": lambda x: x.cummax(1)[0],
    "cumulative product": lambda x: x.cumprod(1),
    "largest of pairs": lambda x: x.unflatten(1, (2, 2)).amax(2).repeat(1, 2),
    "largest": lambda x: x.max(dim=1, keepdim=True)[0],
    "smallest": lambda x: x.min(dim=1, keepdim=True)[0],
    "median": lambda x: x.median(dim=1, keepdim=True)[0],
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "norm": lambda x: x.norm(dim=1, keepdim=True),
    "standard deviation": lambda x: x.std(1, keepdim=True),
    "integers": lambda x: x.int(),
    "booleans": lambda x: x.bool().float(),
    "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: x.log_softmax(1),
    "a norm of one value": lambda x: F.rms_norm(x[..., None], (1,))[..., 0],
    "square": lambda x: x * x,
    "square of a copy": lambda x: x.mul(1.0 * x),
    "sum of squares": lambda x: torch.einsum("bi,bi->b", x, x)[:, None],
}
COMPOSED = {
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "a relu by selection": lambda x: torch.where(x > 0, x, torch.zeros(1)),
    "a relu by a product": lambda x: x * (x > 0),
}
EVEN = {
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "layer norm": lambda x: F.layer_norm(x, (4,)) + x,
    "cumulative sum": lambda x: x.cumsum(1) + x,
    "the size": lambda x: x.relu() * x.shape[1] + x.new_full((1,), float(x.shape[0])),
    "full like": lambda x: x.relu() + torch.full_like(x, 3.0),
    "type as": lambda x: torch.ones(4).type_as(x.relu()) + x,
    "expand as": lambda x: x[:, :1].expand_as(x.relu()) + x,
}
GATES = {
    "product": lambda x: x * x.relu(),
    "matrices": lambda x: x @ x.relu().T,
    "quotient": lambda x: x / (1 + x.sigmoid()),
    "einsum": lambda x: torch.einsum("bi,bj->bij", x, x.relu()),
    "weights from data": lambda x: F.linear(x, x.relu()),
    "select by data": lambda x: x.gather(1, x.relu().argsort(1)),
    "gated linear unit": lambda x: F.glu(torch.cat([x, -x], 1)),
}


def test_every_activation_makes_a_shortcut_of_the_path_around_it():
    functions = [lambda x, act=act: act(x) + x for act in ACTIVATIONS.values()]
    found = certify(Many(functions), X)
    assert found.traced_by == "export"
    assert found.num_activations == len(ACTIVATIONS)
    assert [join.operands for join in found.joins] == [((1, 1), (0, 0))] * len(ACTIVATIONS)


def test_linear_operators_constants_sizes_and_equal_depths_make_none():
    found = certify(Many(list(EVEN.values())), X)
    assert found.rows() == []


def test_products_are_gates_and_no_joins():
    found = certify(Many(list(GATES.values())), X)
    assert not found.joins
    assert len(found.rows()) == len(GATES)
    assert {row["kind"] for row in found.rows()} == {"gate"}


def test_attention_is_taken_apart():
    def attend(x, mask=None):
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    same = [attend, lambda x: attend(x, torch.ones(1, 1)), lambda x: attend(x, x.mT / 2)]
    assert certify(Many(same), IMAGES[0]).plain
    assert certify(Many([lambda x: attend(x) + x]), IMAGES[0]).plain
    assert not certify(Many([lambda x: attend(x) + x]), IMAGES[0], strict=True).plain
    assert not certify(Many([lambda x: attend(x, (x @ x.mT).relu())]), IMAGES[0]).plain


def test_activations_composed_of_comparisons_are_no_way_around():
    for name, act in COMPOSED.items():
        assert not certify(Many([lambda x, act=act: act(x) + x]), X).plain, name


def test_control_flow_with_graphs_of_its_own_is_refused_not_passed():
    def body(x):
        return torch.cond(x.sum() > 0, lambda x: x.relu(), lambda x: x.relu(), (x,)) + x

    with pytest.raises(UsageError, match=r"Many runs cond.*write it with Python's if"):
        certify(Many([body]), X)


def affine(function) -> bool:
    """Is f(x) - f(0) additive, at 128 pairs of numbers in float64?"""
    x, y = torch.randn(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y = torch.cat([x, (2 * x).round() / 2]), torch.cat([y, (2 * y).round() / 2])
    value = [function(item).double() for item in (x, y, x + y, torch.zeros_like(x))]
    return bool(torch.allclose(value[0] + value[1], value[2] + value[3], atol=1e-9, equal_nan=False))


def elementwise_operators():
    """(name, overload) of every ATen operator of one tensor that torch marks as elementwise."""
    for full in sorted(torch._C._dispatch_get_all_op_names()):
        space, _, name = full.partition("::")
        base, _, overload = name.partition(".")
        if space != "aten" or base.endswith("_") or "backward" in base or base.startswith("_foreach"):
            continue
        packet = getattr(torch.ops.aten, base, None)
        operator = getattr(packet, overload or "default", None)
        if operator is None or torch.Tag.pointwise not in operator.tags or "out" in overload.lower():
            continue
        if sum("Tensor" in str(argument.type) for argument in operator._schema.arguments) == 1:
            yield base, operator


def test_every_elementwise_operator_is_linear_exactly_if_the_table_says_so():
    """Operators in no table are refused, so they may be either."""
    tested = 0
    for name, operator in elementwise_operators():
        numbers = [0.5 for argument in operator._schema.arguments[1:] if not argument.has_default_value()]
        try:
            answer = affine(lambda x, operator=operator, numbers=numbers: operator(x, *numbers))
        except (RuntimeError, TypeError, AttributeError):  # integers only, several results, complex numbers
            continue
        tested += 1
        if name in ops.LINEAR or name in ops.FACTORS:
            assert answer, name
        elif name in ops.ACTIVATIONS and not name.startswith("is"):  # isnan and the like: no pair differs
            assert not answer, name
    assert tested > 90


SIGNS = {
    **{
        name: getattr(F, name)
        for name in ("relu", "relu6", "hardsigmoid", "softplus", "leaky_relu", "gelu", "hardtanh")
    },
    **{name: getattr(torch, name) for name in ("sigmoid", "square", "exp", "abs", "tanh", "neg", "sin")},
    "clamp above zero": lambda x: x.clamp(0.0, 1.0),
    "clamp below zero": lambda x: x.clamp(-0.5, 1.0),
    "clamp from above only": lambda x: x.clamp(max=0.2),
    "hardtanh above zero": lambda x: F.hardtanh(x, 0.0, 1.0),
    "softmax": lambda x: x.softmax(1),
    "pooled": lambda x: F.max_pool2d(x.relu(), 2),
    "pooled values": lambda x: F.max_pool2d(x, 2),
    "average": lambda x: F.avg_pool2d(x.relu(), 2),
    "sum of two": lambda x: x.relu() + x.abs(),
    "sum with a value": lambda x: x.relu() + x,
    "plus a number": lambda x: x.relu() + 1,
    "minus a number": lambda x: x.relu() + (-1),
    "times a number": lambda x: x.relu() * 2,
    "times a negative number": lambda x: x.relu() * -2,
    "difference": lambda x: x.relu() - x.abs(),
    "joined": lambda x: torch.cat([x.relu(), x.sigmoid()], 1),
    "joined with a value": lambda x: torch.cat([x.relu(), x], 1),
    "leaky of a relu": lambda x: F.leaky_relu(x.relu()),
    "slice": lambda x: x.relu()[:, 1:],
    "scaled difference": lambda x: torch.add(x.relu(), x.abs(), alpha=-1),
    "scaled sum": lambda x: torch.add(x.relu(), x.abs(), alpha=2),
    "difference of negatives": lambda x: -(-x.relu()).clamp(max=0),
    "relu of a smooth one": lambda x: F.gelu(x.relu()),
    "pad with a negative number": lambda x: F.pad(x.relu(), (1, 1), value=-1.0),
    "square by a product": lambda x: x * x,
    "convolution": lambda x: F.conv2d(x.relu(), torch.ones(4, 4, 1, 1) - 2),
}
PROVEN = {"relu", "relu6", "hardsigmoid", "softplus", "sigmoid", "square", "exp", "abs", "softmax", "clamp above zero"}
PROVEN |= {"hardtanh above zero", "pooled", "average", "sum of two", "plus a number", "times a number", "joined"}
PROVEN |= {"leaky of a relu", "slice", "scaled sum", "relu of a smooth one", "square by a product"}
PROVEN |= {"difference of negatives"}


def test_no_value_leaves_the_range_that_is_proven_for_it():
    """Every function above and 300 random compositions of two of them, on inputs of several sizes."""
    rng = random.Random(0)
    pairs = [rng.sample(sorted(SIGNS), 2) for _ in range(300)]
    functions = [*SIGNS.values(), *(lambda x, a=a, b=b: SIGNS[b](SIGNS[a](x)) for a, b in pairs if fits(a, b))]
    net = Many(functions)
    traced = trace(net, IMAGES)
    bounds = ranges(traced)
    outputs = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    assert sum(bounds[node][0] >= 0 for node in outputs) > 60
    for scale in (0.01, 1.0, 30.0):
        with torch.no_grad():
            values = net(IMAGES * scale)
        for node, value in zip(outputs, values, strict=True):
            low, high = bounds[node]
            assert low - 1e-6 <= value.min(), node
            assert value.max() <= high + 1e-6, node


def fits(first: str, second: str) -> bool:
    """Does the second function take what the first returns?"""
    try:
        return SIGNS[second](SIGNS[first](IMAGES)).isfinite().all().item()
    except RuntimeError:
        return False


def test_what_is_called_non_negative_is_and_what_is_not_is_not():
    traced = trace(Many(list(SIGNS.values())), IMAGES)
    found = non_negative(traced)
    outputs = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    assert {name for name, node in zip(SIGNS, outputs, strict=True) if node in found} == PROVEN
    with torch.no_grad():
        values = Many(list(SIGNS.values()))(IMAGES)
    assert {name for name, value in zip(SIGNS, values, strict=True) if value.min() >= 0} == PROVEN


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (F.relu, 1),
        (F.leaky_relu, 1),
        (torch.tanh, 0),
        (F.relu6, 0),
        (torch.abs, 1),
        (lambda x: F.threshold(x, 0.1, 0.0), 0),
        (lambda x: F.threshold(x, 0.0, 0.0), 1),
        (lambda x: x.clamp(min=-1), 1),
        (lambda x: x.clamp(-1, 4), 0),
    ],
)
def test_only_what_returns_its_operand_is_redundant(body, count):
    assert certify(Many([lambda x: body(x.relu())]), X).num_redundant == count
    assert certify(Many([lambda x: body(x - 1)]), X).num_redundant == 0


def test_a_leaky_relu_of_slope_one_is_redundant():
    assert certify(Many([lambda x: F.leaky_relu(x, 1.0)]), X).num_redundant == 1
