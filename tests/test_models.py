"""The CIFAR family: published sizes of the twins, parameters of ours, plainness, the fused form."""

from functools import partial

import pytest
import timm
import torch
from torch import nn

import pnnh.models.imagenet_registry  # noqa: F401
from pnnh.layers import PlainOptions
from pnnh.models import layers_per_stage
from pnnh.models.registry import FAMILIES, SPECS, family_of

TINY = [name for name in SPECS if name.endswith("tiny")]
NO_NORM = ("cifar_isonet_tiny", "cifar_tatnet_tiny")  # nothing to fold


def num_params(name, **kwargs):
    return sum(p.numel() for p in timm.create_model(name, **kwargs).parameters())


@pytest.mark.parametrize("name", [*TINY, "pnnh_resnet110", *(f"{family}20" for family in FAMILIES)])
def test_shaped(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, in_chans=1).eval()
        assert isinstance(model, family_of(name))
        assert model(torch.empty(1, 1, 8, 9)).shape == (1, 7)


def test_registered():
    assert len(SPECS) == len(FAMILIES) * 6


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_published_sizes(depth, millions):
    """He et al. 2015, table 6, to its two digits."""
    for family in ("plain_resnet", "cifar_resnet"):
        assert num_params(f"{family}{depth}") / 1e6 == pytest.approx(millions, abs=0.03 if depth == 110 else 0.006)
    assert num_params(f"plain_resnet{depth}") == num_params(f"cifar_resnet{depth}")


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_pnnh_has_about_half_the_parameters(depth):
    assert num_params(f"pnnh_resnet{depth}") <= 0.56 * num_params(f"cifar_resnet{depth}")


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
def test_inference_mode_is_the_form_that_fuse_makes(name):
    """A fused net's weights load by name into the registry's inference form and give the same logits."""
    from pnnh.convert import fuse

    torch.manual_seed(0)
    model = timm.create_model(name)
    model(torch.randn(8, 3, 16, 16))
    fused = fuse(model.eval())
    again = timm.create_model(name, inference_mode=True)
    again.load_state_dict(fused.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again(x), fused(x))
    torch.testing.assert_close(again(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["pnnh_resnet_tiny", "pnnh_resnet_test"])
def test_the_norm_of_the_layers_is_the_norm_of_the_head(name):
    net = timm.create_model(name, options=PlainOptions(norm=partial(nn.GroupNorm, 1)))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in (*net.stages.modules(), *net.head.modules()))
    assert isinstance(net.head.norm, nn.GroupNorm)
