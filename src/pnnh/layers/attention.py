"""Attention without a residual connection: y = softmax(q k^T / sqrt(k) + diag(b)) v, out = O y, and no `x +`.

Legend: B images, T tokens, D width, H heads, K = D / H; V, O the coder's kernels [D, D].

Queries and keys are the layer's learner, values and output are the coder, shared by all layers of a net. The learned
bias b on the diagonal of the logits starts so large that every token first attends to itself: with O V = I attention
starts near the identity, and how near is solved from the depth (`diagonal_bias`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def diagonal_bias(num_tokens: int, depth: int, mixing: float) -> float:
    """The bias with which a token gives the share exp(-mixing / depth) of its attention to itself, other logits equal.

    From exp(b) / (exp(b) + T - 1) = exp(-mixing / depth): after `depth` layers exp(-mixing) of a token is its own, in a
    net of any depth and at any number of tokens T (derived). 0 for a single token.
    """
    if mixing <= 0:
        raise ValueError(f"mixing {mixing} must be above 0: tokens that never mix are classified one by one")
    return math.log((num_tokens - 1) / math.expm1(mixing / depth)) if num_tokens > 1 else 0.0


def near_identity_attention(q: Tensor, k: Tensor, v: Tensor, diagonal: Tensor) -> Tensor:
    """q, k, v [B, H, T, K], diagonal [H] -> [B, H, T, K]: one softmax, the bias as an ordinary attention mask."""
    eye = torch.eye(q.shape[-2], dtype=q.dtype, device=q.device)
    mask = diagonal.to(q.dtype).view(1, -1, 1, 1) * eye  # [1, H, T, T]: of four dimensions, or no fused kernel takes it
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class JointLinear(nn.Linear):
    """A Linear with the weight [W; K], or [W, K] with `join="in"`: W the learner's, K the coder's and an argument."""

    def __init__(self, in_features: int, out_features: int, coded: int, *, join: str = "out"):
        """`in_features`, `out_features` of the whole map; `coded` of its outputs (inputs) are the coder's."""
        super().__init__(in_features, out_features)
        self.axis = {"out": 0, "in": 1}[join]
        own = (out_features - coded, in_features) if self.axis == 0 else (out_features, in_features - coded)
        self.weight = nn.Parameter(torch.empty(own))

    def reset_parameters(self) -> None:
        """Nothing: the layer that owns this map fills W at its own scale."""

    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        return F.linear(x, torch.cat([self.weight, kernel], self.axis), self.bias)


class CoderLinear(nn.Module):
    """K x + b: the coder's kernel, which is an argument, and a bias of the layer's own."""

    def __init__(self, out_features: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        return F.linear(x, kernel, self.bias)


class PlainAttention(nn.Module):
    """x [B, T, D] -> [B, T, D], called with the coder's kernels `value` V and `output` O, both [D, D].

    diagonal: where the bias of every head starts; see `diagonal_bias`.
    """

    def __init__(self, dim: int, num_heads: int, *, diagonal: float):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads {num_heads} must divide the width {dim}")
        self.num_heads, self.start = num_heads, diagonal
        self.qkv = JointLinear(dim, 3 * dim, coded=dim)
        self.diagonal = nn.Parameter(torch.empty(num_heads))
        self.proj = CoderLinear(dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Queries start at 0, so that only the diagonal counts at first; keys of unit variance; biases are 0."""
        queries, keys = self.qkv.weight.chunk(2)
        queries.zero_()
        keys.normal_(0.0, self.qkv.in_features**-0.5)
        self.qkv.bias.zero_()
        self.proj.bias.zero_()
        self.diagonal.fill_(self.start)

    def forward(self, x: Tensor, value: Tensor, output: Tensor) -> Tensor:
        q, k, v = self.qkv(x, value).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, K] each
        y = near_identity_attention(q, k, v, self.diagonal)
        return self.proj(y.transpose(1, 2).flatten(2), output)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, diagonal starts at {self.start:.3g}"
