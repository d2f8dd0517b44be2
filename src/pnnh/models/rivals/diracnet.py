"""DiracNet, second version: W_hat = diag(a) I + diag(b) W_norm in every convolution (arXiv 1706.00388v2, section 3).

I is the Dirac kernel, W_norm the kernel with each output filter scaled to length 1; a and b are learned per output
channel, start at 1 and 0.1, and are not decayed. The order is convolution, batch norm, ReLU; resolution is halved by
max pooling before a stage, so that every convolution has stride 1 (the Dirac hands its input on unsampled).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from pnnh.layers import LearnerConv
from pnnh.models.cifar import WIDTHS, CifarNet


class Dirac(nn.Module):
    """W [O, I, k, k] -> diag(a) I + diag(b) W_norm. With O > I the surplus outputs have no Dirac, as in the paper."""

    delta: Tensor

    def __init__(self, weight: Tensor, *, beta: float = 0.1):
        super().__init__()
        self.a = nn.Parameter(torch.ones(len(weight)))
        self.b = nn.Parameter(torch.full((len(weight),), beta))
        self.register_buffer("delta", nn.init.dirac_(torch.empty_like(weight, requires_grad=False)), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        a, b = self.a.view(-1, 1, 1, 1), self.b.view(-1, 1, 1, 1)
        return a * self.delta + b * F.normalize(weight.flatten(1)).view_as(weight)


def dirac_conv(in_chans: int, out_chans: int, *, beta: float = 0.1) -> nn.Conv2d:
    """A 3x3 convolution whose `weight` is W_hat; W, a and b are its parameters."""
    conv = LearnerConv(in_chans, out_chans)
    register_parametrization(conv, "weight", Dirac(conv.weight, beta=beta))
    return conv


class DiracStage(nn.Sequential):
    """Max pooling if `stride` is 2, then `num_layers` of conv-norm-relu with Dirac kernels."""

    def __init__(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int = 1, beta: float = 0.1):
        super().__init__()
        if stride > 1:
            self.append(nn.Sequential(nn.MaxPool2d(stride)))
        for index in range(num_layers):
            conv = dirac_conv(in_chans if index == 0 else out_chans, out_chans, beta=beta)
            self.append(nn.Sequential(conv, nn.BatchNorm2d(out_chans), nn.ReLU(inplace=True)))


class DiracNet(CifarNet):
    """The chain of Dirac convolutions. `beta`: how loud W_norm starts beside the Dirac (paper: 0.1)."""

    def __init__(self, depth: int = 20, widths: tuple[int, int, int] = WIDTHS, *, beta: float = 0.1, **kwargs):
        self.beta = beta
        super().__init__(depth, widths, **{"head_norm": False} | kwargs)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return DiracStage(in_chans, out_chans, num_layers, stride=stride, beta=self.beta)
