"""What the theory says about one layer and about a chain of them: closed forms on floats, no tensors.

Sources: "paper" is arXiv 2402.08645 (its abstract and second-hand summaries); "derived" and "ours" are proved in
docs/theory.md. Symbols: x, a layer's input, has mean m and variance v over units and examples, q = v + m^2. Weights
are independent, of mean 0 and variance gain / fan_in; He-normal is gain = 2. A *response* enters the activation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

HE = 2.0  # fan_in * Var[w] of He-normal weights


@dataclass(frozen=True)
class Response:
    """Mean and variance of the values entering an activation, and what follows from them."""

    mean: float
    variance: float

    def __post_init__(self):
        _require(math.isfinite(self.mean), "mean", self.mean, "finite")
        _require(0 <= self.variance < math.inf, "variance", self.variance, "finite and not negative")

    @property
    def survival(self) -> float:
        """P(y > 0) of a Gaussian y with these moments."""
        if self.variance == 0:
            return float(self.mean > 0)
        return _cdf(self.mean / math.sqrt(self.variance))

    @property
    def bound(self) -> float:
        """Chebyshev-Cantelli: P(y > 0) >= mean^2 / (mean^2 + variance) for *any* y of positive mean, else 0 (paper)."""
        return cantelli(self.mean, self.variance)

    def __add__(self, other: Response) -> Response:
        """The sum of two uncorrelated responses; a branch of fresh zero-mean weights is uncorrelated with its input."""
        return Response(self.mean + other.mean, self.variance + other.variance)


# The four layers. The paper's form is the one for centred inputs: it writes v where the general form has q = v + m^2.


def plain(mean: float, variance: float, gain: float = HE) -> Response:
    """y = W x: mean 0, variance gain * q (derived). Survival 1/2, Cantelli vacuous."""
    _require(gain >= 0, "gain", gain, "not negative")
    return Response(0.0, gain * (Response(mean, variance).variance + mean**2))


def residual(mean: float, variance: float, gain: float = HE) -> Response:
    """y = x + W x: mean m, variance v + gain * q (derived)."""
    return Response(mean, variance) + plain(mean, variance, gain)


def coded(mean: float, variance: float, write: float, gain: float = HE) -> Response:
    """Coder and learner, y = x + g W x with write gain g: mean m, variance v + gain * g^2 * q (derived)."""
    _require(write >= 0, "write", write, "not negative")
    return residual(mean, variance, gain * write**2)


def shifted(shift: float, scale: float = 1.0) -> Response:
    """y = scale * z + shift with z normalised: what a norm layer of these affine values hands on (derived)."""
    return Response(shift, scale**2)


def paper_plain(variance: float) -> Response:
    """The plain layer as the paper states it: mean 0, variance 2 s^2. Equals `plain` where the input is centred."""
    return plain(0.0, variance)


def paper_residual(mean: float, variance: float) -> Response:
    """The residual layer as the paper states it: mean m, variance 3 s^2. Equals `residual` on centred inputs."""
    return Response(mean, Response(mean, variance).variance * (1 + HE))


def cantelli(mean: float, variance: float) -> float:
    """Least share of positive values any distribution of this mean and variance can have; 0 (vacuous) for mean <= 0."""
    _require(variance >= 0, "variance", variance, "not negative")
    if mean <= 0:
        return 0.0
    ratio = math.sqrt(variance) / mean
    return 1 / (1 + ratio * ratio)


# Chains.


def rectified(response: Response) -> Response:
    """Mean and variance of ReLU(y) for a Gaussian y: one layer's output, the next one's input (derived)."""
    sd = math.sqrt(response.variance)
    if sd == 0:
        return Response(max(response.mean, 0.0), 0.0)
    kept, _, variance = _rectified(response.mean / sd)
    return Response(sd * kept, response.variance * variance)


def path_survival(survivals: Iterable[float]) -> tuple[float, float]:
    """Chance that one path is alive in all its layers: (layers independent, Boole's bound without assumptions)."""
    product, missing = 1.0, 0.0
    for survival in survivals:
        _require(0 <= survival <= 1, "survival", survival, "a share in [0, 1]")
        product, missing = product * survival, missing + 1 - survival
    return product, max(0.0, 1 - missing)


def correlation(c: float) -> float:
    """Correlation (cosine) of two inputs after one He plain ReLU layer of infinite width (Cho and Saul 2009).

    It lies above `c` everywhere below 1: whatever the inputs were, depth makes them the same.
    """
    _require(-1 <= c <= 1, "c", c, "a correlation in [-1, 1]")
    return (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi


def chi(shift: float) -> float:
    """Growth of the squared gradient through one linear -> norm -> + shift -> ReLU layer, towards the input (derived).

    chi(b) = Phi(b) / Var[ReLU(z + b)] = 1 + E[ReLU(z + b)] E[ReLU(-z - b)] / Var[ReLU(z + b)]; the last form
    does not cancel. It falls from infinity to 1 as b rises; chi(0) = 1.467: an unshifted chain grows by 1.211 a layer.
    """
    return 1 + _excess(shift)


def growth(shift: float, depth: int) -> float:
    """Total growth of the gradient's norm over `depth` such layers: chi(shift)^(depth / 2) (derived)."""
    _require(depth >= 0, "depth", depth, "not negative")
    return math.exp(0.5 * depth * math.log1p(_excess(shift)))


def solve_shift(depth: int, k: float = 1.0) -> float:
    """The shift b >= 0 at which the squared gradient grows by e^k over `depth` layers: chi(b)^depth = e^k (ours).

    0 where even the unshifted chain grows by less than that. Raises ValueError for depth < 1 or k <= 0.
    """
    _require(depth >= 1, "depth", depth, "at least 1")
    _require(0 < k < math.inf, "k", k, "positive")
    low, high = 0.0, 1.0
    if depth * math.log1p(_excess(low)) <= k:
        return low
    while depth * math.log1p(_excess(high)) > k:
        low, high = high, 2 * high
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if depth * math.log1p(_excess(middle)) > k else (low, middle)
    return 0.5 * (low + high)


def _excess(shift: float) -> float:
    """chi(shift) - 1."""
    _require(math.isfinite(shift), "shift", shift, "finite")
    kept, lost, variance = _rectified(shift)
    _require(variance > 0, "shift", shift, "not so low that nothing survives (above about -35)")
    return kept * lost / variance


def _rectified(b: float) -> tuple[float, float, float]:
    """E[ReLU(z + b)], E[ReLU(-z - b)] and Var[ReLU(z + b)] of a standard normal z."""
    density = math.exp(-0.5 * b * b) / math.sqrt(2 * math.pi)
    kept, lost = density + b * _cdf(b), density - b * _cdf(-b)
    return kept, max(lost, 0.0), _cdf(b) - kept * max(lost, 0.0)  # Phi = Var + kept * lost, docs/theory.md


def _cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _require(holds: bool, name: str, value: float, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value!r}: it must be {rule}")
