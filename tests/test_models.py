"""Every registered net keeps timm's contract; the twins have the published sizes. The registry is the list of cases."""

import pytest
import timm
import torch

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
    assert all(timm.is_model(name) for name in SPECS)
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


@pytest.mark.parametrize("name", TINY)
def test_model_api(name):
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, 16, 16)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 4, 4)
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    final, between = model.forward_intermediates(x)
    torch.testing.assert_close(final, features)
    assert [tuple(t.shape[1:]) for t in between] == [
        (i["num_chs"], 16 // i["reduction"], 16 // i["reduction"]) for i in model.feature_info
    ]
    only = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(only[0], between[1])
    assert model.get_classifier().out_features == 10
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0, "")
    assert model(x).shape == features.shape
    model.reset_classifier(5, "avg")
    assert model.prune_intermediate_layers([0]) == [0]
    assert model(x).shape[1] == model.num_features == model.feature_info[0]["num_chs"]


@pytest.mark.parametrize("name", TINY)
def test_features_only(name):
    model = timm.create_model(name, features_only=True, out_indices=(0, 2))
    shapes = [tuple(t.shape) for t in model(torch.randn(1, 3, 16, 16))]
    assert shapes == [(1, 4, 16, 16), (1, 16, 4, 4)]


@pytest.mark.parametrize("name", TINY)
def test_checkpointing_changes_nothing(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    x = torch.randn(4, 3, 16, 16)
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_every_parameter_gets_a_gradient_and_one_group():
    from timm.models import group_parameters

    for name in TINY:
        model = timm.create_model(name)
        model(torch.randn(4, 3, 16, 16)).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        for coarse in (True, False):
            grouped = group_parameters(model, model.group_matcher(coarse=coarse))
            names = sorted(n for group in grouped.values() for n in group)
            assert names == sorted(n for n, _ in model.named_parameters())


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
