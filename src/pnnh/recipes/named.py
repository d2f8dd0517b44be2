"""Recipes by name: the common one, the same with Muon in place of SGD, and those for ImageNet-shaped nets."""

from __future__ import annotations

from typing import Any

from pnnh.data import Dataset
from pnnh.recipes.fitted import recipe_for
from pnnh.recipes.imagenet import a2, a3
from pnnh.train import Muon, Recipe


def muon(data: Dataset, **choices: Any) -> Recipe:
    """The default recipe with Muon at 0.02 and a decay of 0.05 (ours).

    `choices` are Recipe's own and win.
    """
    return recipe_for(data, **({"optimizer": Muon(lr=2e-2), "weight_decay": 0.05} | choices))


RECIPES = {"default": recipe_for, "muon": muon, "a2": a2, "a3": a3}
