"""TAT: a leaky ReLU whose slope is solved from the depth, on delta-orthogonal kernels, no norm (arXiv 2203.08120).

Legend: c cosine of two inputs; C(c) cosine of their images after one layer; a negative slope of the leaky ReLU.
The condition (section 4.1 of the paper): the cosine of two orthogonal inputs after all L layers, C(C(...C(0))), is eta.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnnh.models.cifar import WIDTHS, CifarNet


def cosine_map(c: float, slope: float) -> float:
    """C(c) of sqrt(2 / (1 + a^2)) LeakyReLU_a: c + (1 - a)^2 / (pi (1 + a^2)) (sqrt(1 - c^2) - c arccos c)."""
    c = min(c, 1.0)
    bend = (1 - slope) ** 2 / (1 + slope**2) / math.pi
    return c + bend * (math.sqrt(1 - c * c) - c * math.acos(c))


def tailored_slope(num_layers: int, eta: float = 0.9) -> float:
    """The slope a in [0, 1] with C applied `num_layers` times to 0 equal to eta, by bisection.

    Raises ValueError if eta is not in (0, 1). Layers so few that even a ReLU stays below eta get slope 0.
    """
    if not 0 < eta < 1:
        raise ValueError(f"eta {eta} must be in (0, 1): the cosine two orthogonal inputs may reach")

    def reached(slope: float) -> float:
        c = 0.0
        for _ in range(num_layers):
            c = cosine_map(c, slope)
        return c

    low, high = 0.0, 1.0  # `reached` falls from ReLU's to 0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) > eta else (low, middle)
    return (low + high) / 2 if reached(0.0) > eta else 0.0


class TailoredReLU(nn.LeakyReLU):
    """sqrt(2 / (1 + a^2)) LeakyReLU_a(x): keeps the second moment of a standard Gaussian."""

    def __init__(self, slope: float):
        super().__init__(slope, inplace=True)
        self.scale = math.sqrt(2 / (1 + slope**2))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x * self.scale, self.negative_slope, inplace=True)


@torch.no_grad()
def delta_orthogonal_(kernel: Tensor) -> Tensor:
    """[O, I, k, k]: zero but for the centre tap: random orthogonal times max(1, sqrt(O / I)), which keeps moments."""
    centre = kernel.new_empty(kernel.shape[:2])
    nn.init.orthogonal_(centre, gain=max(1.0, math.sqrt(kernel.shape[0] / kernel.shape[1])))
    kernel.zero_()
    kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] = centre
    return kernel


class TailoredLayer(nn.Sequential):
    """act(conv(x) + bias)"""

    def __init__(self, in_chans: int, out_chans: int, slope: float, *, stride: int = 1):
        conv = nn.Conv2d(in_chans, out_chans, 3, stride=stride, padding=1)
        delta_orthogonal_(conv.weight)
        nn.init.zeros_(conv.bias)
        super().__init__(conv, TailoredReLU(slope))


class TatNet(CifarNet):
    """The chain of such layers; the slope fits the depth - 1 activations. `eta`: see the module's text (paper: 0.9)."""

    def __init__(self, depth: int = 20, widths: tuple[int, int, int] = WIDTHS, *, eta: float = 0.9, **kwargs):
        self.slope = tailored_slope(depth - 1, eta)
        super().__init__(depth, widths, **{"head_norm": False} | kwargs)

    def first_layer(self, in_chans: int, out_chans: int) -> nn.Module:
        return TailoredLayer(in_chans, out_chans, self.slope)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        first = TailoredLayer(in_chans, out_chans, self.slope, stride=stride)
        rest = (TailoredLayer(out_chans, out_chans, self.slope) for _ in range(num_layers - 1))
        return nn.Sequential(first, *rest)
