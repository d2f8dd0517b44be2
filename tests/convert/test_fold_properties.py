"""Properties that hold for every layer and fusion, tried on examples that hypothesis draws."""

import copy
import math
import sys
from dataclasses import FrozenInstanceError, asdict
from itertools import cycle
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pnnh import layers
from pnnh._errors import RunError, UsageError
from pnnh.certify import certify
from pnnh.convert import fuse
from pnnh.convert.affine import Affine, Chain, norm_map, widened
from pnnh.convert.fold import fold_all, folded
from pnnh.layers.block import block_coders

SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
ODD = st.sampled_from([1, 3, 5])
CODERS = [layers.LearnedCoder(), layers.FrozenDirac(), layers.FrozenOrthogonal(), layers.PerLayerCoder()]


class Drawn(NamedTuple):
    """A stage of any form and geometry with norms that have seen something, float64, and images that fit it."""

    net: nn.Module
    images: torch.Tensor
    stream: int
    stride: int
    options: layers.PlainOptions


@st.composite
def stages(draw):
    groups = draw(st.sampled_from([1, 1, 2]))
    options = layers.PlainOptions(
        coder=draw(st.sampled_from(CODERS)),
        gain=draw(st.floats(0.05, 2)),
        shift=draw(st.floats(-1, 1)),
        kernel_size=draw(st.sampled_from([1, 3, 5])),
        coder_kernel_size=draw(st.sampled_from([1, 3])),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        padding_mode=draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
        act=draw(st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.SiLU])),
        learns=(learns := draw(st.integers(1, 3))),
    )
    form = draw(st.sampled_from([layers.AlternatingStage, layers.PipelinedStage]))
    num_layers = draw(st.sampled_from([2, 4, 6] if form is layers.AlternatingStage and learns == 1 else [2, 3, 5]))
    stream, learner = (groups * draw(st.integers(1, 4)) for _ in range(2))
    torch.manual_seed(draw(st.integers(0, 99)))
    stride = draw(st.integers(1, 2))
    net = form(draw(st.integers(1, 3)), stream, learner, num_layers, stride=stride, options=options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 2)
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
            module.num_batches_tracked.fill_(1)
        if isinstance(module, (layers.Learn, layers.CoderConv)):
            nn.init.normal_(module.bias if isinstance(module, layers.CoderConv) else module.shift)
    height, width = (draw(st.integers(9, 12)) for _ in range(2))  # reflection needs more than its padding
    chans = net.transition.learner[0].in_channels
    images = torch.randn(2, chans, height, width, dtype=torch.float64)
    return Drawn(net.double().eval(), images, stream, stride, options)


