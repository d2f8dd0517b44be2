"""Exact conversion: residual nets of every kind the codes cover, in both forms; costs; refusals; the memory planner."""

import copy

import pytest
import torch
from torch import nn

import pnnh.models  # noqa: F401
from pnnh._errors import UsageError
from pnnh.certify import certify
from pnnh.convert import convert
from pnnh.convert.affine import centred
from pnnh.cost import measure_cost, plan_memory


def with_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random, non-trivial norm statistics, scales and shifts; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
            module.num_batches_tracked.fill_(1)
    return model.eval()


class Block(nn.Module):
    """A residual block; `pre`: norm and activation first. Strided blocks project."""

    def __init__(self, width, out, stride, act, pre, groups=1, pooled=False):
        super().__init__()
        self.pre = pre
        self.norm0 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, groups=groups)
        self.norm2 = nn.BatchNorm2d(out)
        self.act0, self.act1, self.act2 = act(width), act(out), act(out)
        down = [nn.AvgPool2d(2), nn.Conv2d(width, out, 1)] if pooled else [nn.Conv2d(width, out, 1, stride)]
        self.short = nn.Sequential(*down, nn.BatchNorm2d(out)) if stride > 1 else nn.Identity()

    def forward(self, x):
        if self.pre:
            return self.conv2(self.act1(self.norm1(self.conv1(self.act0(self.norm0(x)))))) + self.short(x)
        return self.act2(self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x))))) + self.short(x))


class Net(nn.Module):
    def __init__(self, act, pre=False, pool=False, **block):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), act(4))
        self.pool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()
        self.blocks = nn.Sequential(Block(4, 4, 1, act, pre, **block), Block(4, 6, 2, act, pre, **block))
        self.tail = nn.Sequential(nn.BatchNorm2d(6), act(6)) if pre else nn.Identity()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))

    def forward(self, x):
        return self.head(self.tail(self.blocks(self.pool(self.stem(x)))))


ACTS = {
    "relu": lambda width: nn.ReLU(inplace=True),
    "leaky relu": lambda width: nn.LeakyReLU(0.2),
    "prelu": lambda width: nn.PReLU(width, init=0.3),
    "gelu": lambda width: nn.GELU(),
    "gelu (tanh)": lambda width: nn.GELU("tanh"),
    "silu": lambda width: nn.SiLU(),
    "hard-swish": lambda width: nn.Hardswish(),
}
EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


CASES = [*((act, "dense") for act in ACTS), ("leaky relu", "structured"), ("gelu", "structured")]


@pytest.mark.parametrize(("act", "form"), CASES)
def test_every_activation_with_a_lossless_code(act, form):
    model = with_statistics(Net(ACTS[act]))
    twin, report = convert(model, EXAMPLE, form=form)
    assert report.joins == 2
    assert report.agreement.relative_error <= 1e-12
    assert report.certificate.plain
    with torch.no_grad():
        torch.testing.assert_close(twin(EXAMPLE[:1]), model(EXAMPLE[:1]), rtol=1e-4, atol=1e-5)  # a batch never seen


GEOMETRIES = [{"pre": True}, {"pool": True}, {"pooled": True}, {"groups": 2}]


@pytest.mark.parametrize(("kind", "form"), [*((kind, "dense") for kind in GEOMETRIES), ({"pre": True}, "structured")])
def test_geometries(kind, form):
    _, report = convert(with_statistics(Net(ACTS["relu"], **kind)), EXAMPLE, form=form)
    assert report.agreement.relative_error <= 1e-12
    assert report.certificate.plain


def test_structured_twin_has_the_sources_parameters_names_and_macs():
    model = with_statistics(Net(ACTS["relu"]))
    twin, report = convert(model, EXAMPLE)
    twin.load_state_dict(model.state_dict())
    assert report.after.num_params == report.before.num_params
    assert report.after.macs == report.before.macs


def test_dense_twin_is_a_bare_chain_and_costs_what_the_dry_run_says():
    model = with_statistics(Net(ACTS["relu"]))
    twin, report = convert(model, EXAMPLE, form="dense")
    allowed = (nn.Conv2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)
    assert all(isinstance(layer, allowed) for layer in twin)
    assert measure_cost(twin, EXAMPLE) == report.after
    nothing, dry = convert(model, EXAMPLE, form="dense", dry_run=True)
    assert nothing is None
    assert dry.after == report.after
    # conv1 of the first block makes 4 features and 4 carried channels, conv2 reads both: 4 -> 8 -> 4
    assert [tuple(conv.weight.shape[:2]) for conv in twin if isinstance(conv, nn.Conv2d)][1:3] == [(8, 4), (4, 8)]


def test_option_a_shortcuts_convert_in_the_structured_form():
    import timm

    model = with_statistics(timm.create_model("cifar_resnet_tiny"))
    _, report = convert(model, torch.randn(2, 3, 16, 16))
    assert report.joins == 3
    assert report.agreement.relative_error <= 1e-12


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        query, key, value = self.qkv(self.norm1(x)).unsqueeze(1).chunk(3, -1)
        x = x + nn.functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        return x + self.mlp(self.norm2(x))


