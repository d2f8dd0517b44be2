"""The folded layers of the structured form: a stage and a Transformer block without norms and without a coder.

Legend: f learner features [B, L, H, W]; c the stream [B, C, H, W]; every convolution has its bias.

    learn   f' = act(learner * c),  c' = act(shift * c)        shift: a 1 x 1 convolution per channel, runtimes fuse it
    deepen  f' = act(learner * f),  c' = act(shift * c)
    write   f' = f,                 c' = act(c + write * f)
    both    f' = act(learner * c),  c' = act(c + write * f)

Both operands of `c +` have crossed the same activations, so the net stays plain. Source: ours.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pnnh._errors import UsageError
from pnnh.layers.attention import JointLinear, near_identity_attention
from pnnh.layers.block import PlainBlock
from pnnh.layers.coder import Coder


class ThinLearn(nn.Module):
    """f' = act(learner * c), c' = act(shift * c)."""

    def __init__(self, learner: nn.Conv2d, shift: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.learner, self.shift, self.act = learner, shift, act

    def forward(self, f: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.act(self.learner(c)), self.act(self.shift(c))


class ThinDeepen(ThinLearn):
    """f' = act(learner * f), c' = act(shift * c)."""

    def forward(self, f: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.act(self.learner(f)), self.act(self.shift(c))


class ThinWrite(nn.Module):
    """c' = act(c + write * f); f is returned unchanged."""

    def __init__(self, write: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.write, self.act = write, act

    def forward(self, f: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return f, self.act(c + self.write(f))


class ThinBoth(nn.Module):
    """f' = act(learner * c), c' = act(c + write * f)."""

    def __init__(self, learner: nn.Conv2d, write: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.learner, self.write, self.act = learner, write, act

    def forward(self, f: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.act(self.learner(c)), self.act(c + self.write(f))


class ThinStage(nn.Module):
    """x [B, in, H, W] -> c [B, C, H / stride, W / stride]: the convolutions of the transition, then thin layers."""

    def __init__(self, learner: nn.Module, stream: nn.Module, layers: list[nn.Module]):
        super().__init__()
        self.learner, self.stream, self.layers = learner, stream, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        f, c = self.learner(x), self.stream(x)
        for layer in self.layers:
            f, c = layer(f, c)
        return c


class FoldedBlock(nn.Module):
    """A plain Transformer block, x [B, T, D] -> [B, T, D], with coder and norms' scales in four Linears of its own.

    Between the softmax and the activation everything is linear (derived); z are the normalised tokens:

        qkv  [Q; K; V] diag(scale1) z + b    proj  O y + b    fc1  [W1; E] diag(scale2) z + b    fc2  [W2, R] h + b

    The block stands where the plain one stood, so it is called with a coder, which it does not read.
    """

    def __init__(self, block: PlainBlock, coder: Coder):
        super().__init__()
        value, output, encode, decode = coder.kernels()
        self.num_heads = block.attn.num_heads
        self.diagonal = nn.Parameter(block.attn.diagonal.detach().double())
        self.norm1, scale, shift = bare(block.norm1)
        self.qkv = after_norm(joint(block.attn.qkv, value), scale, shift)
        self.proj = linear_of(output.detach().double(), block.attn.proj.bias.detach().double())
        self.norm2, scale, shift = bare(block.norm2)
        fc1 = after_norm(joint(block.mlp.fc1, encode), scale, shift)
        self.mlp = nn.Sequential(fc1, copy.deepcopy(block.mlp.act), joint(block.mlp.fc2, decode))

    def forward(self, x: Tensor, coder: nn.Module | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, K]
        y = near_identity_attention(q, k, v, self.diagonal)
        return self.mlp(self.norm2(self.proj(y.transpose(1, 2).flatten(2))))


def linear_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A Linear that owns these weights, [O, I] and [O]."""
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta", dtype=weight.dtype)
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
    return made


def joint(layer: JointLinear, kernel: Tensor) -> nn.Linear:
    """Learner and coder as one Linear, float64."""
    weight = torch.cat([layer.weight.detach().double(), kernel.detach().double()], layer.axis)
    return linear_of(weight, layer.bias.detach().double())


def bare(norm: nn.Module) -> tuple[nn.LayerNorm, Tensor, Tensor]:
    """A LayerNorm without its scale and shift, and these, float64."""
    if type(norm).forward is not nn.LayerNorm.forward or norm.weight is None or norm.bias is None:
        raise UsageError(f"{type(norm).__name__} cannot be folded: only a LayerNorm with scale and shift can")
    made = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
    return made, norm.weight.detach().double(), norm.bias.detach().double()


def after_norm(layer: nn.Linear, scale: Tensor, shift: Tensor) -> nn.Linear:
    """layer(scale * z + shift) as one Linear of z."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    return linear_of(weight * scale, bias + weight @ shift)
