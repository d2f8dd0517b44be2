"""The CIFAR family: published sizes of the twins, equal sizes where they are promised, plainness, the fused form."""

from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from pnnh import certify
from pnnh.cost import count_params
from pnnh.layers import PlainOptions
from pnnh.models import cifar, layers_per_stage
from pnnh.models.registry import CIFAR_NETS, DEPTHS, MODELS, family_of

TINY = [name for name in MODELS if "_tiny" in name and "vit" not in name]
NO_NORM = ("cifar_isonet_tiny", "cifar_tatnet_tiny")  # nothing to fold
TWINS = ("same_block", "narrow", "short", "shared")


def num_params(name, **kwargs):
    with torch.device("meta"):
        return count_params(timm.create_model(name, **kwargs))


@pytest.mark.parametrize("name", [*TINY, "pnnh_resnet110", *(family.format(20) for family in CIFAR_NETS)])
def test_shaped(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, in_chans=1).eval()
        assert isinstance(model, family_of(name))
        assert model(torch.empty(1, 1, 8, 9)).shape == (1, 7)


def test_every_family_has_every_depth():
    assert {family.format(size) for family in CIFAR_NETS for size in (*DEPTHS, "_tiny")} <= set(MODELS)
    assert set(DEPTHS) == {20, 32, 38, 44, 56, 110}


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_published_sizes(depth, millions):
    """He et al. 2015, table 6, to its two digits; the norm before the pooling adds 128 parameters."""
    published = num_params(f"cifar_resnet{depth}_2015")
    assert published / 1e6 == pytest.approx(millions, abs=0.03 if depth == 110 else 0.006)
    assert num_params(f"plain_resnet{depth}") == num_params(f"cifar_resnet{depth}") == published + 128


@pytest.mark.parametrize("depth", DEPTHS)
def test_pnnh_has_about_half_the_parameters(depth):
    assert num_params(f"pnnh_resnet{depth}") <= 0.56 * num_params(f"cifar_resnet{depth}")


def test_pnnh_of_depth_38_is_as_large_as_the_residual_net_of_depth_20():
    assert num_params("pnnh_resnet38") == pytest.approx(num_params("cifar_resnet20"), rel=0.002)


@pytest.mark.parametrize(("classes", "channels"), [(10, 3), (100, 3), (10, 1)])
@pytest.mark.parametrize("depth", DEPTHS)
def test_the_narrow_twin_has_the_parameters_of_the_pnnh_net(depth, classes, channels):
    choices = {"num_classes": classes, "in_chans": channels}
    ours, theirs = (num_params(name.format(depth), **choices) for name in ("pnnh_resnet{}", "cifar_resnet{}_narrow"))
    assert theirs == pytest.approx(ours, rel=0.03)


def test_the_narrow_twins_widths_are_the_known_ones():
    assert [cifar.narrow_widths(depth) for depth in (20, 56)] == [(12, 23, 46), (11, 22, 44)]
    assert [num_params(f"cifar_resnet{depth}_narrow") for depth in (20, 56)] == [140_689, 404_381]


@pytest.mark.parametrize("depth", [14, *DEPTHS])
def test_the_short_twin_has_the_depth_with_the_nearest_number_of_parameters(depth):
    ours = num_params("pnnh_resnet20", depth=depth)
    short = timm.create_model("cifar_resnet20_short", depth=depth)
    sizes = {other: num_params("cifar_resnet20", depth=other) for other in range(8, depth + 7, 6)}
    assert short.depth == min(sizes, key=lambda other: abs(sizes[other] - ours))
    assert count_params(short) == sizes[short.depth]


def test_the_short_twins_depths_are_the_known_ones():
    assert [cifar.short_depth(depth) for depth in (20, 38, 56)] == [14, 20, 26]
    assert [num_params(f"cifar_resnet{depth}_short") for depth in (20, 56)] == [172_634, 367_066]


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_twin_of_the_same_block_lacks_only_the_shifts(depth):
    ours = timm.create_model(f"pnnh_resnet{depth}")
    shifts = sum(p.numel() for name, p in ours.named_parameters() if name.endswith(".shift"))
    assert num_params(f"cifar_resnet{depth}_same_block") == count_params(ours) - shifts


