"""The MLP without a residual connection: u = R act(E z) + W2 act(W1 z); every path crosses the activation.

Legend: D width of a token, E [2 D, D] and R [D, 2 D] the coder's kernels, W1 and W2 the learner's.

The coder starts as the pair code E = [I; -I], R = [I, -I]. Every activation act(x) = x g(x) with g(x) + g(-x) = 1
(ReLU, GELU, SiLU, hard-swish) has act(x) - act(-x) = x, so the pair carries z through it without loss (derived).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from pnnh.layers.attention import JointLinear


def second_moment(act: nn.Module) -> float:
    """E[act(x)^2] for x ~ N(0, 1), by the trapezoidal rule on [-10, 10] (derived); 0.4252 for GELU, 0.5 for ReLU."""
    x = torch.linspace(-10, 10, 4001, dtype=torch.float64, device="cpu")
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    with torch.no_grad():
        value = copy.deepcopy(act).double()(x.clone())
    return float(torch.trapezoid(value.square() * density, x))


@torch.no_grad()
def pair_encoder_(kernel: Tensor) -> Tensor:
    """[2 D, D] <- [I; -I]."""
    eye = torch.eye(kernel.shape[1], dtype=kernel.dtype, device=kernel.device)
    return kernel.copy_(torch.cat([eye, -eye]))


class PlainMlp(nn.Module):
    """z [B, T, D] -> [B, T, D], called with the coder's kernels `encode` [2 D, D] and `decode` [D, 2 D].

    hidden: units in all, more than the coder's 2 D; the rest are the learner's.
    gain: standard deviation of what the learner adds to the code at the start, for normalised tokens.
    """

    def __init__(self, dim: int, hidden: int, *, gain: float, act=nn.GELU):
        super().__init__()
        if hidden <= 2 * dim:
            raise ValueError(
                f"{hidden} hidden units leave none to learn: the pair code takes 2 x {dim}; use an mlp_ratio above 2"
            )
        self.gain = gain
        self.fc1 = JointLinear(dim, hidden, coded=2 * dim)
        self.act = act()
        self.fc2 = JointLinear(hidden, dim, coded=2 * dim, join="in")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        learner, dim = self.fc1.weight.shape
        self.fc1.weight.normal_(0.0, dim**-0.5)
        self.fc2.weight.normal_(0.0, self.gain * (learner * second_moment(self.act)) ** -0.5)
        self.fc1.bias.zero_()
        self.fc2.bias.zero_()

    def forward(self, z: Tensor, encode: Tensor, decode: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(z, encode)), decode)
