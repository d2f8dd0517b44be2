"""ISONet: near-isometric layers without norm and without shortcut (arXiv 2006.16992).

Dirac start, shifted ReLU max(x, b) with a learned b per channel that starts at -1 (section 3.3), and the penalty
gamma / 2 * |conv(K, K) - delta|^2 on every kernel K after the stem, which keeps the layers orthogonal (section 3.2).
The variant with a shortcut, R-ISONet, is not this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnnh.layers import LearnerConv
from pnnh.models.cifar import WIDTHS, CifarNet


class ShiftedReLU(nn.Module):
    """max(x, b): the identity above b, which starts at -1. b [C]."""

    def __init__(self, num_chans: int):
        super().__init__()
        self.b = nn.Parameter(torch.full((num_chans,), -1.0))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        b = self.b.view(-1, 1, 1)
        return self.act(x - b) + b


def isometry_gap(kernel: Tensor, stride: int = 1) -> Tensor:
    """|conv(K, K) - delta|^2 / 2 of K [O, I, k, k]: 0 iff the convolution keeps lengths (its adjoint's, if O > I)."""
    narrow = kernel.transpose(0, 1) if kernel.shape[1] < kernel.shape[0] else kernel  # [min(O, I), ...]
    gram = F.conv2d(narrow, narrow, padding=kernel.shape[-1] - 1, stride=stride)
    return (gram - nn.init.dirac_(torch.empty_like(gram, requires_grad=False))).square().sum() / 2


class IsoConv(LearnerConv):
    """A convolution that starts as a Dirac and charges `gamma` times its distance from isometry, once per step."""

    def __init__(self, in_chans: int, out_chans: int, *, stride: int = 1, gamma: float = 1e-4):
        super().__init__(in_chans, out_chans, stride=stride)
        self.gamma = gamma

    def reset_parameters(self) -> None:
        nn.init.dirac_(self.weight)

    def penalty(self) -> Tensor:
        return self.gamma * isometry_gap(self.weight, self.stride[0])


class IsoNet(CifarNet):
    """The chain of such layers. `gamma`: weight of the penalty (paper: 1e-4). The stem starts at random, uncharged."""

    def __init__(self, depth: int = 20, widths: tuple[int, int, int] = WIDTHS, *, gamma: float = 1e-4, **kwargs):
        self.gamma = gamma
        super().__init__(depth, widths, **{"head_norm": False} | kwargs)

    def first_layer(self, in_chans: int, out_chans: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_chans, out_chans, 3, padding=1, bias=False), ShiftedReLU(out_chans))

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        layers = nn.Sequential()
        for index in range(num_layers):
            inside, step = (in_chans, stride) if index == 0 else (out_chans, 1)
            conv = IsoConv(inside, out_chans, stride=step, gamma=self.gamma)
            layers.append(nn.Sequential(conv, ShiftedReLU(out_chans)))
        return layers