def test_the_twin_of_the_same_block_differs_in_the_activations_of_the_stream_only():
    """With shifts of 0 they change nothing: what is written is positive. With shifts below 0 they do."""
    torch.manual_seed(0)
    ours = timm.create_model("pnnh_resnet_tiny", depth=20).eval()
    twin = timm.create_model("cifar_resnet_tiny_same_block", depth=20).eval()
    twin.stem.load_state_dict(ours.stem.state_dict()), twin.head.load_state_dict(ours.head.state_dict())
    for there, here in zip(ours.stages, twin.stages, strict=True):
        here.transition.load_state_dict(there.transition.state_dict())
        here.coders.load_state_dict(there.coders.state_dict())
        learners = [layer for layer in there.layers if hasattr(layer, "shift")]
        for layer, copy in zip(learners, [layer for group in here.learners for layer in group], strict=True):
            copy[0].load_state_dict(layer.conv.state_dict()), copy[1].load_state_dict(layer.norm.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(twin(x), ours(x))
    for name, parameter in ours.named_parameters():
        if name.endswith(".shift"):
            nn.init.constant_(parameter, -0.3)
    assert (twin(x) - ours(x)).abs().max() > 0.01


def test_the_sharing_twin_owns_one_second_convolution_a_stage_and_computes_as_if_each_block_did():
    torch.manual_seed(0)
    net = timm.create_model("cifar_resnet_tiny_shared", depth=20).eval()
    alone = timm.create_model("cifar_resnet_tiny", depth=20).eval()
    for stage in net.stages:
        assert len({id(block.conv2.weight) for block in stage}) == 1
        assert len({id(block.norm2.weight) for block in stage}) == len(stage) == 3
    alone.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(net(x), alone(x))
    second = sum(9 * width**2 * 2 for width in (4, 8, 16))  # two of three kernels saved, a stage
    assert count_params(net) == count_params(alone) - second
    scaled = timm.create_model("cifar_resnet_tiny_shared", lr_scale=0.5)
    assert len(scaled.no_weight_decay()) == 3


def test_residual_blocks_start_at_a_third_and_he_et_als_at_one():
    for name, start in (("cifar_resnet_tiny", 0.3), ("cifar_resnet_tiny_2015", 1.0)):
        net = timm.create_model(name)
        scales = torch.cat([block.norm2.weight for stage in net.stages for block in stage])
        torch.testing.assert_close(scales, torch.full_like(scales, start))
        assert isinstance(getattr(net.head, "norm", None), nn.BatchNorm2d) == (start < 1)
    block = timm.create_model("cifar_resnet_tiny").stages[1][0].eval()
    x = torch.rand(1, 4, 8, 8)
    h = block.norm2(block.conv2(F.relu(block.norm1(block.conv1(x)))))
    passed = torch.cat([x[:, :, ::2, ::2], torch.zeros(1, 4, 4, 4)], 1)
    torch.testing.assert_close(block(x), F.relu(h + passed))


@pytest.mark.parametrize("name", TINY)
def test_a_net_is_plain_exactly_if_it_has_no_shortcut(name):
    residual = "cifar_resnet" in name
    model = timm.create_model(name, depth=14 if residual else 8).eval()  # at 8 no stream skips anything: one write
    assert certify(model, torch.randn(2, 3, 16, 16)).plain != residual


def test_no_weight_decay_names_the_coders():
    model = timm.create_model("pnnh_resnet_tiny")
    assert model.no_weight_decay() == {f"stages.{i}.coders.0.weight" for i in range(3)}
    assert timm.create_model("cifar_resnet_tiny").no_weight_decay() == set()


def test_bad_depth_size_and_options():
    with pytest.raises(ValueError, match=r"depth 21 must be 6n \+ 2.*nearest is 20"):
        layers_per_stage(21)
    with pytest.raises(ValueError, match="at least 8"):
        timm.create_model("pnnh_resnet_tiny")(torch.zeros(1, 3, 7, 8))
    with pytest.raises(ValueError, match="learner_ratio 0 must be above 0"):
        timm.create_model("pnnh_resnet_tiny", learner_ratio=0)
    with pytest.raises(TypeError):
        timm.create_model("pnnh_resnet_tiny", shortcut=True)


def test_the_plain_nets_have_no_shortcut_and_the_residual_has():
    """Zero every convolution after the stem: a plain chain forgets its input, option-A shortcuts carry it on."""
    outputs = {}
    for name in ("plain_resnet_tiny", "cifar_resnet_tiny"):
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        for path, module in model.named_modules():
            if isinstance(module, torch.nn.Conv2d) and not path.startswith("stem"):
                torch.nn.init.zeros_(module.weight)
        a, b = model.forward_features(torch.randn(2, 3, 16, 16))
        outputs[name] = (a - b).abs().sum().item()
    assert outputs["plain_resnet_tiny"] == 0
    assert outputs["cifar_resnet_tiny"] > 0


@pytest.mark.parametrize("name", [name for name in TINY if name not in NO_NORM])
def test_a_fused_net_gives_the_same_logits_and_its_weights_load_into_a_fresh_one(name):
    from pnnh.convert.fuse import as_fused, fuse

    torch.manual_seed(0)
    model = timm.create_model(name)
    model(torch.randn(8, 3, 16, 16))
    fused = fuse(model.eval())
    again = as_fused(timm.create_model(name), "structured")
    again.load_state_dict(fused.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again(x), fused(x))
    torch.testing.assert_close(again(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["pnnh_resnet_tiny", "pnnh_resnet_test"])
def test_the_norm_of_the_layers_is_the_norm_of_the_head(name):
    net = timm.create_model(name, options=PlainOptions(norm=partial(nn.GroupNorm, 1)))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in (*net.stages.modules(), *net.head.modules()))
    assert isinstance(net.head.norm, nn.GroupNorm)


def test_the_norm_before_the_pooling_can_be_left_out():
    assert num_params("cifar_resnet_tiny") - num_params("cifar_resnet_tiny", head_norm=False) == 2 * 16