def convolved(x, kernel, *, stride=1, dilation=1, groups=1, padding_mode="zeros"):
    """The convolution as it is defined: each output is the sum over one patch of its group's channels."""
    size, around = kernel.shape[-1], dilation * (kernel.shape[-1] // 2)
    x = F.pad(x, (around,) * 4, "constant" if padding_mode == "zeros" else padding_mode)
    sides = [(length - 2 * around - 1) // stride + 1 for length in x.shape[2:]]
    patches = F.unfold(x, size, dilation=dilation, stride=stride).unflatten(1, (groups, -1))
    rows = kernel.flatten(1).unflatten(0, (groups, -1))
    return torch.einsum("bgin,goi->bgon", patches, rows).flatten(1, 2).unflatten(2, sides)


def per_channel(value):
    return value[:, None, None]


def normed(norm, y):
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    scale = norm.weight / (var + norm.eps).sqrt()
    return (y - per_channel(mean)) * per_channel(scale) + per_channel(norm.bias)


def by_definition(drawn):
    """What the stage returns, from its equations and its weights."""
    net, options, act = drawn.net, drawn.options, drawn.options.act()
    geometry = {name: getattr(options, name) for name in ("dilation", "groups", "padding_mode")}
    kernels = cycle([coder.weight for coder in net.coders])

    def learned(conv, norm, y, **more):
        return act(normed(norm, convolved(y, conv.weight, **geometry | more)))

    def written(write, f, c):
        return act(c + convolved(f, next(kernels), **geometry) + per_channel(write.conv.bias))

    f, c = (
        learned(half[0], half[1], drawn.images, groups=1, stride=drawn.stride)
        for half in (net.transition.learner, net.transition.stream)
    )
    if isinstance(net, layers.AlternatingStage):
        for layer in net.layers:
            if isinstance(layer, layers.Write):
                c = written(layer, f, c)
            else:
                read = f if isinstance(layer, layers.Deepen) else c
                f, c = learned(layer.conv, layer.norm, read), act(c + per_channel(layer.shift))
        return c
    *both, last = net.layers
    for layer in both:
        f, c = learned(layer.conv, layer.norm, c), written(layer.write, f, c)
    return written(last, f, c)


def close(ours, expected):
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max().clamp(min=1)


@settings(max_examples=30, **SLOW)
@given(drawn=stages(), training=st.booleans())
def test_a_stage_is_its_equations_and_so_are_its_gradients(drawn, training):
    drawn.net.train(training)
    inputs = [drawn.images.requires_grad_(), *drawn.net.parameters()]
    out, expected = drawn.net(drawn.images), by_definition(drawn)
    close(out, expected)
    towards = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad((value * towards).sum(), inputs) for value in (out, expected))
    for one, other in zip(ours, theirs, strict=True):
        close(one, other)


@settings(max_examples=40, **SLOW)
@given(drawn=stages())
def test_a_stage_has_its_shape_and_folds_to_an_equal_chain(drawn):
    net, x, stream, stride, _ = drawn
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        out = net(x)
        chain, structured = folded(net, "chain"), folded(net, "structured")
        side = [-(-length // stride) for length in x.shape[2:]]
        assert out.shape == (2, stream, *side)
        largest = out.abs().max().clamp(min=1)
        assert (chain(x) - out).abs().max() <= 1e-9 * largest
        assert (structured(x) - out).abs().max() <= 1e-9 * largest
    assert all(isinstance(module, (nn.Conv2d, nn.ReLU, nn.LeakyReLU, nn.SiLU)) for module in chain)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@settings(max_examples=4, **SLOW)
@given(drawn=stages())
def test_every_stage_is_plain(drawn):
    net, x, *_ = drawn
    kinds = (layers.Write, layers.Learn) if isinstance(net, layers.AlternatingStage) else (layers.Write,)
    certificate = certify(net.float(), x.float())
    assert certificate.plain
    assert certificate.depth == 1 + sum(isinstance(module, kinds) for module in net.modules())


@settings(max_examples=15, **SLOW)
@given(
    drawn=stages(), form=st.sampled_from(["chain", "structured"]), dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_fuse_proves_itself_inside_any_net(drawn, form, dtype):
    stage, x, stream, *_ = drawn
    last = nn.BatchNorm2d(3)
    nn.init.normal_(last.running_mean), nn.init.uniform_(last.running_var, 0.3, 2)
    last.num_batches_tracked.fill_(1)
    net = nn.Sequential(stage, nn.Sequential(nn.Conv2d(stream, 3, 3, padding=1), last, nn.ReLU())).to(dtype).eval()
    expected = net(x.to(dtype))
    fused = fuse(net, x.to(dtype), form=form)
    assert fused.fusion.relative_error <= 1e-9
    assert fused.fusion.folded == ("0", "1")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert {p.dtype for p in fused.parameters()} == {dtype}
    scale = expected.abs().max().clamp(min=1)
    assert (fused(x.to(dtype)) - expected).abs().max() <= (1e-9 if dtype == torch.float64 else 1e-3) * scale
    assert torch.equal(net(x.to(dtype)), expected)


@settings(max_examples=25, **SLOW)
@given(
    out=st.integers(1, 4),
    affine=st.booleans(),
    biased=st.booleans(),
    eps=st.floats(1e-6, 1e-1),
    seed=st.integers(0, 99),
)
def test_a_folded_norm_is_the_norm(out, affine, biased, eps, seed):
    torch.manual_seed(seed)
    conv, norm = nn.Conv2d(2, out, 3, bias=biased).double(), nn.BatchNorm2d(out, eps=eps, affine=affine).double().eval()
    nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.01, 2)
    if affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    scale, shift = norm_map(norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    made = Affine(0, conv.weight.detach(), None if conv.bias is None else conv.bias.detach()).scaled(scale, shift)
    ours = nn.functional.conv2d(x, made.kernel, made.bias)
    torch.testing.assert_close(ours, norm(conv(x)).detach(), rtol=1e-11, atol=1e-11)


@settings(max_examples=25, **SLOW)
@given(side=ODD, more=st.integers(0, 2), chans=st.integers(1, 3))
def test_a_dirac_changes_nothing_and_a_widened_kernel_is_the_same(side, more, chans):
    torch.manual_seed(0)
    x, kernel = torch.randn(2, chans, 7, 6).double(), torch.randn(chans, chans, side, side).double()
    whole = Chain(chans).part(0, chans).kernel
    assert torch.equal(F.conv2d(x, widened(whole, side), padding="same"), x)
    expected = F.conv2d(x, kernel, padding="same")
    torch.testing.assert_close(F.conv2d(x, widened(kernel, side + 2 * more), padding="same"), expected)


class Blocks(nn.Module):
    """Transformer blocks [B, T, D] -> [B, T, D] of any shape, float64, with weights that are not those of the start."""

    def __init__(self, dim, num_heads, depth, num_tokens, choice, **kwargs):
        super().__init__()
        options = layers.BlockOptions()
        self.blocks = nn.ModuleList(
            layers.PlainBlock(dim, num_heads, depth=depth, num_tokens=num_tokens, options=options, **kwargs)
            for _ in range(depth)
        )
        self.coders = block_coders(layers.BlockOptions(coder=choice), dim, depth)
        for value in (*self.parameters(), *self.buffers()):
            nn.init.normal_(value, std=0.5)
        self.double().eval()

    def coded(self):
        return zip(self.blocks, cycle(self.coders), strict=False)

    def forward(self, x):
        for block, coder in self.coded():
            x = block(x, coder)
        return x


@st.composite
def transformers(draw):
    """Blocks, tokens for them and the activation of their MLPs."""
    torch.manual_seed(draw(st.integers(0, 99)))
    num_heads, depth, num_tokens = (draw(st.integers(1, 3)) for _ in range(3))
    dim, act = num_heads * draw(st.integers(1, 3)), draw(st.sampled_from([nn.GELU, nn.ReLU, nn.SiLU]))
    ratio, choice = draw(st.sampled_from([3, 4])), draw(st.sampled_from(CODERS))
    net = Blocks(dim, num_heads, depth, num_tokens, choice, mlp_ratio=ratio, act=act)
    return net, torch.randn(2, num_tokens, dim, dtype=torch.float64), act()


def blocks_by_definition(net, x, act):
    """What the blocks return: one token, one head at a time."""

    def layer_norm(norm, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias

    def attended(attn, x, coder):
        width = x.shape[-1] // attn.num_heads
        joined = x @ torch.cat([attn.qkv.weight, coder.value]).T + attn.qkv.bias
        queries, keys, values = (part.split(width, -1) for part in joined.chunk(3, -1))
        mixed = []
        for q, k, v, diagonal in zip(queries, keys, values, attn.diagonal, strict=True):
            shares = (q @ k.mT / math.sqrt(width) + diagonal * torch.eye(x.shape[1], dtype=x.dtype)).exp()
            mixed.append(shares / shares.sum(-1, keepdim=True) @ v)
        return torch.cat(mixed, -1) @ coder.output.T + attn.proj.bias

    def thought(mlp, z, coder):
        own, code = mlp.fc1.bias.split([len(mlp.fc1.weight), len(coder.encode)])
        learned = act(z @ mlp.fc1.weight.T + own) @ mlp.fc2.weight.T
        return learned + act(z @ coder.encode.T + code) @ coder.decode.T + mlp.fc2.bias

    for index, block in enumerate(net.blocks):
        coder = net.coders[index % len(net.coders)]
        x = attended(block.attn, layer_norm(block.norm1, x), coder)
        x = thought(block.mlp, layer_norm(block.norm2, x), coder)
    return x


@settings(max_examples=12, **SLOW)
@given(drawn=transformers(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_blocks_are_their_equations_and_fold_to_equal_ones_without_a_coder(drawn, dtype):
    net, x, act = drawn
    with torch.no_grad():
        expected = blocks_by_definition(net, x, act)
        close(net(x), expected)
        fused = fuse(net.to(dtype), x.to(dtype))
        assert fused.fusion.relative_error <= 1e-9
        assert fused.fusion.folded == ("",)
        assert not list(fused.coders.parameters())
        assert {p.dtype for p in fused.parameters()} == {dtype}
        if dtype == torch.float64:
            close(fused(x), expected)


def test_the_cost_of_a_fusion_is_that_of_one_image():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
    norm.num_batches_tracked.fill_(1), nn.init.normal_(norm.running_mean)
    fusion = fuse(nn.Sequential(conv, norm).eval(), torch.randn(5, 2, 4, 6)).fusion
    assert fusion.macs_before == fusion.macs_after == 3 * 2 * 9 * 4 * 6
    assert (fusion.parameters_before, fusion.parameters_after) == (54 + 3 + 6, 54 + 3)
    figures = {row["figure"]: row["value"] for row in fusion.rows()}
    assert figures == {key: value for key, value in asdict(fusion).items() if key not in ("folded", "left")}
    with pytest.raises(FrozenInstanceError):
        fusion.argmax = 1.0


def conv_and_norm():
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)).double()
    chain[1].num_batches_tracked.fill_(1), nn.init.normal_(chain[1].running_mean)
    return chain.eval()


def test_a_norm_folds_only_into_a_convolution_right_before_it():
    norm, x = conv_and_norm()[1], torch.randn(2, 2, 6, 6).double()
    chain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), norm, nn.Conv2d(3, 3, 1), nn.ReLU()).double().eval()
    with pytest.raises(UsageError, match="nothing to fold"):
        fuse(chain, x)
    chain.insert(4, copy.deepcopy(norm))
    kinds = [type(module) for module in fuse(chain, x)]
    assert kinds == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.Conv2d, nn.Identity, nn.ReLU]  # numbers stay


@pytest.mark.parametrize("error", [1e-8, float("nan")])
def test_a_fusion_that_changes_the_function_is_refused(monkeypatch, error):
    def off(net, form, pairs):
        done = fold_all(net, form)
        done.parts, done.net[0].weight.data = ["0"], done.net[0].weight.data * (1 + error)
        return done

    monkeypatch.setattr(sys.modules["pnnh.convert.fuse"], "fold_all", off)
    with pytest.raises(RunError, match=r"fusing changed the function: relative error .* in float64 \(limit 1e-09\)"):
        fuse(conv_and_norm(), torch.randn(2, 2, 4, 4).double())


@pytest.mark.parametrize("form", ["chain", "structured"])
def test_a_layer_with_two_activations_does_not_fold(form):
    stage = layers.AlternatingStage(3, 4, 2, 2).eval()
    stage.transition.stream[2] = nn.SiLU()
    with pytest.raises(UsageError, match=r"the activations ReLU\(inplace=True\), SiLU\(\) does not fold"):
        folded(stage, form)


def test_the_limit_of_the_proof_is_allowed(monkeypatch):
    net, x = conv_and_norm(), torch.randn(2, 2, 4, 4).double()
    error = fuse(net, x).fusion.relative_error
    monkeypatch.setattr(sys.modules["pnnh.convert.fuse"], "TOLERANCE", error)
    assert fuse(net, x).fusion.relative_error == error


@pytest.mark.parametrize("batches", [0, 1])
@pytest.mark.parametrize("mean", [0.0, 0.5])
@pytest.mark.parametrize("var", [1.0, 2.0])
def test_only_a_norm_at_its_initial_values_has_seen_nothing(batches, mean, var):
    net, x = conv_and_norm(), torch.randn(2, 2, 4, 4).double()
    net[1].num_batches_tracked.fill_(batches), net[1].running_mean.fill_(mean), net[1].running_var.fill_(var)
    if (batches, mean, var) == (0, 0.0, 1.0):
        with pytest.raises(UsageError, match=r"^1: this norm has never seen data"):
            fuse(net, x)
    else:
        assert fuse(net, x).fusion.folded == ("",)


class Drawing(nn.Module):
    """Token numbers [B, H, W] -> [B, 3, H, W]. Its own `fuse` is no business of ours."""

    def __init__(self):
        super().__init__()
        self.colour, self.net = nn.Embedding(9, 2).double(), conv_and_norm()

    def forward(self, tokens):
        return self.net(self.colour(tokens).permute(0, 3, 1, 2))

    def fuse(self):
        pytest.fail("called")


def test_a_net_that_reads_integers_and_has_a_fuse_of_its_own():
    fused = fuse(Drawing().eval(), torch.randint(0, 9, (2, 4, 4)))
    assert fused.fusion.folded == ("net",)


def test_what_cannot_be_folded_is_left_and_named_by_its_place():
    options = layers.PlainOptions(norm=lambda channels: nn.GroupNorm(1, channels))
    stage, x = layers.AlternatingStage(3, 4, 2, 2, options=options).eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(UsageError, match=r"nothing to fold.*AlternatingStage is left: GroupNorm cannot be folded"):
        fuse(stage, x)
    fused = fuse(nn.Sequential(stage, nn.Sequential(*conv_and_norm_of(4))).eval(), x)
    assert fused.fusion.folded == ("1",)
    (left,) = fused.fusion.left
    assert left[0] == "0"
    assert "GroupNorm cannot be folded" in left[1]
    assert type(fused[0]) is layers.AlternatingStage


def conv_and_norm_of(channels):
    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked.fill_(1), nn.init.normal_(norm.running_mean)
    return nn.Conv2d(channels, channels, 3, padding=1), norm
