"""The initial values of "Cutting the Skip" (Ji et al. 2025, arXiv 2510.00345) for a Transformer block without a skip.

Legend: D width, H heads, K = D / H, I the identity, Z [D, D] with entries N(0, 1 / D). Written from its equations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class CuttingTheSkip:
    """Well-conditioned start: scaled orthonormal W_V W_O, W_Q W_K^T = alpha Z + beta I in every head, orthogonal MLP.

    W_V = c U and W_O = c V^T with random orthogonal U, V, so that W_V W_O = c^2 U V^T has condition number 1. The
    product of queries and keys is the best approximation of rank K, by singular values. alpha, beta, c: paper, ViT-B.
    """

    alpha: float = 2.0
    beta: float = 0.6
    c: float = 3.0

    @torch.no_grad()
    def __call__(self, block: nn.Module) -> None:
        """Fill a block with `attn.qkv`, `attn.proj`, `mlp.fc1`, `mlp.fc2` (timm's names); biases become 0."""
        queries, keys, values = block.attn.qkv.weight.chunk(3)
        for q, k in zip(queries.chunk(block.attn.num_heads), keys.chunk(block.attn.num_heads), strict=True):
            left, right = self.logits(q)
            q.copy_(left)
            k.copy_(right)
        nn.init.orthogonal_(values, self.c)
        nn.init.orthogonal_(block.attn.proj.weight, self.c)
        for linear in (block.mlp.fc1, block.mlp.fc2):
            sides = linear.weight.shape
            nn.init.orthogonal_(linear.weight, (max(sides) / min(sides)) ** 0.5)
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            if linear.bias is not None:
                linear.bias.zero_()

    def logits(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of one head [K, D] each, W_q^T W_k = the rank-K part of alpha Z + beta I."""
        rank, dim = like.shape
        noise = torch.randn(dim, dim, dtype=like.dtype, device=like.device) * dim**-0.5
        eye = torch.eye(dim, dtype=like.dtype, device=like.device)
        u, s, vt = torch.linalg.svd(self.alpha * noise + self.beta * eye)
        root = s[:rank, None].sqrt()
        return root * u.T[:rank], root * vt[:rank]
