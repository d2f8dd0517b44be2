"""A plain Transformer block folded: the coder's kernels and the norms' scales inside four Linears of its own.

Legend as in `attention` and `mlp`. Between the softmax and the activation everything is linear:

    qkv  [Q; K; V] diag(scale1) z + b      proj  O y + b      fc1  [W1; E] diag(scale2) z + b      fc2  [W2, D] h + b

with z the normalised tokens, and each norm's shift in the bias that follows it. Source: derived.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pnnh._errors import UsageError
from pnnh.layers.attention import JointLinear, near_identity_attention
from pnnh.layers.block import BlockCoder, PlainBlock


class FoldedBlock(nn.Module):
    """x [B, T, D] -> [B, T, D]. It stands where the block stood, so it is called with a coder, and needs none."""

    def __init__(self, block: PlainBlock, coder: BlockCoder):
        super().__init__()
        self.num_heads = block.attn.num_heads
        self.diagonal = nn.Parameter(block.attn.diagonal.detach().double())
        self.norm1, scale, shift = bare(block.norm1)
        self.qkv = after_norm(joint(block.attn.qkv, coder.value), scale, shift)
        self.proj = linear(coder.output.detach().double(), block.attn.proj.bias.detach().double())
        self.norm2, scale, shift = bare(block.norm2)
        fc1 = after_norm(joint(block.mlp.fc1, coder.encode), scale, shift)
        self.mlp = nn.Sequential(fc1, copy.deepcopy(block.mlp.act), joint(block.mlp.fc2, coder.decode))

    def forward(self, x: Tensor, coder: nn.Module | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, K]
        y = near_identity_attention(q, k, v, self.diagonal)
        return self.mlp(self.norm2(self.proj(y.transpose(1, 2).flatten(2))))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A Linear with these weights [O, I] and [O]."""
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta", dtype=weight.dtype)
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
    return made


def joint(layer: JointLinear, kernel: Tensor) -> nn.Linear:
    """Learner and coder as one Linear, float64."""
    weight = torch.cat([layer.weight.detach().double(), kernel.detach().double()], layer.axis)
    return linear(weight, layer.bias.detach().double())


def bare(norm: nn.Module) -> tuple[nn.LayerNorm, Tensor, Tensor]:
    """A LayerNorm without its scale and shift, and these, float64."""
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
        raise UsageError(f"{type(norm).__name__} cannot be folded: a LayerNorm with scale and shift can")
    made = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
    return made, norm.weight.detach().double(), norm.bias.detach().double()


def after_norm(layer: nn.Linear, scale: Tensor, shift: Tensor) -> nn.Linear:
    """layer(scale * z + shift) as one Linear of z."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    return linear(weight * scale, bias + weight @ shift)


def fold_blocks(net: nn.Module) -> bool:
    """Fold, in place, the blocks of a net that has `blocks`, `coders` and says by `coded()` which uses which.

    Returns whether there was one. The coders leave the net: every block has its own copy.
    """
    if not hasattr(net, "coded") or not all(isinstance(block, PlainBlock) for block in net.blocks):
        return False
    for index, (block, coder) in enumerate(list(net.coded())):
        net.blocks[index] = FoldedBlock(block, coder)
    net.coders = nn.ModuleList([nn.Identity()])
    return True
