"""The plain Transformer block, u = mlp(norm2(attention(norm1(x)))), and the coder that the blocks of a net share.

The sublayers' outputs are never added to their inputs. The coder's kernels are value V and output O of the attention,
encode E and decode R of the MLP. Start: V random orthogonal, O = V^T, E = [I; -I], R = [I, -I], so that O V = I and
R act(E z) = z; with the start "dirac" V = O = I.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from pnnh.layers.attention import PlainAttention, diagonal_bias
from pnnh.layers.coder import Coder, CoderChoice, LearnedCoder, Starts, coders
from pnnh.layers.mlp import PlainMlp, pair_encoder_


@dataclass(frozen=True)
class BlockOptions:
    """What the blocks of a net are made of.

    coder: which kernels the coder has, and whether the blocks share them.
    coder_rate: a learned coder without an `lr_scale` of its own has `coder_rate` / depth, at most 1, because each of
        its steps changes all blocks.
    mixing: how much tokens mix over the whole depth at the start; exp(-mixing) of each stays its own (`diagonal_bias`).
    writing: variance that the MLPs' learners add to a token over the whole depth at the start, shared out evenly: each
        starts at the gain sqrt(writing / depth).
    """

    coder: CoderChoice = field(default_factory=LearnedCoder)
    coder_rate: float = 1.2
    mixing: float = 2.0
    writing: float = 1.0


def rotated_(value: Tensor, output: Tensor, encode: Tensor, decode: Tensor, *, rotate: bool = True) -> None:
    """V random orthogonal (or I), O = V^T, E = [I; -I], R = E^T."""
    nn.init.orthogonal_(value) if rotate else nn.init.eye_(value)
    output.copy_(value.T)
    decode.copy_(pair_encoder_(encode).T)


STARTS = Starts({"orthogonal": rotated_, "dirac": partial(rotated_, rotate=False)}, "orthogonal", "orthogonal")


def block_coders(options: BlockOptions, dim: int, depth: int) -> nn.ModuleList:
    """The coders of a net of `depth` blocks of width `dim`: one or, for `PerLayerCoder`, one per block."""
    shapes = {"value": (dim, dim), "output": (dim, dim), "encode": (2 * dim, dim), "decode": (dim, 2 * dim)}
    return coders(options.coder, shapes, depth, starts=STARTS, rate=min(1.0, options.coder_rate / depth))


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

    def forward(self, x: Tensor, coder: Coder) -> Tensor:
        y = self.attn(self.norm1(x), coder.value, coder.output)
        return self.mlp(self.norm2(y), coder.encode, coder.decode)
