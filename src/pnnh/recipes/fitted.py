"""The default recipe, fitted to a data set."""

from __future__ import annotations

from typing import Any

from pnnh.data import Augment, Dataset, ResizedCrop, Split
from pnnh.train import Recipe


def recipe_for(data: Dataset, **choices: Any) -> Recipe:
    """The default recipe fitted to a data set; `choices` are Recipe's own and win.

    Crops move by up to an eighth of the side (4 px at 32), mirror images only where they keep their class, and
    batches of 64 below 10,000 images, so that small sets see enough updates. Images that stay on disk get
    Inception crops.
    """
    in_memory = isinstance(data.train, Split)
    fitted = {
        "augment": Augment(pad=data.image_size // 8, flip=data.flip) if in_memory else ResizedCrop(flip=data.flip),
        "batch_size": 128 if len(data.train) >= 10_000 else 64,
    }
    return Recipe(**(fitted | choices))
