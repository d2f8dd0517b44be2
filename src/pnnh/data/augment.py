"""Random crops and mirror images for a whole batch at once, on the device the images are on.

N images, C channels, H rows, W columns. A crop with zero padding is a shift, a mirror image a reversed column
index, so both are one gather; it also picks the batch out of the data set and leaves channels_last memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pnnh._errors import UsageError


@dataclass(frozen=True)
class Augment:
    """Crop after padding by `pad` pixels of zero (He et al. 2016 use 4 at 32 px); mirror half of the images."""

    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise UsageError(f"pad {self.pad} must be 0 or more pixels")

    def draw(self, images: Tensor, index: Tensor, generator: torch.Generator, part: slice = slice(None)) -> Tensor:
        """images [M, C, H, W], index [N] -> the augmented batch [N, C, H, W], same dtype, channels_last.

        `part` of it, if only that is wanted: the same images as in the whole batch.
        """
        n, device = len(index), images.device

        def integers(high: int) -> Tensor:
            return torch.randint(high, (n, 1), generator=generator, device=device)

        shift_y, shift_x = integers(2 * self.pad + 1) - self.pad, integers(2 * self.pad + 1) - self.pad
        mirrored = integers(2).bool()[part] if self.flip else None
        return shift(images, index[part], shift_y[part], shift_x[part], mirrored)


@dataclass(frozen=True)
class ResizedCrop:
    """A random part of the image of random shape, resized (Inception crops); for data that is read from disk.

    smallest: least share of the area. flip: mirror half of the images. policy: timm's name of an automatic
    augmentation, e.g. "rand-m7-mstd0.5-inc1"; "" is none.
    """

    smallest: float = 0.08
    flip: bool = True
    policy: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1:
            raise UsageError(f"smallest {self.smallest} must be above 0 and at most 1")

    def transform(self, image_size: int) -> Callable[[Any], Tensor]:
        """PIL image -> uint8 [3, image_size, image_size]."""
        from timm.data import create_transform

        return create_transform(
            (3, image_size, image_size), is_training=True, scale=(self.smallest, 1.0), color_jitter=0.0,
            hflip=0.5 if self.flip else 0.0, auto_augment=self.policy or None, normalize=False,
        )  # fmt: skip


def shift(images: Tensor, index: Tensor, shift_y: Tensor, shift_x: Tensor, mirrored: Tensor | None) -> Tensor:
    """Pick images[index], mirror where `mirrored`, then move by whole pixels, zeros entering at the borders.

    images [M, C, H, W]; index [N]; shift_y, shift_x and mirrored [N, 1]. Output pixel (y, x) is input pixel
    (y + shift_y, x + shift_x) of the mirrored image. Returns [N, C, H, W] in channels_last memory.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) + shift_y  # [N, H]
    columns = torch.arange(width, device=images.device) + shift_x  # [N, W]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    if mirrored is not None:
        columns = torch.where(mirrored, width - 1 - columns, columns)
    picked = images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [N, H, W, C]
    picked.masked_fill_(~inside[..., None], 0)
    return picked.permute(0, 3, 1, 2)


def numbered(seed: int, purpose: str, count: int, device: torch.device | str) -> torch.Generator:
    """Independent random numbers for one purpose at one time of one run."""
    digest = hashlib.sha256(f"{seed} {purpose} {count}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "big"))
