"""Recipes for ImageNet-shaped nets, after "ResNet strikes back" (Wightman, Touvron, Jegou, arXiv 2110.00476, table 2).

                  A2                          A3
    epochs        300                         100
    pixels        224                         160 to train, 224 to test
    optimiser     LAMB 5e-3, batch 2048       LAMB 8e-3, batch 2048
    schedule      5 epochs up, cosine to 0    the same
    decay         0.02                        0.02
    loss          binary cross-entropy        the same
    mixing        mixup 0.1, cutmix 1         the same
    augmentation  Inception crops, mirror,    the same, RandAugment of magnitude 6
                  RandAugment of magnitude 7

"Like" and not "as": A2's stochastic depth leaves out residual branches, which a plain net does not have; A2's repeated
augmentation is not done; A3 is tested at the size it is trained at. Data in memory (`folder:`) is shifted and mirrored
instead of cropped and augmented; `imagefolder:` has the augmentation of the table. Not run on ImageNet by us.
"""

from __future__ import annotations

from typing import Any

from pnnh.data import Dataset, ResizedCrop
from pnnh.recipes.fitted import recipe_for
from pnnh.train import BinaryCrossEntropy, Cosine, Lamb, Mixing, Recipe


def a2(data: Dataset, **choices: Any) -> Recipe:
    """300 epochs. `choices` are Recipe's own and win."""
    return _strikes_back(data, {"epochs": 300} | choices, lr=5e-3, magnitude=7)


def a3(data: Dataset, **choices: Any) -> Recipe:
    """100 epochs. `choices` are Recipe's own and win."""
    return _strikes_back(data, {"epochs": 100} | choices, lr=8e-3, magnitude=6)


def _strikes_back(data: Dataset, choices: dict[str, Any], *, lr: float, magnitude: int) -> Recipe:
    """`lr` is for batches of 2048; others get it times the root of their share (timm's rule for such optimisers)."""
    batch_size = choices.get("batch_size", 2048)
    fitted: dict[str, Any] = {
        "batch_size": batch_size,
        "optimizer": Lamb(lr=lr * (batch_size / 2048) ** 0.5),
        "schedule": Cosine(warmup_epochs=min(5, choices["epochs"] / 4)),
        "weight_decay": 0.02,
        "loss": BinaryCrossEntropy(),
        "mixing": Mixing(mixup=0.1, cutmix=1.0),
    }
    recipe = recipe_for(data, **(fitted | choices))
    if not isinstance(recipe.augment, ResizedCrop) or "augment" in choices:
        return recipe
    crops = ResizedCrop(flip=data.flip, policy=f"rand-m{magnitude}-mstd0.5-inc1")
    return recipe_for(data, **(fitted | choices | {"augment": crops}))
