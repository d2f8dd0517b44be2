"""The rivals are what their papers say: kernels, slopes, folds and penalties against independent computations."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from pnnh.convert import fuse
from pnnh.models.rivals.diracnet import DiracStage, dirac_conv
from pnnh.models.rivals.isonet import IsoConv, ShiftedReLU, isometry_gap
from pnnh.models.rivals.repvgg import RepVggStage
from pnnh.models.rivals.tat import TailoredReLU, cosine_map, delta_orthogonal_, tailored_slope
from pnnh.train import Recipe, load_data, param_groups
from pnnh.train.run import Run


def test_a_dirac_kernel_is_a_identity_plus_b_normalised_weight():
    """W_hat = diag(a) I + diag(b) W_norm, element by element, for a square, a widening and a narrowing convolution."""
    torch.manual_seed(0)
    for inside, outside in ((3, 3), (2, 5), (5, 2)):
        conv = dirac_conv(inside, outside)
        dirac = conv.parametrizations.weight[0]
        with torch.no_grad():
            dirac.a.uniform_(0.5, 2)
            dirac.b.uniform_(0.5, 2)
        raw = conv.parametrizations.weight.original
        for o in range(outside):
            row = dirac.b[o] * raw[o] / raw[o].square().sum().sqrt()
            if o < inside:
                row = row + dirac.a[o] * F.pad(torch.eye(inside)[o].view(-1, 1, 1), (1, 1, 1, 1))
            torch.testing.assert_close(conv.weight[o], row)


def test_diracnet_starts_near_the_identity_and_halves_by_pooling():
    stage = DiracStage(4, 4, 2, stride=2).eval()
    with torch.no_grad():
        for layer in (stage[1], stage[2]):
            layer[0].parametrizations.weight[0].b.zero_()
    x = torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(stage(x), F.max_pool2d(x, 2), rtol=1e-4, atol=1e-4)


def test_dirac_scales_are_not_decayed_and_the_kernel_is():
    groups = {group["name"]: len(group["params"]) for group in param_groups(dirac_conv(3, 3), 5e-4)}
    assert groups == {"decay": 1, "no_decay": 2}


def test_repvgg_is_the_sum_of_three_branches_and_folds_to_one_convolution():
    torch.manual_seed(0)
    stage = RepVggStage(3, 4, 2, stride=2)
    for norm in (module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -1, 1), nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2), nn.init.normal_(norm.bias)
        norm.num_batches_tracked += 1
    x = torch.randn(2, 3, 8, 8)
    first, second = stage.eval()
    assert first.identity is None
    a = F.relu(first.conv_kxk(x) + first.conv_1x1(x))
    b = F.relu(second.conv_kxk(a) + second.conv_1x1(a) + second.identity(a))
    torch.testing.assert_close(stage(x), b)
    fused = fuse(nn.Sequential(stage).eval(), x)
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == 2
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(x), b, rtol=1e-4, atol=1e-5)


def gaussian_cosine(c: float, slope: float) -> float:
    """E[phi(x) phi(y)] / E[phi(x)^2] for standard Gaussians of correlation c, by a midpoint rule over the plane."""
    grid = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    x, z = torch.meshgrid(grid, grid, indexing="ij")
    weight = torch.exp(-(x**2 + z**2) / 2)
    phi = torch.where(x > 0, x, slope * x)
    y = c * x + math.sqrt(1 - c * c) * z
    return ((phi * torch.where(y > 0, y, slope * y) * weight).sum() / (phi**2 * weight).sum()).item()


@pytest.mark.parametrize(("c", "slope"), [(0.0, 0.0), (0.0, 0.45), (0.7, 0.2), (-0.4, 0.6)])
def test_the_cosine_map_is_the_gaussian_integral(c, slope):
    assert cosine_map(c, slope) == pytest.approx(gaussian_cosine(c, slope), abs=2e-5)


@pytest.mark.parametrize(("num_layers", "slope"), [(19, 0.1644), (55, 0.4519), (109, 0.5856)])
def test_tailored_slope_is_the_golden_one_and_meets_the_condition(num_layers, slope):
    """Solved here by Newton's method on the composed map with a = tan(t) and the Gaussian form of the bend."""
    assert tailored_slope(num_layers) == pytest.approx(slope, abs=1e-4)

    def after(a):
        angle = torch.tensor(math.pi / 2, dtype=torch.float64)  # the map of the angle between two inputs
        for _ in range(num_layers):
            bend = (torch.sin(angle) - angle * torch.cos(angle)) / math.pi
            angle = torch.acos(torch.cos(angle) + (1 - 2 * a / (1 + a * a)) * bend)
        return torch.cos(angle)

    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for _ in range(8):
        gap = after(a) - 0.9
        (slope_of_gap,) = torch.autograd.grad(gap, a)
        a = (a - gap / slope_of_gap).detach().clamp(0.01, 0.99).requires_grad_()
    assert tailored_slope(num_layers) == pytest.approx(a.item(), abs=1e-9)


