"""Vision Transformers without a residual connection, on timm's VisionTransformer: its embedding, head and Model API.

    PnnhVit    plain blocks with a shared coder          no residual connection
    PlainVit   timm's own blocks, their additions gone   no residual connection, no coder
    timm's VisionTransformer is the residual twin

Legend: B images, C channels, H x W pixels, T tokens, D width. Input [B, C, H, W], output [B, num_classes]. Tokens are
averaged and there is no class token: attention that starts near the identity would tell a class token little.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import torch
from timm.layers import PatchEmbed
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from pnnh.layers.block import BlockOptions, PlainBlock, block_coders
from pnnh.layers.coder import Coder
from pnnh.layers.skipless import CuttingTheSkip
from pnnh.models.staged import shared_kernels

Size = int | tuple[int, int]


def both(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


class Patches(PatchEmbed):
    """timm's patch embedding that says what is wrong with an image it cannot take."""

    def forward(self, x: Tensor) -> Tensor:
        size, patch = tuple(x.shape[-2:]), self.patch_size
        if any(side % step for side, step in zip(size, patch, strict=True)):
            raise ValueError(f"images of {size[0]}x{size[1]} px: the patch size {patch} must divide both sides")
        if self.strict_img_size and size != self.img_size:
            tokens = (size[0] // patch[0]) * (size[1] // patch[1])
            raise ValueError(
                f"images of {size[0]}x{size[1]} px make {tokens} tokens, the position table is for {self.num_patches} "
                f"({self.img_size[0]}x{self.img_size[1]} px); build with img_size={size} or dynamic_img_size=True"
            )
        return super().forward(x)


class SkiplessVit(VisionTransformer):
    """What both nets have: timm's net around `depth` blocks of `self.block()`.

    dynamic_img_size: take any image that the patches divide; the position table is resampled for it (timm's way).
    Raises ValueError for sizes that do not divide.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        *,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        global_pool: str = "avg",
        class_token: bool = False,
        **embedding_and_head,
    ):
        sides, patches = both(img_size), both(patch_size)
        if min(patches) < 1 or any(side % patch for side, patch in zip(sides, patches, strict=True)):
            raise ValueError(f"patch_size {patch_size} must divide img_size {img_size}")
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads {num_heads} must divide embed_dim {embed_dim}")
        if depth < 1:
            raise ValueError(f"depth {depth} must be at least 1")
        if global_pool == "token" and not class_token:
            raise ValueError("global_pool 'token' needs class_token=True; otherwise pool with 'avg'")
        if unknown := sorted(set(embedding_and_head) - EMBEDDING_AND_HEAD):
            known = ", ".join(sorted(EMBEDDING_AND_HEAD))
            raise TypeError(f"{type(self).__name__} takes no {', '.join(unknown)}; beside the sizes it takes {known}")
        super().__init__(
            img_size,
            patch_size,
            embed_dim=embed_dim,
            depth=0,
            num_heads=num_heads,
            global_pool=global_pool,
            class_token=class_token,
            embed_layer=Patches,
            **embedding_and_head,
        )
        self.num_heads, self.mlp_ratio = num_heads, mlp_ratio
        self.blocks = nn.Sequential(*(self.block(depth) for _ in range(depth)))
        reduction = self.patch_embed.feat_ratio()
        self.feature_info = [
            {"module": f"blocks.{index}", "num_chs": embed_dim, "reduction": reduction} for index in range(depth)
        ]

    def block(self, depth: int) -> nn.Module:
        """One of `depth` blocks."""
        raise NotImplementedError


EMBEDDING_AND_HEAD = {
    *("num_classes", "in_chans", "dynamic_img_size", "reg_tokens", "no_embed_class", "fc_norm"),
    *("drop_rate", "pos_drop_rate", "pool_include_prefix"),
}


class SkiplessBlock(Block):
    """timm's block, its additions gone: mlp(norm2(attn(norm1(x))))."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        return self.mlp(self.norm2(x))


class PlainVit(SkiplessVit):
    """The plain twin: timm's own modules in a bare chain.

    start: None for timm's initial values, or a rival's, `CuttingTheSkip()`.
    """

    def __init__(self, *args, start: CuttingTheSkip | None = None, **kwargs):
        self.start = start
        super().__init__(*args, **kwargs)
        self.init_weights(needs_reset=False)

    def block(self, depth: int) -> nn.Module:
        return SkiplessBlock(self.embed_dim, self.num_heads, self.mlp_ratio, qkv_bias=True)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        super().init_weights(mode, needs_reset)
        if self.start is not None:
            for block in self.blocks:
                self.start(block)


class CutSkipVit(PlainVit):
    """The plain twin with the initial values of "Cutting the Skip" (arXiv 2510.00345)."""

    def __init__(self, *args, start: CuttingTheSkip | None = None, **kwargs):
        super().__init__(*args, start=start or CuttingTheSkip(), **kwargs)


class PnnhVit(SkiplessVit):
    """The PNNH net: plain blocks with learners of their own and one coder for all.

    options: what the blocks are made of.
    """

    def __init__(self, *args, options: BlockOptions | None = None, **kwargs):
        self.options = options or BlockOptions()
        super().__init__(*args, **kwargs)
        depth = len(self.blocks)
        self.coders = block_coders(self.options, self.embed_dim, depth)

    def block(self, depth: int) -> nn.Module:
        num_tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        sizes = {"depth": depth, "num_tokens": num_tokens, "mlp_ratio": self.mlp_ratio}
        return PlainBlock(self.embed_dim, self.num_heads, **sizes, options=self.options)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        super().init_weights(mode, needs_reset)
        for module in self.modules():
            if isinstance(module, (PlainBlock, Coder)):
                module.reset_parameters()

    def embed(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> tokens with their positions [B, T, D]."""
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))

    def coded(self) -> Iterator[tuple[PlainBlock, Coder]]:
        """Every block and its coder: the same every time unless there is one per block."""
        return zip(self.blocks, cycle(self.coders))

    def run(self, block: PlainBlock, x: Tensor, coder: Coder) -> Tensor:
        return checkpoint(block, x, coder) if self.grad_checkpointing and self.training else block(x, coder)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block, coder in self.coded():
            x = self.run(block, x, coder)
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ):
        """timm's: the final features and the outputs of the blocks in `indices` (last n if int, all if None)."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt {output_fmt!r} must be 'NCHW' or 'NLC'")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        height, width = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        x, prefix, intermediates = self.embed(x), self.num_prefix_tokens, []
        for index, (block, coder) in enumerate(self.coded()):
            x = self.run(block, x, coder)
            if index in wanted:
                tokens = self.norm(x) if norm else x
                patches = tokens[:, prefix:]
                if output_fmt == "NCHW":
                    patches = patches.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous()
                intermediates.append((patches, tokens[:, :prefix]) if return_prefix_tokens and prefix else patches)
            if stop_early and index == last:
                break
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | list[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list:
        """timm's, as DINO calls it: the outputs of the last `n` blocks, or of those in `n`."""
        shape = "NCHW" if reshape else "NLC"
        choices = {"return_prefix_tokens": return_prefix_tokens, "norm": norm, "output_fmt": shape}
        return self.forward_intermediates(x, n, intermediates_only=True, **choices)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's: keep the blocks up to the last of `indices`."""
        wanted = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if len(self.coders) > 1:
            self.coders = self.coders[: len(self.blocks)]
        return wanted

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """timm's, with the coder at the bottom: every block depends on it."""
        groups = super().group_matcher(coarse)
        return groups | {"stem": groups["stem"] + r"|coders"}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """timm's, and the kernels of the shared coder."""
        return super().no_weight_decay() | shared_kernels(self)