def test_transformer_mlp_sublayers_convert_and_the_dense_form_says_why_not():
    example = torch.randn(2, 5, 8)
    _, report = convert(Transformer().eval(), example)
    assert report.agreement.relative_error <= 1e-12
    assert [carry.code for carry in report.carries] == ["gelu"]
    with pytest.raises(UsageError, match="use the structured form"):
        convert(Transformer().eval(), example, form="dense")


class Wrapped(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.conv, self.body = nn.Conv2d(3, 3, 3, padding=1), body

    def forward(self, x):
        return self.body(self.conv(x), x)


REFUSED = {
    "gate": (lambda y, x: x + y.relu() * y.mean((2, 3), keepdim=True).sigmoid().relu(), "a gate multiplies"),
    "concatenation": (lambda y, x: torch.cat([y.relu(), x], 1), "only sums are converted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_reason(name):
    body, reason = REFUSED[name]
    with pytest.raises(UsageError, match=reason):
        convert(Wrapped(body), EXAMPLE)


def test_relu6_has_no_code_of_its_own():
    model = Net(lambda width: nn.ReLU6()).eval()
    _, report = convert(model, EXAMPLE)
    assert {carry.code for carry in report.carries} == {"relu"}
    with pytest.raises(UsageError, match="losslessly"):
        convert(model, EXAMPLE, form="dense")


def test_unknown_form_is_refused():
    with pytest.raises(UsageError, match="choose structured or dense"):
        convert(Net(ACTS["relu"]), EXAMPLE, form="wide")


@pytest.mark.parametrize(
    ("size", "padding", "dilation", "groups"), [(3, 1, 1, 1), (3, 0, 1, 2), (2, 0, 1, 1), (3, 2, 2, 1)]
)
def test_centred_kernel_is_the_same_convolution(size, padding, dilation, groups):
    weight = torch.randn(4, 4 // groups, size, size, dtype=torch.float64)
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    expected = nn.functional.conv2d(x, weight, padding=padding, dilation=dilation, groups=groups)
    kernel = centred(weight, padding, dilation, groups)
    found = nn.functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
    side = expected.shape[-1]  # the same outputs, and more at the far border where there is less padding
    torch.testing.assert_close(found[..., :side, :side], expected)


def test_memory_of_a_chain_is_two_buffers_and_of_a_residual_block_three():
    chain = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) if i % 2 == 0 else nn.ReLU() for i in range(8)])

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.chain = chain

        def forward(self, x):
            x = self.chain[1](self.chain[0](x))
            return self.chain[3:](self.chain[2](x)) + x

    x = torch.randn(1, 4, 8, 8)
    plan, residual = plan_memory(chain, x), plan_memory(Residual(), x)
    assert (plan.peak_buffers, residual.peak_buffers) == (2, 3)
    assert plan.peak_bytes == 2 * 4 * 4 * 8 * 8
    assert certify(chain, x).plain
    assert not certify(Residual(), x).plain


@pytest.mark.parametrize("form", ["structured", "dense"])
def test_a_twin_owns_its_weights_and_its_copies_refuse_other_sizes_too(form):
    model = with_statistics(Net(ACTS["relu"]))
    twin, _ = convert(model, EXAMPLE, form=form)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
    for net in (twin, copy.deepcopy(twin)):
        with pytest.raises(UsageError, match=r"converted for inputs of 3x16x16, not 3x24x24; convert the source again"):
            net(torch.randn(2, 3, 24, 24))


class OptionA(nn.Module):
    """The shortcut of He et al.'s CIFAR ResNets: every second pixel, channels of zeros on both sides."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.norm, self.linear = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        short = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = (self.norm(self.conv2(self.conv1(x).relu())) + short).relu()
        return self.linear(nn.functional.avg_pool2d(x, x.shape[-1]).flatten(1))


def test_option_a_shortcuts_become_a_bare_chain():
    model = with_statistics(OptionA())
    twin, report = convert(model, EXAMPLE, form="dense")
    assert report.agreement.relative_error <= 1e-12
    kinds = [type(layer).__name__ for layer in twin]
    assert kinds == ["Conv2d", "ReLU"] * 3 + ["AdaptiveAvgPool2d", "Flatten", "Linear"]
    channels = [layer.out_channels for layer in twin if isinstance(layer, nn.Conv2d)]
    assert channels == [4, 8 + 4, 8]  # the shortcut's four channels cross beside the eight features
    torch.testing.assert_close(twin(EXAMPLE), model(EXAMPLE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [1, -1, 0.5])
@pytest.mark.parametrize("form", ["structured", "dense"])
def test_scaled_sums_and_nets_that_end_in_images(form, alpha):
    torch.manual_seed(0)
    model = Wrapped(lambda y, x: torch.add(y.relu(), x, alpha=alpha))
    twin, report = convert(model.eval(), EXAMPLE, form=form)
    assert report.agreement.relative_error <= 1e-12
    torch.testing.assert_close(twin(EXAMPLE), model(EXAMPLE), rtol=1e-4, atol=1e-5)
