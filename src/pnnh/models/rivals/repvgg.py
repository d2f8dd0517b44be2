"""RepVGG: relu(bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x)) in training, one 3x3 convolution after it (arXiv 2101.03697).

The block is timm's; `reparameterize` folds its three branches (section 3.2 of the paper), and `pnnh.fuse` calls it.
The identity branch is left out where width or resolution change.
"""

from __future__ import annotations

from timm.models.byobnet import RepVggBlock
from torch import nn

from pnnh.layers.init import he_normal_
from pnnh.models.cifar import WIDTHS, CifarNet


class RepVggStage(nn.Sequential):
    """`num_layers` three-branch blocks. `gain`: the initial scale of both convolution branches' norms (paper: 1)."""

    def __init__(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int = 1, gain: float = 1.0):
        super().__init__()
        for index in range(num_layers):
            first = index == 0
            block = RepVggBlock(in_chans if first else out_chans, out_chans, stride=stride if first else 1)
            for branch in (block.conv_kxk, block.conv_1x1):
                he_normal_(branch.conv.weight)
                nn.init.constant_(branch.bn.weight, gain)
            self.append(block)


class RepVgg(CifarNet):
    """Three-branch blocks at the depth of the others: each block counts as one layer."""

    def __init__(self, depth: int = 20, widths: tuple[int, int, int] = WIDTHS, *, gain: float = 1.0, **kwargs):
        self.gain = gain
        super().__init__(depth, widths, **{"head_norm": False} | kwargs)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return RepVggStage(in_chans, out_chans, num_layers, stride=stride, gain=self.gain)
