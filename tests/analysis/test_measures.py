"""Measures against independent implementations."""

import math

import numpy
import piq
import pytest
import torch

from pnnh.analysis import measures
from pnnh.analysis.decoder import Decoder, Pairs, Targets, sketch


def test_cka_against_a_sum_over_quadruples():
    """Unbiased HSIC is the mean over all ordered (i, j, q, r) without repeats of k_ij (l_ij + l_qr - 2 l_iq)."""
    from itertools import permutations

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 5, generator=generator), torch.randn(6, 3, generator=generator)
    y = y + x[:, :3]
    k, lat = measures.gram(x), measures.gram(y)
    terms = [k[i, j] * (lat[i, j] + lat[q, r] - 2 * lat[i, q]) for i, j, q, r in permutations(range(6), 4)]
    assert measures.hsic(k, lat).item() == pytest.approx((sum(terms) / len(terms)).item(), rel=1e-9)


def test_cka_against_the_feature_space_form():
    """Debiased linear CKA without any Gram matrix (Kornblith et al. 2019, appendix), in numpy."""
    generator = numpy.random.default_rng(0)
    x = generator.normal(size=(40, 9)) + 3
    y = numpy.tanh(x[:, :5] - 3) + 0.5 * generator.normal(size=(40, 5))

    def product(a, b):
        a, b, n = a - a.mean(0), b - b.mean(0), len(a)
        rows = (a**2).sum(1), (b**2).sum(1)
        shared = n / (n - 2) * (rows[0] @ rows[1])
        return ((a.T @ b) ** 2).sum() - shared + rows[0].sum() * rows[1].sum() / ((n - 1) * (n - 2))

    expected = product(x, y) / math.sqrt(product(x, x) * product(y, y))
    assert 0.2 < expected < 0.95
    assert measures.cka(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-9)


def test_cka_of_same_scaled_rotated_and_unrelated():
    x = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1)))[0]
    assert measures.cka(x, 3 * x @ turn + 7) == pytest.approx(1, abs=1e-5)
    assert abs(measures.cka(x, torch.randn(200, 50, generator=torch.Generator().manual_seed(2)))) < 0.05


def test_ssim_and_psnr_against_piq():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 32, 32, generator=generator)
    y = (x + 0.2 * torch.rand(3, 3, 32, 32, generator=generator)).clamp(0, 1)
    expected = piq.ssim(x, y, data_range=1.0, reduction="none", downsample=False)
    assert torch.allclose(measures.ssim(x, y, 1.0), expected, atol=1e-5)
    mse = (x - y).square().mean((1, 2, 3))
    assert [measures.psnr(m.item(), 1.0) for m in mse] == pytest.approx(
        piq.psnr(x, y, reduction="none").tolist(), abs=1e-3
    )


def test_effective_rank_and_cosines():
    assert measures.effective_rank(torch.eye(7)) == pytest.approx(7)
    assert measures.effective_rank(torch.diag(torch.tensor([1.0, 0, 0]))) == pytest.approx(1)
    assert measures.effective_rank(torch.zeros(3, 3)) == 0
    k = measures.gram(torch.tensor([[1.0, 0], [0, 2], [3, 3]]))
    assert measures.cosines(k).tolist() == pytest.approx([0, math.sqrt(0.5), math.sqrt(0.5)])


def test_streamed_ridge_equals_a_direct_solution():
    """Fitted on even images, scored on odd ones and the other way round, against solving on the stacked samples.

    Both sides carry an offset of their own in each of the 2 x 3 cells, which no map shared by the cells could make.
    """
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(40, 2, 3, 6, generator=generator) + 5, torch.randn(40, 2, 3, 4, generator=generator)
    z, offset = z + torch.randn(2, 3, 6, generator=generator), 3 * torch.randn(2, 3, 4, generator=generator)
    y = torch.einsum("nghd,dt->nght", z, torch.randn(6, 4, generator=generator)) + noise + offset
    pairs = Pairs()
    for start in range(0, 40, 8):
        for half in (0, 1):
            part = slice(start + half, start + 8, 2)
            described = torch.stack([y[part], noise[part]], 1)
            pairs.add(half, z[part], described, described.square().sum((2, 3, 4)))
    readout = pairs.solve((1e-2,), pixels=24)
    lost = energy = 0.0
    for fit, score in ((0, 1), (1, 0)):
        a, b, c, d = (t - t.mean(0) for t in (z[fit::2].double(), y[fit::2].double(), z[score::2], y[score::2]))
        a, b = a.flatten(0, 2), b.flatten(0, 2)
        weight = torch.linalg.solve(a.T @ a / 120 + 1e-2 * a.square().mean() * torch.eye(6), a.T @ b / 120)
        guess = c.double() @ weight
        lost += (guess - d).square().sum().item()
        energy += d.square().sum().item()
        assert torch.allclose(readout.read(z[score::2], score).double(), guess + y[score::2].mean(0), atol=1e-4)
    assert readout.r2 == pytest.approx(1 - lost / energy, abs=1e-5)
    assert readout.mse == pytest.approx(lost / 960, rel=1e-4)


def test_outliers_do_not_mislead_a_decoder_below_one_that_ignores_the_features():
    generator = torch.Generator().manual_seed(0)
    pairs = Pairs()
    for half, scale in ((0, 1.0), (1, 1e4)):  # fitted on small features, asked about large ones, and the reverse
        sketched = scale * torch.randn(16, 2, 2, 6, generator=generator)
        described = torch.randn(16, 3, 2, 2, 24, generator=generator)
        pairs.add(half, sketched, described, described.square().sum((2, 3, 4)))
    readout = pairs.solve((1e-2,), pixels=96)
    assert readout.r2 == 0
    assert readout.r2_draws.tolist() == [0, 0]
    assert not readout.weight.any()
    torch.testing.assert_close(readout.read(sketched, 0), readout.patch[0].expand(16, 2, 2, 24))


@pytest.mark.parametrize("cells", [(4, 4), (1, 1)])
def test_patches_compose_to_the_picture(cells):
    decoder = Decoder(grid=4, components=10_000).fit_to(16, 16)
    pictures = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    targets = Targets(pictures, decoder)
    described, energy = targets.describe(torch.arange(5), cells)
    assert described.shape == (5, *cells, 768 // (cells[0] * cells[1]))
    assert torch.allclose(targets.compose(described), pictures, atol=1e-6)
    assert torch.allclose(described.square().sum((1, 2, 3)), energy, rtol=1e-5)


def test_sketch_keeps_cells_in_place():
    decoder = Decoder(grid=4, features=64).fit_to(16, 16)
    features = torch.zeros(1, 2, 8, 8)
    features[0, 1, 5, 2] = 3.0
    found = sketch(features, decoder)
    assert found.shape == (1, 4, 4, 72)
    touched = {tuple(place) for place in found[0].abs().sum(-1).nonzero().tolist()}
    assert touched == {(i, j) for i in (1, 2, 3) for j in (0, 1, 2)}  # cell (2, 1) and its neighbours
