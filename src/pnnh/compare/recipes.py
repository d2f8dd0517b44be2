"""Recipes by name: functions (data, **choices) -> Recipe; `choices` are entries of `Recipe` and win.

    default  10 epochs of SGD, one cycle                                      chosen
    fast     30 epochs of SGD, one cycle at a peak of 0.3                     chosen; results/scripts/tune.py tunes it
    long     200 epochs of SGD 0.1 with a cosine, as CIFAR ResNets are trained in the literature
    muon     the default with Muon in place of SGD                            chosen
    a2, a3   300 and 100 epochs, after "ResNet strikes back" (arXiv 2110.00476, table 2); not run by us

A recipe is one for all methods, except for the learning rates of `pnnh.compare.methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pnnh.data import Augment, Dataset, ResizedCrop, Split
from pnnh.train import SGD, AdamW, BinaryCrossEntropy, Cosine, Lamb, Mixing, Muon, OneCycle, Recipe


def recipe_for(data: Dataset, **choices: Any) -> Recipe:
    """The default recipe, fitted to a data set.

    Crops move by up to an eighth of the side (4 px at 32), mirror images only where they keep their class. Images that
    stay on disk get Inception crops. Batches have 128 images; 64 below 10,000 training images; and in sets with which
    an epoch would have fewer than 16 steps 32 or 16, so that small sets see enough updates.

    Args:
        data: what is trained on.
        choices: entries of `Recipe`, which win.
    """
    in_memory, images = isinstance(data.train, Split), len(data.train)
    sizes = (128, 64, 32, 16) if images >= 10_000 else (64, 32, 16)
    fitted = {
        "augment": Augment(pad=data.image_size // 8, flip=data.flip) if in_memory else ResizedCrop(flip=data.flip),
        "batch_size": next((size for size in sizes if images // size >= 16), min(16, max(2, images))),
    }
    return Recipe(**(fitted | choices))


def fast(data: Dataset, **choices: Any) -> Recipe:
    """30 epochs: SGD with a peak of 0.3 after 15 % of the run, then a cosine to zero, decay 5e-4, batch 128."""
    return recipe_for(data, **{"epochs": 30, "optimizer": SGD(lr=0.3), "schedule": OneCycle(warmup=0.15)} | choices)


def long(data: Dataset, **choices: Any) -> Recipe:
    """200 epochs: SGD 0.1 with Nesterov momentum, a cosine to zero, decay 5e-4 on everything, batch 128, crop, flip.

    So the public logs of chenyaofo/pytorch-cifar-models say, with batches of 256.
    """
    fitted = {"epochs": 200, "optimizer": SGD(lr=0.1), "schedule": Cosine(), "weight_decay": 5e-4, "decay_norms": True}
    return recipe_for(data, **{"batch_size": 128} | fitted | choices)


def muon(data: Dataset, **choices: Any) -> Recipe:
    """The default recipe with Muon at 0.02 and a decay of 0.05."""
    return recipe_for(data, **({"optimizer": Muon(lr=2e-2), "weight_decay": 0.05} | choices))


def a2(data: Dataset, **choices: Any) -> Recipe:
    """300 epochs of LAMB at 5e-3 with RandAugment of magnitude 7."""
    return _strikes_back(data, {"epochs": 300} | choices, lr=5e-3, magnitude=7)


def a3(data: Dataset, **choices: Any) -> Recipe:
    """100 epochs of LAMB at 8e-3 with RandAugment of magnitude 6; best at 160 pixels."""
    return _strikes_back(data, {"epochs": 100} | choices, lr=8e-3, magnitude=6)


def _strikes_back(data: Dataset, choices: dict[str, Any], *, lr: float, magnitude: int) -> Recipe:
    """What A2 and A3 have in common: binary cross-entropy, mixup 0.1, cutmix 1, 5 epochs of warm-up, decay 0.02.

    `lr` is for batches of 2048; others get it times the root of their share. Left out: A2's stochastic depth, which
    needs residual branches, repeated augmentation, and A3's larger test images. Images in memory keep shifts and flips.
    """
    batch_size = choices.get("batch_size", 2048)
    fitted: dict[str, Any] = {
        "batch_size": batch_size,
        "optimizer": Lamb(lr=lr * (batch_size / 2048) ** 0.5),
        "schedule": Cosine(warmup_epochs=min(5, choices["epochs"] / 4)),
        "weight_decay": 0.02,
        "loss": BinaryCrossEntropy(),
        "mixing": Mixing(mixup=0.1, cutmix=1.0),
    }
    if not isinstance(data.train, Split):
        fitted["augment"] = ResizedCrop(flip=data.flip, policy=f"rand-m{magnitude}-mstd0.5-inc1")
    return recipe_for(data, **(fitted | choices))


def vit(data: Dataset, **choices: Any) -> Recipe:
    """AdamW at 1e-3, one epoch of warm-up, a cosine to zero, decay 0.05, gradients clipped at norm 1.

    The coder has its own parameter group: a fraction of the rate, no decay (`pnnh.train.param_groups`).
    """
    fitted = {
        "optimizer": AdamW(lr=1e-3),
        "schedule": Cosine(warmup_epochs=1.0),
        "weight_decay": 0.05,
        "grad_clip": 1.0,
        "channels_last": False,
    }
    return recipe_for(data, **(fitted | choices))


def vit_muon(data: Dataset, **choices: Any) -> Recipe:
    """The same with Muon at 3e-3 (not tuned); its updates are as large as AdamW's, so that the decay fits."""
    return vit(data, **({"optimizer": Muon(lr=3e-3)} | choices))


CNN_RECIPES: dict[str, Callable[..., Recipe]] = {
    "default": recipe_for,
    "fast": fast,
    "long": long,
    "muon": muon,
    "a2": a2,
    "a3": a3,
}
VIT_RECIPES: dict[str, Callable[..., Recipe]] = {"default": vit, "muon": vit_muon}
