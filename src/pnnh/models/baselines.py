"""The twins' stages: a chain of plain convolutions, and He et al.'s basic residual blocks with option-A shortcuts.

Both have the call shape of a plain stage, x [B, in, H, W] -> [B, C, H / stride, W / stride], and equal parameters.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pnnh.layers import LearnerConv


class ConvNormAct(nn.Sequential):
    """relu(norm(conv(x)))"""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int = 3, *, stride: int = 1):
        conv = LearnerConv(in_chans, out_chans, kernel_size, stride=stride)
        super().__init__(conv, nn.BatchNorm2d(out_chans), nn.ReLU(inplace=True))


class ChainStage(nn.Sequential):
    """`num_layers` of conv-norm-relu, nothing else: the plain net of He et al. 2015."""

    def __init__(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int = 1):
        first = ConvNormAct(in_chans, out_chans, stride=stride)
        super().__init__(first, *(ConvNormAct(out_chans, out_chans) for _ in range(num_layers - 1)))


class BottleneckChainStage(nn.Sequential):
    """`num_layers / 3` bottlenecks of 1x1, 3x3 and 1x1 (He et al. 2015, figure 5), their shortcuts left out."""

    def __init__(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int = 1, expansion: int = 4):
        super().__init__()
        thin = out_chans // expansion
        for index in range(num_layers // 3):
            first = index == 0
            self.append(ConvNormAct(in_chans if first else out_chans, thin, 1))
            self.append(ConvNormAct(thin, thin, stride=stride if first else 1))
            self.append(ConvNormAct(thin, out_chans, 1))


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))); the shortcut subsamples and zero-pads (option A)."""

    def __init__(self, in_chans: int, out_chans: int, *, stride: int = 1):
        super().__init__()
        self.conv1 = LearnerConv(in_chans, out_chans, stride=stride)
        self.norm1 = nn.BatchNorm2d(out_chans)
        self.conv2 = LearnerConv(out_chans, out_chans)
        self.norm2 = nn.BatchNorm2d(out_chans)
        self.act = nn.ReLU(inplace=True)
        self.stride = stride
        self.widening = out_chans - in_chans

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.widening)) if self.widening else x

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm1(self.conv1(x)))
        return self.act(self.shortcut(x) + self.norm2(self.conv2(h)))


class ResidualStage(nn.Sequential):
    """`num_layers / 2` residual blocks."""

    def __init__(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int = 1):
        first = ResidualBlock(in_chans, out_chans, stride=stride)
        super().__init__(first, *(ResidualBlock(out_chans, out_chans) for _ in range(num_layers // 2 - 1)))