def test_two_layers_of_relu_stay_below_eta_and_an_impossible_eta_is_refused():
    assert tailored_slope(2) == 0
    with pytest.raises(ValueError, match=r"eta 1.0 must be in \(0, 1\)"):
        tailored_slope(8, 1.0)


def test_a_tailored_net_keeps_the_moment_and_reaches_the_cosine():
    """Square layers, 1x1 images: the second moment stays 1, orthogonal inputs end at cosine 0.9 after 55 layers."""
    torch.manual_seed(0)
    act = TailoredReLU(tailored_slope(55))
    x = math.sqrt(256) * torch.eye(256)[:8]
    for _ in range(55):
        kernel = delta_orthogonal_(torch.empty(256, 256, 3, 3))
        x = act(x @ kernel[:, :, 1, 1].T)
    assert x.square().mean().item() == pytest.approx(1, abs=0.4)
    cosines = F.cosine_similarity(x[:, None], x[None], dim=2)[torch.ones(8, 8).triu(1).bool()]
    assert cosines.mean().item() == pytest.approx(0.9, abs=0.03)


def test_delta_orthogonal_kernels_are_out_first_and_keep_moments_when_widening():
    """The layout [out, in, k, k]: with O > I the columns of the centre are orthogonal, with O < I its rows."""
    wide, narrow = (delta_orthogonal_(torch.empty(*shape, 3, 3)) for shape in ((8, 4), (4, 8)))
    torch.testing.assert_close(wide[:, :, 1, 1].T @ wide[:, :, 1, 1], 2 * torch.eye(4))
    torch.testing.assert_close(narrow[:, :, 1, 1] @ narrow[:, :, 1, 1].T, torch.eye(4))
    assert wide.count_nonzero() == 32
    layers_last = delta_orthogonal_(torch.empty(8, 4, 3, 3).to(memory_format=torch.channels_last))
    torch.testing.assert_close(layers_last[:, :, 1, 1].T @ layers_last[:, :, 1, 1], 2 * torch.eye(4))


def test_shifted_relu_is_a_maximum():
    act = ShiftedReLU(2)
    with torch.no_grad():
        act.b.copy_(torch.tensor([-1.0, 0.5]))
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(act(x), torch.maximum(x, act.b.view(-1, 1, 1)))


@pytest.mark.parametrize("shape", [(4, 4), (8, 4), (4, 8)])
def test_isometry_gap_is_zero_for_a_dirac_and_for_no_other(shape):
    kernel = nn.init.dirac_(torch.empty(*shape, 3, 3))
    assert isometry_gap(kernel) == 0
    assert isometry_gap(2 * kernel) == pytest.approx(4 * 9 / 2)  # |4 I - I|^2 / 2 over four channels
    assert isometry_gap(kernel.flip(0)) == 0
    assert isometry_gap(kernel + 0.1) > 0


def test_an_isometric_kernel_keeps_the_length_of_an_image():
    """The penalty's zero means what it says: minimise it near a Dirac, then compare |conv(x)| with |x|."""
    torch.manual_seed(0)
    kernel = (nn.init.dirac_(torch.empty(3, 3, 3, 3)) + 0.1 * torch.randn(3, 3, 3, 3)).requires_grad_()
    optimizer = torch.optim.Adam([kernel], lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        isometry_gap(kernel).backward()
        optimizer.step()
    x = F.pad(torch.randn(2, 3, 6, 6), (4, 4, 4, 4))
    assert F.conv2d(x, kernel, padding=2).norm().item() == pytest.approx(x.norm().item(), rel=1e-3)


def test_the_penalty_of_a_layer_is_minimised_but_not_reported():
    torch.manual_seed(0)
    data = load_data("digits", image_size=8, limit=64)
    recipe = Recipe(epochs=1, batch_size=32)
    runs = []
    for gamma in (0.0, 10.0):
        torch.manual_seed(1)
        model = timm.create_model("cifar_isonet_tiny", in_chans=1, gamma=gamma)
        conv = next(module for module in model.modules() if isinstance(module, IsoConv))
        with torch.no_grad():
            conv.weight.add_(0.05)
        run = Run(model, data, recipe, 0, torch.device("cpu"))
        before = isometry_gap(conv.weight).item()
        run.advance()
        runs.append((run.loss_sum.item(), isometry_gap(conv.weight).item() / before))
    (loss, without), (same, charged) = runs
    assert loss == pytest.approx(same)
    assert charged < without
