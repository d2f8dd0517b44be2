"""The comparison's second family: Vision Transformers of any width, patch and depth, and their recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import timm
from torch import nn

from pnnh._errors import UsageError
from pnnh.data import Dataset
from pnnh.recipes.comparison import Cell, Comparison, Method
from pnnh.recipes.fitted import recipe_for
from pnnh.train import AdamW, Cosine, Recipe

RESIDUAL = {"global_pool": "avg", "class_token": False}  # as our nets have it
METHODS = {  # rates of their own where the common one fails
    "residual": Method("vit_tiny_patch16_224", options=RESIDUAL),
    "plain": Method("plain_vit_tiny_patch4_32"),
    "pnnh": Method("pnnh_vit_tiny_patch4_32"),
    "skip_init": Method("cutskip_vit_tiny_patch4_32", lr={AdamW: 3e-4}),
}
HEAD_WIDTH = 32


@dataclass(frozen=True)
class TransformerComparison(Comparison):
    """`Comparison` of ViTs that are equally wide and deep; heads are 32 wide. Raises UsageError for misfits.

    width: of a token. patch: pixels a side of a patch; it must divide the images.
    """

    methods: tuple[str, ...] = ("residual", "plain", "pnnh", "skip_init")
    depths: tuple[int, ...] = (12,)
    width: int = 96
    patch: int = 4

    table: ClassVar[dict[str, Method]] = METHODS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < HEAD_WIDTH or self.width % HEAD_WIDTH:
            raise UsageError(f"width {self.width} must be a multiple of {HEAD_WIDTH}, the width of a head")
        if self.patch < 1 or (self.image_size or self.patch) % self.patch:
            raise UsageError(f"patch {self.patch} must divide the image size, {self.image_size}")

    def check(self, depth: int) -> None:
        if depth < 3:
            raise UsageError(f"depth {depth} must be at least 3 blocks")

    def recipe_of(self, cell: Cell) -> Recipe:
        """Beyond 12 blocks the rate of the nets without a skip falls as 1 / depth: their changes compound (ours)."""
        recipe = super().recipe_of(cell)
        if not self.own_lr or cell.method == "residual" or cell.depth <= 12:
            return recipe
        return recipe.with_lr(recipe.optimizer.lr * 12 / cell.depth)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"family": "vit", "width": self.width, "patch": self.patch}

    def sizes(self, depth: int, data: Dataset) -> dict[str, Any]:
        """What all nets of this depth have in common."""
        sizes = {"img_size": data.image_size, "patch_size": self.patch, "embed_dim": self.width, "depth": depth}
        heads = {"num_heads": self.width // HEAD_WIDTH}
        return sizes | heads | {"num_classes": data.num_classes, "in_chans": data.channels}

    def build(self, cell: Cell, data: Dataset) -> tuple[nn.Module, dict[str, Any]]:
        method = self.table[cell.method]
        kwargs = self.sizes(cell.depth, data) | method.options
        try:
            return timm.create_model(method.family, **kwargs), {"name": method.family, "kwargs": kwargs}
        except ValueError as error:
            raise UsageError(str(error)) from None


def transformer_recipe(data: Dataset, **choices: Any) -> Recipe:
    """AdamW at 1e-3, one epoch of warm-up, a cosine to zero, decay 0.05, gradients clipped at norm 1.

    The coder has its own parameter group: a fraction of the rate, no decay (`pnnh.train.param_groups`). `choices` are
    Recipe's own and win.
    """
    fitted = {
        "optimizer": AdamW(lr=1e-3),
        "schedule": Cosine(warmup_epochs=1.0),
        "weight_decay": 0.05,
        "grad_clip": 1.0,
        "channels_last": False,
    }
    return recipe_for(data, **(fitted | choices))
