"""The plain Transformer block, u = mlp(norm2(attention(norm1(x)))), and the coder that the blocks of a net share.

The sublayers' outputs are never added to their inputs. What the coder is made of is a type, as for convolutions:

    LearnedCoder     shared by all blocks and learned from the start below (default)
    FrozenOrthogonal shared, V a random rotation and O its inverse, the pair code fixed; buffers
    FrozenDirac      the same with V = O = I
    PerLayerCoder    every block its own, learned: no sharing (the ablation)

Start: V random orthogonal, O = V^T, E = [I; -I], R = [I, -I], so that O V = I and R act(E z) = z.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pnnh.layers.attention import PlainAttention, diagonal_bias
from pnnh.layers.coder import CoderChoice, FrozenDirac, FrozenOrthogonal, LearnedCoder, PerLayerCoder
from pnnh.layers.mlp import PlainMlp, pair_encoder_


@dataclass(frozen=True)
class BlockOptions:
    """What the blocks of a net are made of.

    coder: which kernels code, and whether they are shared; None is a LearnedCoder, and one without a rate has
        `coder_rate` / depth, because each of its steps changes all blocks.
    mixing: how much tokens mix over the whole depth at the start; exp(-mixing) of each stays its own (`diagonal_bias`).
    writing: variance that the MLPs' learners add to a token over the whole depth at the start, shared out evenly: each
        starts at the gain sqrt(writing / depth).
    """

    coder: CoderChoice | None = None
    coder_rate: float = 1.2
    mixing: float = 2.0
    writing: float = 1.0

    def choice(self, depth: int) -> CoderChoice:
        match self.coder:
            case None | LearnedCoder(None):
                return LearnedCoder(lr_scale=min(1.0, self.coder_rate / depth))
            case coder:
                return coder


class BlockCoder(nn.Module):
    """Owns the kernels value, output [D, D], encode [2 D, D], decode [D, 2 D]; the blocks get them as arguments.

    `lr_scale` multiplies their learning rate; `pnnh.train.param_groups` reads it; no decay.
    """

    value: Tensor
    output: Tensor
    encode: Tensor
    decode: Tensor

    def __init__(self, dim: int, *, rotate: bool = True, lr_scale: float | None = None, frozen: bool = False):
        super().__init__()
        self.rotate = rotate
        if lr_scale is not None:
            self.lr_scale = lr_scale
        shapes = {"value": (dim, dim), "output": (dim, dim), "encode": (2 * dim, dim), "decode": (dim, 2 * dim)}
        for name, shape in shapes.items():
            if frozen:
                self.register_buffer(name, torch.empty(shape))
            else:
                setattr(self, name, nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.value) if self.rotate else nn.init.eye_(self.value)
        self.output.copy_(self.value.T)
        self.decode.copy_(pair_encoder_(self.encode).T)

    def extra_repr(self) -> str:
        rate = f", lr_scale={self.lr_scale:.3g}" if hasattr(self, "lr_scale") else ""
        return f"{'learned' if isinstance(self.value, nn.Parameter) else 'frozen'}, dim={self.value.shape[0]}{rate}"


def block_coders(choice: CoderChoice, dim: int, depth: int) -> nn.ModuleList:
    """The coders of a net of `depth` blocks: one or, for `PerLayerCoder`, one per block."""
    match choice:
        case LearnedCoder(lr_scale):
            return nn.ModuleList([BlockCoder(dim, lr_scale=lr_scale)])
        case FrozenOrthogonal():
            return nn.ModuleList([BlockCoder(dim, frozen=True)])
        case FrozenDirac():
            return nn.ModuleList([BlockCoder(dim, rotate=False, frozen=True)])
        case PerLayerCoder():
            return nn.ModuleList(BlockCoder(dim) for _ in range(depth))
    raise ValueError(f"coder {choice!r} is none of LearnedCoder, FrozenDirac, FrozenOrthogonal, PerLayerCoder")


class PlainBlock(nn.Module):
    """x [B, T, D] -> mlp(norm2(attention(norm1(x)))) [B, T, D], one path, called with the coder that it uses."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        depth: int,
        num_tokens: int,
        mlp_ratio: float = 4.0,
        options: BlockOptions,
        norm=nn.LayerNorm,
        act=nn.GELU,
    ):
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = PlainAttention(dim, num_heads, diagonal=diagonal_bias(num_tokens, depth, options.mixing))
        self.norm2 = norm(dim)
        self.mlp = PlainMlp(dim, round(mlp_ratio * dim), gain=(options.writing / depth) ** 0.5, act=act)

    def reset_parameters(self) -> None:
        self.attn.reset_parameters()
        self.mlp.reset_parameters()

    def forward(self, x: Tensor, coder: BlockCoder) -> Tensor:
        y = self.attn(self.norm1(x), coder.value, coder.output)
        return self.mlp(self.norm2(y), coder.encode, coder.decode)
