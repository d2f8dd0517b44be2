"""Plain Vision Transformers: sizes against timm's ViT, what timm offers of ViTs alone, plainness, the comparison."""

import pytest
import timm
import torch

from pnnh import certify, diagnose
from pnnh.cost import cost
from pnnh.layers import BlockOptions, LearnedCoder
from pnnh.models import CutSkipVit, PlainVit, PnnhVit
from pnnh.models.registry import MODELS, family_of
from pnnh.train import Muon, Recipe
from pnnh.train.groups import param_groups

SPECS = [name for name in MODELS if "_vit_" in name]
TEST = [name for name in SPECS if "test" in name]
SMALL = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def residual(**kwargs):
    return timm.create_model("vit_tiny_patch16_224", global_pool="avg", class_token=False, **kwargs)


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


# As timm's


@pytest.mark.parametrize("name", SPECS)
def test_registered_and_built(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, in_chans=1, depth=1)
    assert isinstance(model, family_of(name))
    side = timm.get_pretrained_cfg(name).input_size[-1]
    assert model(torch.empty(1, 1, side, side, device="meta")).shape == (1, 7)


@pytest.mark.parametrize("name", TEST)
def test_tokens_before_the_patches(name):
    """What timm offers of ViTs alone: prefix tokens beside the maps, DINO's call, pooling by the class token."""
    model = timm.create_model(name, class_token=True).eval()
    x = torch.randn(2, 3, 16, 16)
    features, between = model.forward_intermediates(x)
    ((patches, prefix),) = model.forward_intermediates(
        x, indices=[2], output_fmt="NLC", norm=True, return_prefix_tokens=True, intermediates_only=True
    )
    torch.testing.assert_close(torch.cat([prefix, patches], 1), features)
    (last,) = model.get_intermediate_layers(x, 1, reshape=True)
    torch.testing.assert_close(last, between[2])
    model.reset_classifier(3, "token")
    assert model(x).shape == (2, 3)
    model.prune_intermediate_layers([0])
    assert len(model.blocks) == 1


def test_init_weights_starts_anew():
    for net in (PnnhVit(**SMALL), CutSkipVit(**SMALL)):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(7.0)
        net.init_weights()
        kept = [name for name, p in net.named_parameters() if (p == 7).all() and "patch_embed" not in name]
        assert not kept


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
    assert strict.num_activations == 9  # a block: the product of queries and keys, softmax, GELU


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
