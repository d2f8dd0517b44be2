"""Initial values as named rules on kernels [out, in / groups, *kernel]; each writes in place and returns its tensor.

Legend: O output channels, I input channels of one group, k kernel sides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def he_normal_(kernel: Tensor, gain: float = 1.0) -> Tensor:
    """Entries ~ N(0, 2 gain^2 / fan_out), fan_out = O prod(k): keeps the gradient's variance through ReLU (He 2015)."""
    fan_out = kernel.shape[0] * kernel[0, 0].numel()
    return kernel.normal_(0.0, gain * (2.0 / fan_out) ** 0.5)


@torch.no_grad()
def dirac_(kernel: Tensor, gain: float = 1.0) -> Tensor:
    """Output o copies input o mod I at the kernel's centre, times `gain`; every other tap is 0.

    For O > I the inputs repeat, for O < I the last inputs are not copied (ours; `nn.init.dirac_` zeroes the surplus).
    """
    outputs, inputs = kernel.shape[:2]
    centre = tuple(side // 2 for side in kernel.shape[2:])
    kernel.zero_()
    for o in range(outputs):
        kernel[(o, o % inputs, *centre)] = gain
    return kernel


@torch.no_grad()
def orthogonal_(kernel: Tensor, gain: float = 1.0) -> Tensor:
    """The matrix [O, I prod(k)] gets orthonormal rows (or columns, if fewer), times `gain` (Saxe et al. 2014)."""
    return nn.init.orthogonal_(kernel, gain)
