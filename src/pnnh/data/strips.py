"""Strips: many square images in one file, one below the other, each as wide as the file.

SPLIT/CLASS/NN.png or NN.webp; at 32 px a strip of 500 images is 32 x 16000.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pnnh._errors import RunError
from pnnh.data import pictures

_NAME = re.compile(r"\d+\.(png|webp)", re.IGNORECASE)


def tile_of(root: Path, files: Sequence[str], labels: Sequence[int]) -> int | None:
    """The side of a tile if these files are strips, else None.

    Strips have numbers for names; the first files of all classes are of one width, none is wider than high, and one
    at least is twice as high as wide.
    """
    first = {label: file for file, label in zip(reversed(files), reversed(labels), strict=True)}.values()
    if not all(_NAME.fullmatch(Path(file).name) for file in first):
        return None
    sizes = [pictures.size_of(root / file) for file in first]
    known = [size for size in sizes if size is not None]
    same = len({width for width, _ in known}) == 1 and len(known) == len(sizes)
    if not same or min(height / width for width, height in known) < 1 or max(h / w for w, h in known) < 2:
        return None
    return known[0][0] if known[0][0] >= 8 else None


def count(path: Path, side: int) -> int:
    """How many images of `side` pixels the strip holds, by its header. Raises RunError for one that is cut short."""
    width, height = pictures.size_of(path) or (0, 0)
    if width != side or height % side:
        what = f"is {width} x {height}" if width else "cannot be read"
        rule = f"a strip is {side} wide and a multiple of {side} high"
        raise RunError(f"{path} {what}, but {rule}: it was cut short or is no strip; copy it again")
    return height // side


def tiles(path: Path, side: int, channels: int) -> np.ndarray:
    """uint8 [n, channels, side, side]. Raises Unreadable."""
    column, _ = pictures.load(path, "RGB" if channels == 3 else "L", strip=True)
    return np.asarray(column).reshape(-1, side, side, channels).transpose(0, 3, 1, 2)
