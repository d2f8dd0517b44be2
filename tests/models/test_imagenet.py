"""The ImageNet-shaped nets: sizes beside timm's ResNets (on the meta device); what is their own, on small twins."""

import pytest
import timm
import torch

import pnnh.models  # noqa: F401
from pnnh import certify
from pnnh.convert import fuse
from pnnh.cost import cost, count_params

TEST = ("pnnh_resnet_test", "plain_resnet_test")
DEPTHS = (18, 34, 50)


def on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize(("depth", "most"), [(18, 0.561), (34, 0.51), (50, 0.56)])
def test_pnnh_has_about_half_of_the_residual_twins_parameters_and_no_more_compute(depth, most):
    ours, theirs = (cost(on_meta(name), (3, 224, 224)) for name in (f"pnnh_resnet{depth}", f"resnet{depth}"))
    assert ours.num_params <= most * theirs.num_params
    assert ours.macs <= 0.91 * theirs.macs


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_plain_twin_is_the_residual_net_without_its_shortcuts(depth):
    """Counted: timm's net less its projections has the plain twin's parameters, layer shape by layer shape."""
    twin, plain = on_meta(f"resnet{depth}"), on_meta(f"plain_resnet{depth}")
    kernels = sorted(tuple(p.shape) for n, p in twin.named_parameters() if p.ndim == 4 and "downsample" not in n)
    assert kernels == sorted(tuple(p.shape) for p in plain.parameters() if p.ndim == 4)
    projections = sum(p.numel() for n, p in twin.named_parameters() if "downsample" in n)
    assert count_params(plain) == count_params(twin) - projections


@pytest.mark.parametrize("depth", DEPTHS)
def test_features_are_those_of_the_residual_twin(depth):
    ours = on_meta(f"pnnh_resnet{depth}")
    assert ours.depth == depth
    theirs = timm.create_model(f"resnet{depth}", features_only=True).feature_info
    assert [info["reduction"] for info in ours.feature_info] == theirs.reduction()
    if depth < 50:
        assert [info["num_chs"] for info in ours.feature_info] == theirs.channels()
    assert ours(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)


@pytest.mark.parametrize("name", TEST)
def test_the_first_feature_is_the_stem_and_dropout_is_before_the_classifier(name):
    model = timm.create_model(name, num_classes=7, drop_rate=0.5).eval()
    x = torch.randn(2, 3, 64, 96)
    _, between = model.forward_intermediates(x)
    torch.testing.assert_close(between[0], model.stem(x))
    assert model(x).shape == (2, 7)
    assert not torch.equal(model.train()(x), model(x)), "no dropout"
    assert len(timm.create_model(name, features_only=True, out_indices=(0, 2)).model.stages) == 2
    with pytest.raises(ValueError, match="at least 32"):
        model(x[:, :, :31])


def test_global_pool_is_timms():
    model = timm.create_model("pnnh_resnet_test", global_pool="max").eval()
    x = torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    pooled = model.head.norm(features).amax((2, 3))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)


@pytest.mark.parametrize("name", TEST)
def test_plain_by_certificate_before_and_after_fusing(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    model(torch.randn(8, 3, 64, 64))
    model.eval()
    x = torch.randn(2, 3, 64, 64)
    assert certify(model, x).plain
    fused = fuse(model, x)
    assert certify(fused, x).plain
    torch.testing.assert_close(fused(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("classes", "channels"), [(1000, 3), (10, 3), (10, 1)])
def test_the_narrow_residual_twin_has_the_parameters_of_the_pnnh_net(classes, channels):
    def size(name):
        with torch.device("meta"):
            return count_params(timm.create_model(name, num_classes=classes, in_chans=channels))

    assert size("residual_resnet18_narrow") == pytest.approx(size("pnnh_resnet18"), rel=0.03)
    assert size("residual_resnet18") == size("plain_resnet18") + 2 * 512


def test_the_residual_twin_is_timms_net_without_projections():
    """The same 3x3 kernels; its shortcuts have no parameters, and a norm stands before the pooling."""
    twin, ours = on_meta("resnet18"), on_meta("residual_resnet18")
    kernels = sorted(tuple(p.shape) for n, p in twin.named_parameters() if p.ndim == 4 and "downsample" not in n)
    assert kernels == sorted(tuple(p.shape) for p in ours.parameters() if p.ndim == 4)
    net = timm.create_model("residual_resnet_test")
    assert all(torch.allclose(block.norm2.weight, torch.tensor(0.3)) for stage in net.stages for block in stage)
