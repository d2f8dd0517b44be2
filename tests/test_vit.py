"""Plain Vision Transformers: equations, the exact start, timm's contract, sizes against timm's ViT, plainness."""

import json
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from pnnh import certify, diagnose
from pnnh._cost import cost
from pnnh._errors import UsageError
from pnnh.cli import main
from pnnh.layers import (
    BlockCoder,
    BlockOptions,
    CuttingTheSkip,
    FrozenDirac,
    FrozenOrthogonal,
    LearnedCoder,
    PerLayerCoder,
    PlainAttention,
    PlainMlp,
)
from pnnh.layers.attention import CoderLinear, JointLinear, diagonal_bias
from pnnh.layers.mlp import pair_encoder_
from pnnh.models import CutSkipVit, PlainVit, PnnhVit
from pnnh.models.vit_registry import SPECS, family_of
from pnnh.recipes import Cell, TransformerComparison, transformer_recipe
from pnnh.train import Muon, Recipe, load_data
from pnnh.train.groups import param_groups

TEST = [name for name in SPECS if "test" in name]
SMALL = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def residual(**kwargs):
    return timm.create_model("vit_tiny_patch16_224", global_pool="avg", class_token=False, **kwargs)


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
    attention, coder = PlainAttention(d, 2, diagonal=diagonal_bias(tokens, depth, mixing)).double(), BlockCoder(d)
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


def test_init_weights_starts_anew():
    for net in (PnnhVit(**SMALL), CutSkipVit(**SMALL)):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(7.0)
        net.init_weights()
        kept = [name for name, p in net.named_parameters() if (p == 7).all() and "patch_embed" not in name]
        assert not kept


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
    rates = {depth: BlockOptions().choice(depth).lr_scale for depth in (1, 12, 48)}
    assert rates[12] == pytest.approx(4 * rates[48])
    assert rates[1] == 1


def test_a_joint_linear_is_seen_by_hooks_and_flop_counters():
    net, seen = PnnhVit(**SMALL), []
    for module in net.modules():
        if isinstance(module, (JointLinear, CoderLinear)):
            module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    net(torch.randn(1, 3, 8, 8))
    assert len(seen) == 4 * 3


# Sizes


@pytest.mark.parametrize(
    ("width", "heads", "depth"), [(96, 3, 12), (96, 3, 48), (192, 3, 12), (384, 6, 12), (768, 12, 12)]
)
def test_half_the_parameters_at_the_residual_twins_macs(width, heads, depth):
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": heads, "num_classes": 10}
    with torch.device("meta"):
        ours = PnnhVit(**sizes)
        twin = residual(**sizes)
    inside = lambda net: sum(p.numel() for n, p in net.named_parameters() if n.startswith(("blocks", "coders", "norm")))  # noqa: E731
    assert inside(ours) <= 0.56 * inside(twin)
    assert cost(ours, (3, 32, 32)).macs == pytest.approx(cost(twin, (3, 32, 32)).macs, rel=0.03)


def test_the_plain_twin_is_the_residual_one_without_its_additions():
    twin, plain = residual(**SMALL), PlainVit(**SMALL)
    plain.load_state_dict(twin.state_dict())
    x = torch.randn(2, 3, 8, 8)
    tokens = twin._pos_embed(twin.patch_embed(x))
    for block in twin.blocks:
        tokens = block.mlp(block.norm2(block.attn(block.norm1(tokens))))
    torch.testing.assert_close(plain(x), twin.forward_head(twin.norm(tokens)))


# timm's contract


@pytest.mark.parametrize("name", SPECS)
def test_registered_and_built(name):
    assert timm.is_model(name)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, in_chans=1, depth=1)
    assert isinstance(model, family_of(name))
    side = timm.get_pretrained_cfg(name).input_size[-1]
    assert model(torch.empty(1, 1, side, side, device="meta")).shape == (1, 7)


