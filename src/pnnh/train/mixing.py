"""Two images in one: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019), one of them for a whole batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pnnh._errors import UsageError


@dataclass(frozen=True)
class Mixing:
    """Every batch is mixed with itself, reversed, by shares drawn from Beta(mixup, mixup) or Beta(cutmix, cutmix).

    0 leaves one of the two out; with both, every batch tosses a coin.
    """

    mixup: float = 0.1
    cutmix: float = 1.0

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or not self.mixup + self.cutmix:
            raise UsageError(f"mixup {self.mixup} and cutmix {self.cutmix} must be 0 or more, and one of them above 0")

    def draw(
        self, images: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """float [N, C, H, W] and labels [N] -> mixed images and class shares [N, K], by the generator's seed."""
        chance = np.random.default_rng(generator.initial_seed())
        cut = self.cutmix > 0 and (self.mixup == 0 or chance.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = float(chance.beta(alpha, alpha))
        if cut:
            images, share = paste(images, share, chance)
        else:
            images = images.lerp(images.flip(0), 1 - share)
        classes = F.one_hot(labels, num_classes).to(images.dtype)
        return images, classes.lerp(classes.flip(0), 1 - share)


def paste(images: Tensor, share: float, chance: np.random.Generator) -> tuple[Tensor, float]:
    """A box of 1 - `share` of the area, about a uniform centre, from the reversed batch; returns what is left."""
    height, width = images.shape[-2:]
    sides = [(1 - share) ** 0.5 * side for side in (height, width)]
    centre = [chance.integers(side) for side in (height, width)]
    (top, bottom), (left, right) = (
        (max(0, round(c - side / 2)), min(full, round(c + side / 2)))
        for c, side, full in zip(centre, sides, (height, width), strict=True)
    )
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
