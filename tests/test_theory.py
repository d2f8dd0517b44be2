"""pnnh.theory against golden values, its own identities, and Monte Carlo that would catch a wrong factor."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pnnh import theory

# b, survival, Cantelli, chi, growth of the gradient over 56 layers: worked out by hand from the closed forms.
SHIFTED = [
    (0.0, 0.5000, 0.0000, 1.4669, 4.566e4),
    (0.5, 0.6915, 0.2000, 1.2494, 510.0),
    (1.0, 0.8413, 0.5000, 1.1202, 23.98),
    (1.5, 0.9332, 0.6923, 1.0505, 3.968),
    (2.0, 0.9772, 0.8000, 1.0178, 1.637),
]


@pytest.mark.parametrize(("b", "survival", "bound", "chi", "growth"), SHIFTED)
def test_shifted_golden(b, survival, bound, chi, growth):
    response = theory.shifted(b)
    assert response.survival == pytest.approx(survival, abs=5e-5)
    assert response.bound == pytest.approx(bound, abs=5e-5)
    assert theory.chi(b) == pytest.approx(chi, abs=5e-5)
    assert theory.growth(b, 56) == pytest.approx(growth, rel=1e-3)


@pytest.mark.parametrize(
    ("depth", "k", "shift"),
    [(20, 1, 1.49), (56, 1, 1.99), (110, 1, 2.28), (20, 4, 0.59), (56, 4, 1.29), (110, 4, 1.66)],
)
def test_solve_shift_golden(depth, k, shift):
    assert theory.solve_shift(depth, k) == pytest.approx(shift, abs=6e-3)


@given(st.integers(1, 100_000), st.floats(0.05, 6))
def test_solve_shift_reaches_its_target(depth, k):
    shift = theory.solve_shift(depth, k)
    reached = depth * math.log(theory.chi(shift))
    assert reached == pytest.approx(k, rel=1e-6) or (shift == 0 and reached < k)


@given(st.floats(-6, 6))
def test_chi_equals_its_definition(b):
    cdf, pdf = 0.5 * math.erfc(-b / math.sqrt(2)), math.exp(-b * b / 2) / math.sqrt(2 * math.pi)
    first, second = b * cdf + pdf, (b * b + 1) * cdf + b * pdf
    assert theory.chi(b) == pytest.approx(cdf / (second - first**2), rel=1e-5)


def test_rows_in_both_forms():
    m, v = 0.75, 0.1875
    q = v + m * m
    assert theory.plain(m, v) == theory.Response(0.0, 2 * q)
    assert theory.residual(m, v) == theory.Response(m, v + 2 * q)
    assert theory.coded(m, v, 0.3).variance == pytest.approx(v + 2 * 0.09 * q)
    assert theory.coded(m, v, 1.0) == theory.residual(m, v)
    assert theory.paper_plain(v) == theory.plain(0, v)
    assert theory.paper_residual(0, v) == theory.residual(0, v)
    assert theory.paper_residual(m, v) == theory.Response(m, 3 * v)
    assert theory.residual(m, v).bound == pytest.approx(m * m / (m * m + v + 2 * q))
    assert theory.plain(m, v).survival == 0.5


def test_monte_carlo_of_plain_residual_and_coded():
    """x uniform on [0, 1.5], fresh He weights: the paper's centred 2 v would be off by a factor of 4 here."""
    generator = torch.Generator().manual_seed(0)
    n, m, v = 2048, 0.75, 1.5**2 / 12
    x = 1.5 * torch.rand(n, 64, generator=generator, dtype=torch.float64)
    branch = torch.randn(n, n, generator=generator, dtype=torch.float64) * math.sqrt(2 / n) @ x
    for values, row in [
        (branch, theory.plain(m, v)),
        (x + branch, theory.residual(m, v)),
        (x + 0.3 * branch, theory.coded(m, v, 0.3)),
    ]:
        units = values.mean(1), values.square().mean(1), (values > 0).double().mean(1)
        mean, square, alive = (unit.mean().item() for unit in units)
        errors = [unit.std().item() / math.sqrt(n) for unit in units]
        assert abs(mean - row.mean) < 4 * errors[0]
        assert abs(square - row.mean**2 - row.variance) < 4 * errors[1]
        assert abs(alive - row.survival) < 4 * errors[2] + 0.01  # x is uniform, so x + W x is only nearly Gaussian
        assert alive >= row.bound


def test_monte_carlo_of_chi_and_rectified():
    z = torch.randn(4_000_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for b in (-0.5, 0.0, 1.3):
        y = (z + b).relu()
        assert (z + b > 0).double().mean() / y.var() == pytest.approx(theory.chi(b), rel=5e-3)
        moments = theory.rectified(theory.Response(2 * b, 4.0))
        assert (2 * y).mean() == pytest.approx(moments.mean, rel=5e-3)
        assert (4 * y.var()) == pytest.approx(moments.variance, rel=5e-3)


@given(st.floats(-20, 20), st.floats(0, 50))
def test_gaussian_survival_respects_cantelli(mean, variance):
    response = theory.Response(mean, variance)
    assert response.survival >= response.bound - 1e-12


def test_correlation_map():
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    for c in (-0.9, 0.0, 0.6):
        first, second = weights[:, 0].relu(), (c * weights[:, 0] + math.sqrt(1 - c * c) * weights[:, 1]).relu()
        measured = (first * second).mean() / (first.square().mean() * second.square().mean()).sqrt()
        assert theory.correlation(c) == pytest.approx(measured.item(), abs=0.01)
    assert theory.correlation(1.0) == pytest.approx(1.0)
    assert all(theory.correlation(c / 10) > c / 10 for c in range(-10, 10))


def test_path_survival():
    assert theory.path_survival([0.5] * 56)[0] == pytest.approx(2**-56)
    assert theory.path_survival([0.99, 0.98]) == pytest.approx((0.9702, 0.97))
    assert theory.path_survival([0.5] * 3)[1] == 0.0
    assert theory.path_survival([]) == (1.0, 1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.plain(0, -1),
        lambda: theory.plain(math.nan, 1),
        lambda: theory.plain(0, 1, gain=-1),
        lambda: theory.coded(0, 1, write=-0.1),
        lambda: theory.cantelli(1, -1),
        lambda: theory.correlation(1.1),
        lambda: theory.path_survival([1.2]),
        lambda: theory.solve_shift(0),
        lambda: theory.solve_shift(10, 0),
        lambda: theory.growth(0, -1),
        lambda: theory.chi(-60),
        lambda: theory.chi(math.inf),
    ],
)
def test_domain_checks(call):
    with pytest.raises(ValueError, match="it must be"):
        call()