@pytest.mark.parametrize("name", TEST)
def test_model_api(name):
    model = timm.create_model(name, class_token=True).eval()
    x = torch.randn(2, 3, 16, 16)
    features = model.forward_features(x)
    assert features.shape == (2, 17, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    final, between = model.forward_intermediates(x)
    torch.testing.assert_close(final, features)
    assert [tuple(t.shape) for t in between] == [(2, 32, 4, 4)] * 3
    (only,) = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(only, between[1])
    ((patches, prefix),) = model.forward_intermediates(
        x, indices=[2], output_fmt="NLC", norm=True, return_prefix_tokens=True, intermediates_only=True
    )
    torch.testing.assert_close(torch.cat([prefix, patches], 1), features)
    (last,) = model.get_intermediate_layers(x, 1, reshape=True)
    torch.testing.assert_close(last, between[2])
    assert model.get_classifier().out_features == 10
    model.reset_classifier(3, "token")
    assert model(x).shape == (2, 3)
    model.reset_classifier(0, "avg")
    assert model(x).shape == (2, 32)
    assert model.prune_intermediate_layers([0]) == [0]
    assert len(model.blocks) == 1
    assert model(x).shape == (2, 17, 32)


@pytest.mark.parametrize("name", TEST)
def test_features_only(name):
    model = timm.create_model(name, features_only=True, out_indices=(0, 2))
    assert [tuple(t.shape) for t in model(torch.randn(1, 3, 16, 16))] == [(1, 32, 4, 4)] * 2


@pytest.mark.parametrize("name", TEST)
def test_checkpointing_changes_nothing_and_every_parameter_learns(name):
    model, x = timm.create_model(name), torch.randn(4, 3, 16, 16)
    grads = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TEST)
def test_layer_groups_name_every_parameter_once(name):
    from timm.models import group_parameters

    model = timm.create_model(name)
    grouped = group_parameters(model, model.group_matcher())
    assert sorted(n for names in grouped.values() for n in names) == sorted(n for n, _ in model.named_parameters())


def test_any_image_size_with_a_resampled_position_table():
    free = PnnhVit(**SMALL, dynamic_img_size=True).eval()
    assert free(torch.randn(1, 3, 20, 12)).shape == (1, 5)
    from timm.models.vision_transformer import checkpoint_filter_fn

    larger = PnnhVit(**SMALL | {"img_size": 16})
    larger.load_state_dict(checkpoint_filter_fn(free.state_dict(), larger))
    fixed = PnnhVit(**SMALL)
    fixed.set_input_size((16, 16))
    assert fixed(torch.randn(1, 3, 16, 16)).shape == (1, 5)


def test_it_compiles_without_a_graph_break():
    net, x = PnnhVit(**SMALL).eval(), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


def test_a_saved_net_comes_back_bit_by_bit(tmp_path):
    from safetensors.torch import load_model, save_model

    net = PnnhVit(**SMALL).eval()
    save_model(net, tmp_path / "net.safetensors")
    again = PnnhVit(**SMALL).eval()
    load_model(again, tmp_path / "net.safetensors")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again(x), net(x), rtol=0, atol=0)


# Plainness and diagnosis


@pytest.mark.parametrize("net", [PnnhVit, PlainVit])
def test_certified_plain(net):
    found = certify(net(**SMALL).eval(), torch.randn(2, 3, 8, 8))
    assert found.plain
    assert found.traced_by == "export"
    assert found.num_activations == found.depth == 3


def test_the_residual_twin_is_not_plain_and_strictness_counts_softmax():
    x = torch.randn(2, 3, 8, 8)
    assert not certify(residual(**SMALL).eval(), x).plain
    strict = certify(PnnhVit(**SMALL).eval(), x, strict=True)
    assert strict.plain
    assert strict.num_activations == 6


def test_diagnosed():
    rows = diagnose(PnnhVit(**SMALL), torch.randn(16, 3, 8, 8), draws=2, pictures=0).rows()
    assert [row["op"] for row in rows] == ["gelu"] * 3
    assert [row["layer"] for row in rows] == [f"blocks.{i}.mlp.act" for i in range(3)]


