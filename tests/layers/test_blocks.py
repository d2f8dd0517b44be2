"""The layers of plain Transformers: their equations, the exact start, the coder's choices, the rival's start."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pnnh.layers import (
    BlockOptions,
    CuttingTheSkip,
    FrozenDirac,
    FrozenOrthogonal,
    LearnedCoder,
    PerLayerCoder,
    PlainAttention,
    PlainMlp,
    block_coders,
)
from pnnh.layers.attention import CoderLinear, JointLinear, diagonal_bias
from pnnh.layers.mlp import pair_encoder_, second_moment
from pnnh.models import CutSkipVit, PnnhVit
from pnnh.train.groups import param_groups

SMALL = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# The equations


def test_attention_is_one_softmax_of_the_biased_logits():
    d, heads = 8, 2
    attention = PlainAttention(d, heads, diagonal=1.5)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    x, v, o = torch.randn(3, 5, d), torch.randn(d, d), torch.randn(d, d)
    wq, wk = attention.qkv.weight.chunk(2)
    bq, bk, bv = attention.qkv.bias.chunk(3)
    heads_of = lambda t: t.view(3, 5, heads, d // heads).transpose(1, 2)  # noqa: E731
    q, k, value = heads_of(x @ wq.T + bq), heads_of(x @ wk.T + bk), heads_of(x @ v.T + bv)
    logits = q @ k.transpose(-1, -2) / math.sqrt(d // heads) + attention.diagonal.view(heads, 1, 1) * torch.eye(5)
    mixed = (logits.softmax(-1) @ value).transpose(1, 2).reshape(3, 5, d)
    torch.testing.assert_close(attention(x, v, o), mixed @ o.T + attention.proj.bias)


def test_mlp_is_code_plus_learner_through_one_activation():
    d = 4
    mlp = PlainMlp(d, 3 * d, gain=1.0)
    for parameter in mlp.parameters():
        nn.init.normal_(parameter)
    z, e, back = torch.randn(2, 3, d), torch.randn(2 * d, d), torch.randn(d, 2 * d)
    b_learner, b_code = mlp.fc1.bias.split([d, 2 * d])
    expected = F.gelu(z @ mlp.fc1.weight.T + b_learner) @ mlp.fc2.weight.T + F.gelu(z @ e.T + b_code) @ back.T
    torch.testing.assert_close(mlp(z, e, back), expected + mlp.fc2.bias)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Hardswish()])
def test_the_pair_code_loses_nothing(act):
    encode = pair_encoder_(torch.empty(12, 6, dtype=torch.float64))
    z = torch.randn(50, 6, dtype=torch.float64)
    torch.testing.assert_close(act(z @ encode.T) @ encode, z)


@pytest.mark.parametrize(("tokens", "depth", "mixing"), [(16, 12, 2.0), (197, 48, 0.5)])
def test_at_the_start_attention_keeps_what_was_solved_for(tokens, depth, mixing):
    """With O V = I and queries of 0 a token becomes (1 - a) itself + a / (T - 1) of every other."""
    d, away = 8, 1 - math.exp(-mixing / depth)
    attention = PlainAttention(d, 2, diagonal=diagonal_bias(tokens, depth, mixing)).double()
    (coder,) = block_coders(BlockOptions(), d, 1)
    coder.double().reset_parameters()
    x = torch.randn(2, tokens, d, dtype=torch.float64)
    others = (x.sum(1, keepdim=True) - x) / (tokens - 1)
    torch.testing.assert_close(attention(x, coder.value, coder.output), (1 - away) * x + away * others)


def test_token_variance_at_the_start_does_not_depend_on_the_depth():
    """Of its ratio to the mean token exp(-2 mixing T / (T - 1)) is left at the end, whatever the depth."""
    left = {}
    for depth in (6, 24):
        torch.manual_seed(0)
        options = BlockOptions(mixing=1.0, writing=1e-6)
        net = PnnhVit(**SMALL | {"img_size": 16, "depth": depth}, options=options)
        tokens = net.embed(torch.randn(4, 3, 16, 16))
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        spread = lambda t: t.var(1, correction=0).sum() / t.mean(1).square().sum()  # noqa: E731
        before = spread(tokens)
        for block, coder in net.coded():
            tokens = block(tokens, coder)
        left[depth] = (spread(tokens) / before).item()
    assert left == pytest.approx({6: math.exp(-2 * 16 / 15), 24: math.exp(-2 * 16 / 15)}, rel=0.2)


def test_one_token_needs_no_bias_and_impossible_mixing_is_refused():
    assert diagonal_bias(1, 12, 2.0) == 0
    with pytest.raises(ValueError, match="mixing -1 must be above 0"):
        diagonal_bias(16, 12, -1)


# The rival's start


def test_cutting_the_skip_has_its_properties():
    start = CuttingTheSkip(alpha=2.0, beta=0.6, c=3.0)
    block = CutSkipVit(**SMALL, start=start).blocks[0]
    queries, keys, values = block.attn.qkv.weight.chunk(3)
    eye = torch.eye(32)
    for square in (values, block.attn.proj.weight):
        torch.testing.assert_close(square @ square.T, 9 * eye, rtol=1e-4, atol=1e-4)
    for linear, side in ((block.mlp.fc1, 32), (block.mlp.fc2, 32)):
        weight = linear.weight if linear.weight.shape[1] == side else linear.weight.T
        torch.testing.assert_close(weight.T @ weight, 4 * eye, rtol=1e-4, atol=1e-4)
    torch.manual_seed(3)
    left, right = start.logits(torch.empty(32, 32))  # full rank: exactly alpha Z + beta I
    torch.manual_seed(3)
    torch.testing.assert_close(left.T @ right, 2 * torch.randn(32, 32) / 32**0.5 + 0.6 * eye, rtol=1e-3, atol=1e-4)
    assert (queries[:16].T @ keys[:16]).diagonal().mean() > 0
    assert not any(layer.bias.any() for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2))


# Coders


def test_coder_choices():
    counts = {}
    for choice in (LearnedCoder(0.5), FrozenOrthogonal(), FrozenDirac(), PerLayerCoder()):
        net = PnnhVit(**SMALL, options=BlockOptions(coder=choice))
        counts[type(choice)] = sum(p.numel() for p in net.parameters())
        groups = {group["name"]: group for group in param_groups(net, 0.05)}
        assert ("scaled" in groups) == isinstance(choice, LearnedCoder)
        if isinstance(choice, LearnedCoder):
            assert groups["scaled"]["lr_scale"] == 0.5
            assert groups["scaled"]["weight_decay"] == 0
            assert net.no_weight_decay() >= {f"coders.0.{name}" for name in ("value", "output", "encode", "decode")}
    one = 6 * 32**2
    assert counts[LearnedCoder] - counts[FrozenDirac] == one
    assert counts[FrozenOrthogonal] == counts[FrozenDirac]
    assert counts[PerLayerCoder] - counts[LearnedCoder] == 2 * one
    with pytest.raises(ValueError, match="none of LearnedCoder"):
        PnnhVit(**SMALL, options=BlockOptions(coder="learned"))


def test_the_shared_coder_learns_more_slowly_the_deeper_the_net():
    rates = {depth: block_coders(BlockOptions(), 4, depth)[0].lr_scale for depth in (1, 12, 48)}
    assert block_coders(BlockOptions(coder=LearnedCoder(0.5)), 4, 12)[0].lr_scale == 0.5
    assert rates[12] == pytest.approx(4 * rates[48])
    assert rates[1] == 1


def test_a_joint_linear_is_seen_by_hooks_and_flop_counters():
    net, seen = PnnhVit(**SMALL), []
    for module in net.modules():
        if isinstance(module, (JointLinear, CoderLinear)):
            module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    net(torch.randn(1, 3, 8, 8))
    assert len(seen) == 4 * 3


def test_a_start_that_blocks_do_not_have_is_refused_and_the_others_are_used():
    with pytest.raises(ValueError, match="start 'he' of the coder must be one of orthogonal, dirac"):
        block_coders(BlockOptions(coder=LearnedCoder(start="he")), 4, 2)
    (coder,) = block_coders(BlockOptions(coder=LearnedCoder(start="dirac")), 4, 2)
    assert torch.equal(coder.value, torch.eye(4))
    (coder,) = block_coders(BlockOptions(), 4, 2)
    torch.testing.assert_close(coder.output @ coder.value, torch.eye(4), atol=1e-5, rtol=0)
    assert not torch.equal(coder.value, torch.eye(4))


@pytest.mark.parametrize(
    ("act", "moment"), [(nn.ReLU, 0.5), (nn.Identity, 1.0), (nn.GELU, 1 / 3 + 3**0.5 / 6 / math.pi)]
)
def test_the_learner_of_an_mlp_starts_at_its_gain_whatever_the_activation(act, moment):
    assert second_moment(act()) == pytest.approx(moment, abs=1e-6)
    mlp = PlainMlp(64, 64 * 8, gain=0.7, act=act)
    learned = F.linear(mlp.act(F.linear(torch.randn(500, 64), mlp.fc1.weight)), mlp.fc2.weight)
    assert learned.std().item() == pytest.approx(0.7, rel=0.05)