# Bad requests


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 3}, "patch_size 3 must divide img_size 8"),
        ({"num_heads": 5}, "num_heads 5 must divide embed_dim 32"),
        ({"depth": 0}, "depth 0 must be at least 1"),
        ({"global_pool": "token"}, "needs class_token=True"),
        ({"mlp_ratio": 2.0}, "mlp_ratio above 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PnnhVit(**SMALL | change)


def test_images_that_do_not_fit_are_refused():
    for net in (PnnhVit(**SMALL), PlainVit(**SMALL)):
        with pytest.raises(
            ValueError, match=r"16x16 px make 16 tokens, the position table is for 4 \(8x8 px\); build with"
        ):
            net(torch.zeros(1, 3, 16, 16))
        with pytest.raises(ValueError, match=r"10x8 px: the patch size \(4, 4\) must divide both sides"):
            net(torch.zeros(1, 3, 10, 8))


def test_there_is_nothing_to_drop_a_path_from():
    with pytest.raises(TypeError, match="PnnhVit takes no drop_path_rate"):
        PnnhVit(**SMALL, drop_path_rate=0.1)


# The comparison


def test_the_comparison_builds_four_equal_nets():
    plan = TransformerComparison("digits", Recipe(epochs=1), depths=(3,), width=32)
    data = load_data("digits")
    macs = set()
    for cell in plan.cells():
        net, spec = plan.build(cell, data)
        macs.add(cost(net, (1, 16, 16)).macs)
        again = timm.create_model(spec["name"], **spec["kwargs"])
        assert [p.shape for p in again.parameters()] == [p.shape for p in net.parameters()]
        assert plan.recipe_of(cell).optimizer.lr == (3e-4 if cell.method == "skip_init" else plan.recipe.optimizer.lr)
    assert plan.recipe_of(Cell("pnnh", 48, 0)).optimizer.lr == pytest.approx(plan.recipe.optimizer.lr / 4)
    assert plan.recipe_of(Cell("residual", 48, 0)).optimizer.lr == plan.recipe.optimizer.lr
    assert len(plan.cells()) == 4
    assert len(macs) == 1
    recipe = transformer_recipe(data, epochs=2)
    assert (recipe.grad_clip, recipe.schedule.warmup_epochs, recipe.epochs) == (1.0, 1.0, 2)
    with pytest.raises(UsageError, match="width 40 must be a multiple of 32"):
        TransformerComparison("digits", Recipe(), width=40)
    with pytest.raises(UsageError, match="patch 5 must divide the image size, 16"):
        TransformerComparison("digits", Recipe(), patch=5, image_size=16)
    with pytest.raises(UsageError, match="depth 2 must be at least 3"):
        TransformerComparison("digits", Recipe(), depths=(2,))
    with pytest.raises(UsageError, match="choose from residual, plain, pnnh, skip_init"):
        TransformerComparison("digits", Recipe(), methods=("diracnet",))


def test_the_command_trains_the_second_family(tmp_path):
    sizes = "--family vit --depths 3 --width 32 --patch 4 --image-size 8 --limit 64 --epochs 1 --methods pnnh"
    assert main(["compare", *sizes.split(), "--device", "cpu", "--jobs", "1", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    settings = results["settings"]
    assert (settings["family"], settings["width"], settings["patch"]) == ("vit", 32, 4)
    assert settings["recipe"]["optimizer"]["type"] == "AdamW"
    assert [row["method"] for row in results["rows"]] == ["pnnh"]


def test_muon_moves_every_parameter_and_the_coder_less():
    recipe = Recipe(optimizer=Muon(lr=0.01))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    net = PnnhVit(**SMALL, options=BlockOptions(coder=LearnedCoder(lr_scale=0.5)))
    before = {name: p.clone() for name, p in net.named_parameters()}
    groups = param_groups(net, 0.0)
    optimizer = recipe.optimizer.build(groups)
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    moved = {name: (p - before[name]).square().mean().sqrt().item() for name, p in net.named_parameters()}
    assert all(moved.values())
    assert moved["coders.0.value"] == pytest.approx(0.5 * moved["blocks.0.mlp.fc1.weight"], rel=0.25)
